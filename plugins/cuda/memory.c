/* plugins/cuda/memory.c: memory of the process's GPU: blocks.c over cudaMalloc, and the sentence when there is no more.
 *
 * A block is handed out again without waiting, because kernels and copies are on one stream. When the device has no more, everything cached
 * is given back (after waiting for the GPU) and the request is tried again; then it is an error that says what is handed out for what, and
 * the lines of the program that asked for most of it.
 *
 * Asking the driver for memory while a stream is being recorded into a graph would spoil the recording, unless the thread says that it knows
 * what it does (the relaxed mode): the new memory is no part of the graph.
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
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaError_t e = cudaMalloc(&p, bytes);
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (e == cudaSuccess)
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

static void *mark(void *stream)
{
    cudaEvent_t event = cuda_event_new(cuda_index());
    if (event && cudaEventRecord(event, (cudaStream_t)stream) == cudaSuccess)
        return event;
    cuda_event_free(cuda_index(), event);
    cudaGetLastError();
    return NULL;
}

static bool passed(void *event)
{
    if (cudaEventQuery(event) == cudaErrorNotReady) {
        cudaGetLastError();                            /* no error, but it would be found as one                              */
        return false;
    }
    cuda_event_free(cuda_index(), event);              /* an error is found by the next wait, as any kernel's                    */
    return true;
}

static void make(void)
{
    static const blocks_source source = { take, give, idle, mark, passed };
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

/* ---- the report ------------------------------------------------------------------------------------------------------------------------ */
enum { HOLDERS = 32, LINES = 4 };
typedef struct { blocks_holder sum; char line[120]; } line;

/* The sums of call sites as sums of source lines, largest first; how many. */
static int lines_of(line *into)
{
    blocks_holder holder[HOLDERS];
    const int found = blocks_holders(pool, holder, HOLDERS);
    int n = 0;
    for (int i = 0; i < found; i++) {
        line l = { holder[i], "" };
        if (holder[i].tag.site)
            cuda_host->site_text(holder[i].tag.site, l.line, sizeof l.line);
        int k = 0;
        while (k < n && (into[k].sum.tag.category != l.sum.tag.category || strcmp(into[k].line, l.line) != 0))
            k++;
        if (k == n)
            into[n++] = l;
        else
            into[k].sum.bytes += l.sum.bytes, into[k].sum.blocks += l.sum.blocks;
        for (; k > 0 && into[k - 1].sum.bytes < into[k].sum.bytes; k--) {
            line t = into[k];
            into[k] = into[k - 1];
            into[k - 1] = t;
        }
    }
    return n;
}

static void exhausted(size_t bytes, int category)
{
    blocks_stats s = blocks_count(pool);
    line top[HOLDERS];
    char text[900], asked[24], live[24], cached[24], free_text[24], all_text[24], one[24];
    size_t unused = 0, all = 0, n = 0;
    cudaError_t e = cudaMemGetInfo(&unused, &all);
    if (e != cudaSuccess) {                            /* the GPU is not full, it is broken                                      */
        cuda_failed(e, "memory of the GPU cannot be had");
        return;
    }
    text[0] = '\0';
    const char *between = " (";
    for (int c = 0; c < TD_MEMORY_CATEGORIES && n < sizeof text; c++)
        if (s.part[c].live_bytes) {
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%s %s", between, td_memory_category_name((td_memory_category)c),
                                  amount((double)s.part[c].live_bytes, one));
            between = ", ";
        }
    if (n && n < sizeof text)
        n += (size_t)snprintf(text + n, sizeof text - n, ")");
    const int lines = s.live_blocks ? lines_of(top) : 0;
    for (int i = 0; i < lines && i < LINES && n < sizeof text; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s of %s%s%s", i ? ", " : "; most of it: ", amount((double)top[i].sum.bytes, one),
                              td_memory_category_name((td_memory_category)top[i].sum.tag.category), top[i].line[0] ? " from " : "", top[i].line);
    cuda_host->fail(TD_ERR_MEMORY, "cuda:%d has no memory for %s more of %s: %s of %s are free, and this process holds %s of cache and %s in %lld "
                    "blocks%s", cuda_index(), amount((double)bytes, asked), td_memory_category_name((td_memory_category)category),
                    amount((double)unused, free_text), amount((double)all, all_text), amount((double)s.cached_bytes, cached),
                    amount((double)s.live_bytes, live), (long long)s.live_blocks, text);
}

/* ---- blocks ------------------------------------------------------------------------------------------------------------------------------ */
static bool make_pool(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make);
    return pool != NULL;
}

static void *alloc_as(int index, size_t bytes, int category)
{
    if (cuda_use(index))
        return NULL;
    if (!make_pool()) {
        cuda_host->fail(TD_ERR_MEMORY, "host memory for the allocator of cuda:%d cannot be had", index);
        return NULL;
    }
    void *p = blocks_take(pool, bytes, (blocks_tag){ cuda_host->site(), category });
    if (!p)
        exhausted(bytes, category);
    return p;
}

void *cuda_alloc(int index, size_t bytes)
{
    return alloc_as(index, bytes, cuda_host->memory_now());
}

/* A block that comes back after its stream's work was waited for, or whose streams were recorded. */
void cuda_free(int index, void *block)
{
    if (!block || cuda_use(index))
        return;
    if (!pool || blocks_give(pool, block))
        cuda_host->fail(TD_ERR_INTERNAL, "a block comes back to cuda:%d that it never handed out", index);
}

void cuda_label(int index, void *block, td_memory_category category)
{
    if (block && pool && index == cuda_index() && blocks_label(pool, block, (int)category))
        cuda_host->fail(TD_ERR_INTERNAL, "a block of cuda:%d that it never handed out is said to be of %s", index, td_memory_category_name(category));
}

void cuda_outside(int64_t bytes, td_memory_category category)
{
    if (make_pool())
        blocks_outside(pool, bytes, (int)category);
}

int cuda_record(int index, void *block, void *stream)
{
    int code = cuda_use(index);
    if (code || !block || !stream || stream == (void *)cuda_compute)
        return code;
    return pool && blocks_record(pool, block, stream) == 0
        ? 0 : cuda_host->fail(TD_ERR_INTERNAL, "cuda:%d: a stream is said to use a block that was never handed out, or is one of too many", index);
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
    for (int c = 0; c < TD_MEMORY_CATEGORIES; c++)
        into->part[c] = (td_memory_part){ s.part[c].live_bytes, s.part[c].peak_bytes };
    return 0;
}

void cuda_memory_reset_peak(int index)
{
    if (index == cuda_index() && pool)
        blocks_reset_peak(pool);
}

void cuda_memory_trim(int index)
{
    if (index == cuda_index() && pool && cuda_use(index) == 0)
        blocks_trim(pool);
}

/* ---- scratch ----------------------------------------------------------------------------------------------------------------------------- */
void *cuda_hold_begin(void)
{
    return make_pool() ? blocks_hold_begin(pool) : NULL;
}

void cuda_hold_end(void *hold)
{
    blocks_hold_end(pool, hold);
}

void cuda_hold_release(void *hold)
{
    if (hold)
        blocks_hold_release(pool, hold);
}

void *td__cuda_scratch(size_t bytes)
{
    return alloc_as(cuda_index(), bytes, TD_MEMORY_WORKSPACE);
}

void td__cuda_scratch_free(void *block)
{
    cuda_free(cuda_index(), block);
}
