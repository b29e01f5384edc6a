/* tensor/cpu/group_norm.c: normalisation of groups of neighbouring channels, each sample by itself, and the gradients.
 *
 * x is (n, c, inner); the c/groups channels of a group lie together, so a group is a row of c/groups*inner elements. w and b (c) are per channel.
 * Sums are in double (lanes.h). Threads take groups; what a group adds to the gradients of w and b is kept per sample and channel and added
 * in the samples' order: nothing depends on the number of threads.
 */
#include "cpu.h"
#include "moments.h"

#define NORM(T, F)                                                                                           \
    static void F(norm)(int64_t n, int64_t c, int64_t inner, int64_t groups, T *y, T *mean, T *rstd, const T *x, const T *w, const T *b,  \
                        double eps)                                                                          \
    {                                                                                                        \
        const int64_t per = c / groups, m = per * inner;                                                     \
        _Pragma("omp parallel for schedule(static) if (n * c * inner >= TD_PARALLEL)")                       \
        for (int64_t r = 0; r < n * groups; r++) {                                                           \
            const T *restrict xr = x + r * m;                                                                \
            double mu, square;                                                                               \
            F(td__moments)(m, xr, &mu, &square);                                                             \
            const T a = (T)mu, k = (T)(1 / sqrt(square / (double)m + eps));                                  \
            mean[r] = a;                                                                                     \
            rstd[r] = k;                                                                                     \
            for (int64_t j = 0; j < per; j++) {                                                              \
                const int64_t channel = r % groups * per + j;                                                \
                const T scale = w ? k * w[channel] : k, shift = b ? b[channel] : 0;                          \
                const T *restrict xj = xr + j * inner;                                                       \
                T *restrict yj = y + r * m + j * inner;                                                      \
                _Pragma("omp simd")                                                                          \
                for (int64_t i = 0; i < inner; i++)                                                          \
                    yj[i] = (xj[i] - a) * scale + shift;                                                     \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* g and gh (n*c each): sums over inner of gy, and of gy times the normalised x */                       \
    static void F(norm_grad)(int64_t n, int64_t c, int64_t inner, int64_t groups, T *gx, T *gw, T *gb, const T *gy, const T *x, const T *w,  \
                             const T *mean, const T *rstd, double *g, double *gh, bool add_x, bool add_w, bool add_b)  \
    {                                                                                                        \
        const int64_t per = c / groups, m = per * inner;                                                     \
        _Pragma("omp parallel for schedule(static) if (n * c * inner >= TD_PARALLEL)")                       \
        for (int64_t r = 0; r < n * groups; r++) {                                                           \
            const T a = mean[r], k = rstd[r], *wr = w ? w + r % groups * per : NULL;                         \
            double s = 0, sh = 0;                                                                            \
            for (int64_t j = 0; j < per; j++) {                                                              \
                const int64_t at = r * per + j;                                                              \
                const T *restrict gj = gy + at * inner, *restrict xj = x ? x + at * inner : NULL;            \
                TD_LANES_SUM(g[at], inner, (double)gj[i]);                                                   \
                if (!xj)                                                                                     \
                    continue;                                                                                \
                TD_LANES_SUM(gh[at], inner, (double)gj[i] * (double)((xj[i] - a) * k));                      \
                s += g[at] * (wr ? (double)wr[j] : 1);                                                       \
                sh += gh[at] * (wr ? (double)wr[j] : 1);                                                     \
            }                                                                                                \
            const T sub = (T)(s / (double)m), slope = (T)(sh / (double)m);                                   \
            for (int64_t j = 0; gx && j < per; j++) {                                                        \
                const int64_t at = (r * per + j) * inner;                                                    \
                const T *restrict gj = gy + at, *restrict xj = x + at, wj = wr ? wr[j] : 1;                  \
                T *restrict to = gx + at;                                                                    \
                if (add_x)                                                                                   \
                    _Pragma("omp simd")                                                                      \
                    for (int64_t i = 0; i < inner; i++)                                                      \
                        to[i] += k * (gj[i] * wj - sub - (xj[i] - a) * k * slope);                           \
                else                                                                                         \
                    _Pragma("omp simd")                                                                      \
                    for (int64_t i = 0; i < inner; i++)                                                      \
                        to[i] = k * (gj[i] * wj - sub - (xj[i] - a) * k * slope);                            \
            }                                                                                                \
        }                                                                                                    \
        for (int64_t channel = 0; channel < c && (gw || gb); channel++) {                                    \
            double sw = 0, sb = 0;                                                                           \
            for (int64_t k = 0; k < n && inner > 0; k++) {                                                   \
                sw += gw ? gh[k * c + channel] : 0;                                                          \
                sb += g[k * c + channel];                                                                    \
            }                                                                                                \
            if (gw)                                                                                          \
                gw[channel] = (T)((add_w ? (double)gw[channel] : 0) + sw);                                   \
            if (gb)                                                                                          \
                gb[channel] = (T)((add_b ? (double)gb[channel] : 0) + sb);                                   \
        }                                                                                                    \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
NORM(float, F32)
NORM(double, F64)

void K(group_norm)(td_dtype t, int64_t n, int64_t c, int64_t inner, int64_t groups, void *y, void *mean, void *rstd, const void *x, const void *w,
                   const void *b, double eps)
{
    if (n * c * inner <= 0) {        /* groups of nothing: saved numbers that mean nothing                                          */
        memset(mean, 0, (t == TD_F32 ? sizeof(float) : sizeof(double)) * (size_t)(n * groups));
        memset(rstd, 0, (t == TD_F32 ? sizeof(float) : sizeof(double)) * (size_t)(n * groups));
    } else if (t == TD_F32) {
        norm_f32(n, c, inner, groups, y, mean, rstd, x, w, b, eps);
    } else {
        norm_f64(n, c, inner, groups, y, mean, rstd, x, w, b, eps);
    }
}

void K(group_norm_grad)(td_dtype t, int64_t n, int64_t c, int64_t inner, int64_t groups, void *gx, void *gw, void *gb, const void *gy,
                        const void *x, const void *w, const void *mean, const void *rstd, bool add_x, bool add_w, bool add_b)
{
    if (inner <= 0)
        n = 0;                       /* no elements: gradients of w and b are zero                                                 */
    double *g = td__alloc(sizeof *g * 2 * (size_t)(n * c));
    if (!g)
        return;
    if (t == TD_F32)
        norm_grad_f32(n, c, inner, groups, gx, gw, gb, gy, x, w, mean, rstd, g, g + n * c, add_x, add_w, add_b);
    else
        norm_grad_f64(n, c, inner, groups, gx, gw, gb, gy, x, w, mean, rstd, g, g + n * c, add_x, add_w, add_b);
    td__free(g);
}
