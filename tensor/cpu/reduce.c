/* tensor/cpu/reduce.c: sum, amax, amin, argmax over any axes.
 *
 * The result's elements are computed in units: a *column unit* is up to 64 neighbouring results whose inputs lie side by side too
 * (leading axes reduced: column sums), otherwise a unit is one result, whose input is a set of runs. Where there are few units and
 * much to sum, the outermost reduced dimension is cut into at most 64 slices, summed by themselves and then in order. Which way is
 * taken, and every cut, depends on the shape alone: the bits do not depend on the number of threads. Sums of floats are kept in
 * f64, in 32 lanes along a run; integers wrap around.
 */
#include "span.h"

enum { WIDTH = 64, SLICES = 64, FEW_UNITS = 16, TOGETHER = 8, ROWS = 16 };

/* A reduction ready to run: dimensions of keep without the columns, and of red; strides of the input. */
typedef struct {
    int keep_dims, red_dims;
    int64_t keep_dim[TD_MAX_DIMS], keep_stride[TD_MAX_DIMS], red_dim[TD_MAX_DIMS], red_stride[TD_MAX_DIMS];
    int64_t columns, column_units;      /* columns 1: runs                                                   */
    int64_t units, total;               /* total: elements of the input                                     */
    int64_t slices, slice;              /* how the outermost reduced dimension is cut; slices 1: not         */
} plan;

static plan make_plan(const td_reduce_loop *r)
{
    plan p = { .columns = 1, .column_units = 1, .units = 1, .slices = 1, .slice = 1 };
    int64_t kept = td__loop_count(&r->keep), reduced = td__loop_count(&r->red);
    p.total = kept * reduced;
    p.keep_dims = r->keep.ndim, p.red_dims = r->red.ndim;
    for (int d = 0; d < p.keep_dims; d++)
        p.keep_dim[d] = r->keep.dim[d], p.keep_stride[d] = r->keep.stride[1][d];
    for (int d = 0; d < p.red_dims; d++)
        p.red_dim[d] = r->red.dim[d], p.red_stride[d] = r->red.stride[1][d];
    bool runs_contiguous = p.red_dims > 0 && p.red_stride[p.red_dims - 1] == 1 && p.red_dim[p.red_dims - 1] >= 4;
    if (p.keep_dims > 0 && p.keep_stride[p.keep_dims - 1] == 1 && !runs_contiguous) {
        p.columns = p.keep_dim[--p.keep_dims];
        p.column_units = (p.columns + WIDTH - 1) / WIDTH;
    }
    for (int d = 0; d < p.keep_dims; d++)
        p.units *= p.keep_dim[d];
    p.units *= p.column_units;
    if (p.red_dims == 0) {                                     /* nothing is reduced: one element each              */
        p.red_dims = 1;
        p.red_dim[0] = 1;
    }
    p.slice = p.red_dim[0];
    if (p.units < FEW_UNITS && p.total > TD_PARALLEL && p.red_dim[0] >= SLICES) {
        p.slice = ((p.red_dim[0] + SLICES - 1) / SLICES + 7) / 8 * 8;
        p.slices = (p.red_dim[0] + p.slice - 1) / p.slice;
    }
    return p;
}

/* Rows that lie evenly, each one contiguous run: every unit is one of them. */
static bool plain_rows(const plan *p)
{
    return p->columns == 1 && p->column_units == 1 && p->slices == 1 && p->keep_dims <= 1 && p->red_dims == 1 && p->red_stride[0] == 1 && p->red_dim[0] > 0;
}

/* Where unit u begins: its first input element, first result and number of results. */
static void find_unit(const plan *p, int64_t u, int64_t *in, int64_t *out, int64_t *width)
{
    int64_t column = u % p->column_units * WIDTH, row = u / p->column_units;
    *out = row * p->columns + column;
    *in = column;
    *width = p->columns - column < WIDTH ? p->columns - column : WIDTH;
    for (int d = p->keep_dims - 1; d >= 0; d--) {
        *in += row % p->keep_dim[d] * p->keep_stride[d];
        row /= p->keep_dim[d];
    }
}

/* Calls BODY for every run (the innermost reduced dimension) of reduced indices whose outermost lies in [r0, r1): `x` is its first
 * element, `n` its length, `s` its stride, in row order. */
#define FOR_RUNS(T, ...)                                                                                     \
    do {                                                                                                     \
        const int last = p->red_dims - 1;                                                                    \
        int64_t index[TD_MAX_DIMS] = { 0 };                                                                  \
        const int64_t s = p->red_stride[last], n = last == 0 ? r1 - r0 : p->red_dim[last];                   \
        const T *x = from + r0 * p->red_stride[0];                                                           \
        bool empty = r1 <= r0;                                                                               \
        for (int d = 1; d <= last; d++)                                                                      \
            empty |= p->red_dim[d] == 0;                                                                     \
        while (!empty) {                                                                                     \
            __VA_ARGS__                                                                                      \
            int d = last - 1;                                                                                \
            for (; d >= 0; d--) {                                                                            \
                x += p->red_stride[d];                                                                       \
                if (++index[d] < (d == 0 ? r1 - r0 : p->red_dim[d]))                                         \
                    break;                                                                                   \
                x -= index[d] * p->red_stride[d];                                                            \
                index[d] = 0;                                                                                \
            }                                                                                                \
            if (d < 0)                                                                                       \
                break;                                                                                       \
        }                                                                                                    \
    } while (0)

/* ---- sums -------------------------------------------------------------------------------------------------------------- */

/* acc[0..width) = sums of one unit over [r0, r1). A: the type that sums are kept in. */
#define SUM_PART(T, A, name)                                                                                 \
    static void add_rows_##name(const T *x, int64_t n, int64_t s, int64_t width, A *restrict acc)            \
    {                                                                                                        \
        if (width == WIDTH) {                                                                                \
            for (int64_t i = 0; i < n; i++) {                                                                \
                const T *row = x + i * s;                                                                    \
                _Pragma("omp simd") for (int c = 0; c < WIDTH; c++) acc[c] += (A)row[c];                     \
            }                                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            const T *row = x + i * s;                                                                        \
            _Pragma("omp simd") for (int64_t c = 0; c < width; c++) acc[c] += (A)row[c];                     \
        }                                                                                                    \
    }                                                                                                        \
    static void sum_part_##name(const plan *p, const T *from, int64_t width, int64_t r0, int64_t r1, A *acc) \
    {                                                                                                        \
        memset(acc, 0, (size_t)width * sizeof *acc);                                                         \
        if (p->columns > 1) {                                                                                \
            FOR_RUNS(T, { add_rows_##name(x, n, s, width, acc); });                                          \
        } else {                                                                                             \
            FOR_RUNS(T, { acc[0] += s == 1 ? run_##name(x, n) : strided_##name(x, n, s); });                 \
        }                                                                                                    \
    }

/* 32 lanes, added pairwise at the end: the order is fixed and long sums keep their digits */
#define SUM_RUN(T, A, name)                                                                                  \
    static A run_##name(const T *x, int64_t n)                                                               \
    {                                                                                                        \
        A lane[32] = { 0 };                                                                                  \
        int64_t i = 0;                                                                                       \
        for (; i + 32 <= n; i += 32) {                                                                       \
            _Pragma("omp simd") for (int j = 0; j < 32; j++) lane[j] += (A)x[i + j];                         \
        }                                                                                                    \
        for (int j = 0; i < n; i++, j++)                                                                     \
            lane[j] += (A)x[i];                                                                              \
        for (int half = 16; half > 0; half /= 2)                                                             \
            for (int j = 0; j < half; j++)                                                                   \
                lane[j] += lane[j + half];                                                                   \
        return lane[0];                                                                                      \
    }                                                                                                        \
    static A strided_##name(const T *x, int64_t n, int64_t s)                                                \
    {                                                                                                        \
        A lane[4] = { 0 };                                                                                   \
        int64_t i = 0;                                                                                       \
        for (; i + 4 <= n; i += 4)                                                                           \
            for (int j = 0; j < 4; j++)                                                                      \
                lane[j] += (A)x[(i + j) * s];                                                                \
        for (int j = 0; i < n; i++, j++)                                                                     \
            lane[j] += (A)x[i * s];                                                                          \
        return (lane[0] + lane[2]) + (lane[1] + lane[3]);                                                    \
    }

#define SUM(T, A, S, name)                                                                                   \
    SUM_RUN(T, A, name)                                                                                      \
    SUM_PART(T, A, name)                                                                                     \
    static void sum_store_##name(T *out, const A *acc, int64_t width, A scale, bool add)                     \
    {                                                                                                        \
        for (int64_t c = 0; c < width; c++)                                                                  \
            out[c] = (T)(add ? (A)out[c] + acc[c] * scale : acc[c] * scale);                                 \
    }                                                                                                        \
    /* Column sums over one reduced dimension: some neighbouring units at a time, a few rows of each, so that memory is read in longer pieces; a    \
     * column's rows are added in their order all the same. */                                               \
    static void sum_columns_##name(const plan *p, T *out, const T *from, A scale, bool add)                  \
    {                                                                                                        \
        const int64_t groups = (p->column_units + TOGETHER - 1) / TOGETHER, rows = p->red_dim[0], s = p->red_stride[0];    \
        const int64_t tasks = p->units / p->column_units * groups;                                           \
        _Pragma("omp parallel for schedule(static) if (p->total > TD_PARALLEL && tasks > 1)")                \
        for (int64_t t = 0; t < tasks; t++) {                                                                \
            const int64_t first = t / groups * p->column_units + t % groups * TOGETHER, left = (t / groups + 1) * p->column_units - first; \
            const int64_t units = left < TOGETHER ? left : TOGETHER;                                         \
            A acc[TOGETHER][WIDTH] = { 0 };                                                                  \
            int64_t in, at, width;                                                                           \
            for (int64_t row = 0; row < rows; row += ROWS)                                                   \
                for (int64_t u = 0; u < units; u++) {                                                        \
                    find_unit(p, first + u, &in, &at, &width);                                               \
                    add_rows_##name(from + in + row * s, rows - row < ROWS ? rows - row : ROWS, s, width, acc[u]); \
                }                                                                                            \
            for (int64_t u = 0; u < units; u++) {                                                            \
                find_unit(p, first + u, &in, &at, &width);                                                   \
                sum_store_##name(out + at, acc[u], width, scale, add);                                       \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    static void sum_##name(const td_reduce_loop *r, T *out, const T *from, double factor, bool add)          \
    {                                                                                                        \
        const plan p = make_plan(r);                                                                         \
        const A scale = (A)(S)factor;                                                                        \
        if (p.columns > 1 && p.red_dims == 1 && p.slices == 1) {                                             \
            sum_columns_##name(&p, out, from, scale, add);                                                   \
            return;                                                                                          \
        }                                                                                                    \
        if (plain_rows(&p)) {                                                                                \
            const int64_t stride = p.keep_dims ? p.keep_stride[0] : 0;                                       \
            _Pragma("omp parallel for schedule(static) if (p.total > TD_PARALLEL && p.units > 1)")           \
            for (int64_t u = 0; u < p.units; u++) {                                                          \
                const A sum = run_##name(from + u * stride, p.red_dim[0]);                                   \
                sum_store_##name(out + u, &sum, 1, scale, add);                                              \
            }                                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        if (p.slices > 1) {                                                                                  \
            for (int64_t u = 0; u < p.units; u++) {                                                          \
                int64_t in, at, width;                                                                       \
                A part[SLICES][WIDTH];                                                                       \
                find_unit(&p, u, &in, &at, &width);                                                          \
                _Pragma("omp parallel for schedule(static)") for (int64_t k = 0; k < p.slices; k++)          \
                    sum_part_##name(&p, from + in, width, k * p.slice,                                       \
                                    (k + 1) * p.slice < p.red_dim[0] ? (k + 1) * p.slice : p.red_dim[0], part[k]); \
                for (int64_t k = 1; k < p.slices; k++)                                                       \
                    for (int64_t c = 0; c < width; c++)                                                      \
                        part[0][c] += part[k][c];                                                            \
                sum_store_##name(out + at, part[0], width, scale, add);                                      \
            }                                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        _Pragma("omp parallel for schedule(static) if (p.total > TD_PARALLEL && p.units > 1)")               \
        for (int64_t u = 0; u < p.units; u++) {                                                              \
            int64_t in, at, width;                                                                           \
            A acc[WIDTH];                                                                                    \
            find_unit(&p, u, &in, &at, &width);                                                              \
            sum_part_##name(&p, from + in, width, 0, p.red_dim[0], acc);                                     \
            sum_store_##name(out + at, acc, width, scale, add);                                              \
        }                                                                                                    \
    }
SUM(float, double, double, f32)
SUM(double, double, double, f64)
SUM(int64_t, uint64_t, int64_t, i64)
SUM(int32_t, uint64_t, int64_t, i32)

void K(sum)(const td_reduce_loop *r, td_dtype t, void *out, const void *x, double scale, bool add)
{
    switch (t) {
    case TD_F32: sum_f32(r, out, x, scale, add); break;
    case TD_F64: sum_f64(r, out, x, scale, add); break;
    case TD_I64: sum_i64(r, out, x, scale, add); break;
    case TD_I32: sum_i32(r, out, x, scale, add); break;
    default: break;
    }
}

/* ---- largest and smallest: NaN wins; at least one element is reduced (the operation has checked) ------------------------------- */

#define BEFORE_MAX(x, m) ((x) > (m))
#define BEFORE_MIN(x, m) ((x) < (m))
/* Does x take m's place? A NaN does, unless m is one. */
#define TAKES(BEFORE, x, m) (BEFORE(x, m) || ((x) != (x) && (m) == (m)))

/* The best of m and a contiguous run, in 32 lanes; a NaN among them is looked for beside, and found again. */
#define EXTREME_RUN(T, which, BEFORE, name)                                                                  \
    static T which##_run_##name(const T *x, int64_t n, T m)                                                  \
    {                                                                                                        \
        enum { LANES = 32 };                                                                                 \
        T lane[LANES];                                                                                       \
        int64_t i = 0;                                                                                       \
        int bad = 0;                                                                                         \
        for (int j = 0; j < LANES; j++)                                                                      \
            lane[j] = m;                                                                                     \
        for (; i + LANES <= n; i += LANES) {                                                                 \
            _Pragma("omp simd reduction(|:bad)") for (int j = 0; j < LANES; j++) {                           \
                lane[j] = BEFORE(x[i + j], lane[j]) ? x[i + j] : lane[j];                                    \
                bad |= x[i + j] != x[i + j];                                                                 \
            }                                                                                                \
        }                                                                                                    \
        for (int j = 0; i + j < n; j++) {                                                                    \
            lane[j] = BEFORE(x[i + j], lane[j]) ? x[i + j] : lane[j];                                        \
            bad |= x[i + j] != x[i + j];                                                                     \
        }                                                                                                    \
        if (bad && m == m) {                                                                                 \
            for (i = 0; x[i] == x[i]; i++)                                                                   \
                ;                                                                                            \
            return x[i];                                                                                     \
        }                                                                                                    \
        for (int half = LANES / 2; half > 0; half /= 2)                                                      \
            for (int j = 0; j < half; j++)                                                                   \
                lane[j] = BEFORE(lane[j + half], lane[j]) ? lane[j + half] : lane[j];                        \
        return lane[0];                                                                                      \
    }

#define EXTREME(T, which, BEFORE, name)                                                                      \
    EXTREME_RUN(T, which, BEFORE, name)                                                                      \
    /* Of columns over one reduced dimension, some neighbouring units at a time, so that memory is read in longer pieces, which are asked for ahead */  \
    static void which##_columns_##name(const plan *p, T *out, const T *base)                                 \
    {                                                                                                        \
        enum { STRIP = TOGETHER / 2 * WIDTH };                                                               \
        const int64_t strips = (p->columns + STRIP - 1) / STRIP, tasks = p->units / p->column_units * strips;  \
        _Pragma("omp parallel for schedule(static) if (p->total > TD_PARALLEL && tasks > 1)")                \
        for (int64_t t = 0; t < tasks; t++) {                                                                \
            int64_t in, at, left;                                                                            \
            T best[STRIP];                                                                                   \
            find_unit(p, t / strips * p->column_units + t % strips * (STRIP / WIDTH), &in, &at, &left);      \
            left = p->columns - t % strips * STRIP;                                                          \
            const int width = left < STRIP ? (int)left : STRIP;                                              \
            memcpy(best, base + in, (size_t)width * sizeof *best);                                           \
            for (int64_t i = 1; i < p->red_dim[0]; i++) {                                                    \
                const T *restrict row = base + in + i * p->red_stride[0];                                    \
                td__ask(row + 4 * p->red_stride[0], (size_t)width * sizeof(T));                              \
                _Pragma("omp simd") for (int c = 0; c < width; c++)                                          \
                    best[c] = TAKES(BEFORE, row[c], best[c]) ? row[c] : best[c];                             \
            }                                                                                                \
            memcpy(out + at, best, (size_t)width * sizeof *best);                                            \
        }                                                                                                    \
    }                                                                                                        \
    static void which##_##name(const td_reduce_loop *r, T *out, const T *base)                               \
    {                                                                                                        \
        const plan whole = make_plan(r), *p = &whole;                                                        \
        if (p->columns > 1 && p->red_dims == 1) {                                                            \
            which##_columns_##name(p, out, base);                                                            \
            return;                                                                                          \
        }                                                                                                    \
        if (plain_rows(p)) {                                                                                 \
            const int64_t stride = p->keep_dims ? p->keep_stride[0] : 0, n = p->red_dim[0];                  \
            _Pragma("omp parallel for schedule(static) if (p->total > TD_PARALLEL && p->units > 1)")         \
            for (int64_t u = 0; u < p->units; u++)                                                           \
                out[u] = which##_run_##name(base + u * stride, n, base[u * stride]);                         \
            return;                                                                                          \
        }                                                                                                    \
        _Pragma("omp parallel for schedule(static) if (p->total > TD_PARALLEL && p->units > 1)")             \
        for (int64_t u = 0; u < p->units; u++) {                                                             \
            int64_t in, at, width, r0 = 0, r1 = p->red_dim[0];                                               \
            T best[WIDTH];                                                                                   \
            find_unit(p, u, &in, &at, &width);                                                               \
            const T *from = base + in;                                                                       \
            for (int64_t c = 0; c < width; c++)                                                              \
                best[c] = from[c];                                                                           \
            FOR_RUNS(T, {                                                                                    \
                if (p->columns > 1) {                                                                        \
                    for (int64_t i = 0; i < n; i++) {                                                        \
                        const T *row = x + i * s;                                                            \
                        _Pragma("omp simd") for (int64_t c = 0; c < width; c++)                              \
                            best[c] = TAKES(BEFORE, row[c], best[c]) ? row[c] : best[c];                     \
                    }                                                                                        \
                } else if (s == 1) {                                                                         \
                    best[0] = which##_run_##name(x, n, best[0]);                                             \
                } else {                                                                                     \
                    T m = best[0];                                                                           \
                    for (int64_t i = 0; i < n; i++)                                                          \
                        m = TAKES(BEFORE, x[i * s], m) ? x[i * s] : m;                                       \
                    best[0] = m;                                                                             \
                }                                                                                            \
            });                                                                                              \
            memcpy(out + at, best, (size_t)width * sizeof *best);                                            \
        }                                                                                                    \
    }
#define EXTREMES(T, name) EXTREME(T, amax, BEFORE_MAX, name) EXTREME(T, amin, BEFORE_MIN, name)
EXTREMES(float, f32)
EXTREMES(double, f64)
EXTREMES(int64_t, i64)
EXTREMES(int32_t, i32)

#define EXTREME_ROW(which)                                                                                   \
    void K(which)(const td_reduce_loop *r, td_dtype t, void *out, const void *x)                             \
    {                                                                                                        \
        switch (t) {                                                                                         \
        case TD_F32: which##_f32(r, out, x); break;                                                          \
        case TD_F64: which##_f64(r, out, x); break;                                                          \
        case TD_I64: which##_i64(r, out, x); break;                                                          \
        case TD_I32: which##_i32(r, out, x); break;                                                          \
        default: break;                                                                                      \
        }                                                                                                    \
    }
EXTREME_ROW(amax)
EXTREME_ROW(amin)

/* The number of the first largest element, counted along the reduced dimensions in row order. A contiguous run is looked through twice: for its
 * largest element, and where that beats the runs before, for its place. */
#define ARGMAX(T, name)                                                                                      \
    /* The first place of m, which is among them. The block that has it is found first, then the place, in vectors: a step from one element to the next  \
     * would end where nobody can foresee. */                                                                \
    static int64_t place_##name(const T *x, int64_t n, T m)                                                  \
    {                                                                                                        \
        enum { BLOCK = 256 };                                                                                \
        int64_t i = 0;                                                                                       \
        if (m != m) {                                                                                        \
            while (x[i] == x[i])                                                                             \
                i++;                                                                                         \
            return i;                                                                                        \
        }                                                                                                    \
        for (; i + BLOCK < n; i += BLOCK) {                                                                  \
            int here = 0;                                                                                    \
            _Pragma("omp simd reduction(|:here)") for (int j = 0; j < BLOCK; j++) here |= x[i + j] == m;     \
            if (here)                                                                                        \
                break;                                                                                       \
        }                                                                                                    \
        const int left = (int)(n - i < BLOCK ? n - i : BLOCK);                                               \
        int first = BLOCK;                                                                                   \
        _Pragma("omp simd reduction(min:first)") for (int j = 0; j < left; j++) {                            \
            const int at = x[i + j] == m ? j : BLOCK;                                                        \
            first = at < first ? at : first;                                                                 \
        }                                                                                                    \
        return i + first;                                                                                    \
    }                                                                                                        \
    static void argmax_##name(const td_reduce_loop *r, int64_t *out, const T *base)                          \
    {                                                                                                        \
        plan whole = make_plan(r), *p = &whole;                                                              \
        if (plain_rows(p)) {                                                                                 \
            const int64_t stride = p->keep_dims ? p->keep_stride[0] : 0, n = p->red_dim[0];                  \
            _Pragma("omp parallel for schedule(static) if (p->total > TD_PARALLEL && p->units > 1)")         \
            for (int64_t u = 0; u < p->units; u++) {                                                         \
                const T *x = base + u * stride;                                                              \
                out[u] = place_##name(x, n, amax_run_##name(x, n, x[0]));                                    \
            }                                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        _Pragma("omp parallel for schedule(static) if (p->total > TD_PARALLEL && p->units > 1)")             \
        for (int64_t u = 0; u < p->units; u++) {                                                             \
            int64_t in, at, width, r0 = 0, r1 = p->red_dim[0], number = 0, where[WIDTH] = { 0 };             \
            T best[WIDTH];                                                                                   \
            find_unit(p, u, &in, &at, &width);                                                               \
            const T *from = base + in;                                                                       \
            for (int64_t c = 0; c < width; c++)                                                              \
                best[c] = from[c];                                                                           \
            FOR_RUNS(T, {                                                                                    \
                if (p->columns > 1) {                                                                        \
                    for (int64_t i = 0; i < n; i++, number++)                                                \
                        for (int64_t c = 0; c < width; c++) {                                                \
                            const bool takes = TAKES(BEFORE_MAX, x[i * s + c], best[c]);                     \
                            best[c] = takes ? x[i * s + c] : best[c];                                        \
                            where[c] = takes ? number : where[c];                                            \
                        }                                                                                    \
                } else if (s == 1) {                                                                         \
                    const T m = amax_run_##name(x, n, x[0]);                                                 \
                    if (number == 0 || TAKES(BEFORE_MAX, m, best[0]))                                        \
                        best[0] = m, where[0] = number + place_##name(x, n, m);                                 \
                    number += n;                                                                             \
                } else {                                                                                     \
                    for (int64_t i = 0; i < n; i++, number++)                                                \
                        if (TAKES(BEFORE_MAX, x[i * s], best[0]))                                            \
                            best[0] = x[i * s], where[0] = number;                                           \
                }                                                                                            \
            });                                                                                              \
            memcpy(out + at, where, (size_t)width * sizeof *where);                                          \
        }                                                                                                    \
    }
ARGMAX(float, f32)
ARGMAX(double, f64)
ARGMAX(int64_t, i64)
ARGMAX(int32_t, i32)

void K(argmax)(const td_reduce_loop *r, td_dtype t, int64_t *out, const void *x)
{
    switch (t) {
    case TD_F32: argmax_f32(r, out, x); break;
    case TD_F64: argmax_f64(r, out, x); break;
    case TD_I64: argmax_i64(r, out, x); break;
    case TD_I32: argmax_i32(r, out, x); break;
    default: break;
    }
}
