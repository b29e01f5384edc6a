/* autograd/ops_pointwise.c: abs, pow, clamp: one operand, numbers as attributes. Each saves its input for the gradient.
 */
#include "ops_shared.h"

/* pow: a is the exponent; clamp: from a to b; abs: neither */
typedef struct { double a, b; } numbers;

static int infer_arith(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    int code = td__op_arith(c, 0);
    return code ? code : td_call_infer(c, 0, x->shape, x->dtype);
}

static int infer_float(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    int code = td__op_float(c, 0, "the input");
    return code ? code : td_call_infer(c, 0, x->shape, x->dtype);
}

static int run_abs(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = td__need("td_abs", out, abs);
    if (code)
        return code;
    td_loop l = td__loop(out->shape, out, x, NULL, NULL);
    td__kernels(out)->abs(&l, out->dtype, td__ptr(out), td__ptr(x));
    td_call_save(c, x);
    return 0;
}

static int grad_abs(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *x = td_call_saved(c, 0);
    int code = td__need("td_abs", x, abs_grad);
    if (code)
        return code;
    td_loop l = td__loop(x->shape, slot->into, g[0], x, NULL);
    td__kernels(x)->abs_grad(&l, x->dtype, td__ptr(slot->into), td__ptr(g[0]), td__ptr(x), slot->add);
    return 0;
}

const td_op td__op_abs = { .name = "abs", .infer = infer_arith, .run = run_abs, .grad = grad_abs };

static int run_pow(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = td__need("td_pow", out, pow);
    if (code)
        return code;
    td_loop l = td__loop(out->shape, out, x, NULL, NULL);
    td__kernels(out)->pow(&l, out->dtype, td__ptr(out), td__ptr(x), ((const numbers *)td_call_attr(c))->a);
    td_call_save(c, x);
    return 0;
}

static int grad_pow(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *x = td_call_saved(c, 0);
    int code = td__need("td_pow", x, pow_grad);
    if (code)
        return code;
    td_loop l = td__loop(x->shape, slot->into, g[0], x, NULL);
    td__kernels(x)->pow_grad(&l, x->dtype, td__ptr(slot->into), td__ptr(g[0]), td__ptr(x), ((const numbers *)td_call_attr(c))->a, slot->add);
    return 0;
}

const td_op td__op_pow = { .name = "pow", .infer = infer_float, .run = run_pow, .grad = grad_pow, .attr_size = sizeof(numbers), .flags = TD_OP_HIGH };

static int infer_clamp(td_call *c)
{
    const numbers *bound = td_call_attr(c);
    if (!(bound->a <= bound->b))
        return td_call_error(c, TD_ERR_ARGUMENT, "the bounds are %g and %g; the low one must not be above the high one, and neither NaN", bound->a,
                             bound->b);
    return infer_float(c);
}

static int run_clamp(td_call *c)
{
    const numbers *bound = td_call_attr(c);
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = td__need("td_clamp", out, clamp);
    if (code)
        return code;
    td_loop l = td__loop(out->shape, out, x, NULL, NULL);
    td__kernels(out)->clamp(&l, out->dtype, td__ptr(out), td__ptr(x), bound->a, bound->b);
    td_call_save(c, x);
    return 0;
}

static int grad_clamp(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const numbers *bound = td_call_attr(c);
    td_tensor *x = td_call_saved(c, 0);
    int code = td__need("td_clamp", x, clamp_grad);
    if (code)
        return code;
    td_loop l = td__loop(x->shape, slot->into, g[0], x, NULL);
    td__kernels(x)->clamp_grad(&l, x->dtype, td__ptr(slot->into), td__ptr(g[0]), td__ptr(x), bound->a, bound->b, slot->add);
    return 0;
}

const td_op td__op_clamp = { .name = "clamp", .infer = infer_clamp, .run = run_clamp, .grad = grad_clamp, .attr_size = sizeof(numbers) };

td_tensor *td_abs(td_tensor *x)
{
    TD_ENTER();
    return td_apply(&td__op_abs, &x, 1, NULL);
}

td_tensor *td_pow(td_tensor *x, double exponent)
{
    TD_ENTER();
    return td_apply(&td__op_pow, &x, 1, &(numbers){ exponent, 0 });
}

td_tensor *td_clamp(td_tensor *x, double low, double high)
{
    TD_ENTER();
    return td_apply(&td__op_clamp, &x, 1, &(numbers){ low, high });
}
