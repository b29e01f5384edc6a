/* Every row of the table against its double-precision reference, in every dtype, on the instruction set that TANDEM_ISA names. */
#include "ops_table.h"
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

static void results(void **state)
{
    int rows = 0, bad = 0;
    (void)state;
    for (const ops_row *const *table = ops_tables(); *table; table++)
        for (const ops_row *row = *table; row->op; row++)
            for (int t = TD_F32; t <= TD_BOOL; t++)
                if (row->dtypes >> t & 1)
                    rows++, bad += ops_check_result(row, (td_dtype)t);
    print_message("%d comparisons on %s\n", rows, td__cpu_kernels()->name);
    assert_true(rows > 500);
    assert_int_equal(bad, 0);
    td__scope_close_root();
    assert_int_equal(td_memory().live_tensors, 0);
    assert_int_equal(td_memory().live_bytes, 0);
}

int main(void)
{
    const char *isa = getenv("TANDEM_ISA");
    if (isa && !td__cpu_kernels_named(isa)) {
        print_message("this processor has no %s\n", isa);
        return 77;                             /* meson: skipped */
    }
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = { cmocka_unit_test(results) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
