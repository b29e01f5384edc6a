/* tensor/cpu/pool2d.c: maximum and average pooling over square windows, and their gradients.
 *
 * The maximum is the first one in reading order; a NaN in the window is the result (as in PyTorch). Its place is saved as h*W + w.
 * Padding never wins a maximum, and counts as zeroes in an average. The common case (window and stride 2, no padding, f32) has
 * loops of its own, which write the gradient in one pass. Threads take whole planes, so their number changes nothing.
 */
#include "cpu.h"

static inline int64_t low(int64_t o, const td_conv2d_shape *s)
{
    int64_t at = o * s->stride - s->padding;
    return at < 0 ? 0 : at;
}

static inline int64_t high(int64_t o, int64_t window, int64_t size, const td_conv2d_shape *s)
{
    int64_t at = o * s->stride - s->padding + window;
    return at > size ? size : at;
}

/* Windows of 2 with stride 2 in f32, without padding, on vectors that the instruction set can shuffle from two and that a row fills. */
#define WIDTH 4
#define H(name) halve4_##name
#define EVEN 0, 2, 4, 6
#define LOW 0, 4, 1, 5
#include "pool2d_halves.h"
#undef WIDTH
#undef H
#undef EVEN
#undef LOW
#ifdef __AVX2__
#define WIDTH 8
#define H(name) halve8_##name
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#include "pool2d_halves.h"
#undef WIDTH
#undef H
#undef EVEN
#undef LOW
#endif
#ifdef __AVX512F__
#define WIDTH 16
#define H(name) halve16_##name
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#include "pool2d_halves.h"
#undef WIDTH
#undef H
#undef EVEN
#undef LOW
#endif

#ifdef __AVX512F__
#define IF_16(s, call) (s)->ow >= 16 ? halve16_##call :
#else
#define IF_16(s, call)
#endif
#ifdef __AVX2__
#define IF_8(s, call) (s)->ow >= 8 ? halve8_##call :
#else
#define IF_8(s, call)
#endif
/* the widest that a row fills */
#define HALVE(s, call) (IF_16(s, call) IF_8(s, call) halve4_##call)

static bool halves(const td_conv2d_shape *s)
{
    return s->kh == 2 && s->kw == 2 && s->stride == 2 && s->padding == 0 && s->ow >= 4;
}

/* What no window covers: an odd last column and row. */
static void clear_rest(const td_conv2d_shape *s, float *gx)
{
    if (s->w & 1)
        for (int64_t h = 0; h < 2 * s->oh; h++)
            gx[h * s->w + s->w - 1] = 0;
    if (s->h & 1)
        memset(gx + (s->h - 1) * s->w, 0, sizeof *gx * (size_t)s->w);
}

static void halve_planes(const td_conv2d_shape *s, float *y, int32_t *where, const float *x)
{
    const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;
    void (*const plane)(const td_conv2d_shape *, float *, int32_t *, const float *) = HALVE(s, max);
#pragma omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)
    for (int64_t i = 0; i < planes; i++)
        plane(s, y + i * out, where + i * out, x + i * in);
}

static void halve_planes_grad(const td_conv2d_shape *s, float *gx, const float *gy, const int32_t *where)
{
    const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;
    void (*const plane)(const td_conv2d_shape *, float *, const float *, const int32_t *) = HALVE(s, max_grad);
#pragma omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)
    for (int64_t i = 0; i < planes; i++) {
        plane(s, gx + i * in, gy + i * out, where + i * out);
        clear_rest(s, gx + i * in);
    }
}

static void halve_means(const td_conv2d_shape *s, float *y, const float *x)
{
    const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;
    void (*const plane)(const td_conv2d_shape *, float *, const float *) = HALVE(s, mean);
#pragma omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)
    for (int64_t i = 0; i < planes; i++)
        plane(s, y + i * out, x + i * in);
}

static void halve_means_grad(const td_conv2d_shape *s, float *gx, const float *gy)
{
    const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;
    void (*const plane)(const td_conv2d_shape *, float *, const float *) = HALVE(s, mean_grad);
#pragma omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)
    for (int64_t i = 0; i < planes; i++) {
        plane(s, gx + i * in, gy + i * out);
        clear_rest(s, gx + i * in);
    }
}

/* Both element types from one text; y, x: one plane each. */
#define POOL(T, F)                                                                                           \
    static void F(max_plane)(const td_conv2d_shape *s, T *restrict y, int32_t *restrict where, const T *restrict x)  \
    {                                                                                                        \
        for (int64_t oh = 0; oh < s->oh; oh++)                                                               \
            for (int64_t ow = 0; ow < s->ow; ow++) {                                                         \
                int64_t h0 = low(oh, s), h1 = high(oh, s->kh, s->h, s), w0 = low(ow, s), w1 = high(ow, s->kw, s->w, s);  \
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
    static void F(max_grad_plane)(const td_conv2d_shape *s, T *restrict gx, const T *restrict gy, const int32_t *restrict where)  \
    {                                                                                                        \
        for (int64_t i = 0; i < s->oh * s->ow; i++)                                                          \
            gx[where[i]] += gy[i];                                                                           \
    }                                                                                                        \
                                                                                                             \
    static void F(max_pool)(const td_conv2d_shape *s, T *y, int32_t *where, const T *x)                      \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        _Pragma("omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)")                         \
        for (int64_t i = 0; i < planes; i++)                                                                 \
            F(max_plane)(s, y + i * out, where + i * out, x + i * in);                                       \
    }                                                                                                        \
                                                                                                             \
    static void F(max_pool_grad)(const td_conv2d_shape *s, T *gx, const T *gy, const int32_t *where, bool add)  \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        _Pragma("omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)")                         \
        for (int64_t i = 0; i < planes; i++) {                                                               \
            if (!add)                                                                                        \
                memset(gx + i * in, 0, sizeof(T) * (size_t)in);                                              \
            F(max_grad_plane)(s, gx + i * in, gy + i * out, where + i * out);                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_pool)(const td_conv2d_shape *s, T *y, const T *x)                                      \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        const T area = (T)(s->kh * s->kw);                                                                   \
        _Pragma("omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)")                         \
        for (int64_t i = 0; i < planes; i++) {                                                               \
            const T *restrict xi = x + i * in;                                                               \
            T *restrict yi = y + i * out;                                                                    \
            for (int64_t oh = 0; oh < s->oh; oh++)                                                           \
                for (int64_t ow = 0; ow < s->ow; ow++) {                                                     \
                    int64_t h1 = high(oh, s->kh, s->h, s), w1 = high(ow, s->kw, s->w, s);                    \
                    T sum = 0;                                                                               \
                    for (int64_t h = low(oh, s); h < h1; h++)                                                \
                        for (int64_t w = low(ow, s); w < w1; w++)                                            \
                            sum += xi[h * s->w + w];                                                         \
                    *yi++ = sum / area;                                                                      \
                }                                                                                            \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(avg_pool_grad)(const td_conv2d_shape *s, T *gx, const T *gy, bool add)                     \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        const T area = (T)(s->kh * s->kw);                                                                   \
        _Pragma("omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)")                         \
        for (int64_t i = 0; i < planes; i++) {                                                               \
            T *restrict to = gx + i * in;                                                                    \
            const T *restrict from = gy + i * out;                                                           \
            if (!add)                                                                                        \
                memset(to, 0, sizeof(T) * (size_t)in);                                                       \
            for (int64_t oh = 0; oh < s->oh; oh++)                                                           \
                for (int64_t ow = 0; ow < s->ow; ow++) {                                                     \
                    int64_t h1 = high(oh, s->kh, s->h, s), w1 = high(ow, s->kw, s->w, s);                    \
                    T g = *from++ / area;                                                                    \
                    for (int64_t h = low(oh, s); h < h1; h++)                                                \
                        for (int64_t w = low(ow, s); w < w1; w++)                                            \
                            to[h * s->w + w] += g;                                                           \
                }                                                                                            \
        }                                                                                                    \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
POOL(float, F32)
POOL(double, F64)

void K(max_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x)
{
    if (t == TD_F32 && halves(s))
        halve_planes(s, out, where, x);
    else if (t == TD_F32)
        max_pool_f32(s, out, where, x);
    else
        max_pool_f64(s, out, where, x);
}

void K(max_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const int32_t *where, bool add)
{
    const bool adaptive = s->kh == 0;
    if (adaptive && !add && K(adaptive_max_pool2d_grad)(t, s, gx, gout, where))
        return;
    if (t == TD_F32 && halves(s) && !add)
        halve_planes_grad(s, gx, gout, where);
    else if (t == TD_F32)
        max_pool_grad_f32(s, gx, gout, where, add);
    else
        max_pool_grad_f64(s, gx, gout, where, add);
}

void K(avg_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, const void *x)
{
    if (t == TD_F32 && halves(s))
        halve_means(s, out, x);
    else if (t == TD_F32)
        avg_pool_f32(s, out, x);
    else
        avg_pool_f64(s, out, x);
}

void K(avg_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add)
{
    if (t == TD_F32 && halves(s) && !add)
        halve_means_grad(s, gx, gout);
    else if (t == TD_F32)
        avg_pool_grad_f32(s, gx, gout, add);
    else
        avg_pool_grad_f64(s, gx, gout, add);
}
