/* tensor/cuda/optimizer.cu: SGD and AdamW, one fused pass per step over a flat run of parameters, and the sum of squares for clipping.
 *
 * Twin of ../cpu/optimizer.c: the same operations in the same order without fused multiply-add, so the bits are the CPU's (f16 and bf16: in
 * float, each result rounded once). sumsq adds in double in an order that n alone decides.
 */
#include "flats.h"

template <class W> struct sgd_rule {
    W gscale, lr, momentum, damp, decay;
    bool has_v, nesterov, first;
    __device__ __forceinline__ void operator()(W &p, W g, W &v, W &, W &) const
    {
        W d = gscale * g + decay * p;
        if (has_v) {
            v = first ? d : momentum * v + damp * d;
            d = nesterov ? d + momentum * v : v;
        }
        p -= lr * d;
    }
};

template <class W> struct adamw_rule {
    W gscale, beta1, rest1, beta2, rest2, eps, keep, step, root2;
    __device__ __forceinline__ void operator()(W &p, W g, W &m, W &v, W &) const
    {
        const W d = gscale * g;
        m = beta1 * m + rest1 * d;
        v = beta2 * v + rest2 * (d * d);
        p = p * keep - step * m / (sqrt(v) / root2 + eps);
    }
};

/* Every thread of the grid takes every so many packs; a block's part is added up by its threads. */
template <class T, int V> __global__ void __launch_bounds__(TD_THREADS) squares_kernel(int64_t n, const T *x, double *part)
{
    struct __align__(V * sizeof(T)) group { T v[V]; };
    double s = 0;
    TD_GRID_STRIDE(i, n / V) {
        const group p = ((const group *)x)[i];
        TD_UNROLL for (int k = 0; k < V; k++)
            s += (double)td_load<T>(p.v + k) * (double)td_load<T>(p.v + k);
    }
    for (int64_t i = n / V * V + threadIdx.x; i < n && blockIdx.x == 0; i += TD_THREADS)
        s += (double)td_load<T>(x + i) * (double)td_load<T>(x + i);
    s = td_block_all(s, td_op_sum());
    if (threadIdx.x == 0)
        part[blockIdx.x] = s;
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" void td__cuda_sgd(td_dtype t, int64_t n, void *p, const void *g, void *v, double gscale, double lr, double momentum, double dampening,
                             double weight_decay, bool nesterov, bool first)
{
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const sgd_rule<W> rule = { (W)gscale, (W)lr, (W)momentum, (W)(1 - dampening), (W)weight_decay, v != NULL, nesterov, first };
        td_rule<T>("sgd", n, p, g, v, NULL, NULL, rule);
    })
}

extern "C" void td__cuda_adamw(td_dtype t, int64_t n, void *p, const void *g, void *m, void *v, double gscale, double lr, double beta1, double beta2,
                               double eps, double weight_decay, double bias1, double bias2)
{
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const adamw_rule<W> rule = { (W)gscale, (W)beta1, (W)(1 - beta1), (W)beta2, (W)(1 - beta2), (W)eps, (W)(1 - lr * weight_decay),
                                     (W)(lr / bias1), (W)sqrt(bias2) };
        td_rule<T>("adamw", n, p, g, m, v, NULL, rule);
    })
}

/* Returns to the host, so it waits for the device; a later version clips without. NaN when the device fails. */
extern "C" double td__cuda_sumsq(td_dtype t, int64_t n, const void *x)
{
    const unsigned blocks = td_square_blocks(n);
    double result = 0;
    if (n <= 0)
        return 0;
    double *part = (double *)td__cuda_scratch(sizeof *part * (blocks + 1));
    if (!part)
        return NAN;
    TD_CUDA_FLOAT(t, T, {
        if (td_packed(x))
            TD_LAUNCH("sumsq", blocks, TD_THREADS, 0, (squares_kernel<T, td_pack<T>::N>), n, (const T *)x, part);
        else
            TD_LAUNCH("sumsq", blocks, TD_THREADS, 0, (squares_kernel<T, 1>), n, (const T *)x, part);
    })
    TD_LAUNCH("sumsq", 1, TD_THREADS, 0, (td_squares_kernel), (int)blocks, (const double *)part, part + blocks);
    if (td__cuda_read(&result, part + blocks, sizeof result))
        result = NAN;
    td__cuda_scratch_free(part);
    return result;
}
