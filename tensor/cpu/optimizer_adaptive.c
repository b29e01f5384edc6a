/* tensor/cpu/optimizer_adaptive.c: optimizers that scale each element by what it has seen (Adam, RMSprop, Adagrad, Lion), and moving averages
 * of weights: one fused pass each over a flat run.
 *
 * As optimizer.c: arithmetic in the parameters' dtype without fused multiply-add, an element depends on nothing but its own numbers, so
 * neither the number of threads nor the instruction set changes a bit. Pads between parameters (p, g and state 0) stay 0 in every rule.
 */
#include "steps.h"

/* What is constant over a call; each rule reads its own. */
#define COEFFICIENTS(T) struct { T gscale, lr, beta1, rest1, beta2, rest2, eps, decay, root2, momentum, initial; bool first; }
typedef COEFFICIENTS(float) coef_f32;
typedef COEFFICIENTS(double) coef_f64;

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
        F(adam_part)(n, p, g, m, v, c);                                                                      \
    }                                                                                                        \
                                                                                                             \
    static void F(rmsprop)(int64_t n, T *p, const T *g, T *s, T *buffer, T *mean, const F(coef) c)           \
    {                                                                                                        \
        if (buffer && mean)                                                                                  \
            F(rmsprop_part)(true, true, n, p, g, s, buffer, mean, c);                                        \
        else if (buffer)                                                                                     \
            F(rmsprop_part)(true, false, n, p, g, s, buffer, NULL, c);                                       \
        else if (mean)                                                                                       \
            F(rmsprop_part)(false, true, n, p, g, s, NULL, mean, c);                                         \
        else                                                                                                 \
            F(rmsprop_part)(false, false, n, p, g, s, NULL, NULL, c);                                        \
    }                                                                                                        \
                                                                                                             \
    static void F(adagrad)(int64_t n, T *p, const T *g, T *s, const F(coef) c)                               \
    {                                                                                                        \
        if (c.first)                                                                                         \
            F(adagrad_part)(true, n, p, g, s, c);                                                            \
        else                                                                                                 \
            F(adagrad_part)(false, n, p, g, s, c);                                                           \
    }                                                                                                        \
                                                                                                             \
    static void F(lion)(int64_t n, T *p, const T *g, T *m, const F(coef) c)                                  \
    {                                                                                                        \
        F(lion_part)(n, p, g, m, c);                                                                         \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
#define root_f32 sqrtf
#define root_f64 sqrt
ADAPTIVE(float, F32)
ADAPTIVE(double, F64)

/* ---- rows: coefficients are worked out in double and rounded once ----------------------------------------------------------------------------- */

void K(adam)(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps, double weight_decay,
             td_number bias1, td_number bias2)
{
    const double gscale = td__number_get(s->gscale), step = td__number_get(s->lr) / td__number_get(bias1), root2 = sqrt(td__number_get(bias2));
#define C(T) { .gscale = (T)gscale, .lr = (T)step, .beta1 = (T)beta1, .rest1 = (T)(1 - beta1), .beta2 = (T)beta2, .rest2 = (T)(1 - beta2),  \
               .eps = (T)eps, .decay = (T)weight_decay, .root2 = (T)root2 }
#define STATE(T) AT(T, m), AT(T, v),
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
    STEP(t, n, s, adam, c32, c64, STATE);
#undef C
#undef STATE
}

void K(rmsprop)(td_dtype t, int64_t n, const td_step *s, void *square, void *buffer, void *mean, double alpha, double eps, double weight_decay,
                double momentum)
{
    const double gscale = td__number_get(s->gscale), lr = td__number_get(s->lr);
#define C(T) { .gscale = (T)gscale, .lr = (T)lr, .beta1 = (T)alpha, .rest1 = (T)(1 - alpha), .eps = (T)eps, .decay = (T)weight_decay,  \
               .momentum = (T)momentum }
#define STATE(T) AT(T, square), AT(T, buffer), AT(T, mean),
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
    STEP(t, n, s, rmsprop, c32, c64, STATE);
#undef C
#undef STATE
}

void K(adagrad)(td_dtype t, int64_t n, const td_step *s, void *sum, double eps, double weight_decay, bool first, double initial)
{
    const double gscale = td__number_get(s->gscale), lr = td__number_get(s->lr);
#define C(T) { .gscale = (T)gscale, .lr = (T)lr, .eps = (T)eps, .decay = (T)weight_decay, .initial = (T)initial, .first = first }
#define STATE(T) AT(T, sum),
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
    STEP(t, n, s, adagrad, c32, c64, STATE);
#undef C
#undef STATE
}

void K(lion)(td_dtype t, int64_t n, const td_step *s, void *m, double beta1, double beta2, double weight_decay)
{
    const double gscale = td__number_get(s->gscale), lr = td__number_get(s->lr);
#define C(T) { .gscale = (T)gscale, .lr = (T)lr, .beta1 = (T)beta1, .rest1 = (T)(1 - beta1), .beta2 = (T)beta2, .rest2 = (T)(1 - beta2),  \
               .decay = (T)weight_decay }
#define STATE(T) AT(T, m),
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
    STEP(t, n, s, lion, c32, c64, STATE);
#undef C
#undef STATE
}

void K(ema)(td_dtype t, int64_t n, void *average, const void *x, double decay)
{
    if (t == TD_F32)
        BLOCKS(n, ema_part_f32(count, (float *)average + b, (const float *)x + b, (float)(1 - decay)))
    else
        BLOCKS(n, ema_part_f64(count, (double *)average + b, (const double *)x + b, 1 - decay))
}
