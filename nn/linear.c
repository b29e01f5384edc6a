/* nn/linear.c: y = x weight^T + bias, over the last dimension. */
#include "nn_impl.h"
#include <stdio.h>

typedef struct { td_module base; td_tensor *weight, *bias; int64_t in, out; } linear;

static td_tensor *forward(td_module *m, td_tensor *x)
{
    const linear *l = (const linear *)m;
    return td_linear(x, l->weight, l->bias);
}

static void describe(const td_module *m, char *into, size_t size)
{
    const linear *l = (const linear *)m;
    snprintf(into, size, "in=%lld, out=%lld%s", (long long)l->in, (long long)l->out, l->bias ? "" : ", no bias");
}

static const td_module_type type = { .kind = "linear", .size = sizeof(linear), .forward = forward, .describe = describe };

td_module *td_nn_linear(int64_t in, int64_t out, const td_nn_linear_opts *opts)
{
    TD_ENTER();
    if (in < 1 || out < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_linear: in is %lld and out is %lld, expected 1 or more", (long long)in, (long long)out);
        return td__module_poison();
    }
    linear *l = (linear *)td_module_new(&type);
    l->in = in;
    l->out = out;
    l->weight = td__layer_parameter(&l->base, "weight", TD_SHAPE(out, in), in);
    if (!opts || !opts->no_bias)
        l->bias = td__layer_parameter(&l->base, "bias", TD_SHAPE(out), in);
    return td__layer_done(&l->base);
}
