/* autograd/ops_index.c: td_index_select (whole slices of one dimension by number) and td_gather (single elements along one).
 *
 * An index may name a place several times: the gradient adds there, in the index's order and in double, without atomics.
 */
#include "ops_index.h"

typedef struct { int axis; } axis_attr;

/* ---- slices ------------------------------------------------------------------------------------------------------------------- */

static int infer_index_select(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *index = td_call_input(c, 1);
    char text[128];
    int axis = td__axis("td_index_select", ((const axis_attr *)td_call_attr(c))->axis, x->shape.ndim);
    int code = axis < 0 ? axis : td__op_integers(c, 1, "the index");
    if (code)
        return code;
    if (index->shape.ndim != 1)
        return td_call_error(c, TD_ERR_SHAPE, "the index has shape %s, expected one dimension", td__shape_text(index->shape, text));
    td_shape shape = x->shape;
    shape.dim[axis] = index->shape.dim[0];
    return td_call_infer(c, 0, shape, x->dtype);
}

/* What both run functions do: a kernel of this row on x and the checked index. */
typedef __typeof__(((td_kernels *)0)->index_select) pick_kernel;
static int run_pick(td_call *c, const char *who, pick_kernel kernel)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *given = td_call_input(c, 1);
    int axis = td__axis(who, ((const axis_attr *)td_call_attr(c))->axis, x->shape.ndim);
    td__along a = td__along_axis(x->shape, axis, out->shape.dim[axis]);
    td_tensor *index = td__index_open(c, given, x, axis);
    if (index->poisoned)
        return td__pending();
    td_tensor *dense = td__op_dense(x);
    if (dense->poisoned) {
        td__tensor_unref(index);
        return td__pending();
    }
    kernel(x->dtype, a.outer, a.size, a.count, a.inner, td__ptr(out), td__ptr(dense), td__ptr(index));
    td__tensor_unref(dense);
    td__op_save_dense(c, given, index);
    return 0;
}

static int run_index_select(td_call *c)
{
    td_tensor *out = td_call_output(c, 0);
    int code = td__need("td_index_select", out, index_select);
    return code ? code : run_pick(c, "td_index_select", td__kernels(out)->index_select);
}

static int grad_index_select(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *into = slot[0].into, *index = td_call_saved(c, 0);
    if (!into)
        return 0;
    int code = td__need("td_index_select", into, index_select_grad), before = td__pending();
    if (code)
        return code;
    int axis = td__axis("td_index_select", ((const axis_attr *)td_call_attr(c))->axis, into->shape.ndim);
    td__along a = td__along_axis(into->shape, axis, g[0]->shape.dim[axis]);
    td__kernels(into)->index_select_grad(into->dtype, a.outer, a.size, a.count, a.inner, td__ptr(into), td__ptr(g[0]), td__ptr(index), -1,
                                         slot[0].add);
    return before ? 0 : td__pending();
}

const td_op td__op_index_select = { .name = "index_select", .infer = infer_index_select, .run = run_index_select, .grad = grad_index_select,
                                    .attr_size = sizeof(axis_attr), .flags = TD_OP_ANY_DTYPE };

td_tensor *td_index_select(td_tensor *x, int axis, td_tensor *index)
{
    TD_ENTER();
    return td_apply(&td__op_index_select, (td_tensor *[]){ x, index }, 2, &(axis_attr){ axis });
}

/* ---- elements -------------------------------------------------------------------------------------------------------------------- */

static int infer_gather(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *index = td_call_input(c, 1);
    char a[128], b[128];
    int axis = td__axis("td_gather", ((const axis_attr *)td_call_attr(c))->axis, x->shape.ndim);
    int code = axis < 0 ? axis : td__op_integers(c, 1, "the index");
    if (code)
        return code;
    td_shape want = x->shape;
    if (index->shape.ndim == want.ndim)
        want.dim[axis] = index->shape.dim[axis];
    if (!td__shape_equal(index->shape, want))
        return td_call_error(c, TD_ERR_SHAPE, "the index %s does not fit x %s: only dimension %d may differ", td__shape_text(index->shape, a),
                             td__shape_text(x->shape, b), axis);
    return td_call_infer(c, 0, want, x->dtype);
}

static int run_gather(td_call *c)
{
    td_tensor *out = td_call_output(c, 0);
    int code = td__need("td_gather", out, gather);
    return code ? code : run_pick(c, "td_gather", td__kernels(out)->gather);
}

static int grad_gather(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *into = slot[0].into, *index = td_call_saved(c, 0);
    if (!into)
        return 0;
    int code = td__need("td_gather", into, gather_grad), before = td__pending();
    if (code)
        return code;
    int axis = td__axis("td_gather", ((const axis_attr *)td_call_attr(c))->axis, into->shape.ndim);
    td__along a = td__along_axis(into->shape, axis, g[0]->shape.dim[axis]);
    td__kernels(into)->gather_grad(into->dtype, a.outer, a.size, a.count, a.inner, td__ptr(into), td__ptr(g[0]), td__ptr(index), slot[0].add);
    return before ? 0 : td__pending();
}

const td_op td__op_gather = { .name = "gather", .infer = infer_gather, .run = run_gather, .grad = grad_gather,
                              .attr_size = sizeof(axis_attr), .flags = TD_OP_ANY_DTYPE };

td_tensor *td_gather(td_tensor *x, int axis, td_tensor *index)
{
    TD_ENTER();
    return td_apply(&td__op_gather, (td_tensor *[]){ x, index }, 2, &(axis_attr){ axis });
}
