/* nn/conv2d.c: cross-correlation of images (N,C,H,W) with square kernels. */
#include "nn_impl.h"
#include <stdio.h>

typedef struct { td_module base; td_tensor *weight, *bias; int64_t in, out; int kernel; td_conv2d_opts opts; } conv2d;

static td_tensor *forward(td_module *m, td_tensor *x)
{
    const conv2d *c = (const conv2d *)m;
    return td_conv2d(x, c->weight, c->bias, &c->opts);
}

static void describe(const td_module *m, char *into, size_t size)
{
    const conv2d *c = (const conv2d *)m;
    snprintf(into, size, "in=%lld, out=%lld, kernel=%d, stride=%d, padding=%d%s", (long long)c->in, (long long)c->out, c->kernel,
             c->opts.stride, c->opts.padding, c->bias ? "" : ", no bias");
}

static const td_module_type type = { .kind = "conv2d", .size = sizeof(conv2d), .forward = forward, .describe = describe };

td_module *td_nn_conv2d(int64_t in, int64_t out, int kernel, const td_nn_conv2d_opts *opts)
{
    TD_ENTER();
    int stride = opts && opts->stride ? opts->stride : 1, padding = opts ? opts->padding : 0;
    if (in < 1 || out < 1 || kernel < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_conv2d: in is %lld, out %lld and kernel %d, expected 1 or more", (long long)in,
                 (long long)out, kernel);
        return td__module_poison();
    }
    if (stride < 1 || padding < 0) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_conv2d: stride is %d and padding %d, expected 1 or more and 0 or more", stride, padding);
        return td__module_poison();
    }
    int64_t fan_in;
    if (__builtin_mul_overflow(in, (int64_t)kernel * kernel, &fan_in)) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_conv2d: in %lld with kernel %d is more than memory can hold", (long long)in, kernel);
        return td__module_poison();
    }
    conv2d *c = (conv2d *)td_module_new(&type);
    c->in = in;
    c->out = out;
    c->kernel = kernel;
    c->opts = (td_conv2d_opts){ .stride = stride, .padding = padding };
    c->weight = td__layer_parameter(&c->base, "weight", TD_SHAPE(out, in, kernel, kernel), fan_in);
    if (!opts || !opts->no_bias)
        c->bias = td__layer_parameter(&c->base, "bias", TD_SHAPE(out), fan_in);
    return td__layer_done(&c->base);
}
