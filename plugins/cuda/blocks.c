/* plugins/cuda/blocks.c: the caching allocator (blocks.h).
 *
 * Requests up to 1 MiB are cut from pieces of 2 MiB, others from pieces of 32 MiB or of their own size, so that small blocks do not riddle
 * large pieces. The best fit among the free blocks is split; a block that comes back is merged with its free neighbours. Free blocks hang
 * in lists by size class (four to a power of two); those handed out in a table by address. Records of blocks are reused: in steady state
 * nothing is asked of anybody.
 *
 * Stream order: blocks are handed out again at once, without waiting, because all work on them is started on one stream. A block that
 * another stream uses too is recorded with it (blocks_record). When it comes back, a mark is set on that stream, and the block waits in
 * a list of its own until a later request finds the mark passed: neither the host nor the compute stream waits for it.
 *
 * A free block belongs to the common lists or to a hold's. What a hold takes is cut from the common ones and becomes its own; blocks merge
 * with neighbours of the same owner only. While a hold is open a stream is being recorded, and asking whether marks have passed, setting
 * some or waiting would spoil the recording: those wait until it is closed.
 */
#include "blocks.h"
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

enum { SMALL, LARGE, CLASSES = 4 * 48, BUCKETS = 8192, RECORDS = 256, GROUPS = 4096 };
typedef enum { FREE, USED, WAITING } block_state;
static const size_t SMALL_MOST = 1u << 20, SMALL_PIECE = 2u << 20, LARGE_PIECE = 32u << 20, LARGE_STEP = 2u << 20;

typedef struct block {
    char *at;
    size_t size;
    bool kind;                                         /* SMALL or LARGE                                                      */
    bool marked;                                       /* mark[] is set: it is WAITING, and was not given back inside a hold    */
    block_state state;
    blocks_tag tag;
    struct blocks_hold *owner;
    int streams;
    void *stream[BLOCKS_STREAMS], *mark[BLOCKS_STREAMS];
    struct block *before, *after;                      /* neighbours in the piece                                             */
    struct block *previous, *next;                     /* in a list of free or waiting ones, a chain of used ones, or of unused records */
} block;
typedef struct records { struct records *next; block record[RECORDS]; } records;

struct blocks_hold {
    block *free_lists[2][CLASSES];
    blocks_hold *next;
};
struct blocks {
    pthread_mutex_t lock;
    blocks_source source;
    blocks_hold common, *holds, *open;                 /* open: takes of the thread `opener` are this hold's                     */
    pthread_t opener;
    block *used[BUCKETS], *waiting, *unused;
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

static block **free_list(const block *x)
{
    return &x->owner->free_lists[x->kind][class_of(x->size)];
}

static void count(blocks *b, int category, int64_t bytes)
{
    blocks_part *part = &b->stats.part[category];
    part->live_bytes += bytes;
    if (part->peak_bytes < part->live_bytes)
        part->peak_bytes = part->live_bytes;
}

static void count_all(blocks *b, int category, int64_t bytes, int blocks_more)
{
    b->stats.live_blocks += blocks_more;
    b->stats.live_bytes += bytes;
    if (b->stats.peak_bytes < b->stats.live_bytes)
        b->stats.peak_bytes = b->stats.live_bytes;
    count(b, category, bytes);
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
    *x = (block){ .at = at, .size = size, .kind = kind, .owner = &b->common };
    b->stats.pieces++;
    b->stats.cached_bytes += (int64_t)size;
    return x;
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

static bool joins(const block *x, const block *y)
{
    return y && y->state == FREE && y->owner == x->owner;
}

/* x, in no list, becomes free: one block with its free neighbours. */
static void set_free(blocks *b, block *x)
{
    x->state = FREE;
    x->streams = 0;
    if (x->owner != &b->common)
        b->stats.held_bytes += (int64_t)x->size;
    if (joins(x, x->after)) {
        link_out(free_list(x->after), x->after);
        merge(b, x, x->after);
    }
    if (joins(x, x->before)) {
        block *before = x->before;
        link_out(free_list(before), before);
        merge(b, before, x);
        x = before;
    }
    link_in(free_list(x), x);
}

/* Sets the marks of what was given back inside a hold; blocks whose marks have passed become free. A mark that cannot be set is as good as
 * one that has not passed before everything has been waited for (`waited`). */
static void sweep(blocks *b, bool waited)
{
    if (b->open)
        return;
    for (block *x = b->waiting, *next; x; x = next) {
        next = x->next;
        int left = 0;
        for (int i = 0; i < x->streams; i++) {
            if (!x->marked && !waited)
                x->mark[i] = b->source.mark(x->stream[i]);
            if (x->mark[i] && b->source.passed(x->mark[i]))
                x->mark[i] = x->stream[i] = NULL;
            left += x->stream[i] != NULL;
        }
        x->marked = true;
        if (left && !waited)
            continue;
        link_out(&b->waiting, x);
        set_free(b, x);
    }
}

static void trim(blocks *b)
{
    if (b->open)
        return;
    bool waited = b->waiting != NULL;
    if (waited) {
        b->source.idle();
        sweep(b, true);
    }
    for (int kind = SMALL; kind <= LARGE; kind++)
        for (int c = 0; c < CLASSES; c++)
            for (block *x = b->common.free_lists[kind][c], *next; x; x = next) {
                next = x->next;
                if (x->before || x->after)
                    continue;
                if (!waited)
                    b->source.idle();
                waited = true;
                link_out(&b->common.free_lists[kind][c], x);
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
static block *best_fit(blocks_hold *from, bool kind, size_t size)
{
    for (int c = class_of(size); c < CLASSES; c++) {
        block *best = NULL;
        for (block *x = from->free_lists[kind][c]; x; x = x->next)
            if (x->size >= size && (!best || x->size < best->size))
                best = x;
        if (best) {
            link_out(&from->free_lists[kind][c], best);
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
    *rest = (block){ .at = x->at + size, .size = x->size - size, .kind = x->kind, .owner = x->owner, .before = x, .after = x->after };
    if (x->after)
        x->after->before = rest;
    x->after = rest;
    x->size = size;
    link_in(free_list(rest), rest);
}

static block *find(blocks *b, size_t size)
{
    const bool kind = size > SMALL_MOST;
    blocks_hold *hold = b->open && pthread_equal(b->opener, pthread_self()) ? b->open : &b->common;
    block *x = hold == &b->common ? NULL : best_fit(hold, kind, size);
    if (x) {
        split(b, x, size);
        b->stats.held_bytes -= (int64_t)x->size;
        return x;
    }
    x = best_fit(&b->common, kind, size);
    x = x ? x : piece_for(b, kind, size);
    if (x) {
        split(b, x, size);
        x->owner = hold;
    }
    return x;
}

void *blocks_take(blocks *b, size_t bytes, blocks_tag tag)
{
    if (bytes > SIZE_MAX / 2)
        return NULL;
    const size_t size = bytes == 0 ? BLOCKS_ALIGN : (bytes + BLOCKS_ALIGN - 1) / BLOCKS_ALIGN * BLOCKS_ALIGN;
    pthread_mutex_lock(&b->lock);
    if (b->waiting)
        sweep(b, false);
    block *x = find(b, size);
    if (x) {
        x->state = USED;
        x->tag = tag;
        x->streams = 0;
        link_in(&b->used[bucket_of(x->at)], x);
        b->stats.cached_bytes -= (int64_t)x->size;
        count_all(b, tag.category, (int64_t)x->size, 1);
    }
    pthread_mutex_unlock(&b->lock);
    return x ? x->at : NULL;
}

static block *used_block(blocks *b, const void *at)
{
    block *x = b->used[bucket_of(at)];
    while (x && x->at != at)
        x = x->next;
    return x;
}

int blocks_give(blocks *b, void *at)
{
    pthread_mutex_lock(&b->lock);
    block *x = used_block(b, at);
    if (x) {
        link_out(&b->used[bucket_of(at)], x);
        b->stats.cached_bytes += (int64_t)x->size;
        count_all(b, x->tag.category, -(int64_t)x->size, -1);
        if (x->streams) {
            x->state = WAITING;
            x->marked = !b->open;
            for (int i = 0; i < x->streams; i++)
                x->mark[i] = x->marked ? b->source.mark(x->stream[i]) : NULL;
            link_in(&b->waiting, x);
        } else {
            set_free(b, x);
        }
    }
    pthread_mutex_unlock(&b->lock);
    return x ? 0 : -1;
}

int blocks_label(blocks *b, void *at, int category)
{
    pthread_mutex_lock(&b->lock);
    block *x = used_block(b, at);
    if (x) {
        count(b, x->tag.category, -(int64_t)x->size);
        count(b, category, (int64_t)x->size);
        x->tag.category = category;
    }
    pthread_mutex_unlock(&b->lock);
    return x ? 0 : -1;
}

void blocks_outside(blocks *b, int64_t bytes, int category)
{
    pthread_mutex_lock(&b->lock);
    count_all(b, category, bytes, (bytes > 0) - (bytes < 0));
    pthread_mutex_unlock(&b->lock);
}

int blocks_record(blocks *b, void *at, void *stream)
{
    pthread_mutex_lock(&b->lock);
    block *x = used_block(b, at);
    int i = 0;
    while (x && i < x->streams && x->stream[i] != stream)
        i++;
    const bool fits = x && i < BLOCKS_STREAMS;
    if (fits && i == x->streams)
        x->stream[x->streams++] = stream;
    pthread_mutex_unlock(&b->lock);
    return fits ? 0 : -1;
}

/* ---- holds --------------------------------------------------------------------------------------------------------------------------- */
blocks_hold *blocks_hold_begin(blocks *b)
{
    blocks_hold *hold = calloc(1, sizeof *hold);
    pthread_mutex_lock(&b->lock);
    if (hold && !b->open) {
        hold->next = b->holds;
        b->holds = b->open = hold;
        b->opener = pthread_self();
    } else {
        free(hold);
        hold = NULL;
    }
    pthread_mutex_unlock(&b->lock);
    return hold;
}

void blocks_hold_end(blocks *b, blocks_hold *hold)
{
    pthread_mutex_lock(&b->lock);
    if (b->open == hold)
        b->open = NULL;
    pthread_mutex_unlock(&b->lock);
}

static void disown(blocks *b, block *x, const blocks_hold *hold)
{
    for (; x; x = x->next)
        if (x->owner == hold)
            x->owner = &b->common;
}

void blocks_hold_release(blocks *b, blocks_hold *hold)
{
    if (!hold)
        return;
    blocks_hold_end(b, hold);
    pthread_mutex_lock(&b->lock);
    for (int i = 0; i < BUCKETS; i++)
        disown(b, b->used[i], hold);
    disown(b, b->waiting, hold);
    for (int kind = SMALL; kind <= LARGE; kind++)
        for (int c = 0; c < CLASSES; c++)
            for (block *x; (x = hold->free_lists[kind][c]);) {
                link_out(&hold->free_lists[kind][c], x);
                b->stats.held_bytes -= (int64_t)x->size;
                x->owner = &b->common;
                set_free(b, x);
            }
    blocks_hold **at = &b->holds;
    while (*at != hold)
        at = &(*at)->next;
    *at = hold->next;
    pthread_mutex_unlock(&b->lock);
    free(hold);
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
    while (b->holds)
        blocks_hold_release(b, b->holds);
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
    for (int i = 0; i < BLOCKS_CATEGORIES; i++)
        b->stats.part[i].peak_bytes = b->stats.part[i].live_bytes;
    pthread_mutex_unlock(&b->lock);
}

static size_t group_of(blocks_tag tag)
{
    return (size_t)(((uint64_t)(uintptr_t)tag.site + (uint64_t)tag.category * 0x51ED270Bu) * 0x9E3779B97F4A7C15u >> 52) % GROUPS;
}

int blocks_holders(blocks *b, blocks_holder *into, int n)
{
    static blocks_holder group[GROUPS];                /* under the lock; a program of more lines than this loses the last ones      */
    int have = 0;
    pthread_mutex_lock(&b->lock);
    for (int i = 0; i < GROUPS; i++)
        group[i] = (blocks_holder){ 0 };
    for (int i = 0; i < BUCKETS; i++)
        for (block *x = b->used[i]; x; x = x->next) {
            size_t g = group_of(x->tag), looked = 0;
            while (group[g].blocks && (group[g].tag.site != x->tag.site || group[g].tag.category != x->tag.category) && ++looked < GROUPS)
                g = (g + 1) % GROUPS;
            if (looked == GROUPS)
                continue;
            group[g].tag = x->tag;
            group[g].bytes += (int64_t)x->size;
            group[g].blocks++;
        }
    for (int i = 0; i < GROUPS; i++) {
        if (!group[i].blocks)
            continue;
        int k = have < n ? have++ : n;                 /* insertion from the end; place n falls off                          */
        for (; k > 0 && into[k - 1].bytes < group[i].bytes; k--)
            if (k < n)
                into[k] = into[k - 1];
        if (k < n)
            into[k] = group[i];
    }
    pthread_mutex_unlock(&b->lock);
    return have;
}
