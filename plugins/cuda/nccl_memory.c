/* plugins/cuda/nccl_memory.c: memory that NCCL sends from and receives into without copying: allocated by NCCL and registered with the
 * communicator, when there is one. Where NCCL refuses, it is ordinary memory of the GPU, and a line says so.
 *
 * Such blocks are few and long-lived (the gradients' buckets). They are not stream-ordered: before one is given back the GPU is waited for.
 */
#include "nccl_impl.h"
#include <stdio.h>

typedef struct block {
    struct block *next;
    void  *at, *handle;                                /* handle: of the registration; NULL: none                                 */
    size_t bytes;
    bool   ordinary;
} block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* of all below; taken after a state's own                               */
static block *blocks_of_nccl;
static nccl_state *enrolled;                           /* the communicator that blocks are registered with                        */

static void say_once(const char *what, const nccl_library *lib, int result)
{
    static atomic_bool said;
    const char *quiet = cuda_host->env(TD_ENV_QUIET);
    if ((!quiet || quiet[0] == '0') && !atomic_exchange(&said, true))
        cuda_host->say("%s (%s): buckets lie in ordinary memory of the GPU", what, lib ? lib->error_string(result) : "no NCCL");
}

/* Under the lock. */
static void enroll(block *b)
{
    if (b->ordinary || b->handle || !enrolled || !enrolled->comm)
        return;
    int result = enrolled->lib->enroll(enrolled->comm, b->at, b->bytes, &b->handle);
    if (result != NCCL_OK) {
        b->handle = NULL;
        say_once("NCCL does not register memory", enrolled->lib, result);
    }
}

void nccl_memory_enroll(nccl_state *s)
{
    pthread_mutex_lock(&lock);
    enrolled = s;
    for (block *b = blocks_of_nccl; b; b = b->next)
        enroll(b);
    pthread_mutex_unlock(&lock);
}

void nccl_memory_resign(nccl_state *s)
{
    pthread_mutex_lock(&lock);
    for (block *b = blocks_of_nccl; b && enrolled == s; b = b->next) {
        if (b->handle && s->comm)
            s->lib->resign(s->comm, b->handle);
        b->handle = NULL;
    }
    if (enrolled == s)
        enrolled = NULL;
    pthread_mutex_unlock(&lock);
}

void *nccl_alloc(int index, size_t bytes)
{
    char error[400];
    const nccl_library *lib = nccl_open_library(error, sizeof error);
    block *b = cuda_use(index) ? NULL : cuda_host->alloc(sizeof *b);
    if (!b)
        return NULL;
    *b = (block){ .bytes = bytes };
    int result = lib ? lib->mem_alloc(&b->at, bytes) : NCCL_OK;
    if (!lib || result != NCCL_OK) {
        if (lib)
            say_once("NCCL gives no memory", lib, result);
        cudaGetLastError();
        b->ordinary = true;
        b->at = cuda_alloc(index, bytes);
        cuda_label(index, b->at, TD_MEMORY_GRADIENTS);
    } else {
        cuda_outside((int64_t)bytes, TD_MEMORY_GRADIENTS);
    }
    cudaError_t e = b->at ? cudaMemsetAsync(b->at, 0, bytes, cuda_compute) : cudaSuccess;
    if (e != cudaSuccess)
        cuda_failed(e, "memory for collectives cannot be cleared");
    if (!b->at) {
        cuda_host->free(b);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    b->next = blocks_of_nccl;
    blocks_of_nccl = b;
    pthread_mutex_unlock(&lock);
    nccl_state *s = enrolled;
    if (s) {
        pthread_mutex_lock(&s->lock);
        pthread_mutex_lock(&lock);
        enroll(b);
        pthread_mutex_unlock(&lock);
        pthread_mutex_unlock(&s->lock);
    }
    return b->at;
}

void nccl_free(int index, void *at)
{
    char error[400];
    const nccl_library *lib = nccl_open_library(error, sizeof error);
    nccl_state *s = enrolled;
    if (s)
        pthread_mutex_lock(&s->lock);
    pthread_mutex_lock(&lock);
    block **link = &blocks_of_nccl;
    while (*link && (*link)->at != at)
        link = &(*link)->next;
    block *b = *link;
    if (b)
        *link = b->next;
    if (b && !b->ordinary)
        cudaDeviceSynchronize();
    if (b && b->handle && s && s->comm)
        s->lib->resign(s->comm, b->handle);
    pthread_mutex_unlock(&lock);
    if (s)
        pthread_mutex_unlock(&s->lock);
    if (b && b->ordinary) {
        cuda_free(index, at);
    } else if (b && cuda_use(index) == 0) {
        lib->mem_free(at);
        cuda_outside(-(int64_t)b->bytes, TD_MEMORY_GRADIENTS);
    }
    cuda_host->free(b);
}
