/* tensor/cuda/activation.cu: relu, gelu, gelu_tanh, silu, sigmoid, tanh, exp, ln, sqrt and their gradients.
 *
 * Twin of ../cpu/activation.c: the same formulas, with CUDA's accurate functions. NaN in, NaN out. In 16 bits, where an element is 4 bytes
 * of traffic, erf and exp cost about as much as memory.
 */
#include "pointwise.h"

namespace {
#define UNARY(name, ...)                                                                                     \
    struct f_##name { template <class W> __device__ __forceinline__ W operator()(W x) const { __VA_ARGS__ } };
#define BINARY(name, ...)                                                                                    \
    struct f_##name { template <class W> __device__ __forceinline__ W operator()(W g, W v) const { __VA_ARGS__ } };

__device__ __forceinline__ float  td_erf(float x) { return erff(x); }
__device__ __forceinline__ double td_erf(double x) { return erf(x); }
__device__ __forceinline__ float  td_ln(float x) { return logf(x); }
__device__ __forceinline__ double td_ln(double x) { return log(x); }

/* relu: x < 0 keeps NaN; the gradient at 0 is 0 */
UNARY(relu, return x < 0 ? (W)0 : x;)
BINARY(relu_grad, return v > 0 ? g : (W)0;)

UNARY(sigmoid, return td_sigmoid(x);)
BINARY(sigmoid_grad, return g * v * ((W)1 - v);)
UNARY(tanh, return td_tanh(x);)
BINARY(tanh_grad, return g * ((W)1 - v * v);)

/* gelu: x*P(x) with P(x) = (1 + erf(x/sqrt 2))/2; its derivative is P(x) + x*exp(-x*x/2)/sqrt(2 pi) */
UNARY(gelu, return (W)0.5 * x * ((W)1 + td_erf(x * (W)0.70710678118654752440));)
BINARY(gelu_grad,
       const W p = (W)0.5 * ((W)1 + td_erf(v * (W)0.70710678118654752440));
       return g * (p + v * td_exp((W)-0.5 * v * v) * (W)0.39894228040143267794);)

/* gelu_tanh: with u = sqrt(2/pi) (x + 0.044715 x^3) it is x*s, s = 1/(1 + exp(-2u)): no cancellation on the left. The derivative is
 * s + x*s*(1 - s)*2u'; where s is 0 or 1 to the last bit the second term is 0, though 2u' may be infinite. */
template <class W> __device__ __forceinline__ W gelu_tanh_exp(W x)
{
    return td_exp((W)-1.5957691216057307118 * (x + (W)0.044715 * (x * x * x)));
}
UNARY(gelu_tanh, return x / ((W)1 + gelu_tanh_exp(x));)
BINARY(gelu_tanh_grad,
       const W s = (W)1 / ((W)1 + gelu_tanh_exp(v));
       const W q = s * ((W)1 - s);
       const W more = v * q * ((W)1.5957691216057307118 * ((W)1 + (W)0.134145 * (v * v)));
       return g * (q == 0 ? s : s + more);)

/* silu: x/(1 + exp(-x)); with s = 1/(1 + exp(-x)) the derivative is s*(1 + x*(1 - s)) */
UNARY(silu, return x / ((W)1 + td_exp(-x));)
BINARY(silu_grad, const W s = td_sigmoid(v); return g * (s * ((W)1 + v * ((W)1 - s)));)

/* the gradients of exp and sqrt read the result, that of ln the input */
UNARY(exp, return td_exp(x);)
BINARY(exp_grad, return g * v;)
UNARY(ln, return td_ln(x);)
BINARY(ln_grad, return g / v;)
UNARY(sqrt, return td_sqrt(x);)
BINARY(sqrt_grad, return g / ((W)2 * v);)
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
#define ACTIVATION(name)                                                                                     \
    extern "C" void td__cuda_##name(const td_loop *l, td_dtype t, void *out, const void *x, bool add)        \
    {                                                                                                        \
        TD_CUDA_FLOAT(t, T, td_pointwise(#name, l, f_##name(), (T *)out, add, (const T *)x))                 \
    }                                                                                                        \
    extern "C" void td__cuda_##name##_grad(const td_loop *l, td_dtype t, void *out, const void *g, const void *v, bool add) \
    {                                                                                                        \
        TD_CUDA_FLOAT(t, T, td_pointwise(#name "_grad", l, f_##name##_grad(), (T *)out, add, (const T *)g, (const T *)v)) \
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
