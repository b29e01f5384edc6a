/* tensor/cpu/dropout.c: dropout whose mask is a function of numbers, never of how the batch is divided.
 *
 * The random bits of an element, exactly (every device does the same):
 *     key     = words 0 and 1 of Philox(key = seed, counter = (lo = call + 0x64726f70 * 2^32, hi = step)); word 0 is the low half
 *     counter = (lo = block, hi = sample)                              both 64 bits
 *     element at position p of its sample: block = p / 64 * 16 + p % 16, word (p / 16) % 4
 * so that 16 blocks make 64 neighbouring elements, lane by lane, without shuffling. The key is derived because (step, sample,
 * call, position) do not fit into 128 bits at the sizes they may take. An element is dropped when its word is below p * 2^32
 * (rounded to nearest). The gradient is the same call on the gradient. One intrinsic: see EVEN_PRODUCT.
 */
#include "cpu.h"
#include <tensor_impl.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* The product of the even 32-bit lanes in 64 bits is one instruction everywhere on x86 that compilers do not find by themselves. */
#if defined(__AVX512F__)
enum { BYTES = 64 };
#define EVEN_PRODUCT(a, b) (pairs)_mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#elif defined(__AVX2__)
enum { BYTES = 32 };
#define EVEN_PRODUCT(a, b) (pairs)_mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#elif defined(__SSE2__)
enum { BYTES = 16 };
#define EVEN_PRODUCT(a, b) (pairs)_mm_mul_epu32((__m128i)(a), (__m128i)(b))
#else
enum { BYTES = 16 };
#define EVEN_PRODUCT(a, b) (((a) & LOW) * ((b) & LOW))
#endif
#define LOW UINT64_C(0xffffffff)
enum { LANES = 16, GROUP = 64, PART = BYTES / 4 };
typedef uint32_t words __attribute__((vector_size(BYTES)));
typedef uint32_t words_at __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint64_t pairs __attribute__((vector_size(BYTES)));

/* c * m in 64 bits per lane, as high and low words (little-endian pairs) */
static inline __attribute__((always_inline)) void multiply(words c, uint32_t m, words *high, words *low)
{
    const pairs both = (pairs){ 0 } + m, even = EVEN_PRODUCT((pairs)c, both), odd = EVEN_PRODUCT((pairs)c >> 32, both);
    *high = (words)(even >> 32 | (odd & ~LOW));
    *low = (words)((even & LOW) | odd << 32);
}

/* PART blocks from `first` on, in lanes: word w of lane l goes to bits[w * LANES + l] */
static inline __attribute__((always_inline)) void philox_part(uint32_t *restrict bits, uint32_t k0, uint32_t k1, uint64_t first,
                                                              uint64_t sample)
{
    static const uint32_t lane[LANES] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    /* no carry: first is a multiple of PART */
    words c0 = *(const words_at *)lane + (uint32_t)first, c1 = (words){ 0 } + (uint32_t)(first >> 32);
    words c2 = (words){ 0 } + (uint32_t)sample, c3 = (words){ 0 } + (uint32_t)(sample >> 32), high0, low0, high1, low1;
    for (int round = 0; round < 10; round++) {
        multiply(c0, 0xD2511F53u, &high0, &low0);
        multiply(c2, 0xCD9E8D57u, &high1, &low1);
        c0 = high1 ^ c1 ^ k0;
        c2 = high0 ^ c3 ^ k1;
        c1 = low1, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    *(words_at *)bits = c0;
    *(words_at *)(bits + LANES) = c1;
    *(words_at *)(bits + 2 * LANES) = c2;
    *(words_at *)(bits + 3 * LANES) = c3;
}

static inline __attribute__((always_inline)) void philox_group(uint32_t *restrict bits, uint32_t k0, uint32_t k1, uint64_t first,
                                                               uint64_t sample)
{
    for (int l = 0; l < LANES; l += PART)
        philox_part(bits + l, k0, k1, first + (uint64_t)l, sample);
}

/* The choice is made by masking the product's bits: compilers make a branch of anything else, and half of its predictions fail. */
#define MASK(T, U, F)                                                                                        \
    static inline T F(choose)(T v, uint32_t bits, uint32_t threshold)                                        \
    {                                                                                                        \
        U u;                                                                                                 \
        memcpy(&u, &v, sizeof u);                                                                            \
        u &= -(U)(bits >= threshold);                                                                        \
        memcpy(&v, &u, sizeof u);                                                                            \
        return v;                                                                                            \
    }                                                                                                        \
                                                                                                             \
    static inline void F(mask)(int n, T *restrict out, const T *restrict x, const uint32_t *restrict bits, uint32_t threshold, T scale, bool add)  \
    {                                                                                                        \
        if (add)                                                                                             \
            _Pragma("omp simd")                                                                              \
            for (int i = 0; i < n; i++)                                                                      \
                out[i] += F(choose)(x[i] * scale, bits[i], threshold);                                       \
        else                                                                                                 \
            _Pragma("omp simd")                                                                              \
            for (int i = 0; i < n; i++)                                                                      \
                out[i] = F(choose)(x[i] * scale, bits[i], threshold);                                        \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
MASK(float, uint32_t, F32)
MASK(double, uint64_t, F64)

void K(dropout)(td_dtype t, int64_t rows, int64_t per, int64_t k, void *out, const void *x, const int64_t *ids, td_draw from, double p, bool add)
{
    if (rows <= 0 || per <= 0)
        return;
    if (from.at)
        from = (td_draw){ (uint64_t)from.at[0], from.at[1], from.at[2], from.at[3], NULL, from.position };
    const td_philox key = td__philox(from.seed, (uint64_t)from.step, (uint64_t)from.call + ((uint64_t)0x64726f70u << 32));
    const double bound = nearbyint(p * 4294967296.0);
    const uint32_t threshold = bound >= 4294967295.0 ? UINT32_MAX : (uint32_t)bound;
    const double scale = 1 / (1 - p);
    const int64_t samples = rows / k, size = k * per, groups = (size + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static) if (rows * per >= TD_PARALLEL)
    for (int64_t i = 0; i < samples * groups; i++) {
        uint32_t bits[GROUP];
        int64_t s = i / groups, g = i % groups, at = s * size + g * GROUP;
        int n = size - g * GROUP < GROUP ? (int)(size - g * GROUP) : GROUP;
        philox_group(bits, key.v[0], key.v[1], (uint64_t)(from.position / GROUP + g) * LANES, (uint64_t)(ids ? ids[s] : from.first + s));
        if (t == TD_F32)
            mask_f32(n, (float *)out + at, (const float *)x + at, bits, threshold, (float)scale, add);
        else
            mask_f64(n, (double *)out + at, (const double *)x + at, bits, threshold, scale, add);
    }
}
