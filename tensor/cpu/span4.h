/* tensor/cpu/span4.h: walks an element-wise loop over four operands in spans, as span.h does over three; the operands' elements may
 * differ in size (a mask of bytes beside numbers).
 */
#ifndef TD_SPAN4_H
#define TD_SPAN4_H
#include "span.h"

/* out[i*so] from in[0][i*s[0]], in[1][i*s[1]], in[2][i*s[2]] for i < n; arg is the kernel's own */
typedef void td__span4(int64_t n, void *out, int64_t so, const void *const in[3], const int64_t s[3], bool add, const void *arg);

/* Operand 0 is the output; sizes in bytes; in[k] may be NULL. */
typedef struct { void *out; const void *in[3]; size_t size[4]; } td__operands;

static inline void td__span4_streamed(int64_t n, td__span4 *fn, char *out, const void *const in[3], const int64_t s[3], const size_t *size,
                                      const void *arg)
{
    _Alignas(64) char block[8 * TD_BLOCK];
    for (int64_t i = 0; i < n; i += TD_BLOCK) {
        const int64_t m = n - i < TD_BLOCK ? n - i : TD_BLOCK;
        const void *at[3];
        for (int k = 0; k < 3; k++)
            at[k] = in[k] ? (const char *)in[k] + i * s[k] * (int64_t)size[k + 1] : NULL;
        fn(m, block, 1, at, s, false, arg);
        td__stream(out + (size_t)i * size[0], block, (size_t)m * size[0]);
    }
}

static inline void td__spans4_chunk(const td_loop *l, int64_t begin, int64_t end, td__span4 *fn, const td__operands *o, bool add, bool streamed,
                                    const void *arg)
{
    const int last = l->ndim - 1;
    const int64_t row = last >= 0 ? l->dim[last] : 1;
    int64_t step[4] = { 0 };
    for (int k = 0; last >= 0 && k < 4; k++)
        step[k] = l->stride[k][last];
    while (begin < end) {
        const int64_t column = begin % row, n = row - column < end - begin ? row - column : end - begin;
        int64_t at[4], rest = begin / row;
        for (int k = 0; k < 4; k++)
            at[k] = column * step[k];
        for (int d = last - 1; d >= 0; d--) {
            for (int k = 0; k < 4; k++)
                at[k] += rest % l->dim[d] * l->stride[k][d];
            rest /= l->dim[d];
        }
        const void *in[3];
        for (int k = 0; k < 3; k++)
            in[k] = o->in[k] ? (const char *)o->in[k] + at[k + 1] * (int64_t)o->size[k + 1] : NULL;
        char *to = (char *)o->out + at[0] * (int64_t)o->size[0];
        if (streamed && step[0] == 1)
            td__span4_streamed(n, fn, to, in, step + 1, o->size, arg);
        else
            fn(n, to, step[0], in, step + 1, add, arg);
        begin += n;
    }
}

static inline void td__spans4(const td_loop *l, td__span4 *fn, const td__operands *o, bool add, const void *arg)
{
    const int64_t total = td__loop_count(l);
    if (total <= TD_PARALLEL) {
        td__spans4_chunk(l, 0, total, fn, o, add, false, arg);
        return;
    }
    const bool streamed = !add && o->out != o->in[0] && o->out != o->in[1] && o->out != o->in[2] && l->dim[l->ndim - 1] >= TD_BLOCK &&
                          total * (int64_t)o->size[0] >= TD_STREAM_BYTES;
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < total; begin += TD_SPAN_CHUNK) {
        td__spans4_chunk(l, begin, total - begin < TD_SPAN_CHUNK ? total : begin + TD_SPAN_CHUNK, fn, o, add, streamed, arg);
        if (streamed)
            td__stream_end();
    }
}

#endif
