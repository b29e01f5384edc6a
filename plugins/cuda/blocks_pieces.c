/* plugins/cuda/blocks_pieces.c: the pieces that blocks are cut from: taken from the source, split, merged, given back; and blocks that wait for a stream. */
#include "blocks_impl.h"
#include <stdlib.h>

static const size_t SMALL_PIECE = 2u << 20, LARGE_PIECE = 32u << 20, LARGE_STEP = 2u << 20;

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
void blocks__set_free(blocks *b, block *x)
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
void blocks__sweep(blocks *b, bool waited)
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
        blocks__set_free(b, x);
    }
}

void blocks__trim(blocks *b)
{
    if (b->open)
        return;
    bool waited = b->waiting != NULL;
    if (waited) {
        b->source.idle();
        blocks__sweep(b, true);
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
block *blocks__piece_for(blocks *b, bool kind, size_t size)
{
    size_t exact = (size + LARGE_STEP - 1) / LARGE_STEP * LARGE_STEP, wish = kind == SMALL ? SMALL_PIECE : exact > LARGE_PIECE / 2 ? exact : LARGE_PIECE;
    block *x = piece_new(b, kind, wish);
    if (!x) {
        blocks__trim(b);
        x = piece_new(b, kind, wish);
    }
    if (!x && exact < wish)
        x = piece_new(b, kind, exact);
    return x;
}

/* The rest of x becomes a free block of its own, if it is worth it. Without a record it stays with x. */
void blocks__split(blocks *b, block *x, size_t size)
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
