/* tensor/cuda/optimizer_layer.cu: the passes of optimizers that scale each parameter's update by norms: LAMB (moments and norms, then the step)
 * and LARS (whose norms are two calls of sumsq).
 *
 * Twin of ../cpu/optimizer_layer.c, operation by operation; the update u is worked out twice, alike, instead of being stored. Sums of squares are in
 * double, in an order that n alone decides.
 */
#include "flats.h"

template <class W> struct lamb_numbers {
    W gscale, beta1, rest1, beta2, rest2, eps, decay, bias1, root2;
    __device__ __forceinline__ W update(W p, W m, W v) const { return m / bias1 / (sqrt(v) / root2 + eps) + decay * p; }
};

/* m, v of this step; part: sums of p*p of every block, then those of u*u */
template <class T, int V>
__global__ void __launch_bounds__(TD_THREADS) moments_kernel(int64_t n, const T *p, const T *g, T *m, T *v, lamb_numbers<td_wide<T>> c, double *part)
{
    typedef td_wide<T> W;
    struct __align__(V * sizeof(T)) group { T v[V]; };
    double pp = 0, uu = 0;
    TD_GRID_STRIDE(i, n / V) {
        const group vp = ((const group *)p)[i], vg = ((const group *)g)[i];
        group vm = ((const group *)m)[i], vv = ((const group *)v)[i];
        TD_UNROLL for (int k = 0; k < V; k++) {
            const W w = td_load<T>(vp.v + k), d = c.gscale * td_load<T>(vg.v + k);
            td_store<T>(vm.v + k, c.beta1 * td_load<T>(vm.v + k) + c.rest1 * d);
            td_store<T>(vv.v + k, c.beta2 * td_load<T>(vv.v + k) + c.rest2 * (d * d));
            const W u = c.update(w, td_load<T>(vm.v + k), td_load<T>(vv.v + k));     /* of what is stored: the step reads the same */
            pp += (double)w * (double)w;
            uu += (double)u * (double)u;
        }
        ((group *)m)[i] = vm;
        ((group *)v)[i] = vv;
    }
    pp = td_block_all(pp, td_op_sum());
    uu = td_block_all(uu, td_op_sum());
    if (threadIdx.x == 0) {
        part[blockIdx.x] = pp;
        part[gridDim.x + blockIdx.x] = uu;
    }
}

/* The rules of flats.h: what stands there for the gradient is the first moment. */
template <class W> struct lamb_rule {
    W rate;
    lamb_numbers<W> c;
    __device__ __forceinline__ void operator()(W &p, W m, W &v, W &, W &) const
    {
        p -= rate * c.update(p, m, v);
    }
};

template <class W> struct lars_rule {
    W gscale, rate, momentum, decay;
    bool has_v;
    __device__ __forceinline__ void operator()(W &p, W g, W &v, W &, W &) const
    {
        W d = rate * (gscale * g + decay * p);
        if (has_v) {
            d = momentum * v + d;
            v = d;
        }
        p -= d;
    }
};

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
/* squares are the host's: this waits for the device. */
extern "C" void td__cuda_lamb_moments(td_dtype t, int64_t n, const void *p, const void *g, void *m, void *v, double gscale, double beta1, double beta2,
                                      double eps, double weight_decay, double bias1, double bias2, double squares[2])
{
    const unsigned blocks = td_square_blocks(n);
    squares[0] = squares[1] = 0;
    if (n <= 0)
        return;
    double *part = (double *)td__cuda_scratch(sizeof *part * 2 * (blocks + 1));
    if (!part) {
        squares[0] = squares[1] = NAN;
        return;
    }
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const lamb_numbers<W> c = { (W)gscale, (W)beta1, (W)(1 - beta1), (W)beta2, (W)(1 - beta2), (W)eps, (W)weight_decay, (W)bias1, (W)sqrt(bias2) };
        if (n % td_pack<T>::N == 0 && td_packed(p) && td_packed(g) && td_packed(m) && td_packed(v))
            TD_LAUNCH("lamb_moments", blocks, TD_THREADS, 0, (moments_kernel<T, td_pack<T>::N>), n, (const T *)p, (const T *)g, (T *)m, (T *)v, c, part);
        else
            TD_LAUNCH("lamb_moments", blocks, TD_THREADS, 0, (moments_kernel<T, 1>), n, (const T *)p, (const T *)g, (T *)m, (T *)v, c, part);
    })
    TD_LAUNCH("lamb_moments", 2, TD_THREADS, 0, (td_squares_kernel), (int)blocks, (const double *)part, part + 2 * blocks);
    if (td__cuda_read(squares, part + 2 * blocks, 2 * sizeof *squares))
        squares[0] = squares[1] = NAN;
    td__cuda_scratch_free(part);
}

extern "C" void td__cuda_lamb(td_dtype t, int64_t n, void *p, const void *m, const void *v, double rate, double eps, double weight_decay, double bias1,
                              double bias2)
{
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const lamb_rule<W> rule = { (W)rate, { 0, 0, 0, 0, 0, (W)eps, (W)weight_decay, (W)bias1, (W)sqrt(bias2) } };
        td_rule<T>("lamb", n, p, m, (void *)v, NULL, NULL, rule);         /* v is written back as it was read */
    })
}

extern "C" void td__cuda_lars(td_dtype t, int64_t n, void *p, const void *g, void *v, double gscale, double rate, double momentum, double weight_decay)
{
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const lars_rule<W> rule = { (W)gscale, (W)rate, (W)momentum, (W)weight_decay, v != NULL };
        td_rule<T>("lars", n, p, g, v, NULL, NULL, rule);
    })
}
