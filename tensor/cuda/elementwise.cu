/* tensor/cuda/elementwise.cu: add, sub, mul, div, their gradients, eq, scale: every element from its operands alone.
 *
 * Twin of ../cpu/elementwise.c. Dense operands go 16 bytes at a time where all are aligned; others find their place by division.
 */
#include "cuda.h"

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

/* ---- kernels --------------------------------------------------------------------------------------------------------------------------- */
template <class T, class F>
__global__ void __launch_bounds__(TD_THREADS) binary_strided(td_loop l, int64_t n, T *out, const T *a, const T *b, bool add)
{
    TD_GRID_STRIDE(i, n) {
        int64_t at[3];
        td_loop_at<3>(l, i, at);
        td_put<T>(out + at[0], F()(td_load<T>(a + at[1]), td_load<T>(b + at[2])), add);
    }
}

/* sa, sb: 1, or 0 where an operand is one number */
template <class T, class F>
__global__ void __launch_bounds__(TD_THREADS) binary_flat(int64_t n, T *__restrict__ out, const T *__restrict__ a, int sa, const T *__restrict__ b,
                                                          int sb, bool add)
{
    TD_GRID_STRIDE(i, n)
        td_put<T>(out + i, F()(td_load<T>(a + i * sa), td_load<T>(b + i * sb)), add);
}

template <class T, class F> static void binary(const char *row, const td_loop *l, void *out, const void *a, const void *b, bool add)
{
    const int64_t n = td_loop_count(*l);
    if (n == 0)
        return;
    const bool flat = td_loop_flat(*l, 3) && (l->ndim == 0 || l->stride[0][0] == 1);
    if (flat) {
        const int sa = l->ndim ? (int)l->stride[1][0] : 0, sb = l->ndim ? (int)l->stride[2][0] : 0;
        TD_LAUNCH(row, td_blocks(n), TD_THREADS, 0, (binary_flat<T, F>), n, (T *)out, (const T *)a, sa, (const T *)b, sb, add);
    } else {
        TD_LAUNCH(row, td_blocks(n), TD_THREADS, 0, (binary_strided<T, F>), *l, n, (T *)out, (const T *)a, (const T *)b, add);
    }
}

template <class T> __global__ void __launch_bounds__(TD_THREADS) eq_kernel(td_loop l, int64_t n, uint8_t *out, const T *a, const T *b)
{
    TD_GRID_STRIDE(i, n) {
        int64_t at[3];
        td_loop_at<3>(l, i, at);
        out[at[0]] = td_load<T>(a + at[1]) == td_load<T>(b + at[2]);
    }
}

/* Integers: factor and term are whole numbers (the operation has checked), and arithmetic wraps. */
template <class T> struct scale_in { typedef td_wide<T> type, through; };
template <> struct scale_in<int64_t> { typedef uint64_t type; typedef int64_t through; };
template <> struct scale_in<int32_t> { typedef uint32_t type; typedef int64_t through; };

template <class T>
__global__ void __launch_bounds__(TD_THREADS) scale_kernel(td_loop l, int64_t n, T *out, const T *x, double factor, double term, bool add)
{
    typedef typename scale_in<T>::type S;
    typedef typename scale_in<T>::through V;
    TD_GRID_STRIDE(i, n) {
        int64_t at[2];
        td_loop_at<2>(l, i, at);
        td_put<T>(out + at[0], (td_wide<T>)((S)td_load<T>(x + at[1]) * (S)(V)factor + (S)(V)term), add);
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
#define BINARY(name)                                                                                         \
    extern "C" void td__cuda_##name(const td_loop *l, td_dtype t, void *out, const void *a, const void *b, bool add) \
    {                                                                                                        \
        TD_CUDA_ARITH(t, T, (binary<T, f_##name>(#name, l, out, a, b, add)))                                 \
    }
BINARY(add)
BINARY(sub)
BINARY(mul)
BINARY(div)

extern "C" void td__cuda_div_grad_b(const td_loop *l, td_dtype t, void *out, const void *a, const void *b, bool add)
{
    TD_CUDA_FLOAT(t, T, (binary<T, f_div_grad_b>("div_grad_b", l, out, a, b, add)))
}

extern "C" void td__cuda_eq(const td_loop *l, td_dtype t, void *out, const void *a, const void *b)
{
    const int64_t n = td_loop_count(*l);
    if (n == 0)
        return;
    if (t == TD_U8 || t == TD_BOOL) {
        TD_LAUNCH("eq", td_blocks(n), TD_THREADS, 0, (eq_kernel<uint8_t>), *l, n, (uint8_t *)out, (const uint8_t *)a, (const uint8_t *)b);
        return;
    }
    TD_CUDA_ARITH(t, T, TD_LAUNCH("eq", td_blocks(n), TD_THREADS, 0, (eq_kernel<T>), *l, n, (uint8_t *)out, (const T *)a, (const T *)b))
}

extern "C" void td__cuda_scale(const td_loop *l, td_dtype t, void *out, const void *x, double factor, double term, bool add)
{
    const int64_t n = td_loop_count(*l);
    if (n == 0)
        return;
    TD_CUDA_ARITH(t, T, TD_LAUNCH("scale", td_blocks(n), TD_THREADS, 0, (scale_kernel<T>), *l, n, (T *)out, (const T *)x, factor, term, add))
}
