/* plugins/cuda/blocks.h: dividing large pieces of a device's memory into blocks that are handed out and kept when they come back. Knows
 * nothing of CUDA: a source gives and takes the pieces, so that tests run it on any memory. One mutex; no block is ever touched.
 */
#ifndef TD_CUDA_BLOCKS_H
#define TD_CUDA_BLOCKS_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
    void *(*take)(size_t bytes);                       /* a piece, 512-byte aligned; NULL when there is none                      */
    void  (*give)(void *piece, size_t bytes);
    void  (*idle)(void);                               /* returns when no work that was started uses blocks given back            */
} blocks_source;
typedef struct {
    int64_t live_bytes, peak_bytes;                    /* handed out, as rounded; the most so far                                 */
    int64_t cached_bytes;                              /* in pieces, not handed out                                              */
    int64_t live_blocks, pieces, takes;                /* takes: how often the source was asked                                   */
} blocks_stats;
typedef struct { size_t bytes; const void *site; } blocks_holder;
typedef struct blocks blocks;

enum { BLOCKS_ALIGN = 512 };
blocks *blocks_new(const blocks_source *source);       /* NULL: no host memory                                                */
void    blocks_free(blocks *b);                        /* gives every piece back                                               */
/* At least `bytes` (0 is fine), aligned to BLOCKS_ALIGN; NULL when the source has no more even after blocks_trim. site: who asks. */
void   *blocks_take(blocks *b, size_t bytes, const void *site);
int     blocks_give(blocks *b, void *block);           /* 0; -1: it is none that was handed out                                 */
void    blocks_trim(blocks *b);                        /* waits (idle) and gives back every piece of which nothing is handed out */
blocks_stats blocks_count(blocks *b);
void    blocks_reset_peak(blocks *b);
/* The n largest blocks that are handed out, largest first; how many were found. */
int     blocks_largest(blocks *b, blocks_holder *into, int n);
#endif
