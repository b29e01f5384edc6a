/* tests/tensor/image_kernels.h: what the tests of the image, random and optimizer kernels share: every table that this CPU can run, arrays of
 * either float dtype filled with fixed numbers, and comparison with references in double. Kernels are called through their tables, without tensors.
 */
#ifndef TD_TEST_IMAGE_KERNELS_H
#define TD_TEST_IMAGE_KERNELS_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <omp.h>
#include <base.h>
#include <kernels.h>

/* The tables that this machine can run; ended by NULL. */
static inline const td_kernels *const *tables(void)
{
    static const td_kernels *list[4];
    int n = 0;
    list[n++] = &td__cpu_kernels_baseline;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        list[n++] = &td__cpu_kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        list[n++] = &td__cpu_kernels_avx512;
#endif
    list[n] = NULL;
    return list;
}
#define EACH_TABLE(k) for (const td_kernels *const *at_ = tables(), *k; (k = *at_) != NULL; at_++)

static inline size_t size_of(td_dtype t)
{
    return t == TD_F32 ? sizeof(float) : sizeof(double);
}

/* Exactly n elements from malloc, so that a checker sees what is read or written beyond them. */
static inline void *array(td_dtype t, int64_t n)
{
    void *p = malloc(size_of(t) * (size_t)n + (n == 0));
    assert_non_null(p);
    return p;
}

static inline double get(td_dtype t, const void *p, int64_t i)
{
    return t == TD_F32 ? (double)((const float *)p)[i] : ((const double *)p)[i];
}

static inline void put(td_dtype t, void *p, int64_t i, double v)
{
    if (t == TD_F32)
        ((float *)p)[i] = (float)v;
    else
        ((double *)p)[i] = v;
}

/* multiples of 1/256 in [-1, 1): exact in both dtypes */
static inline void *numbers(td_dtype t, int64_t n, uint32_t seed)
{
    void *p = array(t, n);
    uint32_t s = seed * 2654435761u + 12345u;
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        put(t, p, i, (double)(s >> 23) / 256 - 1);
    }
    return p;
}

static inline void *copy_of(td_dtype t, const void *p, int64_t n)
{
    void *c = array(t, n);
    memcpy(c, p, size_of(t) * (size_t)n);
    return c;
}

/* |got - want| <= bound * eps(t), bound in units of rounding of numbers about 1 */
static inline void same(td_dtype t, const void *got, const double *want, int64_t n, double bound, const char *what, const char *table)
{
    double eps = t == TD_F32 ? 0x1p-23 : 0x1p-52;
    for (int64_t i = 0; i < n; i++) {
        double g = get(t, got, i);
        if (!(fabs(g - want[i]) <= bound * eps * (1 + fabs(want[i]))) && !(isnan(g) && isnan(want[i])))
            fail_msg("%s, %s, %s: element %lld is %.17g, expected %.17g", what, table, t == TD_F32 ? "f32" : "f64", (long long)i, g, want[i]);
    }
}

static inline double *zeroes(int64_t n)
{
    double *p = calloc((size_t)n + 1, sizeof *p);
    assert_non_null(p);
    return p;
}

static inline void nothing_left(void)
{
    assert_int_equal(td_memory().live_bytes, 0);
}
#endif
