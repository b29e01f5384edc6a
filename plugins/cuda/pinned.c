/* plugins/cuda/pinned.c: pinned host memory, which the GPU copies from and to by itself, and copies on streams of one's own.
 *
 * The driver takes its time to pin memory, and to give it back it waits for the GPU: blocks are cached by size (a power of two, from 4 KiB)
 * and stay with the process. There are few, of few sizes: batches of loaders. Who gives a block back has waited for its copies.
 */
#include "cuda_impl.h"
#include <pthread.h>

enum { SMALLEST = 12, SIZES = 48 };
typedef struct host_block { struct host_block *next; void *at; int size; } host_block;
static host_block *unused[SIZES], *used, *records;     /* records: those without memory                                         */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int size_of(size_t bytes)
{
    int k = SMALLEST;
    while (k < SIZES - 1 && (size_t)1 << k < bytes)
        k++;
    return k;
}

void *cuda_host_alloc(int index, size_t bytes)
{
    if (cuda_use(index))
        return NULL;
    const int size = size_of(bytes);
    pthread_mutex_lock(&lock);
    host_block **from = unused[size] ? &unused[size] : &records, *b = *from;
    if (b)
        *from = b->next;
    else
        b = cuda_host->alloc(sizeof *b);
    cudaError_t e = cudaSuccess;
    if (b && from != &unused[size]) {
        *b = (host_block){ .size = size };
        e = (size_t)1 << size < bytes ? cudaErrorMemoryAllocation : cudaMallocHost(&b->at, (size_t)1 << size);
    }
    if (b && e != cudaSuccess)
        b->at = NULL;
    if (b) {
        host_block **into = b->at ? &used : &records;
        b->next = *into;
        *into = b;
    }
    void *at = b ? b->at : NULL;
    pthread_mutex_unlock(&lock);
    if (e != cudaSuccess) {
        cudaGetLastError();
        cuda_host->fail(TD_ERR_MEMORY, "%zu bytes of pinned host memory cannot be had: %s (%s)", (size_t)1 << size, cudaGetErrorString(e),
                        cudaGetErrorName(e));
    }
    return at;
}

void cuda_host_free(int index, void *block)
{
    (void)index;
    if (!block)
        return;
    pthread_mutex_lock(&lock);
    host_block **at = &used, *b;
    while (*at && (*at)->at != block)
        at = &(*at)->next;
    b = *at;
    if (b) {
        *at = b->next;
        b->next = unused[b->size];
        unused[b->size] = b;
    }
    pthread_mutex_unlock(&lock);
    if (!b)
        cuda_host->fail(TD_ERR_INTERNAL, "pinned host memory comes back that was never handed out");
}

int cuda_copy_async(int index, void *to, const void *from, size_t bytes, bool to_host, void *stream)
{
    int code = cuda_use(index);
    if (code || bytes == 0)
        return code;
    cudaError_t e = cudaMemcpyAsync(to, from, bytes, to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice,
                                    stream ? (cudaStream_t)stream : cuda_compute);
    return e == cudaSuccess ? 0 : cuda_failed(e, "a copy on a stream of its own");
}
