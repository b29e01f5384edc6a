/* tests/cuda/fake_gpu.h: a GPU made of threads, for what must really run beside the host: every stream is a thread that does its work in order,
 * some time after it was asked (its delay). A missing wait between two streams, in either direction, is then seen in the data: one test delays the
 * compute stream, another the communication stream.
 */
#ifndef TD_FAKE_GPU_H
#define TD_FAKE_GPU_H
#include <cuda_runtime_api.h>

extern int fake_gpu_delay_us[2];               /* before each piece of work: of streams without and with high priority               */
extern int fake_gpu_devices;
/* work(argument) when the stream gets there; argument is freed then */
void fake_gpu_enqueue(cudaStream_t stream, void (*work)(void *argument), void *argument);
#endif
