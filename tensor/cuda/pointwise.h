/* tensor/cuda/pointwise.h: out = f(in…), element by element, for any f and up to three operands of any dtypes: what activation.cu, elementwise.cu,
 * pointwise.cu and swiglu.cu are made of.
 *
 * Such kernels are as fast as memory, if each thread moves 16 bytes of the widest operand at once. That needs addresses that are multiples
 * of 16 and operands whose last dimension is dense, or one repeated number. One dimension is walked without division (and may have a rest);
 * several (a bias over rows, a half of a tensor's columns) divide once per 16 bytes; everything else goes element by element.
 */
#ifndef TD_CUDA_POINTWISE_H
#define TD_CUDA_POINTWISE_H
#include "vector.h"
#include <algorithm>
#include <utility>

/* ---- 16 bytes ------------------------------------------------------------------------------------------------------------------------- */
/* V neighbours at p, or V times the one at p */
template <int V, class T> __device__ __forceinline__ td_vector<T, V> td_take(const T *p, bool repeats)
{
    td_vector<T, V> r;
    if (V == 1 || !repeats) {
        r = *(const td_vector<T, V> *)p;
    } else {
#pragma unroll
        for (int k = 0; k < V; k++)
            r.v[k] = *p;
    }
    return r;
}
/* V gradients into their places */
template <int V, class T> __device__ __forceinline__ void td_put_all(T *p, const td_wide<T> (&v)[V], bool add)
{
    td_vector<T, V> r;
    if (add) {
        r = *(const td_vector<T, V> *)p;
#pragma unroll
        for (int k = 0; k < V; k++)
            td_store<T>(&r.v[k], td_load<T>(&r.v[k]) + v[k]);
    } else {
#pragma unroll
        for (int k = 0; k < V; k++)
            td_store<T>(&r.v[k], v[k]);
    }
    *(td_vector<T, V> *)p = r;
}
static inline bool td_aligned(const void *p, size_t bytes) { return (uintptr_t)p % bytes == 0; }

/* ---- how a loop is walked ---------------------------------------------------------------------------------------------------------------- */
/* n items of `width` neighbours (1: single elements, operands anywhere). flat: one dimension, and `tail` single elements after the items.
 * Otherwise the last dimension counts items, and its strides are those between items. */
struct td_walk { td_loop l; int64_t n, tail; int width; bool flat; };

static inline td_walk td_walk_of(const td_loop &loop, int operands, int width, const void *const *p, const size_t *size)
{
    td_walk w = { loop, td_loop_count(loop), 0, 1, false };
    td_loop &l = w.l;
    if (l.ndim == 0) {
        l.ndim = 1, l.dim[0] = 1;
        for (int k = 0; k < 4; k++)
            l.stride[k][0] = 1;
    }
    const int last = l.ndim - 1;
    if (width == 1 || (last > 0 && l.dim[last] % width))
        return w;
    for (int k = 0; k < operands; k++) {
        const int64_t s = l.stride[k][last];
        if (s != 1 && (s != 0 || k == 0))
            return w;
        if (s == 1 && !td_aligned(p[k], size[k] * (size_t)width))
            return w;
        for (int d = 0; d < last; d++)
            if (s == 1 && l.stride[k][d] % width)
                return w;
    }
    w.width = width, w.flat = last == 0, w.tail = w.flat ? w.n % width : 0;
    w.n /= width;
    l.dim[last] /= width;
    for (int k = 0; k < operands && !w.flat; k++)
        l.stride[k][last] *= width;
    return w;
}
/* where item i of each operand begins */
template <int V, bool FLAT, int K> __device__ __forceinline__ void td_walk_at(const td_loop &l, int64_t i, int64_t (&at)[K])
{
    if constexpr (FLAT) {
#pragma unroll
        for (int k = 0; k < K; k++)
            at[k] = i * V * l.stride[k][0];
    } else {
        td_loop_at<K>(l, i, at);
    }
}

/* ---- the kernel ---------------------------------------------------------------------------------------------------------------------------- */
template <int V, class F, class O, class... I>
__device__ __forceinline__ void td_pointwise_item(const F &f, O *out, bool add, const td_vector<I, V> &...in)
{
    td_wide<O> y[V];
#pragma unroll
    for (int k = 0; k < V; k++)
        y[k] = f(td_load<I>(&in.v[k])...);
    td_put_all<V, O>(out, y, add);
}

template <int V, bool FLAT, size_t... K, class F, class O, class... I>
__device__ __forceinline__ void td_pointwise_at(std::index_sequence<K...>, const td_loop &l, int64_t i, const F &f, O *out, bool add, const I *...in)
{
    const int last = FLAT ? 0 : l.ndim - 1;
    int64_t at[1 + sizeof...(I)];
    td_walk_at<V, FLAT>(l, i, at);
    td_pointwise_item<V, F, O, I...>(f, out + at[0], add, td_take<V>(in + at[K + 1], l.stride[K + 1][last] == 0)...);
}

template <int V, bool FLAT, class F, class O, class... I>
__global__ void __launch_bounds__(TD_THREADS) td_pointwise_kernel(td_loop l, int64_t n, int64_t tail, F f, O *out, bool add, const I *...in)
{
    typedef std::make_index_sequence<sizeof...(I)> which;
    TD_GRID_STRIDE(i, n)
        td_pointwise_at<V, FLAT>(which(), l, i, f, out, add, in...);
    const int64_t rest = n * V + threadIdx.x;              /* by the first threads of the first block                         */
    if (FLAT && V > 1 && blockIdx.x == 0 && threadIdx.x < tail)
        td_pointwise_at<1, true>(which(), l, rest, f, out, add, in...);
}

template <class F, class O, class... I> static void td_pointwise(const char *row, const td_loop *loop, F f, O *out, bool add, const I *...in)
{
    const size_t sizes[] = { sizeof(O), sizeof(I)... };
    constexpr size_t widest = std::max({ sizeof(O), sizeof(I)... });
    constexpr int V = (int)(16 / widest);
    const void *const p[] = { out, in... };
    if (td_loop_count(*loop) == 0)
        return;
    const td_walk w = td_walk_of(*loop, 1 + (int)sizeof...(I), V, p, sizes);
    if (w.flat)
        TD_LAUNCH(row, td_blocks(w.n), TD_THREADS, 0, (td_pointwise_kernel<V, true, F, O, I...>), w.l, w.n, w.tail, f, out, add, in...);
    else if (w.width > 1)
        TD_LAUNCH(row, td_blocks(w.n), TD_THREADS, 0, (td_pointwise_kernel<V, false, F, O, I...>), w.l, w.n, w.tail, f, out, add, in...);
    else
        TD_LAUNCH(row, td_blocks(w.n), TD_THREADS, 0, (td_pointwise_kernel<1, false, F, O, I...>), w.l, w.n, w.tail, f, out, add, in...);
}

/* ---- functions by the type they compute in ---------------------------------------------------------------------------------------------------- */
__device__ __forceinline__ float  td_exp(float x) { return expf(x); }
__device__ __forceinline__ double td_exp(double x) { return exp(x); }
__device__ __forceinline__ float  td_tanh(float x) { return tanhf(x); }
__device__ __forceinline__ double td_tanh(double x) { return tanh(x); }
__device__ __forceinline__ float  td_sqrt(float x) { return sqrtf(x); }
__device__ __forceinline__ double td_sqrt(double x) { return sqrt(x); }
/* 1/(1 + exp(-x)): exp may become infinite, and 1/inf is the right 0 */
template <class W> __device__ __forceinline__ W td_sigmoid(W x) { return (W)1 / ((W)1 + td_exp(-x)); }
#endif
