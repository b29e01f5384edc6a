/* tensor/cpu/optimizer.c: one fused pass per step over a flat run of parameters, and the sum of squares for clipping.
 *
 * Arithmetic is in the parameters' dtype, without fused multiply-add: every build gives the same result. An element depends on
 * nothing but its own numbers, and sumsq works in parts whose size depends on n alone, so the number of threads changes nothing.
 */
#include "cpu.h"

/* The cases of SGD are constants after inlining, so that each loop has no branch. */
#define OPTIMIZER(T, F)                                                                                      \
    static inline __attribute__((always_inline)) void F(sgd_part)(const bool has_v, const bool nesterov, const bool first, int64_t n,  \
                                                                  T *restrict p, const T *restrict g, T *restrict v, T gscale, T lr,  \
                                                                  T momentum, T damp, T weight_decay)        \
    {                                                                                                        \
        _Pragma("omp simd")                                                                                  \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            T d = gscale * g[i] + weight_decay * p[i];                                                       \
            if (has_v) {                                                                                     \
                T vi = first ? d : momentum * v[i] + damp * d;                                               \
                v[i] = vi;                                                                                   \
                d = nesterov ? d + momentum * vi : vi;                                                       \
            }                                                                                                \
            p[i] -= lr * d;                                                                                  \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(sgd)(int64_t n, T *p, const T *g, T *v, T gscale, T lr, T momentum, T damp, T weight_decay, bool nesterov, bool first)  \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")                                   \
        for (int64_t i = 0; i < n; i += TD_BLOCK) {                                                          \
            int64_t m = n - i < TD_BLOCK ? n - i : TD_BLOCK;                                                 \
            if (!v)                                                                                          \
                F(sgd_part)(false, false, false, m, p + i, g + i, NULL, gscale, lr, momentum, damp, weight_decay);  \
            else if (nesterov && first)                                                                      \
                F(sgd_part)(true, true, true, m, p + i, g + i, v + i, gscale, lr, momentum, damp, weight_decay);  \
            else if (nesterov)                                                                               \
                F(sgd_part)(true, true, false, m, p + i, g + i, v + i, gscale, lr, momentum, damp, weight_decay);  \
            else if (first)                                                                                  \
                F(sgd_part)(true, false, true, m, p + i, g + i, v + i, gscale, lr, momentum, damp, weight_decay);  \
            else                                                                                             \
                F(sgd_part)(true, false, false, m, p + i, g + i, v + i, gscale, lr, momentum, damp, weight_decay);  \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void F(adamw)(int64_t n, T *p, const T *g, T *m, T *v, T gscale, T beta1, T rest1, T beta2, T rest2, T eps, T keep, T step, T root2)  \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")                                   \
        for (int64_t b = 0; b < n; b += TD_BLOCK) {                                                          \
            int64_t end = n - b < TD_BLOCK ? n : b + TD_BLOCK;                                               \
            T *restrict pb = p, *restrict mb = m, *restrict vb = v;                                          \
            const T *restrict gb = g;                                                                        \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = b; i < end; i++) {                                                              \
                T d = gscale * gb[i];                                                                        \
                T mi = beta1 * mb[i] + rest1 * d, vi = beta2 * vb[i] + rest2 * (d * d);                      \
                mb[i] = mi;                                                                                  \
                vb[i] = vi;                                                                                  \
                pb[i] = pb[i] * keep - step * mi / (F(root)(vi) / root2 + eps);                              \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static double F(sumsq)(int64_t n, const T *x)                                                            \
    {                                                                                                        \
        enum { PARTS = 256 };                                                                                \
        double part[PARTS];                                                                                  \
        int64_t size = (n + PARTS - 1) / PARTS;                                                              \
        size = (size + TD_BLOCK - 1) / TD_BLOCK * TD_BLOCK;                                                  \
        const int parts = n > 0 ? (int)((n + size - 1) / size) : 0;                                          \
        _Pragma("omp parallel for schedule(static) if (n >= TD_PARALLEL)")                                   \
        for (int i = 0; i < parts; i++) {                                                                    \
            double lane[16] = { 0 }, total = 0;                                                              \
            int64_t at = i * size, end = at + size < n ? at + size : n;                                      \
            for (; at + 16 <= end; at += 16)                                                                 \
                _Pragma("omp simd")                                                                          \
                for (int l = 0; l < 16; l++)                                                                 \
                    lane[l] += (double)x[at + l] * (double)x[at + l];                                        \
            for (int l = 0; at < end; at++, l++)                                                             \
                lane[l] += (double)x[at] * (double)x[at];                                                    \
            for (int l = 0; l < 16; l++)                                                                     \
                total += lane[l];                                                                            \
            part[i] = total;                                                                                 \
        }                                                                                                    \
        double sum = 0;                                                                                      \
        for (int i = 0; i < parts; i++)                                                                      \
            sum += part[i];                                                                                  \
        return sum;                                                                                          \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
#define root_f32 sqrtf
#define root_f64 sqrt
OPTIMIZER(float, F32)
OPTIMIZER(double, F64)

void K(sgd)(td_dtype t, int64_t n, void *p, const void *g, void *v, double gscale, double lr, double momentum, double dampening,
            double weight_decay, bool nesterov, bool first)
{
    if (t == TD_F32)
        sgd_f32(n, p, g, v, (float)gscale, (float)lr, (float)momentum, (float)(1 - dampening), (float)weight_decay, nesterov, first);
    else
        sgd_f64(n, p, g, v, gscale, lr, momentum, 1 - dampening, weight_decay, nesterov, first);
}

void K(adamw)(td_dtype t, int64_t n, void *p, const void *g, void *m, void *v, double gscale, double lr, double beta1, double beta2,
              double eps, double weight_decay, double bias1, double bias2)
{
    const double keep = 1 - lr * weight_decay, step = lr / bias1, root2 = sqrt(bias2);
    if (t == TD_F32)
        adamw_f32(n, p, g, m, v, (float)gscale, (float)beta1, (float)(1 - beta1), (float)beta2, (float)(1 - beta2), (float)eps, (float)keep,
                  (float)step, (float)root2);
    else
        adamw_f64(n, p, g, m, v, gscale, beta1, 1 - beta1, beta2, 1 - beta2, eps, keep, step, root2);
}

double K(sumsq)(td_dtype t, int64_t n, const void *x)
{
    return t == TD_F32 ? sumsq_f32(n, x) : sumsq_f64(n, x);
}
