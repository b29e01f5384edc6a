/* base/clock.c: the one clock of the library, and the one of the world.
 *
 * CLOCK_MONOTONIC: never set back, and the same for all processes of a host, so that times written into black boxes and
 * traces by different ranks can be compared.
 */
#include "base.h"
#include <time.h>

int64_t td__now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t td__wall_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

double td__now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
