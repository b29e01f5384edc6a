/* tensor/cpu/batch_norm_relu.c: y = relu(batch_norm(x) + z) in one pass after the statistics, and its gradients.
 *
 * The numbers per channel, y = a*x + d, are made of mean and rstd as they are saved: so the gradient finds from x alone, to the bit, where y was
 * positive, and y need not be kept. What is left of gy there is written once, to gz or to a room of its own; the rest is batch_norm_grad.
 */
#include "cpu.h"

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
