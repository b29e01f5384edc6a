/* tensor/cuda/finite.cu: how many elements are NaN or infinite, and which comes first.
 *
 * Twin of ../cpu/finite.c: in all four floating formats that is one comparison of integers. Threads count on their own; those that found
 * something add to the total and lower the first index by atomics on integers, whose order does not matter. The answer stays on the device.
 */
#include "pointwise.h"

namespace {
typedef unsigned long long whole;
struct found { whole count, first; };

__global__ void clear_kernel(found *f)
{
    if (threadIdx.x == 0) {
        f->count = 0;
        f->first = ~(whole)0;
    }
}

/* n items of V neighbours and `tail` elements after them; U holds the bits of an element */
template <int V, class U> __global__ void __launch_bounds__(TD_THREADS) finite_kernel(int64_t n, int tail, const U *x, U exponent, found *f)
{
    whole count = 0, first = ~(whole)0;
    TD_GRID_STRIDE(i, n) {
        const td_vector<U, V> v = td_take<V>(x + i * V, false);
#pragma unroll
        for (int k = V - 1; k >= 0; k--)
            if ((v.v[k] & exponent) == exponent) {
                count++;
                first = (whole)(i * V + k) < first ? (whole)(i * V + k) : first;
            }
    }
    const int64_t rest = n * V + threadIdx.x;
    if (blockIdx.x == 0 && (int)threadIdx.x < tail && (x[rest] & exponent) == exponent) {
        count++;
        first = (whole)rest < first ? (whole)rest : first;
    }
    if (count) {
        atomicAdd(&f->count, count);
        atomicMin(&f->first, first);
    }
}

__global__ void answer_kernel(const found *f, double *total, bool add, int64_t *first)
{
    if (threadIdx.x == 0) {
        *total = (add ? *total : 0) + (double)f->count;
        if (first)
            *first = f->count ? (int64_t)f->first : -1;
    }
}

template <class U> void count(int64_t n, const void *x, U exponent, found *f)
{
    constexpr int V = 16 / (int)sizeof(U);
    if (td_aligned(x, 16))
        TD_LAUNCH("not_finite", td_blocks(n / V), TD_THREADS, 0, (finite_kernel<V, U>), n / V, (int)(n % V), (const U *)x, exponent, f);
    else
        TD_LAUNCH("not_finite", td_blocks(n), TD_THREADS, 0, (finite_kernel<1, U>), n, 0, (const U *)x, exponent, f);
}
}

extern "C" void td__cuda_not_finite(td_dtype t, int64_t n, const void *x, double *total, bool add, int64_t *first)
{
    found *device = (found *)td__cuda_scratch(sizeof(found));
    if (!device)
        return;                                        /* the error is pending                                                */
    TD_LAUNCH("not_finite", 1, 32, 0, (clear_kernel), device);
    if (n > 0)
        switch (t) {
        case TD_F64: count<uint64_t>(n, x, UINT64_C(0x7ff0000000000000), device); break;
        case TD_F32: count<uint32_t>(n, x, UINT32_C(0x7f800000), device); break;
        case TD_BF16: count<uint16_t>(n, x, UINT16_C(0x7f80), device); break;
        default: count<uint16_t>(n, x, UINT16_C(0x7c00), device); break;
        }
    TD_LAUNCH("not_finite", 1, 32, 0, (answer_kernel), (const found *)device, total, add, first);
    td__cuda_scratch_free(device);
}
