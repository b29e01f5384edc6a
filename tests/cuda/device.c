/* tests/cuda/device.c: a made-up "cuda:0": host memory that nobody may read as such (host_memory is false), computing by the emulated kernels.
 * Registered before main, so that the tests of the rooms run on it unchanged with TANDEM_DEVICE=cuda.
 */
#include <tensor_impl.h>
#include <stdlib.h>
#include <string.h>
#include "emulate_graph.h"
#include <trap_record.h>

extern const td_kernels td__cuda_kernels;
/* How often the host has read from this device or waited for it, kernels' rows included. */
extern long td__emulated_waits;
long td__emulated_waits;

static int one(void) { return 1; }
static void *take(int index, size_t bytes)
{
    (void)index;
    void *block = td__alloc_as(bytes, td__memory_now);
    td__emulated_taken(block);
    return block;
}
static void give(int index, void *block)
{
    (void)index;
    if (!td__emulated_keeps(block, td__free))
        td__free(block);
}
static int copy(int index, void *to, bool to_host, const void *from, bool from_host, size_t bytes)
{
    (void)index;
    int code = to_host || from_host ? td__emulated_refuses(to_host ? "the host reads memory of the GPU" : "host memory is copied to the GPU") : 0;
    td__emulated_waits += to_host && !from_host;
    if (bytes && !code)
        td__emulated_move(to, from, bytes);
    return code;
}
static void label(int index, void *block, td_memory_category category) { (void)index; td__pool_label(block, category); }
static int copy_async(int index, void *to, const void *from, size_t bytes, bool to_host, void *stream)
{
    (void)to_host, (void)stream;
    return copy(index, to, false, from, false, bytes);
}
static int synchronize(int index) { (void)index; td__emulated_waits++; return td__emulated_refuses("the host waits for the GPU"); }
static int event_synchronize(int index, void *e) { (void)e; return synchronize(index); }
static char nothing;
static void *stream_new(int index, bool high) { (void)index, (void)high; return &nothing; }
static void *event_new(int index) { (void)index; return &nothing; }
static void drop(int index, void *p) { (void)index, (void)p; }
static int event(int index, void *e, void *stream) { (void)index, (void)e, (void)stream; return 0; }

/* Events with a time: a count of what was recorded, so that each is 1 ms after the one before. */
static void *event_new_timed(int index) { (void)index; return td__calloc(sizeof(double)); }
static int event_record(int index, void *e, void *stream)
{
    static double clock;
    (void)index, (void)stream;
    if (e != &nothing)
        *(double *)e = ++clock;
    return 0;
}
static void event_free(int index, void *e)
{
    (void)index;
    if (e != &nothing)
        td__free(e);
}
static int event_ms(int index, void *from, void *to, double *ms)
{
    (void)index;
    *ms = *(double *)to - *(double *)from;
    return 0;
}

/* As late as a GPU may be: nothing is seen before somebody waits, or td__emulated_late looks later. */
extern td_trap_record td__emulated_trap_seen;
void td__emulated_trap_clear(void);
int td__emulated_late;
static int looks;
static bool trapped(bool wait, td_trapped *into)
{
    if (!td__emulated_trap_seen.set || (!wait && looks++ < td__emulated_late))
        return false;
    looks = 0;
    *into = (td_trapped){ td__emulated_trap_seen.check, td__emulated_trap_seen.position, td__emulated_trap_seen.value };
    return true;
}

static int passed(int index, void *e) { (void)index, (void)e; return 1; }

static td_device_ops emulated = {
    .name = "cuda", .kind = TD_CUDA, .computes_half = true, .count = one, .alloc = take, .free = give, .copy = copy, .synchronize = synchronize,
    .stream_new = stream_new, .stream_free = drop, .event_new = event_new, .event_record = event_record, .event_wait = event, .event_free = event_free,
    .event_new_timed = event_new_timed, .event_ms = event_ms, .event_done = passed,
    .event_synchronize = event_synchronize, .label = label, .host_alloc = take, .host_free = give, .copy_async = copy_async,
    .channels_last = true, .trapped = trapped, .trap_clear = td__emulated_trap_clear, .trap_word = td__cuda_trap_word,
    .graph_begin = td__emulated_graph_begin, .graph_end = td__emulated_graph_end,
    .graph_launch = td__emulated_graph_launch, .graph_free = td__emulated_graph_free, .kernels = &td__cuda_kernels,
};

__attribute__((constructor)) static void bring(void)
{
    emulated.computes_half |= getenv("TEST_COMPUTES_HALF") != NULL;
    td__device_register(&emulated);
}
