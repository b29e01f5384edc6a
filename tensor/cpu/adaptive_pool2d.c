/* tensor/cpu/adaptive_pool2d.c: pools whose output has a given size: output i of n along a direction of size m is made of the elements from
 * floor(i*m/n) up to ceil((i+1)*m/n), which is PyTorch's rule; neighbouring windows may share an element.
 *
 * A row of windows is taken at once: its lines are brought together column by column, in vectors, then each window's columns, from left to right. Sums are
 * in double; windows over whole rows in the order of lanes.h. The maximum and its place are those of pool2d.c, and so is the maximum's gradient. Where all
 * windows are equal and disjoint, their columns too are brought together in vectors (adaptive_pool2d_equal.h). Threads take whole planes, so their number
 * changes nothing.
 */
#include "cpu.h"
#include "lanes.h"
#include "stream.h"
#include "adaptive_pool2d_equal.h"

enum { COLUMNS = 512 };              /* taken together; a window that is wider goes element by element                       */
enum { STREAMED = 16 << 10 };        /* bytes of a plane that is written around the caches, at most                           */

static inline int64_t first(int64_t i, int64_t n, int64_t m)
{
    return i * m / n;
}

static inline int64_t end(int64_t i, int64_t n, int64_t m)
{
    return ((i + 1) * m + n - 1) / n;
}

/* The windows of a direction one after another, without a division for each: i * m = at * n + rest. */
typedef struct { int64_t at, rest, step, more, n; } windows;

static inline windows windows_from(int64_t i, int64_t n, int64_t m)
{
    return (windows){ i * m / n, i * m % n, m / n, m % n, n };
}

/* [*w0, *w1) of the next one */
static inline void next_window(windows *w, int64_t *w0, int64_t *w1)
{
    *w0 = w->at;
    w->at += w->step, w->rest += w->more;
    const int64_t over = w->rest >= w->n;
    w->at += over, w->rest -= over * w->n;
    *w1 = w->at + (w->rest > 0);
}

/* The window after `ow` of those that fit beside it into COLUMNS: at least ow + 1. */
static inline int64_t together(int64_t ow, const td_conv2d_shape *s)
{
    int64_t to = ow + 1;
    if (s->w <= COLUMNS)
        return s->ow;
    while (to < s->ow && end(to, s->ow, s->w) - first(ow, s->ow, s->w) <= COLUMNS)
        to++;
    return to;
}

/* Both element types from one text; y and x are one plane each. */
#define ADAPTIVE(T, F)                                                                                       \
    /* Is v at place k the maximum instead of best at place `at`? The first of equals in reading order, the last NaN. */  \
    static inline bool F(beats)(T v, int32_t k, T best, int32_t at)                                          \
    {                                                                                                        \
        return ((v != v) & ((best == best) | (k > at))) | (v > best) | ((v == best) & (k < at));             \
    }                                                                                                        \
                                                                                                             \
    static void F(max_windows)(const td_conv2d_shape *s, int64_t oh, int64_t from, int64_t to, T *restrict y, int32_t *restrict where,  \
                               const T *restrict x)                                                          \
    {                                                                                                        \
        const int64_t h0 = first(oh, s->oh, s->h), h1 = end(oh, s->oh, s->h), w0 = first(from, s->ow, s->w), w1 = end(to - 1, s->ow, s->w);  \
        T best[COLUMNS];                                                                                     \
        int32_t at[COLUMNS];                                                                                 \
        const int n = (int)(w1 - w0);                                                                        \
        for (int j = 0; j < n; j++) {                                                                        \
            best[j] = x[h0 * s->w + w0 + j];                                                                 \
            at[j] = (int32_t)(h0 * s->w + w0 + j);                                                           \
        }                                                                                                    \
        for (int64_t h = h0 + 1; h < h1; h++) {                                                              \
            const T *restrict row = x + h * s->w + w0;                                                       \
            const int32_t here = (int32_t)(h * s->w + w0);                                                   \
            _Pragma("omp simd")                                                                              \
            for (int j = 0; j < n; j++) {                                                                    \
                const bool wins = (row[j] > best[j]) | (row[j] != row[j]);                                   \
                best[j] = wins ? row[j] : best[j];                                                           \
                at[j] = wins ? here + j : at[j];                                                             \
            }                                                                                                \
        }                                                                                                    \
        windows w = windows_from(from, s->ow, s->w);                                                         \
        for (int64_t ow = from; ow < to; ow++) {                                                             \
            int64_t j0, j1;                                                                                  \
            next_window(&w, &j0, &j1);                                                                       \
            int64_t most = j0 - w0;               /* arithmetic instead of a branch that fails every other time */  \
            for (int64_t j = most + 1; j < j1 - w0; j++)                                                     \
                most += (j - most) & -(int64_t)F(beats)(best[j], at[j], best[most], at[most]);               \
            y[oh * s->ow + ow] = best[most];                                                                 \
            where[oh * s->ow + ow] = at[most];                                                               \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(max_plane)(const td_conv2d_shape *s, T *restrict y, int32_t *restrict where, const T *restrict x)  \
    {                                                                                                        \
        for (int64_t oh = 0; oh < s->oh; oh++)                                                               \
            for (int64_t ow = 0, to; ow < s->ow; ow = to) {                                                  \
                to = together(ow, s);                                                                        \
                const int64_t w0 = first(ow, s->ow, s->w), w1 = end(ow, s->ow, s->w);                        \
                if (w1 - w0 <= COLUMNS) {                                                                    \
                    F(max_windows)(s, oh, ow, to, y, where, x);                                              \
                    continue;                                                                                \
                }                                                                                            \
                T best = -(T)INFINITY;                                                                       \
                int64_t at = first(oh, s->oh, s->h) * s->w + w0;                                             \
                for (int64_t h = first(oh, s->oh, s->h); h < end(oh, s->oh, s->h); h++)                      \
                    for (int64_t w = w0; w < w1; w++) {                                                      \
                        T v = x[h * s->w + w];                                                               \
                        if (v > best || v != v)                                                              \
                            best = v, at = h * s->w + w;                                                     \
                    }                                                                                        \
                y[oh * s->ow + ow] = best;                                                                   \
                where[oh * s->ow + ow] = (int32_t)at;                                                        \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_windows)(const td_conv2d_shape *s, int64_t oh, int64_t from, int64_t to, T *restrict y, const T *restrict x)  \
    {                                                                                                        \
        const int64_t h0 = first(oh, s->oh, s->h), h1 = end(oh, s->oh, s->h), w0 = first(from, s->ow, s->w), w1 = end(to - 1, s->ow, s->w);  \
        double column[COLUMNS];                                                                              \
        const int n = (int)(w1 - w0);                                                                        \
        for (int j = 0; j < n; j++)                                                                          \
            column[j] = 0;                                                                                   \
        for (int64_t h = h0; h < h1; h++) {                                                                  \
            const T *restrict row = x + h * s->w + w0;                                                       \
            _Pragma("omp simd")                                                                              \
            for (int j = 0; j < n; j++)                                                                      \
                column[j] += (double)row[j];                                                                 \
        }                                                                                                    \
        windows w = windows_from(from, s->ow, s->w);                                                         \
        for (int64_t ow = from; ow < to; ow++) {                                                             \
            int64_t j0, j1;                                                                                  \
            next_window(&w, &j0, &j1);                                                                       \
            double sum = 0;                                                                                  \
            for (int64_t j = j0 - w0; j < j1 - w0; j++)                                                      \
                sum += column[j];                                                                            \
            y[oh * s->ow + ow] = (T)(sum / (double)((h1 - h0) * (j1 - j0)));                                 \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_plane)(const td_conv2d_shape *s, T *restrict y, const T *restrict x)                   \
    {                                                                                                        \
        for (int64_t oh = 0; oh < s->oh; oh++)                                                               \
            for (int64_t ow = 0, to; ow < s->ow; ow = to) {                                                  \
                to = s->ow == 1 ? 1 : together(ow, s);                                                       \
                const int64_t h0 = first(oh, s->oh, s->h), h1 = end(oh, s->oh, s->h);                        \
                const int64_t w0 = first(ow, s->ow, s->w), w1 = end(ow, s->ow, s->w);                        \
                if (s->ow > 1 && w1 - w0 <= COLUMNS) {                                                       \
                    F(avg_windows)(s, oh, ow, to, y, x);                                                     \
                    continue;                                                                                \
                }                                                                                            \
                double sum = 0, line;                                                                        \
                if (s->ow == 1) {                                                                            \
                    const T *restrict all = x + h0 * s->w;                                                   \
                    TD_LANES_SUM(sum, (h1 - h0) * s->w, (double)all[i]);                                     \
                } else {                                                                                     \
                    for (int64_t h = h0; h < h1; h++) {                                                      \
                        const T *restrict row = x + h * s->w + w0;                                           \
                        TD_LANES_SUM(line, w1 - w0, (double)row[i]);                                         \
                        sum += line;                                                                         \
                    }                                                                                        \
                }                                                                                            \
                y[oh * s->ow + ow] = (T)(sum / (double)((h1 - h0) * (w1 - w0)));                             \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    /* What a line of x receives from the windows [from, to) of one row; those that share an element add up in order. */  \
    static void F(avg_grad_windows)(const td_conv2d_shape *s, int64_t lines, int64_t from, int64_t to, T *restrict line, const T *restrict gy)  \
    {                                                                                                        \
        windows w = windows_from(from, s->ow, s->w);                                                         \
        const int64_t begin = w.at;                                                                          \
        int64_t done = begin, w0, w1;                                                                        \
        for (int64_t ow = from; ow < to; ow++) {                                                             \
            next_window(&w, &w0, &w1);                                                                       \
            const T g = gy[ow] / (T)(lines * (w1 - w0));                                                     \
            for (int64_t k = w0; k < w1; k++)                                                                \
                line[k - begin] = k < done ? line[k - begin] + g : g;                                        \
            done = w1;                                                                                       \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* Elements that no two windows share, or only within a row of windows that is taken together, are written once; others are added to, from  \
     * zeros on. A window of whole lines is one run. */                                                      \
    static void F(avg_grad_plane)(const td_conv2d_shape *s, T *restrict gx, const T *restrict gy, bool add)  \
    {                                                                                                        \
        const bool once = !add && s->h % s->oh == 0 && (s->w <= COLUMNS || s->w % s->ow == 0);               \
        if (!add && !once)                                                                                   \
            memset(gx, 0, sizeof(T) * (size_t)(s->h * s->w));                                                \
        for (int64_t oh = 0; oh < s->oh; oh++)                                                               \
            for (int64_t ow = 0, to; ow < s->ow; ow = to) {                                                  \
                T line[COLUMNS];                                                                             \
                to = together(ow, s);                                                                        \
                const int64_t h0 = first(oh, s->oh, s->h), h1 = end(oh, s->oh, s->h), w0 = first(ow, s->ow, s->w), w1 = end(to - 1, s->ow, s->w);  \
                const T *g = gy + oh * s->ow, each = g[ow] / (T)((h1 - h0) * (w1 - w0));                     \
                const bool one = s->ow == 1, wide = w1 - w0 > COLUMNS;     /* wide: then it is one window           */  \
                const int64_t lines = one ? 1 : h1 - h0, n = one ? (h1 - h0) * s->w : w1 - w0;               \
                if (!wide && !one)                                                                           \
                    F(avg_grad_windows)(s, h1 - h0, ow, to, line, g);                                        \
                for (int64_t h = h0; h < h0 + lines; h++) {                                                  \
                    T *restrict into = gx + h * s->w + w0;                                                   \
                    if (wide || one)                                                                         \
                        for (int64_t k = 0; k < n; k++)                                                      \
                            into[k] = (once ? 0 : into[k]) + each;                                           \
                    else                                                                                     \
                        for (int64_t k = 0; k < n; k++)                                                      \
                            into[k] = (once ? 0 : into[k]) + line[k];                                        \
                }                                                                                            \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    static void F(max_planes)(const td_conv2d_shape *s, T *y, int32_t *where, const T *x)                    \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        bool (*const equal)(const td_conv2d_shape *, T *, int32_t *, const T *) = F(EQUAL)(s, max);          \
        _Pragma("omp parallel for schedule(static) if (planes * (in + out) >= TD_PARALLEL)")                 \
        for (int64_t i = 0; i < planes; i++)                                                                 \
            if (!equal || !equal(s, y + i * out, where + i * out, x + i * in))                               \
                F(max_plane)(s, y + i * out, where + i * out, x + i * in);                                   \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_planes)(const td_conv2d_shape *s, T *y, const T *x)                                    \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        void (*const plane)(const td_conv2d_shape *, T *, const T *) = s->ow > 1 && equal_f64_fits(s) ? F(equal_avg) : F(avg_plane);  \
        _Pragma("omp parallel for schedule(static) if (planes * (in + out) >= TD_PARALLEL)")                 \
        for (int64_t i = 0; i < planes; i++)                                                                 \
            plane(s, y + i * out, x + i * in);                                                               \
    }                                                                                                        \
                                                                                                             \
    /* Gradients of equal windows into nothing, of the average or, where there are places, of the maximum */  \
    static bool F(equal_grads)(const td_conv2d_shape *s, T *gx, const T *gy, const int32_t *where)           \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow, bytes = in * (int64_t)sizeof(T);  \
        void (*const max)(const td_conv2d_shape *, T *, const T *, const int32_t *) = F(EQUAL)(s, max_grad);  \
        void (*const avg)(const td_conv2d_shape *, T *, const T *, bool) = F(EQUAL)(s, avg_grad);            \
        const bool streamed = planes * bytes >= TD_STREAM_BYTES && bytes <= STREAMED;                        \
        if (!max)                                                                                            \
            return false;                                                                                    \
        _Pragma("omp parallel if (planes * (in + out) >= TD_PARALLEL)")                                      \
        {                                                                                                    \
            _Alignas(64) char block[STREAMED];                                                               \
            _Pragma("omp for schedule(static) nowait")                                                       \
            for (int64_t i = 0; i < planes; i++) {                                                           \
                T *into = streamed ? (T *)(void *)block : gx + i * in;                                       \
                if (where)                                                                                   \
                    max(s, into, gy + i * out, where + i * out);                                             \
                else                                                                                         \
                    avg(s, into, gy + i * out, false);                                                       \
                if (streamed)                                                                                \
                    td__stream(gx + i * in, block, (size_t)bytes);                                           \
            }                                                                                                \
            if (streamed)                                                                                    \
                td__stream_end();                                                                            \
        }                                                                                                    \
        return true;                                                                                         \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_grad_planes)(const td_conv2d_shape *s, T *gx, const T *gy, bool add)                   \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        void (*const equal)(const td_conv2d_shape *, T *, const T *, bool) = F(EQUAL)(s, avg_grad);          \
        if (!add && F(equal_grads)(s, gx, gy, NULL))                                                         \
            return;                                                                                          \
        _Pragma("omp parallel for schedule(static) if (planes * (in + out) >= TD_PARALLEL)")                 \
        for (int64_t i = 0; i < planes; i++)                                                                 \
            if (equal)                                                                                       \
                equal(s, gx + i * in, gy + i * out, add);                                                    \
            else                                                                                             \
                F(avg_grad_plane)(s, gx + i * in, gy + i * out, add);                                        \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
ADAPTIVE(float, F32)
ADAPTIVE(double, F64)

void K(adaptive_max_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x)
{
    if (t == TD_F32)
        max_planes_f32(s, out, where, x);
    else
        max_planes_f64(s, out, where, x);
}

void K(adaptive_avg_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, const void *x)
{
    if (t == TD_F32)
        avg_planes_f32(s, out, x);
    else
        avg_planes_f64(s, out, x);
}

void K(adaptive_avg_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add)
{
    if (t == TD_F32)
        avg_grad_planes_f32(s, gx, gout, add);
    else
        avg_grad_planes_f64(s, gx, gout, add);
}

bool K(adaptive_max_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const int32_t *where)
{
    return t == TD_F32 ? equal_grads_f32(s, gx, gout, where) : equal_grads_f64(s, gx, gout, where);
}
