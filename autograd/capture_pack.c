/* autograd/capture_pack.c: places for blocks whose times are known, in as little memory as this finds.
 *
 * Greedy by size (Y. Pisarchyk, J. Lee: Efficient Memory Management for Deep Neural Net Inference, 2020): the largest block first; each into the
 * smallest gap that fits it between the blocks already placed that live at the same time, else behind them. A few large blocks that overlap in an
 * unlucky way leave holes, so two other orders are tried: the longest life first, and the largest product of both. The least memory wins.
 */
#include "capture.h"
#include <stdlib.h>

enum { MANY = 8192, SMALL = 4096 };            /* blocks: placing one looks at all others; bytes                              */

static int by(double x, double y, const td__packed *a, const td__packed *b)
{
    if (x != y)
        return x > y ? -1 : 1;
    if (a->bytes != b->bytes)
        return a->bytes > b->bytes ? -1 : 1;
    if (a->from != b->from)
        return a->from < b->from ? -1 : 1;
    return a < b ? -1 : a > b;
}

static int larger_first(const void *a, const void *b)
{
    const td__packed *x = *(td__packed *const *)a, *y = *(td__packed *const *)b;
    return by((double)x->bytes, (double)y->bytes, x, y);
}

static int longer_first(const void *a, const void *b)
{
    const td__packed *x = *(td__packed *const *)a, *y = *(td__packed *const *)b;
    return by((double)(x->to - x->from), (double)(y->to - y->from), x, y);
}

static int product_first(const void *a, const void *b)
{
    const td__packed *x = *(td__packed *const *)a, *y = *(td__packed *const *)b;
    return by((double)x->bytes * (double)(x->to - x->from), (double)y->bytes * (double)(y->to - y->from), x, y);
}

/* placed: n blocks in the order of their places. */
static size_t find_place(const td__packed *p, td__packed *const *placed, size_t n)
{
    size_t end = 0, best = SIZE_MAX, gap = SIZE_MAX;
    for (size_t i = 0; i < n; i++) {
        const td__packed *other = placed[i];
        if (other->to <= p->from || p->to <= other->from)
            continue;
        if (other->at > end && other->at - end >= p->bytes && other->at - end < gap) {
            gap = other->at - end;
            best = end;
        }
        end = other->at + other->bytes > end ? other->at + other->bytes : end;
    }
    return best == SIZE_MAX ? end : best;
}

static size_t place_all(td__packed **order, td__packed **placed, size_t n)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        td__packed *p = order[i];
        p->at = find_place(p, placed, i);
        size_t low = 0, high = i;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (placed[middle]->at <= p->at)
                low = middle + 1;
            else
                high = middle;
        }
        for (size_t k = i; k > low; k--)
            placed[k] = placed[k - 1];
        placed[low] = p;
        bytes = p->at + p->bytes > bytes ? p->at + p->bytes : bytes;
    }
    return bytes;
}

/* By three rules; `order` has room for 2n. */
static int pack_by_rules(td__packed **list, size_t n, td__packed **order, size_t *bytes)
{
    int (*const rule[])(const void *, const void *) = { larger_first, longer_first, product_first };
    const size_t rules = n > MANY ? 1 : TD_COUNT(rule);
    size_t *best = td__alloc(n * sizeof *best);
    if (!best)
        return TD_ERR_MEMORY;
    *bytes = SIZE_MAX;
    for (size_t r = 0; r < rules; r++) {
        for (size_t i = 0; i < n; i++)
            order[i] = list[i];
        qsort(order, n, sizeof *order, rule[r]);
        size_t taken = place_all(order, order + n, n);
        for (size_t i = 0; i < n && taken < *bytes; i++)
            best[i] = list[i]->at;
        *bytes = taken < *bytes ? taken : *bytes;
    }
    for (size_t i = 0; i < n; i++)
        list[i]->at = best[i];
    td__free(best);
    return 0;
}

static int same_size_earlier_first(const void *a, const void *b)
{
    const td__packed *x = *(td__packed *const *)a, *y = *(td__packed *const *)b;
    return x->bytes != y->bytes ? (x->bytes > y->bytes ? -1 : 1) : x->from != y->from ? (x->from < y->from ? -1 : 1) : x < y ? -1 : x > y;
}

/* Very many small blocks, handles above all: each size has slots of its own, so a block takes the slot that is free first, in time n log n.
 * A slot is named by the block that had it last; `heap` holds them, the earliest end on top. */
static size_t place_small(td__packed **list, size_t n, td__packed **heap, size_t end)
{
    size_t slots = 0;
    qsort(list, n, sizeof *list, same_size_earlier_first);
    for (size_t i = 0; i < n; i++) {
        td__packed *p = list[i];
        if (i > 0 && list[i - 1]->bytes != p->bytes)
            slots = 0;
        const bool reuse = slots > 0 && heap[0]->to <= p->from;
        size_t at;
        if (reuse) {
            p->at = heap[0]->at;
            at = 0;
            for (size_t child; (child = 2 * at + 1) < slots; at = child) {
                if (child + 1 < slots && heap[child + 1]->to < heap[child]->to)
                    child++;
                if (heap[child]->to >= p->to)
                    break;
                heap[at] = heap[child];
            }
        } else {
            p->at = end;
            end += p->bytes;
            for (at = slots++; at > 0 && heap[(at - 1) / 2]->to > p->to; at = (at - 1) / 2)
                heap[at] = heap[(at - 1) / 2];
        }
        heap[at] = p;
    }
    return end;
}

int td__pack(td__packed *list, size_t n, size_t *bytes)
{
    *bytes = 0;
    if (n == 0)
        return 0;
    td__packed **all = td__alloc(3 * n * sizeof *all), **order = all + n;
    if (!all)
        return TD_ERR_MEMORY;
    size_t large = 0, small = n;
    for (size_t i = 0; i < n; i++)
        if (n <= MANY || list[i].bytes > SMALL)
            all[large++] = &list[i];
        else
            all[--small] = &list[i];
    int code = large ? pack_by_rules(all, large, order, bytes) : 0;
    if (!code)
        *bytes = place_small(all + large, n - large, order, *bytes);
    td__free(all);
    return code;
}
