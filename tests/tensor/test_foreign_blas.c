/* tests/tensor/test_foreign_blas.c: a host process has brought OpenBLAS's pthread build: products must ask it for one thread.
 *
 * This program's own definitions of the two functions stand before the linked library's, as a host's build loaded earlier would.
 */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <kernels.h>

int  openblas_get_parallel(void);
void openblas_set_num_threads(int n);

static int asked, set_to;

int openblas_get_parallel(void)
{
    asked++;
    return 1;   /* pthread */
}

void openblas_set_num_threads(int n)
{
    set_to = n;
}

static void pthread_build_gets_one_thread(void **state)
{
    (void)state;
    const double a[4] = { 1, 2, 3, 4 }, b[4] = { 5, 6, 7, 8 }, expected[4] = { 19, 22, 43, 50 };
    double c[4] = { 0 };
    td__cpu_kernels()->gemm(TD_F64, false, false, 2, 2, 2, 1, a, 2, b, 2, 0, c, 2);
    for (int i = 0; i < 4; i++)
        assert_true(c[i] == expected[i]);
    assert_true(asked > 0);
    assert_int_equal(set_to, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(pthread_build_gets_one_thread) };
    return cmocka_run_group_tests_name("foreign blas", tests, NULL, NULL);
}
