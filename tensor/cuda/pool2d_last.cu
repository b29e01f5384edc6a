/* tensor/cuda/pool2d_last.cu: the pools of pool2d.cu on images with the channels last: a thread takes one pixel of the result and as many channels
 * as 16 bytes hold, so neighbours read neighbours. The gradients are seen from the input here, too: nothing is atomic.
 */
#include "vector.h"
#include "windows.h"

struct spot { int64_t image, row, column, channel; };

/* Item i of images of `rows` by `columns` pixels of `packs` packs. */
template <int V> __device__ __forceinline__ spot spot_of(int64_t i, int64_t rows, int64_t columns, int64_t packs)
{
    spot p;
    if (i <= 0x7fffffff) {                             /* 64-bit division is many instructions */
        const uint32_t pixel = (uint32_t)i / (uint32_t)packs, line = pixel / (uint32_t)columns;
        p.channel = ((uint32_t)i - pixel * (uint32_t)packs) * (int64_t)V;
        p.column = pixel - line * (uint32_t)columns;
        p.image = line / (uint32_t)rows;
        p.row = line - (uint32_t)p.image * (uint32_t)rows;
    } else {
        const int64_t pixel = i / packs, line = pixel / columns;
        p.channel = (i - pixel * packs) * V;
        p.column = pixel - line * columns;
        p.image = line / rows;
        p.row = line - p.image * rows;
    }
    return p;
}

/* The first maximum in reading order; a NaN wins, the last one's place is kept: as the CPU. */
template <class T, int V>
__global__ void __launch_bounds__(TD_THREADS) max_last_kernel(td_conv2d_shape s, int64_t n, int64_t packs, T *y, int32_t *where, const T *x)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(i, n) {
        const spot p = spot_of<V>(i, s.oh, s.ow, packs);
        const T *xp = x + p.image * s.h * s.w * s.c + p.channel;
        int64_t h0, h1, w0, w1;
        window_of(s, p.row, s.oh, s.h, s.kh, &h0, &h1);
        window_of(s, p.column, s.ow, s.w, s.kw, &w0, &w1);
        W best[V];
        td_vector<int32_t, V> found;
        td_vector<T, V> out;
        TD_UNROLLED for (int j = 0; j < V; j++) {
            best[j] = -(W)INFINITY;
            found.v[j] = (int32_t)(h0 * s.w + w0);
        }
        for (int64_t h = h0; h < h1; h++)
            for (int64_t w = w0; w < w1; w++) {
                const td_vector<T, V> a = td_load_vector<T, V>(xp + (h * s.w + w) * s.c);
                TD_UNROLLED for (int j = 0; j < V; j++) {
                    const W v = td_load<T>(a.v + j);
                    if (v > best[j] || v != v) {
                        best[j] = v;
                        found.v[j] = (int32_t)(h * s.w + w);
                    }
                }
            }
        TD_UNROLLED for (int j = 0; j < V; j++)
            td_store<T>(out.v + j, best[j]);
        td_store_vector<T, V>(y + i * V, out);
        td_store_vector<int32_t, V>(where + i * V, found);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(TD_THREADS) max_last_grad_kernel(td_conv2d_shape s, int64_t n, int64_t packs, T *gx, const T *gy,
                                                                   const int32_t *where, bool add)
{
    TD_GRID_STRIDE(i, n) {
        const spot p = spot_of<V>(i, s.h, s.w, packs);
        const int32_t own = (int32_t)(p.row * s.w + p.column);
        int64_t r0, r1, c0, c1;
        windows_over(s, p.row, s.oh, s.h, s.kh, &r0, &r1);
        windows_over(s, p.column, s.ow, s.w, s.kw, &c0, &c1);
        td_wide<T> sum[V];
        TD_UNROLLED for (int j = 0; j < V; j++)
            sum[j] = 0;
        for (int64_t r = r0; r < r1; r++)
            for (int64_t c = c0; c < c1; c++) {
                const int64_t o = ((p.image * s.oh + r) * s.ow + c) * s.c + p.channel;
                const td_vector<int32_t, V> from = td_load_vector<int32_t, V>(where + o);
                const td_vector<T, V> g = td_load_vector<T, V>(gy + o);
                TD_UNROLLED for (int j = 0; j < V; j++)
                    if (from.v[j] == own)
                        sum[j] += td_load<T>(g.v + j);
            }
        td_vector<T, V> out;
        if (add)
            out = td_load_vector<T, V>(gx + i * V);
        TD_UNROLLED for (int j = 0; j < V; j++)
            td_put<T>(out.v + j, sum[j], add);
        td_store_vector<T, V>(gx + i * V, out);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(TD_THREADS) avg_last_kernel(td_conv2d_shape s, int64_t n, int64_t packs, T *y, const T *x)
{
    TD_GRID_STRIDE(i, n) {
        const spot p = spot_of<V>(i, s.oh, s.ow, packs);
        const T *xp = x + p.image * s.h * s.w * s.c + p.channel;
        int64_t h0, h1, w0, w1;
        window_of(s, p.row, s.oh, s.h, s.kh, &h0, &h1);
        window_of(s, p.column, s.ow, s.w, s.kw, &w0, &w1);
        double sum[V];
        td_vector<T, V> out;
        TD_UNROLLED for (int j = 0; j < V; j++)
            sum[j] = 0;
        for (int64_t h = h0; h < h1; h++)
            for (int64_t w = w0; w < w1; w++) {
                const td_vector<T, V> a = td_load_vector<T, V>(xp + (h * s.w + w) * s.c);
                TD_UNROLLED for (int j = 0; j < V; j++)
                    sum[j] += (double)td_load<T>(a.v + j);
            }
        const double area = area_of<double>(s, h0, h1, w0, w1);
        TD_UNROLLED for (int j = 0; j < V; j++)
            td_store<T>(out.v + j, (td_wide<T>)(sum[j] / area));
        td_store_vector<T, V>(y + i * V, out);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(TD_THREADS) avg_last_grad_kernel(td_conv2d_shape s, int64_t n, int64_t packs, T *gx, const T *gy, bool add)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(i, n) {
        const spot p = spot_of<V>(i, s.h, s.w, packs);
        int64_t r0, r1, c0, c1;
        windows_over(s, p.row, s.oh, s.h, s.kh, &r0, &r1);
        windows_over(s, p.column, s.ow, s.w, s.kw, &c0, &c1);
        W sum[V];
        TD_UNROLLED for (int j = 0; j < V; j++)
            sum[j] = 0;
        for (int64_t r = r0; r < r1; r++) {
            int64_t h0, h1;
            window_of(s, r, s.oh, s.h, s.kh, &h0, &h1);
            for (int64_t c = c0; c < c1; c++) {
                int64_t w0, w1;
                window_of(s, c, s.ow, s.w, s.kw, &w0, &w1);
                const W area = area_of<W>(s, h0, h1, w0, w1);
                const td_vector<T, V> g = td_load_vector<T, V>(gy + ((p.image * s.oh + r) * s.ow + c) * s.c + p.channel);
                TD_UNROLLED for (int j = 0; j < V; j++)
                    sum[j] += td_load<T>(g.v + j) / area;
            }
        }
        td_vector<T, V> out;
        if (add)
            out = td_load_vector<T, V>(gx + i * V);
        TD_UNROLLED for (int j = 0; j < V; j++)
            td_put<T>(out.v + j, sum[j], add);
        td_store_vector<T, V>(gx + i * V, out);
    }
}

/* ---- launching -------------------------------------------------------------------------------------------------------------------------- */

/* Can every pixel's channels be moved 16 bytes at a time? Beside them lie 4-byte numbers, up to 8 of them. */
static bool in_packs(td_dtype t, const td_conv2d_shape *s, const void *a, const void *b, const void *where)
{
    return td_vectors(a, s->c, td_dtype_size(t)) && td_vectors(b, s->c, td_dtype_size(t)) && (uintptr_t)where % 32 == 0;
}

/* One kernel over all pixels of a side of the pool, in packs or channel by channel. */
#define LAUNCH(row, kernel, pixels, packed, ...)                                                             \
    do {                                                                                                     \
        enum { N = td_widest<T>::N };                                                                        \
        if (packed)                                                                                          \
            TD_LAUNCH(row, td_blocks((pixels) * (s->c / N)), TD_THREADS, 0, (kernel<T, N>), *s, (pixels) * (s->c / N), s->c / N, __VA_ARGS__);  \
        else                                                                                                 \
            TD_LAUNCH(row, td_blocks((pixels) * s->c), TD_THREADS, 0, (kernel<T, 1>), *s, (pixels) * s->c, s->c, __VA_ARGS__);  \
    } while (0)

void td__max_pool_last(const char *row, td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x)
{
    const int64_t pixels = s->n * s->oh * s->ow;
    const bool packed = in_packs(t, s, out, x, where);
    if (pixels * s->c > 0)
        TD_CUDA_FLOAT(t, T, LAUNCH(row, max_last_kernel, pixels, packed, (T *)out, where, (const T *)x))
}

void td__max_pool_last_grad(const char *row, td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const int32_t *where, bool add)
{
    const int64_t pixels = s->n * s->h * s->w;
    const bool packed = in_packs(t, s, gx, gout, where);
    if (pixels * s->c > 0)
        TD_CUDA_FLOAT(t, T, LAUNCH(row, max_last_grad_kernel, pixels, packed, (T *)gx, (const T *)gout, where, add))
}

void td__avg_pool_last(const char *row, td_dtype t, const td_conv2d_shape *s, void *out, const void *x)
{
    const int64_t pixels = s->n * s->oh * s->ow;
    const bool packed = in_packs(t, s, out, x, NULL);
    if (pixels * s->c > 0)
        TD_CUDA_FLOAT(t, T, LAUNCH(row, avg_last_kernel, pixels, packed, (T *)out, (const T *)x))
}

void td__avg_pool_last_grad(const char *row, td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add)
{
    const int64_t pixels = s->n * s->h * s->w;
    const bool packed = in_packs(t, s, gx, gout, NULL);
    if (pixels * s->c > 0)
        TD_CUDA_FLOAT(t, T, LAUNCH(row, avg_last_grad_kernel, pixels, packed, (T *)gx, (const T *)gout, add))
}
