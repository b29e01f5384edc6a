/* tensor/cuda/rotary.cu: rotary position embedding (Su et al. 2021), elements paired half by half: i with i + d/2 (GPT-NeoX).
 *
 * Twin of ../cpu/rotary.c. A thread rotates V neighbouring pairs of one row: 16 bytes of each half where alignment allows, single pairs
 * otherwise. Tables stay in the caches: a row of them serves all heads and sequences.
 */
#include "pointwise.h"

namespace {
/* n items: `per` of each row; operands 0 out, 1 x, 2 table */
template <int V, class T>
__global__ void __launch_bounds__(TD_THREADS) rotary_kernel(td_loop rows, int64_t n, int64_t per, T *out, const T *x, const T *table, bool inverse,
                                                            bool add)
{
    typedef td_wide<T> W;
    const int64_t half = per * V;
    TD_GRID_STRIDE(i, n) {
        const int64_t row = n <= 0x7fffffff ? (int64_t)((uint32_t)i / (uint32_t)per) : i / per, column = (i - row * per) * V;
        int64_t at[3];
        td_loop_at<3>(rows, row, at);
        T *const o = out + at[0] + column;
        const T *const from = x + at[1] + column, *const angle = table + at[2] + column;
        const td_vector<T, V> a = td_take<V>(from, false), b = td_take<V>(from + half, false);
        const td_vector<T, V> cosine = td_take<V>(angle, false), sine = td_take<V>(angle + half, false);
        W low[V], high[V];
#pragma unroll
        for (int k = 0; k < V; k++) {
            const W u = td_load<T>(&a.v[k]), v = td_load<T>(&b.v[k]), c = td_load<T>(&cosine.v[k]), s = td_load<T>(&sine.v[k]);
            const W sign = inverse ? -s : s;
            low[k] = u * c - v * sign;
            high[k] = v * c + u * sign;
        }
        td_put_all<V, T>(o, low, add);
        td_put_all<V, T>(o + half, high, add);
    }
}

/* Do all halves of all rows begin at multiples of 16 bytes? */
bool whole(const td_loop &rows, int64_t half, int width, const void *const (&p)[3])
{
    bool yes = half % width == 0;
    for (int k = 0; k < 3; k++) {
        yes = yes && td_aligned(p[k], 16);
        for (int d = 0; d < rows.ndim; d++)
            yes = yes && rows.stride[k][d] % width == 0;
    }
    return yes;
}

template <class T> void rotary(const td_loop *rows, int64_t d, T *out, const T *x, const T *table, bool inverse, bool add)
{
    constexpr int V = 16 / (int)sizeof(T);
    const void *const p[3] = { out, x, table };
    const int64_t half = d / 2, count = td_loop_count(*rows);
    if (half == 0 || count == 0)
        return;
    if (whole(*rows, half, V, p))
        TD_LAUNCH("rotary", td_blocks(count * (half / V)), TD_THREADS, 0, (rotary_kernel<V, T>), *rows, count * (half / V), half / V, out, x, table,
                  inverse, add);
    else
        TD_LAUNCH("rotary", td_blocks(count * half), TD_THREADS, 0, (rotary_kernel<1, T>), *rows, count * half, half, out, x, table, inverse, add);
}
}

extern "C" void td__cuda_rotary(const td_loop *rows, td_dtype t, int64_t d, void *out, const void *x, const void *table, bool inverse, bool add)
{
    TD_CUDA_FLOAT(t, T, rotary<T>(rows, d, (T *)out, (const T *)x, (const T *)table, inverse, add))
}
