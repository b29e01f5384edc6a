/* tensor/cuda/swiglu.cu: silu(gate) * up and both gradients, each in one pass (Shazeer 2020). silu(x) = x * sigmoid(x).
 *
 * Twin of ../cpu/swiglu.c; loops are walked as in pointwise.h: gate and up are often the two halves of a tensor's columns. NaN in, NaN out.
 */
#include "pointwise.h"

namespace {
struct f_swiglu {
    template <class W> __device__ __forceinline__ W operator()(W gate, W up) const { return gate * td_sigmoid(gate) * up; }
};

/* d/dgate = up * s * (1 + gate * (1 - s)), d/dup = gate * s; operand 0 is where g, ggate and gup lie */
template <int V, bool FLAT, class T>
__device__ __forceinline__ void grad_item(const td_loop &l, int64_t i, T *ggate, T *gup, const T *g, const T *gate, const T *up, bool add_gate,
                                          bool add_up)
{
    typedef td_wide<T> W;
    const int last = FLAT ? 0 : l.ndim - 1;
    int64_t at[3];
    td_walk_at<V, FLAT>(l, i, at);
    const td_vector<T, V> vg = td_take<V>(g + at[0], false), vx = td_take<V>(gate + at[1], l.stride[1][last] == 0);
    const td_vector<T, V> vu = td_take<V>(up + at[2], l.stride[2][last] == 0);
    W to_gate[V], to_up[V];
#pragma unroll
    for (int k = 0; k < V; k++) {
        const W go = td_load<T>(&vg.v[k]), x = td_load<T>(&vx.v[k]), s = td_sigmoid(x);
        to_gate[k] = go * td_load<T>(&vu.v[k]) * s * ((W)1 + x * ((W)1 - s));
        to_up[k] = go * x * s;
    }
    if (ggate)
        td_put_all<V, T>(ggate + at[0], to_gate, add_gate);
    if (gup)
        td_put_all<V, T>(gup + at[0], to_up, add_up);
}

template <int V, bool FLAT, class T>
__global__ void __launch_bounds__(TD_THREADS) grad_kernel(td_loop l, int64_t n, int64_t tail, T *ggate, T *gup, const T *g, const T *gate,
                                                          const T *up, bool add_gate, bool add_up)
{
    TD_GRID_STRIDE(i, n)
        grad_item<V, FLAT>(l, i, ggate, gup, g, gate, up, add_gate, add_up);
    if (FLAT && V > 1 && blockIdx.x == 0 && threadIdx.x < tail)
        grad_item<1, true>(l, n * V + threadIdx.x, ggate, gup, g, gate, up, add_gate, add_up);
}

template <class T>
void grad(const td_loop *loop, T *ggate, T *gup, const T *g, const T *gate, const T *up, bool add_gate, bool add_up)
{
    constexpr int V = 16 / (int)sizeof(T);
    const void *const p[] = { g, gate, up };
    const size_t sizes[] = { sizeof(T), sizeof(T), sizeof(T) };
    if (td_loop_count(*loop) == 0)
        return;
    /* a gradient in an unaligned place: as if g lay there */
    const bool aligned = td_aligned(ggate, 16) && td_aligned(gup, 16);
    const td_walk w = td_walk_of(*loop, 3, aligned ? V : 1, p, sizes);
    if (w.flat)
        TD_LAUNCH("swiglu_grad", td_blocks(w.n), TD_THREADS, 0, (grad_kernel<V, true, T>), w.l, w.n, w.tail, ggate, gup, g, gate, up, add_gate,
                  add_up);
    else if (w.width > 1)
        TD_LAUNCH("swiglu_grad", td_blocks(w.n), TD_THREADS, 0, (grad_kernel<V, false, T>), w.l, w.n, w.tail, ggate, gup, g, gate, up, add_gate,
                  add_up);
    else
        TD_LAUNCH("swiglu_grad", td_blocks(w.n), TD_THREADS, 0, (grad_kernel<1, false, T>), w.l, w.n, w.tail, ggate, gup, g, gate, up, add_gate,
                  add_up);
}
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" void td__cuda_swiglu(const td_loop *l, td_dtype t, void *out, const void *gate, const void *up)
{
    TD_CUDA_FLOAT(t, T, td_pointwise("swiglu", l, f_swiglu(), (T *)out, false, (const T *)gate, (const T *)up))
}

extern "C" void td__cuda_swiglu_grad(const td_loop *l, td_dtype t, void *ggate, void *gup, const void *g, const void *gate, const void *up,
                                     bool add_gate, bool add_up)
{
    TD_CUDA_FLOAT(t, T, grad<T>(l, (T *)ggate, (T *)gup, (const T *)g, (const T *)gate, (const T *)up, add_gate, add_up))
}
