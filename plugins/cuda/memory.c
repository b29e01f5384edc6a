/* plugins/cuda/memory.c: memory of the process's GPU: blocks.c over cudaMalloc, and the sentence when there is no more.
 *
 * A block is handed out again without waiting, because kernels and copies are on one stream. When the device has no more, everything cached
 * is given back (after waiting for the GPU) and the request is tried again; then it is an error that names what is
 * handed out and the largest holders with the lines that asked for them.
 */
#include "blocks.h"
#include "cuda_impl.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static blocks *pool;

static void *take(size_t bytes)
{
    void *p = NULL;
    if (cudaMalloc(&p, bytes) == cudaSuccess)
        return p;
    cudaGetLastError();                                /* told by whoever needed it; the next launch is not to blame               */
    return NULL;
}

static void give(void *piece, size_t bytes)
{
    (void)bytes;
    cudaFree(piece);
}

static void idle(void)
{
    cudaDeviceSynchronize();
}

static void make(void)
{
    static const blocks_source source = { take, give, idle };
    pool = blocks_new(&source);
}

static const char *amount(double bytes, char into[24])
{
    static const char *const unit[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
    int u = 0;
    for (; bytes >= 1024 && u < 4; u++)
        bytes /= 1024;
    snprintf(into, 24, u ? "%.2f %s" : "%.0f %s", bytes, unit[u]);
    return into;
}

static void exhausted(size_t bytes)
{
    enum { HOLDERS = 3 };
    blocks_stats s = blocks_count(pool);
    blocks_holder holder[HOLDERS];
    char text[600], asked[24], live[24], cached[24], free_text[24], all_text[24];
    size_t unused = 0, all = 0, n = 0;
    cudaError_t e = cudaMemGetInfo(&unused, &all);
    if (e != cudaSuccess) {                            /* the GPU is not full, it is broken                                      */
        cuda_failed(e, "memory of the GPU cannot be had");
        return;
    }
    const int holders = blocks_largest(pool, holder, HOLDERS);
    text[0] = '\0';
    for (int i = 0; i < holders && n < sizeof text; i++) {
        char size[24], site[120] = "";
        if (holder[i].site)
            cuda_host->site_text(holder[i].site, site, sizeof site);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s%s%s", i ? ", " : "; the largest: ", amount((double)holder[i].bytes, size),
                              *site ? " from " : "", site);
    }
    cuda_host->fail(TD_ERR_MEMORY, "cuda:%d has no memory for %s more: this process holds %s in %lld blocks and %s of cache, %s of %s are free%s",
                    cuda_index(), amount((double)bytes, asked), amount((double)s.live_bytes, live), (long long)s.live_blocks,
                    amount((double)s.cached_bytes, cached), amount((double)unused, free_text), amount((double)all, all_text), text);
}

void *cuda_alloc(int index, size_t bytes)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (cuda_use(index))
        return NULL;
    pthread_once(&once, make);
    if (!pool) {
        cuda_host->fail(TD_ERR_MEMORY, "host memory for the allocator of cuda:%d cannot be had", index);
        return NULL;
    }
    void *p = blocks_take(pool, bytes, cuda_host->site());
    if (!p)
        exhausted(bytes);
    return p;
}

void cuda_free(int index, void *block)
{
    if (!block || cuda_use(index))
        return;
    if (!pool || blocks_give(pool, block))
        cuda_host->fail(TD_ERR_INTERNAL, "a block comes back to cuda:%d that it never handed out", index);
}

int cuda_memory(int index, td_memory_stats *into)
{
    if (index != cuda_index() || !pool)
        return 0;                                      /* nothing yet                                                            */
    blocks_stats s = blocks_count(pool);
    into->live_bytes = s.live_bytes;
    into->peak_bytes = s.peak_bytes;
    into->cached_bytes = s.cached_bytes;
    into->system_calls = s.takes;
    return 0;
}

void *td__cuda_scratch(size_t bytes)
{
    return cuda_alloc(cuda_index(), bytes);
}

void td__cuda_scratch_free(void *block)
{
    cuda_free(cuda_index(), block);
}
