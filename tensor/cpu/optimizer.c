/* tensor/cpu/optimizer.c: one fused pass per step over a flat run of parameters, and the sum of squares for clipping.
 *
 * Arithmetic is in the parameters' dtype (16 bits: f32), without fused multiply-add: every build gives the same result. An element depends on
 * nothing but its own numbers, and sumsq works in parts whose size depends on n alone, so the number of threads changes nothing.
 */
#include "steps.h"

#define COEFFICIENTS(T) struct { T gscale, lr, momentum, damp, decay, beta1, rest1, beta2, rest2, eps, keep, step, root2; bool nesterov, first; }
typedef COEFFICIENTS(float) coef_f32;
typedef COEFFICIENTS(double) coef_f64;

/* The cases of SGD are constants after inlining, so that each loop has no branch. */
#define INLINE static inline __attribute__((always_inline)) void
#define OPTIMIZER(T, F)                                                                                      \
    INLINE F(sgd_part)(const bool has_v, const bool nesterov, const bool first, int64_t n, T *restrict p, const T *restrict g, T *restrict v,  \
                       const F(coef) c)                                                                      \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = c.gscale * g[i] + c.decay * p[i];                                                          \
            if (has_v) {                                                                                     \
                T vi = first ? d : c.momentum * v[i] + c.damp * d;                                           \
                v[i] = vi;                                                                                   \
                d = nesterov ? d + c.momentum * vi : vi;                                                     \
            }                                                                                                \
            p[i] -= c.lr * d;                                                                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(sgd)(int64_t n, T *p, const T *g, T *v, const F(coef) c)                                   \
    {                                                                                                        \
        if (!v)                                                                                              \
            F(sgd_part)(false, false, false, n, p, g, NULL, c);                                              \
        else if (c.nesterov && c.first)                                                                      \
            F(sgd_part)(true, true, true, n, p, g, v, c);                                                    \
        else if (c.nesterov)                                                                                 \
            F(sgd_part)(true, true, false, n, p, g, v, c);                                                   \
        else if (c.first)                                                                                    \
            F(sgd_part)(true, false, true, n, p, g, v, c);                                                   \
        else                                                                                                 \
            F(sgd_part)(true, false, false, n, p, g, v, c);                                                  \
    }                                                                                                        \
                                                                                                             \
    static void F(adamw)(int64_t n, T *restrict p, const T *restrict g, T *restrict m, T *restrict v, const F(coef) c)  \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = c.gscale * g[i];                                                                           \
            T mi = c.beta1 * m[i] + c.rest1 * d, vi = c.beta2 * v[i] + c.rest2 * (d * d);                    \
            m[i] = mi;                                                                                       \
            v[i] = vi;                                                                                       \
            p[i] = p[i] * c.keep - c.step * mi / (F(root)(vi) / c.root2 + c.eps);                            \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* n is a multiple of 16, or the end of a part */                                                        \
    INLINE F(squares)(int64_t n, const T *x, double lane[16])                                                \
    {                                                                                                        \
        int64_t at = 0;                                                                                      \
        for (; at + 16 <= n; at += 16)                                                                       \
            _Pragma("omp simd")                                                                              \
            for (int l = 0; l < 16; l++)                                                                     \
                lane[l] += (double)x[at + l] * (double)x[at + l];                                            \
        for (int l = 0; at < n; at++, l++)                                                                   \
            lane[l] += (double)x[at] * (double)x[at];                                                        \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
#define root_f32 sqrtf
#define root_f64 sqrt
OPTIMIZER(float, F32)
OPTIMIZER(double, F64)

static double part_of(td_dtype t, int64_t n, const void *x)
{
    double lane[16] = { 0 }, total = 0;
    if (t == TD_F64)
        squares_f64(n, x, lane);
    else if (t == TD_F32)
        squares_f32(n, x, lane);
    for (int64_t b = 0; b < n && half(t); b += TD_BLOCK) {
        float wide[TD_BLOCK];
        const int64_t count = n - b < TD_BLOCK ? n - b : TD_BLOCK;
        widen(t, count, wide, (const uint16_t *)x + b);
        squares_f32(count, wide, lane);
    }
    for (int l = 0; l < 16; l++)
        total += lane[l];
    return total;
}

static double sumsq(td_dtype t, int64_t n, const void *x)
{
    enum { PARTS = 256 };
    double part[PARTS];
    int64_t size = (n + PARTS - 1) / PARTS;
    size = (size + TD_BLOCK - 1) / TD_BLOCK * TD_BLOCK;
    const int parts = n > 0 ? (int)((n + size - 1) / size) : 0;
    _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")
    for (int i = 0; i < parts; i++)
        part[i] = part_of(t, n - i * size < size ? n - i * size : size, (const char *)x + (size_t)(i * size) * td_dtype_size(t));
    double sum = 0;
    for (int i = 0; i < parts; i++)
        sum += part[i];
    return sum;
}

void K(sumsq)(td_dtype t, int count, const int64_t *n, const void *const *x, double *out, bool add)
{
    double sum = add ? *out : 0;
    for (int i = 0; i < count; i++)
        sum += sumsq(t, n[i], x[i]);
    *out = sum;
}

/* ---- rows: coefficients are worked out in double and rounded once ----------------------------------------------------------------------------- */

void K(sgd)(td_dtype t, int64_t n, const td_step *s, void *v, double momentum, double dampening, double weight_decay, bool nesterov, bool first)
{
    const double gscale = td__number_get(s->gscale), lr = td__number_get(s->lr), damp = 1 - dampening;
#define C(T) { .gscale = (T)gscale, .lr = (T)lr, .momentum = (T)momentum, .damp = (T)damp, .decay = (T)weight_decay, .nesterov = nesterov, .first = first }
#define STATE(T) AT(T, v),
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
    STEP(t, n, s, sgd, c32, c64, STATE);
#undef C
#undef STATE
}

void K(adamw)(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps, double weight_decay,
              td_number bias1, td_number bias2)
{
    const double gscale = td__number_get(s->gscale), lr = td__number_get(s->lr);
    const double keep = 1 - lr * weight_decay, step = lr / td__number_get(bias1), root2 = sqrt(td__number_get(bias2));
#define C(T) { .gscale = (T)gscale, .beta1 = (T)beta1, .rest1 = (T)(1 - beta1), .beta2 = (T)beta2, .rest2 = (T)(1 - beta2), .eps = (T)eps,  \
               .keep = (T)keep, .step = (T)step, .root2 = (T)root2 }
#define STATE(T) AT(T, m), AT(T, v),
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
    STEP(t, n, s, adamw, c32, c64, STATE);
#undef C
#undef STATE
}
