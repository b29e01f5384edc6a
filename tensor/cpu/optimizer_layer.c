/* tensor/cpu/optimizer_layer.c: the passes of optimizers that scale each parameter's update by norms: LAMB (moments and norms, then the
 * step) and LARS (whose norms are two calls of sumsq).
 *
 * Sums are f64 in parts whose size depends on n alone, 16 lanes each, as sumsq's: the number of threads changes nothing. Arithmetic else is
 * in the parameters' dtype without fused multiply-add. The update u is worked out twice, alike, instead of being stored.
 */
#include "steps.h"

enum { PARTS = 256, LANES = 16 };

#define COEFFICIENTS(T) struct { T gscale, beta1, rest1, beta2, rest2, eps, decay, bias1, root2, rate, momentum; }
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
    /* n is a multiple of LANES, or the end of a part */                                                     \
    static void F(moments_of)(int64_t n, const T *p, const T *g, T *m, T *v, double *pp, double *uu, const F(coef) c)  \
    {                                                                                                        \
        int64_t at = 0;                                                                                      \
        for (; at + LANES <= n; at += LANES)                                                                 \
            F(moments_part)(LANES, p + at, g + at, m + at, v + at, pp, uu, c);                               \
        F(moments_part)(n - at, p + at, g + at, m + at, v + at, pp, uu, c);                                  \
    }                                                                                                        \
                                                                                                             \
    static void F(lamb)(int64_t n, T *restrict p, const T *restrict g, const T *restrict m, const T *restrict v, const F(coef) c)  \
    {                                                                                                        \
        (void)g;                                                                                             \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++)                                                                      \
            p[i] -= c.rate * F(update)(p[i], m[i], v[i], c);                                                 \
    }                                                                                                        \
                                                                                                             \
    INLINE void F(lars_part)(const bool has_v, int64_t n, T *restrict p, const T *restrict g, T *restrict v, const F(coef) c)  \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = c.rate * (c.gscale * g[i] + c.decay * p[i]);                                               \
            if (has_v) {                                                                                     \
                d = c.momentum * v[i] + d;                                                                   \
                v[i] = d;                                                                                    \
            }                                                                                                \
            p[i] -= d;                                                                                       \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(lars)(int64_t n, T *p, const T *g, T *v, const F(coef) c)                                  \
    {                                                                                                        \
        if (v)                                                                                               \
            F(lars_part)(true, n, p, g, v, c);                                                               \
        else                                                                                                 \
            F(lars_part)(false, n, p, g, NULL, c);                                                           \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
#define root_f32 sqrtf
#define root_f64 sqrt
LAYER(float, F32)
LAYER(double, F64)

/* One part, whose elements begin at `from`. */
static void part_of(td_dtype t, int64_t from, int64_t n, const td_step *s, void *m, void *v, const coef_f32 *c32, const coef_f64 *c64, double total[2])
{
    double pp[LANES] = { 0 }, uu[LANES] = { 0 };
    if (t == TD_F64)
        moments_of_f64(n, (const double *)s->p + from, (const double *)s->g + from, (double *)m + from, (double *)v + from, pp, uu, *c64);
    else if (t == TD_F32)
        moments_of_f32(n, (const float *)s->p + from, (const float *)s->g + from, (float *)m + from, (float *)v + from, pp, uu, *c32);
    for (int64_t b = from; b < from + n && half(t); b += TD_BLOCK) {
        float p[TD_BLOCK], g[TD_BLOCK];
        const int64_t count = from + n - b < TD_BLOCK ? from + n - b : TD_BLOCK;
        widen(t, count, g, (const uint16_t *)s->g + b);
        if (s->master)
            renew(t, count, p, (const float *)s->master + b, (const uint16_t *)s->p + b);
        else
            widen(t, count, p, (const uint16_t *)s->p + b);
        moments_of_f32(count, p, g, (float *)m + b, (float *)v + b, pp, uu, *c32);
    }
    total[0] = total[1] = 0;
    for (int l = 0; l < LANES; l++) {
        total[0] += pp[l];
        total[1] += uu[l];
    }
}

void K(lamb_moments)(td_dtype t, int64_t n, const td_step *s, void *m, void *v, double beta1, double beta2, double eps, double weight_decay,
                     td_number bias1, td_number bias2, double *squares)
{
    const double gscale = td__number_get(s->gscale), b1 = td__number_get(bias1), root2 = sqrt(td__number_get(bias2));
#define C(T) { .gscale = (T)gscale, .beta1 = (T)beta1, .rest1 = (T)(1 - beta1), .beta2 = (T)beta2, .rest2 = (T)(1 - beta2), .eps = (T)eps,  \
               .decay = (T)weight_decay, .bias1 = (T)b1, .root2 = (T)root2 }
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
#undef C
    double part[PARTS][2];
    int64_t size = (n + PARTS - 1) / PARTS;
    size = (size + TD_BLOCK - 1) / TD_BLOCK * TD_BLOCK;
    const int parts = n > 0 ? (int)((n + size - 1) / size) : 0;
    if (stopped(s))
        return;
    _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")
    for (int i = 0; i < parts; i++)
        part_of(t, i * size, n - i * size < size ? n - i * size : size, s, m, v, &c32, &c64, part[i]);
    squares[0] = squares[1] = 0;
    for (int i = 0; i < parts; i++) {
        squares[0] += part[i][0];
        squares[1] += part[i][1];
    }
}

void K(lamb)(td_dtype t, int64_t n, const td_step *s, const void *m, const void *v, const double *squares, double eps, double weight_decay,
             td_number bias1, td_number bias2)
{
    const double b1 = td__number_get(bias1), root2 = sqrt(td__number_get(bias2));
    const double trust = squares && squares[0] > 0 && squares[1] > 0 ? sqrt(squares[0]) / sqrt(squares[1]) : 1, rate = td__number_get(s->lr) * trust;
#define C(T) { .eps = (T)eps, .decay = (T)weight_decay, .bias1 = (T)b1, .root2 = (T)root2, .rate = (T)rate }
#define STATE(T) AT(const T, m), AT(const T, v),
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
    STEP(t, n, s, lamb, c32, c64, STATE);
#undef C
#undef STATE
}

void K(lars)(td_dtype t, int64_t n, const td_step *s, void *v, const double *squares, double trust, double momentum, double weight_decay)
{
    const double gscale = td__number_get(s->gscale);
    double rate = td__number_get(s->lr);
    if (squares) {
        const double p = sqrt(squares[0]), g = fabs(gscale) * sqrt(squares[1]);
        if (p > 0 && g > 0)
            rate *= trust * p / (g + weight_decay * p);
    }
#define C(T) { .gscale = (T)gscale, .decay = (T)weight_decay, .momentum = (T)momentum, .rate = (T)rate }
#define STATE(T) AT(T, v),
    const coef_f32 c32 = C(float);
    const coef_f64 c64 = C(double);
    STEP(t, n, s, lars, c32, c64, STATE);
#undef C
#undef STATE
}
