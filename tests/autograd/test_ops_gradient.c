/* Every row of the table that has a gradient, against central finite differences in f64; once written, once added to. */
#include "ops_table.h"
#include <setjmp.h>
#include <cmocka.h>

static void gradients(void **state)
{
    int rows = 0, bad = 0;
    (void)state;
    for (const ops_row *const *table = ops_tables(); *table; table++)
        for (const ops_row *row = *table; row->op; row++)
            if (row->grad)
                rows++, bad += ops_check_gradient(row);
    print_message("%d rows\n", rows);
    assert_true(rows > 100);
    assert_int_equal(bad, 0);
    td__scope_close_root();
    assert_int_equal(td__live_nodes(), 0);
    assert_int_equal(td_memory().live_tensors, 0);
    assert_int_equal(td_memory().live_bytes, 0);
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = { cmocka_unit_test(gradients) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
