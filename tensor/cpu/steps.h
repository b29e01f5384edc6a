/* tensor/cpu/steps.h: a rule over a flat run of elements, block by block. Internal to tensor/cpu/optimizer*.c.
 *
 * f32 and f64 are stepped where they lie. 16 bits go through blocks of f32: gradients are widened, the master copy (or, without one or
 * where it does not round to the parameter, the widened parameter) is stepped, and the parameter is its rounding. Blocks are the same for any number of threads.
 */
#ifndef TD_CPU_STEPS_H
#define TD_CPU_STEPS_H
#include "cpu.h"

static inline void widen(td_dtype t, int64_t n, float *to, const void *from)
{
    const td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 } } };
    K(copy)(&l, TD_F32, to, t, from, false);
}

static inline void narrow(td_dtype t, int64_t n, void *to, const float *from)
{
    const td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 } } };
    K(copy)(&l, t, to, TD_F32, from, false);
}

/* The master where it rounds to the parameter, else the parameter, which was written to since. `into` may be the master. */
static inline void renew(td_dtype t, int64_t n, float *into, const float *master, const uint16_t *low)
{
    uint16_t rounded[TD_BLOCK];
    float again[TD_BLOCK], wide[TD_BLOCK];
    narrow(t, n, rounded, master);
    widen(t, n, again, rounded);
    widen(t, n, wide, low);
    for (int64_t i = 0; i < n; i++)
        into[i] = again[i] == wide[i] ? master[i] : wide[i];
}

/* Must nothing be written? NaN stops as well. */
static inline bool stopped(const td_step *s)
{
    return s->stop && *s->stop != 0;
}

static inline bool half(td_dtype t)
{
    return t == TD_F16 || t == TD_BF16;
}

/* Runs the statement over blocks of TD_BLOCK, in threads when there are many: b is where the block begins, count its length. */
#define BLOCKS(n, ...)                                                                                       \
    _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")                                       \
    for (int64_t b = 0; b < n; b += TD_BLOCK) {                                                              \
        const int64_t count = n - b < TD_BLOCK ? n - b : TD_BLOCK;                                           \
        __VA_ARGS__;                                                                                         \
    }

/* The same for 16 bits: p and g are blocks of f32 by the names `pb` and `gb`. */
#define HALF_BLOCKS(t, n, s, ...)                                                                            \
    BLOCKS(n, {                                                                                              \
        float wide[TD_BLOCK], gb[TD_BLOCK], *pb = s->master ? (float *)s->master + b : wide;                 \
        uint16_t *low = (uint16_t *)s->p + b;                                                                \
        widen(t, count, gb, (const uint16_t *)s->g + b);                                                     \
        if (s->master)                                                                                       \
            renew(t, count, pb, pb, low);                                                                    \
        else                                                                                                 \
            widen(t, count, wide, low);                                                                      \
        __VA_ARGS__;                                                                                         \
        narrow(t, count, low, pb);                                                                           \
    })

/* F(name_block)(count, p, g, …state at b…, coefficients) for all three kinds: `state32`, `state64` are the state's arguments in f32 and f64. */
#define STEP(t, n, s, rule, c32, c64, STATE)                                                                 \
    do {                                                                                                     \
        if (stopped(s))                                                                                      \
            return;                                                                                          \
        if (t == TD_F64) {                                                                                   \
            const coef_f64 c = c64;                                                                          \
            BLOCKS(n, rule##_f64(count, (double *)s->p + b, (const double *)s->g + b, STATE(double) c))       \
        } else if (t == TD_F32) {                                                                            \
            const coef_f32 c = c32;                                                                          \
            BLOCKS(n, rule##_f32(count, (float *)s->p + b, (const float *)s->g + b, STATE(float) c))          \
        } else {                                                                                             \
            const coef_f32 c = c32;                                                                          \
            HALF_BLOCKS(t, n, s, rule##_f32(count, pb, gb, STATE(float) c))                                   \
        }                                                                                                    \
    } while (0)
/* An array of state from the block on; NULL stays. */
#define AT(T, x) ((x) ? (T *)(x) + b : NULL)
#endif
