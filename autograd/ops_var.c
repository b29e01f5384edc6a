/* autograd/ops_var.c: variance over chosen axes, from the centred values in a second pass (no difference of large squares).
 *
 * The mean is saved for the gradient, the centred values are made again. Nothing to divide by (no more elements than the correction) is
 * the division 0/0 or x/0 that it is: NaN or infinity, as in PyTorch. Rows that lie one after the other have kernels of their own where the device has
 * them: which way is taken depends on the shape and on whether x is contiguous alone.
 */
#include "ops_shared.h"

typedef struct { td__reduce_attr reduce; int correction; } var_attr;

static int infer(td_call *c)
{
    const var_attr *a = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0);
    int code = td__op_float(c, 0, "the input");
    if (code)
        return code;
    if (a->correction < 0)
        return td_call_error(c, TD_ERR_ARGUMENT, "correction is %d; it must not be negative (1: unbiased, 0: biased)", a->correction);
    int64_t axes = td__reduce_axes(c, x->shape);
    if (axes < 0)
        return (int)axes;
    return td_call_infer(c, 0, td__reduced_shape(x->shape, (uint32_t)axes, a->reduce.keep), x->dtype);
}

/* 1/(elements per result - correction), of x's shape */
static double share(const var_attr *a, td_shape s, uint32_t axes, int64_t *count)
{
    *count = 1;
    for (int i = 0; i < s.ndim; i++)
        if (axes >> i & 1)
            *count *= s.dim[i];
    const int64_t rest = *count - a->correction;
    return 1.0 / (double)(rest > 0 ? rest : 0);
}

/* into (x's shape) = x - mean, the mean repeated over the axes */
static int centre(td_tensor *x, td_tensor *mean, uint32_t axes, td_tensor *into)
{
    td_tensor *view = td__reduced_view(mean, x->shape, axes);
    if (view->poisoned)
        return td__pending();
    td_loop l = td__loop(x->shape, into, x, view, NULL);
    td__kernels(x)->sub(&l, x->dtype, td__ptr(into), td__ptr(x), td__ptr(view), false);
    td__tensor_unref(view);
    return 0;
}

/* (rows, n) that the kernels of rows take */
static bool by_rows(const td_tensor *x, uint32_t axes, int64_t *rows, int64_t *n)
{
    const td_kernels *k = td__kernels(x);
    int64_t inner;
    return k->var_rows && k->var_rows_grad && td__reduces_in_one_go(x, axes, rows, n, &inner) && inner == 1 && *rows * *n > 0;
}

static int need(td_tensor *x)
{
    int code = td__need("td_var", x, sum);
    if (!code)
        code = td__need("td_var", x, sub);
    if (!code)
        code = td__need("td_var", x, mul);
    return code ? code : td__need("td_var", x, scale);
}

static int run(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = need(x);
    if (code)
        return code;
    const uint32_t axes = (uint32_t)td__reduce_axes(c, x->shape);
    const td_kernels *k = td__kernels(x);
    int64_t count, rows, n;
    const double scale = share(td_call_attr(c), x->shape, axes, &count);
    td_tensor *mean = td__op_temp(x, td__reduced_shape(x->shape, axes, false));
    if (!mean->poisoned && by_rows(x, axes, &rows, &n)) {
        k->var_rows(x->dtype, rows, n, td__ptr(out), td__ptr(mean), td__ptr(x), scale);
        td_call_save(c, x);
        td_call_save(c, mean);
        return 0;
    }
    td_tensor *d = td__op_temp(x, x->shape);
    if (mean->poisoned || d->poisoned) {
        code = td__pending();
    } else {
        td_reduce_loop r = td__reduce_loop(x, axes);
        k->sum(&r, x->dtype, td__ptr(mean), td__ptr(x), count > 0 ? 1.0 / (double)count : 0.0, false);
        code = centre(x, mean, axes, d);
    }
    if (!code) {
        td_loop l = td__loop(d->shape, d, d, d, NULL);
        k->mul(&l, d->dtype, td__ptr(d), td__ptr(d), td__ptr(d), false);
        td_reduce_loop r = td__reduce_loop(d, axes);
        k->sum(&r, d->dtype, td__ptr(out), td__ptr(d), scale, false);
    }
    td__tensor_unref(d);
    if (code) {
        td__tensor_unref(mean);
        return code;
    }
    td_call_save(c, x);
    td_call_save(c, mean);
    return 0;
}

/* dx = g * 2/(n - correction) * (x - mean) */
static int grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *x = td_call_saved(c, 0), *mean = td_call_saved(c, 1);
    int code = need(x);
    if (code || td__shape_numel(x->shape) == 0)
        return code;
    const uint32_t axes = (uint32_t)td__reduce_axes(c, x->shape);
    const td_kernels *k = td__kernels(x);
    int64_t count, rows, n;
    const double scale = share(td_call_attr(c), x->shape, axes, &count);
    if (by_rows(x, axes, &rows, &n)) {
        k->var_rows_grad(x->dtype, rows, n, td__ptr(slot->into), td__ptr(g[0]), td__ptr(x), td__ptr(mean), 2 * scale, slot->add);
        return 0;
    }
    td_tensor *d = td__op_temp(x, x->shape), *each = td__reduced_view(g[0], x->shape, axes);
    code = d->poisoned || each->poisoned ? td__pending() : centre(x, mean, axes, d);
    if (!code) {
        td_loop l = td__loop(d->shape, d, d, each, NULL);
        k->mul(&l, d->dtype, td__ptr(d), td__ptr(d), td__ptr(each), false);
        l = td__loop(d->shape, slot->into, d, NULL, NULL);
        k->scale(&l, d->dtype, td__ptr(slot->into), td__ptr(d), 2 * scale, 0.0, slot->add);
    }
    td__tensor_unref(each);
    td__tensor_unref(d);
    return code;
}

const td_op td__op_var = { .name = "var", .infer = infer, .run = run, .grad = grad, .attr_size = sizeof(var_attr), .flags = TD_OP_HIGH };

td_tensor *td_var(td_tensor *x, const int *axes, int n_axes, bool keep, int correction)
{
    TD_ENTER();
    var_attr a = { .correction = correction };
    return td__reduce_attr_set(&td__op_var, axes, n_axes, keep, &a.reduce) ? td__poison() : td_apply(&td__op_var, &x, 1, &a);
}
