/* autograd/ops_reduce.c: sum, mean, amax, amin over chosen axes; argmax along one.
 *
 * The gradient of a sum is its gradient repeated over the axes that were summed: a view with stride 0, copied or added into place.
 */
#include "ops_shared.h"
#include <math.h>
#include <string.h>

int64_t td__reduce_axes(td_call *c, td_shape s)
{
    const td__reduce_attr *a = td_call_attr(c);
    uint32_t mask = 0;
    if (a->n == 0)
        return (1u << s.ndim) - 1;
    for (int i = 0; i < a->n; i++) {
        int axis = a->axis[i];
        if (axis < -s.ndim || axis >= s.ndim) {
            char text[128];
            return td_call_error(c, TD_ERR_SHAPE, "axis %d is outside the %d dimensions of shape %s", axis, s.ndim, td__shape_text(s, text));
        }
        axis += axis < 0 ? s.ndim : 0;
        if (mask >> axis & 1)
            return td_call_error(c, TD_ERR_ARGUMENT, "axis %d is named twice", axis);
        mask |= 1u << axis;
    }
    return mask;
}

td_shape td__reduced_shape(td_shape s, uint32_t axes, bool keep)
{
    td_shape r = { 0 };
    for (int i = 0; i < s.ndim; i++)
        if (!(axes >> i & 1))
            r.dim[r.ndim++] = s.dim[i];
        else if (keep)
            r.dim[r.ndim++] = 1;
    return r;
}

static int infer(td_call *c, bool float_only, bool needs_elements, td_dtype *result)
{
    const td__reduce_attr *a = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0);
    int code = float_only ? td__op_float(c, 0, "the input") : td__op_arith(c, 0);
    if (code)
        return code;
    int64_t axes = td__reduce_axes(c, x->shape);
    if (axes < 0)
        return (int)axes;
    td_shape shape = td__reduced_shape(x->shape, (uint32_t)axes, a->keep);
    if (needs_elements && td__shape_numel(x->shape) == 0 && td__shape_numel(shape) > 0) {
        char text[128];
        return td_call_error(c, TD_ERR_SHAPE, "shape %s has no elements along the reduced axes, so none is the %s", td__shape_text(x->shape, text),
                             "largest or smallest");
    }
    return td_call_infer(c, 0, shape, result ? *result : x->dtype);
}

bool td__reduces_in_one_go(const td_tensor *x, uint32_t axes, int64_t *outer, int64_t *n, int64_t *inner)
{
    enum { FEW = 16, LITTLE = 32768 };
    int d = 0;
    *outer = *n = *inner = 1;
    for (; d < x->shape.ndim && !(axes >> d & 1); d++)
        *outer *= x->shape.dim[d];
    for (; d < x->shape.ndim && axes >> d & 1; d++)
        *n *= x->shape.dim[d];
    for (; d < x->shape.ndim && !(axes >> d & 1); d++)
        *inner *= x->shape.dim[d];
    const bool few = *outer * *inner < FEW && *outer * *n * *inner > LITTLE;
    return d == x->shape.ndim && !few && td__strides_contiguous(x->shape, x->stride);
}

td_tensor *td__reduced_view(td_tensor *g, td_shape shape, uint32_t axes)
{
    int64_t stride[TD_MAX_DIMS], dense[TD_MAX_DIMS];
    td_shape kept = td__reduced_shape(shape, axes, false);
    td__shape_strides(kept, dense);                            /* g is contiguous; size-1 dimensions do not matter        */
    for (int i = 0, k = 0; i < shape.ndim; i++)
        stride[i] = axes >> i & 1 ? 0 : dense[k++];
    return td__tensor_view(g, shape, stride, g->offset);
}

/* ---- sum, mean ------------------------------------------------------------------------------------------------------------ */

static int infer_sum(td_call *c)
{
    return infer(c, false, false, NULL);
}
static int infer_mean(td_call *c)
{
    return infer(c, true, false, NULL);
}

static int run_scaled_sum(td_call *c, const char *who, bool mean)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = td__need(who, out, sum);
    if (code)
        return code;
    double scale = mean ? (double)td__shape_numel(out->shape) / (double)td__shape_numel(x->shape) : 1.0;
    td_reduce_loop r = td__reduce_loop(x, (uint32_t)td__reduce_axes(c, x->shape));
    if (mean && td__shape_numel(x->shape) == 0)
        scale = (double)NAN;                                   /* the mean of nothing                                      */
    td__kernels(out)->sum(&r, out->dtype, td__ptr(out), td__ptr(x), scale, false);
    return 0;
}

static int grad_scaled_sum(td_call *c, const char *who, td_tensor *g, td_grad_slot *slot, bool mean)
{
    td_shape shape = td_call_input_shape(c, 0);
    int code = td__need(who, g, scale);
    if (code || td__shape_numel(shape) == 0)
        return code;
    if (!mean && td__shape_numel(shape) == td__shape_numel(g->shape))
        return td_call_pass(c, 0, g);
    td_tensor *view = td__reduced_view(g, shape, (uint32_t)td__reduce_axes(c, shape));
    if (view->poisoned)
        return td__pending();
    if (mean) {
        double scale = (double)td__shape_numel(g->shape) / (double)td__shape_numel(shape);
        td_loop l = td__loop(shape, slot->into, view, NULL, NULL);
        td__kernels(g)->scale(&l, g->dtype, td__ptr(slot->into), td__ptr(view), scale, 0.0, slot->add);
    } else {
        code = td__copy(slot->into, view, slot->add);
    }
    td__tensor_unref(view);
    return code;
}

static int run_sum(td_call *c)
{
    return run_scaled_sum(c, "td_sum", false);
}
static int run_mean(td_call *c)
{
    return run_scaled_sum(c, "td_mean", true);
}
static int grad_sum(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    return grad_scaled_sum(c, "td_sum", g[0], &slot[0], false);
}
static int grad_mean(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    return grad_scaled_sum(c, "td_mean", g[0], &slot[0], true);
}
const td_op td__op_sum = { .name = "sum", .infer = infer_sum, .run = run_sum, .grad = grad_sum,
                           .attr_size = sizeof(td__reduce_attr), .flags = TD_OP_HIGH };
const td_op td__op_mean = { .name = "mean", .infer = infer_mean, .run = run_mean, .grad = grad_mean,
                            .attr_size = sizeof(td__reduce_attr), .flags = TD_OP_HIGH };

/* ---- amax, amin: the gradient is shared evenly among the elements that tie ---------------------------------------------------- */

static int infer_extreme(td_call *c)
{
    return infer(c, false, true, NULL);
}

static int run_extreme(td_call *c, bool largest)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = largest ? td__need("td_amax", out, amax) : td__need("td_amin", out, amin);
    if (code)
        return code;
    td_reduce_loop r = td__reduce_loop(x, (uint32_t)td__reduce_axes(c, x->shape));
    if (td__shape_numel(out->shape) > 0)
        (largest ? td__kernels(out)->amax : td__kernels(out)->amin)(&r, out->dtype, td__ptr(out), td__ptr(x));
    td_call_save(c, x);
    td_call_save(c, out);
    return 0;
}

static int grad_extreme(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *x = td_call_saved(c, 0), *y = td_call_saved(c, 1);
    if (td__shape_numel(x->shape) == 0)
        return 0;
    const uint32_t axes = (uint32_t)td__reduce_axes(c, x->shape);
    const td_kernels *k = td__kernels(x);
    int64_t outer, n, inner;
    if (k->extreme_ties_grad && td__reduces_in_one_go(x, axes, &outer, &n, &inner)) {
        k->extreme_ties_grad(x->dtype, outer, n, inner, td__ptr(slot[0].into), td__ptr(g[0]), td__ptr(x), td__ptr(y), slot[0].add);
        return 0;
    }
    td_tensor *is = td__tensor_new(x->shape, TD_BOOL, x->storage->device), *mask = td__op_temp(x, x->shape), *share = td__op_temp(x, y->shape);
    td_tensor *top = td__reduced_view(y, x->shape, axes), *each = td__reduced_view(share, x->shape, axes);
    int code = 0;
    if (is->poisoned || mask->poisoned || share->poisoned || top->poisoned || each->poisoned) {
        code = td__pending();
    } else {
        td_loop l = td__loop(x->shape, is, x, top, NULL);
        k->eq(&l, x->dtype, td__ptr(is), td__ptr(x), td__ptr(top));
        code = td__copy(mask, is, false);
        td_reduce_loop r = td__reduce_loop(mask, axes);
        k->sum(&r, x->dtype, td__ptr(share), td__ptr(mask), 1.0, false);               /* how many tie                    */
        l = td__loop(share->shape, share, g[0], share, NULL);
        k->div(&l, x->dtype, td__ptr(share), td__ptr(g[0]), td__ptr(share), false);
        l = td__loop(x->shape, slot[0].into, mask, each, NULL);
        k->mul(&l, x->dtype, td__ptr(slot[0].into), td__ptr(mask), td__ptr(each), slot[0].add);
    }
    td__tensor_unref(each);
    td__tensor_unref(top);
    td__tensor_unref(share);
    td__tensor_unref(mask);
    td__tensor_unref(is);
    return code;
}

static int run_amax(td_call *c)
{
    return run_extreme(c, true);
}
static int run_amin(td_call *c)
{
    return run_extreme(c, false);
}
const td_op td__op_amax = { .name = "amax", .infer = infer_extreme, .run = run_amax, .grad = grad_extreme,
                            .attr_size = sizeof(td__reduce_attr) };
const td_op td__op_amin = { .name = "amin", .infer = infer_extreme, .run = run_amin, .grad = grad_extreme,
                            .attr_size = sizeof(td__reduce_attr) };

/* ---- argmax ------------------------------------------------------------------------------------------------------------------ */

static int infer_argmax(td_call *c)
{
    td_dtype result = TD_I64;
    return infer(c, false, true, &result);
}
static int run_argmax(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = td__need("td_argmax", out, argmax);
    if (code || td__shape_numel(out->shape) == 0)
        return code;
    td_reduce_loop r = td__reduce_loop(x, (uint32_t)td__reduce_axes(c, x->shape));
    td__kernels(out)->argmax(&r, x->dtype, td__ptr(out), td__ptr(x));
    return 0;
}
const td_op td__op_argmax = { .name = "argmax", .infer = infer_argmax, .run = run_argmax, .attr_size = sizeof(td__reduce_attr) };

/* ---- public -------------------------------------------------------------------------------------------------------------- */

int td__reduce_attr_set(const td_op *op, const int *axes, int n, bool keep, td__reduce_attr *into)
{
    if (n < 0 || n > TD_MAX_DIMS || (n > 0 && !axes))
        return td__fail(TD_ERR_ARGUMENT, "td_%s: %s", op->name, n > 0 && !axes ? "axes is NULL" : "n_axes is not between 0 and 8");
    memset(into, 0, sizeof *into);
    into->n = n;
    into->keep = keep;
    if (n > 0)
        memcpy(into->axis, axes, (size_t)n * sizeof *axes);
    return 0;
}

static td_tensor *reduce(const td_op *op, td_tensor *x, const int *axes, int n, bool keep)
{
    td__reduce_attr a;
    return td__reduce_attr_set(op, axes, n, keep, &a) ? td__poison() : td_apply(op, &x, 1, &a);
}

td_tensor *td_sum(td_tensor *x, const int *axes, int n_axes, bool keep)
{
    TD_ENTER();
    return reduce(&td__op_sum, x, axes, n_axes, keep);
}

td_tensor *td_mean(td_tensor *x, const int *axes, int n_axes, bool keep)
{
    TD_ENTER();
    return reduce(&td__op_mean, x, axes, n_axes, keep);
}

td_tensor *td_amax(td_tensor *x, const int *axes, int n_axes, bool keep)
{
    TD_ENTER();
    return reduce(&td__op_amax, x, axes, n_axes, keep);
}

td_tensor *td_amin(td_tensor *x, const int *axes, int n_axes, bool keep)
{
    TD_ENTER();
    return reduce(&td__op_amin, x, axes, n_axes, keep);
}

td_tensor *td_argmax(td_tensor *x, int axis)
{
    TD_ENTER();
    return reduce(&td__op_argmax, x, &axis, 1, false);
}
