/* nn/batch_norm.c: normalisation over batch and space, per channel of (N,C,…). Statistics of the batch while training, the running
 * ones otherwise; those are buffers, so they are saved and broadcast but never optimised. */
#include "nn_impl.h"
#include <stdio.h>

typedef struct {
    td_module base;
    td_tensor *weight, *bias, *running_mean, *running_var;
    int64_t channels;
    double momentum, eps;
    td_tensor *(*elsewhere)(const td__norm_call *n, void *with);     /* NULL: here */
    void *with;
} batch_norm;

static td_tensor *forward(td_module *m, td_tensor *x)
{
    const batch_norm *b = (const batch_norm *)m;
    if (b->elsewhere && x && td_is_training(m)) {
        td__norm_call n = { x, b->weight, b->bias, b->running_mean, b->running_var, b->momentum, b->eps };
        n.momentum = n.momentum == 0 ? 0.1 : n.momentum == TD_ZERO ? 0 : n.momentum;
        n.eps = n.eps == 0 ? 1e-5 : n.eps;
        return b->elsewhere(&n, b->with);
    }
    return td_batch_norm(x, b->weight, b->bias, b->running_mean, b->running_var,
                         &(td_batch_norm_opts){ .train = td_is_training(m), .momentum = b->momentum, .eps = b->eps });
}

static void describe(const td_module *m, char *into, size_t size)
{
    const batch_norm *b = (const batch_norm *)m;
    snprintf(into, size, "channels=%lld%s", (long long)b->channels, b->weight ? "" : ", no affine");
}

static const td_module_type type = { .kind = "batch_norm", .size = sizeof(batch_norm), .forward = forward, .describe = describe };

td_tensor *td_batch_norm_relu_forward(td_module *m, td_tensor *x, td_tensor *z)
{
    TD_ENTER();
    if (td__module_check("td_batch_norm_relu_forward", m))
        return td__poison();
    if (m->type != &type) {
        td__fail(TD_ERR_ARGUMENT, "td_batch_norm_relu_forward: the module is a %s, expected one of td_nn_batch_norm", m->type->kind);
        return td__poison();
    }
    TD_MODULE_SCOPE(m);
    const batch_norm *b = (const batch_norm *)m;
    /* On the CPU the three apart: little is lost there, and the bits stay those that they have always had. */
    if (td_device_of(x).kind != TD_CPU && (!b->elsewhere || !td_is_training(m)))
        return td_escape(td_batch_norm_relu(x, z, b->weight, b->bias, b->running_mean, b->running_var,
                                            &(td_batch_norm_opts){ .train = td_is_training(m), .momentum = b->momentum, .eps = b->eps }));
    if (z && !td_is_poisoned(x) && !td_is_poisoned(z) && !td__shape_equal(td_shape_of(z), td_shape_of(x))) {
        char zt[128], xt[128];
        td__fail(TD_ERR_SHAPE, "td_batch_norm_relu: z has shape %s, expected %s as x", td__shape_text(td_shape_of(z), zt),
                 td__shape_text(td_shape_of(x), xt));
        return td__poison();
    }
    td_tensor *y = forward(m, x);
    return td_escape(td_relu(z ? td_add(y, z) : y));
}

int td__batch_norm_divert(td_module *m, td_tensor *(*elsewhere)(const td__norm_call *n, void *with), void *with)
{
    if (m->type != &type)
        return 0;
    batch_norm *b = (batch_norm *)m;
    b->elsewhere = elsewhere;
    b->with = with;
    return 1;
}

td_module *td_nn_batch_norm(int64_t channels, const td_nn_batch_norm_opts *opts)
{
    TD_ENTER();
    double momentum = opts ? opts->momentum : 0, eps = opts ? opts->eps : 0;
    if (channels < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_batch_norm: channels is %lld, expected 1 or more", (long long)channels);
        return td__module_poison();
    }
    if (!(momentum == TD_ZERO || (momentum >= 0 && momentum <= 1)) || !(eps >= 0)) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_batch_norm: momentum is %g and eps %g, expected 0 to 1 (TD_ZERO for 0) and more than 0",
                 momentum, eps);
        return td__module_poison();
    }
    batch_norm *b = (batch_norm *)td_module_new(&type);
    td_shape shape = TD_SHAPE(channels);
    b->channels = channels;
    b->momentum = momentum;
    b->eps = eps;
    if (!opts || !opts->no_affine) {
        b->weight = td_module_parameter(&b->base, "weight", td_ones(shape, TD_F32));
        b->bias = td_module_parameter(&b->base, "bias", td_zeros(shape, TD_F32));
    }
    b->running_mean = td_module_buffer(&b->base, "running_mean", td_zeros(shape, TD_F32));
    b->running_var = td_module_buffer(&b->base, "running_var", td_ones(shape, TD_F32));
    return td__layer_done(&b->base);
}
