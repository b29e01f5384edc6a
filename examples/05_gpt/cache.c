/* cache.c: generation. The network of model.c on the next tokens alone: keys and values of all before them are remembered, one pair of
 * tensors (rows, heads, context, width/heads) for each block.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"

gpt_cache *gpt_cache_new(gpt *net, int64_t rows)
{
    const gpt_opts *o = &net->opts;
    gpt_cache *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->rows = rows;
    c->room = o->context;
    td_dtype dtype = td_dtype_of(td_parameter_get(net->wte, "weight"));
    for (int64_t i = 0; i < o->layers; i++) {
        c->k[i] = td_keep(td_zeros(TD_SHAPE(rows, o->heads, o->context, o->width / o->heads), dtype));
        c->v[i] = td_keep(td_zeros(TD_SHAPE(rows, o->heads, o->context, o->width / o->heads), dtype));
    }
    return c;
}

void gpt_cache_free(gpt_cache *c)
{
    for (int i = 0; c && i < GPT_MAX_LAYERS; i++) {
        if (c->k[i])
            td_release(c->k[i]);
        if (c->v[i])
            td_release(c->v[i]);
    }
    free(c);
}

/* Query t stands at place used + t and may look at all places up to its own. One query alone sees everything: no mask. */
static td_tensor *mask_of(int64_t used, int64_t t)
{
    if (t == 1 || used == 0)
        return NULL;
    unsigned char *sees = malloc((size_t)(t * (used + t)));
    for (int64_t i = 0; sees && i < t; i++)
        for (int64_t j = 0; j < used + t; j++)
            sees[i * (used + t) + j] = j <= used + i;
    td_tensor *mask = td_from(sees, TD_SHAPE(t, used + t), TD_BOOL);
    free(sees);
    return mask;
}

static td_tensor *attention(gpt_block *b, td_tensor *x, td_tensor *keys, td_tensor *values, int64_t used, td_tensor *mask)
{
    int64_t n = td_dim(x, 0), t = td_dim(x, 1), width = td_dim(x, 2);
    td_tensor *qkv = td_forward(b->c_attn, x), *part[3];
    for (int i = 0; i < 3; i++)
        part[i] = td_transpose(td_reshape(td_narrow(qkv, 2, i * width, width), TD_SHAPE(n, t, b->heads, width / b->heads)), 1, 2);
    td_assign(td_narrow(keys, 2, used, t), part[1]);
    td_assign(td_narrow(values, 2, used, t), part[2]);
    td_tensor *y = td_attention(part[0], td_narrow(keys, 2, 0, used + t), td_narrow(values, 2, 0, used + t),
                                &(td_attention_opts){ .causal = used == 0, .mask = mask });
    return td_forward(b->attn_c_proj, td_reshape(td_transpose(y, 1, 2), TD_SHAPE(n, t, width)));
}

td_tensor *gpt_next(gpt *net, gpt_cache *c, td_tensor *ids)
{
    TD_MODULE_SCOPE(net);
    TD_NO_GRAD();
    int64_t t = td_dim(ids, 1);
    td_tensor *mask = mask_of(c->used, t);
    td_tensor *x = td_add(td_forward(net->wte, ids), td_narrow(td_parameter_get(net->wpe, "weight"), 0, c->used, t));
    for (int64_t i = 0; i < net->opts.layers; i++) {
        gpt_block *b = net->block[i];
        x = td_add(x, attention(b, td_forward(b->ln_1, x), c->k[i], c->v[i], c->used, mask));
        x = td_add(x, gpt_mlp(b, td_forward(b->ln_2, x)));
    }
    c->used += t;
    x = td_reshape(td_narrow(x, 1, t - 1, 1), TD_SHAPE(c->rows, net->opts.width));
    return td_escape(td_linear(td_forward(net->ln_f, x), td_parameter_get(net->wte, "weight"), NULL));
}

/* ---- sampling ---------------------------------------------------------------------------------------------------------------- */

static int falling(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

int64_t gpt_sample(const double *logits, int64_t n, const gpt_sampling *how, double u)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    double *sorted = how->temperature < 0 ? NULL : malloc((size_t)n * sizeof *sorted);
    if (!sorted)
        return best;
    double least = -INFINITY, sum = 0, temperature = how->temperature != 0 ? how->temperature : 1;
    if (how->top_k > 0 && how->top_k < n) {
        memcpy(sorted, logits, (size_t)n * sizeof *sorted);
        qsort(sorted, (size_t)n, sizeof *sorted, falling);
        least = sorted[how->top_k - 1];
    }
    for (int64_t i = 0; i < n; i++)
        sum += sorted[i] = logits[i] >= least ? exp((logits[i] - logits[best]) / temperature) : 0;
    int64_t drawn = best;
    double left = u * sum;
    for (int64_t i = 0; i < n; i++) {
        if (sorted[i] == 0)
            continue;
        drawn = i;                             /* rounding may leave a little at the end: then the last possible one */
        if ((left -= sorted[i]) < 0)
            break;
    }
    free(sorted);
    return drawn;
}

int gpt_generate(gpt *net, const int64_t *prompt, int64_t n, int64_t *out, int64_t count, const gpt_sampling *how, uint64_t seed)
{
    TD_SCOPE();
    int64_t context = net->opts.context, vocab = net->opts.vocab, have = n;
    int64_t *all = malloc((size_t)(n + count) * sizeof *all);
    double *logits = malloc((size_t)vocab * sizeof *logits);
    gpt_cache *c = gpt_cache_new(net, 1);
    if (!all || !logits || !c)
        goto done;
    memcpy(all, prompt, (size_t)n * sizeof *all);
    for (int64_t i = 0, read = have > context ? have - context : 0; i < count && !td_error_pending(); i++) {
        TD_SCOPE();
        if (c->used == context) {              /* begin anew with the later half: places count from 0 again */
            c->used = 0;
            read = have - (context + 1) / 2;
        }
        td_tensor *next = gpt_next(net, c, td_from(all + read, TD_SHAPE(1, have - read), TD_I64));
        td_copy_out(td_cast(next, TD_F64), logits, (size_t)vocab * sizeof *logits);
        read = have;
        out[i] = all[have++] = gpt_sample(logits, vocab, how, td_item(td_rand(TD_SHAPE(1), seed, (uint64_t)i)));
    }
done:
    gpt_cache_free(c);
    free(all);
    free(logits);
    return td_error_pending();
}
