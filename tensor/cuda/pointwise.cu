/* tensor/cuda/pointwise.cu: abs, pow, clamp, maximum, minimum, where, and what their gradients need.
 *
 * Twin of ../cpu/pointwise.c. NaN passes through all of them but where's operand that is not chosen. Selections select: they never multiply
 * by 0 or 1, so NaN and infinities of what was not chosen do not leak into gradients.
 */
#include "pointwise.h"

namespace {
/* ---- abs: the smallest integer is its own; the gradient at 0 is 0 ------------------------------------------------------------------------ */
struct f_abs {
    __device__ __forceinline__ float operator()(float x) const { return fabsf(x); }
    __device__ __forceinline__ double operator()(double x) const { return fabs(x); }
    __device__ __forceinline__ int64_t operator()(int64_t x) const { return x < 0 ? (int64_t)(0 - (uint64_t)x) : x; }
    __device__ __forceinline__ int32_t operator()(int32_t x) const { return x < 0 ? (int32_t)(0 - (uint32_t)x) : x; }
};
struct f_abs_grad {
    template <class W> __device__ __forceinline__ W operator()(W g, W x) const { return x > 0 ? g : x < 0 ? -g : (W)0; }
};

/* ---- pow: exponents with a short formula use it, as on the CPU ------------------------------------------------------------------------------- */
__device__ __forceinline__ float  general_pow(float x, float e) { return powf(x, e); }
__device__ __forceinline__ double general_pow(double x, double e) { return pow(x, e); }

enum power_kind { POW_0, POW_1, POW_2, POW_3, POW_ROOT, POW_1_ROOT, POW_1_X, POW_1_XX, POW_GENERAL };
template <class W> struct power {
    W e;
    power_kind kind;                       /* the same in all threads                                                              */
    explicit power(double exponent) : e((W)exponent)
    {
        static const double known[] = { 0, 1, 2, 3, 0.5, -0.5, -1, -2 };
        int k = 0;
        while (k < POW_GENERAL && e != (W)known[k])
            k++;
        kind = (power_kind)k;
    }
    __device__ __forceinline__ W operator()(W x) const
    {
        switch (kind) {
        case POW_0: return 1;
        case POW_1: return x;
        case POW_2: return x * x;
        case POW_3: return x * x * x;
        case POW_ROOT: return td_sqrt(x);
        case POW_1_ROOT: return (W)1 / td_sqrt(x);
        case POW_1_X: return (W)1 / x;
        case POW_1_XX: return (W)1 / (x * x);
        default: return general_pow(x, e);
        }
    }
};
/* g * e * x^(e-1); exactly 0 for e = 0, whatever x is */
template <class W> struct power_grad {
    W e;
    power<W> less;
    bool zero;
    explicit power_grad(double exponent) : e((W)exponent), less(exponent - 1), zero(exponent == 0) {}
    __device__ __forceinline__ W operator()(W g, W x) const { return zero ? (W)0 : g * (e * less(x)); }
};

/* ---- clamp: the gradient passes where low <= x <= high ------------------------------------------------------------------------------------- */
template <class W> struct f_clamp {
    W low, high;
    __device__ __forceinline__ W operator()(W x) const { return x < low ? low : x > high ? high : x; }
};
template <class W> struct f_clamp_grad {
    W low, high;
    __device__ __forceinline__ W operator()(W g, W x) const { return x >= low && x <= high ? g : (W)0; }
};

/* ---- maximum, minimum: a != a keeps a NaN of the first, the comparison one of the second ------------------------------------------------------- */
struct f_maximum { template <class W> __device__ __forceinline__ W operator()(W a, W b) const { return a > b || a != a ? a : b; } };
struct f_minimum { template <class W> __device__ __forceinline__ W operator()(W a, W b) const { return a < b || a != a ? a : b; } };
/* half of g where a == b, nothing where a < b, else g */
struct f_extreme_grad {
    template <class W> __device__ __forceinline__ W operator()(W g, W a, W b) const { return a == b ? g / (W)2 : a < b ? (W)0 : g; }
};

/* ---- where: the mask is of bytes, anything but 0 is true ------------------------------------------------------------------------------------- */
struct f_where { template <class U> __device__ __forceinline__ U operator()(uint8_t mask, U a, U b) const { return mask ? a : b; } };
struct f_where_grad {
    bool when;
    template <class W> __device__ __forceinline__ W operator()(uint8_t mask, W g) const { return (mask != 0) == when ? g : (W)0; }
};
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" {
void td__cuda_abs(const td_loop *l, td_dtype t, void *out, const void *x)
{
    TD_CUDA_ARITH(t, T, td_pointwise("abs", l, f_abs(), (T *)out, false, (const T *)x))
}

void td__cuda_abs_grad(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, bool add)
{
    TD_CUDA_FLOAT(t, T, td_pointwise("abs_grad", l, f_abs_grad(), (T *)out, add, (const T *)g, (const T *)x))
}

void td__cuda_pow(const td_loop *l, td_dtype t, void *out, const void *x, double exponent)
{
    TD_CUDA_FLOAT(t, T, td_pointwise("pow", l, power<td_wide<T>>(exponent), (T *)out, false, (const T *)x))
}

void td__cuda_pow_grad(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, double exponent, bool add)
{
    TD_CUDA_FLOAT(t, T, td_pointwise("pow_grad", l, power_grad<td_wide<T>>(exponent), (T *)out, add, (const T *)g, (const T *)x))
}

void td__cuda_clamp(const td_loop *l, td_dtype t, void *out, const void *x, double low, double high)
{
    TD_CUDA_FLOAT(t, T, typedef td_wide<T> W; const f_clamp<W> f = { (W)low, (W)high };
                  td_pointwise("clamp", l, f, (T *)out, false, (const T *)x))
}

void td__cuda_clamp_grad(const td_loop *l, td_dtype t, void *out, const void *g, const void *x, double low, double high, bool add)
{
    TD_CUDA_FLOAT(t, T, typedef td_wide<T> W; const f_clamp_grad<W> f = { (W)low, (W)high };
                  td_pointwise("clamp_grad", l, f, (T *)out, add, (const T *)g, (const T *)x))
}

void td__cuda_maximum(const td_loop *l, td_dtype t, void *out, const void *a, const void *b)
{
    TD_CUDA_ARITH(t, T, td_pointwise("maximum", l, f_maximum(), (T *)out, false, (const T *)a, (const T *)b))
}

void td__cuda_minimum(const td_loop *l, td_dtype t, void *out, const void *a, const void *b)
{
    TD_CUDA_ARITH(t, T, td_pointwise("minimum", l, f_minimum(), (T *)out, false, (const T *)a, (const T *)b))
}

void td__cuda_extreme_grad(const td_loop *l, td_dtype t, void *out, const void *g, const void *a, const void *b, bool add)
{
    TD_CUDA_FLOAT(t, T, td_pointwise("extreme_grad", l, f_extreme_grad(), (T *)out, add, (const T *)g, (const T *)a, (const T *)b))
}

/* a move: only the size of an element matters */
void td__cuda_where(const td_loop *l, td_dtype t, void *out, const void *mask, const void *a, const void *b)
{
    TD_CUDA_SIZE(t, T, td_pointwise("where", l, f_where(), (T *)out, false, (const uint8_t *)mask, (const T *)a, (const T *)b))
}

void td__cuda_where_grad(const td_loop *l, td_dtype t, void *out, const void *mask, const void *g, bool when, bool add)
{
    const f_where_grad f = { when };
    TD_CUDA_FLOAT(t, T, td_pointwise("where_grad", l, f, (T *)out, add, (const uint8_t *)mask, (const T *)g))
}
}
