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
#include "stream.h"
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
enum { LANES = 16, GROUP = 64, PART = BYTES / 4, ROUNDS = 10, RUN = 16 };     /* RUN: groups of a piece that is streamed                   */
typedef uint32_t words_at __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef uint64_t pairs __attribute__((vector_size(BYTES)));

/* Every round's key, in each lane. */
typedef struct { pairs k0[ROUNDS], k1[ROUNDS]; } schedule;

static void schedule_keys(schedule *s, td_philox key)
{
    uint32_t k0 = key.v[0], k1 = key.v[1];
    for (int round = 0; round < ROUNDS; round++) {
        s->k0[round] = (pairs){ 0 } + k0;
        s->k1[round] = (pairs){ 0 } + k1;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
}

/* The even or the odd of PART counters, each in the low half of 64 bits. What the high halves hold is not looked at: a product takes low halves alone, so its
 * high half need not be cleared before it is the next round's word. */
typedef struct { pairs c0, c1, c2, c3; } counters;

static inline __attribute__((always_inline)) void philox_round(counters *c, const schedule *s, int round)
{
    const pairs p0 = EVEN_PRODUCT(c->c0, (pairs){ 0 } + 0xD2511F53u), p1 = EVEN_PRODUCT(c->c2, (pairs){ 0 } + 0xCD9E8D57u);
    c->c0 = p1 >> 32 ^ c->c1 ^ s->k0[round];
    c->c2 = p0 >> 32 ^ c->c3 ^ s->k1[round];
    c->c1 = p1, c->c3 = p0;
}

static inline __attribute__((always_inline)) void put_words(uint32_t *bits, pairs even, pairs odd)
{
    *(words_at *)bits = (words_at)((even & LOW) | odd << 32);
}

/* SETS: parts that are computed side by side, for a round waits for the last one's product; as many as registers hold. */
#if defined(__AVX512F__)
enum { SETS = 2 };
#else
enum { SETS = 1 };
#endif

/* groups * LANES blocks from `first` on, in lanes: word w of lane l of group g goes to bits[g * GROUP + w * LANES + l]. Within a group there is no carry: first is
 * a multiple of LANES. */
static inline __attribute__((always_inline)) void philox_groups(const int groups, uint32_t *restrict bits, const schedule *s, uint64_t first, uint64_t sample)
{
    static const uint64_t twice[] = { 0, 2, 4, 6, 8, 10, 12, 14 };
    pairs lane;
    memcpy(&lane, twice, sizeof lane);
    for (int part = 0; part < groups * LANES / PART; part += SETS) {
        counters even[SETS], odd[SETS];
        const int sets = groups * LANES / PART < SETS ? groups * LANES / PART : SETS;
#pragma GCC unroll 2
        for (int k = 0; k < sets; k++) {
            const uint64_t at = first + (uint64_t)((part + k) * PART);
            even[k].c0 = lane + (uint32_t)at, odd[k].c0 = even[k].c0 + 1;
            even[k].c1 = odd[k].c1 = (pairs){ 0 } + (uint32_t)(at >> 32);
            even[k].c2 = odd[k].c2 = (pairs){ 0 } + (uint32_t)sample;
            even[k].c3 = odd[k].c3 = (pairs){ 0 } + (uint32_t)(sample >> 32);
        }
#pragma GCC unroll 10
        for (int round = 0; round < ROUNDS; round++)
#pragma GCC unroll 2
            for (int k = 0; k < sets; k++) {
                philox_round(&even[k], s, round);
                philox_round(&odd[k], s, round);
            }
#pragma GCC unroll 2
        for (int k = 0; k < sets; k++) {
            uint32_t *to = bits + (part + k) * PART / LANES * GROUP + (part + k) * PART % LANES;
            put_words(to, even[k].c0, odd[k].c0);
            put_words(to + LANES, even[k].c1, odd[k].c1);
            put_words(to + 2 * LANES, even[k].c2, odd[k].c2);
            put_words(to + 3 * LANES, even[k].c3, odd[k].c3);
        }
    }
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
    static inline __attribute__((always_inline)) void F(mask)(int n, T *out, const T *x, const uint32_t *restrict bits, uint32_t threshold, T scale, bool add)  \
    {                                                                                                        \
        if (add)                                                                                             \
            _Pragma("omp simd")                                                                              \
            for (int i = 0; i < n; i++)                                                                      \
                out[i] += F(choose)(x[i] * scale, bits[i], threshold);                                       \
        else                                                                                                 \
            _Pragma("omp simd")                                                                              \
            for (int i = 0; i < n; i++)                                                                      \
                out[i] = F(choose)(x[i] * scale, bits[i], threshold);                                        \
    }                                                                                                        \
                                                                                                             \
    /* n neighbours of one sample, the first with the block `first` */                                       \
    static void F(piece)(int64_t n, T *out, const T *x, const schedule *keys, uint64_t first, uint64_t sample, uint32_t threshold, T scale, bool add)  \
    {                                                                                                        \
        uint32_t bits[2 * GROUP];                                                                            \
        for (; n > GROUP; n -= 2 * GROUP, out += 2 * GROUP, x += 2 * GROUP, first += 2 * LANES) {            \
            td__ask(x + RUN * GROUP, 2 * GROUP * sizeof(T));                                                 \
            philox_groups(2, bits, keys, first, sample);                                                     \
            if (n >= 2 * GROUP)                                                                              \
                F(mask)(2 * GROUP, out, x, bits, threshold, scale, add);                                     \
            else                                                                                             \
                F(mask)((int)n, out, x, bits, threshold, scale, add);                                        \
        }                                                                                                    \
        if (n > 0) {                                                                                         \
            philox_groups(1, bits, keys, first, sample);                                                     \
            F(mask)((int)n, out, x, bits, threshold, scale, add);                                            \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(streamed_piece)(int64_t n, T *out, const T *x, const schedule *keys, uint64_t first, uint64_t sample, uint32_t threshold, T scale)  \
    {                                                                                                        \
        T room[RUN * GROUP];                                                                                 \
        F(piece)(n, room, x, keys, first, sample, threshold, scale, false);                                  \
        td__stream(out, room, (size_t)n * sizeof(T));                                                        \
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
    const int64_t size = k * per, pieces = (size + RUN * GROUP - 1) / (RUN * GROUP);            /* of a sample                             */
    const bool streamed = !add && out != x && rows * per * (int64_t)(t == TD_F32 ? sizeof(float) : sizeof(double)) >= TD_STREAM_BYTES;
    schedule keys;
    schedule_keys(&keys, key);
#pragma omp parallel for schedule(static) if (rows * per >= TD_PARALLEL)
    for (int64_t i = 0; i < rows / k * pieces; i++) {
        const int64_t s = i / pieces, from_here = i % pieces * (RUN * GROUP), at = s * size + from_here;
        const int64_t n = size - from_here < RUN * GROUP ? size - from_here : RUN * GROUP;
        const uint64_t first = (uint64_t)(from.position / GROUP + from_here / GROUP) * LANES, sample = (uint64_t)(ids ? ids[s] : from.first + s);
        if (t == TD_F32 && streamed)
            streamed_piece_f32(n, (float *)out + at, (const float *)x + at, &keys, first, sample, threshold, (float)scale);
        else if (t == TD_F32)
            piece_f32(n, (float *)out + at, (const float *)x + at, &keys, first, sample, threshold, (float)scale, add);
        else if (streamed)
            streamed_piece_f64(n, (double *)out + at, (const double *)x + at, &keys, first, sample, threshold, scale);
        else
            piece_f64(n, (double *)out + at, (const double *)x + at, &keys, first, sample, threshold, scale, add);
        if (streamed)
            td__stream_end();
    }
}
