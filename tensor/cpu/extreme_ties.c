/* tensor/cpu/extreme_ties.c: the gradient of amax and amin: each result's is shared evenly among the elements that tie. Ties are counted, then all elements
 * of the row or of a strip of columns are written; nothing in between is kept in memory.
 *
 * A mask of ones and zeros times the share: 0 * NaN and 0 * infinity are NaN, also where no element is equal, in rows with a NaN. Threads take whole rows or
 * strips, so their number changes nothing.
 */
#include "cpu.h"
#include "stream.h"

enum { STRIP = 256 };

#define TIES(T, name)                                                                                        \
    static inline void shares_##name(int64_t n, T *restrict gx, const T *restrict x, T y, T share, bool add) \
    {                                                                                                        \
        if (add) {                                                                                           \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) gx[i] += (x[i] == y ? (T)1 : (T)0) * share;  \
        } else {                                                                                             \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) gx[i] = (x[i] == y ? (T)1 : (T)0) * share;   \
        }                                                                                                    \
    }                                                                                                        \
    static void row_##name(int64_t n, T *gx, T g, const T *x, T y, bool add, bool streamed)                  \
    {                                                                                                        \
        int64_t ties = 0;                                                                                    \
        for (int64_t i = 0; i < n; i += TD_BLOCK) {                                                          \
            const int m = (int)(n - i < TD_BLOCK ? n - i : TD_BLOCK);                                        \
            int here = 0;                                                                                    \
            _Pragma("omp simd reduction(+:here)") for (int j = 0; j < m; j++) here += x[i + j] == y;         \
            ties += here;                                                                                    \
        }                                                                                                    \
        const T share = g / (T)ties;                                                                         \
        if (!streamed) {                                                                                     \
            shares_##name(n, gx, x, y, share, add);                                                          \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t i = 0; i < n; i += TD_BLOCK) {                                                          \
            _Alignas(64) T block[TD_BLOCK];                                                                  \
            const int64_t m = n - i < TD_BLOCK ? n - i : TD_BLOCK;                                           \
            shares_##name(m, block, x + i, y, share, false);                                                 \
            td__stream(gx + i, block, (size_t)m * sizeof(T));                                                \
        }                                                                                                    \
    }                                                                                                        \
    /* `rows` rows of `width` columns, `step` apart */                                                       \
    static void strip_##name(int64_t rows, int64_t step, int width, T *restrict gx, const T *restrict g, const T *restrict x,  \
                             const T *restrict y, bool add, bool streamed)                                   \
    {                                                                                                        \
        int32_t ties[STRIP] = { 0 };                                                                         \
        T share[STRIP];                                                                                      \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            const T *restrict row = x + r * step;                                                            \
            td__ask(row + 4 * step, (size_t)width * sizeof(T));                                              \
            _Pragma("omp simd") for (int j = 0; j < width; j++) ties[j] += row[j] == y[j];                   \
        }                                                                                                    \
        for (int j = 0; j < width; j++)                                                                      \
            share[j] = g[j] / (T)ties[j];                                                                    \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            _Alignas(64) T block[STRIP];                                                                     \
            const T *restrict row = x + r * step;                                                            \
            td__ask(row + 4 * step, (size_t)width * sizeof(T));                                              \
            T *restrict into = streamed ? block : gx + r * step;                                             \
            if (add) {                                                                                       \
                _Pragma("omp simd") for (int j = 0; j < width; j++) into[j] += (row[j] == y[j] ? (T)1 : (T)0) * share[j];  \
            } else {                                                                                         \
                _Pragma("omp simd") for (int j = 0; j < width; j++) into[j] = (row[j] == y[j] ? (T)1 : (T)0) * share[j];   \
            }                                                                                                \
            if (streamed)                                                                                    \
                td__stream(gx + r * step, block, (size_t)width * sizeof(T));                                 \
        }                                                                                                    \
    }                                                                                                        \
    static void ties_##name(int64_t outer, int64_t m, int64_t inner, T *gx, const T *g, const T *x, const T *y, bool add)  \
    {                                                                                                        \
        const int64_t strips = (inner + STRIP - 1) / STRIP;                                                  \
        const bool streamed = !add && (inner > 1 ? inner >= STRIP : m >= TD_BLOCK) && outer * m * inner * (int64_t)sizeof(T) >= TD_STREAM_BYTES;  \
        _Pragma("omp parallel for schedule(static) if (outer * m * inner > TD_PARALLEL && outer * strips > 1)")  \
        for (int64_t k = 0; k < outer * strips; k++) {                                                       \
            const int64_t o = k / strips, c = k % strips * STRIP, at = o * m * inner + c;                    \
            const int width = (int)(inner - c < STRIP ? inner - c : STRIP);                                  \
            if (inner == 1)                                                                                  \
                row_##name(m, gx + at, g[o], x + at, y[o], add, streamed);                                   \
            else                                                                                             \
                strip_##name(m, inner, width, gx + at, g + o * inner + c, x + at, y + o * inner + c, add, streamed);  \
            if (streamed)                                                                                    \
                td__stream_end();                                                                            \
        }                                                                                                    \
    }
TIES(float, f32)
TIES(double, f64)

void K(extreme_ties_grad)(td_dtype t, int64_t outer, int64_t m, int64_t inner, void *gx, const void *g, const void *x, const void *y, bool add)
{
    if (t == TD_F32)
        ties_f32(outer, m, inner, gx, g, x, y, add);
    else
        ties_f64(outer, m, inner, gx, g, x, y, add);
}
