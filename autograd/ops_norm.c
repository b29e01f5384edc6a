/* autograd/ops_norm.c: td_batch_norm. x (N,C,…) is normalised per channel over everything else.
 *
 * The running statistics are inputs without a gradient that a training call changes in place; their versions are bumped. Mean and
 * 1/std are saved, so that grad does not depend on what becomes of the running ones. No rows: nothing is learnt, all gradients are zero.
 */
#include "ops_image.h"
#include "ops_list.h"

typedef struct { bool train; double momentum, eps; } norm_attr;

static void norm_sizes(const td_call *call, int64_t *n, int64_t *c, int64_t *inner)
{
    td_shape s = td_call_input_shape(call, 0);
    *n = s.dim[0], *c = s.dim[1], *inner = 1;
    for (int i = 2; i < s.ndim; i++)
        *inner *= s.dim[i];
}

static int norm_infer(td_call *call)
{
    static const char *const name[] = { "x", "w", "b", "the running mean", "the running variance" };
    const norm_attr *a = td_call_attr(call);
    td_shape x = td_call_input_shape(call, 0);
    char xt[128], st[128];
    int64_t n, c, inner;
    int code = td__image_dtype(call, 0, "x");
    if (code)
        return code;
    if (x.ndim < 2)
        return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, expected at least 2 dimensions (N,C,…)", td__shape_text(x, xt));
    norm_sizes(call, &n, &c, &inner);
    for (int i = 1; i < 5; i++) {
        td_tensor *t = td_call_input(call, i);
        if (!t)
            continue;
        if ((code = td__image_dtype(call, i, name[i])))
            return code;
        if (t->shape.ndim != 1 || t->shape.dim[0] != c)
            return td_call_error(call, TD_ERR_SHAPE, "%s has shape %s, expected (%lld), the channels of x %s (dimension 1)", name[i],
                                 td__shape_text(t->shape, st), (long long)c, td__shape_text(x, xt));
        if (i >= 3 && !td_is_contiguous(t))
            return td_call_error(call, TD_ERR_ARGUMENT, "%s is not contiguous: it is changed in place", name[i]);
        if (i >= 3 && td_call_needs_grad(call, i))
            return td_call_error(call, TD_ERR_ARGUMENT, "%s asks for a gradient, and has none", name[i]);
    }
    if (!td_call_input(call, 3) != !td_call_input(call, 4))
        return td_call_error(call, TD_ERR_ARGUMENT, "a running mean and a running variance belong together: give both or neither");
    if (!a->train && !td_call_input(call, 3))
        return td_call_error(call, TD_ERR_ARGUMENT, "without batch statistics (train is false) the running mean and variance are needed");
    if (!(a->momentum >= 0 && a->momentum <= 1))
        return td_call_error(call, TD_ERR_ARGUMENT, "momentum is %g, expected 0 to 1", a->momentum);
    if (!(a->eps >= 0))
        return td_call_error(call, TD_ERR_ARGUMENT, "eps is %g, expected at least 0", a->eps);
    if (a->train && n * inner == 1)
        return td_call_error(call, TD_ERR_SHAPE, "x %s has one value per channel: training needs more than one for a variance", td__shape_text(x, xt));
    return td_call_infer(call, 0, x, td_dtype_of(td_call_input(call, 0)));
}

static int norm_run(td_call *call)
{
    const norm_attr *a = td_call_attr(call);
    td_tensor *in[5], *x = td_call_input(call, 0);
    const bool learns = a->train && !td_recomputing();     /* a checkpoint's second run has been counted in the first         */
    for (int i = 0; i < 5; i++)
        in[i] = i < 3 || learns || !a->train ? td_call_input(call, i) : NULL;
    int64_t n, c, inner;
    norm_sizes(call, &n, &c, &inner);
    int code = td__need("td_batch_norm", x, batch_norm);
    if (code)
        return code;
    td_tensor *mean = td__tensor_new((td_shape){ 1, { c } }, x->dtype, td_device_of(x));
    td_tensor *rstd = td__tensor_new((td_shape){ 1, { c } }, x->dtype, td_device_of(x));
    if (td_is_poisoned(mean) || td_is_poisoned(rstd)) {
        td__tensor_unref(mean);
        td__tensor_unref(rstd);
        return td__pending();
    }
    td__kernels(x)->batch_norm(x->dtype, n, c, inner, td__ptr(td_call_output(call, 0)), td__ptr(mean), td__ptr(rstd), td__ptr(x),
                               td__image_ptr(in[1]), td__image_ptr(in[2]), td__image_ptr(in[3]), td__image_ptr(in[4]), a->train, a->momentum, a->eps);
    if (learns && in[3] && n * inner > 0) {
        in[3]->storage->version++;
        in[4]->storage->version++;
    }
    td_call_save(call, mean);
    td_call_save(call, rstd);
    if (td_call_needs_grad(call, 1) || (a->train && td_call_needs_grad(call, 0)))
        td_call_save(call, x);
    if (in[1] && td_call_needs_grad(call, 0))
        td_call_save(call, in[1]);
    return 0;
}

static int norm_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    const norm_attr *a = td_call_attr(call);
    td_tensor *g = grad_out[0], *x = td_call_input(call, 0), *w = td_call_input(call, 1);
    int64_t n, c, inner;
    norm_sizes(call, &n, &c, &inner);
    int code = td__need("td_batch_norm", g, batch_norm_grad);
    if (code)
        return code;
    td__kernels(g)->batch_norm_grad(g->dtype, n, c, inner, td__image_ptr(in[0].into), td__image_ptr(in[1].into), td__image_ptr(in[2].into),
                                    td__ptr(g), td__image_ptr(x), td__image_ptr(w), td__ptr(td_call_saved(call, 0)),
                                    td__ptr(td_call_saved(call, 1)), a->train, in[0].add, in[1].add, in[2].add);
    return 0;
}

const td_op td__op_batch_norm = { .name = "batch_norm", .infer = norm_infer, .run = norm_run, .grad = norm_grad, .attr_size = sizeof(norm_attr),
                                  .optional = 1u << 1 | 1u << 2 | 1u << 3 | 1u << 4, .flags = TD_OP_MIXED };

td_tensor *td_batch_norm(td_tensor *x, td_tensor *w, td_tensor *b, td_tensor *running_mean, td_tensor *running_var, const td_batch_norm_opts *opts)
{
    TD_ENTER();
    static const td_batch_norm_opts standard;
    const td_batch_norm_opts *o = opts ? opts : &standard;
    norm_attr a = { o->train, (double)o->momentum, (double)o->eps };
    if (o->momentum == 0)
        a.momentum = 0.1;
    else if (o->momentum == TD_ZERO)
        a.momentum = 0;
    if (o->eps == 0)
        a.eps = 1e-5;
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w), td__image_arg(b), running_mean, running_var };
    return td_apply(&td__op_batch_norm, in, 5, &a);
}
