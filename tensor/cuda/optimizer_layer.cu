/* tensor/cuda/optimizer_layer.cu: the passes of optimizers that scale each parameter's update by norms: LAMB (moments and norms, then the step)
 * and LARS (whose norms are a call of sumsq).
 *
 * Twin of ../cpu/optimizer_layer.c, operation by operation; the update u is worked out twice, alike, instead of being stored. Sums of squares are in
 * double, in an order that n alone decides, and stay on the device: the step works out the rate.
 */
#include "flats.h"

template <class W> struct lamb_constants {
    W gscale, beta1, rest1, beta2, rest2, eps, decay, bias1, root2;
    __device__ __forceinline__ W update(W p, W m, W v) const { return m / bias1 / (sqrt(v) / root2 + eps) + decay * p; }
};

/* squares NULL: no quotient of norms */
template <class W> struct lamb_rule {
    enum { WRITES = 0 };
    W rate;
    lamb_constants<W> c;
    __device__ __forceinline__ void operator()(W &p, W, W &m, W &v, W &) const { p -= rate * c.update(p, m, v); }
};

template <class W> struct lamb_numbers {
    td_number gscale, lr, bias1, bias2;
    double beta1, beta2, eps, decay;
    const double *squares;
    __device__ __forceinline__ lamb_constants<W> constants() const
    {
        return { (W)td_value(gscale), (W)beta1, (W)(1 - beta1), (W)beta2, (W)(1 - beta2), (W)eps, (W)decay, (W)td_value(bias1), (W)sqrt(td_value(bias2)) };
    }
    __device__ __forceinline__ lamb_rule<W> rule() const
    {
        const double trust = squares && squares[0] > 0 && squares[1] > 0 ? sqrt(squares[0]) / sqrt(squares[1]) : 1;
        return { (W)(td_value(lr) * trust), constants() };
    }
};

/* m, v of this step; part: sums of p*p of every block, then those of u*u */
template <class T, int V>
__global__ void __launch_bounds__(TD_THREADS) moments_kernel(int64_t n, const T *p, const td_wide<T> *master, const T *g, td_wide<T> *m, td_wide<T> *v,
                                                             lamb_numbers<td_wide<T>> numbers, double *part, const double *stop, const int32_t *trap)
{
    typedef td_wide<T> W;
    typedef td_few<T, V> group;
    typedef td_few<W, V> wide;
    double pp = 0, uu = 0;
    if ((stop && *stop != 0) || (trap && *trap != 0))
        return;
    const lamb_constants<W> c = numbers.constants();
    TD_GRID_STRIDE(i, n / V) {
        const group vp = ((const group *)p)[i], vg = ((const group *)g)[i];
        wide vw, vm = ((const wide *)m)[i], vv = ((const wide *)v)[i];
        TD_UNROLL for (int k = 0; k < V; k++)
            vw.v[k] = td_load<T>(vp.v + k);
        if (master) {
            const wide vk = ((const wide *)master)[i];
            TD_UNROLL for (int k = 0; k < V; k++)
                vw.v[k] = td_renewed<T>(vw.v[k], vk.v[k]);
        }
        TD_UNROLL for (int k = 0; k < V; k++) {
            const W w = vw.v[k], d = c.gscale * td_load<T>(vg.v + k);
            vm.v[k] = c.beta1 * vm.v[k] + c.rest1 * d;
            vv.v[k] = c.beta2 * vv.v[k] + c.rest2 * (d * d);
            const W u = c.update(w, vm.v[k], vv.v[k]);
            pp += (double)w * (double)w;
            uu += (double)u * (double)u;
        }
        ((wide *)m)[i] = vm;
        ((wide *)v)[i] = vv;
    }
    pp = td_block_all(pp, td_op_sum());
    uu = td_block_all(uu, td_op_sum());
    if (threadIdx.x == 0) {
        part[blockIdx.x] = pp;
        part[gridDim.x + blockIdx.x] = uu;
    }
}

template <class W> struct lars_rule {
    enum { WRITES = 1 };
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

template <class W> struct lars_numbers {
    td_number gscale, lr;
    const double *squares;
    double trust, momentum, decay;
    bool has_v;
    __device__ __forceinline__ lars_rule<W> rule() const
    {
        const double scale = td_value(gscale);
        double rate = td_value(lr);
        if (squares) {
            const double p = sqrt(squares[0]), g = fabs(scale) * sqrt(squares[1]);
            if (p > 0 && g > 0)
                rate *= trust * p / (g + decay * p);
        }
        return { (W)scale, (W)rate, (W)momentum, (W)decay, has_v };
    }
};

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" void td__cuda_lamb_moments(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps,
                                      double weight_decay, td_number bias1, td_number bias2, double *squares)
{
    const unsigned blocks = td_square_blocks(n);
    double *part = (double *)td__cuda_scratch(sizeof *part * 2 * blocks);
    if (!part)
        return;                                        /* the error is pending                                                */
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        enum { V = td_pack<W>::N };
        const lamb_numbers<W> numbers = { s->gscale, s->lr, bias1, bias2, beta1, beta2, eps, weight_decay, NULL };
        if (n % V == 0 && ((uintptr_t)s->p | (uintptr_t)s->g) % sizeof(td_few<T, V>) == 0 && td_packed(s->master) && td_packed(m) && td_packed(v))
            TD_LAUNCH("lamb_moments", blocks, TD_THREADS, 0, (moments_kernel<T, V>), n, (const T *)s->p, (const W *)s->master, (const T *)s->g, (W *)m,
                      (W *)v, numbers, part, s->stop, td__cuda_trap_word());
        else
            TD_LAUNCH("lamb_moments", blocks, TD_THREADS, 0, (moments_kernel<T, 1>), n, (const T *)s->p, (const W *)s->master, (const T *)s->g, (W *)m,
                      (W *)v, numbers, part, s->stop, td__cuda_trap_word());
    })
    TD_LAUNCH("lamb_moments", 2, TD_THREADS, 0, (td_squares_kernel), (int)blocks, (const double *)part, squares, false, s->stop);
    td__cuda_scratch_free(part);
}

extern "C" void td__cuda_lamb(td_dtype t, int64_t n, const td_step *s, const void *m, const void *v, const double *squares, double eps,
                              double weight_decay, td_number bias1, td_number bias2)
{
    td_step step = *s;
    step.g = NULL;                                     /* is in the moments                                                   */
    TD_CUDA_FLOAT(t, T, {
        const lamb_numbers<td_wide<T>> numbers = { s->gscale, s->lr, bias1, bias2, 0, 0, eps, weight_decay, squares };
        td_rule<T>("lamb", n, step, (void *)m, (void *)v, NULL, numbers);         /* which it does not write */
    })
}

extern "C" void td__cuda_lars(td_dtype t, int64_t n, const td_step *s, void *v, const double *squares, double trust, double momentum, double weight_decay)
{
    TD_CUDA_FLOAT(t, T, {
        const lars_numbers<td_wide<T>> numbers = { s->gscale, s->lr, squares, trust, momentum, weight_decay, v != NULL };
        td_rule<T>("lars", n, *s, v, NULL, NULL, numbers);
    })
}
