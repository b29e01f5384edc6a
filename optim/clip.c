/* optim/clip.c: clipping by the global 2-norm of the gradients.
 *
 * Squares are summed per parameter, in f64 in blocks of fixed size, and the parameters' sums in the order in which the optimizer lists
 * them: buckets, threads and ranks change nothing. A flat whose ranks hold shards adds its sums over them.
 */
#include "optim_impl.h"
#include <math.h>

int td__optim_finalise(const char *who, td_optim *opt)
{
    int rc = td__optim_check(who, opt);
    if (rc == 0)
        rc = td__pending();
    if (rc == 0)
        rc = td__not_in_backward(who);
    if (rc == 0)
        rc = td__optim_lay_out(opt);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < opt->n; i++) {
        td__group *g = opt->walk[i]->group;
        if (!g || (i > 0 && opt->walk[i - 1]->group == g))
            continue;
        rc = td__group_finalise(g);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int sum_squares(const td_optim *opt, double *sum)
{
    *sum = 0;
    for (size_t i = 0; i < opt->n; i++) {
        const td__param *p = &opt->param[i];
        if (!td__param_steps(p))
            continue;
        int rc = td__need("td_clip_grad_norm", p->value, sumsq);
        if (rc != 0)
            return rc;
        double part = td__kernels(p->value)->sumsq(p->value->dtype, td__shape_numel(p->value->shape), td__ptr(p->leaf->grad));
        if (p->flat && p->group->ops && p->group->ops->sum)
            rc = p->group->ops->sum(p->flat, &part, 1);
        if (rc != 0)
            return rc;
        *sum += part;
    }
    return 0;
}

static int scale(const td_optim *opt, double factor)
{
    for (size_t i = 0; i < opt->n; i++) {
        const td__param *p = &opt->param[i];
        int64_t n = td__shape_numel(p->value->shape);
        if (!td__param_steps(p) || n == 0)
            continue;
        int rc = td__need("td_clip_grad_norm", p->value, scale);
        if (rc != 0)
            return rc;
        void *g = td__ptr(p->leaf->grad);
        td_loop loop = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 } } };
        td__kernels(p->value)->scale(&loop, p->value->dtype, g, g, factor, 0, false);
        p->leaf->grad->storage->version++;
    }
    return 0;
}

double td_clip_grad_norm(td_optim *opt, double max_norm)
{
    TD_ENTER();
    if (td__optim_check("td_clip_grad_norm", opt) != 0 || td__pending())
        return NAN;
    if (!(max_norm > 0)) {
        td__fail(TD_ERR_ARGUMENT, "td_clip_grad_norm: max_norm is %g, expected more than 0", max_norm);
        return NAN;
    }
    double sum;
    if (td__optim_finalise("td_clip_grad_norm", opt) != 0 || sum_squares(opt, &sum) != 0)
        return NAN;
    double norm = sqrt(sum);
    if (isfinite(norm) && norm > max_norm && scale(opt, max_norm / norm) != 0)
        return NAN;
    return norm;
}
