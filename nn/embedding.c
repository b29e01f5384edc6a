/* nn/embedding.c: a table of rows, looked up by number. Rows begin as N(0,1), as in PyTorch; the padding row is zero and stays so, since it
 * gets no gradient. */
#include "nn_impl.h"
#include <stdio.h>

typedef struct { td_module base; td_tensor *weight; int64_t count, width; td_embedding_opts opts; } embedding;

static td_tensor *forward(td_module *m, td_tensor *ids)
{
    const embedding *e = (const embedding *)m;
    return td_embedding(e->weight, ids, &e->opts);
}

static void describe(const td_module *m, char *into, size_t size)
{
    const embedding *e = (const embedding *)m;
    int n = snprintf(into, size, "count=%lld, width=%lld", (long long)e->count, (long long)e->width);
    if (e->opts.has_padding_idx && n >= 0 && (size_t)n < size)
        snprintf(into + n, size - (size_t)n, ", padding_idx=%lld", (long long)e->opts.padding_idx);
}

static const td_module_type type = { .kind = "embedding", .size = sizeof(embedding), .forward = forward, .describe = describe };

td_module *td_nn_embedding(int64_t count, int64_t width, const td_embedding_opts *opts)
{
    TD_ENTER();
    if (count < 1 || width < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_embedding: count is %lld and width is %lld, expected 1 or more", (long long)count, (long long)width);
        return td__module_poison();
    }
    if (opts && opts->has_padding_idx && (opts->padding_idx < 0 || opts->padding_idx >= count)) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_embedding: padding_idx is %lld, expected 0 to %lld", (long long)opts->padding_idx, (long long)count - 1);
        return td__module_poison();
    }
    embedding *e = (embedding *)td_module_new(&type);
    e->count = count;
    e->width = width;
    if (opts)
        e->opts = *opts;
    td_tensor *weight = td_empty(TD_SHAPE(count, width), TD_F32);
    if (!weight->poisoned && td_nn_init_normal(weight, 0, 1) == 0) {
        if (e->opts.has_padding_idx) {
            TD_SCOPE();
            td_fill(td_narrow(weight, 0, e->opts.padding_idx, 1), 0);
        }
        e->weight = td_module_parameter(&e->base, "weight", weight);
    }
    return td__layer_done(&e->base);
}
