/* plugins/cuda/blocks_impl.h: what the files of the caching allocator share: blocks, the lists they hang in. Internal to them; all under the lock. */
#ifndef TD_CUDA_BLOCKS_IMPL_H
#define TD_CUDA_BLOCKS_IMPL_H
#include <pthread.h>
#include "blocks.h"

enum { SMALL, LARGE, CLASSES = 4 * 48, BUCKETS = 8192, RECORDS = 256 };
typedef enum { FREE, USED, WAITING } block_state;
static const size_t SMALL_MOST = 1u << 20;

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
static inline int class_of(size_t size)
{
    size_t units = size / BLOCKS_ALIGN;
    int k = 63 - __builtin_clzll(units);
    int quarter = k >= 2 ? (int)(units >> (k - 2) & 3) : (int)(units << (2 - k) & 3);
    int c = 4 * k + quarter;
    return c < CLASSES ? c : CLASSES - 1;
}

static inline size_t bucket_of(const void *at)
{
    return (size_t)((uint64_t)(uintptr_t)at / BLOCKS_ALIGN * 0x9E3779B97F4A7C15u >> 51) % BUCKETS;
}

static inline void link_in(block **head, block *x)
{
    x->previous = NULL;
    x->next = *head;
    if (*head)
        (*head)->previous = x;
    *head = x;
}

static inline void link_out(block **head, block *x)
{
    if (x->previous)
        x->previous->next = x->next;
    else
        *head = x->next;
    if (x->next)
        x->next->previous = x->previous;
}

static inline block **free_list(const block *x)
{
    return &x->owner->free_lists[x->kind][class_of(x->size)];
}

static inline block *used_block(blocks *b, const void *at)
{
    block *x = b->used[bucket_of(at)];
    while (x && x->at != at)
        x = x->next;
    return x;
}

/* blocks_pieces.c */
block *blocks__piece_for(blocks *b, bool kind, size_t size);         /* a new piece as one free block in no list; NULL                */
void   blocks__split(blocks *b, block *x, size_t size);
void   blocks__set_free(blocks *b, block *x);
void   blocks__sweep(blocks *b, bool waited);
void   blocks__trim(blocks *b);
/* blocks_count.c */
void   blocks__count_all(blocks *b, int category, int64_t bytes, int blocks_more);
#endif
