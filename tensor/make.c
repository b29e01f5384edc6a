/* tensor/make.c: constructors: tensors out of nothing, a value, or host memory. On the default device, owned by the innermost scope.
 */
#include "tensor_impl.h"
#include "convert.h"

static td_tensor *make(const char *who, td_shape shape, td_dtype dtype)
{
    if (td__shape_check(who, shape) || td__dtype_check(who, dtype))
        return td__poison();
    return td__tensor_new(shape, dtype, td_device_default());
}

static td_tensor *make_full(const char *who, td_shape shape, td_dtype dtype, double value)
{
    td_tensor *x = make(who, shape, dtype);
    if (x->poisoned)
        return x;
    if (td__need(who, x, fill)) {
        td__tensor_unref(x);
        return td__poison();
    }
    td_loop l = td__loop(shape, x, NULL, NULL, NULL);
    td__kernels(x)->fill(&l, dtype, td__ptr(x), value);
    if (td__recording_now)
        td__record_fill(x, value);
    return td__scoped_tensor(x);
}

td_tensor *td_empty(td_shape shape, td_dtype dtype)
{
    TD_ENTER();
    return td__scoped_tensor(make("td_empty", shape, dtype));
}

td_tensor *td_zeros(td_shape shape, td_dtype dtype)
{
    TD_ENTER();
    return make_full("td_zeros", shape, dtype, 0.0);
}

td_tensor *td_ones(td_shape shape, td_dtype dtype)
{
    TD_ENTER();
    return make_full("td_ones", shape, dtype, 1.0);
}

td_tensor *td_full(td_shape shape, td_dtype dtype, double value)
{
    TD_ENTER();
    return make_full("td_full", shape, dtype, value);
}

td_tensor *td_arange(int64_t n, td_dtype dtype)
{
    TD_ENTER();
    td_tensor *x = make("td_arange", (td_shape){ 1, { n } }, dtype);
    if (x->poisoned)
        return x;
    if (td__need("td_arange", x, arange)) {
        td__tensor_unref(x);
        return td__poison();
    }
    td__kernels(x)->arange(dtype, n, td__ptr(x));
    if (td__recording_now)
        td__record_constant("td_arange", x);
    return td__scoped_tensor(x);
}

td_tensor *td_from(const void *data, td_shape shape, td_dtype dtype)
{
    TD_ENTER();
    td_tensor *x = make("td_from", shape, dtype);
    if (x->poisoned)
        return x;
    if (!data && x->storage->bytes) {
        char text[128];
        td__fail(TD_ERR_ARGUMENT, "td_from: data is NULL, but shape %s has elements", td__shape_text(shape, text));
        td__tensor_unref(x);
        return td__poison();
    }
    const td_device_ops *ops = x->storage->ops;
    int index = x->storage->device.index;
    /* The caller may reuse its memory at once: wait for a device that copies in the background. */
    int code = ops->copy(index, x->storage->data, false, data, true, x->storage->bytes);
    if (!code && !ops->host_memory)
        code = ops->synchronize(index);
    if (code) {
        td__tensor_unref(x);
        return td__poison();
    }
    if (td__recording_now)
        td__record_constant("td_from", x);
    return td__scoped_tensor(x);
}
