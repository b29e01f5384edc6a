/* tests/cuda/gemm_cases.h: the rows of matrix products against sums in double: every transposition, odd sizes, leading dimensions, unaligned
 * matrices, batches, factors, products over nothing, bias, GELU and its gradient, column sums, in all four types. On whatever device `ops`
 * is: tests/cuda's, where plugins/cuda calls a fake cuBLASLt that must have every kernel (all_there), or a real GPU in tests/gpu.
 */
#ifndef TD_GEMM_CASES_H
#define TD_GEMM_CASES_H
#include <convert.h>
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <tensor_impl.h>
#include <cmocka.h>

static const td_device_ops *ops;
static bool all_there;
static uint32_t gemm_seed = 1;
static const td_dtype gemm_types[] = { TD_F32, TD_F64, TD_F16, TD_BF16 };

static double gemm_number(void)
{
    gemm_seed = gemm_seed * 1664525u + 1013904223u;
    return (double)(int32_t)gemm_seed / 2147483648.0;
}

typedef struct { td_dtype t; int64_t count; int skip; char *host, *device; double *value; } matrix;

/* `count` numbers as t holds them, `skip` elements into a block. */
static matrix make(td_dtype t, int64_t count, int skip)
{
    matrix x = { .t = t, .count = count, .skip = skip };
    const size_t size = td_dtype_size(t);
    x.host = malloc((size_t)count * size + 1);
    x.value = malloc((size_t)count * sizeof *x.value + 1);
    x.device = (char *)ops->alloc(0, (size_t)(count + skip) * size) + (size_t)skip * size;
    assert_true(x.host && x.value);
    for (int64_t i = 0; i < count; i++) {
        td__element_put(t, x.host + (size_t)i * size, gemm_number());
        x.value[i] = td__element_get(t, x.host + (size_t)i * size);
    }
    assert_int_equal(ops->copy(0, x.device, false, x.host, true, (size_t)count * size), 0);
    return x;
}

static void fetch(matrix *x)
{
    if (td_error_pending())
        fail_msg("%s", td_error_message());
    assert_int_equal(ops->copy(0, x->host, true, x->device, false, (size_t)x->count * td_dtype_size(x->t)), 0);
}
static double now(const matrix *x, int64_t i) { return td__element_get(x->t, x->host + (size_t)i * td_dtype_size(x->t)); }

static void drop(matrix *x)
{
    ops->free(0, x->device - (size_t)x->skip * td_dtype_size(x->t));
    free(x->host);
    free(x->value);
}

static double unit_of(td_dtype t) { return t == TD_F64 ? DBL_EPSILON : t == TD_F32 ? FLT_EPSILON : t == TD_F16 ? 0x1p-10 : 0x1p-7; }
static double sums_of(td_dtype t) { return t == TD_F64 ? DBL_EPSILON : FLT_EPSILON; }
static double gelu_of(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double gelu_slope_of(double x)
{
    const double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), th = tanh(u);
    return 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

typedef struct { td_dtype t; bool ta, tb; int64_t m, n, k, lda, ldb; const matrix *a, *b; int64_t from_a, from_b; } asked;

/* sum over k, and of absolute values */
static double product_of(const asked *q, int64_t i, int64_t j, double *most)
{
    double sum = 0;
    *most = 0;
    for (int64_t l = 0; l < q->k; l++) {
        double p = q->a->value[q->from_a + (q->ta ? l * q->lda + i : i * q->lda + l)] *
                   q->b->value[q->from_b + (q->tb ? j * q->ldb + l : l * q->ldb + j)];
        sum += p;
        *most += fabs(p);
    }
    return sum;
}

static void near_enough(const asked *q, const char *what, int64_t i, int64_t j, double got, double expected, double bound)
{
    if (!(fabs(got - expected) <= bound + 1e-300))
        fail_msg("%s %s %d%d (%lld,%lld,%lld): [%lld,%lld] is %.9g, expected %.9g within %.3g", what, td_dtype_name(q->t), q->ta, q->tb,
                 (long long)q->m, (long long)q->n, (long long)q->k, (long long)i, (long long)j, got, expected, bound);
}

/* count 0: the row gemm. repeat: 1 a, 2 b is the same for all products of the batch. */
static void one_gemm(td_dtype t, bool ta, bool tb, int64_t count, int repeat, int64_t m, int64_t n, int64_t k, int pad, int skip, double alpha, double beta)
{
    const int64_t lda = (ta ? m : k) + pad, ldb = (tb ? k : n) + pad, ldc = n + pad, each = count ? count : 1;
    const int64_t step_a = repeat == 1 ? 0 : (ta ? k : m) * lda + pad, step_b = repeat == 2 ? 0 : (tb ? n : k) * ldb + pad, step_c = m * ldc + pad;
    matrix a = make(t, (ta ? k : m) * lda + (each - 1) * step_a, skip), b = make(t, (tb ? n : k) * ldb + (each - 1) * step_b, skip),
           c = make(t, each * step_c, skip);
    if (count)
        ops->kernels->gemm_batched(t, ta, tb, count, m, n, k, alpha, a.device, lda, step_a, b.device, ldb, step_b, beta, c.device, ldc, step_c);
    else
        ops->kernels->gemm(t, ta, tb, m, n, k, alpha, a.device, lda, b.device, ldb, beta, c.device, ldc);
    fetch(&c);
    for (int64_t z = 0; z < each; z++)
        for (int64_t at = 0; at < step_c; at++) {
            const int64_t i = at / (ldc ? ldc : 1), j = at % (ldc ? ldc : 1), place = z * step_c + at;
            const asked q = { t, ta, tb, m, n, k, lda, ldb, &a, &b, z * step_a, z * step_b };
            double most, was = c.value[place];
            if (i >= m || j >= n) {
                if (now(&c, place) != was)
                    fail_msg("an element behind a row was written");
                continue;
            }
            const double sum = product_of(&q, i, j, &most), expected = alpha * sum + (beta == 0 ? 0 : beta * was);
            near_enough(&q, count ? "gemm_batched" : "gemm", i, j, now(&c, place), expected,
                        unit_of(t) * fabs(expected) + sums_of(t) * (fabs(alpha) * most * ((double)k + 2) + fabs(beta * was)));
        }
    drop(&a);
    drop(&b);
    drop(&c);
}

static void gemm_shapes(void **state)
{
    static const int64_t size[][3] = { { 1, 1, 1 }, { 1, 7, 3 }, { 5, 1, 64 }, { 17, 33, 1 }, { 64, 64, 64 }, { 31, 129, 257 }, { 3, 5, 0 }, { 0, 4, 4 }, { 128, 8, 4096 } };
    for (size_t t = 0; t < TD_COUNT(gemm_types); t++)
        for (size_t s = 0; s < TD_COUNT(size); s++)
            for (int trans = 0; trans < 4; trans++)
                for (int how = 0; how < 3; how++)
                    one_gemm(gemm_types[t], trans & 1, trans >> 1, 0, 0, size[s][0], size[s][1], size[s][2], how == 1 ? 3 : 0, how == 2 ? 1 : 0,
                             how == 1 ? 0.5 : 1.0, how == 0 ? 0.0 : how == 1 ? 1.0 : -0.25);
}

static void gemm_batches(void **state)
{
    static const int64_t size[][4] = { { 1, 3, 5, 7 }, { 6, 1, 7, 3 }, { 12, 17, 9, 33 }, { 4, 64, 16, 32 }, { 3, 5, 4, 0 }, { 2, 0, 4, 4 }, { 7, 1, 1, 1 } };
    for (size_t t = 0; t < TD_COUNT(gemm_types); t++)
        for (size_t s = 0; s < TD_COUNT(size); s++)
            for (int trans = 0; trans < 4; trans++)
                for (int how = 0; how < 4; how++)
                    one_gemm(gemm_types[t], trans & 1, trans >> 1, size[s][0], how % 3, size[s][1], size[s][2], size[s][3], how == 1 ? 3 : 0,
                             how == 2 ? 1 : 0, how == 3 ? 0.5 : 1.0, how == 0 ? 0.0 : how == 1 ? 1.0 : -0.25);
}

static const int64_t fused_size[][3] = { { 1, 8, 1 }, { 5, 16, 7 }, { 17, 24, 33 }, { 64, 32, 48 }, { 3, 7, 5 }, { 128, 64, 256 } };

/* What the device lacks it must leave alone. Must it have this one? gelu in f32 is our own kernel's. */
static bool expected_there(td_dtype t, int64_t m, int64_t n, int64_t k, bool gelu, bool keeps, int skip)
{
    const bool could = t != TD_F64 && (!gelu || t != TD_F32) && (!keeps || n % 8 == 0) && (!keeps || skip == 0);
    return could && (all_there || (m % 16 == 0 && n % 16 == 0 && k % 16 == 0 && skip == 0));
}

static void unchanged(matrix *x)
{
    fetch(x);
    for (int64_t i = 0; i < x->count; i++)
        if (now(x, i) != x->value[i])
            fail_msg("a product that was not made has written");
}

static void one_bias(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, bool with_bias, bool gelu, bool keep, int skip)
{
    const int64_t lda = (ta ? m : k) + 2, ldb = (tb ? k : n) + 2;
    matrix a = make(t, (ta ? k : m) * lda, skip), b = make(t, (tb ? n : k) * ldb, skip), c = make(t, m * n, skip), pre = make(t, m * n, skip),
           bias = make(t, n, skip);
    const bool done = ops->kernels->gemm_bias(t, ta, tb, m, n, k, a.device, lda, b.device, ldb, with_bias ? bias.device : NULL, gelu,
                                              keep ? pre.device : NULL, c.device);
    if (!done && expected_there(t, m, n, k, gelu, keep, skip))
        fail_msg("gemm_bias is lacking: %s (%lld,%lld,%lld)", td_dtype_name(t), (long long)m, (long long)n, (long long)k);
    if (!done) {
        unchanged(&c);
        unchanged(&pre);
    }
    fetch(&c);
    fetch(&pre);
    for (int64_t i = 0; done && i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            const asked q = { t, ta, tb, m, n, k, lda, ldb, &a, &b, 0, 0 };
            double most;
            const double v = product_of(&q, i, j, &most) + (with_bias ? bias.value[j] : 0), expected = gelu ? gelu_of(v) : v;
            /* of what came before, as it is or rounded */
            const double before = unit_of(t) * fabs(v) + sums_of(t) * (most * ((double)k + 3) + 1);
            near_enough(&q, "gemm_bias", i, j, now(&c, i * n + j), expected, unit_of(t) * fabs(expected) + 1.13 * before + (gelu ? 8 * sums_of(t) : 0));
            if (keep)
                near_enough(&q, "gemm_bias, kept", i, j, now(&pre, i * n + j), v, before);
        }
    if (done && !keep)
        unchanged(&pre);
    drop(&a), drop(&b), drop(&c), drop(&pre), drop(&bias);
}

static void gemm_biases(void **state)
{
    for (size_t t = 0; t < TD_COUNT(gemm_types); t++)
        for (size_t s = 0; s < TD_COUNT(fused_size); s++)
            for (int trans = 0; trans < 4; trans++)
                for (int how = 0; how < 6; how++)
                    for (int skip = 0; skip < 2; skip++)
                        one_bias(gemm_types[t], trans & 1, trans >> 1, fused_size[s][0], fused_size[s][1], fused_size[s][2], how & 1, how >= 2, how >= 4, skip);
}

static void one_gelu_grad(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, int skip)
{
    const int64_t lda = (ta ? m : k) + 1, ldb = (tb ? k : n) + 1;
    matrix a = make(t, (ta ? k : m) * lda, skip), b = make(t, (tb ? n : k) * ldb, skip), c = make(t, m * n, skip), pre = make(t, m * n, skip);
    const bool done = ops->kernels->gemm_gelu_grad(t, ta, tb, m, n, k, a.device, lda, b.device, ldb, pre.device, c.device);
    if (!done && expected_there(t, m, n, k, true, true, skip))
        fail_msg("gemm_gelu_grad is lacking: %s (%lld,%lld,%lld)", td_dtype_name(t), (long long)m, (long long)n, (long long)k);
    if (!done)
        unchanged(&c);
    fetch(&c);
    for (int64_t i = 0; done && i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            const asked q = { t, ta, tb, m, n, k, lda, ldb, &a, &b, 0, 0 };
            double most;
            const double sum = product_of(&q, i, j, &most), expected = sum * gelu_slope_of(pre.value[i * n + j]);
            near_enough(&q, "gemm_gelu_grad", i, j, now(&c, i * n + j), expected, 2 * unit_of(t) * fabs(expected) + 1.13 * sums_of(t) * most * ((double)k + 16));
        }
    unchanged(&pre);
    drop(&a), drop(&b), drop(&c), drop(&pre);
}

static void gemm_gelu_grads(void **state)
{
    for (size_t t = 0; t < TD_COUNT(gemm_types); t++)
        for (size_t s = 0; s < TD_COUNT(fused_size); s++)
            for (int trans = 0; trans < 4; trans++)
                for (int skip = 0; skip < 2; skip++)
                    one_gelu_grad(gemm_types[t], trans & 1, trans >> 1, fused_size[s][0], fused_size[s][1], fused_size[s][2], skip);
}

static void one_sums(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, bool of_b, double beta, int skip)
{
    const int64_t lda = (ta ? m : k) + 1, ldb = (tb ? k : n) + 1;
    matrix a = make(t, (ta ? k : m) * lda, skip), b = make(t, (tb ? n : k) * ldb, skip), c = make(t, m * n, skip), sums = make(t, of_b ? n : m, skip);
    const asked q = { t, ta, tb, m, n, k, lda, ldb, &a, &b, 0, 0 };
    const bool done = ops->kernels->gemm_sums(t, ta, tb, m, n, k, a.device, lda, b.device, ldb, beta, c.device, sums.device, of_b);
    if (!done && expected_there(t, m, n, k, false, false, skip))
        fail_msg("gemm_sums is lacking: %s (%lld,%lld,%lld)", td_dtype_name(t), (long long)m, (long long)n, (long long)k);
    if (!done) {
        unchanged(&c);
        unchanged(&sums);
    }
    fetch(&c);
    fetch(&sums);
    for (int64_t i = 0; done && i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double most;
            const double was = c.value[i * n + j], expected = product_of(&q, i, j, &most) + (beta == 0 ? 0 : beta * was);
            near_enough(&q, "gemm_sums", i, j, now(&c, i * n + j), expected,
                        unit_of(t) * fabs(expected) + sums_of(t) * (most * ((double)k + 2) + fabs(beta * was)));
        }
    for (int64_t i = 0; done && i < sums.count; i++) {
        double sum = 0, most = 0;
        for (int64_t l = 0; l < k; l++) {
            double v = of_b ? b.value[tb ? i * ldb + l : l * ldb + i] : a.value[ta ? l * lda + i : i * lda + l];
            sum += v;
            most += fabs(v);
        }
        near_enough(&q, of_b ? "sums of b" : "sums of a", i, 0, now(&sums, i), sum, unit_of(t) * fabs(sum) + sums_of(t) * most * ((double)k + 2));
    }
    drop(&a), drop(&b), drop(&c), drop(&sums);
}

static void gemm_sums(void **state)
{
    for (size_t t = 0; t < TD_COUNT(gemm_types); t++)
        for (size_t s = 0; s < TD_COUNT(fused_size); s++)
            for (int trans = 0; trans < 4; trans++)
                for (int how = 0; how < 8; how++)
                    one_sums(gemm_types[t], trans & 1, trans >> 1, fused_size[s][0], fused_size[s][1], fused_size[s][2], how & 1, how & 2 ? 1.0 : 0.0, how >> 2);
}

/* beta 0 does not read C, which may hold NaN; the same product twice gives the same bits. */
static void gemm_not_read_and_the_same(void **state)
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
    drop(&a), drop(&b), drop(&c);
}

#define GEMM_CASES                                                                                           \
    cmocka_unit_test(gemm_shapes), cmocka_unit_test(gemm_batches), cmocka_unit_test(gemm_biases), cmocka_unit_test(gemm_gelu_grads), \
        cmocka_unit_test(gemm_sums), cmocka_unit_test(gemm_not_read_and_the_same)
#endif
