/* nn/conv2d.c: convolutions of images (N,C,H,W) with square kernels: cross-correlation, and the transposed one. */
#include "nn_impl.h"
#include <stdio.h>
#include <string.h>

typedef struct { td_module base; td_tensor *weight, *bias; int64_t in, out; int kernel; td_conv2d_opts opts; } conv2d;
typedef struct { td_module base; td_tensor *weight, *bias; int64_t in, out; int kernel; td_conv_transpose2d_opts opts; } conv_transpose2d;

static td_tensor *forward(td_module *m, td_tensor *x)
{
    const conv2d *c = (const conv2d *)m;
    return td_conv2d(x, c->weight, c->bias, &c->opts);
}

static td_tensor *transpose_forward(td_module *m, td_tensor *x)
{
    const conv_transpose2d *c = (const conv_transpose2d *)m;
    return td_conv_transpose2d(x, c->weight, c->bias, &c->opts);
}

/* What differs from the default, after the sizes. */
static void describe_more(char *into, size_t size, int output_padding, int dilation, int groups, bool bias)
{
    const struct { const char *name; int value, usual; } more[] = { { "output_padding", output_padding, 0 }, { "dilation", dilation, 1 },
                                                                    { "groups", groups, 1 } };
    for (size_t i = 0; i < TD_COUNT(more); i++)
        if (more[i].value != more[i].usual) {
            size_t used = strlen(into);
            snprintf(into + used, size - used, ", %s=%d", more[i].name, more[i].value);
        }
    size_t used = strlen(into);
    snprintf(into + used, size - used, "%s", bias ? "" : ", no bias");
}

static void describe(const td_module *m, char *into, size_t size)
{
    const conv2d *c = (const conv2d *)m;
    snprintf(into, size, "in=%lld, out=%lld, kernel=%d, stride=%d, padding=%d", (long long)c->in, (long long)c->out, c->kernel,
             c->opts.stride, c->opts.padding);
    describe_more(into, size, 0, c->opts.dilation, c->opts.groups, c->bias != NULL);
}

static void transpose_describe(const td_module *m, char *into, size_t size)
{
    const conv_transpose2d *c = (const conv_transpose2d *)m;
    snprintf(into, size, "in=%lld, out=%lld, kernel=%d, stride=%d, padding=%d", (long long)c->in, (long long)c->out, c->kernel,
             c->opts.stride, c->opts.padding);
    describe_more(into, size, c->opts.output_padding, c->opts.dilation, c->opts.groups, c->bias != NULL);
}

static const td_module_type type = { .kind = "conv2d", .size = sizeof(conv2d), .forward = forward, .describe = describe };
static const td_module_type transpose_type = { .kind = "conv_transpose2d", .size = sizeof(conv_transpose2d), .forward = transpose_forward,
                                               .describe = transpose_describe };

/* 0, or the sentence. `wide`: the channels that stand undivided by groups in the fan, in or out. */
static int check(const char *kind, int64_t in, int64_t out, int kernel, int stride, int padding, int dilation, int groups, int64_t wide,
                 int64_t *fan_in)
{
    if (in < 1 || out < 1 || kernel < 1)
        return td__fail(TD_ERR_ARGUMENT, "td_nn_%s: in is %lld, out %lld and kernel %d, expected 1 or more", kind, (long long)in,
                        (long long)out, kernel);
    if (stride < 1 || padding < 0)
        return td__fail(TD_ERR_ARGUMENT, "td_nn_%s: stride is %d and padding %d, expected 1 or more and 0 or more", kind, stride, padding);
    if (dilation < 1 || groups < 1)
        return td__fail(TD_ERR_ARGUMENT, "td_nn_%s: dilation is %d and groups %d, expected 1 or more", kind, dilation, groups);
    if (in % groups != 0 || out % groups != 0)
        return td__fail(TD_ERR_ARGUMENT, "td_nn_%s: groups is %d, expected a divisor of in %lld and out %lld", kind, groups, (long long)in,
                        (long long)out);
    if (__builtin_mul_overflow(wide / groups, (int64_t)kernel * kernel, fan_in))
        return td__fail(TD_ERR_ARGUMENT, "td_nn_%s: in %lld and out %lld with kernel %d are more than memory can hold", kind, (long long)in,
                        (long long)out, kernel);
    return 0;
}

td_module *td_nn_conv2d(int64_t in, int64_t out, int kernel, const td_nn_conv2d_opts *opts)
{
    TD_ENTER();
    const td_nn_conv2d_opts o = opts ? *opts : (td_nn_conv2d_opts){ 0 };
    const td_conv2d_opts of = { .stride = o.stride ? o.stride : 1, .padding = o.padding, .dilation = o.dilation ? o.dilation : 1,
                                .groups = o.groups ? o.groups : 1 };
    int64_t fan_in = 0;
    if (check("conv2d", in, out, kernel, of.stride, of.padding, of.dilation, of.groups, in, &fan_in) != 0)
        return td__module_poison();
    conv2d *c = (conv2d *)td_module_new(&type);
    c->in = in;
    c->out = out;
    c->kernel = kernel;
    c->opts = of;
    c->weight = td__layer_parameter(&c->base, "weight", TD_SHAPE(out, in / of.groups, kernel, kernel), fan_in);
    if (!o.no_bias)
        c->bias = td__layer_parameter(&c->base, "bias", TD_SHAPE(out), fan_in);
    return td__layer_done(&c->base);
}

td_module *td_nn_conv_transpose2d(int64_t in, int64_t out, int kernel, const td_nn_conv_transpose2d_opts *opts)
{
    TD_ENTER();
    const td_nn_conv_transpose2d_opts o = opts ? *opts : (td_nn_conv_transpose2d_opts){ 0 };
    const td_conv_transpose2d_opts of = { .stride = o.stride ? o.stride : 1, .padding = o.padding, .output_padding = o.output_padding,
                                          .dilation = o.dilation ? o.dilation : 1, .groups = o.groups ? o.groups : 1 };
    int64_t fan_in = 0;
    if (check("conv_transpose2d", in, out, kernel, of.stride, of.padding, of.dilation, of.groups, out, &fan_in) != 0)
        return td__module_poison();
    const int most = of.stride > of.dilation ? of.stride : of.dilation;
    if (of.output_padding < 0 || of.output_padding >= most) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_conv_transpose2d: output_padding is %d, expected 0 or more and less than %d, the larger of stride and "
                 "dilation", of.output_padding, most);
        return td__module_poison();
    }
    conv_transpose2d *c = (conv_transpose2d *)td_module_new(&transpose_type);
    c->in = in;
    c->out = out;
    c->kernel = kernel;
    c->opts = of;
    c->weight = td__layer_parameter(&c->base, "weight", TD_SHAPE(in, out / of.groups, kernel, kernel), fan_in);
    if (!o.no_bias)
        c->bias = td__layer_parameter(&c->base, "bias", TD_SHAPE(out), fan_in);
    return td__layer_done(&c->base);
}
