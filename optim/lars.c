/* optim/lars.c: LARS (You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks", algorithm 1).
 *
 * One parameter at a time: its norm and its gradient's first, then one pass. The learning rate is part of the momentum, as in the paper.
 */
#include "optim_impl.h"

static int moments(const td__options *o)
{
    return o->momentum != 0;
}

static int run(const td_tensor *like, const td__run *r, const td__options *o)
{
    int rc = td__need("td_optim_step", like, lars);
    if (rc == 0)
        rc = td__need("td_optim_step", like, sumsq);
    if (rc != 0)
        return rc;
    const td_kernels *k = td__kernels(like);
    if (!o->no_trust) {
        const void *p = r->s.p;                /* never its master, which new weights may have left behind                   */
        k->sumsq(r->dtype, 1, &r->n, &p, r->squares, false);
        k->sumsq(r->dtype, 1, &r->n, &r->s.g, r->squares + 1, false);
        rc = td__run_sum(r, 2);
        if (rc != 0)
            return rc;
    }
    k->lars(r->dtype, r->n, &r->s, r->moment[0], o->no_trust ? NULL : r->squares, o->trust, o->momentum, o->weight_decay);
    return 0;
}

static const td__rule rule = { .name = "lars", .each = true, .moments = moments, .run = run };

static int read_options(const char *who, const td_lars_opts *given, td__options *o)
{
    static const td_lars_opts standard;
    const td_lars_opts *g = given ? given : &standard;
    *o = (td__options){ .lr = td__option(g->lr, 0.1), .momentum = td__option(g->momentum, 0.9), .weight_decay = td__option(g->weight_decay, 5e-4),
                        .trust = g->trust != 0 ? g->trust : 1e-3, .no_trust = g->no_trust };
    int rc = td__check_rates(who, o);
    if (rc == 0)
        rc = td__check_fraction(who, "momentum", o->momentum);
    return rc == 0 ? td__check_positive(who, "trust", o->trust) : rc;
}

td_optim *td_lars_new(td_tensors parameters, const td_lars_opts *opts)
{
    TD_ENTER();
    td__options o;
    return read_options("td_lars_new", opts, &o) == 0 ? td__optim_new("td_lars_new", &rule, parameters, &o) : &td__optim_poison;
}

int td_lars_add_group(td_optim *opt, td_tensors parameters, const td_lars_opts *opts)
{
    TD_ENTER();
    td__options o;
    int rc = read_options("td_lars_add_group", opts, &o);
    return rc == 0 ? td__optim_add("td_lars_add_group", opt, &rule, parameters, &o) : rc;
}
