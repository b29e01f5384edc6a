/* autograd/ops_swiglu.c: td_swiglu. The two inputs are saved as they are, views of one projection included; the gate's sigmoid is
 * computed again for the gradients, which cost one pass together.
 */
#include "ops_shared.h"

static int swiglu_infer(td_call *c)
{
    td_tensor *gate = td_call_input(c, 0), *up = td_call_input(c, 1);
    char gt[128], ut[128];
    int code = td__op_float(c, 0, "gate");
    if (!code)
        code = td__op_same_dtype(c, 0, 1);
    if (code)
        return code;
    if (!td__shape_equal(gate->shape, up->shape))
        return td_call_error(c, TD_ERR_SHAPE, "gate has shape %s and up %s, expected the same", td__shape_text(gate->shape, gt),
                             td__shape_text(up->shape, ut));
    return td_call_infer(c, 0, gate->shape, gate->dtype);
}

static int swiglu_run(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *gate = td_call_input(c, 0), *up = td_call_input(c, 1);
    int code = td__need("td_swiglu", out, swiglu);
    if (code)
        return code;
    const td_loop l = td__loop(out->shape, out, gate, up, NULL);
    td__kernels(out)->swiglu(&l, out->dtype, td__ptr(out), td__ptr(gate), td__ptr(up));
    td_call_save(c, gate);
    td_call_save(c, up);
    return 0;
}

static int swiglu_grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *gate = td_call_saved(c, 0), *up = td_call_saved(c, 1), *gg = slot[0].into, *gu = slot[1].into;
    int code = td__need("td_swiglu", g[0], swiglu_grad);
    if (code || (!gg && !gu))
        return code;
    const td_loop l = td__loop(g[0]->shape, g[0], gate, up, NULL);     /* the slots have g's strides: all are contiguous     */
    td__kernels(g[0])->swiglu_grad(&l, g[0]->dtype, gg ? td__ptr(gg) : NULL, gu ? td__ptr(gu) : NULL, td__ptr(g[0]), td__ptr(gate), td__ptr(up),
                                   slot[0].add, slot[1].add);
    return 0;
}

const td_op td__op_swiglu = { .name = "swiglu", .infer = swiglu_infer, .run = swiglu_run, .grad = swiglu_grad };

td_tensor *td_swiglu(td_tensor *gate, td_tensor *up)
{
    TD_ENTER();
    return td_apply(&td__op_swiglu, (td_tensor *[]){ gate, up }, 2, NULL);
}
