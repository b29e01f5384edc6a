/* tensor/cpu/pointwise.c: abs, pow, clamp, maximum, minimum, where, and what their gradients need.
 *
 * NaN passes through all of them but where's operand that is not chosen. Selections select: they never multiply by 0 or 1, so NaN and
 * infinities of what was not chosen do not leak into gradients.
 */
#include "blocks.h"
#include "span4.h"

/* ---- abs: the smallest integer is its own; the gradient at 0 is 0 ------------------------------------------------------------ */

SIMPLE_UNARY(abs_f32, float, (fabsf(x)))
SIMPLE_UNARY(abs_f64, double, (fabs(x)))
SIMPLE_UNARY(abs_i64, int64_t, (x < 0 ? (int64_t)(0 - (uint64_t)x) : x))
SIMPLE_UNARY(abs_i32, int32_t, (x < 0 ? (int32_t)(0 - (uint32_t)x) : x))
SIMPLE_BINARY(abs_grad_f32, float, (v > 0 ? g : v < 0 ? -g : 0))
SIMPLE_BINARY(abs_grad_f64, double, (v > 0 ? g : v < 0 ? -g : 0))

void K(abs)(const td_loop *l, td_dtype t, void *out, const void *x)
{
    switch (t) {
    case TD_F32: td__spans(l, span_abs_f32, out, 4, x, NULL, 4, false, NULL); break;
    case TD_F64: td__spans(l, span_abs_f64, out, 8, x, NULL, 8, false, NULL); break;
    case TD_I64: td__spans(l, span_abs_i64, out, 8, x, NULL, 8, false, NULL); break;
    case TD_I32: td__spans(l, span_abs_i32, out, 4, x, NULL, 4, false, NULL); break;
    default: break;
    }
}

void K(abs_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, bool add)
{
    if (t == TD_F32)
        td__spans(l, span_abs_grad_f32, out, 4, g, x, 4, add, NULL);
    else
        td__spans(l, span_abs_grad_f64, out, 8, g, x, 8, add, NULL);
}

/* ---- pow: exponents with a short formula use it (as PyTorch does); the others go through the vector routine ------------------- */

#define POWER(T, s, ROOT)                                                                                    \
    static void power_##s(int64_t m, T *y, const T *x, double exponent)                                      \
    {                                                                                                        \
        const T e = (T)exponent;                                                                             \
        if (e == 0)                                                                                          \
            EACH y[i] = 1;                                                                                   \
        else if (e == 1)                                                                                     \
            EACH y[i] = x[i];                                                                                \
        else if (e == 2)                                                                                     \
            EACH y[i] = x[i] * x[i];                                                                         \
        else if (e == 3)                                                                                     \
            EACH y[i] = x[i] * x[i] * x[i];                                                                  \
        else if (e == (T)0.5)                                                                                \
            EACH y[i] = ROOT(x[i]);                                                                          \
        else if (e == (T)-0.5)                                                                               \
            EACH y[i] = 1 / ROOT(x[i]);                                                                      \
        else if (e == -1)                                                                                    \
            EACH y[i] = 1 / x[i];                                                                            \
        else if (e == -2)                                                                                    \
            EACH y[i] = 1 / (x[i] * x[i]);                                                                   \
        else                                                                                                 \
            td__vpow_##s(m, y, x, e);                                                                        \
    }                                                                                                        \
    /* y = g * e * x^(e-1); exactly 0 for e = 0, whatever x is */                                            \
    static void power_grad_##s(int64_t m, T *y, const T *g, const T *x, T *t, double exponent)               \
    {                                                                                                        \
        power_##s(m, t, x, exponent - 1);                                                                    \
        if (exponent == 0)                                                                                   \
            EACH y[i] = 0;                                                                                   \
        else                                                                                                 \
            EACH y[i] = g[i] * ((T)exponent * t[i]);                                                         \
    }
POWER(float, f32, sqrtf)
POWER(double, f64, sqrt)
BLOCK_UNARY(pow_f32, float, { power_f32(m, y, x, *(const double *)arg); })
BLOCK_UNARY(pow_f64, double, { power_f64(m, y, x, *(const double *)arg); })
BLOCK_BINARY(pow_grad_f32, float, { power_grad_f32(m, y, g, x, t, *(const double *)arg); })
BLOCK_BINARY(pow_grad_f64, double, { power_grad_f64(m, y, g, x, t, *(const double *)arg); })

void K(pow)(const td_loop *l, td_dtype t, void *out, const void *x, double exponent)
{
    if (t == TD_F32)
        td__spans(l, span_pow_f32, out, 4, x, NULL, 4, false, &exponent);
    else
        td__spans(l, span_pow_f64, out, 8, x, NULL, 8, false, &exponent);
}

void K(pow_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, double exponent, bool add)
{
    if (t == TD_F32)
        td__spans(l, span_pow_grad_f32, out, 4, g, x, 4, add, &exponent);
    else
        td__spans(l, span_pow_grad_f64, out, 8, g, x, 8, add, &exponent);
}

/* ---- clamp: the gradient passes where low <= x <= high ----------------------------------------------------------------------- */

typedef struct { double low, high; } clamp_arg;

#define CLAMP(T, s)                                                                                          \
    static void span_clamp_##s(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        const T low = (T)((const clamp_arg *)arg)->low, high = (T)((const clamp_arg *)arg)->high;            \
        T *out = o;                                                                                          \
        const T *x = pa;                                                                                     \
        if (so == 1 && sa == 1) {                                                                            \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[i] = x[i] < low ? low : x[i] > high ? high : x[i]; \
        } else {                                                                                             \
            for (int64_t i = 0; i < n; i++)                                                                  \
                out[i * so] = x[i * sa] < low ? low : x[i * sa] > high ? high : x[i * sa];                   \
        }                                                                                                    \
    }                                                                                                        \
    static void span_clamp_grad_##s(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, \
                                    const void *arg)                                                         \
    {                                                                                                        \
        const T low = (T)((const clamp_arg *)arg)->low, high = (T)((const clamp_arg *)arg)->high;            \
        T *out = o;                                                                                          \
        const T *g = pa, *x = pb;                                                                            \
        if (so == 1 && sa == 1 && sb == 1 && !add) {                                                         \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { const T v = x[i], d = g[i]; out[i] = v >= low && v <= high ? d : 0; } \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            const T y = x[i * sb] >= low && x[i * sb] <= high ? g[i * sa] : 0;                               \
            out[i * so] = add ? out[i * so] + y : y;                                                         \
        }                                                                                                    \
    }
CLAMP(float, f32)
CLAMP(double, f64)

void K(clamp)(const td_loop *l, td_dtype t, void *out, const void *x, double low, double high)
{
    const clamp_arg arg = { low, high };
    if (t == TD_F32)
        td__spans(l, span_clamp_f32, out, 4, x, NULL, 4, false, &arg);
    else
        td__spans(l, span_clamp_f64, out, 8, x, NULL, 8, false, &arg);
}

void K(clamp_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, double low, double high, bool add)
{
    const clamp_arg arg = { low, high };
    if (t == TD_F32)
        td__spans(l, span_clamp_grad_f32, out, 4, g, x, 4, add, &arg);
    else
        td__spans(l, span_clamp_grad_f64, out, 8, g, x, 8, add, &arg);
}

/* ---- maximum, minimum: x != x keeps a NaN of the first, the comparison one of the second -------------------------------------- */

#define EXTREME(name, OP)                                                                                    \
    SIMPLE_BINARY(name##_f32, float, (g OP v || g != g ? g : v))                                             \
    SIMPLE_BINARY(name##_f64, double, (g OP v || g != g ? g : v))                                            \
    SIMPLE_BINARY(name##_i64, int64_t, (g OP v ? g : v))                                                     \
    SIMPLE_BINARY(name##_i32, int32_t, (g OP v ? g : v))                                                     \
    void K(name)(const td_loop *l, td_dtype t, void *out, const void *a, const void *b)                      \
    {                                                                                                        \
        switch (t) {                                                                                         \
        case TD_F32: td__spans(l, span_##name##_f32, out, 4, a, b, 4, false, NULL); break;                   \
        case TD_F64: td__spans(l, span_##name##_f64, out, 8, a, b, 8, false, NULL); break;                   \
        case TD_I64: td__spans(l, span_##name##_i64, out, 8, a, b, 8, false, NULL); break;                   \
        case TD_I32: td__spans(l, span_##name##_i32, out, 4, a, b, 4, false, NULL); break;                   \
        default: break;                                                                                      \
        }                                                                                                    \
    }
EXTREME(maximum, >)
EXTREME(minimum, <)

/* half of g where a == b, nothing where a < b, else g */
#define EXTREME_GRAD(T, s)                                                                                   \
    static void span_extreme_grad_##s(int64_t n, void *o, int64_t so, const void *const in[3], const int64_t st[3], bool add, const void *arg) \
    {                                                                                                        \
        T *out = o;                                                                                          \
        const T *g = in[0], *a = in[1], *b = in[2];                                                          \
        const int64_t sg = st[0], sa = st[1], sb = st[2];                                                    \
        if (so == 1 && sg == 1 && sa == 1 && sb == 1 && !add) {                                              \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) {                                            \
                const T d = g[i], u = a[i], v = b[i];                                                        \
                out[i] = u == v ? d / 2 : u < v ? 0 : d;                                                     \
            }                                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            const T y = a[i * sa] == b[i * sb] ? g[i * sg] / 2 : a[i * sa] < b[i * sb] ? 0 : g[i * sg];      \
            out[i * so] = add ? out[i * so] + y : y;                                                         \
        }                                                                                                    \
    }
EXTREME_GRAD(float, f32)
EXTREME_GRAD(double, f64)

void K(extreme_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *a, const void *b, bool add)
{
    const size_t size = t == TD_F32 ? 4 : 8;
    const td__operands o = { out, { g, a, b }, { size, size, size, size } };
    td__spans4(l, t == TD_F32 ? span_extreme_grad_f32 : span_extreme_grad_f64, &o, add, NULL);
}

/* ---- where: the mask is of bytes, anything but 0 is true ---------------------------------------------------------------------- */

#define WHERE(T, s)                                                                                          \
    static void span_where_##s(int64_t n, void *o, int64_t so, const void *const in[3], const int64_t st[3], bool add, const void *arg) \
    {                                                                                                        \
        const uint8_t *mask = in[0];                                                                         \
        const T *a = in[1], *b = in[2];                                                                      \
        T *out = o;                                                                                          \
        if (so == 1 && st[0] == 1 && st[1] == 1 && st[2] == 1) {                                             \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { const T u = a[i], v = b[i]; out[i] = mask[i] ? u : v; } \
        } else {                                                                                             \
            for (int64_t i = 0; i < n; i++)                                                                  \
                out[i * so] = mask[i * st[0]] ? a[i * st[1]] : b[i * st[2]];                                 \
        }                                                                                                    \
    }
WHERE(float, f32)
WHERE(double, f64)
WHERE(int64_t, i64)
WHERE(int32_t, i32)

void K(where)(const td_loop *l, td_dtype t, void *out, const void *mask, const void *a, const void *b)
{
    const size_t size = t == TD_F32 || t == TD_I32 ? 4 : 8;
    const td__operands o = { out, { mask, a, b }, { size, 1, size, size } };
    switch (t) {
    case TD_F32: td__spans4(l, span_where_f32, &o, false, NULL); break;
    case TD_F64: td__spans4(l, span_where_f64, &o, false, NULL); break;
    case TD_I64: td__spans4(l, span_where_i64, &o, false, NULL); break;
    case TD_I32: td__spans4(l, span_where_i32, &o, false, NULL); break;
    default: break;
    }
}

/* g where the mask is `when`, else nothing */
#define WHERE_GRAD(T, s)                                                                                     \
    static void span_where_grad_##s(int64_t n, void *o, int64_t so, const void *const in[3], const int64_t st[3], bool add, const void *arg) \
    {                                                                                                        \
        const uint8_t *mask = in[0];                                                                         \
        const T *g = in[1];                                                                                  \
        const bool when = *(const bool *)arg;                                                                \
        T *out = o;                                                                                          \
        if (so == 1 && st[0] == 1 && st[1] == 1 && !add) {                                                   \
            if (when) {                                                                                      \
                _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { const T d = g[i]; out[i] = mask[i] ? d : 0; } \
            } else {                                                                                         \
                _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { const T d = g[i]; out[i] = mask[i] ? 0 : d; } \
            }                                                                                                \
            return;                                                                                          \
        }                                                                                                    \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            const T y = (mask[i * st[0]] != 0) == when ? g[i * st[1]] : 0;                                   \
            out[i * so] = add ? out[i * so] + y : y;                                                         \
        }                                                                                                    \
    }
WHERE_GRAD(float, f32)
WHERE_GRAD(double, f64)

void K(where_grad)(const td_loop *l, td_dtype t, void *out, const void *mask, const void *g, bool when, bool add)
{
    const size_t size = t == TD_F32 ? 4 : 8;
    const td__operands o = { out, { mask, g, NULL }, { size, 1, size, size } };
    td__spans4(l, t == TD_F32 ? span_where_grad_f32 : span_where_grad_f64, &o, add, &when);
}
