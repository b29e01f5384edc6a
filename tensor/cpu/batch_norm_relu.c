/* tensor/cpu/batch_norm_relu.c: y = relu(batch_norm(x) + z) in one pass after the statistics, and its gradients.
 *
 * The numbers per channel, y = a*x + d, are made of mean and rstd as they are saved: so the gradient finds from x alone, to the bit, where y was
 * positive, and y need not be kept. In training what is left of gy there is found twice, once for the sums and once for gx, and kept nowhere;
 * else (and with inner 1) it is written once, to gz or to a room of its own, and the rest is batch_norm_grad.
 */
#include "cpu.h"
#include <omp.h>

#define NORM_RELU(T, F)                                                                                      \
    static void F(numbers)(int64_t c, const T *mean, const T *rstd, const T *w, const T *b, T *a, T *d)      \
    {                                                                                                        \
        for (int64_t k = 0; k < c; k++) {                                                                    \
            a[k] = w ? rstd[k] * w[k] : rstd[k];                                                             \
            d[k] = (T)((b ? (double)b[k] : 0) - (double)mean[k] * (double)a[k]);                             \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(forward)(int64_t n, int64_t c, int64_t inner, T *y, const T *x, const T *z, const T *a, const T *d)  \
    {                                                                                                        \
        const int64_t rows = inner == 1 ? n : n * c, row = inner == 1 ? c : inner;                           \
        _Pragma("omp parallel for schedule(static) if (rows * row >= TD_PARALLEL)")                          \
        for (int64_t i = 0; i < rows; i++) {                                                                 \
            const T *restrict xi = x + i * row, *restrict zi = z ? z + i * row : NULL;                       \
            T *restrict yi = y + i * row;                                                                    \
            for (int64_t k = 0; k < row; k++) {                                                              \
                const int64_t channel = inner == 1 ? k : i % c;                                              \
                T v = a[channel] * xi[k] + d[channel];                                                       \
                v = zi ? v + zi[k] : v;                                                                      \
                yi[k] = v > 0 || v != v ? v : 0;                                                             \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* to = gy where y, or a*x + d, is positive; sum (=|+=) that, where it is given */                       \
    static void F(left)(int64_t n, int64_t c, int64_t inner, T *to, T *sum, const T *gy, const T *y, const T *x, const T *a, const T *d, bool add)  \
    {                                                                                                        \
        const int64_t rows = inner == 1 ? n : n * c, row = inner == 1 ? c : inner;                           \
        _Pragma("omp parallel for schedule(static) if (rows * row >= TD_PARALLEL)")                          \
        for (int64_t i = 0; i < rows; i++)                                                                   \
            for (int64_t k = 0; k < row; k++) {                                                              \
                const int64_t channel = inner == 1 ? k : i % c, at = i * row + k;                            \
                const T v = (y ? y[at] : a[channel] * x[at] + d[channel]) > 0 ? gy[at] : 0;                  \
                if (to)                                                                                      \
                    to[at] = v;                                                                              \
                if (sum)                                                                                     \
                    sum[at] = add ? sum[at] + v : v;                                                         \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    /* What is left of gy where y, or a*x + d, is positive. One row of one channel: sum it and its products with x - mean. gz (NULL: not wanted) (=|+=) it. */  \
    static inline T F(kept)(T gy, T y)                                                                       \
    {                                                                                                        \
        return y > 0 ? gy : 0;                                                                               \
    }                                                                                                        \
                                                                                                             \
    static inline __attribute__((always_inline)) void F(row_sums)(const bool by_y, int64_t inner, double *sum, double *product, const T *restrict gy,  \
                                                                  const T *restrict y, const T *restrict x, T a, T d, double mean)  \
    {                                                                                                        \
        double s = 0, p = 0;                                                                                 \
        _Pragma("omp simd reduction(+ : s, p)")                                                              \
        for (int64_t k = 0; k < inner; k++) {                                                                \
            const double g = (double)F(kept)(gy[k], by_y ? y[k] : a * x[k] + d);                             \
            s += g;                                                                                          \
            p += g * ((double)x[k] - mean);                                                                  \
        }                                                                                                    \
        *sum += s;                                                                                           \
        *product += p;                                                                                       \
    }                                                                                                        \
                                                                                                             \
    static inline __attribute__((always_inline)) void F(row_z)(const bool by_y, const bool add, int64_t inner, T *restrict gz, const T *restrict gy,  \
                                                               const T *restrict y, const T *restrict x, T a, T d)  \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t k = 0; k < inner; k++) {                                                                \
            const T g = F(kept)(gy[k], by_y ? y[k] : a * x[k] + d);                                          \
            gz[k] = add ? gz[k] + g : g;                                                                     \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static inline __attribute__((always_inline)) void F(row_x)(const bool by_y, const bool add, int64_t inner, T *gx, const T *gy,  \
                                                               const T *restrict y, const T *restrict x, T a, T d, T factor, T slope, T shift)  \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t k = 0; k < inner; k++) {                                                                \
            const T g = F(kept)(gy[k], by_y ? y[k] : a * x[k] + d), v = factor * g + (slope * x[k] + shift);      \
            gx[k] = add ? gx[k] + v : v;                                                                     \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* Training, images: the sums of all channels in the order in which rows lie, then gz and gx in one more pass; gx may lie where gy does. */  \
    static void F(train_grad)(int64_t n, int64_t c, int64_t inner, T *gx, T *gz, T *gw, T *gb, const T *gy, const T *y, const T *x, const T *w,  \
                              const T *mean, const T *rstd, const T *a, const T *d, double *sum, double *product, bool add_x, bool add_z,  \
                              bool add_w, bool add_b)                                                        \
    {                                                                                                        \
        const int threads = n * c * inner < TD_PARALLEL || omp_in_parallel() ? 1 : omp_get_max_threads();    \
        _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")                   \
        for (int part = 0; part < threads; part++) {                                                         \
            const int64_t c0 = c * part / threads, c1 = c * (part + 1) / threads;                            \
            for (int64_t k = c0; k < c1; k++)                                                                \
                sum[k] = product[k] = 0;                                                                     \
            for (int64_t i = 0; i < n; i++)                                                                  \
                for (int64_t k = c0, at = (i * c + c0) * inner; k < c1; k++, at += inner) {                  \
                    if (y)                                                                                   \
                        F(row_sums)(true, inner, &sum[k], &product[k], gy + at, y + at, x + at, a[k], d[k], (double)mean[k]);  \
                    else                                                                                     \
                        F(row_sums)(false, inner, &sum[k], &product[k], gy + at, NULL, x + at, a[k], d[k], (double)mean[k]);  \
                }                                                                                            \
            for (int64_t k = c0; k < c1; k++) {                                                              \
                if (gw)                                                                                      \
                    gw[k] = (T)((add_w ? (double)gw[k] : 0) + product[k] * (double)rstd[k]);                 \
                if (gb)                                                                                      \
                    gb[k] = (T)((add_b ? (double)gb[k] : 0) + sum[k]);                                       \
                const double r = (double)rstd[k], f = w ? r * (double)w[k] : r, count = (double)(n * inner); \
                product[k] *= -f * r * r / count;                                                            \
                sum[k] = -f * sum[k] / count - product[k] * (double)mean[k];                                 \
            }                                                                                                \
            for (int64_t i = 0; i < n && (gx || gz); i++)                                                    \
                for (int64_t k = c0, at = (i * c + c0) * inner; k < c1; k++, at += inner) {                  \
                    const T f = (T)(w ? (double)rstd[k] * (double)w[k] : (double)rstd[k]), slope = (T)product[k], shift = (T)sum[k];  \
                    if (gz && y)                                                                             \
                        F(row_z)(true, add_z, inner, gz + at, gy + at, y + at, x + at, a[k], d[k]);          \
                    else if (gz)                                                                             \
                        F(row_z)(false, add_z, inner, gz + at, gy + at, NULL, x + at, a[k], d[k]);           \
                    if (gx && y)                                                                             \
                        F(row_x)(true, add_x, inner, gx + at, gy + at, y + at, x + at, a[k], d[k], f, slope, shift);  \
                    else if (gx)                                                                             \
                        F(row_x)(false, add_x, inner, gx + at, gy + at, NULL, x + at, a[k], d[k], f, slope, shift);  \
                }                                                                                            \
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
        if (train)                                                                                           \
            K(batch_norm_pair)(t, n, c, inner, x, NULL, NULL, one, two);                                     \
        for (int64_t k = 0; k < c; k++) {                                                                    \
            if (train && running_mean)                                                                       \
                running_mean[k] = (T)((1 - momentum) * (double)running_mean[k] + momentum * one[k]);         \
            if (train && running_var)                                                                        \
                running_var[k] = (T)((1 - momentum) * (double)running_var[k] + momentum * two[k] / (double)(count - 1));  \
            mean[k] = train ? (T)one[k] : running_mean[k];                                                   \
            rstd[k] = (T)(1 / sqrt((train ? two[k] / (double)count : (double)running_var[k]) + eps));        \
        }                                                                                                    \
        F(numbers)(c, mean, rstd, w, b, a, d);                                                               \
        F(forward)(n, c, inner, y, x, z, a, d);                                                              \
        td__free(one);                                                                                       \
    }                                                                                                        \
                                                                                                             \
    static void F(norm_relu_grad)(td_dtype t, int64_t n, int64_t c, int64_t inner, T *gx, T *gz, T *gw, T *gb, const T *gy, const T *y,  \
                                  const T *x, const T *w, const T *b, const T *mean, const T *rstd, bool train, bool add_x, bool add_z,  \
                                  bool add_w, bool add_b)                                                    \
    {                                                                                                        \
        if (train && x && inner > 1) {                                                                       \
            double *sum = td__alloc((size_t)c * 2 * (sizeof(double) + sizeof(T)));                           \
            T *a = (T *)(sum + 2 * c), *d = a + c;                                                           \
            if (!sum)                                                                                        \
                return;                                                                                      \
            F(numbers)(c, mean, rstd, w, b, a, d);                                                           \
            F(train_grad)(n, c, inner, gx, gz, gw, gb, gy, y, x, w, mean, rstd, a, d, sum, sum + c, add_x, add_z, add_w, add_b);  \
            td__free(sum);                                                                                   \
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
