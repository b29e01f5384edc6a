/* autograd/ops_cast.c: conversion to another dtype. The gradient is converted back; only floats pass one.
 */
#include "ops_shared.h"

static int infer(td_call *c)
{
    const td__cast_attr *a = td_call_attr(c);
    if ((int)a->to < TD_F32 || a->to > TD_BOOL)
        return td_call_error(c, TD_ERR_DTYPE, "%d is not a dtype", (int)a->to);
    td_tensor *x = td_call_input(c, 0);
    int code = td__call_infer_like(c, 0, x->shape, a->to, x);
    if (!code && a->channels_last && x->shape.ndim == 4)
        td__channels_last_strides(x->shape, td_call_output(c, 0)->stride);
    return code;
}

static int run(td_call *c)
{
    return td__copy(td_call_output(c, 0), td_call_input(c, 0), false);
}

static int grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    return td__copy(slot[0].into, g[0], false);
}

/* kernels add only within one dtype: the door serves the rest with a temporary */
const td_op td__op_cast = { .name = "cast", .infer = infer, .run = run, .grad = grad, .attr_size = sizeof(td__cast_attr),
                            .flags = TD_OP_NO_ADD | TD_OP_KEEPS_DIVISOR | TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD | TD__OP_FORMATS };

td_tensor *td_cast(td_tensor *x, td_dtype dtype)
{
    TD_ENTER();
    if (x && !x->poisoned && x->dtype == dtype)
        return x;
    return td_apply(&td__op_cast, &x, 1, &(td__cast_attr){ dtype, false });
}

/* Both at once: what a convolution wants of an f32 weight. */
td_tensor *td__cast_channels_last(td_tensor *x, td_dtype dtype)
{
    return td_apply(&td__op_cast, &x, 1, &(td__cast_attr){ dtype, true });
}
