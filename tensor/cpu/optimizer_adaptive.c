/* tensor/cpu/optimizer_adaptive.c: optimizers that scale each element by what it has seen (Adam, RMSprop, Adagrad, Lion), and moving averages
 * of weights: one fused pass each over a flat run.
 *
 * As optimizer.c: arithmetic in the parameters' dtype without fused multiply-add, an element depends on nothing but its own numbers, so
 * neither the number of threads nor the instruction set changes a bit. Pads between parameters (p, g and state 0) stay 0 in every rule.
 */
#include "cpu.h"

/* What is constant over a call; each rule reads its own. */
#define COEFFICIENTS(T) struct { T gscale, lr, beta1, rest1, beta2, rest2, eps, decay, root2, momentum, initial; }
typedef COEFFICIENTS(float) coef_f32;
typedef COEFFICIENTS(double) coef_f64;

/* Runs F over blocks of TD_BLOCK, in threads when there are many. */
#define BLOCKS(n, call)                                                                                      \
    _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")                                       \
    for (int64_t b = 0; b < n; b += TD_BLOCK) {                                                              \
        const int64_t count = n - b < TD_BLOCK ? n - b : TD_BLOCK;                                           \
        call;                                                                                                \
    }

/* The cases of RMSprop and Adagrad are constants after inlining, so that each loop has no branch. */
#define INLINE static inline __attribute__((always_inline)) void
#define ADAPTIVE(T, F)                                                                                       \
    INLINE F(adam_part)(int64_t n, T *restrict p, const T *restrict g, T *restrict m, T *restrict v, const F(coef) c)  \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = c.gscale * g[i] + c.decay * p[i];                                                          \
            T mi = c.beta1 * m[i] + c.rest1 * d, vi = c.beta2 * v[i] + c.rest2 * (d * d);                    \
            m[i] = mi;                                                                                       \
            v[i] = vi;                                                                                       \
            p[i] -= c.lr * mi / (F(root)(vi) / c.root2 + c.eps);                                             \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    INLINE F(rmsprop_part)(const bool has_buffer, const bool centered, int64_t n, T *restrict p, const T *restrict g, T *restrict s,  \
                           T *restrict buffer, T *restrict mean, const F(coef) c)                            \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = c.gscale * g[i] + c.decay * p[i];                                                          \
            T si = c.beta1 * s[i] + c.rest1 * (d * d), spread = si;                                          \
            s[i] = si;                                                                                       \
            if (centered) {                                                                                  \
                T a = c.beta1 * mean[i] + c.rest1 * d;                                                       \
                mean[i] = a;                                                                                 \
                spread = si - a * a;                                                                         \
                spread = spread < 0 ? 0 : spread;      /* a rounding may have gone below */                  \
            }                                                                                                \
            T u = d / (F(root)(spread) + c.eps);                                                             \
            if (has_buffer) {                                                                                \
                u = c.momentum * buffer[i] + u;                                                              \
                buffer[i] = u;                                                                               \
            }                                                                                                \
            p[i] -= c.lr * u;                                                                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    INLINE F(adagrad_part)(const bool first, int64_t n, T *restrict p, const T *restrict g, T *restrict s, const F(coef) c)  \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = c.gscale * g[i] + c.decay * p[i];                                                          \
            T si = (first ? c.initial : s[i]) + d * d;                                                       \
            s[i] = si;                                                                                       \
            p[i] -= c.lr * d / (F(root)(si) + c.eps);                                                        \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    INLINE F(lion_part)(int64_t n, T *restrict p, const T *restrict g, T *restrict m, const F(coef) c)       \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = c.gscale * g[i], u = c.beta1 * m[i] + c.rest1 * d;                                         \
            T sign = u > 0 ? (T)1 : u < 0 ? (T)-1 : u;         /* 0 and NaN: itself */                       \
            m[i] = c.beta2 * m[i] + c.rest2 * d;                                                             \
            p[i] -= c.lr * (sign + c.decay * p[i]);                                                          \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    INLINE F(ema_part)(int64_t n, T *restrict average, const T *restrict x, T rest)                          \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++)                                                                      \
            average[i] += rest * (x[i] - average[i]);                                                        \
    }                                                                                                        \
                                                                                                             \
    static void F(adam)(int64_t n, T *p, const T *g, T *m, T *v, const F(coef) c)                            \
    {                                                                                                        \
        BLOCKS(n, F(adam_part)(count, p + b, g + b, m + b, v + b, c))                                        \
    }                                                                                                        \
                                                                                                             \
    static void F(rmsprop)(int64_t n, T *p, const T *g, T *s, T *buffer, T *mean, const F(coef) c)           \
    {                                                                                                        \
        if (buffer && mean)                                                                                  \
            BLOCKS(n, F(rmsprop_part)(true, true, count, p + b, g + b, s + b, buffer + b, mean + b, c))      \
        else if (buffer)                                                                                     \
            BLOCKS(n, F(rmsprop_part)(true, false, count, p + b, g + b, s + b, buffer + b, NULL, c))         \
        else if (mean)                                                                                       \
            BLOCKS(n, F(rmsprop_part)(false, true, count, p + b, g + b, s + b, NULL, mean + b, c))           \
        else                                                                                                 \
            BLOCKS(n, F(rmsprop_part)(false, false, count, p + b, g + b, s + b, NULL, NULL, c))              \
    }                                                                                                        \
                                                                                                             \
    static void F(adagrad)(int64_t n, T *p, const T *g, T *s, bool first, const F(coef) c)                   \
    {                                                                                                        \
        if (first)                                                                                           \
            BLOCKS(n, F(adagrad_part)(true, count, p + b, g + b, s + b, c))                                  \
        else                                                                                                 \
            BLOCKS(n, F(adagrad_part)(false, count, p + b, g + b, s + b, c))                                 \
    }                                                                                                        \
                                                                                                             \
    static void F(lion)(int64_t n, T *p, const T *g, T *m, const F(coef) c)                                  \
    {                                                                                                        \
        BLOCKS(n, F(lion_part)(count, p + b, g + b, m + b, c))                                               \
    }                                                                                                        \
                                                                                                             \
    static void F(ema)(int64_t n, T *average, const T *x, T rest)                                            \
    {                                                                                                        \
        BLOCKS(n, F(ema_part)(count, average + b, x + b, rest))                                              \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
#define root_f32 sqrtf
#define root_f64 sqrt
ADAPTIVE(float, F32)
ADAPTIVE(double, F64)

/* A coefficient, worked out in double and rounded once. */
#define COEF(T, ...) ((coef_##T){ __VA_ARGS__ })

void K(adam)(td_dtype t, int64_t n, void *p, const void *g, void *m, void *v, double gscale, double lr, double beta1, double beta2,
             double eps, double weight_decay, double bias1, double bias2)
{
    const double step = lr / bias1, root2 = sqrt(bias2);
    if (t == TD_F32)
        adam_f32(n, p, g, m, v, COEF(f32, .gscale = (float)gscale, .lr = (float)step, .beta1 = (float)beta1, .rest1 = (float)(1 - beta1),
                                     .beta2 = (float)beta2, .rest2 = (float)(1 - beta2), .eps = (float)eps, .decay = (float)weight_decay,
                                     .root2 = (float)root2));
    else
        adam_f64(n, p, g, m, v, COEF(f64, .gscale = gscale, .lr = step, .beta1 = beta1, .rest1 = 1 - beta1, .beta2 = beta2, .rest2 = 1 - beta2,
                                     .eps = eps, .decay = weight_decay, .root2 = root2));
}

void K(rmsprop)(td_dtype t, int64_t n, void *p, const void *g, void *square, void *buffer, void *mean, double gscale, double lr, double alpha,
                double eps, double weight_decay, double momentum)
{
    if (t == TD_F32)
        rmsprop_f32(n, p, g, square, buffer, mean, COEF(f32, .gscale = (float)gscale, .lr = (float)lr, .beta1 = (float)alpha,
                                                        .rest1 = (float)(1 - alpha), .eps = (float)eps, .decay = (float)weight_decay,
                                                        .momentum = (float)momentum));
    else
        rmsprop_f64(n, p, g, square, buffer, mean, COEF(f64, .gscale = gscale, .lr = lr, .beta1 = alpha, .rest1 = 1 - alpha, .eps = eps,
                                                        .decay = weight_decay, .momentum = momentum));
}

void K(adagrad)(td_dtype t, int64_t n, void *p, const void *g, void *sum, double gscale, double lr, double eps, double weight_decay, bool first,
                double initial)
{
    if (t == TD_F32)
        adagrad_f32(n, p, g, sum, first, COEF(f32, .gscale = (float)gscale, .lr = (float)lr, .eps = (float)eps, .decay = (float)weight_decay,
                                              .initial = (float)initial));
    else
        adagrad_f64(n, p, g, sum, first, COEF(f64, .gscale = gscale, .lr = lr, .eps = eps, .decay = weight_decay, .initial = initial));
}

void K(lion)(td_dtype t, int64_t n, void *p, const void *g, void *m, double gscale, double lr, double beta1, double beta2, double weight_decay)
{
    if (t == TD_F32)
        lion_f32(n, p, g, m, COEF(f32, .gscale = (float)gscale, .lr = (float)lr, .beta1 = (float)beta1, .rest1 = (float)(1 - beta1),
                                  .beta2 = (float)beta2, .rest2 = (float)(1 - beta2), .decay = (float)weight_decay));
    else
        lion_f64(n, p, g, m, COEF(f64, .gscale = gscale, .lr = lr, .beta1 = beta1, .rest1 = 1 - beta1, .beta2 = beta2, .rest2 = 1 - beta2,
                                  .decay = weight_decay));
}

void K(ema)(td_dtype t, int64_t n, void *average, const void *x, double decay)
{
    if (t == TD_F32)
        ema_f32(n, average, x, (float)(1 - decay));
    else
        ema_f64(n, average, x, 1 - decay);
}
