/* plugins/cuda/trap.c: the record of index checks (tensor/cuda/trap_record.h): made before the first check, looked at without waiting, cleared in
 * stream order.
 *
 * Kernels write the copy in pinned host memory, which every GPU of a 64-bit Linux reaches by the same address.
 */
#include "cuda_impl.h"
#include <pthread.h>
#include <string.h>

static td_trap_record *device_record, *seen, *clean;       /* in device memory; in pinned memory: what kernels copy, what clearing copies */
static atomic_llong launches;
static _Atomic(td_trap_record *) ready;

static void make(void)
{
    void *host = NULL, *device = NULL;
    cudaError_t e = cudaMallocHost(&host, 2 * sizeof *seen);
    if (e == cudaSuccess)
        e = cudaMalloc(&device, sizeof *device_record);
    if (e == cudaSuccess) {
        memset(host, 0, 2 * sizeof *seen);
        seen = host;
        clean = seen + 1;
        clean->seen = seen;
        e = cudaMemcpyAsync(device, clean, sizeof *clean, cudaMemcpyHostToDevice, cuda_compute);
    }
    if (e != cudaSuccess) {
        cuda_failed(e, "the record of index checks cannot be made");
        return;
    }
    device_record = device;
    atomic_store(&ready, device_record);
}

td_trap_record *td__cuda_trap(int64_t *launch)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    cuda_use(cuda_index());
    pthread_once(&once, make);
    *launch = atomic_fetch_add(&launches, 1) + 1;
    return atomic_load(&ready);
}

const int32_t *td__cuda_trap_word(void)
{
    td_trap_record *r = atomic_load(&ready);
    return r ? &r->set : NULL;
}

/* A kernel that failed has nothing more to say: whoever waits next tells of it. */
bool cuda_trapped(bool wait, td_trapped *into)
{
    if (!atomic_load(&ready) || cuda_use(cuda_index()))
        return false;
    if (wait && cudaStreamSynchronize(cuda_compute) != cudaSuccess)
        return false;
    if (!*(volatile int32_t *)&seen->set)
        return false;
    if (!wait && cudaStreamSynchronize(cuda_compute) != cudaSuccess)      /* an earlier index of the same launch may be on its way     */
        return false;
    *into = (td_trapped){ seen->check, seen->position, seen->value };
    return true;
}

void cuda_trap_clear(void)
{
    if (!atomic_load(&ready))
        return;
    seen->set = 0;
    cudaError_t e = cudaMemcpyAsync(device_record, clean, sizeof *clean, cudaMemcpyHostToDevice, cuda_compute);
    if (e != cudaSuccess)
        cuda_failed(e, "the record of index checks cannot be cleared");
}
