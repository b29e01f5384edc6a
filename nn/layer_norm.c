/* nn/layer_norm.c: the normalisations that look at one sample alone: layer norm and RMS norm over the last dimensions, group norm over groups of
 * channels. No statistics are kept, so training and evaluation are the same. Weights begin as ones, biases as zeros. */
#include "nn_impl.h"
#include <float.h>
#include <stdio.h>

static bool eps_fits(const char *who, double eps)
{
    if (eps >= 0)
        return true;
    td__fail(TD_ERR_ARGUMENT, "%s: eps is %g, expected 0 (the default) or more", who, eps);
    return false;
}

/* ---- layer norm ------------------------------------------------------------------------------------------------------ */

typedef struct { td_module base; td_tensor *weight, *bias; td_shape shape; double eps; bool low; } layer_norm;

static td_tensor *layer_forward(td_module *m, td_tensor *x)
{
    const layer_norm *l = (const layer_norm *)m;
    const td_dtype now = td__autocast_now();
    if (l->low && now != TD_F32 && td_dtype_of(x) != TD_F64)
        return td_layer_norm_to(x, l->weight, l->bias, l->shape.ndim, l->eps, now);
    return td_layer_norm(x, l->weight, l->bias, l->shape.ndim, l->eps);
}

static void layer_describe(const td_module *m, char *into, size_t size)
{
    const layer_norm *l = (const layer_norm *)m;
    char text[128];
    snprintf(into, size, "shape=%s%s", td__shape_text(l->shape, text), !l->weight ? ", no affine" : l->bias ? "" : ", no bias");
}

static const td_module_type layer_type = { .kind = "layer_norm", .size = sizeof(layer_norm), .forward = layer_forward,
                                           .describe = layer_describe };

td_module *td_nn_layer_norm(td_shape shape, const td_nn_layer_norm_opts *opts)
{
    TD_ENTER();
    char text[128];
    if (td__shape_check("td_nn_layer_norm", shape))
        return td__module_poison();
    if (shape.ndim < 1 || td__shape_numel(shape) < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_layer_norm: the shape is %s, expected 1 dimension or more, of sizes of 1 or more",
                 td__shape_text(shape, text));
        return td__module_poison();
    }
    if (!eps_fits("td_nn_layer_norm", opts ? opts->eps : 0))
        return td__module_poison();
    layer_norm *l = (layer_norm *)td_module_new(&layer_type);
    l->shape = shape;
    l->eps = opts && opts->eps != 0 ? opts->eps : 1e-5;
    l->low = opts && opts->low;
    if (!opts || !opts->no_affine)
        l->weight = td_module_parameter(&l->base, "weight", td_ones(shape, TD_F32));
    if (!opts || (!opts->no_affine && !opts->no_bias))
        l->bias = td_module_parameter(&l->base, "bias", td_zeros(shape, TD_F32));
    return td__layer_done(&l->base);
}

/* ---- RMS norm -------------------------------------------------------------------------------------------------------- */

typedef struct { td_module base; td_tensor *weight; int64_t width; double eps; bool low; } rms_norm;

/* As PyTorch: by default the machine epsilon of x's dtype. */
static td_tensor *rms_forward(td_module *m, td_tensor *x)
{
    const rms_norm *r = (const rms_norm *)m;
    char text[128];
    if (x && !x->poisoned && (x->shape.ndim < 1 || x->shape.dim[x->shape.ndim - 1] != r->width)) {
        td__fail(TD_ERR_SHAPE, "td_nn_rms_norm: x has shape %s, expected (…,%lld)", td__shape_text(x->shape, text), (long long)r->width);
        return td__poison();
    }
    double eps = r->eps != 0 ? r->eps : x && x->dtype == TD_F64 ? DBL_EPSILON : (double)FLT_EPSILON;
    const td_dtype now = td__autocast_now();
    if (r->low && now != TD_F32 && td_dtype_of(x) != TD_F64)
        return td_rms_norm_to(x, r->weight, eps, now);
    return td_rms_norm(x, r->weight, eps);
}

static void rms_describe(const td_module *m, char *into, size_t size)
{
    const rms_norm *r = (const rms_norm *)m;
    snprintf(into, size, "width=%lld%s", (long long)r->width, r->weight ? "" : ", no affine");
}

static const td_module_type rms_type = { .kind = "rms_norm", .size = sizeof(rms_norm), .forward = rms_forward, .describe = rms_describe };

td_module *td_nn_rms_norm(int64_t width, const td_nn_rms_norm_opts *opts)
{
    TD_ENTER();
    if (width < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_rms_norm: width is %lld, expected 1 or more", (long long)width);
        return td__module_poison();
    }
    if (!eps_fits("td_nn_rms_norm", opts ? opts->eps : 0))
        return td__module_poison();
    rms_norm *r = (rms_norm *)td_module_new(&rms_type);
    r->width = width;
    r->eps = opts ? opts->eps : 0;
    r->low = opts && opts->low;
    if (!opts || !opts->no_affine)
        r->weight = td_module_parameter(&r->base, "weight", td_ones(TD_SHAPE(width), TD_F32));
    return td__layer_done(&r->base);
}

/* ---- group norm ------------------------------------------------------------------------------------------------------- */

typedef struct { td_module base; td_tensor *weight, *bias; int64_t groups, channels; double eps; } group_norm;

static td_tensor *group_forward(td_module *m, td_tensor *x)
{
    const group_norm *g = (const group_norm *)m;
    char text[128];
    if (x && !x->poisoned && (x->shape.ndim < 2 || x->shape.dim[1] != g->channels)) {
        td__fail(TD_ERR_SHAPE, "td_nn_group_norm: x has shape %s, expected (N,%lld,…)", td__shape_text(x->shape, text), (long long)g->channels);
        return td__poison();
    }
    return td_group_norm(x, g->groups, g->weight, g->bias, g->eps);
}

static void group_describe(const td_module *m, char *into, size_t size)
{
    const group_norm *g = (const group_norm *)m;
    snprintf(into, size, "groups=%lld, channels=%lld%s", (long long)g->groups, (long long)g->channels, g->weight ? "" : ", no affine");
}

static const td_module_type group_type = { .kind = "group_norm", .size = sizeof(group_norm), .forward = group_forward,
                                           .describe = group_describe };

td_module *td_nn_group_norm(int64_t groups, int64_t channels, const td_nn_group_norm_opts *opts)
{
    TD_ENTER();
    if (groups < 1 || channels < 1 || channels % groups != 0) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_group_norm: groups is %lld and channels %lld, expected 1 or more, and groups that divide the channels",
                 (long long)groups, (long long)channels);
        return td__module_poison();
    }
    if (!eps_fits("td_nn_group_norm", opts ? opts->eps : 0))
        return td__module_poison();
    group_norm *g = (group_norm *)td_module_new(&group_type);
    g->groups = groups;
    g->channels = channels;
    g->eps = opts && opts->eps != 0 ? opts->eps : 1e-5;
    if (!opts || !opts->no_affine) {
        g->weight = td_module_parameter(&g->base, "weight", td_ones(TD_SHAPE(channels), TD_F32));
        g->bias = td_module_parameter(&g->base, "bias", td_zeros(TD_SHAPE(channels), TD_F32));
    }
    return td__layer_done(&g->base);
}
