/* tensor/cpu/activation.c: relu, gelu, gelu_tanh, silu, sigmoid, tanh, exp, ln, sqrt and their gradients.
 *
 * Functions that need exp, tanh or erf work in blocks on the stack: gather, call the vector routine over the whole block, scatter.
 * A value gives the same bits wherever it stands (vecmath.h). NaN in, NaN out.
 */
#include "blocks.h"

/* relu: x < 0 keeps NaN; the gradient at 0 is 0 */
SIMPLE_UNARY(relu_f32, float, (x < 0 ? 0 : x))
SIMPLE_UNARY(relu_f64, double, (x < 0 ? 0 : x))
SIMPLE_BINARY(relu_grad_f32, float, (v > 0 ? g : 0))
SIMPLE_BINARY(relu_grad_f64, double, (v > 0 ? g : 0))

/* sigmoid: exp(-x) may become infinite: 1/inf is the right 0 */
#define SIGMOID(T, s) { EACH y[i] = -x[i]; td__vexp_##s(m, y, y); EACH y[i] = (T)1 / ((T)1 + y[i]); }
BLOCK_UNARY(sigmoid_f32, float, SIGMOID(float, f32))
BLOCK_UNARY(sigmoid_f64, double, SIGMOID(double, f64))
SIMPLE_BINARY(sigmoid_grad_f32, float, (g * v * (1 - v)))
SIMPLE_BINARY(sigmoid_grad_f64, double, (g * v * (1 - v)))

BLOCK_UNARY(tanh_f32, float, { td__vtanh_f32(m, y, x); })
BLOCK_UNARY(tanh_f64, double, { td__vtanh_f64(m, y, x); })
SIMPLE_BINARY(tanh_grad_f32, float, (g * (1 - v * v)))
SIMPLE_BINARY(tanh_grad_f64, double, (g * (1 - v * v)))

/* gelu: x*P(x) with P(x) = (1 + erf(x/sqrt 2))/2; its derivative is P(x) + x*exp(-x*x/2)/sqrt(2 pi) */
#define GELU(T, s) { EACH y[i] = x[i] * (T)M_SQRT1_2; td__verf_##s(m, y, y); EACH y[i] = (T)0.5 * x[i] * ((T)1 + y[i]); }
#define GELU_GRAD(T, s)                                                                                      \
    {                                                                                                        \
        EACH y[i] = x[i] * (T)M_SQRT1_2;                                                                     \
        td__verf_##s(m, y, y);                                                                               \
        EACH t[i] = (T)-0.5 * x[i] * x[i];                                                                   \
        td__vexp_##s(m, t, t);                                                                               \
        EACH y[i] = g[i] * ((T)0.5 * ((T)1 + y[i]) + x[i] * t[i] * (T)0.39894228040143267794);               \
    }
BLOCK_UNARY(gelu_f32, float, GELU(float, f32))
BLOCK_UNARY(gelu_f64, double, GELU(double, f64))
BLOCK_BINARY(gelu_grad_f32, float, GELU_GRAD(float, f32))
BLOCK_BINARY(gelu_grad_f64, double, GELU_GRAD(double, f64))

/* gelu_tanh: with u = sqrt(2/pi) (x + 0.044715 x^3) it is x*(1 + tanh(u))/2 = x*s, s = 1/(1 + exp(-2u)): no cancellation on the left. The
 * derivative is s + x*s*(1 - s)*2u'; where s is 0 or 1 to the last bit the second term is 0, though 2u' may be infinite. */
#define GELU_TANH_EXP(T, s, into)                                                                            \
    EACH into[i] = (T)-1.5957691216057307118 * (x[i] + (T)0.044715 * (x[i] * x[i] * x[i]));                  \
    td__vexp_##s(m, into, into);
#define GELU_TANH(T, s) { GELU_TANH_EXP(T, s, y) EACH y[i] = x[i] / ((T)1 + y[i]); }
#define GELU_TANH_GRAD(T, s)                                                                                 \
    {                                                                                                        \
        GELU_TANH_EXP(T, s, t)                                                                               \
        EACH t[i] = (T)1 / ((T)1 + t[i]);                                                                    \
        EACH {                                                                                               \
            T q = t[i] * ((T)1 - t[i]);                                                                      \
            T more = x[i] * q * ((T)1.5957691216057307118 * ((T)1 + (T)0.134145 * (x[i] * x[i])));           \
            y[i] = g[i] * (q == 0 ? t[i] : t[i] + more);                                                     \
        }                                                                                                    \
    }
BLOCK_UNARY(gelu_tanh_f32, float, GELU_TANH(float, f32))
BLOCK_UNARY(gelu_tanh_f64, double, GELU_TANH(double, f64))
BLOCK_BINARY(gelu_tanh_grad_f32, float, GELU_TANH_GRAD(float, f32))
BLOCK_BINARY(gelu_tanh_grad_f64, double, GELU_TANH_GRAD(double, f64))

/* silu: x/(1 + exp(-x)); with s = 1/(1 + exp(-x)) the derivative is s*(1 + x*(1 - s)) */
#define SILU(T, s) { EACH y[i] = -x[i]; td__vexp_##s(m, y, y); EACH y[i] = x[i] / ((T)1 + y[i]); }
#define SILU_GRAD(T, s)                                                                                      \
    {                                                                                                        \
        EACH t[i] = -x[i];                                                                                   \
        td__vexp_##s(m, t, t);                                                                               \
        EACH t[i] = (T)1 / ((T)1 + t[i]);                                                                    \
        EACH y[i] = g[i] * (t[i] * ((T)1 + x[i] * ((T)1 - t[i])));                                           \
    }
BLOCK_UNARY(silu_f32, float, SILU(float, f32))
BLOCK_UNARY(silu_f64, double, SILU(double, f64))
BLOCK_BINARY(silu_grad_f32, float, SILU_GRAD(float, f32))
BLOCK_BINARY(silu_grad_f64, double, SILU_GRAD(double, f64))

/* exp, ln, sqrt: the gradients of exp and sqrt read the result, that of ln the input */
BLOCK_UNARY(exp_f32, float, { td__vexp_f32(m, y, x); })
BLOCK_UNARY(exp_f64, double, { td__vexp_f64(m, y, x); })
SIMPLE_BINARY(exp_grad_f32, float, (g * v))
SIMPLE_BINARY(exp_grad_f64, double, (g * v))
BLOCK_UNARY(ln_f32, float, { td__vlog_f32(m, y, x); })
BLOCK_UNARY(ln_f64, double, { td__vlog_f64(m, y, x); })
SIMPLE_BINARY(ln_grad_f32, float, (g / v))
SIMPLE_BINARY(ln_grad_f64, double, (g / v))
SIMPLE_UNARY(sqrt_f32, float, (sqrtf(x)))
SIMPLE_UNARY(sqrt_f64, double, (sqrt(x)))
SIMPLE_BINARY(sqrt_grad_f32, float, (g / (2 * v)))
SIMPLE_BINARY(sqrt_grad_f64, double, (g / (2 * v)))

#define ACTIVATION(name)                                                                                     \
    void K(name)(const td_loop *l, td_dtype t, void *out, const void *x, bool add)                           \
    {                                                                                                        \
        if (t == TD_F32)                                                                                     \
            td__spans(l, span_##name##_f32, out, 4, x, NULL, 4, add, NULL);                                  \
        else                                                                                                 \
            td__spans(l, span_##name##_f64, out, 8, x, NULL, 8, add, NULL);                                  \
    }                                                                                                        \
    void K(name##_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *v, bool add)     \
    {                                                                                                        \
        if (t == TD_F32)                                                                                     \
            td__spans(l, span_##name##_grad_f32, out, 4, g, v, 4, add, NULL);                                \
        else                                                                                                 \
            td__spans(l, span_##name##_grad_f64, out, 8, g, v, 8, add, NULL);                                \
    }
ACTIVATION(relu)
ACTIVATION(gelu)
ACTIVATION(gelu_tanh)
ACTIVATION(sigmoid)
ACTIVATION(tanh)
ACTIVATION(silu)
ACTIVATION(exp)
ACTIVATION(ln)
ACTIVATION(sqrt)
