/* autograd/ops_loss.c: cross-entropy and mean squared error.
 *
 * Both are means: the result is stamped with its divisor, a scalar on the loss's device (rows not ignored; elements). The stamp is what
 * makes means over ranks and micro-batches of different sizes right.
 */
#include "ops_shared.h"
#include <stdio.h>
#include <string.h>

/* ---- cross-entropy: logits (N,C), target i64 (N) -> () --------------------------------------------------------------------- */

static int infer_cross_entropy(td_call *c)
{
    const td_cross_entropy_opts *o = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0), *t = td_call_input(c, 1);
    char a[128], b[128];
    int code = td__op_float(c, 0, "logits");
    if (code)
        return code;
    if (t->dtype != TD_I64)
        return td_call_error(c, TD_ERR_DTYPE, "target is %s; class numbers are i64 (td_cast converts)", td_dtype_name(t->dtype));
    if (x->shape.ndim != 2 || t->shape.ndim != 1 || x->shape.dim[0] != t->shape.dim[0])
        return td_call_error(c, TD_ERR_SHAPE, "logits %s and target %s do not fit: expected (N,C) and (N)", td__shape_text(x->shape, a),
                             td__shape_text(t->shape, b));
    if (!(o->label_smoothing >= 0 && o->label_smoothing < 1))
        return td_call_error(c, TD_ERR_ARGUMENT, "label_smoothing is %g; it must be in [0,1)", (double)o->label_smoothing);
    return td_call_infer(c, 0, TD_SCALAR, td__call_mixed(c) ? TD_F32 : x->dtype);
}

static int say_target(const td__check *c, int64_t row, int64_t value)
{
    char a[128], extra[64] = "";
    if (c->has_ignore)
        snprintf(extra, sizeof extra, ", or ignore_index %lld", (long long)c->ignore);
    return td__fail(TD_ERR_ARGUMENT, "td_%s: target of row %lld is %lld; %s %s have classes 0 to %lld%s", c->op, (long long)row, (long long)value,
                    strcmp(c->op, "nll") ? "logits" : "log_probabilities", td__shape_text(c->of, a), (long long)c->size - 1, extra);
}

td__check td__op_target_check(td_call *c, const td_tensor *x, bool has_ignore, int64_t ignore, int64_t *bad)
{
    const td__check check = { .say = say_target, .op = td__call_name(c), .of = x->shape, .size = x->shape.dim[1], .has_ignore = has_ignore,
                              .ignore = has_ignore ? ignore : 0 };
    *bad = x->storage->ops->trapped ? td__check_number(&check) : -1;
    return check;
}

int td__op_target_bad(const td__check *check, td_tensor *target, int64_t bad)
{
    if (bad < 0)
        return 0;
    int64_t value = 0;
    td_tensor *one = td__tensor_view(target, TD_SCALAR, target->stride, target->offset + bad);
    if (!one->poisoned)
        td_copy_out(one, &value, sizeof value);
    td__tensor_unref(one);
    return say_target(check, bad, value);
}

static int run_cross_entropy(td_call *c)
{
    const td_cross_entropy_opts *o = td_call_attr(c);
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *t = td_call_input(c, 1);
    int code = td__need("td_cross_entropy", out, cross_entropy);
    if (code)
        return code;
    const int64_t rows = x->shape.dim[0], n = x->shape.dim[1];
    td_tensor *dx = td__op_dense(x), *dt = td__op_dense(t), *lse = td__op_stat(x, t->shape), *kept = td__op_stat(x, TD_SCALAR);
    td_tensor *loss = td__op_stat(x, TD_SCALAR);                       /* rounded once where the result has 16 bits               */
    if (dx->poisoned || dt->poisoned || lse->poisoned || kept->poisoned || loss->poisoned) {
        code = td__pending();
    } else {
        int64_t bad;
        const td__check check = td__op_target_check(c, x, o->has_ignore_index, o->ignore_index, &bad);
        td__kernels(out)->cross_entropy(x->dtype, rows, n, td__ptr(dx), td__ptr(dt), (double)o->label_smoothing, o->has_ignore_index,
                                        o->ignore_index, td__ptr(loss->dtype == out->dtype ? out : loss), td__ptr(lse), td__ptr(kept), &bad);
        code = td__op_target_bad(&check, dt, bad);
        if (!code && loss->dtype != out->dtype)
            code = td__copy(out, loss, false);
    }
    td__tensor_unref(loss);
    if (code) {
        td__tensor_unref(dx);
        td__tensor_unref(dt);
        td__tensor_unref(lse);
        td__tensor_unref(kept);
        return code;
    }
    if (!o->has_ignore_index)
        td__op_known(kept, (double)rows);
    td_call_stamp(c, kept);
    td__op_save_dense(c, x, dx);
    td__op_save_dense(c, t, dt);
    td_call_save(c, lse);
    td_call_save(c, kept);
    return 0;
}

static int grad_cross_entropy(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const td_cross_entropy_opts *o = td_call_attr(c);
    td_tensor *x = td_call_saved(c, 0), *t = td_call_saved(c, 1), *lse = td_call_saved(c, 2), *kept = td_call_saved(c, 3);
    if (!slot[0].into)
        return 0;
    int code = td__need("td_cross_entropy", x, cross_entropy_grad);
    if (code)
        return code;
    td_tensor *gloss = td__op_stat(x, TD_SCALAR);
    if (gloss->poisoned)
        return td__pending();
    if (gloss->dtype != g[0]->dtype && (code = td__copy(gloss, g[0], false))) {
        td__tensor_unref(gloss);
        return code;
    }
    td__kernels(x)->cross_entropy_grad(x->dtype, x->shape.dim[0], x->shape.dim[1], td__ptr(slot[0].into), td__ptr(gloss->dtype == g[0]->dtype ? g[0] : gloss),
                                       td__ptr(x), td__ptr(t), td__ptr(lse), td__ptr(kept), (double)o->label_smoothing, o->has_ignore_index, o->ignore_index,
                                       slot[0].add);
    td__tensor_unref(gloss);
    return 0;
}

const td_op td__op_cross_entropy = { .name = "cross_entropy", .infer = infer_cross_entropy, .run = run_cross_entropy, .grad = grad_cross_entropy,
                                     .attr_size = sizeof(td_cross_entropy_opts),
                                     .flags = TD_OP_HIGH | TD__OP_WIDE | TD__OP_OVERWRITES_INPUT };

td_tensor *td_cross_entropy(td_tensor *logits, td_tensor *target, const td_cross_entropy_opts *opts)
{
    TD_ENTER();
    const td_cross_entropy_opts standard = { 0 };
    return td_apply(&td__op_cross_entropy, (td_tensor *[]){ logits, target }, 2, opts ? opts : &standard);
}

/* ---- mean squared error: x, target of one shape -> () ------------------------------------------------------------------------ */

static int infer_mse(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *y = td_call_input(c, 1);
    char a[128], b[128];
    int code = td__op_float(c, 0, "the input");
    if (!code)
        code = td__op_same_dtype(c, 0, 1);
    if (code)
        return code;
    if (!td__shape_equal(x->shape, y->shape))
        return td_call_error(c, TD_ERR_SHAPE, "input %s and target %s must have the same shape", td__shape_text(x->shape, a),
                             td__shape_text(y->shape, b));
    return td_call_infer(c, 0, TD_SCALAR, x->dtype);
}

static int run_mse(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *y = td_call_input(c, 1);
    int code = td__need("td_mse", out, mse);
    if (code)
        return code;
    td_tensor *dx = td__op_dense(x), *dy = td__op_dense(y), *divisor = td__op_stat(x, TD_SCALAR);
    if (dx->poisoned || dy->poisoned || divisor->poisoned)
        code = td__pending();
    else
        code = td__fill_known(divisor, (double)td__shape_numel(x->shape));
    if (code) {
        td__tensor_unref(dx);
        td__tensor_unref(dy);
        td__tensor_unref(divisor);
        return code;
    }
    td__kernels(out)->mse(x->dtype, td__shape_numel(x->shape), td__ptr(dx), td__ptr(dy), td__ptr(out));
    td_call_stamp(c, divisor);
    td__tensor_unref(divisor);
    td__op_save_dense(c, x, dx);
    td__op_save_dense(c, y, dy);
    return 0;
}

static int grad_mse(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *x = td_call_saved(c, 0), *y = td_call_saved(c, 1);
    int code = td__need("td_mse", x, mse_grad);
    for (int i = 0; !code && i < 2; i++)
        if (slot[i].into)
            td__kernels(x)->mse_grad(x->dtype, td__shape_numel(x->shape), td__ptr(slot[i].into), td__ptr(g[0]), td__ptr(x), td__ptr(y),
                                     i == 0 ? 1.0 : -1.0, slot[i].add);
    return code;
}

const td_op td__op_mse = { .name = "mse", .infer = infer_mse, .run = run_mse, .grad = grad_mse, .flags = TD_OP_HIGH };

td_tensor *td_mse(td_tensor *x, td_tensor *target)
{
    TD_ENTER();
    return td_apply(&td__op_mse, (td_tensor *[]){ x, target }, 2, NULL);
}
