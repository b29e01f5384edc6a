/* autograd/ops_softmax.c: softmax and log-softmax along any axis. Kernels know rows only: another axis is brought to the end first.
 */
#include "ops_shared.h"
#include <string.h>

typedef struct { int axis; } softmax_attr;

typedef void rows_kernel(td_dtype t, int64_t rows, int64_t n, void *y, const void *x);
typedef void rows_grad_kernel(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gy, const void *y, bool add);

static int infer(td_call *c, const char *who)
{
    const softmax_attr *a = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0);
    int code = td__op_float(c, 0, "the input");
    if (!code && (code = td__axis(who, a->axis, x->shape.ndim)) > 0)
        code = 0;
    return code ? code : td_call_infer(c, 0, x->shape, x->dtype);
}

/* x with `axis` last: a view. The caller unrefs. */
static td_tensor *axis_last(td_tensor *x, int axis)
{
    td_shape shape = x->shape;
    int64_t stride[TD_MAX_DIMS];
    memcpy(stride, x->stride, sizeof stride);
    for (int i = axis; i + 1 < shape.ndim; i++)
        shape.dim[i] = x->shape.dim[i + 1], stride[i] = x->stride[i + 1];
    shape.dim[shape.ndim - 1] = x->shape.dim[axis], stride[shape.ndim - 1] = x->stride[axis];
    return td__tensor_view(x, shape, stride, x->offset);
}

/* x as rows: contiguous with the axis last; a copy where it must be. The caller unrefs. */
static td_tensor *as_rows(td_tensor *x, int axis)
{
    td_tensor *view = axis_last(x, axis);
    if (view->poisoned)
        return view;
    td_tensor *rows = td__op_dense(view);
    td__tensor_unref(view);
    return rows;
}

static int64_t row_count(td_shape s, int64_t n)
{
    return n > 0 ? td__shape_numel(s) / n : 0;
}

static int run(td_call *c, const char *who, rows_kernel *kernel)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0);
    int code = 0, axis = td__axis(who, ((const softmax_attr *)td_call_attr(c))->axis, x->shape.ndim);
    int64_t n = x->shape.dim[axis];
    td_tensor *rows = as_rows(x, axis), *place = axis_last(out, axis), *y = place;
    bool direct = !place->poisoned && td_is_contiguous(place);
    if (!direct && !place->poisoned)
        y = td__op_temp(out, place->shape);
    if (rows->poisoned || place->poisoned || y->poisoned)
        code = td__pending();
    else {
        kernel(out->dtype, row_count(x->shape, n), n, td__ptr(y), td__ptr(rows));
        if (!direct)
            code = td__copy(place, y, false);
    }
    if (!direct)
        td__tensor_unref(y);
    td__tensor_unref(place);
    td__tensor_unref(rows);
    td_call_save(c, out);
    return code;
}

static int grad(td_call *c, const char *who, rows_grad_kernel *kernel, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *out = td_call_saved(c, 0);
    int code = 0, axis = td__axis(who, ((const softmax_attr *)td_call_attr(c))->axis, out->shape.ndim);
    int64_t n = out->shape.dim[axis], rows = row_count(out->shape, n);
    td_tensor *y = as_rows(out, axis), *gy = as_rows(g[0], axis), *place = axis_last(slot->into, axis), *gx = place;
    bool direct = !place->poisoned && td_is_contiguous(place);
    if (!direct && !place->poisoned)
        gx = td__op_temp(out, place->shape);
    if (y->poisoned || gy->poisoned || place->poisoned || gx->poisoned)
        code = td__pending();
    else {
        kernel(out->dtype, rows, n, td__ptr(gx), td__ptr(gy), td__ptr(y), direct && slot->add);
        if (!direct)
            code = td__copy(place, gx, slot->add);
    }
    if (!direct)
        td__tensor_unref(gx);
    td__tensor_unref(place);
    td__tensor_unref(gy);
    td__tensor_unref(y);
    return code;
}

#define SOFTMAX(row)                                                                                         \
    static int infer_##row(td_call *c)                                                                       \
    {                                                                                                        \
        return infer(c, "td_" #row);                                                                         \
    }                                                                                                        \
    static int run_##row(td_call *c)                                                                         \
    {                                                                                                        \
        td_tensor *out = td_call_output(c, 0);                                                               \
        int code = td__need("td_" #row, out, row);                                                           \
        return code ? code : run(c, "td_" #row, td__kernels(out)->row);                                      \
    }                                                                                                        \
    static int grad_##row(td_call *c, td_tensor *const *g, td_grad_slot *slot)                               \
    {                                                                                                        \
        int code = td__need("td_" #row, g[0], row##_grad);                                                   \
        return code ? code : grad(c, "td_" #row, td__kernels(g[0])->row##_grad, g, slot);                    \
    }                                                                                                        \
    const td_op td__op_##row = { .name = #row, .infer = infer_##row, .run = run_##row, .grad = grad_##row,   \
                                 .attr_size = sizeof(softmax_attr), .flags = TD_OP_HIGH };                                        \
    td_tensor *td_##row(td_tensor *x, int axis)                                                              \
    {                                                                                                        \
        TD_ENTER();                                                                                          \
        return td_apply(&td__op_##row, &x, 1, &(softmax_attr){ axis });                                      \
    }
SOFTMAX(softmax)
SOFTMAX(log_softmax)
