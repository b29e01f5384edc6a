/* plugins/cuda/stream.c: streams, events, and what kernels ask for.
 *
 * All kernels run on one compute stream in the order in which they were launched, so memory is reused without waiting. Streams are
 * "non-blocking": they do not meet the legacy default stream, which other libraries of the process may use. Events carry no time, but those
 * that are asked to.
 */
#include "cuda_impl.h"

cudaStream_t cuda_compute;
_Atomic(const char *) cuda_last_row;

__thread bool cuda_recording;

int cuda_graph_refuses(const char *what)
{
    return cuda_recording ? cuda_host->fail(TD_ERR_STATE, "the step cannot become a graph of the GPU: in it %s, and a launch asks nobody", what) : 0;
}

int cuda_stream_open(void)
{
    cudaError_t e = cudaStreamCreateWithFlags(&cuda_compute, cudaStreamNonBlocking);
    return e == cudaSuccess ? 0 : cuda_failed(e, "the compute stream cannot be made");
}

int cuda_synchronize(int index)
{
    int code = cuda_use(index);
    code = code ? code : cuda_graph_refuses("the host waits for the GPU");
    if (code)
        return code;
    cudaError_t e = cudaDeviceSynchronize();
    return e == cudaSuccess ? 0 : cuda_failed(e, "waiting for the GPU");
}

void *cuda_stream_new(int index, bool high_priority)
{
    cudaStream_t stream = NULL;
    int low = 0, high = 0;
    if (cuda_use(index))
        return NULL;
    cudaError_t e = cudaDeviceGetStreamPriorityRange(&low, &high);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, high_priority ? high : low);
    if (e != cudaSuccess) {
        cuda_failed(e, "a stream cannot be made");
        return NULL;
    }
    return stream;
}

void cuda_stream_free(int index, void *stream)
{
    if (stream && cuda_use(index) == 0)
        cudaStreamDestroy(stream);                     /* its work is finished first                                         */
}

void *cuda_event_new(int index)
{
    cudaEvent_t event = NULL;
    if (cuda_use(index))
        return NULL;
    cudaError_t e = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (e != cudaSuccess) {
        cuda_failed(e, "an event cannot be made");
        return NULL;
    }
    return event;
}

int cuda_event_record(int index, void *event, void *stream)
{
    int code = cuda_use(index);
    if (code)
        return code;
    cudaError_t e = cudaEventRecord(event, stream ? (cudaStream_t)stream : cuda_compute);
    return e == cudaSuccess ? 0 : cuda_failed(e, "an event cannot be recorded");
}

int cuda_event_wait(int index, void *event, void *stream)
{
    int code = cuda_use(index);
    if (code)
        return code;
    cudaError_t e = cudaStreamWaitEvent(stream ? (cudaStream_t)stream : cuda_compute, event, 0);
    return e == cudaSuccess ? 0 : cuda_failed(e, "a stream cannot wait for an event");
}

int cuda_event_done(int index, void *event)
{
    if (cuda_use(index))
        return TD_ERR_DEVICE;
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;     /* asking spoils no recording of another thread      */
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaError_t e = cudaEventQuery(event);
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (e == cudaErrorNotReady)
        cudaGetLastError();                            /* no error, but it would be found as one                              */
    return e == cudaSuccess ? 1 : e == cudaErrorNotReady || e == cudaErrorCudartUnloading ? 0 : TD_ERR_DEVICE;   /* the process ends */
}

int cuda_event_synchronize(int index, void *event)
{
    int code = cuda_use(index);
    code = code ? code : cuda_graph_refuses("the host waits for the GPU");
    if (code)
        return code;
    cudaError_t e = cudaEventSynchronize(event);
    return e == cudaSuccess ? 0 : cuda_failed(e, "waiting for an event");
}

void cuda_event_free(int index, void *event)
{
    if (event && cuda_use(index) == 0)
        cudaEventDestroy(event);
}

void *cuda_event_new_timed(int index)
{
    cudaEvent_t event = NULL;
    if (cuda_use(index))
        return NULL;
    cudaError_t e = cudaEventCreateWithFlags(&event, cudaEventDefault);
    if (e != cudaSuccess) {
        cuda_failed(e, "an event cannot be made");
        return NULL;
    }
    return event;
}

int cuda_event_ms(int index, void *from, void *to, double *ms)
{
    float passed = 0;
    int code = cuda_use(index);
    if (code)
        return code;
    cudaError_t e = cudaEventElapsedTime(&passed, from, to);
    if (e == cudaErrorNotReady) {
        cudaGetLastError();                            /* or the next launch would find it                                    */
        return 1;
    }
    *ms = passed;
    return e == cudaSuccess ? 0 : cuda_failed(e, "the time between two events");
}

/* ---- for kernels: their operands lie on the process's GPU, so there is one ----------------------------------------------------------------- */
cudaStream_t td__cuda_stream(void)
{
    cuda_use(cuda_index());                            /* a launch goes to the thread's current device                          */
    cuda_times_before();
    return cuda_compute;
}

/* Only what the launch itself reports: a kernel's own error comes with the next wait, and names the row launched last. */
void td__cuda_launched(const char *row)
{
    atomic_store_explicit(&cuda_last_row, row, memory_order_relaxed);
    cuda_times_after(row);
    cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess)
        cuda_host->fail(TD_ERR_DEVICE, "the kernel \"%s\" cannot be started on cuda:%d: %s (%s)", row, cuda_index(), cudaGetErrorString(e),
                        cudaGetErrorName(e));
}

int td__cuda_processors(void)
{
    return cuda_processors;
}
