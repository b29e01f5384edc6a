/* The kernel that counts what is not finite: every instruction set, dtype, length and place, against isfinite of each element. */
#include <omp.h>
#include "tensor_test.h"

enum { MOST = 3000 };

static void fill(td_dtype t, char *x, int n, uint64_t *state)
{
    static const double edges[] = { 0, -0.0, 1, -1, 65504, 1e-30, 3.3e38, -3.3e38, 5e-324, 6e-8 };
    for (int i = 0; i < n; i++) {
        double v = edges[test_random(state) % TD_COUNT(edges)];
        if (t == TD_F16 && fabs(v) > 65504)
            v = 7;
        td__element_put(t, x + (size_t)i * td_dtype_size(t), v);
    }
}

/* added to 3, and written over it */
static int64_t counted(const td_kernels *k, td_dtype t, int64_t n, const void *x, int64_t *first)
{
    double count = 3, again = 3;
    k->not_finite(t, n, x, &count, true, first);
    k->not_finite(t, n, x, &again, false, NULL);
    assert_true(count == again + 3);
    return (int64_t)again;
}

static void counts_and_places(void **unused)
{
    static const td_dtype types[] = { TD_F64, TD_F32, TD_BF16, TD_F16 };
    static const double wrong[] = { INFINITY, -INFINITY, NAN };
    static char x[MOST * 8];
    const td_kernels *isa[3];
    size_t isas = test_isas(isa);
    uint64_t state = 7;
    for (size_t t = 0; t < 4; t++)
        for (int n = 0; n < MOST; n = n < 70 ? n + 1 : n * 3 / 2) {
            size_t size = td_dtype_size(types[t]);
            fill(types[t], x, n, &state);
            for (int bad = 0; bad <= 3 && bad <= n; bad++) {
                if (bad)
                    td__element_put(types[t], x + test_random(&state) % (uint64_t)n * size, wrong[bad - 1]);
                int64_t count = 0, first = -1;
                for (int i = n; i-- > 0;)
                    if (!isfinite(td__element_get(types[t], x + (size_t)i * size)))
                        count++, first = i;
                for (size_t k = 0; k < isas; k++) {
                    int64_t at = 99;
                    assert_int_equal(counted(isa[k], types[t], n, x, &at), count);
                    assert_int_equal(at, first);
                }
            }
        }
}

static void all_and_many_threads(void **unused)
{
    enum { N = 100000 };
    static float x[N];
    int before = omp_get_max_threads();
    const td_kernels *isa[3];
    for (size_t k = 0, isas = test_isas(isa); k < isas; k++)
        for (int threads = 1; threads <= 3; threads++) {
            omp_set_num_threads(threads);
            int64_t at;
            for (int i = 0; i < N; i++)
                x[i] = i < 70001 ? 1 : NAN;
            assert_int_equal(counted(isa[k], TD_F32, N, x, &at), N - 70001);
            assert_int_equal(at, 70001);
            memset(x, 0xff, sizeof x);
            assert_int_equal(counted(isa[k], TD_F32, N, x, &at), N);
            assert_int_equal(at, 0);
        }
    omp_set_num_threads(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(counts_and_places), cmocka_unit_test(all_and_many_threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
