/* tensor/cpu/dropout.c: dropout whose mask is a function of numbers, never of how the batch is divided.
 *
 * The random bits of an element, exactly (every device does the same):
 *     key     = words 0 and 1 of Philox(key = seed, counter = (lo = call + 0x64726f70 * 2^32, hi = step)); word 0 is the low half
 *     counter = (lo = block, hi = sample)                              both 64 bits
 *     element at position p of its sample: block = p / 64 * 16 + p % 16, word (p / 16) % 4
 * so that 16 blocks make 64 neighbouring elements, lane by lane, without shuffling. The key is derived because (step, sample, call, position)
 * do not fit into 128 bits at the sizes they may take. An element is dropped when its word is below p * 2^32 (rounded to nearest). The gradient is the
 * same call on the gradient.
 */
#include "cpu.h"
#include <tensor_impl.h>

enum { LANES = 16, GROUP = 64 };

/* 16 blocks from `first` on: bits[word][lane], in the order of positions */
static inline __attribute__((always_inline)) void philox_group(uint32_t *restrict bits, uint32_t k0, uint32_t k1, uint64_t first, uint64_t sample)
{
    uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
#pragma omp simd
    for (int l = 0; l < LANES; l++) {
        c0[l] = (uint32_t)first + (uint32_t)l;      /* first is a multiple of 16: no carry                                   */
        c1[l] = (uint32_t)(first >> 32);
        c2[l] = (uint32_t)sample;
        c3[l] = (uint32_t)(sample >> 32);
    }
    for (int round = 0; round < 10; round++) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0[l], p1 = (uint64_t)0xCD9E8D57u * c2[l];
            uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1[l] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3[l] ^ k1;
            c1[l] = (uint32_t)p1, c3[l] = (uint32_t)p0, c0[l] = n0, c2[l] = n2;
        }
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    memcpy(bits, c0, sizeof c0);
    memcpy(bits + LANES, c1, sizeof c1);
    memcpy(bits + 2 * LANES, c2, sizeof c2);
    memcpy(bits + 3 * LANES, c3, sizeof c3);
}

#define MASK(T, F)                                                                                           \
    static inline void F(mask)(int n, T *restrict out, const T *restrict x, const uint32_t *restrict bits, uint32_t threshold, T scale, bool add)  \
    {                                                                                                        \
        if (add)                                                                                             \
            _Pragma("omp simd")                                                                              \
            for (int i = 0; i < n; i++)                                                                      \
                out[i] += bits[i] >= threshold ? x[i] * scale : 0;                                           \
        else                                                                                                 \
            _Pragma("omp simd")                                                                              \
            for (int i = 0; i < n; i++)                                                                      \
                out[i] = bits[i] >= threshold ? x[i] * scale : 0;                                            \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
MASK(float, F32)
MASK(double, F64)

void K(dropout)(td_dtype t, int64_t rows, int64_t per, int64_t k, void *out, const void *x, const int64_t *ids, int64_t first, double p,
                uint64_t seed, int64_t step, int64_t call, bool add)
{
    if (rows <= 0 || per <= 0)
        return;
    const td_philox key = td__philox(seed, (uint64_t)step, (uint64_t)call + ((uint64_t)0x64726f70u << 32));
    const double bound = nearbyint(p * 4294967296.0);
    const uint32_t threshold = bound >= 4294967295.0 ? UINT32_MAX : (uint32_t)bound;
    const double scale = 1 / (1 - p);
    const int64_t samples = rows / k, size = k * per, groups = (size + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static) if (rows * per >= TD_PARALLEL)
    for (int64_t i = 0; i < samples * groups; i++) {
        uint32_t bits[GROUP];
        int64_t s = i / groups, g = i % groups, at = s * size + g * GROUP;
        int n = size - g * GROUP < GROUP ? (int)(size - g * GROUP) : GROUP;
        philox_group(bits, key.v[0], key.v[1], (uint64_t)g * LANES, (uint64_t)(ids ? ids[s] : first + s));
        if (t == TD_F32)
            mask_f32(n, (float *)out + at, (const float *)x + at, bits, threshold, (float)scale, add);
        else
            mask_f64(n, (double *)out + at, (const double *)x + at, bits, threshold, scale, add);
    }
}
