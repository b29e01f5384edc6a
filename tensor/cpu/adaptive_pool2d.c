/* tensor/cpu/adaptive_pool2d.c: pools whose output has a given size: output i of n along a direction of size m is made of the elements from
 * floor(i*m/n) up to ceil((i+1)*m/n), which is PyTorch's rule; neighbouring windows may share an element.
 *
 * Sums are in double, windows over whole rows in the order of lanes.h, others element by element. The maximum and its place are those of
 * pool2d.c, and so is the maximum's gradient. Threads take whole planes, so their number changes nothing.
 */
#include "cpu.h"
#include "lanes.h"

static inline int64_t first(int64_t i, int64_t n, int64_t m)
{
    return i * m / n;
}

static inline int64_t end(int64_t i, int64_t n, int64_t m)
{
    return ((i + 1) * m + n - 1) / n;
}

/* Both element types from one text; y and x are one plane each. */
#define ADAPTIVE(T, F)                                                                                       \
    static void F(max_plane)(const td_conv2d_shape *s, T *restrict y, int32_t *restrict where, const T *restrict x)  \
    {                                                                                                        \
        for (int64_t oh = 0; oh < s->oh; oh++)                                                               \
            for (int64_t ow = 0; ow < s->ow; ow++) {                                                         \
                int64_t h0 = first(oh, s->oh, s->h), h1 = end(oh, s->oh, s->h);                              \
                int64_t w0 = first(ow, s->ow, s->w), w1 = end(ow, s->ow, s->w);                              \
                T best = -(T)INFINITY;                                                                       \
                int64_t at = h0 * s->w + w0;                                                                 \
                for (int64_t h = h0; h < h1; h++)                                                            \
                    for (int64_t w = w0; w < w1; w++) {                                                      \
                        T v = x[h * s->w + w];                                                               \
                        if (v > best || v != v)                                                              \
                            best = v, at = h * s->w + w;                                                     \
                    }                                                                                        \
                *y++ = best;                                                                                 \
                *where++ = (int32_t)at;                                                                      \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    static double F(window_sum)(const td_conv2d_shape *s, const T *restrict x, int64_t h0, int64_t h1, int64_t w0, int64_t w1)  \
    {                                                                                                        \
        double sum = 0;                                                                                      \
        if (w1 - w0 == s->w) {                                                                               \
            const T *restrict from = x + h0 * s->w;                                                          \
            TD_LANES_SUM(sum, (h1 - h0) * s->w, (double)from[i]);                                            \
            return sum;                                                                                      \
        }                                                                                                    \
        for (int64_t h = h0; h < h1; h++)                                                                    \
            for (int64_t w = w0; w < w1; w++)                                                                \
                sum += (double)x[h * s->w + w];                                                              \
        return sum;                                                                                          \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_plane)(const td_conv2d_shape *s, T *restrict y, const T *restrict x)                   \
    {                                                                                                        \
        for (int64_t oh = 0; oh < s->oh; oh++)                                                               \
            for (int64_t ow = 0; ow < s->ow; ow++) {                                                         \
                int64_t h0 = first(oh, s->oh, s->h), h1 = end(oh, s->oh, s->h);                              \
                int64_t w0 = first(ow, s->ow, s->w), w1 = end(ow, s->ow, s->w);                              \
                *y++ = (T)(F(window_sum)(s, x, h0, h1, w0, w1) / (double)((h1 - h0) * (w1 - w0)));           \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_grad_plane)(const td_conv2d_shape *s, T *restrict gx, const T *restrict gy)            \
    {                                                                                                        \
        for (int64_t oh = 0; oh < s->oh; oh++)                                                               \
            for (int64_t ow = 0; ow < s->ow; ow++) {                                                         \
                int64_t h0 = first(oh, s->oh, s->h), h1 = end(oh, s->oh, s->h);                              \
                int64_t w0 = first(ow, s->ow, s->w), w1 = end(ow, s->ow, s->w);                              \
                const T g = *gy++ / (T)((h1 - h0) * (w1 - w0));                                              \
                for (int64_t h = h0; h < h1; h++)                                                            \
                    for (int64_t w = w0; w < w1; w++)                                                        \
                        gx[h * s->w + w] += g;                                                               \
            }                                                                                                \
    }                                                                                                        \
                                                                                                             \
    static void F(max_planes)(const td_conv2d_shape *s, T *y, int32_t *where, const T *x)                    \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        _Pragma("omp parallel for schedule(static) if (planes * (in + out) >= TD_PARALLEL)")                 \
        for (int64_t i = 0; i < planes; i++)                                                                 \
            F(max_plane)(s, y + i * out, where + i * out, x + i * in);                                       \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_planes)(const td_conv2d_shape *s, T *y, const T *x)                                    \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        _Pragma("omp parallel for schedule(static) if (planes * (in + out) >= TD_PARALLEL)")                 \
        for (int64_t i = 0; i < planes; i++)                                                                 \
            F(avg_plane)(s, y + i * out, x + i * in);                                                        \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_grad_planes)(const td_conv2d_shape *s, T *gx, const T *gy, bool add)                   \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        _Pragma("omp parallel for schedule(static) if (planes * (in + out) >= TD_PARALLEL)")                 \
        for (int64_t i = 0; i < planes; i++) {                                                               \
            if (!add)                                                                                        \
                memset(gx + i * in, 0, sizeof(T) * (size_t)in);                                              \
            F(avg_grad_plane)(s, gx + i * in, gy + i * out);                                                 \
        }                                                                                                    \
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
