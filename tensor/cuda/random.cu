/* tensor/cuda/random.cu: uniform, normal and integer random numbers.
 *
 * Twin of ../cpu/random.c, which documents the layout of counters. Uniform and integer numbers are the same bits as the CPU's; normal ones
 * come from the same formula in double, and the last bit of a float may differ where CUDA's log, cos and sin do.
 */
#include "pointwise.h"
#include "../philox.h"

namespace {
/* A thread makes the four elements of one Philox block. */
template <bool NORMAL>
__global__ void __launch_bounds__(TD_THREADS) rand_kernel(int64_t n, float *out, uint64_t seed, uint64_t stream, bool aligned)
{
    TD_GRID_STRIDE(b, (n + 3) / 4) {
        const td_philox p = td__philox(seed, stream, (uint64_t)b);
        td_vector<float, 4> z;
        if (NORMAL) {
#pragma unroll
            for (int k = 0; k < 4; k += 2) {
                const double r = sqrt(-2.0 * log(((double)p.v[k] + 1.0) * 0x1p-32));
                const double a = 6.283185307179586476925 * ((double)p.v[k + 1] * 0x1p-32);
                z.v[k] = (float)(r * cos(a));
                z.v[k + 1] = (float)(r * sin(a));
            }
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++)
                z.v[k] = (float)(int32_t)(p.v[k] >> 8) * 0x1p-24f;
        }
        if (aligned && b * 4 + 4 <= n) {
            *(td_vector<float, 4> *)(out + b * 4) = z;
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (b * 4 + k < n)
                    out[b * 4 + k] = z.v[k];
        }
    }
}

/* A number in [0, range), range > 0. reject = 2^64 mod range. */
__device__ __forceinline__ uint64_t below(uint64_t range, uint64_t reject, int64_t i, uint64_t seed, uint64_t stream)
{
    for (uint64_t attempt = 0;; attempt++) {
        const td_philox p = td__philox(seed, stream, (uint64_t)i + (attempt << 48));
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            const uint64_t word = (uint64_t)p.v[k + 1] << 32 | p.v[k];
            if (word * range >= reject)
                return __umul64hi(word, range);
        }
    }
}

__global__ void __launch_bounds__(TD_THREADS) randint_kernel(int64_t n, int64_t *out, int64_t low, uint64_t range, uint64_t reject, uint64_t seed,
                                                             uint64_t stream)
{
    TD_GRID_STRIDE(i, n)
        out[i] = (int64_t)((uint64_t)low + below(range, reject, i, seed, stream));
}
}

extern "C" void td__cuda_rand(int64_t n, float *out, uint64_t seed, uint64_t stream, bool normal)
{
    if (n <= 0)
        return;
    const int64_t blocks = (n + 3) / 4;
    if (normal)
        TD_LAUNCH("rand", td_blocks(blocks), TD_THREADS, 0, (rand_kernel<true>), n, out, seed, stream, td_aligned(out, 16));
    else
        TD_LAUNCH("rand", td_blocks(blocks), TD_THREADS, 0, (rand_kernel<false>), n, out, seed, stream, td_aligned(out, 16));
}

extern "C" void td__cuda_randint(int64_t n, int64_t *out, int64_t low, int64_t high, uint64_t seed, uint64_t stream)
{
    const uint64_t range = (uint64_t)high - (uint64_t)low;
    if (n > 0)
        TD_LAUNCH("randint", td_blocks(n), TD_THREADS, 0, (randint_kernel), n, out, low, range, (0 - range) % range, seed, stream);
}
