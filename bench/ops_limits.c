/* bench/ops_limits.c: the limits that bench/ops divides by. Each does what an operation must do at least, and nothing else, on memory of its own:
 * reading and writing so many bytes, calling a vector routine so often, OpenBLAS's sgemm, multiply-adds in registers.
 *
 * Threads: as many as OpenMP gives, where the library would use several, too (more than 32768 elements); else one.
 */
#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "common.h"
#include "ops.h"

/* ---- memory ------------------------------------------------------------------------------------------------------------------- */

static char *source, *target;
static size_t room;
static volatile float sink;

void ops_limits_open(size_t bytes)
{
    room = bytes;
    source = aligned_alloc(4096, bytes);
    target = aligned_alloc(4096, bytes);
    if (!source || !target) {
        fprintf(stderr, "ops: no memory for two buffers of %zu bytes\n", bytes);
        exit(1);
    }
    float *x = (float *)source;
    for (size_t i = 0; i < bytes / sizeof *x; i++)
        x[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
    memset(target, 0, bytes);
}

/* Blocks of `rb` bytes read and `wb` written in turn, as an element-wise loop does in small. Sizes are multiples of 256. `around`: stores that
 * pass the caches. */
typedef void mover(long blocks, const char *from, size_t rb, char *to, size_t wb, bool around);

#define MOVER(name, V, TARGET, STREAM)                                                                       \
    TARGET static void name(long blocks, const char *from, size_t rb, char *to, size_t wb, bool around)      \
    {                                                                                                        \
        V a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 }, one = { 1, 2, 3, 4 };                                  \
        for (long k = 0; k < blocks; k++, from += rb, to += wb) {                                            \
            for (size_t i = 0; i < rb; i += 4 * sizeof(V)) {                                                 \
                const V *x = (const V *)(const void *)(from + i);                                            \
                a += x[0], b += x[1], c += x[2], d += x[3];                                                  \
            }                                                                                                \
            for (size_t i = 0; i < wb; i += 2 * sizeof(V)) {                                                 \
                V *y = (V *)(void *)(to + i);                                                                \
                if (around) {                                                                                \
                    STREAM(y, one);                                                                          \
                    STREAM(y + 1, one);                                                                      \
                } else {                                                                                     \
                    y[0] = one, y[1] = one;                                                                  \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
        a += b + c + d;                                                                                      \
        sink = a[0] + a[1];                                                                                  \
    }
typedef float vec4 __attribute__((vector_size(16)));
#if defined(__x86_64__)
typedef float vec16 __attribute__((vector_size(64)));
typedef float vec8 __attribute__((vector_size(32)));
#define STREAM4(y, v) _mm_stream_ps((float *)(y), (__m128)(v))
#define STREAM8(y, v) _mm256_stream_ps((float *)(y), (__m256)(v))
#define STREAM16(y, v) _mm512_stream_ps((float *)(y), (__m512)(v))
MOVER(move16, vec16, __attribute__((target("avx512f"))), STREAM16)
MOVER(move8, vec8, __attribute__((target("avx2"))), STREAM8)
#else
#define STREAM4(y, v) (*(y) = (v))
#endif
MOVER(move4, vec4, , STREAM4)

static mover *widest_mover(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return move16;
    if (__builtin_cpu_supports("avx2"))
        return move8;
#endif
    return move4;
}

static void move_once(double read, double written, bool around)
{
    enum { UNIT_BYTES = 256 };
    mover *move = widest_mover();
    long blocks = (long)((read + written) / 6144) + 1;
    size_t rb = (size_t)(read / (double)blocks) / UNIT_BYTES * UNIT_BYTES, wb = (size_t)(written / (double)blocks) / UNIT_BYTES * UNIT_BYTES;
    /* what rounding the blocks' sizes down has left out becomes more blocks */
    if (rb + wb)
        blocks = (long)((read + written) / (double)(rb + wb) + 0.5);
    while (blocks > 1 && ((size_t)blocks * rb > room || (size_t)blocks * wb > room))
        blocks--;
    const bool several = read + written > 2 * 4 * 32768 && omp_get_max_threads() > 1;
#pragma omp parallel if (several)
    {
        const long t = omp_get_thread_num(), threads = omp_get_num_threads(), low = blocks * t / threads, high = blocks * (t + 1) / threads;
        move(high - low, source + (size_t)low * rb, rb, target + (size_t)low * wb, wb, around);
    }
}

static double seconds_of_moving(double read, double written, int repeats, bool around)
{
    const double begun = now();
    for (int i = 0; i < repeats; i++)
        move_once(read, written, around);
#if defined(__x86_64__)
    _mm_sfence();
#endif
    return (now() - begun) / repeats;
}

/* Beyond the caches stores that pass them save reading the lines first; the faster way counts. */
static double moving(double read, double written, int repeats)
{
    double time = seconds_of_moving(read, written, repeats, false);
    if (written > 4e6) {
        const double other = seconds_of_moving(read, written, repeats, true);
        time = other < time ? other : time;
    }
    return time;
}

double ops_bandwidth(double read, double written, int repeats)
{
    return (read + written) / moving(read, written, repeats);
}

/* ---- vector routines over a block that stays in the first cache ------------------------------------------------------------------ */

enum { BLOCK = 1024 };
#if defined(__x86_64__) && defined(__GLIBC__) && __GLIBC_PREREQ(2, 35)
#define ROUTINE(name, TARGET, V, CALL)                                                                       \
    TARGET static void name(float *y, const float *x, int n)                                                 \
    {                                                                                                        \
        for (int i = 0; i < n; i += (int)(sizeof(V) / 4)) {                                                  \
            V v;                                                                                             \
            memcpy(&v, x + i, sizeof v);                                                                     \
            v = CALL;                                                                                        \
            memcpy(y + i, &v, sizeof v);                                                                     \
        }                                                                                                    \
    }
#define BOTH(name, scalar)                                                                                   \
    __attribute__((target("avx2"))) extern vec8 _ZGVdN8v_##scalar(vec8);                                     \
    __attribute__((target("avx512f"))) extern vec16 _ZGVeN16v_##scalar(vec16);                               \
    ROUTINE(name##_8, __attribute__((target("avx2"))), vec8, _ZGVdN8v_##scalar(v))                           \
    ROUTINE(name##_16, __attribute__((target("avx512f"))), vec16, _ZGVeN16v_##scalar(v))
BOTH(routine_exp, expf)
BOTH(routine_log, logf)
BOTH(routine_tanh, tanhf)
BOTH(routine_erf, erff)
__attribute__((target("avx2"))) extern vec8 _ZGVdN8vv_powf(vec8, vec8);
__attribute__((target("avx512f"))) extern vec16 _ZGVeN16vv_powf(vec16, vec16);
ROUTINE(routine_pow_8, __attribute__((target("avx2"))), vec8, _ZGVdN8vv_powf(v, (vec8){ 0 } + 2.5f))
ROUTINE(routine_pow_16, __attribute__((target("avx512f"))), vec16, _ZGVeN16vv_powf(v, (vec16){ 0 } + 2.5f))
ROUTINE(routine_divide_8, __attribute__((target("avx2"))), vec8, (vec8){ 0 } + 2.5f / v)
ROUTINE(routine_divide_16, __attribute__((target("avx512f"))), vec16, (vec16){ 0 } + 2.5f / v)
typedef void routine(float *y, const float *x, int n);
static routine *const narrow[ROUTINES] = { routine_exp_8, routine_log_8, routine_tanh_8, routine_erf_8, routine_pow_8, routine_divide_8 };
static routine *const wide[ROUTINES] = { routine_exp_16, routine_log_16, routine_tanh_16, routine_erf_16, routine_pow_16, routine_divide_16 };

static double once_calling(routine *f, double elements)
{
    static float x[BLOCK] __attribute__((aligned(64))), y[BLOCK] __attribute__((aligned(64)));
    for (int i = 0; i < BLOCK && x[0] == 0; i++)
        x[BLOCK - 1 - i] = 0.5f + (float)i / BLOCK;
    const int blocks = (int)(elements / BLOCK) < 200 ? (int)(elements / BLOCK) + 1 : 200;
    const double begun = now();
    for (int i = 0; i < blocks; i++)
        f(y, x, BLOCK);
    return (now() - begun) / blocks / BLOCK * elements;
}

/* Seconds for so many elements through the faster of both widths. On one thread: many share the work. */
static double calling(ops_routine r, double elements)
{
    double time = 0;
    if (elements <= 0)
        return 0;
    if (__builtin_cpu_supports("avx2"))
        time = once_calling(narrow[r], elements);
    if (__builtin_cpu_supports("avx512f")) {
        const double other = once_calling(wide[r], elements);
        time = other < time ? other : time;
    }
    return elements > 32768 ? time / omp_get_max_threads() : time;
}
#else
static double calling(ops_routine r, double elements)
{
    (void)r, (void)elements;
    return 0;                                        /* no vector library: bytes alone count                           */
}
#endif

/* ---- multiply-adds ---------------------------------------------------------------------------------------------------------------- */

/* 24 independent chains hide the latency of two or four pipes */
#define FMA(name, V, TARGET)                                                                                 \
    TARGET static double name(double seconds)                                                                \
    {                                                                                                        \
        enum { LANES = sizeof(V) / 4, CHAINS = 12 };                                                         \
        V a[CHAINS], x = { 0 }, y = { 0 };                                                                   \
        x += 1 - 1e-7f, y += 1e-9f;                                                                          \
        for (int k = 0; k < CHAINS; k++)                                                                     \
            a[k] = y * (float)k;                                                                             \
        const double begun = now();                                                                      \
        double done = 0;                                                                                     \
        do {                                                                                                 \
            for (int i = 0; i < 2000; i++)                                                                   \
                for (int k = 0; k < CHAINS; k++)                                                             \
                    a[k] = a[k] * x + y;                                                                     \
            done += 2000.0 * CHAINS * 2 * LANES;                                                             \
        } while (now() - begun < seconds);                                                               \
        const double time = now() - begun;                                                               \
        float sum = 0;                                                                                       \
        for (int k = 0; k < CHAINS; k++)                                                                     \
            sum += a[k][0];                                                                                  \
        sink = sum;                                                                                          \
        return done / time;                                                                                  \
    }
#if defined(__x86_64__)
FMA(fma16, vec16, __attribute__((target("avx512f"))))
FMA(fma8, vec8, __attribute__((target("avx2,fma"))))
#endif
FMA(fma4, vec4, )

double ops_fma_rate(double seconds)
{
    double (*f)(double) = fma4;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        f = fma16;
    else if (__builtin_cpu_supports("fma"))
        f = fma8;
#endif
    double sum = 0;
#pragma omp parallel reduction(+ : sum)
    sum += f(seconds);
    return sum;
}

/* ---- OpenBLAS alone ---------------------------------------------------------------------------------------------------------------- */

static void multiply(const ops_product *p)
{
    const size_t a = (size_t)p->m * (size_t)p->k, b = (size_t)p->k * (size_t)p->n, c = (size_t)p->m * (size_t)p->n;
    const float *from = (const float *)source;
    float *to = (float *)target;
    for (int i = 0; i < p->count; i++)
        cblas_sgemm(CblasRowMajor, p->ta ? CblasTrans : CblasNoTrans, p->tb ? CblasTrans : CblasNoTrans, p->m, p->n, p->k, 1,
                    from + (size_t)i * a, p->ta ? p->m : p->k, from + (size_t)p->count * a + (size_t)i * b, p->tb ? p->k : p->n, 0,
                    to + (size_t)i * c, p->n);
}

/* ---- all together -------------------------------------------------------------------------------------------------------------------- */

double ops_limit_seconds(const ops_work *work, int repeats)
{
    double products = 0, routines = 0, memory = 0;
    if (work->products) {
        const double begun = now();
        for (int i = 0; i < repeats; i++)
            for (int k = 0; k < work->products; k++)
                multiply(&work->product[k]);
        products = (now() - begun) / repeats;
    }
    if (work->read + work->written > 0)
        memory = moving(work->read, work->written, repeats);
    for (int r = 0; r < ROUTINES; r++)
        routines += calling((ops_routine)r, work->calls[r]);
    const double flops = work->flops > 0 ? work->flops / ops_fma_rate(0.001) : 0;
    return products + flops + (routines > memory ? routines : memory);
}
