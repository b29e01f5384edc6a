/* bench/common.h: the clock and the median that the programs of bench/ measure with. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H
#include <stdlib.h>
#include <time.h>

/* s, of CLOCK_MONOTONIC */
static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the values; of none it is 0. */
static inline double median(double *values, int n)
{
    if (n == 0)
        return 0;
    qsort(values, (size_t)n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

#endif
