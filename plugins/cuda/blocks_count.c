/* plugins/cuda/blocks_count.c: how much is handed out, what for, and to whom. */
#include "blocks_impl.h"

enum { GROUPS = 4096 };

static void count(blocks *b, int category, int64_t bytes)
{
    blocks_part *part = &b->stats.part[category];
    part->live_bytes += bytes;
    if (part->peak_bytes < part->live_bytes)
        part->peak_bytes = part->live_bytes;
}

void blocks__count_all(blocks *b, int category, int64_t bytes, int blocks_more)
{
    b->stats.live_blocks += blocks_more;
    b->stats.live_bytes += bytes;
    if (b->stats.peak_bytes < b->stats.live_bytes)
        b->stats.peak_bytes = b->stats.live_bytes;
    count(b, category, bytes);
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
    blocks__count_all(b, category, bytes, (bytes > 0) - (bytes < 0));
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
