/* tensor/cpu/combine.c: several buffers into one value per element, stored to several buffers: the heart of an all-reduce in shared memory.
 *
 * One pass: every input is read once, in order r = 0 … k-1, and every output written once, in blocks that stay in the first-level cache; so
 * it runs at the speed of memory. Ordinary stores: others read the result next, and non-temporal ones were measured to lose. Not parallel
 * over threads: the ranks are. (16 bits, u8 and bool: combine_narrow.c.) An input whose factor is 0 is left out, so that a rank with weight 0 contributes exactly nothing, even
 * where its values are NaN. Outputs may be inputs (the same pointer); they may not overlap in part.
 */
#include "cpu.h"
#include <convert.h>


/* Inputs are taken by fours, one block of elements at a time; a partial result of more is the next group's first input, times 1. */
enum { GROUP = 4 };
typedef struct { const void *in[GROUP]; double factor[GROUP]; int k; } group;
typedef void group_fn(int64_t n, const group *g, double post, void *out);

#define EACH(EXPRESSION)                                                                                            \
    do {                                                                                                            \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++) o[i] = EXPRESSION;                                      \
    } while (0)

#define SUM_FLOAT(T)                                                                                                \
    static void sum_##T(int64_t n, const group *g, double post, void *out)                                          \
    {                                                                                                               \
        const T *a = g->in[0], *b = g->in[1], *c = g->in[2], *d = g->in[3];                                         \
        T p = (T)g->factor[0], q = (T)g->factor[1], r = (T)g->factor[2], s = (T)g->factor[3], f = (T)post, *o = out; \
        if (g->k == 1)                                                                                              \
            EACH(a[i] * p * f);                                                                                     \
        else if (g->k == 2)                                                                                         \
            EACH((a[i] * p + b[i] * q) * f);                                                                        \
        else if (g->k == 3)                                                                                         \
            EACH((a[i] * p + b[i] * q + c[i] * r) * f);                                                             \
        else                                                                                                        \
            EACH((a[i] * p + b[i] * q + c[i] * r + d[i] * s) * f);                                                  \
    }
SUM_FLOAT(float)
SUM_FLOAT(double)

/* Without factors; sums wrap, which unsigned arithmetic defines. */
#define SUM_INTEGER(T, U)                                                                                           \
    static void sum_##T(int64_t n, const group *g, double post, void *out)                                          \
    {                                                                                                               \
        (void)post;                                                                                                 \
        const U *a = g->in[0], *b = g->in[1], *c = g->in[2], *d = g->in[3];                                         \
        U *o = out;                                                                                                 \
        if (g->k == 1)                                                                                              \
            EACH(a[i]);                                                                                             \
        else if (g->k == 2)                                                                                         \
            EACH(a[i] + b[i]);                                                                                      \
        else if (g->k == 3)                                                                                         \
            EACH(a[i] + b[i] + c[i]);                                                                               \
        else                                                                                                        \
            EACH(a[i] + b[i] + c[i] + d[i]);                                                                        \
    }
SUM_INTEGER(int64_t, uint64_t)
SUM_INTEGER(int32_t, uint32_t)

/* Integers wrap, too. */
#define PRODUCT(T, U)                                                                                               \
    static void product_##T(int64_t n, const group *g, double post, void *out)                                      \
    {                                                                                                               \
        (void)post;                                                                                                 \
        const U *a = g->in[0], *b = g->in[1], *c = g->in[2], *d = g->in[3];                                         \
        U *o = out;                                                                                                 \
        if (g->k == 1)                                                                                              \
            EACH(a[i]);                                                                                             \
        else if (g->k == 2)                                                                                         \
            EACH(a[i] * b[i]);                                                                                      \
        else if (g->k == 3)                                                                                         \
            EACH(a[i] * b[i] * c[i]);                                                                               \
        else                                                                                                        \
            EACH(a[i] * b[i] * c[i] * d[i]);                                                                        \
    }
PRODUCT(float, float)
PRODUCT(double, double)
PRODUCT(int64_t, uint64_t)
PRODUCT(int32_t, uint32_t)

/* NaN wins on either side. */
#define FIRST(x, BETTER, y) ((x)BETTER(y) || (x) != (x) ? (x) : (y))
#define EXTREME(T, NAME, BETTER)                                                                                    \
    static void NAME##_##T(int64_t n, const group *g, double post, void *out)                                       \
    {                                                                                                               \
        (void)post;                                                                                                 \
        _Alignas(64) T o[TD_BLOCK];                                                                                 \
        memcpy(o, g->in[0], (size_t)n * sizeof *o);                                                                 \
        for (int r = 1; r < g->k; r++) {                                                                            \
            const T *x = g->in[r];                                                                                  \
            EACH(FIRST(o[i], BETTER, x[i]));                                                                        \
        }                                                                                                           \
        memcpy(out, o, (size_t)n * sizeof *o);                                                                      \
    }
#define EXTREMES(T) EXTREME(T, min, <) EXTREME(T, max, >)
EXTREMES(float)
EXTREMES(double)
EXTREMES(int64_t)
EXTREMES(int32_t)

#define GROUP_ROW(op) { [TD_F32] = op##_float, [TD_F64] = op##_double, [TD_I64] = op##_int64_t, [TD_I32] = op##_int32_t }
static group_fn *const group_table[4][8] = {
    [TD_COMBINE_SUM] = GROUP_ROW(sum), [TD_COMBINE_MIN] = GROUP_ROW(min), [TD_COMBINE_MAX] = GROUP_ROW(max),
    [TD_COMBINE_PRODUCT] = GROUP_ROW(product),
};

/* The next input from *r on that counts. */
static bool next_input(int k, const double *pre, int *r)
{
    while (*r < k && pre && pre[*r] == 0.0)
        ++*r;
    return *r < k;
}

/* One block, by groups. False: no input counts. */
static bool block_in_groups(group_fn *fn, int64_t n, int k, const void *const *in, const double *pre, double post, size_t offset, void *out)
{
    _Alignas(64) char partial[TD_BLOCK * 8];
    group g = { .k = 0 };
    int r = 0;
    bool more = next_input(k, pre, &r);
    if (!more)
        return false;
    while (more) {
        for (; more && g.k < GROUP; more = next_input(k, pre, &r)) {
            g.in[g.k] = (const char *)in[r] + offset;
            g.factor[g.k++] = pre ? pre[r] : 1.0;
            r++;
        }
        fn(n, &g, more ? 1.0 : post, more ? (void *)partial : out);
        g.in[0] = partial;
        g.factor[0] = 1.0;
        g.k = 1;
    }
    return true;
}

/* Integers with factors: everything in f64, truncated at the end (convert.h's rule). */
static bool block_scaled(td_dtype t, int64_t n, int k, const void *const *in, const double *pre, double post, size_t offset, void *out)
{
    double sum[TD_BLOCK] = { 0 };
    bool any = false;
    for (int r = 0; next_input(k, pre, &r); r++, any = true) {
        const char *x = (const char *)in[r] + offset;
        double f = pre ? pre[r] : 1.0;
        for (int64_t i = 0; i < n; i++)
            sum[i] += f * (t == TD_I64 ? (double)((const int64_t *)x)[i] : (double)((const int32_t *)x)[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        if (t == TD_I64)
            ((int64_t *)out)[i] = td__f64_to_i64(sum[i] * post);
        else
            ((int32_t *)out)[i] = td__f64_to_i32(sum[i] * post);
    }
    return any;
}

void K(combine)(td_dtype t, td_combine op, int64_t n, int k, const void *const *in, const double *pre, double post,
                void *const *out, int outs)
{
    size_t size = td_dtype_size(t);
    if (op != TD_COMBINE_SUM)
        pre = NULL, post = 1.0;
    bool scaled = post != 1.0;
    for (int r = 0; pre && r < k; r++)
        scaled = scaled || pre[r] != 1.0;
    scaled = scaled && (t == TD_I64 || t == TD_I32);
    for (int64_t i = 0; i < n; i += TD_BLOCK) {
        int64_t m = n - i < TD_BLOCK ? n - i : TD_BLOCK;
        size_t offset = (size_t)i * size, bytes = (size_t)m * size;
        char *to = (char *)out[0] + offset;
        bool any = K(combine_narrow)(t, op, m, k, in, pre, post, offset, to) ? true
                   : scaled ? block_scaled(t, m, k, in, pre, post, offset, to)
                            : block_in_groups(group_table[op][t], m, k, in, pre, post, offset, to);
        if (!any)
            memset(to, 0, bytes);
        for (int j = 1; j < outs; j++)
            memcpy((char *)out[j] + offset, to, bytes);
    }
}
