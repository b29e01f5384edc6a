/* tensor/cpu/random.c: uniform, normal and integer random numbers.
 *
 * The layout of counters, which is part of the library's promise (key = seed, the counter's high half = stream):
 *   uniform, element i: word i%4 of block i/4; its top 24 bits over 2^24.
 *   normal, element i: words (0,1) of block i/4 give elements 0 and 1 of the block, words (2,3) elements 2 and 3, by Box-Muller:
 *       r = sqrt(-2 log((first+1)/2^32)), a = 2 pi second/2^32; the even one is r cos a, the odd one r sin a; f64, rounded to f32.
 *   integer, element i: blocks i, i + 2^48, i + 2*2^48, …, two 64-bit tries each (words 1:0, then 3:2), until one falls in the
 *       part of the 64-bit range that divides evenly (Lemire's multiplication; Lemire 2019): exactly uniform.
 * Nothing depends on n, the number of threads or what was drawn before.
 */
#include "cpu.h"
#include <tensor_impl.h>

enum { BLOCKS = TD_BLOCK / 4 };                        /* Philox blocks drawn at a time */

static void uniform_block(int64_t first, int64_t n, float *out, uint64_t seed, uint64_t stream)
{
    uint32_t word[4][BLOCKS];
#pragma omp simd
    for (int64_t b = 0; b < BLOCKS; b++) {
        td_philox p = td__philox(seed, stream, (uint64_t)(first / 4 + b));
        word[0][b] = p.v[0], word[1][b] = p.v[1], word[2][b] = p.v[2], word[3][b] = p.v[3];
    }
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(int32_t)(word[i % 4][i / 4] >> 8) * 0x1p-24f;
}

static void normal_block(int64_t first, int64_t n, float *out, uint64_t seed, uint64_t stream)
{
    for (int64_t i = 0; i < n; i += 4) {
        td_philox p = td__philox(seed, stream, (uint64_t)((first + i) / 4));
        float z[4];
        for (int k = 0; k < 4; k += 2) {
            double r = sqrt(-2.0 * log(((double)p.v[k] + 1.0) * 0x1p-32));
            double a = 6.283185307179586476925 * ((double)p.v[k + 1] * 0x1p-32);
            z[k] = (float)(r * cos(a));
            z[k + 1] = (float)(r * sin(a));
        }
        memcpy(out + i, z, (size_t)(n - i < 4 ? n - i : 4) * sizeof *z);
    }
}

void K(rand)(int64_t n, float *out, uint64_t seed, uint64_t stream, bool normal)
{
    int64_t blocks = (n + TD_BLOCK - 1) / TD_BLOCK;
#pragma omp parallel for schedule(static) if (n >= TD_PARALLEL)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * TD_BLOCK, m = n - first < TD_BLOCK ? n - first : TD_BLOCK;
        (normal ? normal_block : uniform_block)(first, m, out + first, seed, stream);
    }
}

/* A number in [0, range), range > 0. `reject` = 2^64 mod range. */
static uint64_t below(uint64_t range, uint64_t reject, int64_t i, uint64_t seed, uint64_t stream)
{
    for (uint64_t attempt = 0;; attempt++) {
        td_philox p = td__philox(seed, stream, (uint64_t)i + (attempt << 48));
        for (int k = 0; k < 4; k += 2) {
            uint64_t word = (uint64_t)p.v[k + 1] << 32 | p.v[k];
            unsigned __int128 product = (unsigned __int128)word * range;
            if ((uint64_t)product >= reject)
                return (uint64_t)(product >> 64);
        }
    }
}

void K(randint)(int64_t n, int64_t *out, int64_t low, int64_t high, uint64_t seed, uint64_t stream)
{
    uint64_t range = (uint64_t)high - (uint64_t)low, reject = (0 - range) % range;
#pragma omp parallel for schedule(static) if (n >= TD_PARALLEL)
    for (int64_t i = 0; i < n; i++)
        out[i] = (int64_t)((uint64_t)low + below(range, reject, i, seed, stream));
}
