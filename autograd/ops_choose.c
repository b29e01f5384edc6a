/* autograd/ops_choose.c: maximum, minimum, where: element by element one of two operands, with broadcasting.
 *
 * Gradients of operands that were broadcast are made in full and summed to the operand's shape; others are written into their destination.
 */
#include "ops_shared.h"

/* A place for the gradient over `full`: the slot's own tensor, or a temporary. Poison after td__fail. */
static td_tensor *place(td_shape full, const td_grad_slot *slot)
{
    if (!td__shape_equal(full, slot->into->shape))
        return td__op_temp(slot->into, full);
    td__tensor_ref(slot->into);
    return slot->into;
}

/* Ends what place() began. */
static int deliver(td_tensor *made, const td_grad_slot *slot)
{
    int code = made == slot->into ? 0 : td__sum_to(made, 1.0, slot->into, slot->add);
    td__tensor_unref(made);
    return code;
}

/* ---- maximum, minimum -------------------------------------------------------------------------------------------------------- */

static int infer_extreme(td_call *c)
{
    td_tensor *a = td_call_input(c, 0), *b = td_call_input(c, 1);
    td_shape shape;
    int code = td__op_arith(c, 0);
    if (!code)
        code = td__op_same_dtype(c, 0, 1);
    if (!code)
        code = td__op_broadcast(c, a->shape, b->shape, &shape);
    return code ? code : td_call_infer(c, 0, shape, a->dtype);
}

static int run_extreme(td_call *c, bool largest)
{
    td_tensor *out = td_call_output(c, 0), *a = td_call_input(c, 0), *b = td_call_input(c, 1);
    int code = largest ? td__need("td_maximum", out, maximum) : td__need("td_minimum", out, minimum);
    if (code)
        return code;
    td_loop l = td__loop(out->shape, out, a, b, NULL);
    (largest ? td__kernels(out)->maximum : td__kernels(out)->minimum)(&l, out->dtype, td__ptr(out), td__ptr(a), td__ptr(b));
    td_call_save(c, a);
    td_call_save(c, b);
    return 0;
}

static int grad_extreme(td_call *c, td_tensor *g, td_grad_slot *slot, bool largest)
{
    int code = largest ? td__need("td_maximum", g, extreme_grad) : td__need("td_minimum", g, extreme_grad);
    for (int i = 0; !code && i < 2; i++) {
        if (!slot[i].into)
            continue;
        td_tensor *own = td__op_operand(c, i), *other = td__op_operand(c, 1 - i), *into = place(g->shape, &slot[i]);
        if (into->poisoned)
            return td__pending();
        td_tensor *a = largest ? own : other, *b = largest ? other : own;
        td_loop l = td__loop(g->shape, into, g, a, b);
        td__kernels(g)->extreme_grad(&l, g->dtype, td__ptr(into), td__ptr(g), td__ptr(a), td__ptr(b), into == slot[i].into && slot[i].add);
        code = deliver(into, &slot[i]);
    }
    return code;
}

static int run_maximum(td_call *c)
{
    return run_extreme(c, true);
}
static int run_minimum(td_call *c)
{
    return run_extreme(c, false);
}
static int grad_maximum(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    return grad_extreme(c, g[0], slot, true);
}
static int grad_minimum(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    return grad_extreme(c, g[0], slot, false);
}
const td_op td__op_maximum = { .name = "maximum", .infer = infer_extreme, .run = run_maximum, .grad = grad_maximum };
const td_op td__op_minimum = { .name = "minimum", .infer = infer_extreme, .run = run_minimum, .grad = grad_minimum };

/* ---- where: condition bool or u8, two operands -------------------------------------------------------------------------------- */

static int infer_where(td_call *c)
{
    td_tensor *mask = td_call_input(c, 0), *a = td_call_input(c, 1), *b = td_call_input(c, 2);
    td_shape pair, shape;
    if (mask->dtype != TD_BOOL && mask->dtype != TD_U8)
        return td_call_error(c, TD_ERR_DTYPE, "the condition is %s; it must be bool or u8 (td_eq, td_cast)", td_dtype_name(mask->dtype));
    int code = td__op_arith(c, 1);
    if (!code)
        code = td__op_same_dtype(c, 1, 2);
    if (!code)
        code = td__op_broadcast(c, a->shape, b->shape, &pair);
    if (!code)
        code = td__op_broadcast(c, mask->shape, pair, &shape);
    return code ? code : td_call_infer(c, 0, shape, a->dtype);
}

static int run_where(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *mask = td_call_input(c, 0), *a = td_call_input(c, 1), *b = td_call_input(c, 2);
    int code = td__need("td_where", out, where);
    if (code)
        return code;
    td_loop l = td__loop(out->shape, out, mask, a, b);
    td__kernels(out)->where(&l, out->dtype, td__ptr(out), td__ptr(mask), td__ptr(a), td__ptr(b));
    td_call_save(c, mask);
    return 0;
}

static int grad_where(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *mask = td_call_saved(c, 0);
    int code = td__need("td_where", g[0], where_grad);
    for (int i = 1; !code && i <= 2; i++) {
        if (!slot[i].into)
            continue;
        td_tensor *into = place(g[0]->shape, &slot[i]);
        if (into->poisoned)
            return td__pending();
        td_loop l = td__loop(g[0]->shape, into, mask, g[0], NULL);
        td__kernels(g[0])->where_grad(&l, g[0]->dtype, td__ptr(into), td__ptr(mask), td__ptr(g[0]), i == 1,
                                      into == slot[i].into && slot[i].add);
        code = deliver(into, &slot[i]);
    }
    return code;
}

const td_op td__op_where = { .name = "where", .infer = infer_where, .run = run_where, .grad = grad_where };

/* ---- public -------------------------------------------------------------------------------------------------------------------- */

td_tensor *td_maximum(td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_maximum, (td_tensor *[]){ a, b }, 2, NULL);
}

td_tensor *td_minimum(td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_minimum, (td_tensor *[]){ a, b }, 2, NULL);
}

td_tensor *td_where(td_tensor *condition, td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_where, (td_tensor *[]){ condition, a, b }, 3, NULL);
}
