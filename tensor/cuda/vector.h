/* tensor/cuda/vector.h: neighbouring elements moved as one, up to 16 bytes. Internal to tensor/cuda.
 */
#ifndef TD_CUDA_VECTOR_H
#define TD_CUDA_VECTOR_H
#include "cuda.h"

template <class T, int V> struct alignas(sizeof(T) * V) td_vector { T v[V]; };
template <class T> struct td_widest { enum { N = 16 / (int)sizeof(T) }; };     /* elements of 16 bytes                        */

template <class T, int V> __device__ __forceinline__ td_vector<T, V> td_load_vector(const T *p) { return *(const td_vector<T, V> *)p; }
template <class T, int V> __device__ __forceinline__ void td_store_vector(T *p, const td_vector<T, V> &v) { *(td_vector<T, V> *)p = v; }

/* before a loop whose index must be known to the compiler: what it indexes stays in registers                                     */
#ifdef __CUDACC__
#define TD_UNROLLED _Pragma("unroll")
#else
#define TD_UNROLLED
#endif

/* Can rows of n elements, one after the other from p, be read 16 bytes at a time? */
static inline bool td_vectors(const void *p, int64_t n, size_t size)
{
    return (uintptr_t)p % 16 == 0 && n * (int64_t)size % 16 == 0;
}
#endif
