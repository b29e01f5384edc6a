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

/* Windows of 2 with stride 2 in f32: four at a time, on 16-byte vectors in every build (wider ones turn into gathers, and rows are
 * short). The last four of a row overlap the ones before; writing them twice does no harm. Rows have at least four windows. */
typedef float four __attribute__((vector_size(16)));
typedef float four_at __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_i __attribute__((vector_size(16)));
typedef int32_t four_i_at __attribute__((vector_size(16), aligned(4), may_alias));

static inline int64_t next_four(int64_t at, int64_t n)
{
    return at + 8 <= n || at + 4 == n ? at + 4 : n - 4;
}

static inline void consider(four v, four_i place, four *best, four_i *at)
{
    four_i wins = (v > *best) | (v != v);
    *best = (four)(((four_i)v & wins) | ((four_i)*best & ~wins));
    *at = (place & wins) | (*at & ~wins);
}

static void halve_f32(const td_conv2d_shape *s, float *y, int32_t *where, const float *x)
{
    const four_i steps = { 0, 2, 4, 6 };
    for (int64_t oh = 0; oh < s->oh; oh++, y += s->ow, where += s->ow) {
        const float *a = x + 2 * oh * s->w, *b = a + s->w;
        for (int64_t i = 0; i < s->ow; i = next_four(i, s->ow)) {
            four a0 = *(const four_at *)(a + 2 * i), a1 = *(const four_at *)(a + 2 * i + 4);
            four b0 = *(const four_at *)(b + 2 * i), b1 = *(const four_at *)(b + 2 * i + 4);
            four_i here = steps + (int32_t)(2 * oh * s->w + 2 * i), at = here;
            four best = __builtin_shuffle(a0, a1, (four_i){ 0, 2, 4, 6 });
            consider(__builtin_shuffle(a0, a1, (four_i){ 1, 3, 5, 7 }), here + 1, &best, &at);
            consider(__builtin_shuffle(b0, b1, (four_i){ 0, 2, 4, 6 }), here + (int32_t)s->w, &best, &at);
            consider(__builtin_shuffle(b0, b1, (four_i){ 1, 3, 5, 7 }), here + (int32_t)s->w + 1, &best, &at);
            *(four_at *)(y + i) = best;
            *(four_i_at *)(where + i) = at;
        }
    }
}

/* Writes all of gx: windows cover every element but an odd last row and column. */
static void halve_grad_f32(const td_conv2d_shape *s, float *gx, const float *gy, const int32_t *where)
{
    const four_i steps = { 0, 2, 4, 6 };
    for (int64_t oh = 0; oh < s->oh; oh++, gy += s->ow, where += s->ow) {
        float *a = gx + 2 * oh * s->w, *b = a + s->w;
        for (int64_t i = 0; i < s->ow; i = next_four(i, s->ow)) {
            four_i at = *(const four_i_at *)(where + i) - (steps + (int32_t)(2 * oh * s->w + 2 * i)),
                   g = (four_i)*(const four_at *)(gy + i);
            four a0 = (four)(g & (at == 0)), a1 = (four)(g & (at == 1));
            four b0 = (four)(g & (at == (int32_t)s->w)), b1 = (four)(g & (at == (int32_t)s->w + 1));
            *(four_at *)(a + 2 * i) = __builtin_shuffle(a0, a1, (four_i){ 0, 4, 1, 5 });
            *(four_at *)(a + 2 * i + 4) = __builtin_shuffle(a0, a1, (four_i){ 2, 6, 3, 7 });
            *(four_at *)(b + 2 * i) = __builtin_shuffle(b0, b1, (four_i){ 0, 4, 1, 5 });
            *(four_at *)(b + 2 * i + 4) = __builtin_shuffle(b0, b1, (four_i){ 2, 6, 3, 7 });
        }
        if (s->w & 1)
            a[s->w - 1] = b[s->w - 1] = 0;
    }
    if (s->h & 1)
        memset(gx + (s->h - 1) * s->w, 0, sizeof *gx * (size_t)s->w);
}

static bool halves(const td_conv2d_shape *s)
{
    return s->kh == 2 && s->kw == 2 && s->stride == 2 && s->padding == 0 && s->ow >= 4;
}

static void halve_planes(const td_conv2d_shape *s, float *y, int32_t *where, const float *x)
{
    const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;
#pragma omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)
    for (int64_t i = 0; i < planes; i++)
        halve_f32(s, y + i * out, where + i * out, x + i * in);
}

static void halve_planes_grad(const td_conv2d_shape *s, float *gx, const float *gy, const int32_t *where)
{
    const int64_t planes = s->n * s->c, in = s->h * s->w, out = s->oh * s->ow;
#pragma omp parallel for schedule(static) if (planes * in >= TD_PARALLEL)
    for (int64_t i = 0; i < planes; i++)
        halve_grad_f32(s, gx + i * in, gy + i * out, where + i * out);
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
    if (t == TD_F32 && halves(s) && !add)
        halve_planes_grad(s, gx, gout, where);
    else if (t == TD_F32)
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
