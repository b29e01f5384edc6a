/* tensor/cuda/parts.h: how losses cut their sums, in two launches: blocks make at most 1024 parts whose borders depend on the size alone, and
 * one block adds them in a fixed order. Internal to tensor/cuda.
 */
#ifndef TD_CUDA_PARTS_H
#define TD_CUDA_PARTS_H
#include "cuda.h"
#include "trap.h"

enum { TD_PARTS = 1024 };

/* Of a part, or of a thread: the sum, over how many, and the first row whose target is no class. */
struct td_part { double sum; int64_t kept, bad; };

/* What is kept beside data of a type: f32 beside 16 bits. */
template <class T> using td_stat = td_wide<T>;

struct td_op_min { __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const { return a < b ? a : b; } };

static inline int64_t td_part_size(int64_t n, int64_t unit)    /* so that at most TD_PARTS of them cover n, in multiples of unit    */
{
    const int64_t size = ((n + TD_PARTS - 1) / TD_PARTS + unit - 1) / unit * unit;
    return size > 0 ? size : unit;
}

/* What all threads of the block found, in thread 0. */
__device__ __forceinline__ td_part td_block_part(td_part p)
{
    p.sum = td_block_all(p.sum, td_op_sum());
    p.kept = td_block_all(p.kept, td_op_sum());
    p.bad = td_block_all(p.bad, td_op_min());
    return p;
}

/* threads of a block for n items: a warp where it is enough */
static inline unsigned td_threads_for(int64_t n) { return n <= 32 ? 32 : (unsigned)TD_THREADS; }

/* The mean; NaN over nothing. kept may be NULL; target: what the trap is told of, NULL: nothing is checked. One block. */
template <class L, class S> __global__ void __launch_bounds__(TD_THREADS) td_parts_kernel(int64_t parts, const td_part *part, L *loss, S *kept,
                                                                                         td_trap trap, const int64_t *target)
{
    td_part mine = { 0, 0, INT64_MAX };
    for (int64_t p = threadIdx.x; p < parts; p += blockDim.x) {
        mine.sum += part[p].sum;
        mine.kept += part[p].kept;
        mine.bad = part[p].bad < mine.bad ? part[p].bad : mine.bad;
    }
    mine = td_block_part(mine);
    if (threadIdx.x != 0)
        return;
    td_store<L>(loss, (td_wide<L>)(mine.kept > 0 ? mine.sum / (double)mine.kept : (double)NAN));
    if (kept)
        *kept = (S)mine.kept;
    if (target && mine.bad != INT64_MAX)
        td_trap_meet(trap, mine.bad, target[mine.bad]);
}

/* Over elements: part p is the sum of f(i), i from p*size, of n. */
template <class F> __global__ void __launch_bounds__(TD_THREADS) td_elements_kernel(F f, int64_t n, int64_t size, td_part *part)
{
    const int64_t begin = (int64_t)blockIdx.x * size, end = begin + size < n ? begin + size : n;
    td_part mine = { 0, 0, INT64_MAX };
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x)
        f(i, mine);
    mine = td_block_part(mine);
    if (threadIdx.x == 0)
        part[blockIdx.x] = mine;
}

/* The mean of f over n; kept, trap and target as above. */
template <class T, class F> static void td_mean_of(const char *row, int64_t n, F f, T *loss, td_stat<T> *kept, td_trap trap, const int64_t *target)
{
    const int64_t size = td_part_size(n, 4 * TD_THREADS), parts = (n + size - 1) / size;
    td_part *part = (td_part *)td__cuda_scratch((size_t)(parts > 0 ? parts : 1) * sizeof *part);
    if (!part)
        return;
    if (parts)
        TD_LAUNCH(row, (unsigned)parts, td_threads_for(n), 0, (td_elements_kernel<F>), f, n, size, part);
    TD_LAUNCH(row, 1, td_threads_for(parts), 0, (td_parts_kernel<T, td_stat<T>>), parts, part, loss, kept, trap, target);
    td__cuda_scratch_free(part);
}
#endif
