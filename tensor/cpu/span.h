/* tensor/cpu/span.h: walks an element-wise loop in spans: pieces of the innermost dimension, one call of a function each.
 *
 * Elements are numbered in row order and cut into chunks of a fixed size; a thread takes whole chunks. Every element is computed from
 * its operands alone, so chunks do not show in the result. A result that is too large for the caches is computed block by block beside them.
 */
#ifndef TD_SPAN_H
#define TD_SPAN_H
#include "cpu.h"
#include "stream.h"

/* out[i*so], a[i*sa], b[i*sb] for i < n; arg is the kernel's own */
typedef void td__span(int64_t n, void *out, int64_t so, const void *a, int64_t sa, const void *b, int64_t sb, bool add, const void *arg);

enum { TD_SPAN_CHUNK = 8 * TD_BLOCK };

static inline int64_t td__loop_count(const td_loop *l)
{
    int64_t n = 1;
    for (int d = 0; d < l->ndim; d++)
        n *= l->dim[d];
    return n;
}

/* One span, computed in the first cache and written around all of them. */
__attribute__((unused)) static void td__span_streamed(int64_t n, td__span *fn, char *out, size_t out_size, const char *a, int64_t sa, const char *b,
                                                      int64_t sb, size_t in_size, const void *arg)
{
    _Alignas(64) char block[8 * TD_BLOCK];
    for (int64_t i = 0; i < n; i += TD_BLOCK) {
        const int64_t m = n - i < TD_BLOCK ? n - i : TD_BLOCK;
        fn(m, block, 1, a + (size_t)(i * sa) * in_size, sa, b ? b + (size_t)(i * sb) * in_size : NULL, sb, false, arg);
        td__stream(out + (size_t)i * out_size, block, (size_t)m * out_size);
    }
}

__attribute__((unused)) static void td__spans_chunk(const td_loop *l, int64_t begin, int64_t end, td__span *fn, char *out, size_t out_size,
                                                    const char *a, const char *b, size_t in_size, bool add, bool streamed, const void *arg)
{
    int last = l->ndim - 1;
    int64_t index[TD_MAX_DIMS] = { 0 }, at[3] = { 0 };
    for (int64_t d = last, rest = begin; d >= 0; d--) {
        index[d] = rest % l->dim[d];
        rest /= l->dim[d];
        for (int k = 0; k < 3; k++)
            at[k] += index[d] * l->stride[k][d];
    }
    int64_t row = last >= 0 ? l->dim[last] : 1;
    int64_t so = 0, sa = 0, sb = 0, column = 0;
    if (last >= 0)
        so = l->stride[0][last], sa = l->stride[1][last], sb = l->stride[2][last], column = index[last];
    while (begin < end) {
        int64_t n = row - column < end - begin ? row - column : end - begin;
        char *to = out + (size_t)at[0] * out_size;
        const char *x = a + (size_t)at[1] * in_size, *y = b ? b + (size_t)at[2] * in_size : NULL;
        if (streamed && so == 1)
            td__span_streamed(n, fn, to, out_size, x, sa, y, sb, in_size, arg);
        else
            fn(n, to, so, x, sa, y, sb, add, arg);
        begin += n;
        if (begin >= end)
            break;
        at[0] -= column * so, at[1] -= column * sa, at[2] -= column * sb;   /* back to the row's start, then the next row  */
        column = 0;
        for (int d = last - 1; d >= 0; d--) {
            for (int k = 0; k < 3; k++)
                at[k] += l->stride[k][d];
            if (++index[d] < l->dim[d])
                break;
            index[d] = 0;
            for (int k = 0; k < 3; k++)
                at[k] -= l->dim[d] * l->stride[k][d];
        }
    }
}

__attribute__((unused)) static void td__spans(const td_loop *l, td__span *fn, void *out, size_t out_size, const void *a, const void *b,
                                              size_t in_size, bool add, const void *arg)
{
    int64_t total = td__loop_count(l);
    if (total <= TD_PARALLEL) {
        if (total > 0)
            td__spans_chunk(l, 0, total, fn, out, out_size, a, b, in_size, add, false, arg);
        return;
    }
    const bool streamed = !add && out != a && out != b && l->dim[l->ndim - 1] >= TD_BLOCK && total * (int64_t)out_size >= TD_STREAM_BYTES;
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < total; begin += TD_SPAN_CHUNK) {
        td__spans_chunk(l, begin, total - begin < TD_SPAN_CHUNK ? total : begin + TD_SPAN_CHUNK, fn, out, out_size, a, b, in_size,
                        add, streamed, arg);
        if (streamed)
            td__stream_end();
    }
}

#endif
