/* The registry against the table: every operation has a row, a gradient row (or says why not), and a row with an empty input. */
#include "ops_table.h"
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static bool has_empty_input(const ops_row *row)
{
    TD_SCOPE();
    td_tensor *in[OPS_MAX] = { 0 };
    td_dtype t = row->dtypes & 1u << TD_F64 ? TD_F64 : TD_I64;
    size_t n = row->inputs(row, t, in);
    for (size_t i = 0; i < n; i++)
        if (in[i] && td_numel(in[i]) == 0)
            return true;
    return false;
}

static void complete(void **state)
{
    int missing = 0, ops = 0;
    (void)state;
    for (const td_op *const *op = td_op_registry(); *op; op++, ops++) {
        bool row_seen = false, gradient = false, none = false, empty = false;
        for (const ops_row *const *table = ops_tables(); *table; table++)
            for (const ops_row *row = *table; row->op; row++)
                if (row->op == *op) {
                    row_seen |= row->dtypes != 0;
                    gradient |= row->grad != 0;
                    none |= row->no_gradient;
                    empty |= has_empty_input(row);
                }
        /* an operation may say that it has no gradient only if its record has none */
        bool fine = row_seen && empty && (gradient ? (*op)->grad != NULL : none && (*op)->grad == NULL);
        if (!fine)
            printf("%s: reference row %s, gradient %s, row with an empty input %s\n", (*op)->name, row_seen ? "yes" : "MISSING",
                   gradient ? "yes" : none && !(*op)->grad ? "none" : "MISSING", empty ? "yes" : "MISSING");
        missing += !fine;
    }
    assert_true(ops > 20);
    assert_int_equal(missing, 0);
    assert_int_equal(td_memory().live_tensors, 0);
}

static void names_unique(void **state)
{
    (void)state;
    for (const td_op *const *a = td_op_registry(); *a; a++)
        for (const td_op *const *b = a + 1; *b; b++)
            assert_string_not_equal((*a)->name, (*b)->name);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(complete), cmocka_unit_test(names_unique) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
