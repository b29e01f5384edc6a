/* tensor/cpu/combine_narrow.c: combine.c's blocks of narrow dtypes: f16 and bf16 in f32, rounded once; u8, which wraps around; bool, of which there are
 * minimum (and) and maximum (or).
 *
 * One input after the other into an accumulator that stays in the first-level cache. The order of operations is combine.cu's.
 */
#include "cpu.h"
#include <convert.h>

#define BETTER(x, OP, y) ((x)OP(y) || (x) != (x) ? (x) : (y))

static void widen(td_dtype t, int64_t n, const void *from, float *to)
{
    if (t == TD_F16) {
        const td_f16 *x = from;
        for (int64_t i = 0; i < n; i++)
            to[i] = td__f16_to_f32(x[i]);
    } else {
        const td_bf16 *x = from;
        for (int64_t i = 0; i < n; i++)
            to[i] = td__bf16_to_f32(x[i]);
    }
}

static void narrow(td_dtype t, int64_t n, const float *from, float post, void *to)
{
    if (t == TD_F16) {
        td_f16 *o = to;
        for (int64_t i = 0; i < n; i++)
            o[i] = td__f32_to_f16(from[i] * post);
    } else {
        td_bf16 *o = to;
        for (int64_t i = 0; i < n; i++)
            o[i] = td__f32_to_bf16(from[i] * post);
    }
}

static void half_block(td_dtype t, td_combine op, int64_t n, int k, const void *const *in, const double *pre, double post, size_t offset, void *out)
{
    _Alignas(64) float sum[TD_BLOCK] = { 0 }, x[TD_BLOCK];
    bool first = true;
    for (int r = 0; r < k; r++) {
        const float f = pre ? (float)pre[r] : 1;
        if (pre && pre[r] == 0)
            continue;
        widen(t, n, (const char *)in[r] + offset, x);
        for (int64_t i = 0; i < n; i++)
            x[i] = x[i] * f;
        if (first)
            memcpy(sum, x, (size_t)n * sizeof *x);
        else if (op == TD_COMBINE_SUM)
            for (int64_t i = 0; i < n; i++)
                sum[i] += x[i];
        else if (op == TD_COMBINE_PRODUCT)
            for (int64_t i = 0; i < n; i++)
                sum[i] *= x[i];
        else if (op == TD_COMBINE_MIN)
            for (int64_t i = 0; i < n; i++)
                sum[i] = BETTER(sum[i], <, x[i]);
        else
            for (int64_t i = 0; i < n; i++)
                sum[i] = BETTER(sum[i], >, x[i]);
        first = false;
    }
    narrow(t, n, sum, (float)post, out);
}

/* With factors in f64, truncated at the end (convert.h's rule). */
static void byte_block(td_combine op, int64_t n, int k, const void *const *in, const double *pre, double post, size_t offset, void *out)
{
    _Alignas(64) uint8_t o[TD_BLOCK] = { 0 };
    double sum[TD_BLOCK] = { 0 };
    bool first = true, scaled = post != 1;
    for (int r = 0; r < k; r++)
        scaled = scaled || (pre && pre[r] != 1 && pre[r] != 0);
    for (int r = 0; r < k; r++) {
        const uint8_t *x = (const uint8_t *)in[r] + offset;
        if (pre && pre[r] == 0)
            continue;
        if (scaled)
            for (int64_t i = 0; i < n; i++)
                sum[i] += (pre ? pre[r] : 1) * x[i];
        else if (first)
            memcpy(o, x, (size_t)n);
        else if (op == TD_COMBINE_SUM)
            for (int64_t i = 0; i < n; i++)
                o[i] = (uint8_t)(o[i] + x[i]);
        else if (op == TD_COMBINE_PRODUCT)
            for (int64_t i = 0; i < n; i++)
                o[i] = (uint8_t)(o[i] * x[i]);
        else if (op == TD_COMBINE_MIN)
            for (int64_t i = 0; i < n; i++)
                o[i] = x[i] < o[i] ? x[i] : o[i];
        else
            for (int64_t i = 0; i < n; i++)
                o[i] = x[i] > o[i] ? x[i] : o[i];
        first = false;
    }
    for (int64_t i = 0; i < n && scaled; i++)
        o[i] = td__f64_to_u8(sum[i] * post);
    memcpy(out, o, (size_t)n);
}

bool K(combine_narrow)(td_dtype t, td_combine op, int64_t n, int k, const void *const *in, const double *pre, double post, size_t offset, void *out)
{
    switch (t) {
    case TD_F16:
    case TD_BF16:
        half_block(t, op, n, k, in, pre, post, offset, out);
        return true;
    case TD_U8:
    case TD_BOOL:
        byte_block(op, n, k, in, pre, post, offset, out);
        return true;
    default:
        return false;
    }
}
