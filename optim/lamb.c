/* optim/lamb.c: LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning", algorithm 2) with phi(z) = z.
 *
 * Two passes over one parameter at a time: the first updates the moments and sums the squares of p and of the update u, the second makes
 * u again from the moments and applies it, scaled by |p|/|u|. So u needs no memory.
 */
#include "optim_impl.h"

static int moments(const td__options *o)
{
    (void)o;
    return 2;
}

static int run(const td_tensor *like, const td__run *r, const td__options *o)
{
    int rc = td__need("td_optim_step", like, lamb_moments);
    if (rc == 0)
        rc = td__need("td_optim_step", like, lamb);
    if (rc != 0)
        return rc;
    const td_kernels *k = td__kernels(like);
    k->lamb_moments(r->dtype, r->n, &r->s, r->moment[0], r->moment[1], o->beta1, o->beta2, o->eps, o->weight_decay, r->bias1, r->bias2, r->squares);
    rc = td__run_sum(r, 2);
    if (rc == 0)
        k->lamb(r->dtype, r->n, &r->s, r->moment[0], r->moment[1], o->no_trust ? NULL : r->squares, o->eps, o->weight_decay, r->bias1, r->bias2);
    return rc;
}

static const td__rule rule = { .name = "lamb", .each = true, .moments = moments, .run = run };

static int read_options(const char *who, const td_lamb_opts *given, td__options *o)
{
    static const td_lamb_opts standard;
    const td_lamb_opts *g = given ? given : &standard;
    *o = (td__options){ .lr = td__option(g->lr, 1e-3), .beta1 = td__option(g->beta1, 0.9), .beta2 = td__option(g->beta2, 0.999),
                        .eps = g->eps != 0 ? g->eps : 1e-6, .weight_decay = td__option(g->weight_decay, 0.01), .no_trust = g->no_trust };
    return td__check_adam(who, o);
}

td_optim *td_lamb_new(td_tensors parameters, const td_lamb_opts *opts)
{
    TD_ENTER();
    td__options o;
    return read_options("td_lamb_new", opts, &o) == 0 ? td__optim_new("td_lamb_new", &rule, parameters, &o) : &td__optim_poison;
}

int td_lamb_add_group(td_optim *opt, td_tensors parameters, const td_lamb_opts *opts)
{
    TD_ENTER();
    td__options o;
    int rc = read_options("td_lamb_add_group", opts, &o);
    return rc == 0 ? td__optim_add("td_lamb_add_group", opt, &rule, parameters, &o) : rc;
}
