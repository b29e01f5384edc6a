/* tensor/look.c: looking at a tensor: its properties, single elements, its memory, a copy of its contents on the host.
 *
 * Getters of properties answer for the poisoned tensor too (shape (), f32); those that read contents refuse it.
 */
#include "tensor_impl.h"
#include "convert.h"
#include <math.h>

td_shape td_shape_of(const td_tensor *x)
{
    return x ? x->shape : TD_SCALAR;
}

int64_t td_dim(const td_tensor *x, int dim)
{
    TD_ENTER();
    if (td__tensor_check("td_dim", x))
        return 0;
    int axis = td__axis("td_dim", dim, x->shape.ndim);
    return axis < 0 ? 0 : x->shape.dim[axis];
}

int64_t td_numel(const td_tensor *x)
{
    return x ? td__shape_numel(x->shape) : 0;
}

td_dtype td_dtype_of(const td_tensor *x)
{
    return x ? x->dtype : TD_F32;
}

td_device td_device_of(const td_tensor *x)
{
    return x && x->storage ? x->storage->device : (td_device){ TD_CPU, 0 };
}

bool td_is_contiguous(const td_tensor *x)
{
    return x && td__strides_contiguous(x->shape, x->stride);
}

bool td_is_poisoned(const td_tensor *x)
{
    return !x || x->poisoned;
}

/* The element `at` elements from x's first one. */
static double element(const td_tensor *x, int64_t at)
{
    const td_storage *s = x->storage;
    size_t size = td_dtype_size(x->dtype);
    const char *from = (const char *)td__ptr(x) + (size_t)at * size;
    uint64_t value[1];
    if (s->ops->synchronize(s->device.index))
        return NAN;
    if (s->ops->host_memory)
        return td__element_get(x->dtype, from);
    if (s->ops->copy(s->device.index, value, true, from, false, size) || s->ops->synchronize(s->device.index) || td__trap_look(false))
        return NAN;
    return td__element_get(x->dtype, value);
}

double td_item(const td_tensor *x)
{
    TD_ENTER();
    td__record_read("td_item");
    char text[128];
    if (td__tensor_check("td_item", x))
        return NAN;
    if (td__shape_numel(x->shape) != 1) {
        td__fail(TD_ERR_SHAPE, "td_item: one element is needed, but shape %s has %lld", td__shape_text(x->shape, text),
                 (long long)td__shape_numel(x->shape));
        return NAN;
    }
    return element(x, 0);
}

double td_at(const td_tensor *x, td_shape index)
{
    TD_ENTER();
    td__record_read("td_at");
    char text[128], place[128];
    if (td__tensor_check("td_at", x))
        return NAN;
    if (index.ndim != x->shape.ndim) {
        td__fail(TD_ERR_SHAPE, "td_at: an index of %d numbers does not fit shape %s", index.ndim, td__shape_text(x->shape, text));
        return NAN;
    }
    int64_t at = 0;
    for (int i = 0; i < index.ndim; i++) {
        if (index.dim[i] < 0 || index.dim[i] >= x->shape.dim[i]) {
            td__fail(TD_ERR_SHAPE, "td_at: index %s is outside shape %s at dimension %d", td__shape_text(index, place),
                     td__shape_text(x->shape, text), i);
            return NAN;
        }
        at += index.dim[i] * x->stride[i];
    }
    return element(x, at);
}

void *td_data(td_tensor *x)
{
    TD_ENTER();
    td__record_read("td_data");
    char text[128], device[24];
    if (td__tensor_check("td_data", x))
        return NULL;
    if (!x->storage->ops->host_memory) {
        td__fail(TD_ERR_DEVICE, "td_data: the tensor of shape %s is on %s: td_copy_out reads it", td__shape_text(x->shape, text),
                 td__device_text(x->storage->device, device));
        return NULL;
    }
    if (!td_is_contiguous(x)) {
        td__fail(TD_ERR_SHAPE, "td_data: the view of shape %s is not contiguous: td_contiguous or td_copy_out makes a copy",
                 td__shape_text(x->shape, text));
        return NULL;
    }
    return td__ptr(x);
}

static int size_check(const char *who, const td_tensor *x, const void *memory, size_t bytes)
{
    char text[128];
    size_t need = (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype);
    if (bytes != need)
        return td__fail(TD_ERR_ARGUMENT, "%s: shape %s of %s is %zu bytes, got %zu", who, td__shape_text(x->shape, text),
                        td_dtype_name(x->dtype), need, bytes);
    if (!memory && need)
        return td__fail(TD_ERR_ARGUMENT, "%s: the host memory is NULL", who);
    return 0;
}

int td_copy_out(const td_tensor *x, void *into, size_t bytes)
{
    TD_ENTER();
    td__record_read("td_copy_out");
    int code = td__tensor_check("td_copy_out", x);
    if (!code)
        code = size_check("td_copy_out", x, into, bytes);
    if (code || bytes == 0)
        return code;
    const td_device_ops *ops = x->storage->ops;
    int index = x->storage->device.index;
    td_tensor *source = (td_tensor *)x, *packed = NULL;
    if (!td_is_contiguous(x)) {
        packed = td__tensor_new(x->shape, x->dtype, x->storage->device);
        if (packed->poisoned)
            return td_error_pending();
        code = td__copy(packed, source, false);
        source = packed;
    }
    if (!code)
        code = ops->copy(index, into, true, td__ptr(source), false, bytes);
    if (!code)
        code = ops->synchronize(index);
    if (!code)
        code = td__trap_look(false);
    td__tensor_unref(packed);
    return code;
}

int td_copy_in(td_tensor *x, const void *from, size_t bytes)
{
    TD_ENTER();
    if (td__recorded_here())
        td__record_refuse("td_copy_in is called by the step: a replay would not read the host's bytes again; pass them as an input");
    char text[128];
    int code = td__tensor_check("td_copy_in", x);
    if (!code && td__tensor_inplace_check)
        code = td__tensor_inplace_check(x);
    if (!code && !td_is_contiguous(x))
        code = td__fail(TD_ERR_SHAPE, "td_copy_in: the view of shape %s is not contiguous", td__shape_text(x->shape, text));
    if (!code)
        code = size_check("td_copy_in", x, from, bytes);
    if (code)
        return code;
    const td_device_ops *ops = x->storage->ops;
    int index = x->storage->device.index;
    code = ops->copy(index, td__ptr(x), false, from, true, bytes);
    if (!code && !ops->host_memory)
        code = ops->synchronize(index);
    x->storage->version++;
    return code;
}
