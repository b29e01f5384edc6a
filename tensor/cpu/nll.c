/* tensor/cpu/nll.c: negative log-likelihood of classes, and binary cross-entropy of logits, each with its gradients.
 *
 * Sums are made in f64 in parts of fixed borders (parts.h). No row or element kept: the mean is 0/0, NaN, and gradients are exactly zero.
 * Binary cross-entropy with the logit x, the target y and the weight w of positives is
 *     (1 - y)*softplus(x) + w*y*softplus(-x),   softplus(x) = max(x, 0) + log1p(exp(-|x|)):
 * no term overflows or cancels, and the gradient keeps its digits for logits of any size.
 */
#include "cpu.h"
#include "parts.h"
#include "vecmath.h"

#define NLL(T, name)                                                                                         \
    static void nll_##name(int64_t rows, int64_t n, const T *logp, const int64_t *target, bool has_ignore, int64_t ignore, T *loss, T *kept, \
                           int64_t *bad)                                                                     \
    {                                                                                                        \
        const int64_t size = part_size(rows, TD_BLOCK), parts = (rows + size - 1) / size;                    \
        double sum[PARTS] = { 0 };                                                                           \
        int64_t count[PARTS] = { 0 }, first_bad[PARTS];                                                      \
        _Pragma("omp parallel for schedule(static) if (rows > TD_PARALLEL)")                                 \
        for (int64_t p = 0; p < parts; p++) {                                                                \
            const int64_t end = (p + 1) * size < rows ? (p + 1) * size : rows;                               \
            first_bad[p] = -1;                                                                               \
            for (int64_t r = p * size; r < end; r++) {                                                       \
                if (has_ignore && target[r] == ignore)                                                       \
                    continue;                                                                                \
                if (target[r] < 0 || target[r] >= n) {                                                       \
                    first_bad[p] = first_bad[p] < 0 ? r : first_bad[p];                                      \
                    continue;                                                                                \
                }                                                                                            \
                sum[p] -= (double)logp[r * n + target[r]];                                                   \
                count[p]++;                                                                                  \
            }                                                                                                \
        }                                                                                                    \
        const int64_t counted = parts_kept(parts, count, first_bad, bad);                                    \
        *kept = (T)counted;                                                                                  \
        *loss = (T)parts_mean(parts, sum, counted);                                                          \
    }                                                                                                        \
    /* gx = -gloss/kept at the target, 0 elsewhere */                                                        \
    static void nll_grad_##name(int64_t rows, int64_t n, T *gx, const T *gloss, const int64_t *target, const T *kept, bool has_ignore, \
                                int64_t ignore, bool add)                                                    \
    {                                                                                                        \
        const T each = *kept > 0 ? -*gloss / *kept : 0;                                                      \
        _Pragma("omp parallel for schedule(static) if (rows * n > TD_PARALLEL)")                             \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            if (!add)                                                                                        \
                memset(gx + r * n, 0, (size_t)n * sizeof *gx);                                               \
            if (!(has_ignore && target[r] == ignore))                                                        \
                gx[r * n + target[r]] += each;                                                               \
        }                                                                                                    \
    }
NLL(float, f32)
NLL(double, f64)

void K(nll)(td_dtype t, int64_t rows, int64_t n, const void *logp, const int64_t *target, bool has_ignore, int64_t ignore, void *loss,
            void *kept, int64_t *bad)
{
    if (t == TD_F32)
        nll_f32(rows, n, logp, target, has_ignore, ignore, loss, kept, bad);
    else
        nll_f64(rows, n, logp, target, has_ignore, ignore, loss, kept, bad);
}

void K(nll_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gloss, const int64_t *target, const void *kept, bool has_ignore,
                 int64_t ignore, bool add)
{
    if (t == TD_F32)
        nll_grad_f32(rows, n, gx, gloss, target, kept, has_ignore, ignore, add);
    else
        nll_grad_f64(rows, n, gx, gloss, target, kept, has_ignore, ignore, add);
}

/* rest: log1p(exp(-|v|)) */
static inline double bce_term(double v, double hot, double weight, double rest)
{
    return (1 - hot) * ((v > 0 ? v : 0) + rest) + weight * hot * ((v < 0 ? -v : 0) + rest);
}

#define BCE(T, name)                                                                                         \
    /* e = exp(-|x|) of one block */                                                                         \
    static void decay_##name(int64_t m, T *e, const T *x)                                                    \
    {                                                                                                        \
        for (int64_t i = 0; i < m; i++)                                                                      \
            e[i] = x[i] > 0 ? -x[i] : x[i];                                                                  \
        td__vexp_##name(m, e, e);                                                                            \
    }                                                                                                        \
    static void bce_##name(int64_t n, const T *x, const T *y, const T *w, T *loss)                           \
    {                                                                                                        \
        const int64_t size = part_size(n, TD_BLOCK), parts = (n + size - 1) / size;                          \
        double sum[PARTS] = { 0 };                                                                           \
        _Pragma("omp parallel for schedule(static) if (n > TD_PARALLEL / 8)")                                \
        for (int64_t p = 0; p < parts; p++) {                                                                \
            const int64_t end = (p + 1) * size < n ? (p + 1) * size : n;                                     \
            double lane[8] = { 0 };                                                                          \
            for (int64_t begin = p * size; begin < end; begin += TD_BLOCK) {                                 \
                const int64_t m = end - begin < TD_BLOCK ? end - begin : TD_BLOCK;                           \
                T l[TD_BLOCK];                                                                               \
                decay_##name(m, l, x + begin);                                                               \
                td__vlog1p_##name(m, l, l);                                                                  \
                const T *v = x + begin, *hot = y + begin, *heavy = w ? w + begin : NULL;                     \
                int64_t i = 0;                                                                               \
                for (; i + 8 <= m; i += 8) {                                                                 \
                    _Pragma("omp simd") for (int j = 0; j < 8; j++)                                          \
                        lane[j] += bce_term((double)v[i + j], (double)hot[i + j], heavy ? (double)heavy[i + j] : 1, (double)l[i + j]); \
                }                                                                                            \
                for (int j = 0; i + j < m; j++)                                                              \
                    lane[j] += bce_term((double)v[i + j], (double)hot[i + j], heavy ? (double)heavy[i + j] : 1, (double)l[i + j]); \
            }                                                                                                \
            sum[p] = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7])); \
        }                                                                                                    \
        *loss = (T)parts_mean(parts, sum, n);                                                                \
    }                                                                                                        \
    /* by x: gloss/n * ((1 - y)*s(x) - w*y*s(-x)), s the sigmoid; by y: gloss/n * (w*softplus(-x) - softplus(x)) */ \
    static void bce_grad_##name(int64_t n, T *g, const T *gloss, const T *x, const T *y, const T *w, bool of_target, bool add) \
    {                                                                                                        \
        const T scale = (T)(1 / (double)n) * *gloss;                                                         \
        _Pragma("omp parallel for schedule(static) if (n > TD_PARALLEL / 8)")                                \
        for (int64_t begin = 0; begin < n; begin += TD_BLOCK) {                                              \
            const int64_t m = n - begin < TD_BLOCK ? n - begin : TD_BLOCK;                                   \
            T e[TD_BLOCK];                                                                                   \
            decay_##name(m, e, x + begin);                                                                   \
            if (of_target)                                                                                   \
                td__vlog1p_##name(m, e, e);                                                                  \
            for (int64_t i = 0; i < m; i++) {                                                                \
                const T v = x[begin + i], hot = y[begin + i], weight = w ? w[begin + i] : 1;                 \
                T d;                                                                                         \
                if (of_target) {                                                                             \
                    d = w ? weight * ((v < 0 ? -v : 0) + e[i]) - ((v > 0 ? v : 0) + e[i]) : -v;              \
                } else {                                                                                     \
                    const T large = 1 / (1 + e[i]), small = e[i] / (1 + e[i]);                               \
                    d = (1 - hot) * (v < 0 ? small : large) - weight * hot * (v < 0 ? large : small);        \
                }                                                                                            \
                e[i] = scale * d;                                                                            \
            }                                                                                                \
            for (int64_t i = 0; i < m; i++)                                                                  \
                g[begin + i] = add ? g[begin + i] + e[i] : e[i];                                             \
        }                                                                                                    \
    }
BCE(float, f32)
BCE(double, f64)

void K(bce)(td_dtype t, int64_t n, const void *x, const void *y, const void *w, void *loss)
{
    if (t == TD_F32)
        bce_f32(n, x, y, w, loss);
    else
        bce_f64(n, x, y, w, loss);
}

void K(bce_grad)(td_dtype t, int64_t n, void *g, const void *gloss, const void *x, const void *y, const void *w, bool of_target, bool add)
{
    if (t == TD_F32)
        bce_grad_f32(n, g, gloss, x, y, w, of_target, add);
    else
        bce_grad_f64(n, g, gloss, x, y, w, of_target, add);
}
