/* plugins/cuda/nccl_memory.c: memory that NCCL sends from and receives into without copying: allocated by NCCL and registered with every
 * communicator that there is. Where NCCL refuses, it is ordinary memory of the GPU, and a line says so.
 *
 * Such blocks are few and long-lived (the gradients' buckets). They are not stream-ordered: before one is given back the GPU is waited for.
 * Locks are taken in this order: the list of communicators, a communicator's own, the list of blocks.
 */
#include "nccl_impl.h"
#include <stdio.h>

typedef struct registration {
    struct registration *next;
    nccl_state *with;
    void *handle;
} registration;

typedef struct block {
    struct block *next;
    void  *at;
    size_t bytes;
    bool   ordinary;
    registration *registered;
} block;

static pthread_mutex_t members = PTHREAD_MUTEX_INITIALIZER;    /* of the list of communicators                                    */
static nccl_state *enrolled;                           /* … that blocks are registered with                                       */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;       /* of the blocks                                                   */
static block *blocks_of_nccl;

static void say_once(const char *what, const nccl_library *lib, int result)
{
    static atomic_bool said;
    const char *quiet = cuda_host->env(TD_ENV_QUIET);
    if ((!quiet || quiet[0] == '0') && !atomic_exchange(&said, true))
        cuda_host->say("%s (%s): buckets lie in ordinary memory of the GPU", what, lib ? lib->error_string(result) : "no NCCL");
}

/* Under the locks of s and of the blocks. */
static void enroll(block *b, nccl_state *s)
{
    registration *r = b->ordinary || !s->comm ? NULL : cuda_host->alloc(sizeof *r);
    if (!r)
        return;
    *r = (registration){ .next = b->registered, .with = s };
    int result = s->lib->enroll(s->comm, b->at, b->bytes, &r->handle);
    if (result == NCCL_OK) {
        b->registered = r;
        return;
    }
    cuda_host->free(r);
    say_once("NCCL does not register memory", s->lib, result);
}

void nccl_memory_enroll(nccl_state *s)
{
    pthread_mutex_lock(&members);
    s->next = enrolled;
    enrolled = s;
    pthread_mutex_lock(&s->lock);
    pthread_mutex_lock(&lock);
    for (block *b = blocks_of_nccl; b; b = b->next)
        enroll(b, s);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&members);
}

/* Those of s (NULL: all) are taken off the block; the caller ends them. */
static registration *take_off(block *b, const nccl_state *s)
{
    registration *off = NULL;
    for (registration **at = &b->registered; *at;) {
        registration *r = *at;
        if (s && r->with != s) {
            at = &r->next;
            continue;
        }
        *at = r->next;
        r->next = off;
        off = r;
    }
    return off;
}

/* Under the lock of s. */
static void end_one(registration *r)
{
    if (r->with->comm && r->handle)
        r->with->lib->resign(r->with->comm, r->handle);
    cuda_host->free(r);
}

void nccl_memory_resign(nccl_state *s)
{
    pthread_mutex_lock(&lock);
    for (block *b = blocks_of_nccl; b; b = b->next)
        for (registration *r = take_off(b, s), *next; r; r = next) {
            next = r->next;
            end_one(r);
        }
    pthread_mutex_unlock(&lock);
}

void nccl_memory_leave(nccl_state *s)
{
    pthread_mutex_lock(&members);
    for (nccl_state **at = &enrolled; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    pthread_mutex_unlock(&members);
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
    void *at = b->at;
    pthread_mutex_lock(&members);
    pthread_mutex_lock(&lock);
    b->next = blocks_of_nccl;
    blocks_of_nccl = b;
    pthread_mutex_unlock(&lock);
    for (nccl_state *s = enrolled; s; s = s->next) {
        pthread_mutex_lock(&s->lock);
        pthread_mutex_lock(&lock);
        enroll(b, s);
        pthread_mutex_unlock(&lock);
        pthread_mutex_unlock(&s->lock);
    }
    pthread_mutex_unlock(&members);
    return at;
}

void nccl_free(int index, void *at)
{
    char error[400];
    const nccl_library *lib = nccl_open_library(error, sizeof error);
    pthread_mutex_lock(&members);                      /* so that none of the communicators ends meanwhile                        */
    pthread_mutex_lock(&lock);
    block **link = &blocks_of_nccl;
    while (*link && (*link)->at != at)
        link = &(*link)->next;
    block *b = *link;
    if (b)
        *link = b->next;
    registration *off = b ? take_off(b, NULL) : NULL;
    pthread_mutex_unlock(&lock);
    if (b && !b->ordinary)
        cudaDeviceSynchronize();
    for (registration *r = off, *next; r; r = next) {
        next = r->next;
        nccl_state *s = r->with;
        pthread_mutex_lock(&s->lock);
        end_one(r);
        pthread_mutex_unlock(&s->lock);
    }
    pthread_mutex_unlock(&members);
    if (b && b->ordinary) {
        cuda_free(index, at);
    } else if (b && cuda_use(index) == 0) {
        lib->mem_free(at);
        cuda_outside(-(int64_t)b->bytes, TD_MEMORY_GRADIENTS);
    }
    cuda_host->free(b);
}
