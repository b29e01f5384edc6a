/* tensor/cpu/adaptive_pool2d_equal.h: the widths of vectors on which equal windows are taken (adaptive_pool2d_vectors.h), and their means, which are of
 * doubles whatever the elements are.
 *
 * EQUAL_f32(s, name), EQUAL_f64(s, name): max, max_grad or avg_grad of one plane on the widest vectors that fit, or NULL; equal_avg_f32, equal_avg_f64: where
 * equal_f64_fits.
 */
#ifndef TD_ADAPTIVE_POOL2D_EQUAL_H
#define TD_ADAPTIVE_POOL2D_EQUAL_H
#include "cpu.h"
#include "lanes.h"

#define ALWAYS __attribute__((always_inline)) static inline

#define T double
#define I int64_t
#define E(name) equal_f64_##name
#if defined(__AVX512F__)
#define L 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define IOTA 0, 1, 2, 3, 4, 5, 6, 7
#elif defined(__AVX2__)
#define L 4
#define EVEN 0, 2, 4, 6
#define IOTA 0, 1, 2, 3
#else
#define L 2
#define EVEN 0, 2
#define IOTA 0, 1
#endif
#include "adaptive_pool2d_vectors.h"
#undef T
#undef I
#undef E
#undef L
#undef EVEN
#undef IOTA
#define T float
#define I int32_t
#define L 4
#define E(name) equal4_##name
#define EVEN 0, 2, 4, 6
#define IOTA 0, 1, 2, 3
#include "adaptive_pool2d_vectors.h"
#undef E
#undef L
#undef EVEN
#undef IOTA
#ifdef __AVX2__
#define L 8
#define E(name) equal8_##name
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define IOTA 0, 1, 2, 3, 4, 5, 6, 7
#include "adaptive_pool2d_vectors.h"
#undef E
#undef L
#undef EVEN
#undef IOTA
#endif
#ifdef __AVX512F__
#define L 16
#define E(name) equal16_##name
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define IOTA 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#include "adaptive_pool2d_vectors.h"
#undef E
#undef L
#undef EVEN
#undef IOTA
#endif
#undef T
#undef I

#ifdef __AVX512F__
#define IF_16(s, name) equal16_fits(s) ? equal16_##name :
#else
#define IF_16(s, name)
#endif
#ifdef __AVX2__
#define IF_8(s, name) equal8_fits(s) ? equal8_##name :
#else
#define IF_8(s, name)
#endif
#define EQUAL_f32(s, name) (IF_16(s, name) IF_8(s, name) equal4_fits(s) ? equal4_##name : NULL)
#define EQUAL_f64(s, name) (equal_f64_fits(s) ? equal_f64_##name : NULL)

/* What four vectors of columns have at places 0, 1, 2 and 3 of every four */
ALWAYS void by_fours(const td__wide *column, td__wide *of)
{
    const td__wide even[2] = { equal_f64_even(column[0], column[1]), equal_f64_even(column[2], column[3]) };
    const td__wide odd[2] = { equal_f64_odd(column[0], column[1]), equal_f64_odd(column[2], column[3]) };
    of[0] = equal_f64_even(even[0], even[1]);
    of[1] = equal_f64_even(odd[0], odd[1]);
    of[2] = equal_f64_odd(even[0], even[1]);
    of[3] = equal_f64_odd(odd[0], odd[1]);
}

/* The sums of windows kw columns wide, from left to right */
ALWAYS td__wide window_sums(int kw, const td__wide *column)
{
    if (kw == 1)
        return column[0];
    if (kw == 2)
        return equal_f64_even(column[0], column[1]) + equal_f64_odd(column[0], column[1]);
    td__wide of[4], other[4], half[8];
    if (kw == 4) {
        by_fours(column, of);
        return of[0] + of[1] + of[2] + of[3];
    }
    for (int i = 0; i < 4; i++) {
        half[i] = equal_f64_even(column[2 * i], column[2 * i + 1]);
        half[4 + i] = equal_f64_odd(column[2 * i], column[2 * i + 1]);
    }
    by_fours(half, of);
    by_fours(half + 4, other);
    return of[0] + other[0] + of[1] + other[1] + of[2] + other[2] + of[3] + other[3];
}

/* As adaptive_pool2d_vectors.h, in vectors of doubles, from either type */
#define EQUAL_AVG(T, name)                                                                                   \
    ALWAYS void equal_avg_of_##name(const td_conv2d_shape *s, int kw, T *y, const T *x)                      \
    {                                                                                                        \
        const int64_t w = s->w, lines = s->h / s->oh, out = s->oh * s->ow;                                   \
        const double count = (double)(lines * kw);                                                           \
        for (int64_t o = 0, here = 0, left = 0; o < out; o += TD_WIDE) {                                     \
            td__wide column[8];                                                                              \
            _Pragma("GCC unroll 8")                                                                          \
            for (int p = 0; p < kw; p++) {                                                                   \
                td__wide sum = { 0 };                                                                        \
                for (int64_t h = 0; h < lines; h++)                                                          \
                    sum += td__widen_##name(td__load_##name(x + here + h * w));                              \
                column[p] = sum;                                                                             \
                here += TD_WIDE, left += TD_WIDE;                                                            \
                if (left == w)                                                                               \
                    left = 0, here += (lines - 1) * w;                                                       \
            }                                                                                                \
            const td__narrow_##name mean = __builtin_convertvector(window_sums(kw, column) / count, td__narrow_##name);  \
            memcpy(y + o, &mean, sizeof mean);                                                               \
        }                                                                                                    \
    }                                                                                                        \
    static void equal_avg_##name(const td_conv2d_shape *s, T *y, const T *x)                                 \
    {                                                                                                        \
        switch (s->w / s->ow) {                                                                              \
        case 1: equal_avg_of_##name(s, 1, y, x); break;                                                      \
        case 2: equal_avg_of_##name(s, 2, y, x); break;                                                      \
        case 4: equal_avg_of_##name(s, 4, y, x); break;                                                      \
        default: equal_avg_of_##name(s, 8, y, x);                                                            \
        }                                                                                                    \
    }
EQUAL_AVG(float, f32)
EQUAL_AVG(double, f64)
#endif
