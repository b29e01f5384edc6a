/* tests/tensor/test_dropout_kernels.c: the mask is the documented function of (seed, step, call, sample, position): recomputed here with the scalar
 * Philox of tensor_impl.h (itself tested against the published vectors), whatever the batch, the threads and the instruction set.
 */
#include "image_kernels.h"
#include <tensor_impl.h>

#define DRAW(seed, step, call, first) (td_draw){ seed, step, call, first, NULL }

/* the layout that tensor/cpu/dropout.c documents */
static bool kept(uint64_t seed, int64_t step, int64_t call, int64_t sample, int64_t position, double p)
{
    td_philox k = td__philox(seed, (uint64_t)step, (uint64_t)call + (UINT64_C(0x64726f70) << 32));
    uint64_t key = k.v[0] | (uint64_t)k.v[1] << 32;
    td_philox bits = td__philox(key, (uint64_t)sample, (uint64_t)(position / 64 * 16 + position % 16));
    return bits.v[position / 16 % 4] >= p * 4294967296.0;
}

static void layout(void **state)
{
    (void)state;
    enum { SAMPLES = 3, K = 2, PER = 97 };
    static const int64_t ids[SAMPLES] = { 5, INT64_C(0x123456789a), 0 };
    int64_t n = SAMPLES * K * PER;
    for (td_dtype t = TD_F32; t <= TD_F64; t++) {
        void *x = numbers(t, n, 1), *y = array(t, n);
        double *want = zeroes(n);
        EACH_TABLE(k) {
            for (int64_t i = 0; i < n; i++)
                want[i] = kept(77, 3000000000, 65535, ids[i / (K * PER)], i % (K * PER), 0.25) ? get(t, x, i) / 0.75 : 0;
            k->dropout(t, SAMPLES * K, PER, K, y, x, ids, DRAW(77, 3000000000, 65535, 0), 0.25, false);
            same(t, y, want, n, 2, "dropout", k->name);
            k->dropout(t, SAMPLES * K, PER, K, y, x, ids, DRAW(77, 3000000000, 65535, 0), 0.25, true);   /* the gradient, added */
            for (int64_t i = 0; i < n; i++)
                want[i] *= 2;
            same(t, y, want, n, 2, "dropout added", k->name);
            for (int64_t i = 0; i < n; i++)
                want[i] = kept(77, 1, 2, 40 + i / (K * PER), i % (K * PER), 0.5) ? get(t, x, i) * 2 : 0;
            k->dropout(t, SAMPLES * K, PER, K, y, x, NULL, DRAW(77, 1, 2, 40), 0.5, false);
            same(t, y, want, n, 2, "dropout without ids", k->name);
            k->dropout(t, 0, PER, 1, y, x, NULL, DRAW(77, 1, 2, 0), 0.5, false);
        }
        free(x), free(y), free(want);
    }
}

/* 12 samples at once, or 3 batches of 4 in another order: the same mask. */
static void split(void **state)
{
    (void)state;
    enum { PER = 131 };
    int64_t ids[12];
    for (int i = 0; i < 12; i++)
        ids[i] = 1000 - 37 * i;
    float *x = numbers(TD_F32, 12 * PER, 1), *whole = array(TD_F32, 12 * PER), *parts = array(TD_F32, 12 * PER);
    EACH_TABLE(k) {
        k->dropout(TD_F32, 12, PER, 1, whole, x, ids, DRAW(9, 4, 1, 0), 0.3, false);
        const int64_t there[] = { 9, 4, 1, 0 };
        k->dropout(TD_F32, 12, PER, 1, parts, x, ids, (td_draw){ .at = there }, 0.3, false);   /* as in a captured step */
        assert_memory_equal(whole, parts, sizeof(float) * 12 * PER);
        for (int b = 2; b >= 0; b--)
            k->dropout(TD_F32, 4, PER, 1, parts + 4 * b * PER, x + 4 * b * PER, ids + 4 * b, DRAW(9, 4, 1, 0), 0.3, false);
        assert_memory_equal(whole, parts, sizeof(float) * 12 * PER);
        memset(parts, 0, sizeof(float) * 12 * PER);
        for (int i = 0; i < 24; i++) {                         /* a sample in two parts */
            const int64_t at = i % 2 * 64, n = i % 2 ? PER - 64 : 64, from = i / 2 * PER + at;
            k->dropout(TD_F32, 1, n, 1, parts + from, x + from, ids + i / 2, (td_draw){ .at = there, .position = at }, 0.3, false);
        }
        assert_memory_equal(whole, parts, sizeof(float) * 12 * PER);
    }
    free(x), free(whole), free(parts);
}

/* The rate is p within 5 standard deviations, for every p; and steps, calls, samples, seeds give independent masks. */
static void rate(void **state)
{
    (void)state;
    enum { N = 200000 };
    static const double p[] = { 0, 0.1, 0.5, 0.9, 1 - 0x1p-40 };
    float *x = array(TD_F32, N), *y = array(TD_F32, N), *z = array(TD_F32, N);
    for (int i = 0; i < N; i++)
        x[i] = 1;
    EACH_TABLE(k) {
        for (size_t i = 0; i < TD_COUNT(p); i++) {
            k->dropout(TD_F32, 100, N / 100, 1, y, x, NULL, DRAW(1, 2, 3, 0), p[i], false);
            double dropped = 0;
            for (int j = 0; j < N; j++)
                dropped += y[j] == 0;
            if (fabs(dropped - p[i] * N) > 5 * sqrt(p[i] * (1 - p[i]) * N) + 1e-3)
                fail_msg("%s: p %g: %g of %d dropped", k->name, p[i], dropped, N);
        }
        static const int other[][3] = { { 2, 2, 3 }, { 1, 3, 3 }, { 1, 2, 4 } };   /* seed, step, call */
        k->dropout(TD_F32, 100, N / 100, 1, y, x, NULL, DRAW(1, 2, 3, 0), 0.5, false);
        for (size_t i = 0; i <= TD_COUNT(other); i++) {
            if (i < TD_COUNT(other))
                k->dropout(TD_F32, 100, N / 100, 1, z, x, NULL, DRAW((uint64_t)other[i][0], other[i][1], other[i][2], 0), 0.5, false);
            else
                k->dropout(TD_F32, 100, N / 100, 1, z, x, NULL, DRAW(1, 2, 3, 1), 0.5, false);
            double both = 0;
            for (int j = 0; j < N; j++)
                both += (y[j] == 0) == (z[j] == 0);
            assert_true(fabs(both - N / 2) < 5 * sqrt(N / 4.0));
        }
    }
    free(x), free(y), free(z);
}

static void threads(void **state)
{
    (void)state;
    int before = omp_get_max_threads();
    enum { N = 70001 };
    float *x = numbers(TD_F32, N, 1), *y[2] = { array(TD_F32, N), array(TD_F32, N) };
    EACH_TABLE(k) {
        for (int i = 0; i < 2; i++) {
            omp_set_num_threads(i + 1);
            k->dropout(TD_F32, 1, N, 1, y[i], x, NULL, DRAW(1, 2, 3, 0), 0.4, false);
        }
        assert_memory_equal(y[0], y[1], sizeof(float) * N);
    }
    omp_set_num_threads(before);
    free(x), free(y[0]), free(y[1]);
}

/* A position whose counter carries into its high word between two groups of 64, and results so large that they are written around the caches: the same bits as
 * sample by sample. */
static void far_and_large(void **state)
{
    (void)state;
    enum { PER = 200, LARGE = 1000003, SAMPLES = 7 };
    const int64_t far = (INT64_C(1) << 34) - 64;
    float *x = numbers(TD_F32, (int64_t)SAMPLES * LARGE, 1), *y = array(TD_F32, (int64_t)SAMPLES * LARGE), *one = array(TD_F32, LARGE);
    EACH_TABLE(k) {
        k->dropout(TD_F32, 1, PER, 1, y, x, NULL, (td_draw){ .seed = 5, .step = 3, .call = 1, .first = 8, .position = far }, 0.5, false);
        for (int i = 0; i < PER; i++)
            assert_true(y[i] == (kept(5, 3, 1, 8, far + i, 0.5) ? 2 * x[i] : 0));
        k->dropout(TD_F32, SAMPLES, LARGE, 1, y, x, NULL, DRAW(5, 3, 1, 8), 0.5, false);
        for (int s = 0; s < SAMPLES; s++) {
            k->dropout(TD_F32, 1, LARGE, 1, one, x + s * LARGE, NULL, DRAW(5, 3, 1, 8 + s), 0.5, false);
            assert_memory_equal(one, y + s * LARGE, sizeof(float) * LARGE);
        }
    }
    free(x), free(y), free(one);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(layout), cmocka_unit_test(split), cmocka_unit_test(rate), cmocka_unit_test(far_and_large), cmocka_unit_test(threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
