/* bench/calibrate.c: is the machine quiet? FMA GFLOP/s of one thread and of two at once, over 0.2 s each.
 * `calibrate now` prints CLOCK_MONOTONIC in seconds instead, for bench/run's start-up times.
 */
#include <omp.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef float vec8 __attribute__((vector_size(32)));

/* 10 independent chains of 8 lanes: enough to fill two FMA pipes of latency 4 */
__attribute__((target("avx2,fma"))) static double flops(double seconds)
{
    vec8 a[10], x = { 1, 1, 1, 1, 1, 1, 1, 1 }, y = x * 1e-9f;
    x -= 1e-7f;
    for (int k = 0; k < 10; k++)
        a[k] = y * (float)k;
    double begin = now(), done = 0;
    while (now() - begin < seconds) {
        for (int i = 0; i < 20000; i++)
            for (int k = 0; k < 10; k++)
                a[k] = a[k] * x + y;
        done += 20000.0 * 10 * 16;
    }
    double time = now() - begin;
    volatile float sink = 0;
    for (int k = 0; k < 10; k++)
        sink += a[k][0];
    return done / time / 1e9;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "now"))
        return printf("%.6f\n", now()) < 0;
    double one = flops(0.2), two = 0;
#pragma omp parallel num_threads(2) reduction(+ : two)
    two += flops(0.2);
    printf("FMA %.0f GFLOP/s on one thread, %.0f on two\n", one, two);
    return 0;
}
