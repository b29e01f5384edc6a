/* autograd/ops_cast.c: conversion to another dtype. The gradient is converted back; only floats pass one.
 */
#include "ops_shared.h"

typedef struct { td_dtype to; } cast_attr;

static int infer(td_call *c)
{
    const cast_attr *a = td_call_attr(c);
    if ((int)a->to < TD_F32 || a->to > TD_BOOL)
        return td_call_error(c, TD_ERR_DTYPE, "%d is not a dtype", (int)a->to);
    return td_call_infer(c, 0, td_call_input(c, 0)->shape, a->to);
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
const td_op td__op_cast = { .name = "cast", .infer = infer, .run = run, .grad = grad, .attr_size = sizeof(cast_attr),
                            .flags = TD_OP_NO_ADD | TD_OP_KEEPS_DIVISOR | TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD };

td_tensor *td_cast(td_tensor *x, td_dtype dtype)
{
    TD_ENTER();
    if (x && !x->poisoned && x->dtype == dtype)
        return x;
    return td_apply(&td__op_cast, &x, 1, &(cast_attr){ dtype });
}
