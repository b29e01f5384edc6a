/* tensor/cuda/combine.cu: several buffers into one value per element, stored to several buffers: the sum, minimum, maximum or product of an all-reduce.
 *
 * Twin of ../cpu/combine.c: every element by itself, inputs in order, the same operations in the same order (f16 and bf16: in float, rounded once).
 * An input whose factor is 0 is left out on the host. Outputs may be inputs; they may not overlap in part. The tables of pointers travel as
 * arguments (upload.h), so there may be any number of them.
 */
#include "packs.h"
#include "upload.h"
extern "C++" {
#include "../convert.h"
}

/* NaN wins on either side. */
template <class W> __device__ __forceinline__ W first_of(W a, W b, bool min)
{
    return (min ? a < b : a > b) || a != a ? a : b;
}

/* Sums and products of integers wrap. */
template <class W> struct wraps { typedef W type; };
template <> struct wraps<int64_t> { typedef uint64_t type; };
template <> struct wraps<int32_t> { typedef uint32_t type; };

/* table: k inputs, k factors, then `outs` outputs */
template <class T>
__global__ void __launch_bounds__(TD_THREADS) combine_kernel(td_combine op, int64_t n, int k, int outs, const uint64_t *table, double post, bool scaled)
{
    typedef td_wide<T> W;
    typedef typename wraps<W>::type S;
    const T *const *in = (const T *const *)table;
    const double *factor = (const double *)(table + k);
    T *const *out = (T *const *)(table + 2 * k);
    TD_GRID_STRIDE(i, n) {
        W v = k ? td_load<T>(in[0] + i) : 0;
        if (op == TD_COMBINE_PRODUCT) {
            for (int r = 1; r < k; r++)
                v = (W)((S)v * (S)td_load<T>(in[r] + i));
        } else if (op != TD_COMBINE_SUM) {
            for (int r = 1; r < k; r++)
                v = first_of<W>(v, td_load<T>(in[r] + i), op == TD_COMBINE_MIN);
        } else if constexpr ((W)0.5 != 0) {
            v = v * (k ? (W)factor[0] : 0);
            for (int r = 1; r < k; r++)
                v += td_load<T>(in[r] + i) * (W)factor[r];
            v = v * (W)post;
        } else if (scaled) {                   /* everything in f64, truncated at the end */
            double sum = 0;
            for (int r = 0; r < k; r++)
                sum += factor[r] * (double)td_load<T>(in[r] + i);
            v = sizeof(W) == 8 ? (W)td__f64_to_i64(sum * post) : (W)td__f64_to_i32(sum * post);
        } else {
            for (int r = 1; r < k; r++)
                v = (W)((S)v + (S)td_load<T>(in[r] + i));
        }
        for (int j = 0; j < outs; j++)
            td_store<T>(out[j] + i, v);
    }
}

extern "C" void td__cuda_combine(td_dtype t, td_combine op, int64_t n, int k, const void *const *in, const double *pre, double post, void *const *out,
                                 int outs)
{
    if (n <= 0 || outs <= 0)
        return;
    if (op != TD_COMBINE_SUM) {
        pre = NULL;
        post = 1;
    }
    int used = 0;
    bool scaled = post != 1;
    for (int r = 0; r < k; r++) {
        used += !pre || pre[r] != 0;
        scaled = scaled || (pre && pre[r] != 1);
    }
    uint64_t *table = (uint64_t *)td__cuda_scratch(sizeof *table * (size_t)(2 * used + outs));
    if (!table)
        return;
    td_upload_words words;
    int64_t at = 0;
    auto put = [&](uint64_t word) {
        words.word[at++ % TD_UPLOAD] = word;
        if (at % TD_UPLOAD == 0 || at == 2 * used + outs)
            td_upload("combine", table + (at - 1) / TD_UPLOAD * TD_UPLOAD, words.word, (at - 1) % TD_UPLOAD + 1);
    };
    for (int r = 0; r < k; r++)
        if (!pre || pre[r] != 0)
            put((uint64_t)(uintptr_t)in[r]);
    for (int r = 0; r < k; r++) {
        const double f = pre ? pre[r] : 1;
        uint64_t word;
        memcpy(&word, &f, sizeof f);
        if (f != 0)
            put(word);
    }
    for (int j = 0; j < outs; j++)
        put((uint64_t)(uintptr_t)out[j]);
    TD_CUDA_ARITH(t, T, TD_LAUNCH("combine", td_blocks(n), TD_THREADS, 0, (combine_kernel<T>), op, n, used, outs, (const uint64_t *)table, post, scaled))
    td__cuda_scratch_free(table);
}
