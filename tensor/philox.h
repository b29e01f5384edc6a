/* tensor/philox.h: Philox 4x32-10 (Salmon et al. 2011), the generator behind every random number of the library. The same lines run on the host
 * and in CUDA kernels; this is the single source of the counter layout.
 */
#ifndef TD_PHILOX_H
#define TD_PHILOX_H
#include <stdint.h>

#ifdef __CUDACC__
#define TD_PHILOX __host__ __device__
#else
#define TD_PHILOX
#endif

typedef struct { uint32_t v[4]; } td_philox;
TD_PHILOX static inline td_philox td__philox(uint64_t seed, uint64_t hi, uint64_t lo)   /* key = seed; counter = (lo, hi)    */
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)lo, c1 = (uint32_t)(lo >> 32), c2 = (uint32_t)hi, c3 = (uint32_t)(hi >> 32);
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1, c3 = (uint32_t)p0, c0 = n0, c2 = n2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    td_philox r = { { c0, c1, c2, c3 } };
    return r;
}
#endif
