/* tensor/cpu/exp_sum.h: exponentials of a row below its maximum and their sum: what softmax, log-softmax and cross-entropy share.
 *
 * The exponentials are vecmath.h's; the sum is in double, in the 16 lanes of lanes.h, and depends on the row's length alone.
 */
#ifndef TD_EXP_SUM_H
#define TD_EXP_SUM_H
#include "lanes.h"
#include "vecmath.h"

enum { TD_EXP_BLOCK = 256 };                   /* elements between two passes: a multiple of TD_LANES, well within the first cache */

/* y[i] = exp(x[i] - most), their sum is returned; y may be NULL: only the sum is wanted; or x. Differences, exponentials and sum are loops of their own
 * over a block: around the routine's calls no register lives on, and sums that wait in memory cost more than reading the block again. */
#define TD_EXP_SUM(T, name)                                                                                  \
    __attribute__((unused)) static double td__exp_sum_##name(int64_t n, T *y, const T *x, T most)            \
    {                                                                                                        \
        td__wide lane[TD_WIDES] = { { 0 } };                                                                 \
        T block[TD_EXP_BLOCK], rest[TD_LANES] = { 0 };                                                       \
        for (int64_t begin = 0; begin < n; begin += TD_EXP_BLOCK) {                                          \
            const int64_t m = n - begin < TD_EXP_BLOCK ? n - begin : TD_EXP_BLOCK, whole = m & ~(int64_t)(TD_LANES - 1); \
            T *into = y ? y + begin : block;                                                                 \
            _Pragma("omp simd") for (int64_t i = 0; i < m; i++)                                              \
                into[i] = x[begin + i] - most;                                                               \
            td__vexp_##name(m, into, into);                                                                  \
            for (int64_t i = 0; i < whole; i += TD_LANES)                                                    \
                td__lanes_add_##name(lane, into + i);                                                        \
            if (whole < m) {                                                                                 \
                memcpy(rest, into + whole, (size_t)(m - whole) * sizeof *rest);                              \
                td__lanes_add_##name(lane, rest);                                                            \
            }                                                                                                \
        }                                                                                                    \
        double total[TD_LANES];                                                                              \
        memcpy(total, lane, sizeof total);                                                                   \
        return td__lanes_total(total);                                                                       \
    }
TD_EXP_SUM(float, f32)
TD_EXP_SUM(double, f64)
#endif
