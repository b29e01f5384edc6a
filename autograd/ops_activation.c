/* autograd/ops_activation.c: relu, gelu, gelu_tanh, silu, sigmoid, tanh, exp, ln, sqrt.
 *
 * Those whose gradient can be told from the result save that (the next layer usually keeps it anyway); the others need their input. The
 * incoming gradient's memory becomes that of the input's gradient, where nobody else needs it.
 */
#include "ops_shared.h"

static int infer(td_call *c)
{
    int code = td__op_float(c, 0, "the input");
    td_tensor *x = td_call_input(c, 0);
    return code ? code : td__call_infer_like(c, 0, x->shape, x->dtype, x);
}

static int run(td_call *c, td_k_unary *kernel, bool save_input)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    td_loop l = td__loop(out->shape, out, x, NULL, NULL);
    kernel(&l, out->dtype, td__ptr(out), td__ptr(x), false);
    td_call_save(c, save_input ? x : out);
    return 0;
}

static int grad(td_call *c, td_k_binary *kernel, td_tensor *g, td_grad_slot *slot)
{
    td_tensor *v = td_call_saved(c, 0);
    td_loop l = td__loop(g->shape, slot->into, g, v, NULL);
    kernel(&l, g->dtype, td__ptr(slot->into), td__ptr(g), td__ptr(v), slot->add);
    return 0;
}

#define ACTIVATION(row, save_input, autocast)                                                                \
    static int run_##row(td_call *c)                                                                         \
    {                                                                                                        \
        td_tensor *out = td_call_output(c, 0);                                                               \
        int code = td__need("td_" #row, out, row);                                                           \
        return code ? code : run(c, td__kernels(out)->row, save_input);                                      \
    }                                                                                                        \
    static int grad_##row(td_call *c, td_tensor *const *g, td_grad_slot *slot)                               \
    {                                                                                                        \
        int code = td__need("td_" #row, g[0], row##_grad);                                                   \
        return code ? code : grad(c, td__kernels(g[0])->row##_grad, g[0], slot);                             \
    }                                                                                                        \
    const td_op td__op_##row = { .name = #row, .infer = infer, .run = run_##row, .grad = grad_##row, \
                                  .flags = (autocast) | TD__OP_OVERWRITES | TD__OP_FORMATS }; \
    td_tensor *td_##row(td_tensor *x)                                                                        \
    {                                                                                                        \
        TD_ENTER();                                                                                          \
        return td_apply(&td__op_##row, &x, 1, NULL);                                                         \
    }
ACTIVATION(relu, false, 0)
ACTIVATION(gelu, true, 0)
ACTIVATION(gelu_tanh, true, 0)
ACTIVATION(sigmoid, false, 0)
ACTIVATION(tanh, false, 0)
ACTIVATION(silu, true, 0)
ACTIVATION(exp, false, TD_OP_HIGH)
ACTIVATION(ln, true, TD_OP_HIGH)
ACTIVATION(sqrt, false, 0)
