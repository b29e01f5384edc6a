/* tests/cuda/fake_gpu.c: fake_gpu.h. As much of the runtime as the plug-in's streams, memory, copies and collectives call. */
#include "fake_gpu.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int fake_gpu_delay_us[2], fake_gpu_devices = 1;
typedef struct piece { struct piece *next; void (*work)(void *); void *argument; struct stream *after; uint64_t until; bool prompt; } piece;
typedef struct stream { pthread_t thread; pthread_cond_t news, done; piece *head, *tail; uint64_t asked, finished; bool high, stop; struct stream *next; } stream;
typedef struct { stream *on; uint64_t at; _Atomic double ms; } event;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static stream *streams;

static void *run(void *of)
{
    stream *s = of;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!s->head && !s->stop)
            pthread_cond_wait(&s->news, &lock);
        piece *p = s->head;
        if (!p)
            break;
        s->head = p->next;
        while (p->after && p->after->finished < p->until)
            pthread_cond_wait(&p->after->done, &lock);
        pthread_mutex_unlock(&lock);
        if (p->work) {
            if (fake_gpu_delay_us[s->high] && !p->prompt)
                usleep((useconds_t)fake_gpu_delay_us[s->high]);
            p->work(p->argument);
        }
        free(p->argument);
        pthread_mutex_lock(&lock);
        free(p);
        s->finished++;
        pthread_cond_broadcast(&s->done);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void put(stream *s, piece p)
{
    piece *made = malloc(sizeof *made);
    if (!made)
        abort();
    *made = p;
    made->next = NULL;
    pthread_mutex_lock(&lock);
    if (s->head)
        s->tail->next = made;
    else
        s->head = made;
    s->tail = made;
    s->asked++;
    pthread_cond_signal(&s->news);
    pthread_mutex_unlock(&lock);
}

void fake_gpu_enqueue(cudaStream_t on, void (*work)(void *), void *argument)
{
    put((stream *)(void *)on, (piece){ .work = work, .argument = argument });
}

/* ---- streams and events ------------------------------------------------------------------------------------------------------------------- */
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *into, unsigned flags, int priority)
{
    stream *s = calloc(1, sizeof *s);
    if (!s || flags != cudaStreamNonBlocking)
        return cudaErrorInvalidValue;
    s->high = priority < 0;
    pthread_cond_init(&s->news, NULL);
    pthread_cond_init(&s->done, NULL);
    pthread_create(&s->thread, NULL, run, s);
    pthread_mutex_lock(&lock);
    s->next = streams;
    streams = s;
    pthread_mutex_unlock(&lock);
    *into = (cudaStream_t)(void *)s;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0, *high = -5; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { cudaStreamSynchronize(s); return cudaSuccess; }   /* events may name it still */
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) { (void)s; *status = cudaStreamCaptureStatusNone; return cudaSuccess; }
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { (void)mode; return cudaSuccess; }

static void wait_until(stream *s, uint64_t at)
{
    pthread_mutex_lock(&lock);
    while (s && s->finished < at)
        pthread_cond_wait(&s->done, &lock);
    pthread_mutex_unlock(&lock);
}

cudaError_t cudaStreamSynchronize(cudaStream_t of)
{
    stream *s = (stream *)(void *)of;
    wait_until(s, s->asked);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void)
{
    for (stream *s = streams; s; s = s->next)
        wait_until(s, s->asked);
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { (void)flags; *e = calloc(1, sizeof(event)); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { (void)e; return cudaSuccess; }         /* a stream may have it before itself still           */
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    *ms = (float)(((event *)(void *)to)->ms - ((event *)(void *)from)->ms);
    return cudaSuccess;
}

static void stamp(void *of)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    (*(event **)of)->ms = (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    event *into = (event *)(void *)e;
    event **of = malloc(sizeof(event *));
    *of = into;
    put((stream *)(void *)s, (piece){ .work = stamp, .argument = of, .prompt = true });
    into->on = (stream *)(void *)s, into->at = into->on->asked;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    const event *of = (event *)(void *)e;
    put((stream *)(void *)s, (piece){ .after = of->on, .until = of->at });
    return flags ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    const event *of = (event *)(void *)e;
    pthread_mutex_lock(&lock);
    bool passed = !of->on || of->on->finished >= of->at;
    pthread_mutex_unlock(&lock);
    return passed ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    wait_until(((event *)(void *)e)->on, ((event *)(void *)e)->at);
    return cudaSuccess;
}

/* ---- memory -------------------------------------------------------------------------------------------------------------------------------- */
typedef struct { void *to; const void *from; size_t n; int value; } bytes;
static void move(void *of) { bytes *b = of; b->from ? memmove(b->to, b->from, b->n) : memset(b->to, b->value, b->n); }

static cudaError_t later(bytes b, cudaStream_t s)
{
    bytes *made = malloc(sizeof *made);
    *made = b;
    fake_gpu_enqueue(s, move, made);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s)
{
    (void)kind;
    return later((bytes){ .to = to, .from = from, .n = n }, s);
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t s) { return later((bytes){ .to = to, .n = n, .value = value }, s); }
cudaError_t cudaMalloc(void **p, size_t n) { *p = aligned_alloc(512, (n + 511) / 512 * 512); return *p ? cudaSuccess : cudaErrorMemoryAllocation; }
cudaError_t cudaFree(void *p) { cudaDeviceSynchronize(); free(p); return cudaSuccess; }
cudaError_t cudaMallocHost(void **p, size_t n) { *p = malloc(n); return *p ? cudaSuccess : cudaErrorMemoryAllocation; }
cudaError_t cudaMemGetInfo(size_t *unused, size_t *all) { *unused = *all = 1u << 30; return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p)
{
    (void)p;
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeUnregistered;
    return cudaSuccess;
}

/* ---- the device ---------------------------------------------------------------------------------------------------------------------------- */
cudaError_t cudaGetDeviceCount(int *n) { *n = fake_gpu_devices; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *v) { *v = 13000; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = 13000; return cudaSuccess; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
const char *cudaGetErrorString(cudaError_t e) { (void)e; return "some error"; }
const char *cudaGetErrorName(cudaError_t e) { (void)e; return "cudaErrorSome"; }
cudaError_t cudaSetDevice(int index) { return index < fake_gpu_devices ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int index)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Fake %d", index);
    p->major = 9;
    p->multiProcessorCount = 2;
    p->totalGlobalMem = (size_t)1 << 30;
    return cudaSuccess;
}
