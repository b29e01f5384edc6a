/* plugins/cuda/times.c: what the GPU's time goes into: the time of each kernel, by name, between two events around its launch.
 *
 * Off, it costs one load a launch. On, pairs of events wait in a ring until it is full or somebody asks; then the GPU is waited for and the
 * pairs are added up by name. The two events belong to the compute stream, where nothing runs beside another, so times add up to the
 * stream's busy time. A launch that is being recorded into a CUDA graph is not timed.
 */
#include "cuda_impl.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { PAIRS = 4096, NAMES = 256 };
static struct { cudaEvent_t before, after; const char *row; } pair[PAIRS];
static td_kernel_time total[NAMES];
static int pairs, names;
static bool begun;                                     /* pair[pairs].before is recorded, its launch not yet                      */
static _Atomic bool on;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool recorded_only(void)
{
    enum cudaStreamCaptureStatus s = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(cuda_compute, &s) != cudaSuccess || s != cudaStreamCaptureStatusNone;
}

static td_kernel_time *total_of(const char *row)
{
    for (int i = 0; i < names; i++)
        if (strcmp(total[i].kernel, row) == 0)
            return &total[i];
    if (names == NAMES)
        return NULL;                                   /* more names than kernels there are                                      */
    total[names] = (td_kernel_time){ .kernel = row };
    return &total[names++];
}

/* Under the lock: waits, and adds up what is in the ring. */
static int add_up(void)
{
    cudaError_t e = pairs ? cudaEventSynchronize(pair[pairs - 1].after) : cudaSuccess;
    for (int i = 0; i < pairs && e == cudaSuccess; i++) {
        float ms = 0;
        td_kernel_time *t = total_of(pair[i].row);
        e = cudaEventElapsedTime(&ms, pair[i].before, pair[i].after);
        if (t && e == cudaSuccess) {
            t->calls++;
            t->ms += (double)ms;
        }
    }
    pairs = 0;
    return e == cudaSuccess ? 0 : cuda_failed(e, "the times of kernels cannot be had");
}

void cuda_times_before(void)
{
    if (!atomic_load_explicit(&on, memory_order_relaxed))
        return;
    pthread_mutex_lock(&lock);
    begun = false;
    if (!recorded_only() && (pairs < PAIRS || add_up() == 0))
        begun = cudaEventRecord(pair[pairs].before, cuda_compute) == cudaSuccess;
    pthread_mutex_unlock(&lock);
}

void cuda_times_after(const char *row)
{
    if (!atomic_load_explicit(&on, memory_order_relaxed))
        return;
    pthread_mutex_lock(&lock);
    if (begun && cudaEventRecord(pair[pairs].after, cuda_compute) == cudaSuccess)
        pair[pairs++].row = row;
    begun = false;
    pthread_mutex_unlock(&lock);
}

int cuda_times_begin(int index)
{
    int code = cuda_use(index);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < PAIRS && !code && !pair[i].after; i++) {
        cudaError_t e = pair[i].before ? cudaSuccess : cudaEventCreate(&pair[i].before);
        if (e == cudaSuccess)
            e = cudaEventCreate(&pair[i].after);
        if (e != cudaSuccess)
            code = cuda_failed(e, "events for the times of kernels cannot be made");
    }
    pairs = names = 0;
    begun = false;
    if (!code)
        atomic_store(&on, true);
    pthread_mutex_unlock(&lock);
    return code;
}

static int longest_first(const void *a, const void *b)
{
    double x = ((const td_kernel_time *)a)->ms, y = ((const td_kernel_time *)b)->ms;
    return (x < y) - (x > y);
}

int cuda_times_end(int index, td_kernel_time *into, int room)
{
    int code = cuda_use(index);
    pthread_mutex_lock(&lock);
    const bool was = atomic_exchange(&on, false);
    if (!code && !was)
        code = cuda_host->fail(TD_ERR_STATE, "td_kernel_times_end: the kernels of cuda:%d are not being timed (td_kernel_times_begin)", index);
    if (!code)
        code = add_up();
    qsort(total, (size_t)names, sizeof *total, longest_first);
    for (int i = 0; i < names && i < room && !code; i++)
        into[i] = total[i];
    code = code ? code : names;
    pthread_mutex_unlock(&lock);
    return code;
}
