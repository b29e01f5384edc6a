/* tensor/cuda/elementwise.cu: add (also 16 bits to f32), sub, mul, div, the gradient of a quotient, eq, scale: every element from its operands alone.
 *
 * Twin of ../cpu/elementwise.c; how operands are walked, 16 bytes at a time where that goes, is in pointwise.h.
 */
#include "pointwise.h"

namespace {
/* ---- the functions ------------------------------------------------------------------------------------------------------------------- */
struct f_add { template <class W> __device__ __forceinline__ W operator()(W a, W b) const { return a + b; } };
struct f_sub { template <class W> __device__ __forceinline__ W operator()(W a, W b) const { return a - b; } };
struct f_mul { template <class W> __device__ __forceinline__ W operator()(W a, W b) const { return a * b; } };
struct f_div { template <class W> __device__ __forceinline__ W operator()(W a, W b) const { return a / b; } };
/* integers: towards zero; by 0: 0; the one quotient that overflows wraps */
template <> __device__ __forceinline__ int64_t f_div::operator()(int64_t a, int64_t b) const
{
    return b == 0 ? 0 : b == -1 ? (int64_t)(0u - (uint64_t)a) : a / b;
}
template <> __device__ __forceinline__ int32_t f_div::operator()(int32_t a, int32_t b) const
{
    return b == 0 ? 0 : b == -1 ? (int32_t)(0u - (uint32_t)a) : a / b;
}
/* signed overflow wraps, as on the CPU */
template <> __device__ __forceinline__ int64_t f_add::operator()(int64_t a, int64_t b) const { return (int64_t)((uint64_t)a + (uint64_t)b); }
template <> __device__ __forceinline__ int64_t f_sub::operator()(int64_t a, int64_t b) const { return (int64_t)((uint64_t)a - (uint64_t)b); }
template <> __device__ __forceinline__ int64_t f_mul::operator()(int64_t a, int64_t b) const { return (int64_t)((uint64_t)a * (uint64_t)b); }
template <> __device__ __forceinline__ int32_t f_add::operator()(int32_t a, int32_t b) const { return (int32_t)((uint32_t)a + (uint32_t)b); }
template <> __device__ __forceinline__ int32_t f_sub::operator()(int32_t a, int32_t b) const { return (int32_t)((uint32_t)a - (uint32_t)b); }
template <> __device__ __forceinline__ int32_t f_mul::operator()(int32_t a, int32_t b) const { return (int32_t)((uint32_t)a * (uint32_t)b); }
/* twice: b*b could overflow or vanish */
struct f_div_grad_b { template <class W> __device__ __forceinline__ W operator()(W a, W b) const { return -(a / b) / b; } };

struct f_eq { template <class W> __device__ __forceinline__ bool operator()(W a, W b) const { return a == b; } };

/* x*factor + term. Integers: factor and term are whole numbers (the operation has checked), and arithmetic wraps. */
template <class W> struct f_scale {
    W factor, term;
    f_scale(double f, double t) : factor((W)f), term((W)t) {}
    __device__ __forceinline__ W operator()(W x) const { return x * factor + term; }
};
template <> struct f_scale<int64_t> {
    uint64_t factor, term;
    f_scale(double f, double t) : factor((uint64_t)(int64_t)f), term((uint64_t)(int64_t)t) {}
    __device__ __forceinline__ int64_t operator()(int64_t x) const { return (int64_t)((uint64_t)x * factor + term); }
};
template <> struct f_scale<int32_t> {
    uint32_t factor, term;
    f_scale(double f, double t) : factor((uint32_t)(int64_t)f), term((uint32_t)(int64_t)t) {}
    __device__ __forceinline__ int32_t operator()(int32_t x) const { return (int32_t)((uint32_t)x * factor + term); }
};
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
#define BINARY(name)                                                                                         \
    extern "C" void td__cuda_##name(const td_loop *l, td_dtype t, void *out, const void *a, const void *b, bool add) \
    {                                                                                                        \
        TD_CUDA_ARITH(t, T, td_pointwise(#name, l, f_##name(), (T *)out, add, (const T *)a, (const T *)b))   \
    }
BINARY(add)
BINARY(sub)
BINARY(mul)
BINARY(div)

extern "C" void td__cuda_add_half(const td_loop *l, td_dtype half, float *out, const float *a, const void *b)
{
    if (half == TD_F16)
        td_pointwise("add_half", l, f_add(), out, false, a, (const td_half *)b);
    else
        td_pointwise("add_half", l, f_add(), out, false, a, (const td_bfloat *)b);
}

extern "C" void td__cuda_div_grad_b(const td_loop *l, td_dtype t, void *out, const void *a, const void *b, bool add)
{
    TD_CUDA_FLOAT(t, T, td_pointwise("div_grad_b", l, f_div_grad_b(), (T *)out, add, (const T *)a, (const T *)b))
}

extern "C" void td__cuda_eq(const td_loop *l, td_dtype t, void *out, const void *a, const void *b)
{
    if (t == TD_U8 || t == TD_BOOL)
        td_pointwise("eq", l, f_eq(), (uint8_t *)out, false, (const uint8_t *)a, (const uint8_t *)b);
    else
        TD_CUDA_ARITH(t, T, td_pointwise("eq", l, f_eq(), (uint8_t *)out, false, (const T *)a, (const T *)b))
}

extern "C" void td__cuda_scale(const td_loop *l, td_dtype t, void *out, const void *x, double factor, double term, bool add)
{
    TD_CUDA_ARITH(t, T, td_pointwise("scale", l, f_scale<td_wide<T>>(factor, term), (T *)out, add, (const T *)x))
}
