/* tensor/cpu/batch_norm.c: batch normalisation over all dimensions but the channel, and its three gradients.
 *
 * x is (n, c, inner). Each channel is computed by one thread, in an order that depends on the shape alone (batch_norm_rows.h). With inner 1 a
 * channel is a column, so 16 channels are walked together, row by row: sums are in double, of x, then of squared deviations from the mean.
 */
#include "batch_norm.h"

enum { SIDE = 16 };                  /* channels taken together when inner is 1                                              */

#define NORM(T, F)                                                                                           \
    /* sum[j] += over the m columns from c0 on: x (other NULL, mean 0), (x-mean)² (other x), or other*(x-mean) */  \
    static void F(column_sums)(int64_t n, int64_t c, int64_t c0, int m, const T *x, const T *other, const double *mean, double *sum)  \
    {                                                                                                        \
        for (int64_t i = 0; i < n; i++)                                                                      \
            for (int j = 0; j < m; j++) {                                                                    \
                double v = (double)x[i * c + c0 + j] - (mean ? mean[j] : 0);                                 \
                sum[j] += !mean ? v : v * (other == x ? v : (double)other[i * c + c0 + j]);                  \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    static void F(column_apply)(int64_t n, int64_t c, int64_t c0, int m, T *to, const T *x, const T *y, const T *a, const T *b, const T *d,  \
                                bool add)                                                                    \
    {                                                                                                        \
        for (int64_t i = 0; i < n; i++)                                                                      \
            for (int j = 0; j < m; j++) {                                                                    \
                const int64_t at = i * c + c0 + j;                                                           \
                const T v = a[j] * x[at] + (y ? b[j] * y[at] + d[j] : d[j]);                                 \
                to[at] = add ? to[at] + v : v;                                                               \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    static void F(row_apply)(int64_t n, T *to, const T *x, const T *y, const T a, const T b, const T d, bool add)  \
    {                                                                                                        \
        if (!y && !add)                                                                                      \
            _Pragma("omp simd")                                                                              \
            for (int64_t k = 0; k < n; k++)                                                                  \
                to[k] = a * x[k] + d;                                                                        \
        else if (!y)                                                                                         \
            _Pragma("omp simd")                                                                              \
            for (int64_t k = 0; k < n; k++)                                                                  \
                to[k] += a * x[k] + d;                                                                       \
        else if (!add)                                                                                       \
            _Pragma("omp simd")                                                                              \
            for (int64_t k = 0; k < n; k++)                                                                  \
                to[k] = a * x[k] + (b * y[k] + d);                                                           \
        else                                                                                                 \
            _Pragma("omp simd")                                                                              \
            for (int64_t k = 0; k < n; k++)                                                                  \
                to[k] += a * x[k] + (b * y[k] + d);                                                          \
    }                                                                                                        \
                                                                                                             \
    /* to (=|+=) a[j]*x + b[j]*y + d[j]; y may be NULL */                                                    \
    static void F(apply)(int64_t n, int64_t c, int64_t inner, int64_t c0, int m, T *to, const T *x, const T *y, const T *a, const T *b,  \
                         const T *d, bool add)                                                               \
    {                                                                                                        \
        const bool streamed = !add && to != x && to != y && norm_streamed(n, c, inner, sizeof(T));           \
        T room[TD_BLOCK];                                                                                    \
        if (inner == 1) {                                                                                    \
            F(column_apply)(n, c, c0, m, to, x, y, a, b, d, add);                                            \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t i = 0; i < n; i++)                                                                      \
            for (int j = 0; j < m; j++)                                                                      \
                for (int64_t k = 0; k < inner; k += TD_BLOCK) {                                              \
                    const int64_t at = (i * c + c0 + j) * inner + k, count = inner - k < TD_BLOCK ? inner - k : TD_BLOCK;  \
                    F(row_apply)(count, F(place)(to + at, room, streamed), x + at, y ? y + at : NULL, a[j], b[j], d[j], add);  \
                    F(placed)(to + at, room, count, streamed);                                               \
                }                                                                                            \
        if (streamed)                                                                                        \
            td__stream_end();                                                                                \
    }                                                                                                        \
                                                                                                             \
    /* mean and sum of squared deviations of the m channels from c0 on */                                    \
    static void F(statistics)(int64_t n, int64_t c, int64_t inner, int64_t c0, int m, const T *x, double *mean, double *square)  \
    {                                                                                                        \
        if (inner > 1) {                                                                                     \
            F(channel_squares)(n, c, inner, c0, m, x, mean, square);                                         \
            return;                                                                                          \
        }                                                                                                    \
        memset(mean, 0, (size_t)m * sizeof *mean);                                                           \
        memset(square, 0, (size_t)m * sizeof *square);                                                       \
        F(column_sums)(n, c, c0, m, x, NULL, NULL, mean);                                                    \
        for (int j = 0; j < m; j++)                                                                          \
            mean[j] /= (double)n;                                                                            \
        F(column_sums)(n, c, c0, m, x, x, mean, square);                                                     \
    }                                                                                                        \
                                                                                                             \
    /* of the same channels the sums of g and, where x is there, of g*(x-mean) */                            \
    static void F(products)(int64_t n, int64_t c, int64_t inner, int64_t c0, int m, const T *g, const T *x, const double *mean, double *sum,  \
                            double *product)                                                                 \
    {                                                                                                        \
        if (inner > 1) {                                                                                     \
            F(channel_products)(KEEP_ALL, n, c, inner, c0, m, g, NULL, x ? x : g, NULL, NULL, mean, sum, product);  \
            return;                                                                                          \
        }                                                                                                    \
        memset(sum, 0, (size_t)m * sizeof *sum);                                                             \
        memset(product, 0, (size_t)m * sizeof *product);                                                     \
        F(column_sums)(n, c, c0, m, g, NULL, NULL, sum);                                                     \
        if (x)                                                                                               \
            F(column_sums)(n, c, c0, m, x, g, mean, product);                                                \
    }                                                                                                        \
                                                                                                             \
    static void F(norm)(int64_t n, int64_t c, int64_t inner, T *y, T *mean, T *rstd, const T *x, const T *w, const T *b, T *running_mean,  \
                        T *running_var, bool train, double momentum, double eps)                             \
    {                                                                                                        \
        const int64_t count = n * inner, side = inner == 1 ? SIDE : channels_together(n, c, inner, sizeof(T));  \
        _Pragma("omp parallel for schedule(static) if (n * c * inner >= TD_PARALLEL)")                       \
        for (int64_t c0 = 0; c0 < c; c0 += side) {                                                           \
            int m = c - c0 < side ? (int)(c - c0) : (int)side;                                               \
            double mu[TOGETHER_MOST], var[TOGETHER_MOST];                                                    \
            T scale[TOGETHER_MOST], none[TOGETHER_MOST] = { 0 }, shift[TOGETHER_MOST];                       \
            if (train)                                                                                       \
                F(statistics)(n, c, inner, c0, m, x, mu, var);                                               \
            for (int j = 0; j < m; j++) {                                                                    \
                int64_t k = c0 + j;                                                                          \
                if (train && running_mean)                                                                   \
                    running_mean[k] = (T)((1 - momentum) * (double)running_mean[k] + momentum * mu[j]);      \
                if (train && running_var)                                                                    \
                    running_var[k] = (T)((1 - momentum) * (double)running_var[k] + momentum * var[j] / (double)(count - 1));  \
                mu[j] = train ? mu[j] : (double)running_mean[k];                                             \
                double r = 1 / sqrt((train ? var[j] / (double)count : (double)running_var[k]) + eps);        \
                double f = w ? r * (double)w[k] : r;                                                         \
                mean[k] = (T)mu[j];                                                                          \
                rstd[k] = (T)r;                                                                              \
                scale[j] = (T)f;                                                                             \
                shift[j] = (T)((b ? (double)b[k] : 0) - mu[j] * f);                                          \
            }                                                                                                \
            F(apply)(n, c, inner, c0, m, y, x, NULL, scale, none, shift, false);                             \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(norm_grad)(int64_t n, int64_t c, int64_t inner, T *gx, T *gw, T *gb, const T *gy, const T *x, const T *w, const T *mean,  \
                             const T *rstd, bool train, bool add_x, bool add_w, bool add_b)                  \
    {                                                                                                        \
        const int64_t count = n * inner, side = inner == 1 ? SIDE : channels_together(n, c, inner, 2 * sizeof(T));  \
        const bool products = gw || (gx && train);                                                           \
        _Pragma("omp parallel for schedule(static) if (n * c * inner >= TD_PARALLEL)")                       \
        for (int64_t c0 = 0; c0 < c; c0 += side) {                                                           \
            int m = c - c0 < side ? (int)(c - c0) : (int)side;                                               \
            double mu[TOGETHER_MOST], g[TOGETHER_MOST] = { 0 }, gd[TOGETHER_MOST] = { 0 };   /* sums of gy, and of gy*(x-mean) */  \
            T a[TOGETHER_MOST], b[TOGETHER_MOST], d[TOGETHER_MOST];                                          \
            for (int j = 0; j < m; j++)                                                                      \
                mu[j] = (double)mean[c0 + j];                                                                \
            if (products || gb)                                                                              \
                F(products)(n, c, inner, c0, m, gy, products ? x : NULL, mu, g, gd);                         \
            for (int j = 0; j < m; j++) {                                                                    \
                int64_t k = c0 + j;                                                                          \
                double r = (double)rstd[k], f = w ? r * (double)w[k] : r;                                    \
                if (gw)                                                                                      \
                    gw[k] = (T)((add_w ? (double)gw[k] : 0) + gd[j] * r);                                    \
                if (gb)                                                                                      \
                    gb[k] = (T)((add_b ? (double)gb[k] : 0) + g[j]);                                         \
                double slope = train ? -f * r * r * gd[j] / (double)count : 0;                               \
                a[j] = (T)f;                                                                                 \
                b[j] = (T)slope;                                                                             \
                d[j] = train ? (T)(-f * g[j] / (double)count - slope * mu[j]) : 0;                           \
            }                                                                                                \
            if (gx)                                                                                          \
                F(apply)(n, c, inner, c0, m, gx, gy, train ? x : NULL, a, b, d, add_x);                      \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* g NULL: first = mean of x, second = sum (x-mean)². Else first = sum g, second = sum g*(x-mean) with the mean given. */\
    static void F(pair)(int64_t n, int64_t c, int64_t inner, const T *x, const T *g, const double *mean, double *first, double *second)\
    {                                                                                                        \
        const int64_t side = inner == 1 ? SIDE : channels_together(n, c, inner, (g ? 2 : 1) * sizeof(T));    \
        _Pragma("omp parallel for schedule(static) if (n * c * inner >= TD_PARALLEL)")                       \
        for (int64_t c0 = 0; c0 < c; c0 += side) {                                                           \
            int m = c - c0 < side ? (int)(c - c0) : (int)side;                                               \
            if (n * inner == 0) {                                                                            \
                memset(first + c0, 0, (size_t)m * sizeof *first);                                            \
                memset(second + c0, 0, (size_t)m * sizeof *second);                                          \
            } else if (g) {                                                                                  \
                F(products)(n, c, inner, c0, m, g, x, mean + c0, first + c0, second + c0);                   \
            } else {                                                                                         \
                F(statistics)(n, c, inner, c0, m, x, first + c0, second + c0);                               \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* y (=|+=) a*x + b*z + d per channel; z may be NULL */                                                  \
    static void F(affine)(int64_t n, int64_t c, int64_t inner, T *y, const T *x, const T *z, const double *a, const double *b,\
                          const double *d, bool add)                                                         \
    {                                                                                                        \
        const int64_t side = inner == 1 ? SIDE : channels_together(n, c, inner, (z ? 2 : 1) * sizeof(T));    \
        _Pragma("omp parallel for schedule(static) if (n * c * inner >= TD_PARALLEL)")                       \
        for (int64_t c0 = 0; c0 < c; c0 += side) {                                                           \
            int m = c - c0 < side ? (int)(c - c0) : (int)side;                                               \
            T at[TOGETHER_MOST], bt[TOGETHER_MOST], dt[TOGETHER_MOST];                                       \
            for (int j = 0; j < m; j++) {                                                                    \
                at[j] = (T)a[c0 + j];                                                                        \
                bt[j] = z ? (T)b[c0 + j] : 0;                                                                \
                dt[j] = (T)d[c0 + j];                                                                        \
            }                                                                                                \
            F(apply)(n, c, inner, c0, m, y, x, z, at, bt, dt, add);                                          \
        }                                                                                                    \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
NORM(float, F32)
NORM(double, F64)

void K(batch_norm)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, void *mean, void *rstd, const void *x, const void *w,
                   const void *b, void *running_mean, void *running_var, bool train, double momentum, double eps)
{
    if (n * inner <= 0) {            /* no rows: nothing to write, nothing learnt; saved numbers that give zero gradients         */
        memset(mean, 0, (t == TD_F32 ? sizeof(float) : sizeof(double)) * (size_t)c);
        memset(rstd, 0, (t == TD_F32 ? sizeof(float) : sizeof(double)) * (size_t)c);
    } else if (t == TD_F32) {
        norm_f32(n, c, inner, y, mean, rstd, x, w, b, running_mean, running_var, train, momentum, eps);
    } else {
        norm_f64(n, c, inner, y, mean, rstd, x, w, b, running_mean, running_var, train, momentum, eps);
    }
}

void K(batch_norm_grad)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *gx, void *gw, void *gb, const void *gy,
                        const void *x, const void *w, const void *mean, const void *rstd, bool train, bool add_x, bool add_w,
                        bool add_b)
{
    if (n * inner <= 0)              /* no division by the count: only zeroes are written                                        */
        train = false;
    if (t == TD_F32)
        norm_grad_f32(n, c, inner, gx, gw, gb, gy, x, w, mean, rstd, train, add_x, add_w, add_b);
    else
        norm_grad_f64(n, c, inner, gx, gw, gb, gy, x, w, mean, rstd, train, add_x, add_w, add_b);
}

void K(batch_norm_pair)(td_dtype t, int64_t n, int64_t c, int64_t inner, const void *x, const void *g, const double *mean, double *first,
                        double *second)
{
    if (t == TD_F32)
        pair_f32(n, c, inner, x, g, mean, first, second);
    else
        pair_f64(n, c, inner, x, g, mean, first, second);
}

void K(batch_norm_affine)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, const void *x, const void *z, const double *a,
                          const double *b, const double *d, bool add)
{
    if (t == TD_F32)
        affine_f32(n, c, inner, y, x, z, a, b, d, add);
    else
        affine_f64(n, c, inner, y, x, z, a, b, d, add);
}
