/* tensor/cpu/parts.h: how losses cut their sums: at most 256 parts whose borders depend on the size alone, added in order, so that the bits
 * do not depend on the number of threads.
 */
#ifndef TD_PARTS_H
#define TD_PARTS_H
#include <math.h>
#include <stdint.h>

enum { PARTS = 256 };

static inline int64_t part_size(int64_t n, int64_t unit)      /* so that at most PARTS of them cover n, in multiples of unit       */
{
    int64_t size = (n + PARTS - 1) / PARTS;
    size = (size + unit - 1) / unit * unit;
    return size > 0 ? size : unit;
}

/* The sums of the parts over n; NaN without elements. */
static inline double parts_mean(int64_t parts, const double *sum, int64_t n)
{
    double total = sum[0];
    for (int64_t p = 1; p < parts; p++)
        total += sum[p];
    return n > 0 ? total / (double)n : (double)NAN;
}

/* How many rows the parts have kept; *bad: the first row with a target that is no class, or -1. */
static inline int64_t parts_kept(int64_t parts, const int64_t *count, const int64_t *first_bad, int64_t *bad)
{
    int64_t kept = 0;
    *bad = -1;
    for (int64_t p = 0; p < parts; p++) {
        kept += count[p];
        if (*bad < 0)
            *bad = first_bad[p];
    }
    return kept;
}

#endif
