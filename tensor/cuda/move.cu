/* tensor/cuda/move.cu: copy, fill, arange: every dtype to every other, by the rules and the very lines of ../convert.h.
 *
 * Twin of ../cpu/move.c. Same dtype: only the size of an element matters. Pairs of f32, f16 and bf16 (mixed precision) have kernels of their
 * own, other conversions one kernel that branches on the dtypes, alike in all threads. A copy whose input runs contiguously along another
 * dimension than its output goes through 32 x 32 tiles in shared memory, so that both sides are read and written in whole lines.
 */
#include "cuda.h"
extern "C++" {
#include "../convert.h"
}

/* ---- one element of any dtype into any other --------------------------------------------------------------------------------------------- */
template <class V> __device__ __forceinline__ void put_any(td_dtype to, void *out, int64_t at, V v);
template <> __device__ __forceinline__ void put_any<float>(td_dtype to, void *out, int64_t at, float v)
{
    switch (to) {
    case TD_F32: ((float *)out)[at] = v; break;
    case TD_F64: ((double *)out)[at] = v; break;
    case TD_F16: ((td_f16 *)out)[at] = td__f32_to_f16(v); break;
    case TD_BF16: ((td_bf16 *)out)[at] = td__f32_to_bf16(v); break;
    case TD_I64: ((int64_t *)out)[at] = td__f64_to_i64(v); break;
    case TD_I32: ((int32_t *)out)[at] = td__f32_to_i32(v); break;
    case TD_U8: ((uint8_t *)out)[at] = td__f32_to_u8(v); break;
    default: ((uint8_t *)out)[at] = v != 0; break;
    }
}
template <> __device__ __forceinline__ void put_any<double>(td_dtype to, void *out, int64_t at, double v)
{
    switch (to) {
    case TD_F32: ((float *)out)[at] = (float)v; break;
    case TD_F64: ((double *)out)[at] = v; break;
    case TD_F16: ((td_f16 *)out)[at] = td__f64_to_f16(v); break;
    case TD_BF16: ((td_bf16 *)out)[at] = td__f64_to_bf16(v); break;
    case TD_I64: ((int64_t *)out)[at] = td__f64_to_i64(v); break;
    case TD_I32: ((int32_t *)out)[at] = td__f64_to_i32(v); break;
    case TD_U8: ((uint8_t *)out)[at] = td__f64_to_u8(v); break;
    default: ((uint8_t *)out)[at] = v != 0; break;
    }
}
template <> __device__ __forceinline__ void put_any<int64_t>(td_dtype to, void *out, int64_t at, int64_t v)
{
    switch (to) {
    case TD_F32: ((float *)out)[at] = (float)v; break;
    case TD_F64: ((double *)out)[at] = (double)v; break;
    case TD_F16: ((td_f16 *)out)[at] = td__i64_to_f16(v); break;
    case TD_BF16: ((td_bf16 *)out)[at] = td__i64_to_bf16(v); break;
    case TD_I64: ((int64_t *)out)[at] = v; break;
    case TD_I32: ((int32_t *)out)[at] = td__i64_to_i32(v); break;
    case TD_U8: ((uint8_t *)out)[at] = td__i64_to_u8(v); break;
    default: ((uint8_t *)out)[at] = v != 0; break;
    }
}

__device__ __forceinline__ void convert_one(td_dtype to, void *out, int64_t o, td_dtype from, const void *x, int64_t i)
{
    switch (from) {
    case TD_F32: put_any<float>(to, out, o, ((const float *)x)[i]); break;
    case TD_F64: put_any<double>(to, out, o, ((const double *)x)[i]); break;
    case TD_F16: put_any<float>(to, out, o, td__f16_to_f32(((const td_f16 *)x)[i])); break;
    case TD_BF16: put_any<float>(to, out, o, td__bf16_to_f32(((const td_bf16 *)x)[i])); break;
    case TD_I64: put_any<int64_t>(to, out, o, ((const int64_t *)x)[i]); break;
    case TD_I32: put_any<int64_t>(to, out, o, ((const int32_t *)x)[i]); break;
    default: put_any<int64_t>(to, out, o, ((const uint8_t *)x)[i]); break;
    }
}

/* ---- kernels ------------------------------------------------------------------------------------------------------------------------------- */
__global__ void __launch_bounds__(TD_THREADS) convert_kernel(td_loop l, int64_t n, td_dtype to, void *out, td_dtype from, const void *x)
{
    TD_GRID_STRIDE(i, n) {
        int64_t at[2];
        td_loop_at<2>(l, i, at);
        convert_one(to, out, at[0], from, x, at[1]);
    }
}

/* between floats of 16 and 32 bits; add: the sum is formed in f32 and rounded once */
template <class T, class F>
__global__ void __launch_bounds__(TD_THREADS) narrow_kernel(td_loop l, int64_t n, T *out, const F *x, bool add)
{
    TD_GRID_STRIDE(i, n) {
        int64_t at[2];
        td_loop_at<2>(l, i, at);
        td_put<T>(out + at[0], td_load<F>(x + at[1]), add);
    }
}

template <class T> __global__ void __launch_bounds__(TD_THREADS) copy_kernel(td_loop l, int64_t n, T *out, const T *x)
{
    TD_GRID_STRIDE(i, n) {
        int64_t at[2];
        td_loop_at<2>(l, i, at);
        out[at[0]] = x[at[1]];
    }
}

template <class T> __global__ void __launch_bounds__(TD_THREADS) add_kernel(td_loop l, int64_t n, T *out, const T *x)
{
    TD_GRID_STRIDE(i, n) {
        int64_t at[2];
        td_loop_at<2>(l, i, at);
        td_store<T>(out + at[0], td_load<T>(out + at[0]) + td_load<T>(x + at[1]));
    }
}

/* The last dimension is dense in the output, dimension `run` in the input. A block takes one tile at a time: the rest of the dimensions,
 * then tiles along `run`, then tiles along the last. */
enum { TILE = 32, TILE_ROWS = 8 };
template <class T> __global__ void __launch_bounds__(TILE *TILE_ROWS) tile_kernel(td_loop l, int run, int64_t tiles, T *out, const T *x)
{
    __shared__ T tile[TILE][TILE + 1];
    const int last = l.ndim - 1, tx = threadIdx.x % TILE, ty = threadIdx.x / TILE;
    const int64_t across = (l.dim[last] + TILE - 1) / TILE, along = (l.dim[run] + TILE - 1) / TILE;
    for (int64_t u = blockIdx.x; u < tiles; u += gridDim.x) {
        const int64_t c = u % across * TILE, r = u / across % along * TILE;
        int64_t rest = u / across / along, o = 0, i = 0;
        for (int d = last - 1; d >= 0; d--) {
            if (d == run)
                continue;
            o += rest % l.dim[d] * l.stride[0][d];
            i += rest % l.dim[d] * l.stride[1][d];
            rest /= l.dim[d];
        }
        for (int k = ty; k < TILE; k += TILE_ROWS)
            if (c + k < l.dim[last] && r + tx < l.dim[run])
                tile[k][tx] = x[i + (c + k) * l.stride[1][last] + r + tx];
        __syncthreads();
        for (int k = ty; k < TILE; k += TILE_ROWS)
            if (r + k < l.dim[run] && c + tx < l.dim[last])
                out[o + (r + k) * l.stride[0][run] + c + tx] = tile[tx][k];
        __syncthreads();
    }
}

__global__ void __launch_bounds__(TD_THREADS) fill_kernel(td_loop l, int64_t n, td_dtype t, void *out, double value)
{
    TD_GRID_STRIDE(i, n) {
        int64_t at[1];
        td_loop_at<1>(l, i, at);
        put_any<double>(t, out, at[0], value);
    }
}

__global__ void __launch_bounds__(TD_THREADS) arange_kernel(int64_t n, td_dtype t, void *out)
{
    TD_GRID_STRIDE(i, n)
        put_any<int64_t>(t, out, i, i);
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
static int transposed_run(const td_loop &l)
{
    const int last = l.ndim - 1;
    if (last < 1 || l.stride[0][last] != 1 || l.stride[1][last] <= 1 || l.dim[last] < 8)
        return -1;
    for (int d = 0; d < last; d++)
        if (l.stride[1][d] == 1 && l.dim[d] >= 8)
            return d;
    return -1;
}

template <class T> static void copy_bits(const td_loop &l, int64_t n, void *out, const void *x)
{
    const int run = transposed_run(l);
    if (run < 0) {
        TD_LAUNCH("copy", td_blocks(n), TD_THREADS, 0, (copy_kernel<T>), l, n, (T *)out, (const T *)x);
        return;
    }
    const int64_t a = l.dim[l.ndim - 1], b = l.dim[run], tiles = n / a / b * ((a + TILE - 1) / TILE) * ((b + TILE - 1) / TILE);
    TD_LAUNCH("copy", td_blocks(tiles, 1), TILE * TILE_ROWS, 0, (tile_kernel<T>), l, run, tiles, (T *)out, (const T *)x);
}

static bool narrow(td_dtype t)
{
    return t == TD_F32 || t == TD_F16 || t == TD_BF16;
}

template <class T> static void narrow_from(const td_loop &l, int64_t n, T *out, td_dtype from, const void *x, bool add)
{
    if (from == TD_F32)
        TD_LAUNCH("copy", td_blocks(n), TD_THREADS, 0, (narrow_kernel<T, float>), l, n, out, (const float *)x, add);
    else if (from == TD_F16)
        TD_LAUNCH("copy", td_blocks(n), TD_THREADS, 0, (narrow_kernel<T, td_half>), l, n, out, (const td_half *)x, add);
    else
        TD_LAUNCH("copy", td_blocks(n), TD_THREADS, 0, (narrow_kernel<T, td_bfloat>), l, n, out, (const td_bfloat *)x, add);
}

extern "C" void td__cuda_copy(const td_loop *l, td_dtype to, void *out, td_dtype from, const void *x, bool add)
{
    const int64_t n = td_loop_count(*l);
    if (n == 0)
        return;
    if (to == from && !add) {
        TD_CUDA_SIZE(to, T, copy_bits<T>(*l, n, out, x))
    } else if (narrow(to) && narrow(from)) {
        if (to == TD_F32)
            narrow_from<float>(*l, n, (float *)out, from, x, add);
        else if (to == TD_F16)
            narrow_from<td_half>(*l, n, (td_half *)out, from, x, add);
        else
            narrow_from<td_bfloat>(*l, n, (td_bfloat *)out, from, x, add);
    } else if (!add) {
        TD_LAUNCH("copy", td_blocks(n), TD_THREADS, 0, (convert_kernel), *l, n, to, out, from, x);
    } else if (to == TD_F64) {
        TD_LAUNCH("copy", td_blocks(n), TD_THREADS, 0, (add_kernel<double>), *l, n, (double *)out, (const double *)x);
    } else if (to == TD_I64) {             /* unsigned: sums of integers wrap */
        TD_LAUNCH("copy", td_blocks(n), TD_THREADS, 0, (add_kernel<uint64_t>), *l, n, (uint64_t *)out, (const uint64_t *)x);
    } else {
        TD_LAUNCH("copy", td_blocks(n), TD_THREADS, 0, (add_kernel<uint32_t>), *l, n, (uint32_t *)out, (const uint32_t *)x);
    }
}

extern "C" void td__cuda_fill(const td_loop *l, td_dtype t, void *out, double value)
{
    const int64_t n = td_loop_count(*l);
    if (n)
        TD_LAUNCH("fill", td_blocks(n), TD_THREADS, 0, (fill_kernel), *l, n, t, out, value);
}

extern "C" void td__cuda_arange(td_dtype t, int64_t n, void *out)
{
    if (n)
        TD_LAUNCH("arange", td_blocks(n), TD_THREADS, 0, (arange_kernel), n, t, out);
}
