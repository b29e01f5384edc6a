/* optim/adam.c: Adam with weight decay as part of the gradient (Kingma and Ba 2015), as PyTorch's Adam without amsgrad. */
#include "optim_impl.h"

static int moments(const td__options *o)
{
    (void)o;
    return 2;
}

static int run(const td_tensor *like, const td__run *r, const td__options *o)
{
    int rc = td__need("td_optim_step", like, adam);
    if (rc == 0)
        td__kernels(like)->adam(r->dtype, r->n, &r->s, r->moment[0], r->moment[1], o->beta1, o->beta2, o->eps, o->weight_decay, r->bias1,
                                r->bias2);
    return rc;
}

static const td__rule rule = { .name = "adam", .moments = moments, .run = run };

static int read_options(const char *who, const td_adam_opts *given, td__options *o)
{
    static const td_adam_opts standard;
    const td_adam_opts *g = given ? given : &standard;
    *o = (td__options){ .lr = td__option(g->lr, 1e-3), .beta1 = td__option(g->beta1, 0.9), .beta2 = td__option(g->beta2, 0.999),
                        .eps = g->eps != 0 ? g->eps : 1e-8, .weight_decay = g->weight_decay };
    return td__check_adam(who, o);
}

td_optim *td_adam_new(td_tensors parameters, const td_adam_opts *opts)
{
    TD_ENTER();
    td__options o;
    return read_options("td_adam_new", opts, &o) == 0 ? td__optim_new("td_adam_new", &rule, parameters, &o) : &td__optim_poison;
}

int td_adam_add_group(td_optim *opt, td_tensors parameters, const td_adam_opts *opts)
{
    TD_ENTER();
    td__options o;
    int rc = read_options("td_adam_add_group", opts, &o);
    return rc == 0 ? td__optim_add("td_adam_add_group", opt, &rule, parameters, &o) : rc;
}
