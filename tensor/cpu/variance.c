/* tensor/cpu/variance.c: the variance of rows, and its gradient, each in one pass (f64: two; moments.h).
 *
 * Deviations are summed in double whatever the dtype. Threads take whole rows, so their number changes nothing.
 */
#include "cpu.h"
#include "moments.h"
#include "stream.h"

/* Deviations are from the first value of a short row: where that lies far from the others it makes their variance large, too, so the difference in moments.h
 * loses log2(n) bits at most; in a long row from the mean of the first few. */
enum { SHORT = 256 };

#define VARIANCE(T, name)                                                                                    \
    static void var_##name(int64_t rows, int64_t n, T *out, T *mean, const T *x, double scale)               \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (rows * n > TD_PARALLEL)")                             \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            const T *row = x + r * n;                                                                        \
            double about = n > SHORT ? td__near_##name(n, row) : isfinite(row[0]) ? (double)row[0] : 0, square = 0;  \
            for (int pass = sizeof(T) == sizeof(float); pass < 2; pass++) {                                  \
                double lane[2 * TD_LANES] = { 0 };                                                           \
                td__moments_add_##name(n, row, about, lane);                                                 \
                td__moments_end_##name(n, about, lane, &about, &square);                                     \
            }                                                                                                \
            mean[r] = (T)about;                                                                              \
            out[r] = (T)(square * scale);                                                                    \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void var_grad_part_##name(int64_t n, T *restrict gx, T g, const T *restrict x, T mean, T scale, bool add)  \
    {                                                                                                        \
        if (add) {                                                                                           \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) gx[i] += (x[i] - mean) * g * scale;          \
        } else {                                                                                             \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) gx[i] = (x[i] - mean) * g * scale;           \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void var_grad_##name(int64_t rows, int64_t n, T *gx, const T *g, const T *x, const T *mean, T scale, bool add)  \
    {                                                                                                        \
        const bool streamed = !add && n >= TD_BLOCK && rows * n * (int64_t)sizeof(T) >= TD_STREAM_BYTES;     \
        _Pragma("omp parallel for schedule(static) if (rows * n > TD_PARALLEL)")                             \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            if (!streamed) {                                                                                 \
                var_grad_part_##name(n, gx + r * n, g[r], x + r * n, mean[r], scale, add);                   \
                continue;                                                                                    \
            }                                                                                                \
            for (int64_t i = 0; i < n; i += TD_BLOCK) {                                                      \
                _Alignas(64) T block[TD_BLOCK];                                                              \
                const int64_t m = n - i < TD_BLOCK ? n - i : TD_BLOCK;                                       \
                var_grad_part_##name(m, block, g[r], x + r * n + i, mean[r], scale, false);                  \
                td__stream(gx + r * n + i, block, (size_t)m * sizeof(T));                                    \
            }                                                                                                \
            td__stream_end();                                                                                \
        }                                                                                                    \
    }
VARIANCE(float, f32)
VARIANCE(double, f64)

void K(var_rows)(td_dtype t, int64_t rows, int64_t n, void *out, void *mean, const void *x, double scale)
{
    if (t == TD_F32)
        var_f32(rows, n, out, mean, x, scale);
    else
        var_f64(rows, n, out, mean, x, scale);
}

void K(var_rows_grad)(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gout, const void *x, const void *mean, double scale, bool add)
{
    if (t == TD_F32)
        var_grad_f32(rows, n, gx, gout, x, mean, (float)scale, add);
    else
        var_grad_f64(rows, n, gx, gout, x, mean, scale, add);
}
