/* tests/cuda/test_random.c [or-skip]: random numbers of the device against the CPU's kernels: uniform and integer ones and dropout's masks bit for
 * bit; normal ones too, where both take log, cos and sin from one library (on the emulated device). And not_finite, which counts bits as well.
 *
 * Memory is pinned: host and device reach it by one address, so that what a kernel wrote beyond its end is seen, too. or-skip: without a
 * device this ends with 77.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <tensor_impl.h>

#include <stdio.h>

static const td_device_ops *device;
static const td_kernels *cuda;
static bool emulated;

static void done(void)
{
    assert_int_equal(device->synchronize(0), 0);
}

static void *shared(const void *bytes, size_t n)
{
    void *p = device->host_alloc(0, n);
    assert_non_null(p);
    if (bytes)
        memcpy(p, bytes, n);
    return p;
}

static void give(void *p)
{
    device->host_free(0, p);
}

enum { GUARD = 16 };
static const int64_t sizes[] = { 1, 3, 4, 5, 1023, 4096, 66001 };

/* n elements of `size` bytes, begun `off` elements after an aligned place, and a guard after them that nobody may write */
static char *block(int64_t n, size_t size, int64_t off)
{
    char *p = shared(NULL, (size_t)(n + off + GUARD) * size);
    memset(p, 0x5a, (size_t)(n + off + GUARD) * size);
    return p;
}

static void uniform(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int64_t off = 0; off < 2; off++)
            for (int normal = 0; normal < 2; normal++) {
                const int64_t n = sizes[s];
                char *want = block(n, 4, off), *got = block(n, 4, off);
                td__cpu_kernels()->rand(n, (float *)want + off, UINT64_C(0x1234567890abcdef), 7 + (uint64_t)s, normal);
                cuda->rand(n, (float *)got + off, UINT64_C(0x1234567890abcdef), 7 + (uint64_t)s, normal);
                done();
                if (emulated || !normal)
                    assert_memory_equal(want, got, (size_t)(n + off + GUARD) * 4);
                for (int64_t i = 0; i < n + off + GUARD; i++) {        /* logf and sincospif are within 2 units in the last place, sqrtf is exact */
                    float a, b;
                    memcpy(&a, want + 4 * i, 4), memcpy(&b, got + 4 * i, 4);
                    assert_true(i >= n + off ? memcmp(want + 4 * i, got + 4 * i, 4) == 0 : fabsf(a - b) <= 2e-6f * (1 + fabsf(a)));
                }
                give(want), give(got);
            }
    cuda->rand(0, NULL, 1, 2, false);
    done();
}

static void integers(void **state)
{
    (void)state;
    /* the last but one rejects half of all tries */
    static const int64_t range[][2] = { { 0, 1 }, { -3, 4 }, { 0, 1000000007 }, { INT64_MIN, INT64_MAX }, { -1, INT64_MAX }, { 5, INT64_C(1) << 40 } };
    for (size_t r = 0; r < sizeof range / sizeof *range; r++) {
        const int64_t n = 5003;
        char *want = block(n, 8, 0), *got = block(n, 8, 0);
        td__cpu_kernels()->randint(n, (int64_t *)want, range[r][0], range[r][1], 99, r);
        cuda->randint(n, (int64_t *)got, range[r][0], range[r][1], 99, r);
        done();
        assert_memory_equal(want, got, (size_t)(n + GUARD) * 8);
        give(want), give(got);
    }
    cuda->randint(0, NULL, 0, 5, 1, 2);
    done();
}

/* Bits of 1 in t: what is kept of ones by p = 1/2 is a 2. */
static void ones(td_dtype t, int64_t n, char *p)
{
    for (int64_t i = 0; i < n; i++) {
        const uint16_t f16 = 0x3c00, bf16 = 0x3f80;
        const float f32 = 1;
        const double f64 = 1;
        memcpy(p + (size_t)i * td_dtype_size(t), t == TD_F64 ? (const void *)&f64 : t == TD_F32 ? (const void *)&f32 : t == TD_F16 ? &f16 : &bf16,
               td_dtype_size(t));
    }
}

/* Every dtype has the CPU's f32 mask, at any alignment and size of a sample, with sample numbers and without, written and added. */
static void masks(void **state)
{
    (void)state;
    static const int64_t all_ids[6] = { 5, INT64_C(0x123456789a), 0, -1, 77, 3000000000 }, per[] = { 1, 7, 63, 64, 66, 129, 1024, 4100 };
    static const td_dtype types[] = { TD_F32, TD_F64, TD_F16, TD_BF16 };
    /* on the device the numbers come from its memory every other time, as in a captured step */
    static const int64_t all_numbers[] = { 9, INT64_C(1) << 33, 4, 40 };
    int64_t *ids = shared(all_ids, sizeof all_ids), *numbers = shared(all_numbers, sizeof all_numbers);
    const td_draw from = { 9, INT64_C(1) << 33, 4, 40, NULL }, there = { 1, 2, 3, 4, numbers };
    for (size_t s = 0; s < sizeof per / sizeof *per; s++)
        for (int k = 1; k < 3; k++)
            for (int64_t off = 0; off < 2; off++) {
                const int64_t rows = 6, n = rows * per[s];
                char *x = block(n, 4, 0), *want = block(n, 4, 0);
                const int64_t *which = off ? NULL : ids;
                const double p = 0.3;
                ones(TD_F32, n, x);
                td__cpu_kernels()->dropout(TD_F32, rows, per[s], k, want, x, which, from, p, false);
                for (int t = 0; t < 4; t++) {
                    const size_t size = td_dtype_size(types[t]);
                    char *in = block(n, size, off), *got = block(n, size, off), *twice = block(n, size, off);
                    ones(types[t], n, in + (size_t)off * size);
                    cuda->dropout(types[t], rows, per[s], k, got + (size_t)off * size, in + (size_t)off * size, which, k == 1 ? from : there, p, false);
                    done();
                    for (int64_t i = 0; i < n; i++) {
                        uint64_t bits = 0;
                        float one;
                        memcpy(&bits, got + (size_t)(i + off) * size, size);
                        memcpy(&one, want + 4 * i, 4);
                        if ((bits != 0) != (one != 0))
                            fail_msg("%s, %lld per row, k %d, element %lld: %s", td_dtype_name(types[t]), (long long)per[s], k, (long long)i,
                                     bits ? "kept, dropped on the CPU" : "dropped, kept on the CPU");
                    }
                    for (size_t i = (size_t)(n + off) * size; i < (size_t)(n + off + GUARD) * size; i++)
                        assert_int_equal(got[i], 0x5a);
                    if (types[t] == TD_F32) {
                        assert_memory_equal(got + (size_t)off * 4, want, (size_t)n * 4);
                        memcpy(twice, got, (size_t)(n + off) * size);
                        td__cpu_kernels()->dropout(TD_F32, rows, per[s], k, want, x, which, from, p, true);
                        cuda->dropout(TD_F32, rows, per[s], k, twice + (size_t)off * 4, in + (size_t)off * 4, which, k == 1 ? there : from, p, true);
                        done();
                        assert_memory_equal(twice + (size_t)off * 4, want, (size_t)n * 4);
                    }
                    give(in), give(got), give(twice);
                }
                give(x), give(want);
            }
    give(ids), give(numbers);
}

/* p = 0 keeps all; p just below 1 drops all that the CPU drops; what is dropped is 0 also where it was NaN */
static void extremes(void **state)
{
    (void)state;
    enum { N = 300 };
    float want[N], *x = shared(NULL, sizeof want), *got = shared(NULL, sizeof want);
    static const double p[] = { 0, 1 - 1e-12, 0.5 };
    for (int i = 0; i < N; i++)
        x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : (float)i;
    for (int j = 0; j < 3; j++) {
        td__cpu_kernels()->dropout(TD_F32, 3, N / 3, 1, want, x, NULL, (td_draw){ 1, 2, 3, 0, NULL }, p[j], false);
        cuda->dropout(TD_F32, 3, N / 3, 1, got, x, NULL, (td_draw){ 1, 2, 3, 0, NULL }, p[j], false);
        done();
        for (int i = 0; i < N; i++)
            assert_true(isnan(want[i]) ? isnan(got[i]) : memcmp(want + i, got + i, 4) == 0);
    }
    give(x), give(got);
}

static int64_t counted(const td_kernels *k, td_dtype t, int64_t n, const void *x, int64_t *first)
{
    double *count = shared(&(double){ 2 }, sizeof *count), found;
    int64_t *at = shared(NULL, sizeof *at);
    k->not_finite(t, n, x, count, true, at);
    done();
    found = *count;
    *first = *at;
    give(count), give(at);
    return (int64_t)found - 2;
}

static void not_finite(void **state)
{
    (void)state;
    static const td_dtype types[] = { TD_F32, TD_F64, TD_F16, TD_BF16 };
    static const uint64_t infinity[] = { 0xff800000, UINT64_C(0x7ff0000000000000), 0x7c01, 0xff80 };
    for (int t = 0; t < 4; t++)
        for (int64_t off = 0; off < 2; off++) {
            const int64_t n = 10007;
            const size_t size = td_dtype_size(types[t]);
            char *x = block(n, size, off), *at = x + (size_t)off * size;
            int64_t first = 5, cpu;
            ones(types[t], n, at);
            assert_int_equal(counted(cuda, types[t], n, at, &first), 0);
            assert_int_equal(first, -1);
            memcpy(at + (size_t)(n - 1) * size, &infinity[t], size);
            assert_int_equal(counted(cuda, types[t], n, at, &first), 1);
            assert_int_equal(first, n - 1);
            for (int64_t i = 4999; i < n; i += 17)
                memcpy(at + (size_t)i * size, &infinity[t], size);
            assert_int_equal(counted(cuda, types[t], n, at, &first), counted(td__cpu_kernels(), types[t], n, at, &cpu));
            assert_int_equal(first, 4999);
            assert_int_equal(first, cpu);
            assert_int_equal(counted(cuda, types[t], 0, at, &first), 0);
            assert_int_equal(first, -1);
            give(x);
        }
}

int main(int argc, char **argv)
{
    setenv("TANDEM_DEVICE", "cuda", 1);
    td_errors(TD_ERRORS_RETURN);
    if (td_device_default().kind != TD_CUDA) {
        printf("no CUDA device: %s\n", td_error_message());
        return argc > 1 && strcmp(argv[1], "or-skip") == 0 ? 77 : 1;
    }
    device = td__device_ops((td_device){ TD_CUDA, 0 });
    cuda = device->kernels;
    emulated = argc < 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uniform), cmocka_unit_test(integers), cmocka_unit_test(masks), cmocka_unit_test(extremes), cmocka_unit_test(not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
