/* tensor/cuda/upload.h: small tables from the host into device memory, as arguments of kernels: nothing waits, and the host's memory is free at once.
 */
#ifndef TD_CUDA_UPLOAD_H
#define TD_CUDA_UPLOAD_H
#include "cuda.h"

enum { TD_UPLOAD = 384 };                              /* 8-byte words in one launch: 3 KiB of arguments */
typedef struct { uint64_t word[TD_UPLOAD]; } td_upload_words;

static __global__ void __launch_bounds__(128) td_upload_kernel(td_upload_words from, int n, uint64_t *to)
{
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        to[i] = from.word[i];
}

static inline void td_upload(const char *row, void *to, const void *from, int64_t words)
{
    for (int64_t at = 0; at < words; at += TD_UPLOAD) {
        const int n = words - at < TD_UPLOAD ? (int)(words - at) : (int)TD_UPLOAD;
        td_upload_words w;
        memcpy(w.word, (const uint64_t *)from + at, sizeof(uint64_t) * (size_t)n);
        TD_LAUNCH(row, 1, 128, 0, (td_upload_kernel), w, n, (uint64_t *)to + at);
    }
}
#endif
