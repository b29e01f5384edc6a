/* autograd/ops_format.c: td_to_memory_format: an image's elements in another order. The gradient comes as the input lies.
 */
#include "ops_shared.h"

typedef struct { td_memory_format to; } format_attr;

static int infer(td_call *c)
{
    const format_attr *a = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0);
    char text[128];
    if (a->to != TD_CONTIGUOUS && a->to != TD_CHANNELS_LAST)
        return td_call_error(c, TD_ERR_ARGUMENT, "%d is not a memory format", (int)a->to);
    if (a->to == TD_CHANNELS_LAST && x->shape.ndim != 4)
        return td_call_error(c, TD_ERR_SHAPE, "x has shape %s; channels last is an order of 4 dimensions (N,C,H,W)", td__shape_text(x->shape, text));
    int code = td_call_infer(c, 0, x->shape, x->dtype);
    if (!code && a->to == TD_CHANNELS_LAST)
        td__channels_last_strides(x->shape, td_call_output(c, 0)->stride);
    return code;
}

static int run(td_call *c)
{
    return td__copy(td_call_output(c, 0), td_call_input(c, 0), false);
}

static int grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    (void)c;
    return td__copy(slot[0].into, g[0], slot[0].add);
}

const td_op td__op_to_memory_format = { .name = "to_memory_format", .infer = infer, .run = run, .grad = grad, .attr_size = sizeof(format_attr),
                                     .flags = TD_OP_KEEPS_DIVISOR | TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD | TD__OP_FORMATS };

td_tensor *td_to_memory_format(td_tensor *x, td_memory_format format)
{
    TD_ENTER();
    if (x && !x->poisoned && (format == TD_CHANNELS_LAST ? td__channels_last(x) : format == TD_CONTIGUOUS && td__strides_contiguous(x->shape, x->stride)))
        return x;
    return td_apply(&td__op_to_memory_format, &x, 1, &(format_attr){ format });
}
