/* model.c: the network. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "model.h"

/* ---- shapes ------------------------------------------------------------------------------------------------------------- */

bool gpt_preset(const char *name, gpt_opts *o)
{
    static const struct { const char *name; int64_t layers, width, context, vocab; } known[] = {
        { "124M", 12, 768, 1024, 50257 },   { "355M", 24, 1024, 1024, 50257 }, { "774M", 36, 1280, 1024, 50257 },
        { "1558M", 48, 1600, 1024, 50257 }, { "small", 4, 256, 256, 256 },     { "tiny", 2, 64, 64, 256 },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            o->layers = known[i].layers, o->width = known[i].width, o->context = known[i].context, o->vocab = known[i].vocab;
            o->heads = 0;
            return true;
        }
    return false;
}

static bool fill_in(gpt_opts *o)
{
    o->layers = o->layers ? o->layers : 12;
    o->width = o->width ? o->width : 768;
    o->heads = o->heads ? o->heads : o->width >= 64 ? o->width / 64 : 1;
    o->context = o->context ? o->context : 1024;
    o->vocab = o->vocab ? o->vocab : 50257;
    const char *why = o->layers < 1 || o->layers > GPT_MAX_LAYERS ? "layers must be 1 to 256"
                      : o->width < 1                              ? "width must be 1 or more"
                      : o->heads < 1 || o->width % o->heads       ? "heads must divide width"
                      : o->context < 1                            ? "context must be 1 or more"
                      : o->vocab < 1                              ? "vocab must be 1 or more"
                      : !(o->dropout >= 0 && o->dropout < 1)      ? "dropout must be in [0,1)"
                                                                  : NULL;
    if (why)
        td_log("gpt_new: %s (layers %lld, width %lld, heads %lld, context %lld, vocab %lld, dropout %g)", why, (long long)o->layers,
               (long long)o->width, (long long)o->heads, (long long)o->context, (long long)o->vocab, o->dropout);
    return !why;
}

/* ---- y = x W + b, W (in,out) -------------------------------------------------------------------------------------------------- */

static td_tensor *projection_forward(td_module *m, td_tensor *x)
{
    const gpt_projection *p = (const gpt_projection *)m;
    return td_affine(x, p->weight, p->bias);
}

static void projection_describe(const td_module *m, char *into, size_t size)
{
    const gpt_projection *p = (const gpt_projection *)m;
    snprintf(into, size, "in=%lld, out=%lld", (long long)td_dim(p->weight, 0), (long long)td_dim(p->weight, 1));
}

static const td_module_type projection_type = { .kind = "projection", .size = sizeof(gpt_projection), .forward = projection_forward,
                                                .describe = projection_describe };

static td_module *projection_new(int64_t in, int64_t out, double std)
{
    gpt_projection *p = (gpt_projection *)td_module_new(&projection_type);
    td_tensor *weight = td_empty(TD_SHAPE(in, out), TD_F32);
    td_nn_init_normal(weight, 0, std);
    p->weight = td_module_parameter(&p->base, "weight", weight);
    p->bias = td_module_parameter(&p->base, "bias", td_zeros(TD_SHAPE(out), TD_F32));
    return &p->base;
}

/* What norms make is read by products alone: inside TD_AUTOCAST it need not be in f32 in between. */
static const td_nn_layer_norm_opts low = { .low = true };

/* ---- a block ---------------------------------------------------------------------------------------------------------------- */

/* Heads are views of the one projection (N,T,3*width): attention reads them where they are. */
static td_tensor *attention(gpt_block *b, td_tensor *x)
{
    int64_t n = td_dim(x, 0), t = td_dim(x, 1), width = td_dim(x, 2);
    td_tensor *qkv = td_forward(b->c_attn, x), *part[3];
    for (int i = 0; i < 3; i++)
        part[i] = td_transpose(td_reshape(td_narrow(qkv, 2, i * width, width), TD_SHAPE(n, t, b->heads, width / b->heads)), 1, 2);
    td_tensor *y = td_attention(part[0], part[1], part[2], &(td_attention_opts){ .causal = true });
    return td_forward(b->attn_c_proj, td_reshape(td_transpose(y, 1, 2), TD_SHAPE(n, t, width)));
}

static td_tensor *dropped(const gpt_block *b, td_tensor *x)
{
    return b->dropout > 0 ? td_dropout(x, b->dropout, td_is_training(&b->base)) : x;
}

/* c_proj of gelu of c_fc, as one operation: GELU and its gradient are computed within the products where the device can. */
td_tensor *gpt_mlp(const gpt_block *b, td_tensor *x)
{
    const gpt_projection *fc = (const gpt_projection *)b->c_fc, *proj = (const gpt_projection *)b->mlp_c_proj;
    return td_mlp(x, fc->weight, fc->bias, proj->weight, proj->bias, &(td_linear_gelu_opts){ .in_out = true });
}

static td_tensor *block_forward(td_module *m, td_tensor *x)
{
    gpt_block *b = (gpt_block *)m;
    x = td_add(x, dropped(b, attention(b, td_forward(b->ln_1, x))));
    return td_add(x, dropped(b, gpt_mlp(b, td_forward(b->ln_2, x))));
}

static const td_module_type group_type = { .kind = "group", .size = sizeof(td_module) };
static const td_module_type block_type = { .kind = "block", .size = sizeof(gpt_block), .forward = block_forward };

static gpt_block *block_new(const gpt_opts *o)
{
    gpt_block *b = (gpt_block *)td_module_new(&block_type);
    td_module *attn = td_module_new(&group_type), *mlp = td_module_new(&group_type);
    const double std = 0.02, last = 0.02 / sqrt(2.0 * (double)o->layers);
    b->heads = o->heads;
    b->dropout = o->dropout;
    b->ln_1 = td_module_child(&b->base, "ln_1", td_nn_layer_norm(TD_SHAPE(o->width), &low));
    td_module_child(&b->base, "attn", attn);
    b->c_attn = td_module_child(attn, "c_attn", projection_new(o->width, 3 * o->width, std));
    b->attn_c_proj = td_module_child(attn, "c_proj", projection_new(o->width, o->width, last));
    b->ln_2 = td_module_child(&b->base, "ln_2", td_nn_layer_norm(TD_SHAPE(o->width), &low));
    td_module_child(&b->base, "mlp", mlp);
    b->c_fc = td_module_child(mlp, "c_fc", projection_new(o->width, 4 * o->width, std));
    b->mlp_c_proj = td_module_child(mlp, "c_proj", projection_new(4 * o->width, o->width, last));
    return b;
}

/* ---- the whole ----------------------------------------------------------------------------------------------------------------- */

static const td_module_type gpt_type = { .kind = "gpt", .size = sizeof(gpt) };

static td_module *table_new(int64_t count, int64_t width)
{
    td_module *table = td_nn_embedding(count, width, NULL);
    td_nn_init_normal(td_parameter_get(table, "weight"), 0, 0.02);
    return table;
}

gpt *gpt_new(const gpt_opts *opts)
{
    gpt_opts o = opts ? *opts : (gpt_opts){ 0 };
    if (!fill_in(&o))
        return NULL;
    gpt *net = (gpt *)td_module_new(&gpt_type);
    net->opts = o;
    net->wte = td_module_child(&net->base, "wte", table_new(o.vocab, o.width));
    net->wpe = td_module_child(&net->base, "wpe", table_new(o.context, o.width));
    td_module *h = td_module_child(&net->base, "h", td_module_new(&group_type));
    for (int64_t i = 0; i < o.layers; i++) {
        char name[24];
        snprintf(name, sizeof name, "%lld", (long long)i);
        net->block[i] = block_new(&o);
        td_module_child(h, name, &net->block[i]->base);
    }
    net->ln_f = td_module_child(&net->base, "ln_f", td_nn_layer_norm(TD_SHAPE(o.width), &low));
    return net;
}

td_tensor *gpt_logits(gpt *net, td_tensor *ids)
{
    TD_MODULE_SCOPE(net);
    const gpt_opts *o = &net->opts;
    td_tensor *tokens = td_forward(net->wte, ids);
    td_tensor *places = td_narrow(td_parameter_get(net->wpe, "weight"), 0, 0, td_dim(tokens, 1));
    td_tensor *x = td_add(tokens, places);
    if (o->dropout > 0)
        x = td_dropout(x, o->dropout, td_is_training(&net->base));
    for (int64_t i = 0; i < o->layers; i++)
        x = o->checkpointing ? td_forward_checkpointed(&net->block[i]->base, x) : td_forward(&net->block[i]->base, x);
    x = td_forward(net->ln_f, x);
    return td_escape(td_linear(x, td_parameter_get(net->wte, "weight"), NULL));
}

td_tensor *gpt_loss(gpt *net, td_tensor *x, td_tensor *y)
{
    TD_MODULE_SCOPE(net);
    td_tensor *logits = td_reshape(gpt_logits(net, x), TD_SHAPE(-1, net->opts.vocab));
    return td_escape(td_cross_entropy(logits, td_reshape(y, TD_SHAPE(-1)), NULL));
}

int64_t gpt_parameters(gpt *net)
{
    int64_t n = 0;
    td_tensors all = td_parameters(&net->base);
    for (size_t i = 0; i < all.n; i++)
        n += td_numel(all.list[i]);
    return n;
}

double gpt_flops_per_token(gpt *net, int64_t t)
{
    const gpt_opts *o = &net->opts;
    double in_blocks = 12.0 * (double)o->layers * (double)o->width * (double)o->width, head = (double)o->vocab * (double)o->width;
    return 6 * (in_blocks + head) + 6.0 * (double)o->layers * (double)o->width * (double)t;
}
