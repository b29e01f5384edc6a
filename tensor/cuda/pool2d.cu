/* tensor/cuda/pool2d.cu: maximum and average pooling over windows, of a given size or adaptive, and their gradients.
 *
 * Twin of ../cpu/pool2d.c and ../cpu/adaptive_pool2d.c. A thread takes an output, or a warp where an average's window is large. The gradients
 * are seen from the input: an element adds up what the windows that hold it give it, in their order, so nothing is written twice and nothing is
 * atomic. Images with the channels last: pool2d_last.cu.
 */
#include "packs.h"
#include "windows.h"

enum { LARGE = 32 };                     /* elements of a window that a warp sums */

typedef struct { int64_t plane, row, column; } place;
__device__ __forceinline__ place place_of(int64_t at, int64_t rows, int64_t columns)
{
    place p;
    if (at <= 0x7fffffff) {
        const uint32_t line = (uint32_t)at / (uint32_t)columns;
        p.plane = line / (uint32_t)rows;
        p.row = line - (uint32_t)p.plane * (uint32_t)rows;
        p.column = (uint32_t)at - line * (uint32_t)columns;
    } else {
        const int64_t line = at / columns;
        p.plane = line / rows;
        p.row = line - p.plane * rows;
        p.column = at - line * columns;
    }
    return p;
}

/* The first maximum in reading order; a NaN wins, the last one's place is kept: as the CPU. */
template <class T> __global__ void __launch_bounds__(TD_THREADS) max_kernel(td_conv2d_shape s, int64_t n, T *y, int32_t *where, const T *x)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(at, n) {
        const place p = place_of(at, s.oh, s.ow);
        const T *xp = x + p.plane * s.h * s.w;
        int64_t h0, h1, w0, w1;
        window_of(s, p.row, s.oh, s.h, s.kh, &h0, &h1);
        window_of(s, p.column, s.ow, s.w, s.kw, &w0, &w1);
        W best = -(W)INFINITY;
        int64_t found = h0 * s.w + w0;
        for (int64_t h = h0; h < h1; h++)
            for (int64_t w = w0; w < w1; w++) {
                const W v = td_load<T>(xp + h * s.w + w);
                if (v > best || v != v) {
                    best = v;
                    found = h * s.w + w;
                }
            }
        td_store<T>(y + at, best);
        where[at] = (int32_t)found;
    }
}

template <class T>
__global__ void __launch_bounds__(TD_THREADS) max_grad_kernel(td_conv2d_shape s, int64_t n, T *gx, const T *gy, const int32_t *where, bool add)
{
    TD_GRID_STRIDE(at, n) {
        const place p = place_of(at, s.h, s.w);
        const int32_t own = (int32_t)(p.row * s.w + p.column);
        int64_t r0, r1, c0, c1;
        windows_over(s, p.row, s.oh, s.h, s.kh, &r0, &r1);
        windows_over(s, p.column, s.ow, s.w, s.kw, &c0, &c1);
        td_wide<T> sum = 0;
        for (int64_t r = r0; r < r1; r++)
            for (int64_t c = c0; c < c1; c++) {
                const int64_t o = (p.plane * s.oh + r) * s.ow + c;
                if (where[o] == own)
                    sum += td_load<T>(gy + o);
            }
        td_put<T>(gx + at, sum, add);
    }
}

/* TEAM 1: a thread for each output; 32: a warp */
template <class T, int TEAM> __global__ void __launch_bounds__(TD_THREADS) avg_kernel(td_conv2d_shape s, int64_t n, T *y, const T *x)
{
    const int lane = threadIdx.x % TEAM;
    for (int64_t at = ((int64_t)blockIdx.x * TD_THREADS + threadIdx.x) / TEAM; at < n; at += (int64_t)gridDim.x * (TD_THREADS / TEAM)) {
        const place p = place_of(at, s.oh, s.ow);
        const T *xp = x + p.plane * s.h * s.w;
        int64_t h0, h1, w0, w1;
        window_of(s, p.row, s.oh, s.h, s.kh, &h0, &h1);
        window_of(s, p.column, s.ow, s.w, s.kw, &w0, &w1);
        const uint32_t wide = (uint32_t)(w1 - w0);
        double sum = 0;
        if constexpr (TEAM == 1) {
            for (int64_t h = h0; h < h1; h++)
                for (int64_t w = w0; w < w1; w++)
                    sum += (double)td_load<T>(xp + h * s.w + w);
        } else {
            for (uint32_t i = lane; i < (uint32_t)(h1 - h0) * wide; i += TEAM)
                sum += (double)td_load<T>(xp + (h0 + i / wide) * s.w + w0 + i % wide);
            sum = td_team_sum<32>(sum);
        }
        if (lane == 0)
            td_store<T>(y + at, (td_wide<T>)(sum / area_of<double>(s, h0, h1, w0, w1)));
    }
}

template <class T> __global__ void __launch_bounds__(TD_THREADS) avg_grad_kernel(td_conv2d_shape s, int64_t n, T *gx, const T *gy, bool add)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(at, n) {
        const place p = place_of(at, s.h, s.w);
        int64_t r0, r1, c0, c1;
        windows_over(s, p.row, s.oh, s.h, s.kh, &r0, &r1);
        windows_over(s, p.column, s.ow, s.w, s.kw, &c0, &c1);
        W sum = 0;
        for (int64_t r = r0; r < r1; r++) {
            int64_t h0, h1;
            window_of(s, r, s.oh, s.h, s.kh, &h0, &h1);
            for (int64_t c = c0; c < c1; c++) {
                int64_t w0, w1;
                window_of(s, c, s.ow, s.w, s.kw, &w0, &w1);
                sum += td_load<T>(gy + (p.plane * s.oh + r) * s.ow + c) / area_of<W>(s, h0, h1, w0, w1);
            }
        }
        td_put<T>(gx + at, sum, add);
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
static void max_pool(const char *row, td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x)
{
    if (s->nhwc) {
        td__max_pool_last(row, t, s, out, where, x);
        return;
    }
    const int64_t n = s->n * s->c * s->oh * s->ow;
    if (n > 0)
        TD_CUDA_FLOAT(t, T, TD_LAUNCH(row, td_blocks(n), TD_THREADS, 0, (max_kernel<T>), *s, n, (T *)out, where, (const T *)x))
}

static void avg_pool(const char *row, td_dtype t, const td_conv2d_shape *s, void *out, const void *x)
{
    if (s->nhwc) {
        td__avg_pool_last(row, t, s, out, x);
        return;
    }
    const int64_t n = s->n * s->c * s->oh * s->ow;
    if (n <= 0)
        return;
    const int64_t window = s->stride ? s->kh * s->kw : ((s->h + s->oh - 1) / s->oh) * ((s->w + s->ow - 1) / s->ow);
    if (window >= LARGE)
        TD_CUDA_FLOAT(t, T, TD_LAUNCH(row, td_blocks(n, TD_THREADS / 32), TD_THREADS, 0, (avg_kernel<T, 32>), *s, n, (T *)out, (const T *)x))
    else
        TD_CUDA_FLOAT(t, T, TD_LAUNCH(row, td_blocks(n), TD_THREADS, 0, (avg_kernel<T, 1>), *s, n, (T *)out, (const T *)x))
}

static void avg_pool_grad(const char *row, td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add)
{
    if (s->nhwc) {
        td__avg_pool_last_grad(row, t, s, gx, gout, add);
        return;
    }
    const int64_t n = s->n * s->c * s->h * s->w;
    if (n > 0)
        TD_CUDA_FLOAT(t, T, TD_LAUNCH(row, td_blocks(n), TD_THREADS, 0, (avg_grad_kernel<T>), *s, n, (T *)gx, (const T *)gout, add))
}

extern "C" void td__cuda_max_pool2d(td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x)
{
    max_pool("max_pool2d", t, s, out, where, x);
}

extern "C" void td__cuda_max_pool2d_grad(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const int32_t *where, bool add)
{
    if (s->nhwc) {
        td__max_pool_last_grad("max_pool2d_grad", t, s, gx, gout, where, add);
        return;
    }
    const int64_t n = s->n * s->c * s->h * s->w;
    if (n > 0)
        TD_CUDA_FLOAT(t, T, TD_LAUNCH("max_pool2d_grad", td_blocks(n), TD_THREADS, 0, (max_grad_kernel<T>), *s, n, (T *)gx, (const T *)gout, where, add))
}

extern "C" void td__cuda_avg_pool2d(td_dtype t, const td_conv2d_shape *s, void *out, const void *x)
{
    avg_pool("avg_pool2d", t, s, out, x);
}

extern "C" void td__cuda_avg_pool2d_grad(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add)
{
    avg_pool_grad("avg_pool2d_grad", t, s, gx, gout, add);
}

extern "C" void td__cuda_adaptive_max_pool2d(td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x)
{
    max_pool("adaptive_max_pool2d", t, s, out, where, x);
}

extern "C" void td__cuda_adaptive_avg_pool2d(td_dtype t, const td_conv2d_shape *s, void *out, const void *x)
{
    avg_pool("adaptive_avg_pool2d", t, s, out, x);
}

extern "C" void td__cuda_adaptive_avg_pool2d_grad(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add)
{
    avg_pool_grad("adaptive_avg_pool2d_grad", t, s, gx, gout, add);
}
