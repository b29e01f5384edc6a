/* tensor/cuda/cuda.h: the frame of the CUDA kernels. Internal to tensor/cuda and plugins/cuda.
 *
 * X.cu here is the twin of ../cpu/X.c: the same rows of td_kernels (kernels.h says what each computes), the same results but for the order of
 * sums. A file holds the device code and, below it, the functions of its rows: extern "C", named td__cuda_ROW, which only choose a grid and
 * launch on td__cuda_stream(). Everything else of CUDA (memory, streams, errors, cuBLAS) is C, in plugins/cuda/.
 *
 * Every file is compiled twice: by nvcc, and by the host's C++ compiler with emulate.h, which runs grids on the CPU thread by thread, so
 * that the tests see every index, barrier and shuffle without a GPU. So: launches are TD_LAUNCH, dynamic shared memory is TD_SHARED, no
 * inline PTX outside #ifdef __CUDACC__, full warps, every barrier reached by all threads of the block.
 *
 * Arithmetic. f64 in double; f32, f16, bf16 in float, rounded once when stored (td_wide). No atomics on floating values: sums have an order
 * that depends on sizes alone. Integers wrap as on the CPU. exp, log, erf … are CUDA's accurate ones, never -use_fast_math.
 */
#ifndef TD_CUDA_H
#define TD_CUDA_H
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#else
#include "emulate.h"
#endif
#include <math.h>
#include <stdint.h>
extern "C" {
#include "../kernels.h"
/* ---- plugins/cuda ---- */
#ifdef __CUDACC__
cudaStream_t td__cuda_stream(void);                    /* the current device's compute stream                             */
#else
int          td__cuda_stream(void);
#endif
void  td__cuda_launched(const char *row);              /* after a launch: an error becomes a sentence                     */
int   td__cuda_processors(void);                       /* multiprocessors of the current device                            */
/* Scratch of the stream's order, contents undefined; free it right after the launches that use it. NULL after td__fail. */
void *td__cuda_scratch(size_t bytes);
void  td__cuda_scratch_free(void *block);
/* A library for convolutions (plugins/cuda/cudnn.c); NULL: none. mode 0: out = conv of a (weights) and b (x); 1: the gradient of x, of a (weights)
 * and b (gout); 2: of the weights, of a (gout) and b (x). false: it has nothing for this one. */
extern bool (*td__cuda_conv_library)(const char *row, int mode, td_dtype t, const td_conv2d_shape *s, void *out, const void *a, const void *b, bool add);
/* n bytes from the device to the host, after what was launched; waits. 0 or a negative code. */
int   td__cuda_read(void *into, const void *from, size_t n);
}

/* ---- launching ------------------------------------------------------------------------------------------------------------------- */
/* the kernel in parentheses: TD_LAUNCH("add", blocks, threads, bytes of dynamic shared memory, (add_kernel<float, 4>), arguments…) */
#ifdef __CUDACC__
#define TD_LAUNCH(row, grid, block, shared, kernel, ...)                                                     \
    do {                                                                                                     \
        TD_CUDA_STRIP kernel<<<(grid), (block), (shared), td__cuda_stream()>>>(__VA_ARGS__);                  \
        td__cuda_launched(row);                                                                              \
    } while (0)
#define TD_CUDA_STRIP(...) __VA_ARGS__
#define TD_SHARED(type, name)                                                                                \
    extern __shared__ __align__(16) unsigned char td_shared_bytes[];                                         \
    type *name = (type *)td_shared_bytes
#else
#define TD_LAUNCH(row, grid, block, shared, kernel, ...)                                                     \
    do {                                                                                                     \
        td__emulate(row, (grid), (block), (shared), [=] { kernel(__VA_ARGS__); });                           \
        td__cuda_launched(row);                                                                              \
    } while (0)
#define TD_SHARED(type, name) type *name = (type *)td__emulated_shared()
#endif

enum { TD_THREADS = 256 };                             /* of a block, unless a kernel says otherwise; 8 warps                */
static const int64_t TD_GRID_MAX = 0x7fffffff;

/* Blocks for n independent items, one thread each, in grid-stride loops: some waves of the device, no more than needed. */
static inline unsigned td_blocks(int64_t n, int per_block = TD_THREADS)
{
    int64_t need = (n + per_block - 1) / per_block, most = (int64_t)td__cuda_processors() * 16;
    return (unsigned)(need < 1 ? 1 : need < most ? need : most);
}
/* for (int64_t i = …; i < n; …): this thread's items */
#define TD_GRID_STRIDE(i, n)                                                                                 \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, i##_step = (int64_t)gridDim.x * blockDim.x; i < (n); i += i##_step)

/* ---- types ----------------------------------------------------------------------------------------------------------------------- */
typedef __half td_half;
typedef __nv_bfloat16 td_bfloat;
template <class T> struct td_wide_of { typedef T type; };
template <> struct td_wide_of<td_half> { typedef float type; };
template <> struct td_wide_of<td_bfloat> { typedef float type; };
template <class T> using td_wide = typename td_wide_of<T>::type;   /* what arithmetic on T is done in                    */

template <class T> __device__ __forceinline__ td_wide<T> td_load(const T *p) { return (td_wide<T>)*p; }
template <> __device__ __forceinline__ float td_load<td_half>(const td_half *p) { return __half2float(*p); }
template <> __device__ __forceinline__ float td_load<td_bfloat>(const td_bfloat *p) { return __bfloat162float(*p); }
template <class T> __device__ __forceinline__ void td_store(T *p, td_wide<T> v) { *p = (T)v; }
template <> __device__ __forceinline__ void td_store<td_half>(td_half *p, float v) { *p = __float2half_rn(v); }
template <> __device__ __forceinline__ void td_store<td_bfloat>(td_bfloat *p, float v) { *p = __float2bfloat16_rn(v); }
/* a gradient into its place: in f16 and bf16 the sum is rounded once */
template <class T> __device__ __forceinline__ void td_put(T *p, td_wide<T> v, bool add) { td_store<T>(p, add ? td_load<T>(p) + v : v); }

/* Runs the statements with T a type of the dtype t: TD_CUDA_FLOAT(t, T, { …launch… }) */
#define TD_CUDA_CASE(dtype, T, type, ...) case dtype: { typedef type T; __VA_ARGS__; break; }
#define TD_CUDA_FLOAT(t, T, ...)                                                                             \
    switch (t) {                                                                                             \
        TD_CUDA_CASE(TD_F32, T, float, __VA_ARGS__)                                                          \
        TD_CUDA_CASE(TD_F64, T, double, __VA_ARGS__)                                                         \
        TD_CUDA_CASE(TD_F16, T, td_half, __VA_ARGS__)                                                        \
        TD_CUDA_CASE(TD_BF16, T, td_bfloat, __VA_ARGS__)                                                     \
    default: break;                                                                                          \
    }
#define TD_CUDA_ARITH(t, T, ...)                                                                             \
    switch (t) {                                                                                             \
        TD_CUDA_CASE(TD_F32, T, float, __VA_ARGS__)                                                          \
        TD_CUDA_CASE(TD_F64, T, double, __VA_ARGS__)                                                         \
        TD_CUDA_CASE(TD_F16, T, td_half, __VA_ARGS__)                                                        \
        TD_CUDA_CASE(TD_BF16, T, td_bfloat, __VA_ARGS__)                                                     \
        TD_CUDA_CASE(TD_I64, T, int64_t, __VA_ARGS__)                                                        \
        TD_CUDA_CASE(TD_I32, T, int32_t, __VA_ARGS__)                                                        \
    default: break;                                                                                          \
    }
/* by the size of an element alone: moves */
#define TD_CUDA_SIZE(t, T, ...)                                                                              \
    switch (td_dtype_size(t)) {                                                                              \
    case 1: { typedef uint8_t T; __VA_ARGS__; break; }                                                       \
    case 2: { typedef uint16_t T; __VA_ARGS__; break; }                                                      \
    case 4: { typedef uint32_t T; __VA_ARGS__; break; }                                                      \
    default: { typedef uint64_t T; __VA_ARGS__; break; }                                                     \
    }

/* ---- strided loops ---------------------------------------------------------------------------------------------------------------- */
static inline int64_t td_loop_count(const td_loop &l)
{
    int64_t n = 1;
    for (int d = 0; d < l.ndim; d++)
        n *= l.dim[d];
    return n;
}
/* Is every operand of the first `operands` dense, or the same element everywhere? Then index i of operand k is i * flat[k]. */
static inline bool td_loop_flat(const td_loop &l, int operands)
{
    if (l.ndim == 0)
        return true;
    if (l.ndim > 1)
        return false;
    for (int k = 0; k < operands; k++)
        if (l.stride[k][0] != 0 && l.stride[k][0] != 1)
            return false;
    return true;
}
/* Where element i (row order) of each of K operands lies. */
template <int K> __device__ __forceinline__ void td_loop_at(const td_loop &l, int64_t i, int64_t (&at)[K])
{
    for (int k = 0; k < K; k++)
        at[k] = 0;
    for (int d = l.ndim - 1; d >= 0; d--) {
        int64_t q, r;
        if (i <= 0x7fffffff && l.dim[d] <= 0x7fffffff) {       /* 64-bit division is many instructions */
            q = (int64_t)((uint32_t)i / (uint32_t)l.dim[d]);
            r = i - q * l.dim[d];
        } else {
            q = i / l.dim[d];
            r = i - q * l.dim[d];
        }
        for (int k = 0; k < K; k++)
            at[k] += r * l.stride[k][d];
        i = q;
    }
}

/* ---- sums over threads: the order depends on the number of threads of the block alone --------------------------------------------------- */
struct td_op_sum { template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; } };
struct td_op_max { template <class T> __device__ __forceinline__ T operator()(T a, T b) const { return a != a ? a : b != b ? b : a > b ? a : b; } };

template <class T, class O> __device__ __forceinline__ T td_warp_all(T v, O op)        /* every lane gets the result          */
{
    for (int m = 16; m > 0; m >>= 1)
        v = op(v, __shfl_xor_sync(0xffffffffu, v, m));
    return v;
}
/* Every thread gets the result. blockDim.x is a multiple of 32, at most 1024; all threads call it. */
template <class T, class O> __device__ __forceinline__ T td_block_all(T v, O op)
{
    __shared__ T part[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = td_warp_all(v, op);
    __syncthreads();                                   /* part may still be read from the call before                     */
    if (lane == 0)
        part[warp] = v;
    __syncthreads();
    v = part[0];
    for (int w = 1; w < warps; w++)
        v = op(v, part[w]);
    return v;
}
#endif
