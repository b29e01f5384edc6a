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
#include "blocks_impl.h"
#include <stdlib.h>

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

static block *find(blocks *b, size_t size)
{
    const bool kind = size > SMALL_MOST;
    blocks_hold *hold = b->open && pthread_equal(b->opener, pthread_self()) ? b->open : &b->common;
    block *x = hold == &b->common ? NULL : best_fit(hold, kind, size);
    if (x) {
        blocks__split(b, x, size);
        b->stats.held_bytes -= (int64_t)x->size;
        return x;
    }
    x = best_fit(&b->common, kind, size);
    x = x ? x : blocks__piece_for(b, kind, size);
    if (x) {
        blocks__split(b, x, size);
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
        blocks__sweep(b, false);
    block *x = find(b, size);
    if (x) {
        x->state = USED;
        x->tag = tag;
        x->streams = 0;
        link_in(&b->used[bucket_of(x->at)], x);
        b->stats.cached_bytes -= (int64_t)x->size;
        blocks__count_all(b, tag.category, (int64_t)x->size, 1);
    }
    pthread_mutex_unlock(&b->lock);
    return x ? x->at : NULL;
}

int blocks_give(blocks *b, void *at)
{
    pthread_mutex_lock(&b->lock);
    block *x = used_block(b, at);
    if (x) {
        link_out(&b->used[bucket_of(at)], x);
        b->stats.cached_bytes += (int64_t)x->size;
        blocks__count_all(b, x->tag.category, -(int64_t)x->size, -1);
        if (x->streams) {
            x->state = WAITING;
            x->marked = !b->open;
            for (int i = 0; i < x->streams; i++)
                x->mark[i] = x->marked ? b->source.mark(x->stream[i]) : NULL;
            link_in(&b->waiting, x);
        } else {
            blocks__set_free(b, x);
        }
    }
    pthread_mutex_unlock(&b->lock);
    return x ? 0 : -1;
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
                blocks__set_free(b, x);
            }
    blocks_hold **at = &b->holds;
    while (*at != hold)
        at = &(*at)->next;
    *at = hold->next;
    pthread_mutex_unlock(&b->lock);
    free(hold);
}

/* ---- its life -------------------------------------------------------------------------------------------------------------------------- */
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
    blocks__trim(b);
    pthread_mutex_unlock(&b->lock);
}
