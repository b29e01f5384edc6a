/* tests/gpu/test_gemm.c: the row gemm (cuBLASLt) against sums in double: every transposition, odd sizes, leading dimensions, unaligned
 * matrices, beta, and products over nothing, in all four types.
 */
#include "gpu.h"
#include <convert.h>
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static const td_device_ops *ops;
static uint32_t seed = 1;

static double number(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (double)(int32_t)seed / 2147483648.0;
}

typedef struct { td_dtype t; int64_t count; char *host, *device; double *value; } matrix;

/* `count` numbers as t holds them, `skip` elements into a block. */
static matrix make(td_dtype t, int64_t count, int skip)
{
    matrix x = { .t = t, .count = count };
    const size_t size = td_dtype_size(t);
    x.host = malloc((size_t)(count + skip) * size + 1);
    x.value = malloc((size_t)count * sizeof *x.value + 1);
    x.device = (char *)ops->alloc(0, (size_t)(count + skip) * size) + (size_t)skip * size;
    assert_true(x.host && x.value);
    for (int64_t i = 0; i < count; i++) {
        td__element_put(t, x.host + (size_t)i * size, number());
        x.value[i] = td__element_get(t, x.host + (size_t)i * size);
    }
    assert_int_equal(ops->copy(0, x.device, false, x.host, true, (size_t)count * size), 0);
    return x;
}

static void drop(matrix *x, int skip)
{
    ops->free(0, x->device - (size_t)skip * td_dtype_size(x->t));
    free(x->host);
    free(x->value);
}

static void one(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, int pad, int skip, double alpha, double beta)
{
    const int64_t lda = (ta ? m : k) + pad, ldb = (tb ? k : n) + pad, ldc = n + pad;
    matrix a = make(t, (ta ? k : m) * lda, skip), b = make(t, (tb ? n : k) * ldb, skip), c = make(t, m * ldc, skip);
    const size_t size = td_dtype_size(t);
    const double unit = t == TD_F64 ? DBL_EPSILON : t == TD_F32 ? FLT_EPSILON : t == TD_F16 ? 0x1p-10 : 0x1p-7, sums = t == TD_F64 ? DBL_EPSILON : FLT_EPSILON;
    ops->kernels->gemm(t, ta, tb, m, n, k, alpha, a.device, lda, b.device, ldb, beta, c.device, ldc);
    if (td_error_pending())
        fail_msg("%s", td_error_message());
    assert_int_equal(ops->copy(0, c.host, true, c.device, false, (size_t)c.count * size), 0);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < ldc; j++) {
            double got = td__element_get(t, c.host + (size_t)(i * ldc + j) * size), was = c.value[i * ldc + j], sum = 0, most = 0;
            if (j >= n) {
                if (got != was)
                    fail_msg("an element behind a row was written");
                continue;
            }
            for (int64_t l = 0; l < k; l++) {
                double p = a.value[ta ? l * lda + i : i * lda + l] * b.value[tb ? j * ldb + l : l * ldb + j];
                sum += p;
                most += fabs(p);
            }
            double expected = alpha * sum + (beta == 0 ? 0 : beta * was);
            double bound = unit * fabs(expected) + sums * (fabs(alpha) * most * ((double)k + 2) + fabs(beta * was));
            if (!(fabs(got - expected) <= bound + 1e-300))
                fail_msg("%s %d%d (%lld,%lld,%lld)+%d at %d, %g, %g: [%lld,%lld] is %.9g, expected %.9g", td_dtype_name(t), ta, tb, (long long)m,
                         (long long)n, (long long)k, pad, skip, alpha, beta, (long long)i, (long long)j, got, expected);
        }
    drop(&a, skip);
    drop(&b, skip);
    drop(&c, skip);
}

static void shapes(void **state)
{
    static const int64_t size[][3] = { { 1, 1, 1 }, { 1, 7, 3 }, { 5, 1, 64 }, { 17, 33, 1 }, { 64, 64, 64 }, { 31, 129, 257 }, { 3, 5, 0 }, { 0, 4, 4 }, { 128, 8, 4096 } };
    static const td_dtype types[] = { TD_F32, TD_F64, TD_F16, TD_BF16 };
    for (size_t t = 0; t < TD_COUNT(types); t++)
        for (size_t s = 0; s < TD_COUNT(size); s++)
            for (int trans = 0; trans < 4; trans++)
                for (int how = 0; how < 3; how++)
                    one(types[t], trans & 1, trans >> 1, size[s][0], size[s][1], size[s][2], how == 1 ? 3 : 0, how == 2 ? 1 : 0, how == 1 ? 0.5 : 1.0,
                        how == 0 ? 0.0 : how == 1 ? 1.0 : -0.25);
}

/* beta 0 does not read C, which may hold NaN; the same product twice gives the same bits. */
static void not_read_and_the_same(void **state)
{
    enum { N = 96 };
    matrix a = make(TD_F32, N * N, 0), b = make(TD_F32, N * N, 0), c = make(TD_F32, N * N, 0);
    float first[N * N], again[N * N];
    for (int i = 0; i < N * N; i++)
        first[i] = NAN;
    for (int round = 0; round < 2; round++) {
        assert_int_equal(ops->copy(0, c.device, false, first, true, round == 0 ? sizeof first : 0), 0);
        ops->kernels->gemm(TD_F32, false, true, N, N, N, 1.0, a.device, N, b.device, N, 0.0, c.device, N);
        assert_int_equal(ops->copy(0, round ? again : first, true, c.device, false, sizeof first), 0);
    }
    for (int i = 0; i < N * N; i++)
        assert_true(isfinite(first[i]));
    assert_memory_equal(first, again, sizeof first);
    drop(&a, 0);
    drop(&b, 0);
    drop(&c, 0);
}

int main(void)
{
    need_gpu();
    ops = td__device_ops((td_device){ TD_CUDA, 0 });
    const struct CMUnitTest tests[] = { cmocka_unit_test(shapes), cmocka_unit_test(not_read_and_the_same) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
