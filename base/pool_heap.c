/* base/pool_heap.c: the pool's larger blocks.
 *
 * Regions of address space are cut into blocks side by side. A request takes the smallest free block that is large enough and leaves the rest; a block
 * that is given back merges with free neighbours. So what one part of a step has given back serves another, whatever the sizes, and the process holds
 * little more than what lives at the same time at the most. The end of a region is its *wild* part: nobody's, and mostly never touched; it is taken
 * last. A step that repeats settles, and then touches nothing new.
 *
 * A region asks for huge pages: one page fault instead of 512, and a product that walks a matrix by columns finds its pages in the processor's table.
 * Trimming gives the system the pages of free blocks (their headers stay), and regions in which nothing lives.
 *
 * Under AddressSanitizer each block is the system's own, so that it knows their borders.
 */
#include "pool_plan.h"
#include <sys/mman.h>
#include <stdlib.h>

enum {
    HEADER = TD__POOL_HEADER,
    LINE = 64,
    PAGE = 4096,
    LEAST = 4096,                              /* a smaller rest stays with its block                                       */
    HUGE_PAGE = 2 << 20,
    REGION = 256 << 20
};
typedef td__block block;
enum { LIVES = 1, FREE = 2 };                  /* block.state                                                              */

#ifdef __SANITIZE_ADDRESS__

static block *kept;

block *td__heap_get(td__heap_stats *s, size_t bytes, bool *zeroed)
{
    const size_t room = HEADER + (bytes + LINE - 1) / LINE * LINE;
    *zeroed = false;
    for (block **at = &kept; *at; at = &(*at)->next)
        if ((*at)->room == room) {
            block *b = *at;
            *at = b->next;
            s->cached -= (int64_t)room;
            return b;
        }
    s->calls++;
    block *b = aligned_alloc(HEADER, room);
    if (b)
        *b = (block){ .room = room };
    return b;
}

void td__heap_put(td__heap_stats *s, block *b)
{
    b->next = kept;
    kept = b;
    s->cached += (int64_t)b->room;
}

void td__heap_trim(td__heap_stats *s)
{
    while (kept) {
        block *b = kept;
        kept = b->next;
        s->cached -= (int64_t)b->room;
        TD__UNPOISON(b, b->room);
        free(b);
    }
}

#else

/* At the beginning of its memory. */
typedef struct region {
    struct region *next;
    char  *end, *wild, *touched;               /* from `touched` on, if that is behind wild, all is zero                        */
    block *last;                               /* in front of wild; NULL: none                                              */
} region;
_Static_assert(sizeof(region) <= HEADER, "blocks of a region begin on a line");

enum { FIRST_SHIFT = 12, PER_DOUBLING = 8, BINS = (48 - FIRST_SHIFT) * PER_DOUBLING };
static block *bin[BINS];                       /* by size, doubly linked                                                    */
static region *regions;

/* ---- free blocks by size ---------------------------------------------------------------------------------------------------- */

/* Of blocks of that size, or larger up to the next bin's. */
static unsigned bin_of(size_t room)
{
    unsigned shift = 63u - (unsigned)__builtin_clzll(room);
    return (shift - FIRST_SHIFT) * PER_DOUBLING + (unsigned)(room >> (shift - 3) & 7);
}

static void link_free(block *b)
{
    block **first = &bin[bin_of(b->room)];
    b->state = FREE;
    b->previous = NULL;
    b->next = *first;
    if (*first)
        (*first)->previous = b;
    *first = b;
}

static void unlink_free(block *b)
{
    *(b->previous ? &b->previous->next : &bin[bin_of(b->room)]) = b->next;
    if (b->next)
        b->next->previous = b->previous;
}

static block *smallest(size_t room)
{
    for (unsigned i = bin_of(room); i < BINS; i++) {
        block *best = NULL;
        for (block *b = bin[i]; b; b = b->next)
            if (b->room >= room && (!best || b->room < best->room))
                best = b;
        if (best)
            return best;
    }
    return NULL;
}

/* ---- regions ------------------------------------------------------------------------------------------------------------------ */

static region *region_new(size_t bytes)
{
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *wide = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (wide == MAP_FAILED)
        return NULL;
    const size_t before = -(uintptr_t)wide & (HUGE_PAGE - 1);
    char *base = wide + before;
    if (before)
        munmap(wide, before);
    munmap(base + bytes, HUGE_PAGE - before);
    madvise(base, bytes, MADV_HUGEPAGE);
    region *r = (region *)base;
    *r = (region){ .next = regions, .end = base + bytes, .wild = base + HEADER, .touched = base + HEADER };
    return regions = r;
}

static region *region_of(const block *b)
{
    region *r = regions;
    while ((const char *)b < (const char *)r || (const char *)b >= r->end)
        r = r->next;
    return r;
}

/* Where the least of it is new, or else a new one. */
static region *roomy_region(td__heap_stats *s, size_t room)
{
    region *best = NULL;
    for (region *r = regions; r; r = r->next)
        if ((size_t)(r->end - r->wild) >= room && (!best || r->touched - r->wild > best->touched - best->wild))
            best = r;
    if (best)
        return best;
    s->calls++;
    best = room + HEADER < REGION ? region_new(REGION) : NULL;
    return best ? best : region_new(room + HEADER);
}

/* ---- blocks ------------------------------------------------------------------------------------------------------------------------ */

static block *from_wild(td__heap_stats *s, size_t room, bool *zeroed)
{
    region *r = roomy_region(s, room);
    if (!r)
        return NULL;
    block *b = (block *)r->wild;
    char *end = r->wild + room;
    *zeroed = r->wild >= r->touched;
    s->cached -= (r->touched < end ? r->touched : end) - r->wild;
    if (r->touched < end) {
        r->touched = end;
        s->calls++;
    }
    *b = (block){ .room = room, .before = r->last };
    r->last = b;
    r->wild = end;
    return b;
}

static block *after(const block *b, const region *r)
{
    char *next = (char *)(uintptr_t)b + b->room;
    return next < r->wild ? (block *)next : NULL;
}

/* `bytes` of a free block: how much of it the process holds */
block *td__heap_get(td__heap_stats *s, size_t bytes, bool *zeroed)
{
    const size_t room = HEADER + (bytes + LINE - 1) / LINE * LINE;
    block *b = smallest(room);
    *zeroed = false;
    if (!b) {
        b = from_wild(s, room, zeroed);
        if (b)
            b->state = LIVES;
        return b;
    }
    unlink_free(b);
    s->cached -= (int64_t)b->bytes;
    b->state = LIVES;
    if (b->room - room >= LEAST) {
        block *rest = (block *)((char *)b + room), *next = (block *)((char *)b + b->room);
        *rest = (block){ .magic = b->magic, .room = b->room - room, .before = b, .bytes = b->bytes > room ? b->bytes - room : 0 };
        s->cached += (int64_t)rest->bytes;
        next->before = rest;                   /* there is one: free blocks at the end are wild                             */
        b->room = room;
        link_free(rest);
    }
    return b;
}

void td__heap_put(td__heap_stats *s, block *b)
{
    region *r = region_of(b);
    block *next = after(b, r), *before = b->before;
    b->bytes = b->room;
    s->cached += (int64_t)b->room;
    if (next && next->state == FREE) {
        unlink_free(next);
        b->room += next->room;
        b->bytes += next->bytes;
    }
    if (before && before->state == FREE) {
        unlink_free(before);
        before->room += b->room;
        before->bytes += b->bytes;
        b = before;
    }
    next = after(b, r);
    if (next) {
        next->before = b;
        link_free(b);
        return;
    }
    s->cached += (int64_t)(b->room - b->bytes);
    r->wild = (char *)b;
    r->last = b->before;
}

/* ---- giving back --------------------------------------------------------------------------------------------------------------------- */

static char *up(char *p)
{
    return (char *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE);
}

/* The whole pages; how many bytes they were. */
static size_t give(char *from, char *to)
{
    char *low = up(from), *high = (char *)((uintptr_t)to / PAGE * PAGE);
    if (high <= low || madvise(low, (size_t)(high - low), MADV_DONTNEED))
        return 0;
    return (size_t)(high - low);
}

void td__heap_trim(td__heap_stats *s)
{
    for (unsigned i = 0; i < BINS; i++)
        for (block *b = bin[i]; b; b = b->next) {
            const size_t given = b->bytes > 2 * PAGE ? give((char *)b + HEADER, (char *)b + b->room) : 0, left = b->room - given;
            if (given && left < b->bytes) {
                s->cached -= (int64_t)(b->bytes - left);
                b->bytes = left;
            }
        }
    for (region **at = &regions; *at;) {
        region *r = *at;
        if (!r->last) {
            *at = r->next;
            s->cached -= r->touched - r->wild;
            munmap(r, (size_t)(r->end - (char *)r));
            continue;
        }
        if (give(r->wild, up(r->touched))) {
            s->cached -= r->touched - up(r->wild);
            r->touched = up(r->wild);
        }
        at = &r->next;
    }
}

#endif
