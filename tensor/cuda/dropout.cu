/* tensor/cuda/dropout.cu: dropout whose mask is a function of numbers, never of how the batch is divided.
 *
 * Twin of ../cpu/dropout.c, which documents the random bits of an element; they are the same here. The four words of a Philox block belong to
 * positions p, p+16, p+32, p+48 of a group of 64. So a thread takes V neighbouring blocks: 4V elements of one sample, V neighbours at each of
 * four places; V neighbours are one access where alignment allows. Ten rounds for four elements cost less than moving them.
 */
#include "pointwise.h"
#include "../philox.h"

namespace {
enum { LANES = 16, GROUP = 64 };

/* Ten rounds, by every thread where the numbers lie in memory: less than the wait for a kernel that would make the key. */
__host__ __device__ __forceinline__ uint64_t key_of(uint64_t seed, int64_t step, int64_t call)
{
    const td_philox key = td__philox(seed, (uint64_t)step, (uint64_t)call + ((uint64_t)0x64726f70u << 32));
    return key.v[0] | (uint64_t)key.v[1] << 32;
}

struct mask { uint64_t key; int64_t first; const int64_t *at; uint32_t threshold; };

/* V neighbours at `at` of a sample of `size` elements: out (=|+=) kept ? x*scale : 0 */
template <int V, class T>
__device__ __forceinline__ void drop(T *out, const T *x, const uint32_t (&bits)[V], uint32_t threshold, td_wide<T> scale, bool add)
{
    const td_vector<T, V> in = td_take<V>(x, false);
    td_wide<T> y[V];
#pragma unroll
    for (int k = 0; k < V; k++)
        y[k] = bits[k] >= threshold ? td_load<T>(&in.v[k]) * scale : (td_wide<T>)0;
    td_put_all<V, T>(out, y, add);
}

/* n = samples * groups * (LANES / V) items */
template <int V, class T>
__global__ void __launch_bounds__(TD_THREADS) dropout_kernel(int64_t n, int64_t size, int64_t groups, T *out, const T *x, const int64_t *ids,
                                                             mask m, td_wide<T> scale, bool add, bool aligned)
{
    if (m.at) {
        m.key = key_of((uint64_t)m.at[0], m.at[1], m.at[2]);
        m.first = m.at[3];
    }
    TD_GRID_STRIDE(i, n) {
        const int lane = (int)(i % (LANES / V)) * V;
        const int64_t group = i / (LANES / V);
        const int64_t s = n <= 0x7fffffff ? (int64_t)((uint32_t)group / (uint32_t)groups) : group / groups, g = group - s * groups;
        const uint64_t sample = (uint64_t)(ids ? ids[s] : m.first + s);
        td_philox block[V];
#pragma unroll
        for (int k = 0; k < V; k++)
            block[k] = td__philox(m.key, sample, (uint64_t)(g * LANES + lane + k));
#pragma unroll
        for (int w = 0; w < 4; w++) {
            const int64_t position = g * GROUP + w * LANES + lane, at = s * size + position;
            uint32_t bits[V];
#pragma unroll
            for (int k = 0; k < V; k++)
                bits[k] = block[k].v[w];
            if (aligned && position + V <= size) {
                drop<V, T>(out + at, x + at, bits, m.threshold, scale, add);
            } else {
#pragma unroll
                for (int k = 0; k < V; k++) {
                    const uint32_t one[1] = { bits[k] };
                    if (position + k < size)
                        drop<1, T>(out + at + k, x + at + k, one, m.threshold, scale, add);
                }
            }
        }
    }
}

template <class T>
void dropout(int64_t samples, int64_t size, T *out, const T *x, const int64_t *ids, mask m, double scale, bool add)
{
    constexpr int V = sizeof(T) == 8 ? 2 : 4;
    const int64_t groups = (size + GROUP - 1) / GROUP, n = samples * groups * (LANES / V);
    const bool aligned = td_aligned(out, V * sizeof(T)) && td_aligned(x, V * sizeof(T)) && size % V == 0;
    TD_LAUNCH("dropout", td_blocks(n), TD_THREADS, 0, (dropout_kernel<V, T>), n, size, groups, out, x, ids, m, (td_wide<T>)scale, add, aligned);
}
}

extern "C" void td__cuda_dropout(td_dtype t, int64_t rows, int64_t per, int64_t k, void *out, const void *x, const int64_t *ids, td_draw from,
                                 double p, bool add)
{
    if (rows <= 0 || per <= 0)
        return;
    const double bound = nearbyint(p * 4294967296.0);
    const mask m = { from.at ? 0 : key_of(from.seed, from.step, from.call), from.first, from.at,
                     bound >= 4294967295.0 ? UINT32_MAX : (uint32_t)bound };
    TD_CUDA_FLOAT(t, T, dropout<T>(rows / k, k * per, (T *)out, (const T *)x, ids, m, 1 / (1 - p), add))
}
