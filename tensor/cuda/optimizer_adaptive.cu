/* tensor/cuda/optimizer_adaptive.cu: optimizers that scale each element by what it has seen (Adam, RMSprop, Adagrad, Lion), and moving averages
 * of weights: one fused pass each over a flat run.
 *
 * Twin of ../cpu/optimizer_adaptive.c, operation by operation. Pads between parameters (p, g and state 0) stay 0 in every rule.
 */
#include "flats.h"

template <class W> struct adam_rule {
    W gscale, step, beta1, rest1, beta2, rest2, eps, decay, root2;
    __device__ __forceinline__ void operator()(W &p, W g, W &m, W &v, W &) const
    {
        const W d = gscale * g + decay * p;
        m = beta1 * m + rest1 * d;
        v = beta2 * v + rest2 * (d * d);
        p -= step * m / (sqrt(v) / root2 + eps);
    }
};

template <class W> struct rmsprop_rule {
    W gscale, lr, alpha, rest, eps, decay, momentum;
    bool has_buffer, centered;
    __device__ __forceinline__ void operator()(W &p, W g, W &square, W &buffer, W &mean) const
    {
        const W d = gscale * g + decay * p;
        square = alpha * square + rest * (d * d);
        W spread = square;
        if (centered) {
            mean = alpha * mean + rest * d;
            spread = square - mean * mean;
            spread = spread < 0 ? 0 : spread;              /* a rounding may have gone below */
        }
        W u = d / (sqrt(spread) + eps);
        if (has_buffer) {
            u = momentum * buffer + u;
            buffer = u;
        }
        p -= lr * u;
    }
};

template <class W> struct adagrad_rule {
    W gscale, lr, eps, decay, initial;
    bool first;
    __device__ __forceinline__ void operator()(W &p, W g, W &sum, W &, W &) const
    {
        const W d = gscale * g + decay * p;
        sum = (first ? initial : sum) + d * d;
        p -= lr * d / (sqrt(sum) + eps);
    }
};

template <class W> struct lion_rule {
    W gscale, lr, beta1, rest1, beta2, rest2, decay;
    __device__ __forceinline__ void operator()(W &p, W g, W &m, W &, W &) const
    {
        const W d = gscale * g, u = beta1 * m + rest1 * d;
        const W sign = u > 0 ? (W)1 : u < 0 ? (W)-1 : u;      /* 0 and NaN: itself */
        m = beta2 * m + rest2 * d;
        p -= lr * (sign + decay * p);
    }
};

template <class W> struct ema_rule {
    W rest;
    __device__ __forceinline__ void operator()(W &average, W x, W &, W &, W &) const
    {
        average += rest * (x - average);
    }
};

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" void td__cuda_adam(td_dtype t, int64_t n, void *p, const void *g, void *m, void *v, double gscale, double lr, double beta1, double beta2,
                              double eps, double weight_decay, double bias1, double bias2)
{
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const adam_rule<W> rule = { (W)gscale, (W)(lr / bias1), (W)beta1, (W)(1 - beta1), (W)beta2, (W)(1 - beta2), (W)eps, (W)weight_decay,
                                    (W)sqrt(bias2) };
        td_rule<T>("adam", n, p, g, m, v, NULL, rule);
    })
}

extern "C" void td__cuda_rmsprop(td_dtype t, int64_t n, void *p, const void *g, void *square, void *buffer, void *mean, double gscale, double lr,
                                 double alpha, double eps, double weight_decay, double momentum)
{
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const rmsprop_rule<W> rule = { (W)gscale, (W)lr, (W)alpha, (W)(1 - alpha), (W)eps, (W)weight_decay, (W)momentum, buffer != NULL, mean != NULL };
        td_rule<T>("rmsprop", n, p, g, square, buffer, mean, rule);
    })
}

extern "C" void td__cuda_adagrad(td_dtype t, int64_t n, void *p, const void *g, void *sum, double gscale, double lr, double eps, double weight_decay,
                                 bool first, double initial)
{
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const adagrad_rule<W> rule = { (W)gscale, (W)lr, (W)eps, (W)weight_decay, (W)initial, first };
        td_rule<T>("adagrad", n, p, g, sum, NULL, NULL, rule);
    })
}

extern "C" void td__cuda_lion(td_dtype t, int64_t n, void *p, const void *g, void *m, double gscale, double lr, double beta1, double beta2,
                              double weight_decay)
{
    TD_CUDA_FLOAT(t, T, {
        typedef td_wide<T> W;
        const lion_rule<W> rule = { (W)gscale, (W)lr, (W)beta1, (W)(1 - beta1), (W)beta2, (W)(1 - beta2), (W)weight_decay };
        td_rule<T>("lion", n, p, g, m, NULL, NULL, rule);
    })
}

extern "C" void td__cuda_ema(td_dtype t, int64_t n, void *average, const void *x, double decay)
{
    TD_CUDA_FLOAT(t, T, {
        const ema_rule<td_wide<T>> rule = { (td_wide<T>)(1 - decay) };
        td_rule<T>("ema", n, average, x, NULL, NULL, NULL, rule);
    })
}
