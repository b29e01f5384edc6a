/* optim/adagrad.c: Adagrad (Duchi, Hazan and Singer 2011), as PyTorch's. */
#include "optim_impl.h"
#include <math.h>

static int moments(const td__options *o)
{
    (void)o;
    return 1;
}

static int run(const td_tensor *like, const td__run *r, const td__options *o)
{
    int rc = td__need("td_optim_step", like, adagrad);
    if (rc == 0)
        td__kernels(like)->adagrad(r->dtype, r->n, &r->s, r->moment[0], o->eps, o->weight_decay, r->step == 1, o->initial);
    return rc;
}

static const td__rule rule = { .name = "adagrad", .moments = moments, .run = run };

static int read_options(const char *who, const td_adagrad_opts *given, td__options *o)
{
    static const td_adagrad_opts standard;
    const td_adagrad_opts *g = given ? given : &standard;
    *o = (td__options){ .lr = td__option(g->lr, 1e-2), .lr_decay = g->lr_decay, .eps = g->eps != 0 ? g->eps : 1e-10,
                        .weight_decay = g->weight_decay, .initial = g->initial };
    int rc = td__check_rates(who, o);
    if (rc == 0 && (!(o->lr_decay >= 0) || !(o->initial >= 0) || !isfinite(o->lr_decay) || !isfinite(o->initial)))
        rc = td__fail(TD_ERR_ARGUMENT, "%s: lr_decay is %g and initial %g, expected 0 or more", who, o->lr_decay, o->initial);
    return rc == 0 ? td__check_positive(who, "eps", o->eps) : rc;
}

td_optim *td_adagrad_new(td_tensors parameters, const td_adagrad_opts *opts)
{
    TD_ENTER();
    td__options o;
    return read_options("td_adagrad_new", opts, &o) == 0 ? td__optim_new("td_adagrad_new", &rule, parameters, &o) : &td__optim_poison;
}

int td_adagrad_add_group(td_optim *opt, td_tensors parameters, const td_adagrad_opts *opts)
{
    TD_ENTER();
    td__options o;
    int rc = read_options("td_adagrad_add_group", opts, &o);
    return rc == 0 ? td__optim_add("td_adagrad_add_group", opt, &rule, parameters, &o) : rc;
}
