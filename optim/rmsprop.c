/* optim/rmsprop.c: RMSprop (Hinton 2012, lecture 6e), centered (Graves 2013) or not, with momentum or not, as PyTorch's.
 *
 * State: the smoothed squares; then momentum's buffer and the smoothed gradient, each only where it is asked for.
 */
#include "optim_impl.h"

static int moments(const td__options *o)
{
    return 1 + (o->momentum != 0) + o->centered;
}

static int run(const td_tensor *like, const td__run *r, const td__options *o)
{
    int rc = td__need("td_optim_step", like, rmsprop);
    if (rc != 0)
        return rc;
    int next = 1;
    void *buffer = o->momentum != 0 ? r->moment[next++] : NULL, *mean = o->centered ? r->moment[next] : NULL;
    td__kernels(like)->rmsprop(r->dtype, r->n, &r->s, r->moment[0], buffer, mean, o->alpha, o->eps, o->weight_decay, o->momentum);
    return 0;
}

static const td__rule rule = { .name = "rmsprop", .moments = moments, .run = run };

static int read_options(const char *who, const td_rmsprop_opts *given, td__options *o)
{
    static const td_rmsprop_opts standard;
    const td_rmsprop_opts *g = given ? given : &standard;
    *o = (td__options){ .lr = td__option(g->lr, 1e-2), .alpha = td__option(g->alpha, 0.99), .eps = g->eps != 0 ? g->eps : 1e-8,
                        .momentum = g->momentum, .weight_decay = g->weight_decay, .centered = g->centered };
    int rc = td__check_rates(who, o);
    if (rc == 0)
        rc = td__check_fraction(who, "alpha", o->alpha);
    if (rc == 0)
        rc = td__check_fraction(who, "momentum", o->momentum);
    return rc == 0 ? td__check_positive(who, "eps", o->eps) : rc;
}

td_optim *td_rmsprop_new(td_tensors parameters, const td_rmsprop_opts *opts)
{
    TD_ENTER();
    td__options o;
    return read_options("td_rmsprop_new", opts, &o) == 0 ? td__optim_new("td_rmsprop_new", &rule, parameters, &o) : &td__optim_poison;
}

int td_rmsprop_add_group(td_optim *opt, td_tensors parameters, const td_rmsprop_opts *opts)
{
    TD_ENTER();
    td__options o;
    int rc = read_options("td_rmsprop_add_group", opts, &o);
    return rc == 0 ? td__optim_add("td_rmsprop_add_group", opt, &rule, parameters, &o) : rc;
}
