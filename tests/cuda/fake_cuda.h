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
    int graphs;                                        /* instantiated and not destroyed                                          */
    bool spoilt;                                       /* something was called that would have ended the recording                */
    bool no_pinned;                                    /* pinned memory has run out                                               */
    _Atomic unsigned chaos;                            /* not 0: streams get on at random moments; the seed                       */
} fake_gpu;
extern fake_gpu fake;
extern __thread long fake_host_waits;                  /* how often this thread waited for something that had not passed          */
/* A kernel of the test's own: called when the stream gets there; from whatever thread makes it go on, and never calling back. */
void fake_kernel(cudaStream_t s, void (*kernel)(void *), void *argument);
#endif
