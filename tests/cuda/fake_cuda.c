/* tests/cuda/fake_cuda.c: as much of the CUDA runtime as plugins/cuda's host side calls, as lazy as a GPU may be: work happens only when
 * somebody waits for it, stream by stream, and what a stream was not told to wait for has not happened. With fake.chaos every call lets
 * random streams get on with random parts of their work: as early as a GPU may be, too. Memory of the "GPU" is the host's, and there is
 * little of it. Copies that do not lie in device memory and pinned memory are refused, and so is what CUDA forbids while a
 * stream is recorded (fake.capturing).
 */
#include "fake_cuda.h"
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem/tensor.h>

fake_gpu fake = { .devices = 1, .memory = 256u << 20, .major = 9 };
typedef struct fake_stream fake_stream;
typedef struct {
    void *to;
    const void *from;
    size_t n;
    void (*kernel)(void *);
    fake_stream *wait_for;                             /* … until it has done wait_until                                          */
    size_t wait_until;
} work;
struct fake_stream { work *list; size_t queued, done, room; fake_stream *next; };
typedef struct { fake_stream *on; size_t at; double clock; } fake_event;
enum { HELD = 4096 };
typedef struct { char *at; size_t bytes; } region;
static region held[HELD], pinned[HELD];
static fake_stream *streams;                           /* never freed: events and waits may name one that was destroyed           */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
__thread long fake_host_waits;
static __thread cudaError_t last;
static __thread enum cudaStreamCaptureMode mode;

static cudaError_t result(cudaError_t e)
{
    if (e != cudaSuccess)
        last = e;
    return e;
}

/* ---- streams --------------------------------------------------------------------------------------------------------------------------- */
static void run_until(fake_stream *s, size_t end)
{
    while (s->done < end) {
        work w = s->list[s->done++];
        if (w.wait_for)
            run_until(w.wait_for, w.wait_until);
        else if (w.kernel)
            w.kernel(w.to);
        else
            memmove(w.to, w.from, w.n);
    }
}

static void run_all(void)
{
    for (fake_stream *s = streams; s; s = s->next)
        run_until(s, s->queued);
}

/* Every call comes through here. */
static void enter(void)
{
    pthread_mutex_lock(&lock);
    for (fake_stream *s = streams; fake.chaos && s; s = s->next) {
        fake.chaos = fake.chaos * 1664525u + 1013904223u;
        if (s->done < s->queued && fake.chaos >> 30 == 0)
            run_until(s, s->done + 1 + (fake.chaos >> 16) % (s->queued - s->done));
    }
}

static cudaError_t leave(cudaError_t e)
{
    pthread_mutex_unlock(&lock);
    return result(e);
}

/* What waits or asks how far work has come, or changes the memory there is: not while a stream is recorded. */
static bool forbidden(void)
{
    if (fake.capturing && mode != cudaStreamCaptureModeRelaxed)
        fake.spoilt = true;
    return fake.capturing && mode != cudaStreamCaptureModeRelaxed;
}

static fake_stream *captured, *recording;              /* cudaStreamBeginCapture's, and the list that its work goes to            */

static void put(fake_stream *s, work w)
{
    if (s == captured) {
        fake.spoilt |= w.wait_for != NULL;             /* on work outside of the recording                                      */
        s = recording;
    }
    if (s->queued == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->list = realloc(s->list, s->room * sizeof *s->list);
        if (!s->list)
            abort();
    }
    s->list[s->queued++] = w;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    enter();
    fake_stream *made = calloc(1, sizeof *made);
    if (made) {
        made->next = streams;
        streams = made;
    }
    *s = (cudaStream_t)(void *)made;
    return leave(made && flags == cudaStreamNonBlocking ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { (void)priority; return cudaStreamCreateWithFlags(s, flags); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0, *high = -5; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { (void)s; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status)
{
    (void)s;
    *status = fake.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m)
{
    enum cudaStreamCaptureMode was = mode;
    mode = *m;
    *m = was;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    enter();
    if (forbidden())
        return leave(cudaErrorStreamCaptureUnsupported);
    fake_host_waits += ((fake_stream *)(void *)s)->done < ((fake_stream *)(void *)s)->queued;
    run_until((fake_stream *)(void *)s, ((fake_stream *)(void *)s)->queued);
    return leave(fake.wait_error);
}
cudaError_t cudaDeviceSynchronize(void)
{
    enter();
    if (forbidden())
        return leave(cudaErrorStreamCaptureUnsupported);
    fake_host_waits++;
    run_all();
    return leave(fake.wait_error);
}

/* ---- events: a place in a stream ------------------------------------------------------------------------------------------------------------- */
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { (void)flags; *e = calloc(1, sizeof(fake_event)); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    enter();
    fake_stream *on = (fake_stream *)(void *)s;
    *(fake_event *)(void *)e = (fake_event){ on, on->queued, fake.clock };
    return leave(cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    enter();
    const fake_event *event = (fake_event *)(void *)e;
    if (event->on)                                     /* one that was never recorded has passed                               */
        put((fake_stream *)(void *)s, (work){ .wait_for = event->on, .wait_until = event->at });
    return leave(flags ? cudaErrorInvalidValue : cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    enter();
    const fake_event *event = (fake_event *)(void *)e;
    if (forbidden())
        return leave(cudaErrorStreamCaptureUnsupported);
    pthread_mutex_unlock(&lock);
    return event->on && event->on->done < event->at ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    enter();
    const fake_event *event = (fake_event *)(void *)e;
    if (forbidden())
        return leave(cudaErrorStreamCaptureUnsupported);
    fake_host_waits += event->on && event->on->done < event->at;
    if (event->on)
        run_until(event->on, event->at);
    return leave(fake.wait_error);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    const fake_event *a = (fake_event *)(void *)from, *b = (fake_event *)(void *)to;
    *ms = (float)(b->clock - a->clock);
    return result(b->on && b->on->done < b->at ? cudaErrorNotReady : cudaSuccess);
}
void fake_kernel(cudaStream_t s, void (*kernel)(void *), void *argument)
{
    enter();
    put((fake_stream *)(void *)s, (work){ .kernel = kernel, .to = argument });
    leave(cudaSuccess);
}

/* ---- graphs: a list that no stream runs ------------------------------------------------------------------------------------------------------ */
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode how)
{
    enter();
    if (captured || how != cudaStreamCaptureModeThreadLocal)
        return leave(cudaErrorIllegalState);
    recording = calloc(1, sizeof *recording);
    captured = (fake_stream *)(void *)s;
    fake.capturing = true;
    fake.spoilt = false;
    return leave(recording ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    enter();
    if (captured != (fake_stream *)(void *)s)
        return leave(cudaErrorIllegalState);
    captured = NULL;
    fake.capturing = false;
    *graph = fake.spoilt ? NULL : (cudaGraph_t)(void *)recording;
    return leave(fake.spoilt ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    const fake_stream *from = (fake_stream *)(void *)graph;
    fake_stream *to = calloc(1, sizeof *to);
    for (size_t i = 0; to && i < from->queued; i++)
        put(to, from->list[i]);
    *exec = (cudaGraphExec_t)(void *)to;
    fake.graphs++;
    return result(to && !flags ? cudaSuccess : cudaErrorInvalidValue);
}
static cudaError_t list_free(void *list)
{
    free(((fake_stream *)list)->list);
    free(list);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return list_free(graph); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { fake.graphs--; return list_free(exec); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s)
{
    enter();
    const fake_stream *from = (fake_stream *)(void *)exec;
    for (size_t i = 0; i < from->queued; i++)
        put((fake_stream *)(void *)s, from->list[i]);
    return leave(cudaSuccess);
}

/* ---- the rest ---------------------------------------------------------------------------------------------------------------------------- */
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
/* Of the regions there are room for one more, or the one that holds n bytes from `at`. */
static region *region_of(region *r, const void *at, size_t n)
{
    for (size_t i = 0; i < HELD; i++)
        if (at ? r[i].at && (const char *)at >= r[i].at && (const char *)at + n <= r[i].at + r[i].bytes : !r[i].at)
            return &r[i];
    return NULL;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    enter();
    *p = NULL;
    if (forbidden())
        return leave(cudaErrorStreamCaptureUnsupported);
    size_t used = 0;
    for (size_t i = 0; i < HELD; i++)
        used += held[i].bytes;
    region *room = region_of(held, NULL, 0);
    if (room && used + bytes <= fake.memory && (*p = aligned_alloc(512, bytes)))
        *room = (region){ *p, bytes };
    return leave(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *p)
{
    enter();
    run_all();
    region *r = region_of(held, p, 0);
    if (!r || r->at != p)
        return leave(cudaErrorInvalidValue);
    *r = (region){ 0 };
    free(p);
    return leave(cudaSuccess);
}
cudaError_t cudaMemGetInfo(size_t *unused, size_t *all)
{
    *all = *unused = fake.memory;
    for (size_t i = 0; i < HELD; i++)
        *unused -= held[i].bytes;
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    enter();
    region *room = region_of(pinned, NULL, 0);
    *p = NULL;
    if (room && !fake.no_pinned && (*p = malloc(bytes)))
        *room = (region){ *p, bytes };
    return leave(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    (void)p;
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeUnregistered;
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s)
{
    enter();
    if (!region_of(kind == cudaMemcpyDeviceToHost ? pinned : held, to, n) || !region_of(kind == cudaMemcpyHostToDevice ? pinned : held, from, n))
        return leave(cudaErrorInvalidValue);
    put((fake_stream *)(void *)s, (work){ .to = to, .from = from, .n = n });
    return leave(cudaSuccess);
}
