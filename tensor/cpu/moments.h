/* tensor/cpu/moments.h: means and sums of squared deviations from them, in double, in the 16 lanes of lanes.h.
 *
 * Sums are of x - s and (x - s)^2 with s near the values: sum (x-mean)^2 = sum (x-s)^2 - (sum (x-s))^2/n. As s lies among the values, the difference loses no
 * more than log2(n) bits. In f32 that is nothing beside what double has left, and one pass over x is enough; in f64 a first pass finds s = the mean.
 */
#ifndef TD_MOMENTS_H
#define TD_MOMENTS_H
#include <math.h>
#include "lanes.h"

/* near: the mean of the first few of n > 0 values, or 0 where that is not finite. add: lane[0..16) += x - shift, lane[16..32) += (x - shift)^2.
 * end: from those of n values their mean and the sum of squared deviations. moments: of a row, all at once. */
#define TD_MOMENTS(T, name)                                                                                  \
    static inline double td__near_##name(int64_t n, const T *x)                                              \
    {                                                                                                        \
        double lane[TD_LANES] = { 0 }, mean;                                                                 \
        if (n >= TD_LANES) {                                                                                 \
            TD_EACH_WIDE(p) {                                                                                \
                const td__wide v = td__widen_##name(td__load_##name(x + p * TD_WIDE));                       \
                memcpy(lane + p * TD_WIDE, &v, sizeof v);                                                    \
            }                                                                                                \
            mean = td__lanes_total(lane) / TD_LANES;                                                         \
        } else {                                                                                             \
            for (int64_t i = 0; i < n; i++)                                                                  \
                lane[i] = (double)x[i];                                                                      \
            mean = td__lanes_total(lane) / (double)n;                                                        \
        }                                                                                                    \
        return isfinite(mean) ? mean : 0;                                                                    \
    }                                                                                                        \
    static inline void td__moments_add_##name(int64_t n, const T *x, double shift, double *lane)             \
    {                                                                                                        \
        td__wide one[TD_WIDES], two[TD_WIDES];                                                               \
        memcpy(one, lane, sizeof one);                                                                       \
        memcpy(two, lane + TD_LANES, sizeof two);                                                            \
        int64_t i = 0;                                                                                       \
        for (; i + TD_LANES <= n; i += TD_LANES)                                                             \
            TD_EACH_WIDE(p) {                                                                                \
                const td__wide v = td__widen_##name(td__load_##name(x + i + p * TD_WIDE)) - shift;           \
                one[p] += v;                                                                                 \
                two[p] += v * v;                                                                             \
            }                                                                                                \
        memcpy(lane, one, sizeof one);                                                                       \
        memcpy(lane + TD_LANES, two, sizeof two);                                                            \
        for (int j = 0; i + j < n; j++) {                                                                    \
            const double v = (double)x[i + j] - shift;                                                       \
            lane[j] += v;                                                                                    \
            lane[TD_LANES + j] += v * v;                                                                     \
        }                                                                                                    \
    }                                                                                                        \
    static inline void td__moments_end_##name(int64_t n, double shift, const double *lane, double *mean, double *square)  \
    {                                                                                                        \
        const double sum = td__lanes_total(lane), part = sum / (double)n, all = td__lanes_total(lane + TD_LANES) - sum * part;  \
        *mean = shift + part;                                                                                \
        *square = all < 0 ? 0 : all;                                                                         \
    }                                                                                                        \
    static inline void td__moments_##name(int64_t n, const T *x, double *mean, double *square)               \
    {                                                                                                        \
        *mean = td__near_##name(n, x);                                                                       \
        for (int pass = sizeof(T) == sizeof(float); pass < 2; pass++) {                                      \
            double lane[2 * TD_LANES] = { 0 };                                                               \
            td__moments_add_##name(n, x, *mean, lane);                                                       \
            td__moments_end_##name(n, *mean, lane, mean, square);                                            \
        }                                                                                                    \
    }
TD_MOMENTS(float, f32)
TD_MOMENTS(double, f64)
#endif
