/* plugins/cuda/blocks.c: the caching allocator (blocks.h).
 *
 * Requests up to 1 MiB are cut from pieces of 2 MiB, others from pieces of 32 MiB or of their own size, so that small blocks do not riddle
 * large pieces. The best fit among the free blocks is split; a block that comes back is merged with its free neighbours. Free blocks hang
 * in lists by size class (four to a power of two); those handed out in a table by address. Records of blocks are reused: in steady state
 * nothing is asked of anybody.
 *
 * Stream order: blocks are handed out again at once, without waiting, because all work on them is started on one stream. A stream of
 * another kind must be waited for (an event on the compute stream) before its blocks are given back.
 */
#include "blocks.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

enum { SMALL, LARGE, CLASSES = 4 * 48, BUCKETS = 8192, RECORDS = 256 };
static const size_t SMALL_MOST = 1u << 20, SMALL_PIECE = 2u << 20, LARGE_PIECE = 32u << 20, LARGE_STEP = 2u << 20;

typedef struct block {
    char *at;
    size_t size;
    bool used, kind;                                   /* SMALL or LARGE                                                      */
    const void *site;
    struct block *before, *after;                      /* neighbours in the piece                                             */
    struct block *previous, *next;                     /* in a list of free ones, a chain of used ones, or of unused records    */
} block;
typedef struct records { struct records *next; block record[RECORDS]; } records;

struct blocks {
    pthread_mutex_t lock;
    blocks_source source;
    block *free_lists[2][CLASSES], *used[BUCKETS], *unused;
    records *all;
    blocks_stats stats;
};

/* Of 2^k … 2^(k+1) four classes, in units of the alignment. */
static int class_of(size_t size)
{
    size_t units = size / BLOCKS_ALIGN;
    int k = 63 - __builtin_clzll(units);
    int quarter = k >= 2 ? (int)(units >> (k - 2) & 3) : (int)(units << (2 - k) & 3);
    int c = 4 * k + quarter;
    return c < CLASSES ? c : CLASSES - 1;
}

static size_t bucket_of(const void *at)
{
    return (size_t)((uint64_t)(uintptr_t)at / BLOCKS_ALIGN * 0x9E3779B97F4A7C15u >> 51) % BUCKETS;
}

static void link_in(block **head, block *x)
{
    x->previous = NULL;
    x->next = *head;
    if (*head)
        (*head)->previous = x;
    *head = x;
}

static void link_out(block **head, block *x)
{
    if (x->previous)
        x->previous->next = x->next;
    else
        *head = x->next;
    if (x->next)
        x->next->previous = x->previous;
}

static block **free_list(blocks *b, const block *x)
{
    return &b->free_lists[x->kind][class_of(x->size)];
}

static block *record_new(blocks *b)
{
    if (!b->unused) {
        records *more = calloc(1, sizeof *more);
        if (!more)
            return NULL;
        more->next = b->all;
        b->all = more;
        for (int i = 0; i < RECORDS; i++)
            link_in(&b->unused, &more->record[i]);
    }
    block *x = b->unused;
    link_out(&b->unused, x);
    return x;
}

/* ---- pieces ------------------------------------------------------------------------------------------------------------------------ */
/* A new piece as one free block, in no list yet. */
static block *piece_new(blocks *b, bool kind, size_t size)
{
    block *x = record_new(b);
    if (!x)
        return NULL;
    b->stats.takes++;
    void *at = b->source.take(size);
    if (!at) {
        link_in(&b->unused, x);
        return NULL;
    }
    *x = (block){ .at = at, .size = size, .kind = kind };
    b->stats.pieces++;
    b->stats.cached_bytes += (int64_t)size;
    return x;
}

static void trim(blocks *b)
{
    bool waited = false;
    for (int kind = SMALL; kind <= LARGE; kind++)
        for (int c = 0; c < CLASSES; c++)
            for (block *x = b->free_lists[kind][c], *next; x; x = next) {
                next = x->next;
                if (x->before || x->after)
                    continue;
                if (!waited)
                    b->source.idle();
                waited = true;
                link_out(&b->free_lists[kind][c], x);
                b->source.give(x->at, x->size);
                b->stats.pieces--;
                b->stats.cached_bytes -= (int64_t)x->size;
                link_in(&b->unused, x);
            }
}

/* First of a size that later requests will find useful; when that cannot be had, of what is asked. */
static block *piece_for(blocks *b, bool kind, size_t size)
{
    size_t exact = (size + LARGE_STEP - 1) / LARGE_STEP * LARGE_STEP, wish = kind == SMALL ? SMALL_PIECE : exact > LARGE_PIECE / 2 ? exact : LARGE_PIECE;
    block *x = piece_new(b, kind, wish);
    if (!x) {
        trim(b);
        x = piece_new(b, kind, wish);
    }
    if (!x && exact < wish)
        x = piece_new(b, kind, exact);
    return x;
}

/* ---- handing out --------------------------------------------------------------------------------------------------------------------- */
static block *best_fit(blocks *b, bool kind, size_t size)
{
    for (int c = class_of(size); c < CLASSES; c++) {
        block *best = NULL;
        for (block *x = b->free_lists[kind][c]; x; x = x->next)
            if (x->size >= size && (!best || x->size < best->size))
                best = x;
        if (best) {
            link_out(&b->free_lists[kind][c], best);
            return best;
        }
    }
    return NULL;
}

/* The rest of x becomes a free block of its own, if it is worth it. Without a record it stays with x. */
static void split(blocks *b, block *x, size_t size)
{
    if (x->size - size < (x->kind == SMALL ? (size_t)BLOCKS_ALIGN : SMALL_MOST))
        return;
    block *rest = record_new(b);
    if (!rest)
        return;
    *rest = (block){ .at = x->at + size, .size = x->size - size, .kind = x->kind, .before = x, .after = x->after };
    if (x->after)
        x->after->before = rest;
    x->after = rest;
    x->size = size;
    link_in(free_list(b, rest), rest);
}

void *blocks_take(blocks *b, size_t bytes, const void *site)
{
    if (bytes > SIZE_MAX / 2)
        return NULL;
    const size_t size = bytes == 0 ? BLOCKS_ALIGN : (bytes + BLOCKS_ALIGN - 1) / BLOCKS_ALIGN * BLOCKS_ALIGN;
    const bool kind = size > SMALL_MOST;
    pthread_mutex_lock(&b->lock);
    block *x = best_fit(b, kind, size);
    if (!x)
        x = piece_for(b, kind, size);
    if (x) {
        split(b, x, size);
        x->used = true;
        x->site = site;
        link_in(&b->used[bucket_of(x->at)], x);
        b->stats.live_blocks++;
        b->stats.live_bytes += (int64_t)x->size;
        b->stats.cached_bytes -= (int64_t)x->size;
        if (b->stats.peak_bytes < b->stats.live_bytes)
            b->stats.peak_bytes = b->stats.live_bytes;
    }
    pthread_mutex_unlock(&b->lock);
    return x ? x->at : NULL;
}

/* y, which follows x, becomes part of it; y is in no list. */
static void merge(blocks *b, block *x, block *y)
{
    x->size += y->size;
    x->after = y->after;
    if (y->after)
        y->after->before = x;
    link_in(&b->unused, y);
}

int blocks_give(blocks *b, void *at)
{
    pthread_mutex_lock(&b->lock);
    block **chain = &b->used[bucket_of(at)], *x = *chain;
    while (x && x->at != at)
        x = x->next;
    if (x) {
        link_out(chain, x);
        x->used = false;
        b->stats.live_blocks--;
        b->stats.live_bytes -= (int64_t)x->size;
        b->stats.cached_bytes += (int64_t)x->size;
        if (x->after && !x->after->used) {
            link_out(free_list(b, x->after), x->after);
            merge(b, x, x->after);
        }
        if (x->before && !x->before->used) {
            block *before = x->before;
            link_out(free_list(b, before), before);
            merge(b, before, x);
            x = before;
        }
        link_in(free_list(b, x), x);
    }
    pthread_mutex_unlock(&b->lock);
    return x ? 0 : -1;
}

/* ---- the rest -------------------------------------------------------------------------------------------------------------------------- */
blocks *blocks_new(const blocks_source *source)
{
    blocks *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    pthread_mutex_init(&b->lock, NULL);
    b->source = *source;
    return b;
}

void blocks_free(blocks *b)
{
    if (!b)
        return;
    for (int i = 0; i < BUCKETS; i++)
        while (b->used[i])
            blocks_give(b, b->used[i]->at);
    blocks_trim(b);
    while (b->all) {
        records *next = b->all->next;
        free(b->all);
        b->all = next;
    }
    pthread_mutex_destroy(&b->lock);
    free(b);
}

void blocks_trim(blocks *b)
{
    pthread_mutex_lock(&b->lock);
    trim(b);
    pthread_mutex_unlock(&b->lock);
}

blocks_stats blocks_count(blocks *b)
{
    pthread_mutex_lock(&b->lock);
    blocks_stats stats = b->stats;
    pthread_mutex_unlock(&b->lock);
    return stats;
}

void blocks_reset_peak(blocks *b)
{
    pthread_mutex_lock(&b->lock);
    b->stats.peak_bytes = b->stats.live_bytes;
    pthread_mutex_unlock(&b->lock);
}

int blocks_largest(blocks *b, blocks_holder *into, int n)
{
    int have = 0;
    pthread_mutex_lock(&b->lock);
    for (int i = 0; i < BUCKETS; i++)
        for (block *x = b->used[i]; x; x = x->next) {
            int k = have < n ? have++ : n;             /* insertion from the end; place n falls off                          */
            for (; k > 0 && into[k - 1].bytes < x->size; k--)
                if (k < n)
                    into[k] = into[k - 1];
            if (k < n)
                into[k] = (blocks_holder){ x->size, x->site };
        }
    pthread_mutex_unlock(&b->lock);
    return have;
}
