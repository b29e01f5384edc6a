/* bench/calibrate.c: is the machine quiet, and what can it do?
 *
 *     calibrate            FMA GFLOP/s of one thread and of two at once, AVX2, over 0.2 s each: for comparing moments of one machine
 *     calibrate peaks      one line of JSON: FMA GFLOP/s with the widest vectors that this processor has, and GB/s of a[i] += b[i] in
 *                          memory (64 MiB arrays, two reads and a write), each of one thread and of two at once: what floors are counted from
 *     calibrate now        CLOCK_MONOTONIC in seconds, for bench/run's start-up times
 */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common.h"

typedef float vec8 __attribute__((vector_size(32)));
typedef float vec16 __attribute__((vector_size(64)));

/* 10 independent chains: enough to fill two FMA pipes of latency 4 */
#define FLOPS(name, vec, lanes, isa)                                                                                                    \
    __attribute__((target(isa))) static double name(double seconds)                                                                     \
    {                                                                                                                                   \
        vec a[10], x = (vec){ 0 } + 1, y = x * 1e-9f;                                                                                   \
        x -= 1e-7f;                                                                                                                     \
        for (int k = 0; k < 10; k++)                                                                                                    \
            a[k] = y * (float)k;                                                                                                        \
        double begin = now(), done = 0;                                                                                                 \
        while (now() - begin < seconds) {                                                                                               \
            for (int i = 0; i < 20000; i++)                                                                                             \
                for (int k = 0; k < 10; k++)                                                                                            \
                    a[k] = a[k] * x + y;                                                                                                \
            done += 20000.0 * 10 * 2 * (lanes);                                                                                         \
        }                                                                                                                               \
        double time = now() - begin;                                                                                                    \
        volatile float sink = 0;                                                                                                        \
        for (int k = 0; k < 10; k++)                                                                                                    \
            sink += a[k][0];                                                                                                            \
        return done / time / 1e9;                                                                                                       \
    }
FLOPS(flops, vec8, 8, "avx2,fma")
FLOPS(flops_wide, vec16, 16, "avx512f")

/* GB/s of all threads together, the best of several passes */
static double bandwidth(int threads)
{
    enum { FLOATS = 16 << 20, PASSES = 6 };
    double best = 0;
    float *a[2], *b[2];
    for (int t = 0; t < threads; t++) {
        a[t] = aligned_alloc(4096, FLOATS * sizeof(float));
        b[t] = aligned_alloc(4096, FLOATS * sizeof(float));
        if (!a[t] || !b[t])
            return 0;
        memset(a[t], 0, FLOATS * sizeof(float));
        memset(b[t], 0, FLOATS * sizeof(float));
    }
    for (int pass = 0; pass < PASSES; pass++) {
        double begin = now();
#pragma omp parallel for num_threads(threads)
        for (int t = 0; t < threads; t++)
            for (int i = 0; i < FLOATS; i++)
                a[t][i] += b[t][i];
        double rate = threads * 12.0 * FLOATS / (now() - begin) / 1e9;
        best = rate > best ? rate : best;
    }
    for (int t = 0; t < threads; t++) {
        free(a[t]);
        free(b[t]);
    }
    return best;
}

static double two_at_once(double (*one)(double))
{
    double sum = 0;
#pragma omp parallel num_threads(2) reduction(+ : sum)
    sum += one(0.2);
    return sum;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "now"))
        return printf("%.6f\n", now()) < 0;
    if (argc > 1 && !strcmp(argv[1], "peaks")) {
        double (*widest)(double) = __builtin_cpu_supports("avx512f") ? flops_wide : flops;
        double one = widest(0.2), two = two_at_once(widest);
        return printf("{\"fma\": [%.1f, %.1f], \"bandwidth\": [%.1f, %.1f]}\n", one, two, bandwidth(1), bandwidth(2)) < 0;
    }
    double one = flops(0.2);
    printf("FMA %.0f GFLOP/s on one thread, %.0f on two\n", one, two_at_once(flops));
    return 0;
}
