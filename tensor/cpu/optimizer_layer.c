/* tensor/cpu/optimizer_layer.c: the passes of optimizers that scale each parameter's update by norms: LAMB (moments and norms, then the
 * step) and LARS (whose norms are two calls of sumsq).
 *
 * Sums are f64 in parts whose size depends on n alone, 16 lanes each, as sumsq's: the number of threads changes nothing. Arithmetic else is
 * in the parameters' dtype without fused multiply-add. The update u is worked out twice, alike, instead of being stored.
 */
#include "cpu.h"

enum { PARTS = 256, LANES = 16 };

#define COEFFICIENTS(T) struct { T gscale, beta1, rest1, beta2, rest2, eps, decay, bias1, root2; }
typedef COEFFICIENTS(float) coef_f32;
typedef COEFFICIENTS(double) coef_f64;

#define INLINE static inline __attribute__((always_inline))
#define LAYER(T, F)                                                                                          \
    INLINE T F(update)(T p, T m, T v, const F(coef) c)                                                       \
    {                                                                                                        \
        return m / c.bias1 / (F(root)(v) / c.root2 + c.eps) + c.decay * p;                                   \
    }                                                                                                        \
                                                                                                             \
    INLINE void F(moments_part)(int64_t n, const T *restrict p, const T *restrict g, T *restrict m, T *restrict v, double *restrict pp,  \
                                double *restrict uu, const F(coef) c)                                        \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t l = 0; l < n; l++) {                                                                    \
            T d = c.gscale * g[l];                                                                           \
            T ml = c.beta1 * m[l] + c.rest1 * d, vl = c.beta2 * v[l] + c.rest2 * (d * d);                    \
            T u = F(update)(p[l], ml, vl, c);                                                                \
            m[l] = ml;                                                                                       \
            v[l] = vl;                                                                                       \
            pp[l] += (double)p[l] * (double)p[l];                                                            \
            uu[l] += (double)u * (double)u;                                                                  \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(lamb_moments)(int64_t n, const T *p, const T *g, T *m, T *v, const F(coef) c, double squares[2])  \
    {                                                                                                        \
        double part[PARTS][2];                                                                               \
        int64_t size = (n + PARTS - 1) / PARTS;                                                              \
        size = (size + TD_BLOCK - 1) / TD_BLOCK * TD_BLOCK;                                                  \
        const int parts = n > 0 ? (int)((n + size - 1) / size) : 0;                                          \
        _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")                                   \
        for (int i = 0; i < parts; i++) {                                                                    \
            double pp[LANES] = { 0 }, uu[LANES] = { 0 }, p2 = 0, u2 = 0;                                     \
            int64_t at = i * size, end = at + size < n ? at + size : n;                                      \
            for (; at + LANES <= end; at += LANES)                                                           \
                F(moments_part)(LANES, p + at, g + at, m + at, v + at, pp, uu, c);                           \
            F(moments_part)(end - at, p + at, g + at, m + at, v + at, pp, uu, c);                            \
            for (int l = 0; l < LANES; l++) {                                                                \
                p2 += pp[l];                                                                                 \
                u2 += uu[l];                                                                                 \
            }                                                                                                \
            part[i][0] = p2;                                                                                 \
            part[i][1] = u2;                                                                                 \
        }                                                                                                    \
        squares[0] = squares[1] = 0;                                                                         \
        for (int i = 0; i < parts; i++) {                                                                    \
            squares[0] += part[i][0];                                                                        \
            squares[1] += part[i][1];                                                                        \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(lamb)(int64_t n, T *p, const T *m, const T *v, T rate, const F(coef) c)                    \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")                                   \
        for (int64_t b = 0; b < n; b += TD_BLOCK) {                                                          \
            const int64_t end = n - b < TD_BLOCK ? n : b + TD_BLOCK;                                         \
            T *restrict pb = p;                                                                              \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = b; i < end; i++)                                                                \
                pb[i] -= rate * F(update)(pb[i], m[i], v[i], c);                                             \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    INLINE void F(lars_part)(const bool has_v, int64_t n, T *restrict p, const T *restrict g, T *restrict v, T gscale, T rate, T momentum,  \
                             T decay)                                                                        \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = rate * (gscale * g[i] + decay * p[i]);                                                     \
            if (has_v) {                                                                                     \
                d = momentum * v[i] + d;                                                                     \
                v[i] = d;                                                                                    \
            }                                                                                                \
            p[i] -= d;                                                                                       \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(lars)(int64_t n, T *p, const T *g, T *v, T gscale, T rate, T momentum, T decay)            \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")                                   \
        for (int64_t b = 0; b < n; b += TD_BLOCK) {                                                          \
            const int64_t count = n - b < TD_BLOCK ? n - b : TD_BLOCK;                                       \
            if (v)                                                                                           \
                F(lars_part)(true, count, p + b, g + b, v + b, gscale, rate, momentum, decay);               \
            else                                                                                             \
                F(lars_part)(false, count, p + b, g + b, NULL, gscale, rate, momentum, decay);               \
        }                                                                                                    \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
#define root_f32 sqrtf
#define root_f64 sqrt
LAYER(float, F32)
LAYER(double, F64)

void K(lamb_moments)(td_dtype t, int64_t n, const void *p, const void *g, void *m, void *v, double gscale, double beta1, double beta2, double eps,
                     double weight_decay, double bias1, double bias2, double squares[2])
{
    if (t == TD_F32)
        lamb_moments_f32(n, p, g, m, v, (coef_f32){ .gscale = (float)gscale, .beta1 = (float)beta1, .rest1 = (float)(1 - beta1),
                                                    .beta2 = (float)beta2, .rest2 = (float)(1 - beta2), .eps = (float)eps,
                                                    .decay = (float)weight_decay, .bias1 = (float)bias1, .root2 = (float)sqrt(bias2) }, squares);
    else
        lamb_moments_f64(n, p, g, m, v, (coef_f64){ .gscale = gscale, .beta1 = beta1, .rest1 = 1 - beta1, .beta2 = beta2, .rest2 = 1 - beta2,
                                                    .eps = eps, .decay = weight_decay, .bias1 = bias1, .root2 = sqrt(bias2) }, squares);
}

void K(lamb)(td_dtype t, int64_t n, void *p, const void *m, const void *v, double rate, double eps, double weight_decay, double bias1,
             double bias2)
{
    if (t == TD_F32)
        lamb_f32(n, p, m, v, (float)rate, (coef_f32){ .eps = (float)eps, .decay = (float)weight_decay, .bias1 = (float)bias1,
                                                      .root2 = (float)sqrt(bias2) });
    else
        lamb_f64(n, p, m, v, rate, (coef_f64){ .eps = eps, .decay = weight_decay, .bias1 = bias1, .root2 = sqrt(bias2) });
}

void K(lars)(td_dtype t, int64_t n, void *p, const void *g, void *v, double gscale, double rate, double momentum, double weight_decay)
{
    if (t == TD_F32)
        lars_f32(n, p, g, v, (float)gscale, (float)rate, (float)momentum, (float)weight_decay);
    else
        lars_f64(n, p, g, v, gscale, rate, momentum, weight_decay);
}
