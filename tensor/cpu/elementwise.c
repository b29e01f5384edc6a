/* tensor/cpu/elementwise.c: add, sub, mul, div, eq, scale.
 *
 * Integers wrap around (computed unsigned); x/0 of integers is 0 and the smallest number over -1 is itself. A span has fast
 * loops for contiguous operands and for one operand that repeats; anything else is the strided loop. out may be an operand.
 */
#include "span.h"

/* U: the type in which T is computed without undefined overflow */
#define ADD(T, U, x, y) ((T)((U)(x) + (U)(y)))
#define SUB(T, U, x, y) ((T)((U)(x) - (U)(y)))
#define MUL(T, U, x, y) ((T)((U)(x) * (U)(y)))
#define DIV_F(T, U, x, y) ((x) / (y))
#define DIV_I(T, U, x, y) ((y) == 0 ? (T)0 : (y) == -1 ? (T)(0 - (U)(x)) : (T)((x) / (y)))
#define DIV_GRAD_B(T, U, x, y) (-((x) / (y)) / (y))

#define EACH(T, U, OP, IO, X, Y)                                                                             \
    do {                                                                                                     \
        if (add) {                                                                                           \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[IO] = ADD(T, U, out[IO], OP(T, U, X, Y)); \
        } else {                                                                                             \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[IO] = OP(T, U, X, Y);                    \
        }                                                                                                    \
    } while (0)

#define BINARY_SPAN(name, T, U, OP)                                                                          \
    static void span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        T *out = o;                                                                                          \
        const T *a = pa, *b = pb;                                                                            \
        const T a0 = *a, b0 = *b;                                                                            \
        if (so == 1 && sa == 1 && sb == 1)                                                                   \
            EACH(T, U, OP, i, a[i], b[i]);                                                                   \
        else if (so == 1 && sa == 1 && sb == 0)                                                              \
            EACH(T, U, OP, i, a[i], b0);                                                                     \
        else if (so == 1 && sa == 0 && sb == 1)                                                              \
            EACH(T, U, OP, i, a0, b[i]);                                                                     \
        else                                                                                                 \
            EACH(T, U, OP, i * so, a[i * sa], b[i * sb]);                                                    \
    }

#define BINARY(name, OP, OP_DIV_INT)                                                                         \
    BINARY_SPAN(name##_f32, float, float, OP)                                                                \
    BINARY_SPAN(name##_f64, double, double, OP)                                                              \
    BINARY_SPAN(name##_i64, int64_t, uint64_t, OP_DIV_INT)                                                   \
    BINARY_SPAN(name##_i32, int32_t, uint32_t, OP_DIV_INT)                                                   \
    void K(name)(const td_loop *l, td_dtype t, void *out, const void *a, const void *b, bool add)            \
    {                                                                                                        \
        switch (t) {                                                                                         \
        case TD_F32: td__spans(l, span_##name##_f32, out, 4, a, b, 4, add, NULL); break;                     \
        case TD_F64: td__spans(l, span_##name##_f64, out, 8, a, b, 8, add, NULL); break;                     \
        case TD_I64: td__spans(l, span_##name##_i64, out, 8, a, b, 8, add, NULL); break;                     \
        case TD_I32: td__spans(l, span_##name##_i32, out, 4, a, b, 4, add, NULL); break;                     \
        default: break;                                                                                      \
        }                                                                                                    \
    }
BINARY(add, ADD, ADD)
BINARY(sub, SUB, SUB)
BINARY(mul, MUL, MUL)
BINARY(div, DIV_F, DIV_I)

/* The gradient of x/y by y: out = -a/(y*y) with a = grad_out * x; divided twice, since y*y could overflow or vanish. */
BINARY_SPAN(div_grad_b_f32, float, float, DIV_GRAD_B)
BINARY_SPAN(div_grad_b_f64, double, double, DIV_GRAD_B)
void K(div_grad_b)(const td_loop *l, td_dtype t, void *out, const void *a, const void *b, bool add)
{
    if (t == TD_F32)
        td__spans(l, span_div_grad_b_f32, out, 4, a, b, 4, add, NULL);
    else
        td__spans(l, span_div_grad_b_f64, out, 8, a, b, 8, add, NULL);
}

#define EQ_SPAN(T, name)                                                                                     \
    static void span_eq_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        uint8_t *restrict out = o;                                                                           \
        const T *a = pa, *b = pb;                                                                            \
        if (so == 1 && sa == 1 && sb == 1) {                                                                 \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[i] = a[i] == b[i];                       \
        } else if (so == 1 && sa == 1 && sb == 0) {                                                          \
            const T b0 = *b;                                                                                 \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[i] = a[i] == b0;                         \
        } else {                                                                                             \
            for (int64_t i = 0; i < n; i++)                                                                  \
                out[i * so] = a[i * sa] == b[i * sb];                                                        \
        }                                                                                                    \
    }
EQ_SPAN(float, f32)
EQ_SPAN(double, f64)
EQ_SPAN(int64_t, i64)
EQ_SPAN(int32_t, i32)
void K(eq)(const td_loop *l, td_dtype t, void *out, const void *a, const void *b)
{
    switch (t) {
    case TD_F32: td__spans(l, span_eq_f32, out, 1, a, b, 4, false, NULL); break;
    case TD_F64: td__spans(l, span_eq_f64, out, 1, a, b, 8, false, NULL); break;
    case TD_I64: td__spans(l, span_eq_i64, out, 1, a, b, 8, false, NULL); break;
    case TD_I32: td__spans(l, span_eq_i32, out, 1, a, b, 4, false, NULL); break;
    default: break;
    }
}

/* x*factor + term. Integers: factor and term are whole numbers (the operation has checked). */
typedef struct { double factor, term; } scale_arg;
#define SCALE_SPAN(T, U, W, name)                                                                            \
    static void span_scale_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        const scale_arg *s = arg;                                                                            \
        const U factor = (U)(W)s->factor, term = (U)(W)s->term;                                              \
        T *out = o;                                                                                          \
        const T *x = pa;                                                                                     \
        if (so == 1 && sa == 1 && add) {                                                                     \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[i] = (T)((U)out[i] + ((U)x[i] * factor + term)); \
        } else if (so == 1 && sa == 1) {                                                                     \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[i] = (T)((U)x[i] * factor + term);       \
        } else if (so == 1 && sa == 0 && !add) {                                                             \
            const T y = (T)((U)x[0] * factor + term);                                                        \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) out[i] = y;                                  \
        } else {                                                                                             \
            for (int64_t i = 0; i < n; i++) {                                                                \
                U y = (U)x[i * sa] * factor + term;                                                          \
                out[i * so] = (T)(add ? (U)out[i * so] + y : y);                                             \
            }                                                                                                \
        }                                                                                                    \
    }
SCALE_SPAN(float, float, double, f32)
SCALE_SPAN(double, double, double, f64)
SCALE_SPAN(int64_t, uint64_t, int64_t, i64)
SCALE_SPAN(int32_t, uint32_t, int64_t, i32)
void K(scale)(const td_loop *l, td_dtype t, void *out, const void *x, double factor, double term, bool add)
{
    scale_arg s = { factor, term };
    switch (t) {
    case TD_F32: td__spans(l, span_scale_f32, out, 4, x, NULL, 4, add, &s); break;
    case TD_F64: td__spans(l, span_scale_f64, out, 8, x, NULL, 8, add, &s); break;
    case TD_I64: td__spans(l, span_scale_i64, out, 8, x, NULL, 8, add, &s); break;
    case TD_I32: td__spans(l, span_scale_i32, out, 4, x, NULL, 4, add, &s); break;
    default: break;
    }
}
