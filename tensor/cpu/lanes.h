/* tensor/cpu/lanes.h: sums of a row in double, in 16 lanes: element i goes to lane i % 16, lanes are added pairwise at the end. The order depends
 * on the row's length alone: not on its address, the instruction set or the number of threads.
 */
#ifndef TD_LANES_H
#define TD_LANES_H
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { TD_LANES = 16 };

/* The lanes as vectors of the instruction set, for loops that keep several sums at once, which compilers leave in memory. TD_WIDES of them hold all lanes. */
#if defined(__AVX512F__)
enum { TD_WIDE = 8 };
#elif defined(__AVX2__)
enum { TD_WIDE = 4 };
#else
enum { TD_WIDE = 2 };
#endif
enum { TD_WIDES = TD_LANES / TD_WIDE };
typedef double td__wide __attribute__((vector_size(8 * TD_WIDE)));
typedef float td__narrow_f32 __attribute__((vector_size(4 * TD_WIDE)));        /* as many elements of either type                         */
typedef td__wide td__narrow_f64;
#define TD_EACH_WIDE(p) _Pragma("GCC unroll 8") for (int p = 0; p < TD_WIDES; p++)

static inline td__narrow_f32 td__load_f32(const float *x)
{
    td__narrow_f32 v;
    memcpy(&v, x, sizeof v);
    return v;
}

static inline td__wide td__load_f64(const double *x)
{
    td__wide v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* One instruction; compilers make several of the vector type's conversion, hence the intrinsics. */
static inline td__wide td__widen_f32(td__narrow_f32 v)
{
#if defined(__AVX512F__)
    return (td__wide)_mm512_cvtps_pd((__m256)v);
#elif defined(__AVX2__)
    return (td__wide)_mm256_cvtps_pd((__m128)v);
#else
    return __builtin_convertvector(v, td__wide);
#endif
}

/* lane[j] += x[j]. With AVX-512 all of x is loaded at once: what has just been stored as one vector is slow to load by halves. */
static inline void td__lanes_add_f32(td__wide *lane, const float *x)
{
#if defined(__AVX512F__)
    const __m512 v = _mm512_loadu_ps(x);
    lane[0] += (td__wide)_mm512_cvtps_pd(_mm512_castps512_ps256(v));
    lane[1] += (td__wide)_mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
#else
    TD_EACH_WIDE(p) lane[p] += td__widen_f32(td__load_f32(x + p * TD_WIDE));
#endif
}

static inline void td__lanes_add_f64(td__wide *lane, const double *x)
{
    TD_EACH_WIDE(p) lane[p] += td__load_f64(x + p * TD_WIDE);
}

static inline td__wide td__widen_f64(td__wide v)
{
    return v;
}

static inline double td__lanes_total(const double *lane)
{
    double eight[8], four[4];
    for (int j = 0; j < 8; j++)
        eight[j] = lane[j] + lane[j + 8];
    for (int j = 0; j < 4; j++)
        four[j] = eight[j] + eight[j + 4];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* result = sum over 0 <= i < n of TERM, a double made of i */
#define TD_LANES_SUM(result, n, TERM)                                                                        \
    do {                                                                                                     \
        double lane_[TD_LANES] = { 0 };                                                                      \
        int64_t first_ = 0;                                                                                  \
        for (; first_ + TD_LANES <= (n); first_ += TD_LANES) {                                               \
            _Pragma("omp simd") for (int j_ = 0; j_ < TD_LANES; j_++)                                        \
            {                                                                                                \
                const int64_t i = first_ + j_;                                                               \
                lane_[j_] += (TERM);                                                                         \
            }                                                                                                \
        }                                                                                                    \
        for (int j_ = 0; first_ + j_ < (n); j_++) {                                                          \
            const int64_t i = first_ + j_;                                                                   \
            lane_[j_] += (TERM);                                                                             \
        }                                                                                                    \
        (result) = td__lanes_total(lane_);                                                                   \
    } while (0)

/* result = the largest of x[0 .. n), n > 0, in 32 lanes. A NaN may be passed over: for rows whose exponentials are summed afterwards, where it shows. */
#define TD_LANES_MOST(T, result, n, x)                                                                       \
    do {                                                                                                     \
        enum { MOST_LANES = 32 };                                                                            \
        T most_[MOST_LANES];                                                                                 \
        int64_t first_ = 0;                                                                                  \
        for (int j_ = 0; j_ < MOST_LANES; j_++)                                                              \
            most_[j_] = (x)[0];                                                                              \
        for (; first_ + MOST_LANES <= (n); first_ += MOST_LANES) {                                           \
            _Pragma("omp simd") for (int j_ = 0; j_ < MOST_LANES; j_++)                                      \
                most_[j_] = (x)[first_ + j_] > most_[j_] ? (x)[first_ + j_] : most_[j_];                     \
        }                                                                                                    \
        for (int j_ = 0; first_ + j_ < (n); j_++)                                                            \
            most_[j_] = (x)[first_ + j_] > most_[j_] ? (x)[first_ + j_] : most_[j_];                         \
        for (int step_ = MOST_LANES / 2; step_ > 0; step_ /= 2)                                              \
            for (int j_ = 0; j_ < step_; j_++)                                                               \
                most_[j_] = most_[j_ + step_] > most_[j_] ? most_[j_ + step_] : most_[j_];                   \
        (result) = most_[0];                                                                                 \
    } while (0)

#endif
