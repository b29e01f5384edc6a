/* autograd/ops_arith.c: add, sub, mul, div, neg, scale, shift, eq.
 *
 * Gradients of operands that were broadcast are summed to the operand's shape (td__sum_to); others are written straight into
 * their destination. Scaling a stamped loss, and adding something without a stamp to it, keeps the stamp.
 */
#include "ops_shared.h"

/* ---- two operands -------------------------------------------------------------------------------------------------------- */

int td__op_broadcast(td_call *c, td_shape a, td_shape b, td_shape *shape)
{
    int bad = td__shape_broadcast(a, b, shape);
    if (!bad)
        return 0;
    char ta[128], tb[128];
    int n = a.ndim > b.ndim ? a.ndim : b.ndim, dim = bad - 1;
    return td_call_error(c, TD_ERR_SHAPE, "shapes %s and %s do not broadcast at dimension %d: %lld against %lld", td__shape_text(a, ta),
                         td__shape_text(b, tb), dim, (long long)a.dim[dim - (n - a.ndim)], (long long)b.dim[dim - (n - b.ndim)]);
}

static int infer_pair(td_call *c, td_shape *shape)
{
    int code = td__op_arith(c, 0);
    if (!code && !td__call_mixed(c))
        code = td__op_same_dtype(c, 0, 1);
    return code ? code : td__op_broadcast(c, td_call_input(c, 0)->shape, td_call_input(c, 1)->shape, shape);
}

static int infer_binary(td_call *c)
{
    td_shape shape;
    int code = infer_pair(c, &shape);
    td_tensor *a = td_call_input(c, 0), *b = td_call_input(c, 1);
    return code ? code : td__call_infer_like(c, 0, shape, td__call_mixed(c) ? TD_F32 : a->dtype, td__shape_equal(a->shape, shape) && td__keeps_channels_last(a) ? a :
                                             td__shape_equal(b->shape, shape) ? b : NULL);
}

static void binary(td_k_binary *kernel, td_tensor *out, td_tensor *a, td_tensor *b, bool add)
{
    td_loop l = td__loop(out->shape, out, a, b, NULL);
    kernel(&l, out->dtype, td__ptr(out), td__ptr(a), td__ptr(b), add);
}

/* x in f32, or x itself; the caller unrefs */
static td_tensor *in_f32(td_tensor *x)
{
    if (!td__is_half(x->dtype)) {
        td__tensor_ref(x);
        return x;
    }
    td_tensor *wide = td__tensor_new(x->shape, TD_F32, x->storage->device);
    if (!wide->poisoned && td__copy(wide, x, false)) {
        td__tensor_unref(wide);
        return td__poison();
    }
    return wide;
}

/* slot = or += sum of kernel(a, b), whose full shape is `full`, over what the input's shape lacks. 16 bits: products and their sum in f32 */
static int binary_to_slot(td_k_binary *kernel, td_tensor *a, td_tensor *b, td_shape full, td_grad_slot *slot)
{
    td_tensor *into = slot->into;
    if (td__shape_equal(full, into->shape) && a->dtype == into->dtype && b->dtype == into->dtype) {
        binary(kernel, into, a, b, slot->add);
        return 0;
    }
    const bool half = td__is_half(into->dtype);
    td_tensor *wa = in_f32(a), *wb = in_f32(b), *t = td__tensor_new(full, half ? TD_F32 : into->dtype, into->storage->device);
    td_tensor *sum = half ? td__tensor_new(into->shape, TD_F32, into->storage->device) : into;
    int code = wa->poisoned || wb->poisoned || t->poisoned || sum->poisoned ? td__pending() : 0;
    if (!code) {
        binary(kernel, t, wa, wb, false);
        code = td__sum_to(t, 1.0, sum, half ? false : slot->add);
    }
    if (!code && half)
        code = td__copy(into, sum, slot->add);
    td__tensor_unref(wa);
    td__tensor_unref(wb);
    td__tensor_unref(t);
    if (half)
        td__tensor_unref(sum);
    return code;
}

/* the gradient g itself, times factor, into the slot of input i */
static int pass_to_slot(td_call *c, int i, td_tensor *g, double factor, td_grad_slot *slot)
{
    if (!slot->into)
        return 0;
    if (factor == 1.0 && td__shape_numel(g->shape) == td__shape_numel(td_call_input_shape(c, i)))
        return td_call_pass(c, i, g);
    return td__sum_to(g, factor, slot->into, slot->add);
}

static int run_add(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *a = td_call_input(c, 0), *b = td_call_input(c, 1);
    int code = td__call_mixed(c) ? td__need("td_add", out, add_half) : td__need("td_add", out, add);
    if (!code && td__call_mixed(c)) {          /* one of them is f32                                                        */
        td_tensor *wide = a->dtype == TD_F32 ? a : b, *half = wide == a ? b : a;
        td_loop l = td__loop(out->shape, out, wide, half, NULL);
        td__kernels(out)->add_half(&l, half->dtype, td__ptr(out), td__ptr(wide), td__ptr(half));
        return 0;
    }
    if (!code)
        binary(td__kernels(out)->add, out, td_call_input(c, 0), td_call_input(c, 1), false);
    return code;
}
static int grad_add(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    int code = pass_to_slot(c, 0, g[0], 1.0, &slot[0]);
    return code ? code : pass_to_slot(c, 1, g[0], 1.0, &slot[1]);
}
const td_op td__op_add = { .name = "add", .infer = infer_binary, .run = run_add, .grad = grad_add,
                            .flags = TD_OP_KEEPS_DIVISOR | TD__OP_PASSES | TD__OP_FORMATS | TD__OP_WIDE_ALIKE };

static int run_sub(td_call *c)
{
    td_tensor *out = td_call_output(c, 0);
    int code = td__need("td_sub", out, sub);
    if (!code)
        binary(td__kernels(out)->sub, out, td_call_input(c, 0), td_call_input(c, 1), false);
    return code;
}
static int grad_sub(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    /* the second first: passing the gradient on may give its memory away */
    int code = pass_to_slot(c, 1, g[0], -1.0, &slot[1]);
    return code ? code : pass_to_slot(c, 0, g[0], 1.0, &slot[0]);
}
const td_op td__op_sub = { .name = "sub", .infer = infer_binary, .run = run_sub, .grad = grad_sub, .flags = TD_OP_KEEPS_DIVISOR | TD__OP_FORMATS };

/* mul and div need the operands again: each is saved only where the other one's gradient (div: its own) reads it */
static int run_mul(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *a = td_call_input(c, 0), *b = td_call_input(c, 1);
    int code = td__need("td_mul", out, mul);
    if (code)
        return code;
    binary(td__kernels(out)->mul, out, a, b, false);
    if (td_call_needs_grad(c, 1))
        td_call_save(c, a);
    if (td_call_needs_grad(c, 0))
        td_call_save(c, b);
    return 0;
}
static int grad_mul(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_k_binary *mul = td__kernels(g[0])->mul;
    int code = slot[0].into ? binary_to_slot(mul, g[0], td__op_operand(c, 1), g[0]->shape, &slot[0]) : 0;
    if (!code && slot[1].into)
        code = binary_to_slot(mul, g[0], td__op_operand(c, 0), g[0]->shape, &slot[1]);
    return code;
}
const td_op td__op_mul = { .name = "mul", .infer = infer_binary, .run = run_mul, .grad = grad_mul, .flags = TD_OP_KEEPS_DIVISOR | TD__OP_FORMATS };

static int run_div(td_call *c)
{
    td_tensor *out = td_call_output(c, 0);
    int code = td__need("td_div", out, div);
    if (code)
        return code;
    binary(td__kernels(out)->div, out, td_call_input(c, 0), td_call_input(c, 1), false);
    td_call_save(c, td_call_input(c, 1));
    if (td_call_needs_grad(c, 1))
        td_call_save(c, td_call_input(c, 0));
    return 0;
}
static int grad_div(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const td_kernels *k = td__kernels(g[0]);
    td_tensor *b = td__op_operand(c, 1);
    int code = slot[0].into ? binary_to_slot(k->div, g[0], b, g[0]->shape, &slot[0]) : 0;
    if (code || !slot[1].into)
        return code;
    if ((code = td__need("td_div", g[0], div_grad_b)))
        return code;
    td_tensor *wg = in_f32(g[0]), *wx = in_f32(td_call_input(c, 0)), *t = wg->poisoned ? td__poison() : td__op_temp(wg, wg->shape);
    if (wx->poisoned || t->poisoned) {
        code = td__pending();
    } else {
        binary(k->mul, t, wg, wx, false);
        code = binary_to_slot(k->div_grad_b, t, b, g[0]->shape, &slot[1]);
    }
    td__tensor_unref(wg);
    td__tensor_unref(wx);
    td__tensor_unref(t);
    return code;
}
const td_op td__op_div = { .name = "div", .infer = infer_binary, .run = run_div, .grad = grad_div, .flags = TD_OP_KEEPS_DIVISOR | TD__OP_FORMATS };

static int infer_eq(td_call *c)
{
    td_shape shape;
    int code = infer_pair(c, &shape);
    return code ? code : td_call_infer(c, 0, shape, TD_BOOL);
}
static int run_eq(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *a = td_call_input(c, 0), *b = td_call_input(c, 1);
    int code = td__need("td_eq", out, eq);
    if (code)
        return code;
    td_loop l = td__loop(out->shape, out, a, b, NULL);
    td__kernels(out)->eq(&l, a->dtype, td__ptr(out), td__ptr(a), td__ptr(b));
    return 0;
}
const td_op td__op_eq = { .name = "eq", .infer = infer_eq, .run = run_eq };

/* ---- one operand and numbers: x*factor + term ----------------------------------------------------------------------------- */

typedef struct { double factor, term; } scale_attr;

static int infer_scale(td_call *c)
{
    const scale_attr *s = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0);
    int code = td__op_arith(c, 0);
    if (code)
        return code;
    if (!td__is_real(x->dtype)) {
        const double limit = 9007199254740992.0;               /* 2^53: whole numbers are exact up to here                 */
        const double number[2] = { s->factor, s->term };
        for (int i = 0; i < 2; i++)
            if (!(number[i] >= -limit && number[i] <= limit) || number[i] != (double)(int64_t)number[i])
                return td_call_error(c, TD_ERR_ARGUMENT, "%g is not a whole number that %s can take (td_cast to f32 or f64 first)", number[i],
                                     td_dtype_name(x->dtype));
    }
    return td__call_infer_like(c, 0, x->shape, x->dtype, x);
}
static int run_scale(td_call *c)
{
    const scale_attr *s = td_call_attr(c);
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = td__need("td_scale", out, scale);
    if (code)
        return code;
    td_loop l = td__loop(out->shape, out, x, NULL, NULL);
    td__kernels(out)->scale(&l, out->dtype, td__ptr(out), td__ptr(x), s->factor, s->term, false);
    return 0;
}
static int grad_scale(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const scale_attr *s = td_call_attr(c);
    return pass_to_slot(c, 0, g[0], s->factor, &slot[0]);
}
#define SCALE_OP(label)                                                                                      \
    const td_op td__op_##label = { .name = #label, .infer = infer_scale, .run = run_scale, .grad = grad_scale, \
                                   .attr_size = sizeof(scale_attr), .flags = TD_OP_KEEPS_DIVISOR | TD__OP_FORMATS }
SCALE_OP(neg);
SCALE_OP(scale);
SCALE_OP(shift);

/* ---- public -------------------------------------------------------------------------------------------------------------- */

td_tensor *td_add(td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_add, (td_tensor *[]){ a, b }, 2, NULL);
}

td_tensor *td_sub(td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_sub, (td_tensor *[]){ a, b }, 2, NULL);
}

td_tensor *td_mul(td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_mul, (td_tensor *[]){ a, b }, 2, NULL);
}

td_tensor *td_div(td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_div, (td_tensor *[]){ a, b }, 2, NULL);
}

td_tensor *td_eq(td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_eq, (td_tensor *[]){ a, b }, 2, NULL);
}

td_tensor *td_neg(td_tensor *x)
{
    TD_ENTER();
    return td_apply(&td__op_neg, &x, 1, &(scale_attr){ -1.0, -0.0 });
}

td_tensor *td_scale(td_tensor *x, double factor)
{
    TD_ENTER();
    return td_apply(&td__op_scale, &x, 1, &(scale_attr){ factor, -0.0 });   /* + -0 leaves every value, also -0, as it is */
}

td_tensor *td_shift(td_tensor *x, double term)
{
    TD_ENTER();
    return td_apply(&td__op_shift, &x, 1, &(scale_attr){ 1.0, term });
}
