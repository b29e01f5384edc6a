/* tensor/cuda/windows.h: the windows of a pool: where one begins and ends, which ones hold an element, what an average divides by. Internal to
 * tensor/cuda. An adaptive window i of n along m elements begins at floor(i*m/n) and ends before ceil((i+1)*m/n); its shape has stride 0.
 */
#ifndef TD_CUDA_WINDOWS_H
#define TD_CUDA_WINDOWS_H
#include "cuda.h"

/* Rows [from, to) of the window o along a direction of size m with n outputs. */
__device__ __forceinline__ void window_of(const td_conv2d_shape &s, int64_t o, int64_t n, int64_t m, int64_t window, int64_t *from, int64_t *to)
{
    if (s.stride) {
        const int64_t at = o * s.stride - s.padding;
        *from = at < 0 ? 0 : at;
        *to = at + window > m ? m : at + window;
    } else {
        *from = o * m / n;
        *to = ((o + 1) * m + n - 1) / n;
    }
}

/* Windows [from, to) that hold element i. */
__device__ __forceinline__ void windows_over(const td_conv2d_shape &s, int64_t i, int64_t n, int64_t m, int64_t window, int64_t *from, int64_t *to)
{
    if (s.stride) {
        const int64_t at = i + s.padding, low = at - window + 1;
        *from = low <= 0 ? 0 : (low + s.stride - 1) / s.stride;
        *to = at / s.stride + 1;
        *to = *to > n ? n : *to;
    } else {
        *from = i * n / m;
        *to = ((i + 1) * n - 1) / m + 1;
    }
}

/* What an average divides by: zeroes of the padding count, an adaptive window has none. */
template <class W> __device__ __forceinline__ W area_of(const td_conv2d_shape &s, int64_t h0, int64_t h1, int64_t w0, int64_t w1)
{
    return (W)(s.stride ? s.kh * s.kw : (h1 - h0) * (w1 - w0));
}

/* ---- pool2d_last.cu: the same with the channels last ------------------------------------------------------------------------------------ */
void td__max_pool_last(const char *row, td_dtype t, const td_conv2d_shape *s, void *out, int32_t *where, const void *x);
void td__max_pool_last_grad(const char *row, td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const int32_t *where, bool add);
void td__avg_pool_last(const char *row, td_dtype t, const td_conv2d_shape *s, void *out, const void *x);
void td__avg_pool_last_grad(const char *row, td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, bool add);
#endif
