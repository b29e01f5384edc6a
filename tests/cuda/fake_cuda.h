/* tests/cuda/fake_cuda.h: what the fake runtime answers; tests set it. */
#ifndef TD_FAKE_CUDA_H
#define TD_FAKE_CUDA_H
#include <cuda_runtime_api.h>
#include <stdbool.h>

typedef struct {
    int devices, driver, major;
    size_t memory;
    cudaError_t count_error, wait_error;
    double clock;                                      /* ms, as events read it; tests let kernels take time                    */
    bool capturing;                                    /* what cudaStreamIsCapturing says                                         */
    long epoch;                                        /* how often everything asked for was done                                   */
} fake_gpu;
extern fake_gpu fake;
#endif
