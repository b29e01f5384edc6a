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
        int rc = td__need("td_clip_grad_norm", p->value, times);
        if (rc != 0)
            return rc;
        td__kernels(p->value)->times(p->value->dtype, n, td__ptr(p->leaf->grad), (td_number){ .by = factor });
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
    if (opt->factored && opt->factored_walks == td__optim_walks(opt))
        norm *= fabs(td__optim_number_read(opt, TD__FACTOR));
    if (isfinite(norm) && norm > max_norm && scale(opt, max_norm / norm) != 0)
        return NAN;
    return norm;
}

double td_clip_grad_norm(td_optim *opt, double max_norm)
{
    TD_ENTER();
    td__note_clip(opt, max_norm);
    double norm = clip(opt, max_norm);
    td__record_end();
    return norm;
}

/* ---- clipping that waits for the step -------------------------------------------------------------------------------------------------------- */

static const char later[] = "td_clip_grad_norm_async";

static void expect(td_optim *opt)
{
    opt->factored = true;
    opt->factored_walks = td__optim_walks(opt);
}

static int measure(td_optim *opt, double max_norm, td_tensor *norm)
{
    const td_tensor *like = opt->param[0].value;
    int rc = td__optim_finalise(later, opt);
    if (rc == 0)
        rc = td__optim_squares(later, opt);
    if (rc == 0)
        rc = td__need(later, like, clip_factor);
    if (rc == 0 && (!opt->factored || opt->factored_walks != td__optim_walks(opt)))
        rc = td__optim_number_set(opt, TD__FACTOR, 1);
    if (rc != 0)
        return rc;
    td__kernels(like)->clip_factor(td__optim_number(opt, TD__SQUARES), max_norm, td__optim_number(opt, TD__FACTOR), td__ptr(norm));
    expect(opt);
    return 0;
}

/* Once more, for a captured step. */
typedef struct { td_optim *opt; double max_norm; td_tensor *norm; } delayed;

static int clip_run(void *state)
{
    const delayed *c = state;
    int rc = td__optim_check_lives(c->opt, later);
    return rc ? rc : measure(c->opt, c->max_norm, c->norm);
}

static int clip_host(void *state)
{
    const delayed *c = state;
    int rc = td__optim_check_lives(c->opt, later);
    if (rc == 0)
        expect(c->opt);
    return rc;
}

static void clip_drop(void *state)
{
    td__tensor_unref(((delayed *)state)->norm);
}

static const td__record_kind clip_kind = { .name = later, .size = sizeof(delayed), .run = clip_run, .host = clip_host, .drop = clip_drop };

td_tensor *td_clip_grad_norm_async(td_optim *opt, double max_norm)
{
    TD_ENTER();
    if (td__optim_check(later, opt) != 0 || td__pending())
        return td__poison();
    if (!(max_norm > 0)) {
        td__fail(TD_ERR_ARGUMENT, "%s: max_norm is %g, expected more than 0", later, max_norm);
        return td__poison();
    }
    td_tensor *norm = td__tensor_new(TD_SCALAR, TD_F64, opt->param[0].value->storage->device);
    if (norm->poisoned)
        return norm;
    delayed *note = td__record_begin(&clip_kind);
    int rc = measure(opt, max_norm, norm);
    td__record_end();
    if (note) {
        td__tensor_ref(norm);
        *note = (delayed){ opt, max_norm, norm };
    }
    if (rc == 0)
        return td__scoped_tensor(norm);
    td__tensor_unref(norm);
    return td__poison();
}
