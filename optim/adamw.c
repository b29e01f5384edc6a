/* optim/adamw.c: Adam with decoupled weight decay (Loshchilov and Hutter 2019), as PyTorch's AdamW. */
#include "optim_impl.h"
#include <math.h>

static int moments(const td__options *o)
{
    return 2;
}

static int run(const td_tensor *like, const td__run *r, const td__options *o)
{
    int rc = td__need("td_optim_step", like, adamw);
    if (rc == 0)
        td__kernels(like)->adamw(r->dtype, r->n, &r->s, r->moment[0], r->moment[1], o->beta1, o->beta2, o->eps, o->weight_decay, r->bias1,
                                 r->bias2);
    return rc;
}

static const td__rule rule = { .name = "adamw", .moments = moments, .run = run };

static int read_options(const char *who, const td_adamw_opts *given, td__options *o)
{
    static const td_adamw_opts standard;
    const td_adamw_opts *g = given ? given : &standard;
    *o = (td__options){ .lr = td__option(g->lr, 1e-3), .beta1 = td__option(g->beta1, 0.9), .beta2 = td__option(g->beta2, 0.999),
                        .eps = g->eps != 0 ? g->eps : 1e-8, .weight_decay = td__option(g->weight_decay, 0.01) };
    if (!(o->lr >= 0) || !isfinite(o->lr) || !(o->weight_decay >= 0))
        return td__fail(TD_ERR_ARGUMENT, "%s: lr is %g and weight_decay %g, expected 0 or more (TD_ZERO for 0)", who, o->lr, o->weight_decay);
    if (!(o->beta1 >= 0 && o->beta1 < 1) || !(o->beta2 >= 0 && o->beta2 < 1))
        return td__fail(TD_ERR_ARGUMENT, "%s: beta1 is %g and beta2 %g, expected 0 or more (TD_ZERO for 0) and less than 1", who, o->beta1, o->beta2);
    if (!(o->eps > 0))
        return td__fail(TD_ERR_ARGUMENT, "%s: eps is %g, expected more than 0", who, o->eps);
    return 0;
}

td_optim *td_adamw_new(td_tensors parameters, const td_adamw_opts *opts)
{
    TD_ENTER();
    td__options o;
    return read_options("td_adamw_new", opts, &o) == 0 ? td__optim_new("td_adamw_new", &rule, parameters, &o) : &td__optim_poison;
}

int td_adamw_add_group(td_optim *opt, td_tensors parameters, const td_adamw_opts *opts)
{
    TD_ENTER();
    td__options o;
    int rc = read_options("td_adamw_add_group", opts, &o);
    return rc == 0 ? td__optim_add("td_adamw_add_group", opt, &rule, parameters, &o) : rc;
}
