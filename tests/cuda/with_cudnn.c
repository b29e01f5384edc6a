/* tests/cuda/with_cudnn.c: the emulated device with cuDNN's side of the plug-in beside it.
 */
#include "cuda_impl.h"

const td_host *cuda_host = &td__host;
int cuda_index(void) { return 0; }
/* nothing is measured here */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { (void)flags; *e = NULL; return cudaErrorInvalidValue; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { (void)e, (void)s; return cudaErrorInvalidValue; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { (void)e; return cudaErrorInvalidValue; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { (void)ms, (void)a, (void)b; return cudaErrorInvalidValue; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { (void)e; return cudaErrorInvalidValue; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) { (void)s; *status = cudaStreamCaptureStatusNone; return cudaSuccess; }

__attribute__((constructor)) static void bring(void)
{
    td__cuda_conv_library = cudnn_convolve;
}
