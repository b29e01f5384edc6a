/* tensor/cpu/softmax.c: softmax and log-softmax over rows, and their gradients.
 *
 * The maximum is subtracted first; exponentials go through the vector routine (vecmath.h), their sum is kept in f64 in fixed lanes.
 * A row with NaN, with +inf or with nothing but -inf is NaN, as in PyTorch. Rows are independent.
 */
#include "cpu.h"
#include "exp_sum.h"

#define SOFTMAX(T, name)                                                                                     \
    static double lanes_sum_##name(const T *x, int64_t n)                                                    \
    {                                                                                                        \
        double sum;                                                                                          \
        TD_LANES_SUM(sum, n, (double)x[i]);                                                                      \
        return sum;                                                                                          \
    }                                                                                                        \
    static double lanes_dot_##name(const T *x, const T *y, int64_t n)                                        \
    {                                                                                                        \
        double sum;                                                                                          \
        TD_LANES_SUM(sum, n, (double)x[i] * (double)y[i]);                                                       \
        return sum;                                                                                          \
    }                                                                                                        \
    static void softmax_##name(int64_t rows, int64_t n, T *y, const T *x)                                    \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (rows > 1 && rows * n > TD_PARALLEL / 8)")             \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            const T *in = x + r * n;                                                                         \
            T *out = y + r * n, most;                                                                        \
            TD_LANES_MOST(T, most, n, in);                                                                   \
            const T scale = (T)(1 / td__exp_sum_##name(n, out, in, most));                                   \
            for (int64_t i = 0; i < n; i++)                                                                  \
                out[i] *= scale;                                                                             \
        }                                                                                                    \
    }                                                                                                        \
    /* gx = y * (gy - sum(gy*y)) */                                                                          \
    static void softmax_grad_##name(int64_t rows, int64_t n, T *gx, const T *gy, const T *y, bool add)       \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (rows > 1 && rows * n > TD_PARALLEL)")                 \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            const T *g = gy + r * n, *v = y + r * n;                                                         \
            T *out = gx + r * n;                                                                             \
            const T dot = (T)lanes_dot_##name(g, v, n);                                                      \
            if (add)                                                                                         \
                for (int64_t i = 0; i < n; i++)                                                              \
                    out[i] += v[i] * (g[i] - dot);                                                           \
            else                                                                                             \
                for (int64_t i = 0; i < n; i++)                                                              \
                    out[i] = v[i] * (g[i] - dot);                                                            \
        }                                                                                                    \
    }
enum { ROW_BLOCK = 512 };
#define LOG_SOFTMAX(T, name)                                                                                 \
    /* y = x - most - log(sum(exp(x - most))) */                                                             \
    static void log_softmax_##name(int64_t rows, int64_t n, T *y, const T *x)                                \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (rows > 1 && rows * n > TD_PARALLEL / 8)")             \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            const T *in = x + r * n;                                                                         \
            T *out = y + r * n, most;                                                                        \
            TD_LANES_MOST(T, most, n, in);                                                                   \
            const double log_sum = log(td__exp_sum_##name(n, NULL, in, most));                               \
            for (int64_t i = 0; i < n; i++)                                                                  \
                out[i] = (T)((double)in[i] - (double)most - log_sum);                                        \
        }                                                                                                    \
    }                                                                                                        \
    /* gx = gy - exp(y) * sum(gy) */                                                                         \
    static void log_softmax_grad_##name(int64_t rows, int64_t n, T *gx, const T *gy, const T *y, bool add)   \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (rows > 1 && rows * n > TD_PARALLEL / 8)")             \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            const T *g = gy + r * n, total = (T)lanes_sum_##name(g, n);                                      \
            T *out = gx + r * n, block[ROW_BLOCK];                                                           \
            for (int64_t begin = 0; begin < n; begin += ROW_BLOCK) {                                         \
                const int64_t m = n - begin < ROW_BLOCK ? n - begin : ROW_BLOCK;                             \
                td__vexp_##name(m, block, y + r * n + begin);                                                \
                if (add)                                                                                     \
                    _Pragma("omp simd") for (int64_t i = 0; i < m; i++)                                      \
                        out[begin + i] += g[begin + i] - block[i] * total;                                   \
                else                                                                                         \
                    _Pragma("omp simd") for (int64_t i = 0; i < m; i++)                                      \
                        out[begin + i] = g[begin + i] - block[i] * total;                                    \
            }                                                                                                \
        }                                                                                                    \
    }
SOFTMAX(float, f32)
SOFTMAX(double, f64)
LOG_SOFTMAX(float, f32)
LOG_SOFTMAX(double, f64)

void K(softmax)(td_dtype t, int64_t rows, int64_t n, void *y, const void *x)
{
    if (rows <= 0 || n <= 0)
        return;
    if (t == TD_F32)
        softmax_f32(rows, n, y, x);
    else
        softmax_f64(rows, n, y, x);
}

void K(softmax_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gy, const void *y, bool add)
{
    if (t == TD_F32)
        softmax_grad_f32(rows, n, gx, gy, y, add);
    else
        softmax_grad_f64(rows, n, gx, gy, y, add);
}

void K(log_softmax)(td_dtype t, int64_t rows, int64_t n, void *y, const void *x)
{
    if (rows <= 0 || n <= 0)
        return;
    if (t == TD_F32)
        log_softmax_f32(rows, n, y, x);
    else
        log_softmax_f64(rows, n, y, x);
}

void K(log_softmax_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gy, const void *y, bool add)
{
    if (t == TD_F32)
        log_softmax_grad_f32(rows, n, gx, gy, y, add);
    else
        log_softmax_grad_f64(rows, n, gx, gy, y, add);
}
