/* autograd/ops_pad.c: td_pad: a border of one value around x. The gradient is the part inside the border.
 */
#include "ops_shared.h"

typedef struct { int n; double value; int64_t before[TD_MAX_DIMS], after[TD_MAX_DIMS]; } pad_attr;

static int infer(td_call *c)
{
    const pad_attr *a = td_call_attr(c);
    td_shape shape = td_call_input_shape(c, 0);
    char text[128];
    if (a->n != shape.ndim)
        return td_call_error(c, TD_ERR_ARGUMENT, "%d dimensions are padded, shape %s has %d", a->n, td__shape_text(shape, text), shape.ndim);
    for (int i = 0; i < a->n; i++) {
        if (a->before[i] < 0 || a->after[i] < 0)
            return td_call_error(c, TD_ERR_ARGUMENT, "dimension %d is padded by %lld and %lld, expected 0 or more (td_narrow cuts)", i,
                                 (long long)a->before[i], (long long)a->after[i]);
        if (__builtin_add_overflow(shape.dim[i], a->before[i], &shape.dim[i]) || __builtin_add_overflow(shape.dim[i], a->after[i], &shape.dim[i]))
            return td_call_error(c, TD_ERR_SHAPE, "dimension %d, padded by %lld and %lld, is larger than can be addressed", i,
                                 (long long)a->before[i], (long long)a->after[i]);
    }
    return td_call_infer(c, 0, shape, td_dtype_of(td_call_input(c, 0)));
}

static int fill_part(td_tensor *whole, td_shape shape, int64_t offset, double value)
{
    td_tensor *part = td__tensor_view(whole, shape, whole->stride, offset);
    if (part->poisoned)
        return td__pending();
    td_loop l = td__loop(shape, part, NULL, NULL, NULL);
    td__kernels(part)->fill(&l, part->dtype, td__ptr(part), value);
    td__tensor_unref(part);
    return 0;
}

/* Dimension by dimension: what lies before and after the part along this one, between the borders of the dimensions outside it. */
int td__op_fill_around(const char *who, td_tensor *whole, const int64_t *before, td_shape inside, double value)
{
    td_shape shape = whole->shape;
    int64_t offset = whole->offset;
    int code = td__need(who, whole, fill);
    for (int d = 0; d < shape.ndim && !code; d++) {
        const int64_t after = whole->shape.dim[d] - before[d] - inside.dim[d];
        shape.dim[d] = before[d];
        if (before[d])
            code = fill_part(whole, shape, offset, value);
        shape.dim[d] = after;
        if (after && !code)
            code = fill_part(whole, shape, offset + (before[d] + inside.dim[d]) * whole->stride[d], value);
        shape.dim[d] = inside.dim[d];
        offset += before[d] * whole->stride[d];
    }
    return code;
}

/* The part of whole (contiguous, the result's shape) inside the border. The caller unrefs. */
static td_tensor *inside(const td_call *c, td_tensor *whole)
{
    const pad_attr *a = td_call_attr(c);
    int64_t offset = whole->offset;
    for (int i = 0; i < a->n; i++)
        offset += a->before[i] * whole->stride[i];
    return td__tensor_view(whole, td_call_input_shape(c, 0), whole->stride, offset);
}

static int run(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    const pad_attr *a = td_call_attr(c);
    int code = td__op_fill_around("td_pad", out, a->before, x->shape, a->value);
    if (code)
        return code;
    td_tensor *part = inside(c, out);
    code = part->poisoned ? td__pending() : td__copy(part, x, false);
    td__tensor_unref(part);
    return code;
}

static int grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *part = inside(c, g[0]);
    int code = part->poisoned ? td__pending() : td__copy(slot[0].into, part, slot[0].add);
    td__tensor_unref(part);
    return code;
}

const td_op td__op_pad = { .name = "pad", .infer = infer, .run = run, .grad = grad,
                           .attr_size = sizeof(pad_attr), .flags = TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD };

td_tensor *td_pad(td_tensor *x, const int64_t *before, const int64_t *after, int n, double value)
{
    TD_ENTER();
    pad_attr a = { .n = n, .value = value };
    if (n < 0 || n > TD_MAX_DIMS || (n > 0 && (!before || !after))) {
        td__fail(TD_ERR_ARGUMENT, "td_pad: %s", n < 0 || n > TD_MAX_DIMS ? "n is not between 0 and 8" : before ? "after is NULL" : "before is NULL");
        return td__poison();
    }
    for (int i = 0; i < n; i++)
        a.before[i] = before[i], a.after[i] = after[i];
    return td_apply(&td__op_pad, &x, 1, &a);
}
