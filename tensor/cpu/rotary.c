/* tensor/cpu/rotary.c: rotary position embedding (Su et al. 2021), elements paired half by half: i with i + d/2 (GPT-NeoX).
 *
 * A row is rotated by the angles whose cosines and sines are its row of the table: (d/2 cosines, d/2 sines). The gradient is the
 * rotation back. Rows are independent, and every element is two products and a sum.
 */
#include "span.h"

typedef struct { int64_t half; bool inverse; } rotary_arg;

#define ROTARY(T, name)                                                                                      \
    static inline __attribute__((always_inline)) void row_##name(int64_t h, T *restrict out, const T *restrict x,                \
                                                                 const T *restrict table, T sign, bool add)  \
    {                                                                                                        \
        const T *cosine = table, *sine = table + h;                                                          \
        _Pragma("omp simd") for (int64_t i = 0; i < h; i++)                                                  \
        {                                                                                                    \
            const T s = sign * sine[i], low = x[i] * cosine[i] - x[i + h] * s, high = x[i + h] * cosine[i] + x[i] * s; \
            out[i] = add ? out[i] + low : low;                                                               \
            out[i + h] = add ? out[i + h] + high : high;                                                     \
        }                                                                                                    \
    }                                                                                                        \
    static void rows_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        const rotary_arg *a = arg;                                                                           \
        for (int64_t r = 0; r < n; r++)                                                                      \
            if (add)                                                                                         \
                row_##name(a->half, (T *)o + r * so, (const T *)pa + r * sa, (const T *)pb + r * sb, a->inverse ? -1 : 1, true); \
            else                                                                                             \
                row_##name(a->half, (T *)o + r * so, (const T *)pa + r * sa, (const T *)pb + r * sb, a->inverse ? -1 : 1, false); \
    }
ROTARY(float, f32)
ROTARY(double, f64)

void K(rotary)(const td_loop *rows, td_dtype t, int64_t d, void *out, const void *x, const void *table, bool inverse, bool add)
{
    const rotary_arg arg = { d / 2, inverse };
    const int64_t total = td__loop_count(rows), chunk = d < TD_SPAN_CHUNK ? TD_SPAN_CHUNK / (d + 1) + 1 : 1;
    const size_t size = t == TD_F32 ? sizeof(float) : sizeof(double);
#pragma omp parallel for schedule(static) if (total * d > TD_PARALLEL)
    for (int64_t begin = 0; begin < total; begin += chunk)
        td__spans_chunk(rows, begin, total - begin < chunk ? total : begin + chunk, t == TD_F32 ? rows_f32 : rows_f64, out, size, x, table,
                        size, add, false, &arg);
}
