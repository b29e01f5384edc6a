/* tensor/cuda/optimizer.cu: SGD and AdamW, one fused pass per step over a flat run of parameters, and the sum of squares for clipping.
 *
 * Twin of ../cpu/optimizer.c: the same operations in the same order without fused multiply-add, so the bits are the CPU's. sumsq adds in double in
 * an order that the arrays' sizes alone decide, and leaves the sum on the device.
 */
#include "flats.h"

template <class W> struct sgd_rule {
    enum { WRITES = 1 };
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

template <class W> struct sgd_numbers {
    td_number gscale, lr;
    double momentum, dampening, decay;
    bool has_v, nesterov, first;
    __device__ __forceinline__ sgd_rule<W> rule() const
    {
        return { (W)td_value(gscale), (W)td_value(lr), (W)momentum, (W)(1 - dampening), (W)decay, has_v, nesterov, first };
    }
};

template <class W> struct adamw_rule {
    enum { WRITES = 2 };
    W gscale, beta1, rest1, beta2, rest2, eps, keep, step, root2;
    __device__ __forceinline__ void operator()(W &p, W g, W &m, W &v, W &) const
    {
        const W d = gscale * g;
        m = beta1 * m + rest1 * d;
        v = beta2 * v + rest2 * (d * d);
        p = p * keep - step * m / (sqrt(v) / root2 + eps);
    }
};

template <class W> struct adamw_numbers {
    td_number gscale, lr, bias1, bias2;
    double beta1, beta2, eps, decay;
    __device__ __forceinline__ adamw_rule<W> rule() const
    {
        const double rate = td_value(lr);
        return { (W)td_value(gscale), (W)beta1, (W)(1 - beta1), (W)beta2, (W)(1 - beta2), (W)eps, (W)(1 - rate * decay), (W)(rate / td_value(bias1)),
                 (W)sqrt(td_value(bias2)) };
    }
};

/* Arrays of one launch: a block works on one of them (block[i] … block[i + 1] - 1 on array i), at most SOME as arguments have room for. */
enum { SOME = 64 };
struct arrays { int count; unsigned block[SOME + 1]; int64_t n[SOME]; const void *x[SOME]; };

/* Every thread of an array's blocks takes every so many packs; a block's part is added up by its threads. */
template <class T> __global__ void __launch_bounds__(TD_THREADS) squares_kernel(arrays all, double *part)
{
    enum { V = td_pack<T>::N };
    typedef td_pack<T> group;
    int low = 0, high = all.count;                     /* the array: block[low] <= blockIdx.x < block[low + 1] */
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (all.block[middle] <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    const T *x = (const T *)all.x[low];
    const int64_t n = all.n[low], step = (int64_t)(all.block[low + 1] - all.block[low]) * TD_THREADS;
    const int64_t packs = ((uintptr_t)x & 15) == 0 ? n / V : 0, thread = (int64_t)(blockIdx.x - all.block[low]) * TD_THREADS + threadIdx.x;
    double s = 0;
    for (int64_t i = thread; i < packs; i += step) {
        const group p = ((const group *)x)[i];
        TD_UNROLL for (int k = 0; k < V; k++)
            s += (double)td_load<T>(p.v + k) * (double)td_load<T>(p.v + k);
    }
    for (int64_t i = packs * V + thread; i < n; i += step)
        s += (double)td_load<T>(x + i) * (double)td_load<T>(x + i);
    s = td_block_all(s, td_op_sum());
    if (threadIdx.x == 0)
        part[blockIdx.x] = s;
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" void td__cuda_sgd(td_dtype t, int64_t n, const td_step *s, void *v, double momentum, double dampening, double weight_decay, bool nesterov,
                             bool first)
{
    TD_CUDA_FLOAT(t, T, {
        const sgd_numbers<td_wide<T>> numbers = { s->gscale, s->lr, momentum, dampening, weight_decay, v != NULL, nesterov, first };
        td_rule<T>("sgd", n, *s, v, NULL, NULL, numbers);
    })
}

extern "C" void td__cuda_adamw(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps, double weight_decay,
                               td_number bias1, td_number bias2)
{
    TD_CUDA_FLOAT(t, T, {
        const adamw_numbers<td_wide<T>> numbers = { s->gscale, s->lr, bias1, bias2, beta1, beta2, eps, weight_decay };
        td_rule<T>("adamw", n, *s, m, v, NULL, numbers);
    })
}

static void squares(td_dtype t, const arrays &all, double *out, bool add)
{
    const unsigned blocks = all.block[all.count];
    double *part = (double *)td__cuda_scratch(sizeof *part * blocks);
    if (!part)
        return;                                        /* the error is pending                                                */
    TD_CUDA_FLOAT(t, T, { TD_LAUNCH("sumsq", blocks, TD_THREADS, 0, (squares_kernel<T>), all, part); })
    TD_LAUNCH("sumsq", 1, TD_THREADS, 0, (td_squares_kernel), (int)blocks, (const double *)part, out, add, (const double *)NULL);
    td__cuda_scratch_free(part);
}

extern "C" void td__cuda_sumsq(td_dtype t, int count, const int64_t *n, const void *const *x, double *out, bool add)
{
    arrays all = { 0, { 0 }, { 0 }, { 0 } };
    for (int i = 0; i < count || (!add && i == 0); i++) {
        if (i < count) {
            all.n[all.count] = n[i];
            all.x[all.count] = x[i];
            all.block[all.count + 1] = all.block[all.count] + td_square_blocks(n[i]);
            all.count++;
        } else {
            all.block[all.count = 1] = 1;              /* of nothing the sum is 0                                             */
        }
        if (all.count == SOME || i + 1 >= count) {
            squares(t, all, out, add);
            add = true;
            all.count = 0;
        }
    }
}
