/* Results too large for the caches are written around them (tensor/cpu/stream.h): the bytes must be those that small pieces give, at any
 * alignment, for any number of threads; nothing beside the result is touched.
 */
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <tensor_impl.h>

enum { N = (24 << 20) / 4 + 1037, PIECE = 1000, GUARD = 16 };      /* elements: just above what is streamed               */
static const char *const isas[] = { "baseline", "avx2", "avx512" };
#define EACH_ISA(k)                                                                                          \
    for (size_t isa_ = 0; isa_ < 3; isa_++)                                                                  \
        for (const td_kernels *k = td__cpu_kernels_named(isas[isa_]); k; k = NULL)

static float *a, *b, *whole, *pieces;
static uint8_t *mask;

static td_loop line(int64_t n)
{
    return (td_loop){ .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 }, { 1 }, { 1 } } };
}

static void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(p);
    return p;
}

static int make(void **state)
{
    (void)state;
    a = room((N + 2 * GUARD) * sizeof *a), b = room((N + 2 * GUARD) * sizeof *b);
    whole = room((N + 2 * GUARD) * sizeof *whole), pieces = room((N + 2 * GUARD) * sizeof *pieces);
    mask = room(N + 2 * GUARD);
    for (int64_t i = 0; i < N + 2 * GUARD; i++) {
        a[i] = (float)(i * 2654435761u % 4096) / 512 - 4;
        b[i] = (float)(i * 40503u % 4096) / 512 - 3;
        mask[i] = i % 3 == 0;
    }
    return 0;
}

static int drop(void **state)
{
    (void)state;
    free(a), free(b), free(whole), free(pieces), free(mask);
    return 0;
}

typedef void run_fn(const td_kernels *k, int64_t n, float *out, const float *x, const float *y, const uint8_t *m);

static void run_add(const td_kernels *k, int64_t n, float *out, const float *x, const float *y, const uint8_t *m)
{
    const td_loop l = line(n);
    k->add(&l, TD_F32, out, x, y, false);
}

static void run_gelu(const td_kernels *k, int64_t n, float *out, const float *x, const float *y, const uint8_t *m)
{
    const td_loop l = line(n);
    k->gelu(&l, TD_F32, out, x, false);
}

static void run_where(const td_kernels *k, int64_t n, float *out, const float *x, const float *y, const uint8_t *m)
{
    const td_loop l = line(n);
    k->where(&l, TD_F32, out, m, x, y);
}

static void run_copy(const td_kernels *k, int64_t n, float *out, const float *x, const float *y, const uint8_t *m)
{
    const td_loop l = line(n);
    k->copy(&l, TD_F32, out, TD_F32, x, false);
}

static void run_fill(const td_kernels *k, int64_t n, float *out, const float *x, const float *y, const uint8_t *m)
{
    const td_loop l = line(n);
    k->fill(&l, TD_F32, out, 1.25);
}

/* The result begins 3 elements after a cache line. */
static void same_as_pieces(const td_kernels *k, const char *what, run_fn *run)
{
    memset(whole, 0x55, (N + 2 * GUARD) * sizeof *whole);
    memset(pieces, 0x55, (N + 2 * GUARD) * sizeof *pieces);
    run(k, N, whole + 3, a + 1, b + 2, mask);
    for (int64_t i = 0; i < N; i += PIECE)
        run(k, N - i < PIECE ? N - i : PIECE, pieces + 3 + i, a + 1 + i, b + 2 + i, mask + i);
    if (memcmp(whole, pieces, (N + 2 * GUARD) * sizeof *whole) != 0)
        fail_msg("%s, %s: a large result differs from that of pieces", k->name, what);
}

static void large_results(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 2; threads++) {
        omp_set_num_threads(threads);
        EACH_ISA(k)
        {
            same_as_pieces(k, "add", run_add);
            same_as_pieces(k, "gelu", run_gelu);
            same_as_pieces(k, "where", run_where);
            same_as_pieces(k, "copy", run_copy);
            same_as_pieces(k, "fill", run_fill);
        }
    }
}

/* rows x columns of `size` bytes each, turned over; borders that fill no tile. */
static void turned(const td_kernels *k, td_dtype t, int64_t rows, int64_t columns)
{
    const size_t size = td_dtype_size(t), bytes = (size_t)(rows * columns) * size;
    char *from = room(bytes), *to = room(bytes + 64);
    for (size_t i = 0; i < bytes; i++)
        from[i] = (char)(i * 31 + i / 251);
    memset(to, 0x55, bytes + 64);
    const td_loop l = { .ndim = 2, .dim = { columns, rows }, .stride = { { rows, 1 }, { 1, columns } } };
    k->copy(&l, t, to, t, from, false);
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < rows; r++)
            if (memcmp(to + (size_t)(c * rows + r) * size, from + (size_t)(r * columns + c) * size, size) != 0)
                fail_msg("%s, %s, %lld by %lld: element %lld of column %lld differs", k->name, td_dtype_name(t), (long long)rows, (long long)columns,
                         (long long)r, (long long)c);
    for (size_t i = bytes; i < bytes + 64; i++)
        assert_int_equal(to[i], 0x55);
    free(from);
    free(to);
}

static void turned_over(void **state)
{
    static const td_dtype types[] = { TD_U8, TD_BF16, TD_F32, TD_F64 };
    static const int64_t sizes[][2] = { { 32, 32 }, { 33, 31 }, { 5, 100 }, { 100, 4 }, { 64, 96 }, { 71, 257 } };
    (void)state;
    EACH_ISA(k)
    {
        for (size_t t = 0; t < TD_COUNT(types); t++)
            for (size_t i = 0; i < TD_COUNT(sizes); i++)
                turned(k, types[t], sizes[i][0], sizes[i][1]);
        turned(k, TD_F32, 2577, 2573);                                 /* written around the caches                        */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test_setup_teardown(large_results, make, drop), cmocka_unit_test(turned_over) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
