/* tensor/cpu/lanes.h: sums of a row in double, in 16 lanes: element i goes to lane i % 16, lanes are added pairwise at the end. The order depends
 * on the row's length alone: not on its address, the instruction set or the number of threads.
 */
#ifndef TD_LANES_H
#define TD_LANES_H
#include <stdint.h>

enum { TD_LANES = 16 };

static inline double td__lanes_total(double *lane)
{
    for (int step = TD_LANES / 2; step > 0; step /= 2)
        for (int j = 0; j < step; j++)
            lane[j] += lane[j + step];
    return lane[0];
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
