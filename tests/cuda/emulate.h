/* tests/cuda/emulate.h: as much of CUDA C++ as tensor/cuda uses, for the host's compiler: grids run on the CPU, so that the tests see every
 * index, barrier and shuffle of a kernel without a GPU.
 *
 * A block's threads are contexts of their own that take turns on one OS thread: each runs until its next barrier or shuffle. A
 * barrier that some thread of the block (a shuffle: of the warp) never reaches ends the program with a sentence. TANDEM_EMULATE=reverse runs
 * the threads in the opposite order, which shows most missing barriers. Nothing here says anything about speed.
 */
#ifndef TD_EMULATE_H
#define TD_EMULATE_H
#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
extern "C" {
#include <convert.h>
}

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __shared__ static              /* one block at a time                                                           */
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern dim3 td__emulated_thread, td__emulated_block, td__emulated_block_size, td__emulated_grid_size;
#define threadIdx td__emulated_thread
#define blockIdx td__emulated_block
#define blockDim td__emulated_block_size
#define gridDim td__emulated_grid_size
enum { warpSize = 32 };

void  td__emulate(const char *row, dim3 grid, dim3 block, size_t shared, const std::function<void()> &thread);
/* A launch takes its arguments when it is made, converted to the kernel's, though the kernel may run later (emulate_graph.h). */
template <class... P> struct td__emulated_launch {
    const char *row;
    dim3 grid, block;
    size_t shared;
    void (*kernel)(P...);
    void operator()(P... p) const
    {
        void (*const k)(P...) = kernel;
        td__emulate(row, grid, block, shared, [=] { k(p...); });
    }
};
template <class... P> td__emulated_launch<P...> td__emulated_launcher(const char *row, dim3 grid, dim3 block, size_t shared, void (*kernel)(P...))
{
    return td__emulated_launch<P...>{ row, grid, block, shared, kernel };
}
void *td__emulated_shared();
void  td__emulated_barrier(bool warp);
/* What `value` (n bytes, up to 16) of lane `from` of this warp was; every lane of the warp calls it. */
void  td__emulated_exchange(void *value, size_t n, int from);
int   td__emulated_lane();

static inline void __syncthreads() { td__emulated_barrier(false); }
static inline void __syncwarp(unsigned = 0xffffffffu) { td__emulated_barrier(true); }
template <class T> static inline T __shfl_sync(unsigned, T v, int lane) { td__emulated_exchange(&v, sizeof v, lane & 31); return v; }
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int mask) { return __shfl_sync(m, v, td__emulated_lane() ^ mask); }
template <class T> static inline T __shfl_down_sync(unsigned m, T v, int by)
{
    int lane = td__emulated_lane();
    return __shfl_sync(m, v, lane + by < 32 ? lane + by : lane);
}
template <class T> static inline T __shfl_up_sync(unsigned m, T v, int by)
{
    int lane = td__emulated_lane();
    return __shfl_sync(m, v, lane >= by ? lane - by : lane);
}
static inline unsigned __ballot_sync(unsigned m, int predicate)
{
    unsigned all = 0;
    for (int lane = 0; lane < 32; lane++)
        all |= (unsigned)(__shfl_sync(m, predicate, lane) != 0) << lane;
    return all;
}

static inline int __any_sync(unsigned m, int predicate)
{
    int any = predicate != 0;
    for (int by = 16; by > 0; by >>= 1)
        any |= __shfl_xor_sync(m, any, by);
    return any;
}

/* One OS thread runs everything: plain reads and writes are atomic. */
template <class T> static inline T atomicAdd(T *p, T v) { T was = *p; *p += v; return was; }
template <class T> static inline T atomicMin(T *p, T v) { T was = *p; *p = v < was ? v : was; return was; }
template <class T> static inline T atomicMax(T *p, T v) { T was = *p; *p = v > was ? v : was; return was; }
template <class T> static inline T atomicCAS(T *p, T compare, T v) { T was = *p; *p = was == compare ? v : was; return was; }
template <class T> static inline T atomicExch(T *p, T v) { T was = *p; *p = v; return was; }
static inline void __threadfence() {}
static inline void __threadfence_system() {}
template <class T> static inline T __ldg(const T *p) { return *p; }

struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };
static inline float __half2float(__half h) { return td__f16_to_f32(td_f16{ h.bits }); }
static inline __half __float2half_rn(float x) { return __half{ td__f32_to_f16(x).bits }; }
static inline float __bfloat162float(__nv_bfloat16 h) { return td__bf16_to_f32(td_bf16{ h.bits }); }
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16{ td__f32_to_bf16(x).bits }; }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }
static inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) double2 { double x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
#endif
