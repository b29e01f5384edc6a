/* base/pool.c: the caching allocator under CPU tensors and small objects.
 *
 * A block is a 64-byte header and a payload. Up to 32 KiB its size is rounded up to a size class: multiples of 64 bytes up to 1 KiB,
 * then 8 classes for each power of two (under 1/8 wasted). Such blocks are carved from chunks of 1 MiB that stay with the
 * process; a freed one goes to its class's free list and is handed out again last in, first out. Larger ones are pool_heap.c's, which td_memory_trim
 * gives back where they are free. A step that repeats asks the system for nothing.
 * One mutex guards it all: a training step makes some hundred requests, a lock and a list cost tens of nanoseconds.
 *
 * Under AddressSanitizer freed payloads, live headers and the rounding are poisoned, and the system's memory comes from
 * malloc, so that leak detection looks into it for pointers.
 */
#include "pool_plan.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define POISON TD__POISON
#define UNPOISON TD__UNPOISON

enum {
    HEADER = TD__POOL_HEADER,
    STEP = 64,                                 /* of the linear classes */
    LINEAR = 16,                               /* 64 … 1024 */
    PER_DOUBLING = 8,
    FIRST_SHIFT = 10,                          /* 1024 = 1 << 10, where the geometric classes begin */
    SMALL_SHIFT = 15,
    SMALL = 1 << SMALL_SHIFT,                  /* the largest payload that is carved from a chunk */
    CLASSES = LINEAR + (SMALL_SHIFT - FIRST_SHIFT) * PER_DOUBLING,
    MOST_SHIFT = 45,                           /* no request is larger */
    CHUNK = 1 << 20
};
#define LIVE 0x6576694c64546b42u
#define FREE 0x6565724664546b42u

typedef td__block block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block *free_list[CLASSES];
static char *chunk;                            /* where the next small block is carved … */
static size_t chunk_left;                      /* … and what remains */
static td_memory_stats stats;                  /* all but live_tensors, and the heap's part of what is cached and of calls */
static td__heap_stats heap;
static int64_t fail_after = -1;
static _Atomic int64_t live_tensors;
__thread td_memory_category td__memory_now;
_Static_assert(TD_MEMORY_CATEGORIES <= TD_COUNT(stats.part), "td_memory_stats has no room for another category");

/* ---- size classes ------------------------------------------------------------------------------------------------------ */

static uint32_t class_of(size_t bytes)
{
    if (bytes <= (size_t)LINEAR * STEP)
        return bytes == 0 ? 0 : (uint32_t)((bytes - 1) / STEP);
    unsigned shift = 63u - (unsigned)__builtin_clzll(bytes - 1);             /* 1 << shift <= bytes - 1 < 2 << shift */
    size_t step = ((size_t)1 << shift) / PER_DOUBLING;
    return (uint32_t)(LINEAR + (shift - FIRST_SHIFT) * PER_DOUBLING + (bytes - 1 - ((size_t)1 << shift)) / step);
}

static size_t class_size(uint32_t class)
{
    if (class < LINEAR)
        return (size_t)(class + 1) * STEP;
    unsigned shift = FIRST_SHIFT + (class - LINEAR) / PER_DOUBLING;
    return ((size_t)1 << shift) + ((class - LINEAR) % PER_DOUBLING + 1) * (((size_t)1 << shift) / PER_DOUBLING);
}

static void *payload_of(block *b)
{
    return (char *)b + HEADER;
}

static size_t payload_size(const block *b)
{
    return b->room ? b->room - HEADER : class_size(b->class);
}

static char *new_chunk(void)
{
    stats.system_calls++;
#ifdef __SANITIZE_ADDRESS__
    return aligned_alloc(HEADER, CHUNK);
#else
    void *p = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
#endif
}

/* ---- getting and putting back, under the lock ----------------------------------------------------------------------------- */

static void put(block *b)
{
    b->magic = FREE;
    POISON(payload_of(b), payload_size(b));
    if (b->room) {
        td__heap_put(&heap, b);
        return;
    }
    b->next = free_list[b->class];
    free_list[b->class] = b;
    stats.cached_bytes += (int64_t)class_size(b->class);
}

/* A chunk's remainder that is too small for this request becomes the largest free block that fits into it. */
static void use_up_chunk(void)
{
    if (chunk_left >= HEADER + STEP) {
        uint32_t class = class_of(chunk_left - HEADER);
        if (class_size(class) > chunk_left - HEADER)
            class--;
        block *b = (block *)chunk;
        *b = (block){ .class = class };
        put(b);
    }
    chunk_left = 0;
}

static block *carve(uint32_t class)
{
    size_t whole = HEADER + class_size(class);
    if (chunk_left < whole) {
        char *fresh = new_chunk();
        if (!fresh)
            return NULL;
        use_up_chunk();
        chunk = fresh;
        chunk_left = CHUNK;
    }
    block *b = (block *)chunk;
    chunk += whole;
    chunk_left -= whole;
    return b;
}

static block *get(size_t bytes, bool *zeroed)
{
    *zeroed = false;
    if (fail_after > 0 && --fail_after == 0) {
        fail_after = -1;
        return NULL;
    }
    block *b;
    if (bytes > SMALL) {
        b = td__heap_get(&heap, bytes, zeroed);
        if (!b) {                              /* what is kept for other sizes may be what is missing */
            td__heap_trim(&heap);
            b = td__heap_get(&heap, bytes, zeroed);
        }
        if (!b)
            return NULL;
        b->magic = LIVE;
        b->log = NULL;
        b->bytes = bytes;
    } else {
        const uint32_t class = class_of(bytes);
        b = free_list[class];
        if (b) {
            free_list[class] = b->next;
            stats.cached_bytes -= (int64_t)class_size(class);
        } else if (!(b = carve(class))) {
            return NULL;
        }
        *b = (block){ .magic = LIVE, .class = class, .bytes = bytes };
    }
    stats.live_bytes += (int64_t)bytes;
    if (stats.live_bytes > stats.peak_bytes)
        stats.peak_bytes = stats.live_bytes;
    return b;
}

static void count(td_memory_category category, int64_t bytes)
{
    td_memory_part *part = &stats.part[category];
    part->live_bytes += bytes;
    if (part->peak_bytes < part->live_bytes)
        part->peak_bytes = part->live_bytes;
}

static void *request(size_t bytes, td_memory_category category, bool zero)
{
    block *b = NULL;
    bool zeroed = false;
    if (td__pool_now.plan) {
        void *p = td__pool_planned(bytes);
        if (p)
            return zero ? memset(p, 0, bytes) : p;
    }
    const bool noted = td__pool_now.log && !td__pool_log_room();
    pthread_mutex_lock(&lock);
    int64_t live = stats.live_bytes;
    if (bytes <= (size_t)1 << MOST_SHIFT)
        b = get(bytes, &zeroed);
    if (b) {
        b->category = category;
        count(category, (int64_t)bytes);
        if (noted)
            td__pool_note(b, HEADER + payload_size(b));
    }
    pthread_mutex_unlock(&lock);
    if (!b) {
        td__fail(TD_ERR_MEMORY, "memory: %zu bytes cannot be had, %lld are in use by tensors", bytes, (long long)live);
        return NULL;
    }
    void *p = payload_of(b);
    UNPOISON(p, bytes);
    POISON((char *)p + bytes, payload_size(b) - bytes);
    POISON(b, HEADER);
    if (zero && !zeroed)
        memset(p, 0, bytes);
    return p;
}

/* A pointer that is not a live block is our own bug, and going on would corrupt the user's data. */
static block *live_block(void *p, const char *who)
{
    block *b = (block *)((char *)p - HEADER);
    UNPOISON(b, HEADER);
    if (b->magic != LIVE && b->magic != TD__BLOCK_PLANNED) {
        td__say("%s: %p is %s (a bug in Tandem)", who, p, b->magic == FREE ? "freed already" : "not a block of the pool");
        abort();
    }
    return b;
}

/* ---- what the other rooms see ------------------------------------------------------------------------------------------------- */

void *td__alloc(size_t bytes)
{
    return request(bytes, TD_MEMORY_OTHER, false);
}

void *td__calloc(size_t bytes)
{
    return request(bytes, TD_MEMORY_OTHER, true);
}

void *td__alloc_as(size_t bytes, td_memory_category category)
{
    return request(bytes, category, false);
}

void td__pool_label(void *p, td_memory_category category)
{
    block *b = live_block(p, "td__pool_label");
    if (b->magic != LIVE) {                    /* a planned one counts as part of its plan's memory                            */
        POISON(b, HEADER);
        return;
    }
    pthread_mutex_lock(&lock);
    count(b->category, -(int64_t)b->bytes);
    count(category, (int64_t)b->bytes);
    b->category = category;
    pthread_mutex_unlock(&lock);
    POISON(b, HEADER);
}

void td__free(void *p)
{
    if (!p)
        return;
    block *b = live_block(p, "td__free");
    if (b->magic != LIVE) {
        td__pool_planned_free(b);
        return;
    }
    pthread_mutex_lock(&lock);
    if (b->log)
        td__pool_note_freed(b);
    stats.live_bytes -= (int64_t)b->bytes;
    count(b->category, -(int64_t)b->bytes);
    put(b);
    pthread_mutex_unlock(&lock);
}

void td__pool_forget(td__pool_log *log)
{
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < log->n; i++) {
        block *b = td__pool_noted_at(log, i)->block;
        if (!b)
            continue;
        UNPOISON(b, HEADER);
        b->log = NULL;
        POISON(b, HEADER);
        td__pool_noted_at(log, i)->block = NULL;
    }
    pthread_mutex_unlock(&lock);
}

void *td__grow(void *old, size_t old_bytes, size_t new_bytes)
{
    void *fresh = td__alloc(new_bytes);
    if (!fresh)
        return NULL;
    if (old)
        memcpy(fresh, old, old_bytes < new_bytes ? old_bytes : new_bytes);
    td__free(old);
    return fresh;
}

char *td__strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = td__alloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

void td__count_tensor(int delta)
{
    atomic_fetch_add_explicit(&live_tensors, delta, memory_order_relaxed);
}

void td__pool_fail_after(int64_t n)
{
    pthread_mutex_lock(&lock);
    fail_after = n;
    pthread_mutex_unlock(&lock);
}

td_memory_stats td_memory(void)
{
    pthread_mutex_lock(&lock);
    td_memory_stats now = stats;
    const td__heap_stats heap_now = heap;
    pthread_mutex_unlock(&lock);
    now.cached_bytes += heap_now.cached;
    now.system_calls += heap_now.calls;
    now.live_tensors = atomic_load_explicit(&live_tensors, memory_order_relaxed);
    return now;
}

void td_memory_reset_peak(void)
{
    pthread_mutex_lock(&lock);
    stats.peak_bytes = stats.live_bytes;
    for (int i = 0; i < TD_MEMORY_CATEGORIES; i++)
        stats.part[i].peak_bytes = stats.part[i].live_bytes;
    pthread_mutex_unlock(&lock);
}

void td_memory_trim(void)
{
    pthread_mutex_lock(&lock);
    td__heap_trim(&heap);
    pthread_mutex_unlock(&lock);
}

const char *td_memory_category_name(td_memory_category category)
{
    static const char *const names[] = { "other", "parameters", "gradients", "optimizer", "activations", "data", "workspace" };
    _Static_assert(TD_COUNT(names) == TD_MEMORY_CATEGORIES, "a category without a name");
    return (unsigned)category < TD_COUNT(names) ? names[category] : "?";
}
