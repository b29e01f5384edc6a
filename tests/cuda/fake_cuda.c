/* tests/cuda/fake_cuda.c: as much of the CUDA runtime as plugins/cuda's host side calls, as lazy as a GPU may be: a copy happens only when
 * somebody waits for it, in the order in which it was asked for. Memory of the "GPU" is the host's, and there is little of it.
 */
#include "fake_cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem/tensor.h>

fake_gpu fake = { .devices = 1, .memory = 256u << 20, .major = 9 };
enum { QUEUE = 1 << 16 };
static struct { void *to; const void *from; size_t n; } queue[QUEUE];
static size_t queued, done;
static cudaError_t last;
static struct { void *at; size_t bytes; } held[4096];

static cudaError_t result(cudaError_t e)
{
    if (e != cudaSuccess)
        last = e;
    return e;
}

static void run_until(size_t end)
{
    for (; done < end; done++)
        memmove(queue[done].to, queue[done].from, queue[done].n);
    if (done == queued)
        done = queued = 0, fake.epoch++;
}

cudaError_t cudaGetDeviceCount(int *n) { *n = fake.devices; return result(fake.count_error); }
cudaError_t cudaDriverGetVersion(int *v) { *v = fake.driver; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return cudaSuccess; }
cudaError_t cudaGetLastError(void) { cudaError_t e = last; last = cudaSuccess; return e; }
const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorIllegalAddress ? "illegal address" : "some error"; }
const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : "cudaErrorSome"; }
cudaError_t cudaSetDevice(int index) { return result(index < fake.devices ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int index)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Fake %d", index);
    p->major = fake.major;
    p->multiProcessorCount = 3;
    p->totalGlobalMem = fake.memory;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { *s = (cudaStream_t)(void *)&fake; return flags == cudaStreamNonBlocking ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { (void)priority; return cudaStreamCreateWithFlags(s, flags); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0, *high = -5; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { (void)s; return cudaSuccess; }

typedef struct { size_t at; long epoch; double clock; } fake_event;
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { (void)flags; *e = calloc(1, sizeof(fake_event)); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    (void)s;
    *(fake_event *)(void *)e = (fake_event){ queued, fake.epoch, fake.clock };
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) { (void)s, (void)e, (void)flags; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    const fake_event *a = (fake_event *)(void *)from, *b = (fake_event *)(void *)to;
    *ms = (float)(b->clock - a->clock);
    return result(b->epoch == fake.epoch && b->at > done ? cudaErrorNotReady : cudaSuccess);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status)
{
    (void)s;
    *status = fake.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    fake_event *event = (fake_event *)(void *)e;
    if (event->epoch == fake.epoch)
        run_until(event->at);
    return result(fake.wait_error);
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    fake_event *event = (fake_event *)(void *)e;
    return event->epoch != fake.epoch || event->at <= done ? cudaSuccess : result(cudaErrorNotReady);
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) { (void)s; run_until(queued); return result(fake.wait_error); }
cudaError_t cudaDeviceSynchronize(void) { run_until(queued); return result(fake.wait_error); }

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    size_t used = 0, slot = 0;
    for (size_t i = 0; i < 4096; i++)
        used += held[i].bytes;
    while (held[slot].at)
        slot++;
    *p = used + bytes > fake.memory ? NULL : aligned_alloc(512, bytes);
    if (*p)
        held[slot].at = *p, held[slot].bytes = bytes;
    return result(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *p)
{
    for (size_t i = 0; i < 4096; i++)
        if (held[i].at == p)
            held[i].at = NULL, held[i].bytes = 0;
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *unused, size_t *all)
{
    *all = *unused = fake.memory;
    for (size_t i = 0; i < 4096; i++)
        *unused -= held[i].bytes;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { *p = malloc(bytes); return *p ? cudaSuccess : cudaErrorMemoryAllocation; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    (void)p;
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeUnregistered;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s)
{
    (void)kind, (void)s;
    if (queued == QUEUE)
        run_until(queued);
    queue[queued].to = to;
    queue[queued].from = from;
    queue[queued++].n = n;
    return cudaSuccess;
}
