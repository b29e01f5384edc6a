/* tensor/cpu/move.c: copy, fill, arange: every dtype to every other (rules in convert.h), any strides.
 *
 * One row function per pair of dtypes handles n elements at two strides; walk() feeds it the rows of a loop, cut into pieces and
 * divided among threads. A copy whose input runs contiguously along another dimension than its output (a transpose) goes through
 * square tiles instead (transpose.h), so that both sides are touched a cache line at a time.
 */
#include "cpu.h"
#include <convert.h>
#include <omp.h>
#include "stream.h"
#include "transpose.h"

typedef void row_fn(int64_t n, void *out, int64_t so, const void *in, int64_t si);

/* ---- rows ------------------------------------------------------------------------------------------------------------------ */
/* Same dtype: only the size matters. One value into many places (fill, broadcasting) is a case of its own. */
#define COPY_ROW(name, T)                                                                                           \
    static void name(int64_t n, void *restrict out, int64_t so, const void *restrict in, int64_t si)                \
    {                                                                                                               \
        T *restrict o = out;                                                                                        \
        const T *restrict x = in;                                                                                   \
        if (so == 1 && si == 1) {                                                                                   \
            memcpy(out, in, (size_t)n * sizeof(T));                                                                 \
        } else if (so == 1 && si == 0) {                                                                            \
            T value = *x;                                                                                           \
            for (int64_t i = 0; i < n; i++)                                                                         \
                o[i] = value;                                                                                       \
        } else {                                                                                                    \
            for (int64_t i = 0; i < n; i++)                                                                         \
                o[i * so] = x[i * si];                                                                              \
        }                                                                                                           \
    }
COPY_ROW(copy_1, uint8_t)
COPY_ROW(copy_2, uint16_t)
COPY_ROW(copy_4, uint32_t)
COPY_ROW(copy_8, uint64_t)

/* The same around the caches, where the result is too large for them. */
#define STREAM_ROW(name, T)                                                                                         \
    static void stream_##name(int64_t n, void *restrict out, int64_t so, const void *restrict in, int64_t si)       \
    {                                                                                                               \
        enum { BLOCK = 4096 / sizeof(T) };                                                                          \
        if (so == 1 && si == 1) {                                                                                   \
            td__stream(out, in, (size_t)n * sizeof(T));                                                             \
        } else if (so == 1 && si == 0 && n >= BLOCK) {                                                              \
            T block[BLOCK];                                                                                         \
            copy_##name(BLOCK, block, 1, in, 0);                                                                    \
            for (int64_t i = 0; i < n; i += BLOCK)                                                                  \
                td__stream((T *)out + i, block, (size_t)(n - i < BLOCK ? n - i : BLOCK) * sizeof(T));               \
        } else {                                                                                                    \
            copy_##name(n, out, so, in, si);                                                                        \
        }                                                                                                           \
    }
STREAM_ROW(1, uint8_t)
STREAM_ROW(2, uint16_t)
STREAM_ROW(4, uint32_t)
STREAM_ROW(8, uint64_t)

/* Integer sums wrap; in unsigned arithmetic that is defined. */
#define ADD_ROW(name, T)                                                                                            \
    static void name(int64_t n, void *restrict out, int64_t so, const void *restrict in, int64_t si)                \
    {                                                                                                               \
        T *restrict o = out;                                                                                        \
        const T *restrict x = in;                                                                                   \
        if (so == 1 && si == 1) {                                                                                   \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++)                                                     \
                o[i] += x[i];                                                                                       \
        } else {                                                                                                    \
            for (int64_t i = 0; i < n; i++)                                                                         \
                o[i * so] += x[i * si];                                                                             \
        }                                                                                                           \
    }
ADD_ROW(add_f32, float)
ADD_ROW(add_f64, double)
ADD_ROW(add_i64, uint64_t)
ADD_ROW(add_i32, uint32_t)

/* 16 bits: the sum is formed in f32 and rounded once. */
#define ADD_HALF_ROW(name, half, HALF, from, FROM)                                                                  \
    static void name(int64_t n, void *restrict out, int64_t so, const void *restrict in, int64_t si)                \
    {                                                                                                               \
        HALF *restrict o = out;                                                                                     \
        const FROM *restrict x = in;                                                                                \
        if (so == 1 && si == 1) {                                                                                   \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++)                                                     \
                o[i] = td__f32_to_##half(td__##half##_to_f32(o[i]) + td__get_##from(x[i]));                         \
        } else {                                                                                                    \
            for (int64_t i = 0; i < n; i++)                                                                         \
                o[i * so] = td__f32_to_##half(td__##half##_to_f32(o[i * so]) + td__get_##from(x[i * si]));          \
        }                                                                                                           \
    }
ADD_HALF_ROW(add_f16, f16, td_f16, f16, td_f16)
ADD_HALF_ROW(add_bf16, bf16, td_bf16, bf16, td_bf16)
ADD_HALF_ROW(add_f32_to_f16, f16, td_f16, f32, float)
ADD_HALF_ROW(add_f32_to_bf16, bf16, td_bf16, f32, float)

#define CONVERT_ROW(from, FROM, to, TO)                                                                             \
    static void from##_to_##to(int64_t n, void *restrict out, int64_t so, const void *restrict in, int64_t si)      \
    {                                                                                                               \
        TO *restrict o = out;                                                                                       \
        const FROM *restrict x = in;                                                                                \
        if (so == 1 && si == 1) {                                                                                   \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++)                                                     \
                o[i] = td__put_##to(td__get_##from(x[i]));                                                          \
        } else {                                                                                                    \
            for (int64_t i = 0; i < n; i++)                                                                         \
                o[i * so] = td__put_##to(td__get_##from(x[i * si]));                                                \
        }                                                                                                           \
    }
#define CONVERT_ROWS(to, TO)                                                                                        \
    CONVERT_ROW(f32, float, to, TO) CONVERT_ROW(f64, double, to, TO) CONVERT_ROW(f16, td_f16, to, TO)               \
    CONVERT_ROW(bf16, td_bf16, to, TO) CONVERT_ROW(i64, int64_t, to, TO) CONVERT_ROW(i32, int32_t, to, TO)          \
    CONVERT_ROW(u8, uint8_t, to, TO) CONVERT_ROW(b8, uint8_t, to, TO)
CONVERT_ROWS(f32, float)
CONVERT_ROWS(f64, double)
CONVERT_ROWS(f16, td_f16)
CONVERT_ROWS(bf16, td_bf16)
CONVERT_ROWS(i64, int64_t)
CONVERT_ROWS(i32, int32_t)
CONVERT_ROWS(u8, uint8_t)
CONVERT_ROWS(b8, uint8_t)

#define TABLE_ROW(to)                                                                                               \
    {                                                                                                               \
        [TD_F32] = f32_to_##to, [TD_F64] = f64_to_##to, [TD_F16] = f16_to_##to, [TD_BF16] = bf16_to_##to,           \
        [TD_I64] = i64_to_##to, [TD_I32] = i32_to_##to, [TD_U8] = u8_to_##to, [TD_BOOL] = b8_to_##to              \
    }
static row_fn *const convert_rows[8][8] = {
    [TD_F32] = TABLE_ROW(f32), [TD_F64] = TABLE_ROW(f64), [TD_F16] = TABLE_ROW(f16), [TD_BF16] = TABLE_ROW(bf16),
    [TD_I64] = TABLE_ROW(i64), [TD_I32] = TABLE_ROW(i32), [TD_U8] = TABLE_ROW(u8), [TD_BOOL] = TABLE_ROW(b8),
};
static row_fn *const add_rows[8] = { [TD_F32] = add_f32, [TD_F64] = add_f64, [TD_F16] = add_f16, [TD_BF16] = add_bf16,
                                     [TD_I64] = add_i64, [TD_I32] = add_i32 };
/* an f32 that is added to 16 bits is rounded once, not twice */
static row_fn *const add_f32_rows[8] = { [TD_F32] = add_f32, [TD_F16] = add_f32_to_f16, [TD_BF16] = add_f32_to_bf16 };

static row_fn *copy_row(size_t size)
{
    return size == 1 ? copy_1 : size == 2 ? copy_2 : size == 4 ? copy_4 : copy_8;
}

static row_fn *stream_row(size_t size)
{
    return size == 1 ? stream_1 : size == 2 ? stream_2 : size == 4 ? stream_4 : stream_8;
}

/* ---- rows of a loop ----------------------------------------------------------------------------------------------------------- */
enum { PIECE = 16 * TD_BLOCK, TILE = TD_TILE };

typedef struct {
    const td_loop *l;
    size_t to, from;                   /* bytes of an element                                       */
    char *out;
    const char *in;
    row_fn *row;
    bool streamed;                     /* around the caches                                         */
    row_fn *first;                     /* tiles: from the input into the tile, in the output's dtype */
    int run;                           /* tiles: the dimension along which the input is contiguous  */
} job;

/* Units [low, high) of rows cut into pieces of the innermost dimension; an odometer steps through the outer ones. */
static void walk_rows(const job *j, int64_t low, int64_t high)
{
    const td_loop *l = j->l;
    int last = l->ndim - 1;
    int64_t n = last < 0 ? 1 : l->dim[last], pieces = (n + PIECE - 1) / PIECE;
    int64_t so = last < 0 ? 1 : l->stride[0][last], si = last < 0 ? 1 : l->stride[1][last];
    int64_t at[TD_MAX_DIMS], o = 0, x = 0, piece = low % pieces, rest = low / pieces;
    for (int d = last - 1; d >= 0; d--) {
        at[d] = rest % l->dim[d];
        rest /= l->dim[d];
        o += at[d] * l->stride[0][d];
        x += at[d] * l->stride[1][d];
    }
    for (int64_t u = low; u < high; u++) {
        int64_t begin = piece * PIECE, m = n - begin < PIECE ? n - begin : PIECE;
        j->row(m, j->out + (size_t)(o + begin * so) * j->to, so, j->in + (size_t)(x + begin * si) * j->from, si);
        if (++piece < pieces)
            continue;
        piece = 0;
        for (int d = last - 1; d >= 0; d--) {
            o += l->stride[0][d];
            x += l->stride[1][d];
            if (++at[d] < l->dim[d])
                break;
            o -= at[d] * l->stride[0][d];
            x -= at[d] * l->stride[1][d];
            at[d] = 0;
        }
    }
}

/* A whole tile of 4-byte elements; strides in bytes. */
static void turn_whole(const char *in, size_t in_stride, char *out, size_t out_stride, bool streamed)
{
    enum { LINE = 4 * TD_TILE_LINE, RUN = 4 * TILE };
    _Alignas(64) char tile[TILE * LINE], turned[TILE * LINE];
    for (size_t i = 0; i < TILE; i++)
        memcpy(tile + i * LINE, in + i * in_stride, RUN);
    td__turn_tile(4, TILE, TILE, tile, turned);
    for (size_t i = 0; i < TILE; i++)
        if (streamed)
            td__stream(out + i * out_stride, turned + i * LINE, RUN);
        else
            memcpy(out + i * out_stride, turned + i * LINE, RUN);
}

/* Units [low, high) of tiles over the last dimension (contiguous in the output) and j->run (contiguous in the input). */
static void walk_tiles(const job *j, int64_t low, int64_t high)
{
    const td_loop *l = j->l;
    int last = l->ndim - 1, run = j->run;
    int64_t across = (l->dim[last] + TILE - 1) / TILE, along = (l->dim[run] + TILE - 1) / TILE;
    int64_t si = l->stride[1][last], so = l->stride[0][run];
    const bool plain = j->first == copy_4 && (j->row == copy_4 || j->row == stream_4);
    _Alignas(64) char tile[TILE * TD_TILE_LINE * 8], turned[TILE * TD_TILE_LINE * 8];
    for (int64_t u = low; u < high; u++) {
        int64_t c = u % across * TILE, r = u / across % along * TILE, rest = u / across / along;
        int64_t o = c + r * so, x = c * si + r;
        for (int d = last - 1; d >= 0; d--) {
            if (d == run)
                continue;
            o += rest % l->dim[d] * l->stride[0][d];
            x += rest % l->dim[d] * l->stride[1][d];
            rest /= l->dim[d];
        }
        int64_t columns = l->dim[last] - c < TILE ? l->dim[last] - c : TILE;
        int64_t lines = l->dim[run] - r < TILE ? l->dim[run] - r : TILE;
        if (plain && columns == TILE && lines == TILE) {
            turn_whole(j->in + (size_t)x * 4, (size_t)si * 4, j->out + (size_t)o * 4, (size_t)so * 4, j->streamed);
            continue;
        }
        for (int64_t i = 0; i < columns; i++)
            j->first(lines, tile + (size_t)(i * TD_TILE_LINE) * j->to, 1, j->in + (size_t)(x + i * si) * j->from, 1);
        td__turn_tile(j->to, columns, lines, tile, turned);
        for (int64_t i = 0; i < lines; i++)
            j->row(columns, j->out + (size_t)(o + i * so) * j->to, 1, turned + (size_t)(i * TD_TILE_LINE) * j->to, 1);
    }
}

static void walk(const job *j, int64_t elements, int64_t units, void (*part)(const job *, int64_t, int64_t))
{
    if (elements < TD_PARALLEL || units < 2) {
        part(j, 0, units);
        if (j->streamed)
            td__stream_end();
        return;
    }
#pragma omp parallel
    {
        int64_t t = omp_get_thread_num(), threads = omp_get_num_threads();
        part(j, units * t / threads, units * (t + 1) / threads);
        if (j->streamed)
            td__stream_end();
    }
}

static int64_t count(const td_loop *l)
{
    int64_t n = 1;
    for (int d = 0; d < l->ndim; d++)
        n *= l->dim[d];
    return n;
}

/* The dimension along which the input is contiguous while the output is so along the last one; -1 when tiles gain nothing. */
static int transposed_run(const td_loop *l)
{
    int last = l->ndim - 1;
    if (last < 1 || l->stride[0][last] != 1 || l->stride[1][last] <= 1 || l->dim[last] < 4)
        return -1;
    for (int d = 0; d < last; d++)
        if (l->stride[1][d] == 1 && l->dim[d] >= 4)
            return d;
    return -1;
}

static void walk_all_rows(job *j)
{
    int last = j->l->ndim - 1;
    int64_t n = count(j->l), inner = last < 0 ? 1 : j->l->dim[last];
    if (j->row == copy_row(j->to) && inner >= TD_BLOCK && n * (int64_t)j->to >= TD_STREAM_BYTES) {
        j->row = stream_row(j->to);
        j->streamed = true;
    }
    if (n)
        walk(j, n, n / inner * ((inner + PIECE - 1) / PIECE), walk_rows);
}

void K(copy)(const td_loop *l, td_dtype to, void *out, td_dtype from, const void *x, bool add)
{
    job j = { .l = l, .to = td_dtype_size(to), .from = td_dtype_size(from), .out = out, .in = x };
    row_fn *plain = to == from ? copy_row(j.to) : convert_rows[to][from];
    j.row = !add ? plain : from == TD_F32 ? add_f32_rows[to] : add_rows[to];
    j.run = add && to != from ? -1 : transposed_run(l);        /* tiles hold the output's dtype                          */
    if (j.run < 0) {
        walk_all_rows(&j);
        return;
    }
    j.first = plain;
    int64_t n = count(l);
    j.streamed = !add && n * (int64_t)j.to >= TD_STREAM_BYTES;
    if (!add)
        j.row = j.streamed ? stream_row(j.to) : copy_row(j.to);
    int64_t last = l->dim[l->ndim - 1], run = l->dim[j.run];
    if (n)
        walk(&j, n, n / last / run * ((last + TILE - 1) / TILE) * ((run + TILE - 1) / TILE), walk_tiles);
}

void K(fill)(const td_loop *l, td_dtype t, void *out, double value)
{
    td_loop one = *l;
    uint64_t bits[1] = { 0 };
    convert_rows[t][TD_F64](1, bits, 1, &value, 1);
    memset(one.stride[1], 0, sizeof one.stride[1]);
    job j = { .l = &one, .to = td_dtype_size(t), .out = out, .in = (const char *)bits, .row = copy_row(td_dtype_size(t)) };
    walk_all_rows(&j);
}

void K(arange)(td_dtype t, int64_t n, void *out)
{
    int64_t number[TD_BLOCK];
    size_t size = td_dtype_size(t);
    for (int64_t i = 0; i < n; i += TD_BLOCK) {
        int64_t m = n - i < TD_BLOCK ? n - i : TD_BLOCK;
        for (int64_t k = 0; k < m; k++)
            number[k] = i + k;
        (t == TD_I64 ? copy_8 : convert_rows[t][TD_I64])(m, (char *)out + (size_t)i * size, 1, number, 1);
    }
}
