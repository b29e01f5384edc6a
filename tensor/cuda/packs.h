/* tensor/cuda/packs.h: 16 bytes at a time, sums of teams of threads, and sums of columns. Internal to tensor/cuda.
 */
#ifndef TD_CUDA_PACKS_H
#define TD_CUDA_PACKS_H
#include "cuda.h"

/* What one load or store of 16 bytes holds. */
template <class T> struct __align__(16) td_pack { enum { N = 16 / sizeof(T) }; T v[N]; };

/* Can p (of elements T) be read in packs? NULL can: nobody reads it. */
static inline bool td_packed(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

#ifdef __CUDACC__
#define TD_UNROLL _Pragma("unroll")
#define TD_NOT_UNROLLED _Pragma("unroll 1")
#else
#define TD_UNROLL
#define TD_NOT_UNROLLED
#endif

/* Sum over the TEAM threads (32: a warp; else the whole block) that share a row; every one of them gets it. */
template <int TEAM, class W> __device__ __forceinline__ W td_team_sum(W v)
{
    if constexpr (TEAM == 32)
        return td_warp_all(v, td_op_sum());
    else
        return td_block_all(v, td_op_sum());
}

/* ---- sums of columns, second stage -------------------------------------------------------------------------------------------------- */
enum { TD_COLUMN_ROWS = TD_THREADS / 32 };

/* into_k[j] (=|+=) the sum over p of part_k[p * step + j], for two tables; an `into` that is NULL is not wanted. blockIdx.y is the table. The order
 * depends on `parts` alone. */
template <class T>
__global__ void __launch_bounds__(TD_THREADS) td_columns_kernel(int64_t parts, int64_t step, int64_t n, T *into_0, T *into_1, const double *part_0,
                                                                const double *part_1, bool add_0, bool add_1)
{
    __shared__ double sum[TD_COLUMN_ROWS][32];
    T *into = blockIdx.y ? into_1 : into_0;
    const double *part = blockIdx.y ? part_1 : part_0;
    const bool add = blockIdx.y ? add_1 : add_0;
    const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    if (!into)
        return;
    for (int64_t begin = (int64_t)blockIdx.x * 32; begin < n; begin += (int64_t)gridDim.x * 32) {
        const int64_t j = begin + tx;
        double s = 0;
        if (j < n)
            for (int64_t p = ty; p < parts; p += TD_COLUMN_ROWS)
                s += part[p * step + j];
        __syncthreads();                           /* the sums of the columns before have been read */
        sum[ty][tx] = s;
        __syncthreads();
        if (ty == 0 && j < n) {
            for (int k = 1; k < TD_COLUMN_ROWS; k++)
                s += sum[k][tx];
            td_store<T>(into + j, (td_wide<T>)((add ? (double)td_load<T>(into + j) : 0) + s));
        }
    }
}

template <class T>
static void td_columns(const char *row, int64_t parts, int64_t step, int64_t n, T *into_0, T *into_1, const double *part_0, const double *part_1,
                       bool add_0, bool add_1)
{
    const int64_t blocks = (n + 31) / 32;
    TD_LAUNCH(row, dim3((unsigned)(blocks < TD_GRID_MAX ? blocks : TD_GRID_MAX), 2), TD_THREADS, 0, (td_columns_kernel<T>), parts, step, n, into_0,
              into_1, part_0, part_1, add_0, add_1);
}
#endif
