/* optim/clip.c: clipping by the global 2-norm of the gradients.
 *
 * td_clip_grad_norm tells the norm and scales the gradients: the host waits for the norm. td_clip_grad_norm_async does neither: norm and factor stay
 * on the device, where the next step's kernels read the factor, so there is no pass over the gradients either.
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

static double clip(td_optim *opt, double max_norm)
{
    if (td__optim_check("td_clip_grad_norm", opt) != 0 || td__pending())
        return NAN;
    if (!(max_norm > 0)) {
        td__fail(TD_ERR_ARGUMENT, "td_clip_grad_norm: max_norm is %g, expected more than 0", max_norm);
        return NAN;
    }
    if (td__optim_finalise("td_clip_grad_norm", opt) != 0 || td__optim_squares("td_clip_grad_norm", opt) != 0)
        return NAN;
    double norm = sqrt(td__optim_number_read(opt, TD__SQUARES));
    if (opt->factored)
        norm *= fabs(td__optim_number_read(opt, TD__FACTOR));
    if (isfinite(norm) && norm > max_norm && scale(opt, max_norm / norm) != 0)
        return NAN;
    return norm;
}

td_tensor *td_clip_grad_norm_async(td_optim *opt, double max_norm)
{
    TD_ENTER();
    static const char who[] = "td_clip_grad_norm_async";
    if (td__optim_check(who, opt) != 0 || td__pending())
        return td__poison();
    if (!(max_norm > 0)) {
        td__fail(TD_ERR_ARGUMENT, "%s: max_norm is %g, expected more than 0", who, max_norm);
        return td__poison();
    }
    if (td__optim_finalise(who, opt) != 0 || td__optim_squares(who, opt) != 0 || td__need(who, opt->param[0].value, clip_factor) != 0 ||
        (!opt->factored && td__optim_number_set(opt, TD__FACTOR, 1) != 0))
        return td__poison();
    const td_tensor *like = opt->param[0].value;
    td_tensor *norm = td__tensor_new((td_shape){ .ndim = 0 }, TD_F64, like->storage->device);
    if (norm->poisoned)
        return norm;
    td__kernels(like)->clip_factor(td__optim_number(opt, TD__SQUARES), max_norm, td__optim_number(opt, TD__FACTOR), td__ptr(norm));
    opt->factored = true;
    return td__scoped_tensor(norm);
}

double td_clip_grad_norm(td_optim *opt, double max_norm)
{
    TD_ENTER();
    td__note_clip(opt, max_norm);
    double norm = clip(opt, max_norm);
    td__record_end();
    return norm;
}
