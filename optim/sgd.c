/* optim/sgd.c: stochastic gradient descent with momentum, as PyTorch's. */
#include "optim_impl.h"
#include <math.h>

static int moments(const td__options *o)
{
    return o->momentum != 0;
}

static int run(const td_tensor *like, const td__run *r, const td__options *o)
{
    int rc = td__need("td_optim_step", like, sgd);
    if (rc == 0)
        td__kernels(like)->sgd(r->dtype, r->n, &r->s, r->moment[0], o->momentum, o->dampening, o->weight_decay, o->nesterov, r->step == 1);
    return rc;
}

static const td__rule rule = { .name = "sgd", .moments = moments, .run = run };

static int read_options(const char *who, const td_sgd_opts *given, td__options *o)
{
    static const td_sgd_opts standard;
    const td_sgd_opts *g = given ? given : &standard;
    *o = (td__options){ .lr = td__option(g->lr, 1e-3), .momentum = g->momentum, .dampening = g->dampening, .weight_decay = g->weight_decay,
                        .nesterov = g->nesterov };
    if (!(o->lr >= 0) || !isfinite(o->lr))
        return td__fail(TD_ERR_ARGUMENT, "%s: lr is %g, expected 0 or more (0 means 1e-3, TD_ZERO 0)", who, o->lr);
    if (!(o->momentum >= 0) || !(o->weight_decay >= 0))
        return td__fail(TD_ERR_ARGUMENT, "%s: momentum is %g and weight_decay %g, expected 0 or more", who, o->momentum, o->weight_decay);
    if (!(o->dampening >= 0 && o->dampening <= 1))
        return td__fail(TD_ERR_ARGUMENT, "%s: dampening is %g, expected 0 to 1", who, o->dampening);
    if (o->nesterov && (o->momentum == 0 || o->dampening != 0))
        return td__fail(TD_ERR_ARGUMENT, "%s: nesterov needs momentum more than 0 and no dampening, got %g and %g", who, o->momentum, o->dampening);
    return 0;
}

td_optim *td_sgd_new(td_tensors parameters, const td_sgd_opts *opts)
{
    TD_ENTER();
    td__options o;
    return read_options("td_sgd_new", opts, &o) == 0 ? td__optim_new("td_sgd_new", &rule, parameters, &o) : &td__optim_poison;
}

int td_sgd_add_group(td_optim *opt, td_tensors parameters, const td_sgd_opts *opts)
{
    TD_ENTER();
    td__options o;
    int rc = read_options("td_sgd_add_group", opts, &o);
    return rc == 0 ? td__optim_add("td_sgd_add_group", opt, &rule, parameters, &o) : rc;
}
