/* optim/lion.c: Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2): the sign of an interpolated
 * momentum, with decoupled weight decay. */
#include "optim_impl.h"

static int moments(const td__options *o)
{
    (void)o;
    return 1;
}

static int run(const td_tensor *like, const td__run *r, const td__options *o)
{
    int rc = td__need("td_optim_step", like, lion);
    if (rc == 0)
        td__kernels(like)->lion(r->dtype, r->n, &r->s, r->moment[0], o->beta1, o->beta2, o->weight_decay);
    return rc;
}

static const td__rule rule = { .name = "lion", .moments = moments, .run = run };

static int read_options(const char *who, const td_lion_opts *given, td__options *o)
{
    static const td_lion_opts standard;
    const td_lion_opts *g = given ? given : &standard;
    *o = (td__options){ .lr = td__option(g->lr, 1e-4), .beta1 = td__option(g->beta1, 0.9), .beta2 = td__option(g->beta2, 0.99),
                        .weight_decay = g->weight_decay };
    int rc = td__check_rates(who, o);
    if (rc == 0)
        rc = td__check_fraction(who, "beta1", o->beta1);
    return rc == 0 ? td__check_fraction(who, "beta2", o->beta2) : rc;
}

td_optim *td_lion_new(td_tensors parameters, const td_lion_opts *opts)
{
    TD_ENTER();
    td__options o;
    return read_options("td_lion_new", opts, &o) == 0 ? td__optim_new("td_lion_new", &rule, parameters, &o) : &td__optim_poison;
}

int td_lion_add_group(td_optim *opt, td_tensors parameters, const td_lion_opts *opts)
{
    TD_ENTER();
    td__options o;
    int rc = read_options("td_lion_add_group", opts, &o);
    return rc == 0 ? td__optim_add("td_lion_add_group", opt, &rule, parameters, &o) : rc;
}
