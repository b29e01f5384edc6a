/* tests/tensor/test_variance_kernels.c: variance of rows and its gradient against long double, in every table: rows of all lengths, far from zero, with a
 * first value far from the others, equal, or not finite; the gradient bit for bit, and the same bits on any number of threads.
 */
#include "image_kernels.h"

/* row r: about 1000 * r, the first of every third 1e4 away */
static void *row_values(td_dtype t, int64_t rows, int64_t n)
{
    void *x = numbers(t, rows * n, 17);
    for (int64_t i = 0; i < rows * n; i++)
        put(t, x, i, get(t, x, i) + 1000.0 * (double)(i / n) + (i % n == 0 && i / n % 3 == 2 ? 1e4 : 0));
    return x;
}

static void check(td_dtype t, int64_t rows, int64_t n)
{
    const double factor = 1.0 / (double)(n > 1 ? n - 1 : 1);
    void *x = row_values(t, rows, n), *g = numbers(t, rows, 3), *old = numbers(t, rows * n, 4);
    double *var = zeroes(rows), *means = zeroes(rows);
    for (int64_t r = 0; r < rows; r++) {
        long double mean = 0, sum = 0;
        for (int64_t i = 0; i < n; i++)
            mean += (long double)get(t, x, r * n + i);
        mean /= (long double)n;
        for (int64_t i = 0; i < n; i++)
            sum += ((long double)get(t, x, r * n + i) - mean) * ((long double)get(t, x, r * n + i) - mean);
        var[r] = (double)(sum * (long double)factor), means[r] = (double)mean;
    }
    EACH_TABLE(k) {
        void *out = array(t, rows), *mean = array(t, rows), *gx = array(t, rows * n), *want = array(t, rows * n);
        k->var_rows(t, rows, n, out, mean, x, factor);
        same(t, out, var, rows, t == TD_F32 ? 1 : 16 + (double)n / 16, "var_rows", k->name);
        same(t, mean, means, rows, t == TD_F32 ? 1 : 16 + (double)n / 16, "its mean", k->name);
        for (int add = 0; add < 2; add++) {
            for (int64_t i = 0; i < rows * n; i++)
                if (t == TD_F32) {
                    const float d = ((float *)x)[i] - ((float *)mean)[i / n], dg = d * ((float *)g)[i / n], v = dg * (float)factor;
                    ((float *)want)[i] = add ? ((float *)old)[i] + v : v;
                } else {
                    const double d = ((double *)x)[i] - ((double *)mean)[i / n], dg = d * ((double *)g)[i / n], v = dg * factor;
                    ((double *)want)[i] = add ? ((double *)old)[i] + v : v;
                }
            memcpy(gx, old, size_of(t) * (size_t)(rows * n));
            k->var_rows_grad(t, rows, n, gx, g, x, mean, factor, add);
            assert_memory_equal(gx, want, size_of(t) * (size_t)(rows * n));
        }
        free(out), free(mean), free(gx), free(want);
    }
    free(x), free(g), free(old), free(var), free(means);
}

static void lengths(void **state)
{
    (void)state;
    for (int n = 1; n <= 67; n++) {
        check(TD_F32, 5, n);
        check(TD_F64, 5, n);
    }
    check(TD_F32, 3, 4099);
    check(TD_F64, 3, 4099);
    check(TD_F32, 0, 5);
    nothing_left();
}

/* Larger than caches: written around them */
static void large(void **state)
{
    (void)state;
    check(TD_F32, 6, (1 << 20) + 1029);
    check(TD_F64, 3, (1 << 20) + 1029);
}

static void special(void **state)
{
    (void)state;
    EACH_TABLE(k)
        for (int n = 1; n <= 40; n += 3)
            for (int at = 0; at < n; at += 5)
                for (int kind = 0; kind < 4; kind++) {
                    static const float odd[] = { INFINITY, -INFINITY, NAN, 16777215 };
                    float x[40], out, mean;
                    for (int i = 0; i < n; i++)
                        x[i] = kind == 3 ? odd[3] : (float)i;
                    x[at] = odd[kind];
                    k->var_rows(TD_F32, 1, n, &out, &mean, x, 1);
                    if (kind == 3)
                        assert_true(out == 0 && mean == odd[3]);       /* equal values have exactly none                          */
                    else
                        assert_true(isnan(out) && (kind < 2 ? mean == odd[kind] : isnan(mean)));
                }
}

static void threads(void **state)
{
    (void)state;
    enum { ROWS = 71, N = 1031 };
    const int before = omp_get_max_threads();
    float *x = row_values(TD_F32, ROWS, N), *g = numbers(TD_F32, ROWS, 9);
    EACH_TABLE(k) {
        float *out[3], *gx[3];
        for (int i = 0; i < 3; i++) {
            omp_set_num_threads(i + 1);
            out[i] = array(TD_F32, 2 * ROWS), gx[i] = array(TD_F32, ROWS * N);
            k->var_rows(TD_F32, ROWS, N, out[i], out[i] + ROWS, x, 0.5);
            k->var_rows_grad(TD_F32, ROWS, N, gx[i], g, x, out[i] + ROWS, 0.5, false);
            assert_memory_equal(out[0], out[i], sizeof(float) * 2 * ROWS);
            assert_memory_equal(gx[0], gx[i], sizeof(float) * ROWS * N);
        }
        for (int i = 0; i < 3; i++)
            free(out[i]), free(gx[i]);
    }
    free(x), free(g);
    omp_set_num_threads(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(lengths), cmocka_unit_test(large), cmocka_unit_test(special), cmocka_unit_test(threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
