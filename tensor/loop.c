/* tensor/loop.c: how strided tensors become loops for kernels, and the two movements that the whole library stands on: copy and sum_to.
 *
 * A loop's dimensions are the shape's without those of size 1, the one with the output's largest stride outermost, neighbours
 * merged wherever every operand steps evenly through both. So whatever lies contiguously in all operands is one dimension.
 */
#include "tensor_impl.h"

/* Strides of x, broadcast to `shape`: aligned at the last dimension, 0 where it repeats. */
static void strides_in(td_shape shape, const td_tensor *x, int64_t *stride)
{
    for (int i = 0; i < shape.ndim; i++) {
        int ix = x ? i - (shape.ndim - x->shape.ndim) : -1;
        stride[i] = ix < 0 || x->shape.dim[ix] == 1 ? 0 : x->stride[ix];
    }
}

/* Adds one inner dimension, merged with the one outside it where all strides allow. */
static void push(td_loop *l, int64_t dim, const int64_t stride[4])
{
    int last = l->ndim - 1;
    bool merge = last >= 0;
    for (int k = 0; merge && k < 4; k++)
        merge = l->stride[k][last] == stride[k] * dim;
    int at = merge ? last : l->ndim++;
    l->dim[at] = merge ? l->dim[at] * dim : dim;
    for (int k = 0; k < 4; k++)
        l->stride[k][at] = stride[k];
}

static td_loop empty_loop(void)
{
    td_loop l = { 0 };
    l.ndim = 1;
    for (int k = 0; k < 4; k++)
        l.stride[k][0] = 1;
    return l;
}

td_loop td__loop(td_shape shape, td_tensor *out, td_tensor *a, td_tensor *b, td_tensor *c)
{
    td_tensor *const operand[4] = { out, a, b, c };
    int64_t stride[4][TD_MAX_DIMS];
    int order[TD_MAX_DIMS], n = 0;
    for (int k = 0; k < 4; k++)
        strides_in(shape, operand[k], stride[k]);
    for (int i = 0; i < shape.ndim; i++) {
        if (shape.dim[i] == 0)
            return empty_loop();
        if (shape.dim[i] == 1)
            continue;
        int at = n++;
        for (; at > 0 && stride[0][order[at - 1]] < stride[0][i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    td_loop l;
    l.ndim = 0;
    for (int j = 0; j < n; j++) {
        int i = order[j];
        push(&l, shape.dim[i], (int64_t[4]){ stride[0][i], stride[1][i], stride[2][i], stride[3][i] });
    }
    return l;
}

td_reduce_loop td__reduce_loop(td_tensor *in, uint32_t axes)
{
    td_reduce_loop r;
    r.keep.ndim = r.red.ndim = 0;
    bool none_kept = false, none_summed = false;
    int64_t out_stride[TD_MAX_DIMS], step = 1;
    for (int i = in->shape.ndim - 1; i >= 0; i--)
        if (!(axes >> i & 1)) {
            out_stride[i] = step;
            step *= in->shape.dim[i];
        }
    for (int i = 0; i < in->shape.ndim; i++) {
        int64_t dim = in->shape.dim[i];
        bool summed = axes >> i & 1;
        if (dim == 0)
            *(summed ? &none_summed : &none_kept) = true;
        else if (dim != 1)
            push(summed ? &r.red : &r.keep, dim, (int64_t[4]){ summed ? 0 : out_stride[i], in->stride[i], 0, 0 });
    }
    if (none_kept)
        r.keep = empty_loop();
    if (none_summed)
        r.red = empty_loop();
    return r;
}

/* Contiguous, of dtype t, on `device`: x itself (with a reference) or a copy. Poison after td__fail. */
static td_tensor *packed_as(td_tensor *x, td_dtype t, td_device device)
{
    if (x->dtype == t && td_is_contiguous(x) && td__device_equal(x->storage->device, device)) {
        td__tensor_ref(x);
        return x;
    }
    td_tensor *y = td__tensor_new(x->shape, t, device);
    if (!y->poisoned && td__copy(y, x, false)) {
        td__tensor_unref(y);
        return td__poison();
    }
    return y;
}

/* Between devices only whole blocks travel: convert and pack where the value is, unpack where it goes. */
static int copy_across(td_tensor *into, td_tensor *from, bool add)
{
    td_storage *to = into->storage;
    td_tensor *sent = packed_as(from, into->dtype, from->storage->device);
    if (sent->poisoned)
        return td_error_pending();
    bool direct = !add && td_is_contiguous(into);
    td_tensor *landed = into;
    if (!direct) {
        landed = td__tensor_new(into->shape, into->dtype, to->device);
        if (landed->poisoned) {
            td__tensor_unref(sent);
            return td_error_pending();
        }
    }
    const td_device_ops *ops = to->ops->host_memory ? from->storage->ops : to->ops;
    int index = to->ops->host_memory ? from->storage->device.index : to->device.index;
    size_t bytes = (size_t)td__shape_numel(into->shape) * td_dtype_size(into->dtype);
    int code = ops->copy(index, td__ptr(landed), to->ops->host_memory, td__ptr(sent), from->storage->ops->host_memory, bytes);
    if (!code)
        code = ops->synchronize(index);
    if (!code && to->ops->host_memory)
        code = td__trap_look(false);
    if (!code && !direct)
        code = td__copy(into, landed, add);
    if (!direct)
        td__tensor_unref(landed);
    td__tensor_unref(sent);
    return code;
}

int td__copy(td_tensor *into, td_tensor *from, bool add)
{
    char a[128], b[128];
    if (!td__shape_equal(into->shape, from->shape))
        return td__fail(TD_ERR_INTERNAL, "copy: shape %s into shape %s", td__shape_text(from->shape, a), td__shape_text(into->shape, b));
    bool same = into->dtype == from->dtype && (td__is_arith(into->dtype) || td__is_half(into->dtype));
    if (add && !same && !(td__is_half(into->dtype) && from->dtype == TD_F32))
        return td__fail(TD_ERR_DTYPE, "copy: %s cannot be added to %s", td_dtype_name(from->dtype), td_dtype_name(into->dtype));
    if (!td__device_equal(into->storage->device, from->storage->device))
        return copy_across(into, from, add);
    int code = td__need("copy", into, copy);
    if (code)
        return code;
    td_loop l = td__loop(into->shape, into, from, NULL, NULL);
    td__kernels(into)->copy(&l, into->dtype, td__ptr(into), from->dtype, td__ptr(from), add);
    return 0;
}

int td__sum_to(td_tensor *x, double scale, td_tensor *into, bool add)
{
    char a[128], b[128];
    td_shape shape;
    if (td__shape_broadcast(x->shape, into->shape, &shape) || !td__shape_equal(shape, x->shape) ||
        !(td_is_contiguous(into) || td__shape_equal(x->shape, into->shape)))
        return td__fail(TD_ERR_INTERNAL, "sum_to: shape %s into shape %s", td__shape_text(x->shape, a), td__shape_text(into->shape, b));
    const bool can = td__is_arith(x->dtype) || (td__is_half(x->dtype) && x->storage->ops->computes_half);
    if (x->dtype != into->dtype || !can || !td__device_equal(x->storage->device, into->storage->device))
        return td__fail(TD_ERR_DTYPE, "sum_to: %s into %s", td_dtype_name(x->dtype), td_dtype_name(into->dtype));
    const td_kernels *k = td__kernels(x);
    uint32_t axes = 0;
    for (int i = 0; i < x->shape.ndim; i++) {
        int at = i - (x->shape.ndim - into->shape.ndim);
        if (x->shape.dim[i] != (at < 0 ? 1 : into->shape.dim[at]))
            axes |= 1u << i;
    }
    int code;
    if (axes) {
        if ((code = td__need("sum_to", x, sum)))
            return code;
        td_reduce_loop r = td__reduce_loop(x, axes);
        k->sum(&r, x->dtype, td__ptr(into), td__ptr(x), scale, add);
        return 0;
    }
    td_loop l = td__loop(x->shape, into, x, NULL, NULL);
    if (scale == 1.0) {
        if ((code = td__need("sum_to", x, copy)))
            return code;
        k->copy(&l, x->dtype, td__ptr(into), x->dtype, td__ptr(x), add);
    } else {
        if ((code = td__need("sum_to", x, scale)))
            return code;
        k->scale(&l, x->dtype, td__ptr(into), td__ptr(x), scale, 0.0, add);
    }
    return 0;
}
