/* autograd/ops_nll.c: negative log-likelihood of log-probabilities, and binary cross-entropy of logits.
 *
 * Both are means and stamp their result with the divisor (rows not ignored; elements), as the losses of ops_loss.c do.
 */
#include "ops_shared.h"

/* ---- nll: log-probabilities (N,C), target i64 (N) -> () ---------------------------------------------------------------------- */

static int infer_nll(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *t = td_call_input(c, 1);
    char a[128], b[128];
    int code = td__op_float(c, 0, "log_probabilities");
    if (code)
        return code;
    if (t->dtype != TD_I64)
        return td_call_error(c, TD_ERR_DTYPE, "target is %s; class numbers are i64 (td_cast converts)", td_dtype_name(t->dtype));
    if (x->shape.ndim != 2 || t->shape.ndim != 1 || x->shape.dim[0] != t->shape.dim[0])
        return td_call_error(c, TD_ERR_SHAPE, "log_probabilities %s and target %s do not fit: expected (N,C) and (N)",
                             td__shape_text(x->shape, a), td__shape_text(t->shape, b));
    return td_call_infer(c, 0, TD_SCALAR, x->dtype);
}

static int run_nll(td_call *c)
{
    const td_nll_opts *o = td_call_attr(c);
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *t = td_call_input(c, 1);
    int code = td__need("td_nll", out, nll);
    if (code)
        return code;
    td_tensor *dx = td__op_dense(x), *dt = td__op_dense(t), *kept = td__op_stat(x, TD_SCALAR);
    if (dx->poisoned || dt->poisoned || kept->poisoned) {
        code = td__pending();
    } else {
        int64_t bad;
        const td__check check = td__op_target_check(c, x, o->has_ignore_index, o->ignore_index, &bad);
        td__kernels(out)->nll(x->dtype, x->shape.dim[0], x->shape.dim[1], td__ptr(dx), td__ptr(dt), o->has_ignore_index, o->ignore_index,
                              td__ptr(out), td__ptr(kept), &bad);
        code = td__op_target_bad(&check, dt, bad);
    }
    td__tensor_unref(dx);
    if (code) {
        td__tensor_unref(dt);
        td__tensor_unref(kept);
        return code;
    }
    if (!o->has_ignore_index)
        td__op_known(kept, (double)x->shape.dim[0]);
    td_call_stamp(c, kept);
    td__op_save_dense(c, t, dt);
    td_call_save(c, kept);
    return 0;
}

static int grad_nll(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const td_nll_opts *o = td_call_attr(c);
    td_tensor *t = td_call_saved(c, 0), *kept = td_call_saved(c, 1);
    td_shape s = td_call_input_shape(c, 0);
    int code = td__need("td_nll", kept, nll_grad);
    if (code || !slot[0].into)
        return code;
    td__kernels(kept)->nll_grad(g[0]->dtype, s.dim[0], s.dim[1], td__ptr(slot[0].into), td__ptr(g[0]), td__ptr(t), td__ptr(kept),
                                o->has_ignore_index, o->ignore_index, slot[0].add);
    return 0;
}

const td_op td__op_nll = { .name = "nll", .infer = infer_nll, .run = run_nll, .grad = grad_nll,
                           .attr_size = sizeof(td_nll_opts), .flags = TD_OP_HIGH };

td_tensor *td_nll(td_tensor *log_probabilities, td_tensor *target, const td_nll_opts *opts)
{
    TD_ENTER();
    const td_nll_opts standard = { 0 };
    return td_apply(&td__op_nll, (td_tensor *[]){ log_probabilities, target }, 2, opts ? opts : &standard);
}

/* ---- binary cross-entropy with logits: x, target of one shape, weight of positives or NULL -> () --------------------------------- */

static int infer_bce(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *y = td_call_input(c, 1), *w = td_call_input(c, 2);
    td_shape both;
    char a[128], b[128];
    int code = td__op_float(c, 0, "the input");
    if (!code)
        code = td__op_same_dtype(c, 0, 1);
    if (!code && w)
        code = td__op_same_dtype(c, 0, 2);
    if (code)
        return code;
    if (!td__shape_equal(x->shape, y->shape))
        return td_call_error(c, TD_ERR_SHAPE, "input %s and target %s must have the same shape", td__shape_text(x->shape, a),
                             td__shape_text(y->shape, b));
    if (w && (td__shape_broadcast(w->shape, x->shape, &both) || !td__shape_equal(both, x->shape)))
        return td_call_error(c, TD_ERR_SHAPE, "pos_weight %s does not broadcast to the input %s", td__shape_text(w->shape, a),
                             td__shape_text(x->shape, b));
    if (td_call_needs_grad(c, 2))
        return td_call_error(c, TD_ERR_ARGUMENT, "pos_weight needs gradients, and this loss has none for it (td_detach)");
    return td_call_infer(c, 0, TD_SCALAR, x->dtype);
}

/* w in x's shape, contiguous; NULL for NULL. The caller unrefs. */
static td_tensor *spread(td_tensor *w, td_shape shape)
{
    if (!w)
        return NULL;
    int64_t stride[TD_MAX_DIMS];
    for (int i = 0; i < shape.ndim; i++) {
        int at = i - (shape.ndim - w->shape.ndim);
        stride[i] = at < 0 || w->shape.dim[at] == 1 ? 0 : w->stride[at];
    }
    td_tensor *view = td__tensor_view(w, shape, stride, w->offset);
    if (view->poisoned)
        return view;
    td_tensor *dense = td__op_dense(view);
    td__tensor_unref(view);
    return dense;
}

static int run_bce(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *y = td_call_input(c, 1);
    const int64_t n = td__shape_numel(x->shape);
    int code = td__need("td_bce_with_logits", out, bce);
    if (code)
        return code;
    td_tensor *dx = td__op_dense(x), *dy = td__op_dense(y), *dw = spread(td_call_input(c, 2), x->shape), *divisor = td__op_stat(x, TD_SCALAR);
    if (dx->poisoned || dy->poisoned || (dw && dw->poisoned) || divisor->poisoned)
        code = td__pending();
    else
        code = td__fill_known(divisor, (double)n);
    if (code) {
        td__tensor_unref(dx);
        td__tensor_unref(dy);
        if (dw)
            td__tensor_unref(dw);
        td__tensor_unref(divisor);
        return code;
    }
    td__kernels(out)->bce(x->dtype, n, td__ptr(dx), td__ptr(dy), dw ? td__ptr(dw) : NULL, td__ptr(out));
    td_call_stamp(c, divisor);
    td__tensor_unref(divisor);
    td__op_save_dense(c, x, dx);
    td__op_save_dense(c, y, dy);
    if (dw)
        td_call_save(c, dw);
    return 0;
}

static int grad_bce(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *x = td_call_saved(c, 0), *y = td_call_saved(c, 1), *w = td_call_saved(c, 2);
    int code = td__need("td_bce_with_logits", x, bce_grad);
    for (int i = 0; !code && i < 2; i++)
        if (slot[i].into)
            td__kernels(x)->bce_grad(x->dtype, td__shape_numel(x->shape), td__ptr(slot[i].into), td__ptr(g[0]), td__ptr(x), td__ptr(y),
                                     w ? td__ptr(w) : NULL, i == 1, slot[i].add);
    return code;
}

const td_op td__op_bce_with_logits = { .name = "bce_with_logits", .infer = infer_bce, .run = run_bce, .grad = grad_bce,
                                       .optional = 1u << 2, .flags = TD_OP_HIGH };

td_tensor *td_bce_with_logits(td_tensor *x, td_tensor *target, const td_bce_opts *opts)
{
    TD_ENTER();
    return td_apply(&td__op_bce_with_logits, (td_tensor *[]){ x, target, opts ? opts->pos_weight : NULL }, 3, NULL);
}
