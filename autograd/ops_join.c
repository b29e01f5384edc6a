/* autograd/ops_join.c: td_concat, td_stack, td_split: pieces along one dimension.
 *
 * One call of the operation takes TD_OP_MAX_INPUTS pieces; longer lists are joined in a tree, so that an element is copied once per level. A stack is
 * a concat of views with a new dimension of size 1; a split is one view for each piece.
 */
#include "ops_shared.h"

typedef struct { int axis; } axis_attr;

static int infer(td_call *c)
{
    td_tensor *first = td_call_input(c, 0);
    const int n = (int)td_call_inputs(c);
    char a[128], b[128];
    int axis = td__axis("td_concat", ((const axis_attr *)td_call_attr(c))->axis, first->shape.ndim);
    if (axis < 0)
        return axis;
    td_shape shape = first->shape;
    shape.dim[axis] = 0;
    for (int i = 0; i < n; i++) {
        td_tensor *x = td_call_input(c, i);
        td_shape fits = first->shape;
        int code = td__op_same_dtype(c, 0, i);
        if (code)
            return code;
        if (x->shape.ndim == fits.ndim)
            fits.dim[axis] = x->shape.dim[axis];
        if (!td__shape_equal(x->shape, fits))
            return td_call_error(c, TD_ERR_SHAPE, "shapes %s and %s do not join along dimension %d: the others must be equal",
                                 td__shape_text(first->shape, a), td__shape_text(x->shape, b), axis);
        if (__builtin_add_overflow(shape.dim[axis], x->shape.dim[axis], &shape.dim[axis]))
            return td_call_error(c, TD_ERR_SHAPE, "the sizes along dimension %d add up to more than can be addressed", axis);
    }
    return td_call_infer(c, 0, shape, first->dtype);
}

/* The part of whole (contiguous) where a piece of this shape lies, *at elements along the axis from its start; *at goes on. */
static td_tensor *part_of(td_tensor *whole, td_shape piece, int axis, int64_t *at)
{
    td_tensor *part = td__tensor_view(whole, piece, whole->stride, whole->offset + *at * whole->stride[axis]);
    *at += piece.dim[axis];
    return part;
}

static int run(td_call *c)
{
    td_tensor *out = td_call_output(c, 0);
    int axis = td__axis("td_concat", ((const axis_attr *)td_call_attr(c))->axis, out->shape.ndim), code = 0;
    int64_t at = 0;
    for (int i = 0; i < (int)td_call_inputs(c) && !code; i++) {
        td_tensor *x = td_call_input(c, i), *part = part_of(out, x->shape, axis, &at);
        code = part->poisoned ? td__pending() : td__copy(part, x, false);
        td__tensor_unref(part);
    }
    return code;
}

static int grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    int axis = td__axis("td_concat", ((const axis_attr *)td_call_attr(c))->axis, g[0]->shape.ndim), code = 0;
    int64_t at = 0;
    for (int i = 0; i < (int)td_call_inputs(c) && !code; i++) {
        td_tensor *part = part_of(g[0], td_call_input_shape(c, i), axis, &at);
        code = part->poisoned ? td__pending() : slot[i].into ? td__copy(slot[i].into, part, slot[i].add) : 0;
        td__tensor_unref(part);
    }
    return code;
}

const td_op td__op_concat = { .name = "concat", .infer = infer, .run = run, .grad = grad,
                              .attr_size = sizeof(axis_attr), .flags = TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD };

/* Level by level: groups of TD_OP_MAX_INPUTS become one piece each. */
static td_tensor *join(td_tensor *const *list, size_t n, int axis)
{
    const axis_attr a = { axis };
    if (n <= TD_OP_MAX_INPUTS)
        return td_apply(&td__op_concat, list, n, &a);
    size_t pieces = (n + TD_OP_MAX_INPUTS - 1) / TD_OP_MAX_INPUTS;
    td_tensor **piece = td__alloc(pieces * sizeof *piece);
    if (!piece)
        return td__poison();
    for (size_t i = 0, at = 0; i < pieces; i++, at += TD_OP_MAX_INPUTS)
        piece[i] = td_apply(&td__op_concat, list + at, n - at < TD_OP_MAX_INPUTS ? n - at : TD_OP_MAX_INPUTS, &a);
    td_tensor *whole = join(piece, pieces, axis);
    td__free(piece);
    return whole;
}

/* 0; or an error: nothing to join, a NULL. *poisoned: one of them is. */
static int check_list(const char *who, td_tensor *const *list, size_t n, bool *poisoned)
{
    *poisoned = false;
    if (n == 0 || !list)
        return td__fail(TD_ERR_ARGUMENT, "%s: %s, expected at least one tensor", who, n ? "the list is NULL" : "the list is empty");
    for (size_t i = 0; i < n; i++) {
        if (!list[i])
            return td__fail(TD_ERR_ARGUMENT, "%s: tensor %zu of %zu is NULL", who, i, n);
        *poisoned |= list[i]->poisoned;
    }
    return 0;
}

td_tensor *td_concat(td_tensor *const *list, size_t n, int axis)
{
    TD_ENTER();
    bool poisoned;
    return check_list("td_concat", list, n, &poisoned) || poisoned ? td__poison() : join(list, n, axis);
}

td_tensor *td_stack(td_tensor *const *list, size_t n, int axis)
{
    TD_ENTER();
    bool poisoned;
    char a[128], b[128];
    if (check_list("td_stack", list, n, &poisoned) || poisoned)
        return td__poison();
    td_shape shape = list[0]->shape;
    if (shape.ndim >= TD_MAX_DIMS) {
        td__fail(TD_ERR_SHAPE, "td_stack: shape %s has %d dimensions, expected at most %d: the result has one more", td__shape_text(shape, a),
                 shape.ndim, TD_MAX_DIMS - 1);
        return td__poison();
    }
    for (size_t i = 1; i < n; i++)
        if (!td__shape_equal(list[i]->shape, shape)) {
            td__fail(TD_ERR_SHAPE, "td_stack: tensor 0 has shape %s and tensor %zu %s, expected equal ones", td__shape_text(shape, a), i,
                     td__shape_text(list[i]->shape, b));
            return td__poison();
        }
    int at = td__axis("td_stack", axis, shape.ndim + 1);
    td_tensor **row = at < 0 ? NULL : td__alloc(n * sizeof *row);
    if (!row)
        return td__poison();
    for (int i = shape.ndim++; i > at; i--)
        shape.dim[i] = shape.dim[i - 1];
    shape.dim[at] = 1;
    for (size_t i = 0; i < n; i++)
        row[i] = td_reshape(list[i], shape);
    td_tensor *whole = join(row, n, at);
    td__free(row);
    return whole;
}

void td_split(td_tensor *x, const int64_t *sizes, size_t n, int axis, td_tensor **outputs)
{
    TD_ENTER();
    char text[128];
    for (size_t i = 0; i < n && outputs; i++)
        outputs[i] = td__poison();
    if (!x && td__tensor_check("td_split", x))
        return;
    if (x->poisoned)
        return;
    if (n == 0 || !sizes || !outputs) {
        td__fail(TD_ERR_ARGUMENT, "td_split: %s", n == 0 ? "into 0 pieces, expected at least 1" : sizes ? "outputs is NULL" : "sizes is NULL");
        return;
    }
    int dim = td__axis("td_split", axis, x->shape.ndim);
    if (dim < 0)
        return;
    int64_t left = x->shape.dim[dim], sum = 0;
    bool fits = true;
    for (size_t i = 0; i < n && fits; i++)
        fits = sizes[i] >= 0 && !__builtin_add_overflow(sum, sizes[i], &sum);
    if (!fits || sum != left) {
        td__fail(TD_ERR_ARGUMENT, "td_split: the sizes %s dimension %d of shape %s", fits ? "do not add up to" : "must be 0 or more and add up to",
                 dim, td__shape_text(x->shape, text));
        return;
    }
    for (size_t i = 0, at = 0; i < n; at += (size_t)sizes[i++])
        outputs[i] = td_narrow(x, dim, (int64_t)at, sizes[i]);
}
