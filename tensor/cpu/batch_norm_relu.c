/* tensor/cpu/batch_norm_relu.c: y = relu(batch_norm(x) + z) in one pass after the statistics, and its gradients.
 *
 * The numbers per channel, y = a*x + d, are made of mean and rstd as they are saved: so the gradient finds from x alone, to the bit, where y was
 * positive, and y need not be kept. In training what is left of gy there is found twice, once for the sums and once for gx, and kept nowhere;
 * else (and with inner 1) it is written once, to gz or to a room of its own, and the rest is batch_norm_grad.
 */
#include "batch_norm.h"

#define NORM_RELU(T, F)                                                                                      \
    static void F(numbers)(int64_t c, const T *mean, const T *rstd, const T *w, const T *b, T *a, T *d)      \
    {                                                                                                        \
        for (int64_t k = 0; k < c; k++) {                                                                    \
            a[k] = w ? rstd[k] * w[k] : rstd[k];                                                             \
            d[k] = (T)((b ? (double)b[k] : 0) - (double)mean[k] * (double)a[k]);                             \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* y = relu(a*x + d + z), z may be NULL; NaN stays. Columns: a and d lie as x does. */                   \
    static inline __attribute__((always_inline)) void F(relu_of)(const bool columns, const bool sum, int64_t n, T *restrict y, const T *restrict x,  \
                                                                 const T *restrict z, const T *restrict a, const T *restrict d)  \
    {                                                                                                        \
        const T a0 = *a, d0 = *d;                                                                            \
        _Pragma("omp simd")                                                                                  \
        for (int64_t k = 0; k < n; k++) {                                                                    \
            T v = columns ? a[k] * x[k] + d[k] : a0 * x[k] + d0;                                             \
            v = sum ? v + z[k] : v;                                                                          \
            y[k] = v <= 0 ? 0 : v;                                                                           \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(relu_columns)(int64_t n, int64_t c, T *y, const T *x, const T *z, const T *a, const T *d)  \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (n * c >= TD_PARALLEL)")                               \
        for (int64_t i = 0; i < n; i++)                                                                      \
            if (z)                                                                                           \
                F(relu_of)(true, true, c, y + i * c, x + i * c, z + i * c, a, d);                            \
            else                                                                                             \
                F(relu_of)(true, false, c, y + i * c, x + i * c, NULL, a, d);                                \
    }                                                                                                        \
                                                                                                             \
    /* the m channels from c0 on */                                                                          \
    static void F(relu_channels)(int64_t n, int64_t c, int64_t inner, int64_t c0, int64_t m, T *y, const T *x, const T *z, const T *a, const T *d)  \
    {                                                                                                        \
        const bool streamed = norm_streamed(n, c, inner, sizeof(T));                                         \
        T room[TD_BLOCK];                                                                                    \
        for (int64_t i = 0; i < n; i++)                                                                      \
            for (int64_t k = c0; k < c0 + m; k++)                                                            \
                for (int64_t begin = 0; begin < inner; begin += TD_BLOCK) {                                  \
                    const int64_t at = (i * c + k) * inner + begin, count = inner - begin < TD_BLOCK ? inner - begin : TD_BLOCK;  \
                    T *to = F(place)(y + at, room, streamed);                                                \
                    if (z)                                                                                   \
                        F(relu_of)(false, true, count, to, x + at, z + at, a + k, d + k);                    \
                    else                                                                                     \
                        F(relu_of)(false, false, count, to, x + at, NULL, a + k, d + k);                     \
                    F(placed)(y + at, room, count, streamed);                                                \
                }                                                                                            \
        if (streamed)                                                                                        \
            td__stream_end();                                                                                \
    }                                                                                                        \
                                                                                                             \
    /* gz (=|+=) what is left of gy */                                                                       \
    static inline __attribute__((always_inline)) void F(z_of)(const int keep, const bool add, int64_t n, T *gz, const T *gy, const T *y, const T *x, T a,  \
                                                              T d)                                           \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t k = 0; k < n; k++) {                                                                    \
            const T g = F(kept)(keep, gy[k], keep == KEEP_BY_Y ? y[k] : 0, keep == KEEP_BY_X ? x[k] : 0, a, d);  \
            gz[k] = add ? gz[k] + g : g;                                                                     \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(row_z)(bool add, int64_t n, T *gz, const T *gy, const T *y, const T *x, T a, T d)          \
    {                                                                                                        \
        if (y && add)                                                                                        \
            F(z_of)(KEEP_BY_Y, true, n, gz, gy, y, x, a, d);                                                 \
        else if (y)                                                                                          \
            F(z_of)(KEEP_BY_Y, false, n, gz, gy, y, x, a, d);                                                \
        else if (add)                                                                                        \
            F(z_of)(KEEP_BY_X, true, n, gz, gy, y, x, a, d);                                                 \
        else                                                                                                 \
            F(z_of)(KEEP_BY_X, false, n, gz, gy, y, x, a, d);                                                \
    }                                                                                                        \
                                                                                                             \
    /* gx (=|+=) factor * what is left of gy + (slope * x + shift); gx may be gy */                          \
    static inline __attribute__((always_inline)) void F(x_of)(const int keep, const bool add, int64_t n, T *gx, const T *gy, const T *y, const T *x, T a,  \
                                                              T d, T factor, T slope, T shift)               \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t k = 0; k < n; k++) {                                                                    \
            const T g = F(kept)(keep, gy[k], keep == KEEP_BY_Y ? y[k] : 0, x[k], a, d), v = factor * g + (slope * x[k] + shift);  \
            gx[k] = add ? gx[k] + v : v;                                                                     \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(row_x)(bool add, int64_t n, T *gx, const T *gy, const T *y, const T *x, T a, T d, T factor, T slope, T shift)  \
    {                                                                                                        \
        if (y && add)                                                                                        \
            F(x_of)(KEEP_BY_Y, true, n, gx, gy, y, x, a, d, factor, slope, shift);                           \
        else if (y)                                                                                          \
            F(x_of)(KEEP_BY_Y, false, n, gx, gy, y, x, a, d, factor, slope, shift);                          \
        else if (add)                                                                                        \
            F(x_of)(KEEP_BY_X, true, n, gx, gy, y, x, a, d, factor, slope, shift);                           \
        else                                                                                                 \
            F(x_of)(KEEP_BY_X, false, n, gx, gy, y, x, a, d, factor, slope, shift);                          \
    }                                                                                                        \
                                                                                                             \
    /* to = gy where y, or a*x + d, is positive; sum (=|+=) that, where it is given */                       \
    static void F(left)(int64_t n, int64_t c, int64_t inner, T *to, T *sum, const T *gy, const T *y, const T *x, const T *a, const T *d, bool add)  \
    {                                                                                                        \
        const int64_t rows = inner == 1 ? n : n * c, row = inner == 1 ? c : inner;                           \
        _Pragma("omp parallel for schedule(static) if (rows * row >= TD_PARALLEL)")                          \
        for (int64_t i = 0; i < rows; i++) {                                                                 \
            const int64_t at = i * row;                                                                      \
            if (inner > 1 || y) {                                                                            \
                const T *yi = y ? y + at : NULL, *xi = x ? x + at : NULL;                                    \
                if (to)                                                                                      \
                    F(row_z)(false, row, to + at, gy + at, yi, xi, a[i % c], d[i % c]);                      \
                if (sum)                                                                                     \
                    F(row_z)(add, row, sum + at, gy + at, yi, xi, a[i % c], d[i % c]);                       \
                continue;                                                                                    \
            }                                                                                                \
            for (int64_t k = 0; k < c; k++) {                                                                \
                const T v = a[k] * x[at + k] + d[k] > 0 ? gy[at + k] : 0;                                    \
                if (to)                                                                                      \
                    to[at + k] = v;                                                                          \
                if (sum)                                                                                     \
                    sum[at + k] = add ? sum[at + k] + v : v;                                                 \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* Training, images: the sums, then gz and gx in one more pass, a few channels at a time; gx may lie where gy does. */  \
    static void F(train_grad)(int64_t n, int64_t c, int64_t inner, T *gx, T *gz, T *gw, T *gb, const T *gy, const T *y, const T *x, const T *w,  \
                              const T *mean, const T *rstd, const T *a, const T *d, bool add_x, bool add_z, bool add_w, bool add_b)  \
    {                                                                                                        \
        const int64_t side = channels_together(n, c, inner, (y ? 3 : 2) * sizeof(T));                        \
        const bool large = norm_streamed(n, c, inner, sizeof(T)), stream_x = large && !add_x && gx != gy, stream_z = large && !add_z && gz != gy;  \
        _Pragma("omp parallel for schedule(static) if (n * c * inner >= TD_PARALLEL)")                       \
        for (int64_t c0 = 0; c0 < c; c0 += side) {                                                           \
            const int m = c - c0 < side ? (int)(c - c0) : (int)side;                                         \
            double mu[TOGETHER_MOST], sum[TOGETHER_MOST], product[TOGETHER_MOST];                            \
            T room[TD_BLOCK];                                                                                \
            for (int j = 0; j < m; j++)                                                                      \
                mu[j] = (double)mean[c0 + j];                                                                \
            F(channel_products)(y ? KEEP_BY_Y : KEEP_BY_X, n, c, inner, c0, m, gy, y, x, a + c0, d + c0, mu, sum, product);  \
            for (int j = 0; j < m; j++) {                                                                    \
                const int64_t k = c0 + j;                                                                    \
                if (gw)                                                                                      \
                    gw[k] = (T)((add_w ? (double)gw[k] : 0) + product[j] * (double)rstd[k]);                 \
                if (gb)                                                                                      \
                    gb[k] = (T)((add_b ? (double)gb[k] : 0) + sum[j]);                                       \
                const double r = (double)rstd[k], f = w ? r * (double)w[k] : r, count = (double)(n * inner); \
                product[j] *= -f * r * r / count;                                                            \
                sum[j] = -f * sum[j] / count - product[j] * mu[j];                                           \
            }                                                                                                \
            for (int64_t i = 0; i < n && (gx || gz); i++)                                                    \
                for (int j = 0; j < m; j++)                                                                  \
                    for (int64_t begin = 0; begin < inner; begin += TD_BLOCK) {                              \
                        const int64_t k = c0 + j, at = (i * c + k) * inner + begin, count = inner - begin < TD_BLOCK ? inner - begin : TD_BLOCK;  \
                        const T f = (T)(w ? (double)rstd[k] * (double)w[k] : (double)rstd[k]), *yi = y ? y + at : NULL;  \
                        if (gz) {                                                                            \
                            F(row_z)(add_z, count, F(place)(gz + at, room, stream_z), gy + at, yi, x + at, a[k], d[k]);  \
                            F(placed)(gz + at, room, count, stream_z);                                       \
                        }                                                                                    \
                        if (gx) {                                                                            \
                            F(row_x)(add_x, count, F(place)(gx + at, room, stream_x), gy + at, yi, x + at, a[k], d[k], f, (T)product[j], (T)sum[j]);  \
                            F(placed)(gx + at, room, count, stream_x);                                       \
                        }                                                                                    \
                    }                                                                                        \
            if (stream_x || stream_z)                                                                        \
                td__stream_end();                                                                            \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(norm_relu)(td_dtype t, int64_t n, int64_t c, int64_t inner, T *y, T *mean, T *rstd, const T *x, const T *z, const T *w,  \
                             const T *b, T *running_mean, T *running_var, bool train, double momentum, double eps)  \
    {                                                                                                        \
        const int64_t count = n * inner;                                                                     \
        double *one = td__alloc((size_t)c * (2 * sizeof(double) + 2 * sizeof(T))), *two = one + c;           \
        if (!one)                                                                                            \
            return;                                                                                          \
        T *a = (T *)(two + c), *d = a + c;                                                                   \
        const int64_t side = inner == 1 ? c : channels_together(n, c, inner, (z ? 2 : 1) * sizeof(T));       \
        if (train && inner == 1)                                                                             \
            K(batch_norm_pair)(t, n, c, inner, x, NULL, NULL, one, two);                                     \
        _Pragma("omp parallel for schedule(static) if (inner > 1 && n * c * inner >= TD_PARALLEL)")          \
        for (int64_t c0 = 0; c0 < c; c0 += side) {                                                           \
            const int64_t c1 = c - c0 < side ? c : c0 + side;                                                \
            if (train && inner > 1)                                                                          \
                F(channel_squares)(n, c, inner, c0, (int)(c1 - c0), x, one + c0, two + c0);                  \
            for (int64_t k = c0; k < c1; k++) {                                                              \
                if (train && running_mean)                                                                   \
                    running_mean[k] = (T)((1 - momentum) * (double)running_mean[k] + momentum * one[k]);     \
                if (train && running_var)                                                                    \
                    running_var[k] = (T)((1 - momentum) * (double)running_var[k] + momentum * two[k] / (double)(count - 1));  \
                mean[k] = train ? (T)one[k] : running_mean[k];                                               \
                rstd[k] = (T)(1 / sqrt((train ? two[k] / (double)count : (double)running_var[k]) + eps));    \
            }                                                                                                \
            F(numbers)(c1 - c0, mean + c0, rstd + c0, w ? w + c0 : NULL, b ? b + c0 : NULL, a + c0, d + c0); \
            if (inner > 1)                                                                                   \
                F(relu_channels)(n, c, inner, c0, c1 - c0, y, x, z, a, d);                                   \
        }                                                                                                    \
        if (inner == 1)                                                                                      \
            F(relu_columns)(n, c, y, x, z, a, d);                                                            \
        td__free(one);                                                                                       \
    }                                                                                                        \
                                                                                                             \
    static void F(norm_relu_grad)(td_dtype t, int64_t n, int64_t c, int64_t inner, T *gx, T *gz, T *gw, T *gb, const T *gy, const T *y,  \
                                  const T *x, const T *w, const T *b, const T *mean, const T *rstd, bool train, bool add_x, bool add_z,  \
                                  bool add_w, bool add_b)                                                    \
    {                                                                                                        \
        if (train && x && inner > 1) {                                                                       \
            T *a = td__alloc((size_t)c * 2 * sizeof(T)), *d = a + c;                                         \
            if (!a)                                                                                          \
                return;                                                                                      \
            F(numbers)(c, mean, rstd, w, b, a, d);                                                           \
            F(train_grad)(n, c, inner, gx, gz, gw, gb, gy, y, x, w, mean, rstd, a, d, add_x, add_z, add_w, add_b);  \
            td__free(a);                                                                                     \
            return;                                                                                          \
        }                                                                                                    \
        const bool more = gx || gw || gb, own = more && (!gz || add_z);                                      \
        T *a = td__alloc(((size_t)c * 2 + (own ? (size_t)(n * c * inner) : 0)) * sizeof(T)), *d = a + c, *g = own ? d + c : gz;  \
        if (!a)                                                                                              \
            return;                                                                                          \
        F(numbers)(c, mean, rstd, w, b, a, d);                                                               \
        F(left)(n, c, inner, own ? g : NULL, gz, gy, y, x, a, d, add_z);                                     \
        if (more)                                                                                            \
            K(batch_norm_grad)(t, n, c, inner, gx, gw, gb, g, x, w, mean, rstd, train, add_x, add_w, add_b); \
        td__free(a);                                                                                         \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
NORM_RELU(float, F32)
NORM_RELU(double, F64)

void K(batch_norm_relu)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, void *mean, void *rstd, const void *x, const void *z,
                        const void *w, const void *b, void *running_mean, void *running_var, bool train, double momentum, double eps)
{
    if (n * inner <= 0) {            /* as batch_norm: nothing learnt, saved numbers that give zero gradients                    */
        memset(mean, 0, (t == TD_F32 ? sizeof(float) : sizeof(double)) * (size_t)c);
        memset(rstd, 0, (t == TD_F32 ? sizeof(float) : sizeof(double)) * (size_t)c);
    } else if (t == TD_F32) {
        norm_relu_f32(t, n, c, inner, y, mean, rstd, x, z, w, b, running_mean, running_var, train, momentum, eps);
    } else {
        norm_relu_f64(t, n, c, inner, y, mean, rstd, x, z, w, b, running_mean, running_var, train, momentum, eps);
    }
}

void K(batch_norm_relu_grad)(td_dtype t, int64_t n, int64_t c, int64_t inner, void *gx, void *gz, void *gw, void *gb, const void *gy,
                             const void *y, const void *x, const void *w, const void *b, const void *mean, const void *rstd, bool train,
                             bool add_x, bool add_z, bool add_w, bool add_b)
{
    if (t == TD_F32)
        norm_relu_grad_f32(t, n, c, inner, gx, gz, gw, gb, gy, y, x, w, b, mean, rstd, train, add_x, add_z, add_w, add_b);
    else
        norm_relu_grad_f64(t, n, c, inner, gx, gz, gw, gb, gy, y, x, w, b, mean, rstd, train, add_x, add_z, add_w, add_b);
}
