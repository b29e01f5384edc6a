/* plugins/cuda/copy.c: bytes between host and GPU, in the order of the compute stream.
 *
 * Ordinary host memory goes through a ring of pinned buffers: the caller's bytes are taken before the call returns, and the GPU fetches them
 * when its stream gets there, while the host goes on. What the host reads is waited for. Pinned memory that the user brought is copied from and
 * to directly.
 */
#include "cuda_impl.h"
#include <pthread.h>
#include <string.h>

enum { SLOTS = 8 };
static const size_t SLOT = 2u << 20;
static struct { char *bytes; cudaEvent_t done; } slot[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int next_slot;

/* The next slot of the ring, whose earlier copy is finished. Under the lock. */
static int slot_ready(int *which)
{
    const int i = next_slot;
    next_slot = (next_slot + 1) % SLOTS;
    cudaError_t e = cudaSuccess;
    if (!slot[i].bytes) {
        e = cudaEventCreateWithFlags(&slot[i].done, cudaEventDisableTiming);
        if (e == cudaSuccess)
            e = cudaMallocHost((void **)&slot[i].bytes, SLOT);
        if (e != cudaSuccess) {
            slot[i].bytes = NULL;
            return cuda_failed(e, "pinned host memory for copies cannot be had");
        }
    } else {
        e = cudaEventSynchronize(slot[i].done);
    }
    *which = i;
    return e == cudaSuccess ? 0 : cuda_failed(e, "waiting for a copy");
}

static int to_device(char *to, const char *from, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += SLOT) {
        const size_t n = bytes - at < SLOT ? bytes - at : SLOT;
        int i, code = slot_ready(&i);
        if (code)
            return code;
        memcpy(slot[i].bytes, from + at, n);
        cudaError_t e = cudaMemcpyAsync(to + at, slot[i].bytes, n, cudaMemcpyHostToDevice, cuda_compute);
        if (e == cudaSuccess)
            e = cudaEventRecord(slot[i].done, cuda_compute);
        if (e != cudaSuccess)
            return cuda_failed(e, "a copy to the GPU");
    }
    return 0;
}

/* While one piece is copied out of its slot the next is on its way. */
static int to_host(char *to, const char *from, size_t bytes)
{
    int before = -1;
    size_t before_at = 0, before_n = 0;
    for (size_t at = 0; at < bytes || before >= 0; at += SLOT) {
        int i = -1;
        size_t n = 0;
        cudaError_t e = cudaSuccess;
        if (at < bytes) {
            n = bytes - at < SLOT ? bytes - at : SLOT;
            int code = slot_ready(&i);
            if (code)
                return code;
            e = cudaMemcpyAsync(slot[i].bytes, from + at, n, cudaMemcpyDeviceToHost, cuda_compute);
            if (e == cudaSuccess)
                e = cudaEventRecord(slot[i].done, cuda_compute);
        }
        if (e == cudaSuccess && before >= 0)
            e = cudaEventSynchronize(slot[before].done);
        if (e != cudaSuccess)
            return cuda_failed(e, "a copy from the GPU");
        if (before >= 0)
            memcpy(to + before_at, slot[before].bytes, before_n);
        before = i;
        before_at = at;
        before_n = n;
    }
    return 0;
}

static bool pinned(const void *p)
{
    struct cudaPointerAttributes a;
    bool is = cudaPointerGetAttributes(&a, p) == cudaSuccess && a.type == cudaMemoryTypeHost;
    cudaGetLastError();                                /* older drivers call ordinary memory an error                           */
    return is;
}

static int directly(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, kind, cuda_compute);
    if (e == cudaSuccess && kind != cudaMemcpyDeviceToDevice)
        e = cudaStreamSynchronize(cuda_compute);       /* the host may write the source, or read the result, when this returns       */
    return e == cudaSuccess ? 0 : cuda_failed(e, "a copy on the GPU");
}

int cuda_copy(int index, void *to, bool host_to, const void *from, bool host_from, size_t bytes)
{
    int code = cuda_use(index);
    if (code || bytes == 0)
        return code;
    if (host_to && host_from) {
        memmove(to, from, bytes);
        return 0;
    }
    if (!host_to && !host_from)
        return directly(to, from, bytes, cudaMemcpyDeviceToDevice);
    code = cuda_graph_refuses(host_to ? "the host reads memory of the GPU" : "host memory is copied to the GPU");
    if (code)
        return code;
    if (bytes > SLOT / 16 && pinned(host_to ? to : from))       /* asking is dearer than a small copy                           */
        return directly(to, from, bytes, host_to ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice);
    pthread_mutex_lock(&lock);
    code = host_to ? to_host(to, from, bytes) : to_device(to, from, bytes);
    pthread_mutex_unlock(&lock);
    return code;
}

int td__cuda_read(void *into, const void *from, size_t n)
{
    return cuda_copy(cuda_index(), into, true, from, false, n);
}
