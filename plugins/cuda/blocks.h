/* plugins/cuda/blocks.h: dividing large pieces of a device's memory into blocks that are handed out and kept when they come back. Knows
 * nothing of CUDA: a source gives and takes the pieces, so that tests run it on any memory. One mutex; no block is ever touched.
 */
#ifndef TD_CUDA_BLOCKS_H
#define TD_CUDA_BLOCKS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BLOCKS_ALIGN = 512, BLOCKS_CATEGORIES = 12, BLOCKS_STREAMS = 4 };
typedef struct {
    void *(*take)(size_t bytes);                       /* a piece, 512-byte aligned; NULL when there is none                      */
    void  (*give)(void *piece, size_t bytes);
    void  (*idle)(void);                               /* returns when no work that was started uses blocks given back            */
    void *(*mark)(void *stream);                       /* something that has passed when all that `stream` was told is done; NULL: cannot */
    bool  (*passed)(void *mark);                       /* never waits; when true the mark is the source's again                   */
} blocks_source;
typedef struct { int64_t live_bytes, peak_bytes; } blocks_part;
typedef struct {
    int64_t live_bytes, peak_bytes;                    /* handed out, as rounded; the most so far                                 */
    int64_t cached_bytes;                              /* in pieces, not handed out                                              */
    int64_t held_bytes;                                /* the part of it that only a hold may use                                 */
    int64_t live_blocks, pieces, takes;                /* takes: how often the source was asked                                   */
    blocks_part part[BLOCKS_CATEGORIES];
} blocks_stats;
typedef struct { const void *site; int category; } blocks_tag;           /* who asks, what for                                  */
typedef struct { int64_t bytes, blocks; blocks_tag tag; } blocks_holder;
typedef struct blocks blocks;
typedef struct blocks_hold blocks_hold;

blocks *blocks_new(const blocks_source *source);       /* NULL: no host memory                                                */
void    blocks_free(blocks *b);                        /* gives every piece back, holds included                              */
/* At least `bytes` (0 is fine), aligned to BLOCKS_ALIGN; NULL when the source has no more even after blocks_trim. */
void   *blocks_take(blocks *b, size_t bytes, blocks_tag tag);
int     blocks_give(blocks *b, void *block);           /* 0; -1: it is none that was handed out                                 */
int     blocks_label(blocks *b, void *block, int category);      /* 0 or -1, as blocks_give                                        */
/* Work on `stream` uses the block: once given back it is not handed out before that work is done. Up to BLOCKS_STREAMS streams; more, or
 * a stranger: -1. */
int     blocks_record(blocks *b, void *block, void *stream);
/* Memory that came from elsewhere (bytes negative: went back) and is counted with what is handed out. */
void    blocks_outside(blocks *b, int64_t bytes, int category);
void    blocks_trim(blocks *b);                        /* waits (idle) and gives back every piece of which nothing is handed out */
blocks_stats blocks_count(blocks *b);
void    blocks_reset_peak(blocks *b);
/* The n largest sums of blocks that are handed out under one tag, largest first; how many were found. */
int     blocks_holders(blocks *b, blocks_holder *into, int n);

/* A hold: whatever this thread takes between begin and end is its own. When such a block comes back, then or later, nobody else is given it
 * until the hold is released: a recorded graph goes on using the addresses of scratch that was given back while it was recorded.
 * One at a time (NULL otherwise). While one is open nobody is waited for, so nothing is trimmed. */
blocks_hold *blocks_hold_begin(blocks *b);
void         blocks_hold_end(blocks *b, blocks_hold *hold);
void         blocks_hold_release(blocks *b, blocks_hold *hold);  /* NULL is fine; ends it too                                     */
#endif
