/* examples/07_bert/model.c: the encoder. A layer is attention over the whole text, then a feed-forward part on each token; after each the
 * input is added back and normalised ("post-norm"). Attention never stores the matrix of scores (td_attention).
 */
#include <stdio.h>
#include <stdlib.h>
#include "model.h"

/* ---- making ------------------------------------------------------------------------------------------------------------ */

static void destroy(td_module *m)
{
    free(((bert *)m)->layer);
}

static void describe(const td_module *m, char *into, size_t size)
{
    const bert_opts *o = &((const bert *)m)->opts;
    snprintf(into, size, "layers=%lld, hidden=%lld, heads=%lld", (long long)o->layers, (long long)o->hidden, (long long)o->heads);
}

static const td_module_type bert_type = { .kind = "bert", .size = sizeof(bert), .destroy = destroy, .describe = describe },
                            layer_type = { .kind = "bert_layer", .size = sizeof(bert_layer) },
                            part_type = { .kind = "part", .size = sizeof(td_module) };   /* a name in the tree, no more */

static td_module *part(td_module *m, const char *name)
{
    return td_module_child(m, name, td_module_new(&part_type));
}

static void draw(td_module *m, double std)
{
    if (!td_error_pending())
        td_nn_init_normal(td_parameter_get(m, "weight"), 0, std);
}

static td_module *linear(const bert *b, td_module *m, const char *name, int64_t in, int64_t out)
{
    td_module *made = td_module_child(m, name, td_nn_linear(in, out, NULL));
    draw(made, b->opts.init);
    if (!td_error_pending())
        td_fill(td_parameter_get(made, "bias"), 0);
    return made;
}

static td_module *table(const bert *b, td_module *m, const char *name, int64_t count, int64_t pad)
{
    const td_embedding_opts opts = { .has_padding_idx = pad >= 0, .padding_idx = pad >= 0 ? pad : 0 };
    td_module *made = td_module_child(m, name, td_nn_embedding(count, b->opts.hidden, &opts));
    draw(made, b->opts.init);
    if (pad >= 0 && !td_error_pending()) {
        TD_SCOPE();
        TD_NO_GRAD();
        td_fill(td_narrow(td_parameter_get(made, "weight"), 0, pad, 1), 0);
    }
    return made;
}

static td_module *norm(const bert *b, td_module *m)
{
    return td_module_child(m, "LayerNorm", td_nn_layer_norm(TD_SHAPE(b->opts.hidden), &(td_nn_layer_norm_opts){ .eps = b->opts.eps }));
}

static void add_layer(bert *b, td_module *list, int64_t i)
{
    char name[24];
    int64_t width = b->opts.hidden, wide = b->opts.intermediate;
    snprintf(name, sizeof name, "%lld", (long long)i);
    bert_layer *l = (bert_layer *)td_module_child(list, name, td_module_new(&layer_type));
    td_module *attention = part(&l->base, "attention"), *self = part(attention, "self"), *out = part(attention, "output");
    l->query = linear(b, self, "query", width, width);
    l->key = linear(b, self, "key", width, width);
    l->value = linear(b, self, "value", width, width);
    l->attended = linear(b, out, "dense", width, width);
    l->attended_norm = norm(b, out);
    l->widen = linear(b, part(&l->base, "intermediate"), "dense", width, wide);
    out = part(&l->base, "output");
    l->narrow = linear(b, out, "dense", wide, width);
    l->norm = norm(b, out);
    b->layer[i] = l;
}

static bert_opts with_defaults(const bert_opts *opts)
{
    bert_opts o = opts ? *opts : (bert_opts){ 0 };
    o.vocab = o.vocab ? o.vocab : 30522;
    o.hidden = o.hidden ? o.hidden : 768;
    o.layers = o.layers ? o.layers : 12;
    o.heads = o.heads ? o.heads : 12;
    o.intermediate = o.intermediate ? o.intermediate : 4 * o.hidden;
    o.positions = o.positions ? o.positions : 512;
    o.types = o.types ? o.types : 2;
    o.eps = o.eps != 0 ? o.eps : 1e-12;
    o.init = o.init != 0 ? o.init : 0.02;
    return o;
}

bert *bert_new(const bert_opts *opts)
{
    bert *b = (bert *)td_module_new(&bert_type);
    b->opts = with_defaults(opts);
    const bert_opts *o = &b->opts;
    b->layer = calloc(o->layers > 0 ? (size_t)o->layers : 1, sizeof *b->layer);
    if (!b->layer)
        abort();
    td_module *root = &b->base, *embeddings = part(root, "embeddings");
    b->words = table(b, embeddings, "word_embeddings", o->vocab, o->pad);
    b->places = table(b, embeddings, "position_embeddings", o->positions, -1);
    b->types = table(b, embeddings, "token_type_embeddings", o->types, -1);
    b->norm = norm(b, embeddings);
    td_module *list = part(part(root, "encoder"), "layer");
    for (int64_t i = 0; i < o->layers; i++)
        add_layer(b, list, i);
    b->pooler = o->no_pooler ? NULL : linear(b, part(root, "pooler"), "dense", o->hidden, o->hidden);
    b->classifier = o->classes ? linear(b, root, "classifier", o->hidden, o->classes) : NULL;
    if (o->masked_lm) {
        td_module *predictions = part(part(root, "cls"), "predictions"), *transform = part(predictions, "transform");
        b->lm_bias = td_module_parameter(predictions, "bias", td_zeros(TD_SHAPE(o->vocab), TD_F32));
        b->lm_dense = linear(b, transform, "dense", o->hidden, o->hidden);
        b->lm_norm = norm(b, transform);
    }
    return b;
}

void bert_freeze(bert *b)
{
    td_requires_grad(td_parameters(td_module_get(&b->base, "embeddings")), false);
    td_requires_grad(td_parameters(td_module_get(&b->base, "encoder")), false);
}

/* ---- forward ----------------------------------------------------------------------------------------------------------- */

static td_tensor *drop(const bert *b, td_tensor *x)
{
    return b->opts.dropout > 0 ? td_dropout(x, b->opts.dropout, td_is_training(&b->base)) : x;
}

static td_tensor *activate(const bert *b, td_tensor *x)
{
    return b->opts.activation == BERT_GELU ? td_gelu(x) : b->opts.activation == BERT_GELU_TANH ? td_gelu_tanh(x) : td_relu(x);
}

static td_tensor *embed(bert *b, td_tensor *ids, td_tensor *types)
{
    TD_MODULE_SCOPE(td_module_get(&b->base, "embeddings"));
    td_tensor *words = td_forward(b->words, ids);
    td_tensor *kind = types ? td_forward(b->types, types) : td_narrow(td_parameter_get(b->types, "weight"), 0, 0, 1);
    td_tensor *places = td_narrow(td_parameter_get(b->places, "weight"), 0, 0, td_dim(ids, 1));
    td_tensor *sum = td_add(td_add(words, kind), places);
    return td_escape(drop(b, td_forward(b->norm, sum)));
}

/* x (N,T,hidden) -> (N,heads,T,hidden/heads), without a copy */
static td_tensor *heads_of(const bert *b, td_tensor *x)
{
    int64_t n = b->opts.heads;
    return td_transpose(td_reshape(x, TD_SHAPE(td_dim(x, 0), td_dim(x, 1), n, b->opts.hidden / n)), 1, 2);
}

/* narrow of the activation of widen; gelu's forms as one operation, which computes the tanh form within the products where the device can */
static td_tensor *feed_forward(const bert *b, const bert_layer *l, td_tensor *y)
{
    if (b->opts.activation == BERT_RELU)
        return td_forward(l->narrow, td_relu(td_forward(l->widen, y)));
    return td_mlp(y, td_parameter_get(l->widen, "weight"), td_parameter_get(l->widen, "bias"), td_parameter_get(l->narrow, "weight"),
                  td_parameter_get(l->narrow, "bias"), &(td_linear_gelu_opts){ .exact = b->opts.activation == BERT_GELU });
}

static td_tensor *layer_forward(const bert *b, bert_layer *l, td_tensor *x, td_tensor *mask)
{
    TD_MODULE_SCOPE(l);
    td_tensor *q = heads_of(b, td_forward(l->query, x)), *k = heads_of(b, td_forward(l->key, x)), *v = heads_of(b, td_forward(l->value, x));
    td_tensor *seen = td_attention(q, k, v, &(td_attention_opts){ .mask = mask });
    td_tensor *joined = td_reshape(td_transpose(seen, 1, 2), td_shape_of(x));
    td_tensor *y = td_forward(l->attended_norm, td_add(drop(b, td_forward(l->attended, joined)), x));
    td_tensor *z = feed_forward(b, l, y);
    return td_escape(td_forward(l->norm, td_add(drop(b, z), y)));
}

td_tensor *bert_forward(bert *b, td_tensor *ids, td_tensor *types, td_tensor *mask, td_tensor **pooled)
{
    TD_MODULE_SCOPE(b);
    td_tensor *h = embed(b, ids, types);
    if (mask)   /* the same keys for every head and query */
        mask = td_reshape(mask, TD_SHAPE(td_dim(mask, 0), 1, 1, td_dim(mask, 1)));
    for (int64_t i = 0; i < b->opts.layers && !td_error_pending(); i++)
        h = layer_forward(b, b->layer[i], h, mask);
    if (pooled) {
        td_tensor *first = td_reshape(td_narrow(h, 1, 0, 1), TD_SHAPE(td_dim(h, 0), b->opts.hidden));
        *pooled = td_escape(td_tanh(td_forward(b->pooler, first)));
    }
    return td_escape(h);
}

td_tensor *bert_classify(bert *b, td_tensor *pooled)
{
    TD_MODULE_SCOPE(b);
    return td_escape(td_forward(b->classifier, drop(b, pooled)));
}

td_tensor *bert_name_tokens(bert *b, td_tensor *hidden, td_tensor *at)
{
    TD_MODULE_SCOPE(b);
    td_tensor *flat = td_reshape(hidden, TD_SHAPE(td_dim(hidden, 0) * td_dim(hidden, 1), b->opts.hidden));
    td_tensor *x = td_forward(b->lm_norm, activate(b, td_forward(b->lm_dense, td_index_select(flat, 0, at))));
    return td_escape(td_linear(x, td_parameter_get(b->words, "weight"), b->lm_bias));
}
