/* tensor/cpu/pool2d.c: maximum and average pooling over square windows, and their gradients.
 *
 * The maximum is the first one in reading order; a NaN in the window is the result (as in PyTorch). Its place is saved as h*W + w. Padding never wins a
 * maximum, and counts as zeroes in an average. Windows that meet without overlap or padding (window = stride = 2) have loops of their
 * own, which write the gradient in one pass. Threads take whole planes, so their number changes nothing.
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

static bool is_halving(const td_conv2d_shape *s)
{
    return s->kh == 2 && s->kw == 2 && s->stride == 2 && s->padding == 0;
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
    static void F(max_halving)(const td_conv2d_shape *s, T *restrict y, int32_t *restrict where, const T *restrict x)  \
    {                                                                                                        \
        const int32_t width = (int32_t)s->w;                                                                 \
        for (int64_t oh = 0; oh < s->oh; oh++, y += s->ow, where += s->ow) {                                 \
            const T *restrict a = x + 2 * oh * s->w, *restrict b = a + s->w;                                 \
            const int32_t first = (int32_t)(2 * oh * s->w);                                                  \
            _Pragma("omp simd")                                                                              \
            for (int32_t ow = 0; ow < (int32_t)s->ow; ow++) {                                                \
                T v0 = a[2 * ow], v1 = a[2 * ow + 1], v2 = b[2 * ow], v3 = b[2 * ow + 1];                    \
                T best = v0;                                                                                 \
                int32_t at = 0;                                                                              \
                at = (v1 > best) | (v1 != v1) ? 1 : at;                                                      \
                best = (v1 > best) | (v1 != v1) ? v1 : best;                                                 \
                at = (v2 > best) | (v2 != v2) ? width : at;                                                  \
                best = (v2 > best) | (v2 != v2) ? v2 : best;                                                 \
                at = (v3 > best) | (v3 != v3) ? width + 1 : at;                                              \
                best = (v3 > best) | (v3 != v3) ? v3 : best;                                                 \
                y[ow] = best;                                                                                \
                where[ow] = first + 2 * ow + at;                                                             \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(max_grad_plane)(const td_conv2d_shape *s, T *restrict gx, const T *restrict gy, const int32_t *restrict where)  \
    {                                                                                                        \
        for (int64_t i = 0; i < s->oh * s->ow; i++)                                                          \
            gx[where[i]] += gy[i];                                                                           \
    }                                                                                                        \
                                                                                                             \
    static void F(max_grad_halving)(const td_conv2d_shape *s, T *restrict gx, const T *restrict gy, const int32_t *restrict where)  \
    {                                                                                                        \
        const int32_t width = (int32_t)s->w;                                                                 \
        for (int64_t oh = 0; oh < s->oh; oh++, gy += s->ow, where += s->ow) {                                \
            T *restrict a = gx + 2 * oh * s->w, *restrict b = a + s->w;                                      \
            const int32_t first = (int32_t)(2 * oh * s->w);                                                  \
            _Pragma("omp simd")                                                                              \
            for (int32_t ow = 0; ow < (int32_t)s->ow; ow++) {                                                \
                int32_t at = where[ow] - (first + 2 * ow);                                                   \
                T g = gy[ow];                                                                                \
                a[2 * ow] = at == 0 ? g : 0;                                                                 \
                a[2 * ow + 1] = at == 1 ? g : 0;                                                             \
                b[2 * ow] = at == width ? g : 0;                                                             \
                b[2 * ow + 1] = at == width + 1 ? g : 0;                                                     \
            }                                                                                                \
            if (s->w & 1)                                                                                    \
                a[s->w - 1] = b[s->w - 1] = 0;                                                               \
        }                                                                                                    \
        if (s->h & 1)                                                                                        \
            memset(gx + (s->h - 1) * s->w, 0, sizeof(T) * (size_t)s->w);                                     \
    }                                                                                                        \
                                                                                                             \
    static void F(max_pool)(const td_conv2d_shape *s, T *y, int32_t *where, const T *x)                      \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        const bool halving = is_halving(s);                                                                  \
        _Pragma("omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)")                         \
        for (int64_t i = 0; i < planes; i++)                                                                 \
            (halving ? F(max_halving) : F(max_plane))(s, y + i * out, where + i * out, x + i * in);          \
    }                                                                                                        \
                                                                                                             \
    static void F(max_pool_grad)(const td_conv2d_shape *s, T *gx, const T *gy, const int32_t *where, bool add)  \
    {                                                                                                        \
        const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;                           \
        const bool halving = is_halving(s) && !add;                                                          \
        _Pragma("omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)")                         \
        for (int64_t i = 0; i < planes; i++) {                                                               \
            if (halving) {                                                                                   \
                F(max_grad_halving)(s, gx + i * in, gy + i * out, where + i * out);                          \
                continue;                                                                                    \
            }                                                                                                \
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
    if (t == TD_F32)
        max_pool_f32(s, out, where, x);
    else
        max_pool_f64(s, out, where, x);
}

void K(max_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const int32_t *where, bool add)
{
    if (t == TD_F32)
        max_pool_grad_f32(s, gx, gout, where, add);
    else
        max_pool_grad_f64(s, gx, gout, where, add);
}

void K(avg_pool2d)(td_dtype t, const td_conv2d_shape *s, void *out, const void *x)
{
    if (t == TD_F32)
        avg_pool_f32(s, out, x);
    else
        avg_pool_f64(s, out, x);
}

void K(avg_pool2d_grad)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add)
{
    if (t == TD_F32)
        avg_pool_grad_f32(s, gx, gout, add);
    else
        avg_pool_grad_f64(s, gx, gout, add);
}
