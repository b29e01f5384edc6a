/* tensor/cpu/exp_sum.h: exponentials of a row below its maximum and their sum, in one pass: what softmax, log-softmax and cross-entropy share.
 *
 * The exponentials are vecmath.h's; the sum is in double, in the 16 lanes of lanes.h, and depends on the row's length alone.
 */
#ifndef TD_EXP_SUM_H
#define TD_EXP_SUM_H
#include "lanes.h"
#include "vecmath.h"

/* y[i] = exp(x[i] - most), their sum is returned; y may be NULL: only the sum is wanted; or x. */
#define TD_EXP_SUM(T, name, GROUP)                                                                           \
    static inline __attribute__((always_inline)) void td__exp_lanes_##name(T *block, const T *x, T most)     \
    {                                                                                                        \
        _Pragma("omp simd") for (int j = 0; j < TD_LANES; j++)                                               \
            block[j] = x[j] - most;                                                                          \
        for (int i = 0; i < TD_LANES; i += GROUP)                                                            \
            td__exp_##name##_group(block + i, block + i);                                                    \
    }                                                                                                        \
    __attribute__((unused)) static double td__exp_sum_##name(int64_t n, T *y, const T *x, T most)            \
    {                                                                                                        \
        td__wide lane[TD_WIDES] = { { 0 } };                                                                 \
        T block[TD_LANES];                                                                                   \
        int64_t i = 0;                                                                                       \
        for (; i + TD_LANES <= n; i += TD_LANES) {                                                           \
            T *into = y ? y + i : block;                                                                     \
            td__exp_lanes_##name(into, x + i, most);                                                         \
            td__lanes_add_##name(lane, into);                                                                \
        }                                                                                                    \
        if (i < n) {                                                                                         \
            const int rest = (int)(n - i);                                                                   \
            for (int j = 0; j < TD_LANES; j++)                                                               \
                block[j] = j < rest ? x[i + j] : most;                                                       \
            td__exp_lanes_##name(block, block, most);                                                        \
            for (int j = rest; j < TD_LANES; j++)                                                            \
                block[j] = 0;                                                                                \
            td__lanes_add_##name(lane, block);                                                               \
            if (y)                                                                                           \
                memcpy(y + i, block, (size_t)rest * sizeof *y);                                              \
        }                                                                                                    \
        double total[TD_LANES];                                                                              \
        memcpy(total, lane, sizeof total);                                                                   \
        return td__lanes_total(total);                                                                       \
    }
TD_EXP_SUM(float, f32, TD_GROUP_F32)
TD_EXP_SUM(double, f64, TD_GROUP_F64)
#endif
