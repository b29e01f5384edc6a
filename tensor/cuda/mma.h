/* tensor/cuda/mma.h: tensor cores and asynchronous copies: the few instructions that CUDA C++ has no plain words for. Internal to tensor/cuda.
 *
 * Each is PTX under nvcc and, on the host, a call into emulate_mma.h, which does what the PTX ISA documents for a warp: which lane holds which
 * element, whose address gives which row, when a copy has arrived. So the index arithmetic of what is built on them is tested
 * without a GPU; tests/cuda/test_mma.c holds the emulation to the documented tables.
 *
 * Fragments of m16n8k16, lane = 4 g + t; a register holds two neighbours, the lower one in its low half:
 *   A (16 x 16)  a0: row g,  columns 2t, 2t+1    a1: row g+8    a2: row g, columns 2t+8, 2t+9    a3: row g+8, columns 2t+8, 2t+9
 *   B (16 x 8)   b0: rows 2t, 2t+1 of column g                  b1: rows 2t+8, 2t+9 of column g
 *   C (16 x 8)   c0, c1: row g, columns 2t, 2t+1                c2, c3: row g+8
 * So two neighbouring C, rounded to 16 bits, are an A: a product's result feeds the next one from registers.
 */
#ifndef TD_CUDA_MMA_H
#define TD_CUDA_MMA_H
#include "cuda.h"
#ifndef __CUDACC__
#include "emulate_mma.h"
#endif

/* More than 48 KiB of dynamic shared memory has to be asked for, once for each kernel: before TD_LAUNCH. */
#ifdef __CUDACC__
#define TD_SHARED_UP_TO(bytes, kernel)                                                                       \
    do {                                                                                                     \
        static const cudaError_t asked = cudaFuncSetAttribute(TD_CUDA_STRIP kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (bytes)); \
        (void)asked;                           /* refused: the launch fails and says so                       */  \
    } while (0)
#else
#define TD_SHARED_UP_TO(bytes, kernel) td__emulated_shared_up_to(bytes)
#endif

/* Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8m + r gives where row r of matrix m lies (16 bytes, 16-byte aligned); into[m]
 * is row g, columns 2t, 2t+1 of matrix m. turned: of its transpose. */
__device__ __forceinline__ void td_ldmatrix(uint32_t (&into)[4], const void *row)
{
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
#else
    td__emulated_ldmatrix(into, row, false);
#endif
}

__device__ __forceinline__ void td_ldmatrix_turned(uint32_t (&into)[4], const void *row)
{
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
#else
    td__emulated_ldmatrix(into, row, true);
#endif
}

template <class A, class B> struct td_same { enum { yes = 0 }; };
template <class A> struct td_same<A, A> { enum { yes = 1 }; };

/* c += a b in f32; T is td_half or td_bfloat */
template <class T> __device__ __forceinline__ void td_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
#ifdef __CUDACC__
    if constexpr (td_same<T, td_half>::yes)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    const uint32_t b[2] = { b0, b1 };
    T of_a[8], of_b[4];
    float wide_a[8], wide_b[4];
    memcpy(of_a, a, sizeof of_a);
    memcpy(of_b, b, sizeof of_b);
    for (int i = 0; i < 8; i++)
        wide_a[i] = td_load<T>(of_a + i);
    for (int i = 0; i < 4; i++)
        wide_b[i] = td_load<T>(of_b + i);
    td__emulated_mma(c, wide_a, wide_b);
#endif
}

/* Two floats rounded into one register. */
template <class T> __device__ __forceinline__ uint32_t td_pair(float low, float high)
{
    T two[2];
    td_store<T>(two, low);
    td_store<T>(two + 1, high);
    uint32_t r;
    memcpy(&r, two, sizeof r);
    return r;
}
#ifdef __CUDACC__
template <> __device__ __forceinline__ uint32_t td_pair<td_half>(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <> __device__ __forceinline__ uint32_t td_pair<td_bfloat>(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
#endif

/* 2^x to 2 units in the last place, 0 below 2^-126: for what is rounded to 16 bits afterwards. */
__device__ __forceinline__ float td_power2(float x)
{
#ifdef __CUDACC__
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#else
    return exp2f(x);
#endif
}

/* N bytes (4 or 16, aligned to that) from the device's memory to shared memory, or N zeroes. They are there for this thread after td_copies_wait
 * of their group, for the others after a barrier behind that. */
template <int N> __device__ __forceinline__ void td_copy_async(void *shared, const void *from, bool there)
{
#ifdef __CUDACC__
    if constexpr (N == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :: "r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                     :: "r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(__cvta_generic_to_global(from)), "r"(there ? 4 : 0) : "memory");
#else
    td__emulated_copy(shared, from, N, there);
#endif
}

__device__ __forceinline__ void td_copies_commit()     /* what this thread has begun since the last commit is a group         */
{
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    td__emulated_commit();
#endif
}

template <int LATER> __device__ __forceinline__ void td_copies_wait()    /* for all groups of this thread but the last LATER   */
{
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" :: "n"(LATER) : "memory");
#else
    td__emulated_wait(LATER);
#endif
}
#endif
