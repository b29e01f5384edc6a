/* autograd/ops_view.c: reshape, permute, expand, narrow, contiguous, detach: other looks at the same storage.
 *
 * A view costs a handle. reshape copies only where strides do not allow a view. Gradients are laid out anew as their input wants
 * them: by passing on, by a strided copy, or by a sum over what was repeated.
 */
#include "ops_shared.h"
#include <string.h>

/* ---- reshape -------------------------------------------------------------------------------------------------------------- */

typedef struct { td_shape shape; } shape_attr;

/* Both shapes are walked from the end in the smallest pieces of equal size; within a piece `from` must be evenly strided. */
bool td__reshape_strides(td_shape from, const int64_t *from_stride, td_shape to, int64_t *stride)
{
    if (td__strides_contiguous(from, from_stride)) {
        td__shape_strides(to, stride);
        return true;
    }
    int i = from.ndim - 1, j = to.ndim - 1;
    while (j >= 0 || i >= 0) {
        while (i >= 0 && from.dim[i] == 1)
            i--;
        if (i < 0) {
            for (; j >= 0; j--)
                stride[j] = 1;                                 /* only ones are left                                      */
            break;
        }
        int64_t size = from.dim[i], step = from_stride[i], piece = 1;
        int64_t next = step;
        for (; j >= 0 && piece < size; j--) {                  /* take dimensions of `to` until they cover one of from …      */
            stride[j] = next;
            piece *= to.dim[j];
            next = step * piece;
            while (piece > size && i > 0) {                    /* … or more of x, as long as it goes on evenly             */
                i--;
                if (from.dim[i] == 1)
                    continue;
                if (from_stride[i] != step * size)
                    return false;
                size *= from.dim[i];
            }
        }
        if (piece != size)
            return false;
        i--;
    }
    return true;
}

/* The product of the sizes that are greater than 0. */
static int64_t product(td_shape s)
{
    int64_t n = 1;
    for (int i = 0; i < s.ndim; i++)
        if (s.dim[i] > 0 && __builtin_mul_overflow(n, s.dim[i], &n))
            return INT64_MAX;
    return n;
}

/* The size that -1 in `to` stands for; -1: there is none. Without elements the sizes other than 0 decide, so that a batch of 0 rows keeps the
 * width of its rows. */
static int64_t inferred(td_shape from, int64_t n, td_shape to, int64_t known)
{
    if (known == 0) {
        if (n != 0)
            return -1;
        n = product(from);
        known = product(to);
    }
    return n % known != 0 ? -1 : n / known;
}

static int infer_reshape(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    td_shape to = ((const shape_attr *)td_call_attr(c))->shape;
    char a[128], b[128];
    int64_t known = 1;
    int unknown = -1;
    if (to.ndim < 0 || to.ndim > TD_MAX_DIMS)
        return td_call_error(c, TD_ERR_SHAPE, "a shape has 0 to %d dimensions, not %d", TD_MAX_DIMS, to.ndim);
    for (int i = 0; i < to.ndim; i++) {
        if (to.dim[i] == -1 && unknown < 0) {
            unknown = i;
        } else if (to.dim[i] < 0) {
            return td_call_error(c, TD_ERR_SHAPE, "shape %s: %s", td__shape_text(to, b),
                                 to.dim[i] == -1 ? "only one dimension may be -1" : "a dimension is negative");
        } else if (__builtin_mul_overflow(known, to.dim[i], &known)) {
            known = INT64_MAX;
        }
    }
    int64_t n = td__shape_numel(x->shape);
    if (unknown >= 0) {
        to.dim[unknown] = inferred(x->shape, n, to, known);
        if (to.dim[unknown] < 0)
            return td_call_error(c, TD_ERR_SHAPE, "the %lld elements of shape %s do not divide into shape %s", (long long)n,
                                 td__shape_text(x->shape, a), td__shape_text(to, b));
    } else if (known != n) {
        return td_call_error(c, TD_ERR_SHAPE, "shape %s has %lld elements, shape %s has %lld", td__shape_text(x->shape, a), (long long)n,
                             td__shape_text(to, b), (long long)known);
    }
    int code = td__shape_check("td_reshape", to);
    if (code)
        return code;
    int64_t stride[TD_MAX_DIMS];
    return td__reshape_strides(x->shape, x->stride, to, stride) ? td_call_view(c, to, stride, 0) : td_call_infer(c, 0, to, x->dtype);
}

/* Only where a view cannot be: the elements in row order. */
static int run_reshape(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *out = td_call_output(c, 0);
    int64_t stride[TD_MAX_DIMS];
    td__shape_strides(x->shape, stride);
    td_tensor *as_x = td__tensor_view(out, x->shape, stride, out->offset);
    if (as_x->poisoned)
        return td__pending();
    int code = td__copy(as_x, x, false);
    td__tensor_unref(as_x);
    return code;
}

static int grad_same(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    return td_call_pass(c, 0, g[0]);
}

const td_op td__op_reshape = { .name = "reshape", .infer = infer_reshape, .run = run_reshape, .grad = grad_same,
                               .attr_size = sizeof(shape_attr),
                               .flags = TD_OP_VIEW | TD_OP_KEEPS_DIVISOR | TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD | TD__OP_PASSES };

/* ---- permute ---------------------------------------------------------------------------------------------------------------- */

typedef struct { int n, order[TD_MAX_DIMS]; } order_attr;

static int infer_permute(td_call *c)
{
    const order_attr *a = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0);
    char text[128];
    td_shape shape = { x->shape.ndim, { 0 } };
    int64_t stride[TD_MAX_DIMS] = { 0 };
    uint32_t seen = 0;
    if (a->n != x->shape.ndim)
        return td_call_error(c, TD_ERR_ARGUMENT, "%d dimensions are named, shape %s has %d", a->n, td__shape_text(x->shape, text), x->shape.ndim);
    for (int i = 0; i < a->n; i++) {
        int from = a->order[i] < 0 ? a->order[i] + a->n : a->order[i];
        if (from < 0 || from >= a->n)
            return td_call_error(c, TD_ERR_ARGUMENT, "dimension %d is outside shape %s", a->order[i], td__shape_text(x->shape, text));
        if (seen >> from & 1)
            return td_call_error(c, TD_ERR_ARGUMENT, "dimension %d is named twice", from);
        seen |= 1u << from;
        shape.dim[i] = x->shape.dim[from], stride[i] = x->stride[from];
    }
    return td_call_view(c, shape, stride, 0);
}

static int grad_permute(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const order_attr *a = td_call_attr(c);
    int64_t stride[TD_MAX_DIMS] = { 0 };
    for (int i = 0; i < a->n; i++)
        stride[a->order[i] < 0 ? a->order[i] + a->n : a->order[i]] = g[0]->stride[i];
    td_tensor *back = td__tensor_view(g[0], td_call_input_shape(c, 0), stride, g[0]->offset);
    if (back->poisoned)
        return td__pending();
    int code = td__copy(slot[0].into, back, slot[0].add);
    td__tensor_unref(back);
    return code;
}

const td_op td__op_permute = { .name = "permute", .infer = infer_permute, .grad = grad_permute, .attr_size = sizeof(order_attr),
                               .flags = TD_OP_VIEW | TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD | TD__OP_STRIDED_GRAD };

/* ---- expand ------------------------------------------------------------------------------------------------------------------ */

static int infer_expand(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    td_shape to = ((const shape_attr *)td_call_attr(c))->shape, both;
    char a[128], b[128];
    int code = td__shape_check("td_expand", to);
    if (code)
        return code;
    if (td__shape_broadcast(x->shape, to, &both) || !td__shape_equal(both, to))
        return td_call_error(c, TD_ERR_SHAPE, "shape %s does not expand to %s: only dimensions of size 1 repeat, and new ones come first",
                             td__shape_text(x->shape, a), td__shape_text(to, b));
    int64_t stride[TD_MAX_DIMS] = { 0 };
    for (int i = 0; i < x->shape.ndim; i++) {
        int at = i + to.ndim - x->shape.ndim;
        stride[at] = x->shape.dim[i] == to.dim[at] ? x->stride[i] : 0;
    }
    return td_call_view(c, to, stride, 0);
}

static int grad_expand(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    return td__sum_to(g[0], 1.0, slot[0].into, slot[0].add);
}

const td_op td__op_expand = { .name = "expand", .infer = infer_expand, .grad = grad_expand,
                              .attr_size = sizeof(shape_attr), .flags = TD_OP_VIEW | TD_OP_ANY_DTYPE };

/* ---- narrow ------------------------------------------------------------------------------------------------------------------ */

typedef struct { int dim; int64_t start, length; } narrow_attr;

static int infer_narrow(td_call *c)
{
    const narrow_attr *a = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0);
    char text[128];
    int dim = td__axis("td_narrow", a->dim, x->shape.ndim);
    if (dim < 0)
        return dim;
    int64_t size = x->shape.dim[dim];
    if (a->start < 0 || a->length < 0 || a->start > size || a->length > size - a->start)
        return td_call_error(c, TD_ERR_ARGUMENT, "start %lld, length %lld is outside dimension %d of shape %s", (long long)a->start,
                             (long long)a->length, dim, td__shape_text(x->shape, text));
    td_shape shape = x->shape;
    shape.dim[dim] = a->length;
    return td_call_view(c, shape, x->stride, a->start * x->stride[dim]);
}

int td__narrow_of(const td_call *c, int64_t *start)
{
    const narrow_attr *a = td_call_attr(c);
    *start = a->start;
    return a->dim < 0 ? a->dim + td_call_input_shape(c, 0).ndim : a->dim;
}

/* The part that was looked at gets the gradient, the rest zero. */
static int grad_narrow(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const narrow_attr *a = td_call_attr(c);
    td_tensor *into = slot[0].into;
    int dim = a->dim < 0 ? a->dim + into->shape.ndim : a->dim;
    if (!slot[0].add) {
        int64_t before[TD_MAX_DIMS] = { 0 };
        before[dim] = a->start;
        int code = td__op_fill_around("td_narrow", into, before, g[0]->shape, 0.0);
        if (code)
            return code;
    }
    td_tensor *part = td__tensor_view(into, g[0]->shape, into->stride, into->offset + a->start * into->stride[dim]);
    if (part->poisoned)
        return td__pending();
    int code = td__copy(part, g[0], slot[0].add);
    td__tensor_unref(part);
    return code;
}

const td_op td__op_narrow = { .name = "narrow", .infer = infer_narrow, .grad = grad_narrow, .attr_size = sizeof(narrow_attr),
                              .flags = TD_OP_VIEW | TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD };

/* ---- contiguous, detach ------------------------------------------------------------------------------------------------------ */

static int infer_contiguous(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    return td_call_infer(c, 0, x->shape, x->dtype);
}
static int run_contiguous(td_call *c)
{
    return td__copy(td_call_output(c, 0), td_call_input(c, 0), false);
}
const td_op td__op_contiguous = { .name = "contiguous", .infer = infer_contiguous, .run = run_contiguous, .grad = grad_same,
                                  .flags = TD_OP_KEEPS_DIVISOR | TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD | TD__OP_PASSES };

static int infer_detach(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    return td_call_view(c, x->shape, x->stride, 0);
}
const td_op td__op_detach = { .name = "detach", .infer = infer_detach, .flags = TD_OP_VIEW | TD_OP_ANY_DTYPE | TD_OP_ANY_DTYPE_GRAD };

/* ---- public ------------------------------------------------------------------------------------------------------------------ */

td_tensor *td_reshape(td_tensor *x, td_shape shape)
{
    TD_ENTER();
    return td_apply(&td__op_reshape, &x, 1, &(shape_attr){ shape });
}

td_tensor *td_flatten(td_tensor *x, int from)
{
    TD_ENTER();
    td_shape to = { 1, { -1 } };
    if (!x && td__tensor_check("td_flatten", x))
        return td__poison();
    if (!x->poisoned && x->shape.ndim > 0) {
        if ((from = td__axis("td_flatten", from, x->shape.ndim)) < 0)
            return td__poison();
        to.ndim = from + 1;
        to.dim[from] = 1;
        for (int i = 0; i < x->shape.ndim; i++)
            if (i < from)
                to.dim[i] = x->shape.dim[i];
            else
                to.dim[from] *= x->shape.dim[i];
    }
    return td_apply(&td__op_reshape, &x, 1, &(shape_attr){ to });
}

td_tensor *td_permute(td_tensor *x, const int *order, int n)
{
    TD_ENTER();
    order_attr a = { .n = n };
    if (n < 0 || n > TD_MAX_DIMS || (n > 0 && !order)) {
        td__fail(TD_ERR_ARGUMENT, "td_permute: %s", n > 0 && !order ? "order is NULL" : "n is not between 0 and 8");
        return td__poison();
    }
    if (n > 0)
        memcpy(a.order, order, (size_t)n * sizeof *order);
    return td_apply(&td__op_permute, &x, 1, &a);
}

td_tensor *td_transpose(td_tensor *x, int dim0, int dim1)
{
    TD_ENTER();
    order_attr a = { 0 };
    if (!x && td__tensor_check("td_transpose", x))
        return td__poison();
    if (!x->poisoned) {
        a.n = x->shape.ndim;
        if ((dim0 = td__axis("td_transpose", dim0, a.n)) < 0 || (dim1 = td__axis("td_transpose", dim1, a.n)) < 0)
            return td__poison();
        for (int i = 0; i < a.n; i++)
            a.order[i] = i == dim0 ? dim1 : i == dim1 ? dim0 : i;
    }
    return td_apply(&td__op_permute, &x, 1, &a);
}

td_tensor *td_expand(td_tensor *x, td_shape shape)
{
    TD_ENTER();
    return td_apply(&td__op_expand, &x, 1, &(shape_attr){ shape });
}

td_tensor *td_narrow(td_tensor *x, int dim, int64_t start, int64_t length)
{
    TD_ENTER();
    return td_apply(&td__op_narrow, &x, 1, &(narrow_attr){ dim, start, length });
}

td_tensor *td_contiguous(td_tensor *x)
{
    TD_ENTER();
    if (x && !x->poisoned && td__strides_contiguous(x->shape, x->stride))
        return x;
    return td_apply(&td__op_contiguous, &x, 1, NULL);
}

td_tensor *td_detach(td_tensor *x)
{
    TD_ENTER();
    return td_apply(&td__op_detach, &x, 1, NULL);
}
