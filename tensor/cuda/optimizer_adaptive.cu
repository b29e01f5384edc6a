/* tensor/cuda/optimizer_adaptive.cu: optimizers that scale each element by what it has seen (Adam, RMSprop, Adagrad, Lion), and moving averages
 * of weights: one fused pass each over a flat run.
 *
 * Twin of ../cpu/optimizer_adaptive.c, operation by operation. Pads between parameters (p, g and state 0) stay 0 in every rule.
 */
#include "flats.h"

template <class W> struct adam_rule {
    enum { WRITES = 2 };
    W gscale, step, beta1, rest1, beta2, rest2, eps, decay, root2;
    __device__ __forceinline__ void operator()(W &p, W g, W &m, W &v, W &) const
    {
        const W d = gscale * g + decay * p;
        m = beta1 * m + rest1 * d;
        v = beta2 * v + rest2 * (d * d);
        p -= step * m / (sqrt(v) / root2 + eps);
    }
};

template <class W> struct adam_numbers {
    td_number gscale, lr, bias1, bias2;
    double beta1, beta2, eps, decay;
    __device__ __forceinline__ adam_rule<W> rule() const
    {
        return { (W)td_value(gscale), (W)(td_value(lr) / td_value(bias1)), (W)beta1, (W)(1 - beta1), (W)beta2, (W)(1 - beta2), (W)eps, (W)decay,
                 (W)sqrt(td_value(bias2)) };
    }
};

template <class W> struct rmsprop_rule {
    enum { WRITES = 3 };
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

template <class W> struct rmsprop_numbers {
    td_number gscale, lr;
    double alpha, eps, decay, momentum;
    bool has_buffer, centered;
    __device__ __forceinline__ rmsprop_rule<W> rule() const
    {
        return { (W)td_value(gscale), (W)td_value(lr), (W)alpha, (W)(1 - alpha), (W)eps, (W)decay, (W)momentum, has_buffer, centered };
    }
};

template <class W> struct adagrad_rule {
    enum { WRITES = 1 };
    W gscale, lr, eps, decay, initial;
    bool first;
    __device__ __forceinline__ void operator()(W &p, W g, W &sum, W &, W &) const
    {
        const W d = gscale * g + decay * p;
        sum = (first ? initial : sum) + d * d;
        p -= lr * d / (sqrt(sum) + eps);
    }
};

template <class W> struct adagrad_numbers {
    td_number gscale, lr;
    double eps, decay, initial;
    bool first;
    __device__ __forceinline__ adagrad_rule<W> rule() const
    {
        return { (W)td_value(gscale), (W)td_value(lr), (W)eps, (W)decay, (W)initial, first };
    }
};

template <class W> struct lion_rule {
    enum { WRITES = 1 };
    W gscale, lr, beta1, rest1, beta2, rest2, decay;
    __device__ __forceinline__ void operator()(W &p, W g, W &m, W &, W &) const
    {
        const W d = gscale * g, u = beta1 * m + rest1 * d;
        const W sign = u > 0 ? (W)1 : u < 0 ? (W)-1 : u;      /* 0 and NaN: itself */
        m = beta2 * m + rest2 * d;
        p -= lr * (sign + decay * p);
    }
};

template <class W> struct lion_numbers {
    td_number gscale, lr;
    double beta1, beta2, decay;
    __device__ __forceinline__ lion_rule<W> rule() const
    {
        return { (W)td_value(gscale), (W)td_value(lr), (W)beta1, (W)(1 - beta1), (W)beta2, (W)(1 - beta2), (W)decay };
    }
};

template <class W> struct ema_rule {
    enum { WRITES = 0 };
    W rest;
    __device__ __forceinline__ void operator()(W &average, W x, W &, W &, W &) const
    {
        average += rest * (x - average);
    }
};

template <class W> struct ema_numbers {
    double decay;
    __device__ __forceinline__ ema_rule<W> rule() const { return { (W)(1 - decay) }; }
};

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" void td__cuda_adam(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps, double weight_decay,
                              td_number bias1, td_number bias2)
{
    TD_CUDA_FLOAT(t, T, {
        const adam_numbers<td_wide<T>> numbers = { s->gscale, s->lr, bias1, bias2, beta1, beta2, eps, weight_decay };
        td_rule<T>("adam", n, *s, m, v, NULL, numbers);
    })
}

extern "C" void td__cuda_rmsprop(td_dtype t, int64_t n, const td_step *s, void *square, void *buffer, void *mean, double alpha, double eps,
                                 double weight_decay, double momentum)
{
    TD_CUDA_FLOAT(t, T, {
        const rmsprop_numbers<td_wide<T>> numbers = { s->gscale, s->lr, alpha, eps, weight_decay, momentum, buffer != NULL, mean != NULL };
        td_rule<T>("rmsprop", n, *s, square, buffer, mean, numbers);
    })
}

extern "C" void td__cuda_adagrad(td_dtype t, int64_t n, const td_step *s, void *sum, double eps, double weight_decay, bool first, double initial)
{
    TD_CUDA_FLOAT(t, T, {
        const adagrad_numbers<td_wide<T>> numbers = { s->gscale, s->lr, eps, weight_decay, initial, first };
        td_rule<T>("adagrad", n, *s, sum, NULL, NULL, numbers);
    })
}

extern "C" void td__cuda_lion(td_dtype t, int64_t n, const td_step *s, void *m, double beta1, double beta2, double weight_decay)
{
    TD_CUDA_FLOAT(t, T, {
        const lion_numbers<td_wide<T>> numbers = { s->gscale, s->lr, beta1, beta2, weight_decay };
        td_rule<T>("lion", n, *s, m, NULL, NULL, numbers);
    })
}

extern "C" void td__cuda_ema(td_dtype t, int64_t n, void *average, const void *x, double decay)
{
    const td_step s = { average, NULL, x, { 1, NULL }, { 0, NULL }, NULL };
    TD_CUDA_FLOAT(t, T, {
        const ema_numbers<td_wide<T>> numbers = { decay };
        td_rule<T>("ema", n, s, NULL, NULL, NULL, numbers, NULL);
    })
}
