/* tensor/cpu/loss.c: cross-entropy and mean squared error, each with its gradient.
 *
 * Cross-entropy is fused: per row the log-sum-exp (saved) and the loss, never the probabilities. Sums over rows or elements are made in
 * f64 in at most 256 parts whose borders depend on the size alone, added in order: the bits do not depend on the number of threads.
 * No row kept: the mean is 0/0, NaN, and the gradient exactly zero.
 */
#include "cpu.h"
#include "exp_sum.h"
#include "parts.h"

enum { ROW_BLOCK = 512 };

#define CROSS_ENTROPY(T, name)                                                                               \
    /* log(sum(exp(x))) of one row, and sum(x) when asked */                                                 \
    static double row_lse_##name(const T *x, int64_t n, double *sum_x)                                       \
    {                                                                                                        \
        T most;                                                                                              \
        TD_LANES_MOST(T, most, n, x);                                                                        \
        const double sum = td__exp_sum_##name(n, NULL, x, most);                                             \
        if (sum_x)                                                                                           \
            TD_LANES_SUM(*sum_x, n, (double)x[i]);                                                           \
        return (double)most + log(sum);                                                                      \
    }                                                                                                        \
    static void cross_entropy_##name(int64_t rows, int64_t n, const T *logits, const int64_t *target, double smoothing, bool has_ignore, \
                                     int64_t ignore, T *loss, T *lse, T *kept, int64_t *bad)                 \
    {                                                                                                        \
        const int64_t size = part_size(rows, 1), parts = (rows + size - 1) / size;                           \
        double sum[PARTS] = { 0 };                                                                           \
        int64_t count[PARTS] = { 0 }, first_bad[PARTS];                                                      \
        _Pragma("omp parallel for schedule(static) if (rows * n > TD_PARALLEL / 8)")                         \
        for (int64_t p = 0; p < parts; p++) {                                                                \
            const int64_t end = (p + 1) * size < rows ? (p + 1) * size : rows;                               \
            first_bad[p] = -1;                                                                               \
            for (int64_t r = p * size; r < end; r++) {                                                       \
                const T *x = logits + r * n;                                                                 \
                lse[r] = 0;                                                                                  \
                if (has_ignore && target[r] == ignore)                                                       \
                    continue;                                                                                \
                if (target[r] < 0 || target[r] >= n) {                                                       \
                    first_bad[p] = first_bad[p] < 0 ? r : first_bad[p];                                      \
                    continue;                                                                                \
                }                                                                                            \
                double sum_x = 0;                                                                            \
                const double log_sum = row_lse_##name(x, n, smoothing > 0 ? &sum_x : NULL);                  \
                lse[r] = (T)log_sum;                                                                         \
                double row = log_sum - (double)x[target[r]];                                                 \
                if (smoothing > 0)                                                                           \
                    row = (1 - smoothing) * row + smoothing * (log_sum - sum_x / (double)n);                 \
                sum[p] += row;                                                                               \
                count[p]++;                                                                                  \
            }                                                                                                \
        }                                                                                                    \
        const int64_t counted = parts_kept(parts, count, first_bad, bad);                                    \
        *kept = (T)counted;                                                                                  \
        *loss = (T)parts_mean(parts, sum, counted);                                                          \
    }                                                                                                        \
    /* gx = gloss/kept * (softmax - (1-smoothing)*[i == target] - smoothing/n); gx may be logits */                            \
    static void cross_entropy_grad_##name(int64_t rows, int64_t n, T *gx, const T *gloss, const T *logits, const int64_t *target, const T *lse, \
                                          const T *kept, double smoothing, bool has_ignore, int64_t ignore, bool add) \
    {                                                                                                        \
        const T scale = *kept > 0 ? *gloss / *kept : 0, low = (T)(smoothing / (double)n), high = (T)(1 - smoothing); \
        _Pragma("omp parallel for schedule(static) if (rows * n > TD_PARALLEL / 8)")                         \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            T *g = gx + r * n, block[ROW_BLOCK];                                                             \
            if ((has_ignore && target[r] == ignore) || !(*kept > 0)) {                                       \
                if (!add)                                                                                    \
                    memset(g, 0, (size_t)n * sizeof *g);                                                     \
                continue;                                                                                    \
            }                                                                                                \
            for (int64_t begin = 0; begin < n; begin += ROW_BLOCK) {                                         \
                const int64_t m = n - begin < ROW_BLOCK ? n - begin : ROW_BLOCK, hot = target[r] - begin;    \
                for (int64_t i = 0; i < m; i++)                                                              \
                    block[i] = logits[r * n + begin + i] - lse[r];                                           \
                td__vexp_##name(m, block, block);                                                            \
                if (hot >= 0 && hot < m)                                                                     \
                    block[hot] -= high;                                                                      \
                if (add)                                                                                     \
                    _Pragma("omp simd") for (int64_t i = 0; i < m; i++)                                      \
                        g[begin + i] += scale * (block[i] - low);                                            \
                else                                                                                         \
                    _Pragma("omp simd") for (int64_t i = 0; i < m; i++)                                      \
                        g[begin + i] = scale * (block[i] - low);                                             \
            }                                                                                                \
        }                                                                                                    \
    }
CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(double, f64)

void K(cross_entropy)(td_dtype t, int64_t rows, int64_t n, const void *logits, const int64_t *target, double smoothing, bool has_ignore,
                      int64_t ignore, void *loss, void *lse, void *kept, int64_t *bad)
{
    if (t == TD_F32)
        cross_entropy_f32(rows, n, logits, target, smoothing, has_ignore, ignore, loss, lse, kept, bad);
    else
        cross_entropy_f64(rows, n, logits, target, smoothing, has_ignore, ignore, loss, lse, kept, bad);
}

void K(cross_entropy_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gloss, const void *logits, const int64_t *target,
                           const void *lse, const void *kept, double smoothing, bool has_ignore, int64_t ignore, bool add)
{
    if (t == TD_F32)
        cross_entropy_grad_f32(rows, n, gx, gloss, logits, target, lse, kept, smoothing, has_ignore, ignore, add);
    else
        cross_entropy_grad_f64(rows, n, gx, gloss, logits, target, lse, kept, smoothing, has_ignore, ignore, add);
}

#define MSE(T, name)                                                                                         \
    static void mse_##name(int64_t n, const T *x, const T *y, T *loss)                                       \
    {                                                                                                        \
        const int64_t size = part_size(n, TD_BLOCK), parts = (n + size - 1) / size;                          \
        double sum[PARTS] = { 0 };                                                                           \
        _Pragma("omp parallel for schedule(static) if (n > TD_PARALLEL)")                                    \
        for (int64_t p = 0; p < parts; p++) {                                                                \
            const int64_t end = (p + 1) * size < n ? (p + 1) * size : n;                                     \
            double lane[8] = { 0 };                                                                          \
            int64_t i = p * size;                                                                            \
            for (; i + 8 <= end; i += 8) {                                                                   \
                _Pragma("omp simd") for (int j = 0; j < 8; j++) {                                            \
                    const double d = (double)x[i + j] - (double)y[i + j];                                    \
                    lane[j] += d * d;                                                                        \
                }                                                                                            \
            }                                                                                                \
            for (int j = 0; i < end; i++, j++)                                                               \
                lane[j] += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);                    \
            sum[p] = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7])); \
        }                                                                                                    \
        *loss = (T)parts_mean(parts, sum, n);                                                                \
    }                                                                                                        \
    static void mse_grad_##name(int64_t n, T *gx, const T *gloss, const T *x, const T *y, double sign, bool add) \
    {                                                                                                        \
        const T scale = (T)(sign * 2 / (double)n) * *gloss;                                                  \
        if (add) {                                                                                           \
            _Pragma("omp parallel for simd schedule(static) if (parallel: n > TD_PARALLEL)")                 \
            for (int64_t i = 0; i < n; i++)                                                                  \
                gx[i] += scale * (x[i] - y[i]);                                                              \
        } else {                                                                                             \
            _Pragma("omp parallel for simd schedule(static) if (parallel: n > TD_PARALLEL)")                 \
            for (int64_t i = 0; i < n; i++)                                                                  \
                gx[i] = scale * (x[i] - y[i]);                                                               \
        }                                                                                                    \
    }
MSE(float, f32)
MSE(double, f64)

void K(mse)(td_dtype t, int64_t n, const void *x, const void *y, void *loss)
{
    if (t == TD_F32)
        mse_f32(n, x, y, loss);
    else
        mse_f64(n, x, y, loss);
}

void K(mse_grad)(td_dtype t, int64_t n, void *gx, const void *gloss, const void *x, const void *y, double sign, bool add)
{
    if (t == TD_F32)
        mse_grad_f32(n, gx, gloss, x, y, sign, add);
    else
        mse_grad_f64(n, gx, gloss, x, y, sign, add);
}
