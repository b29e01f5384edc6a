/* autograd/ops_image.h: checks and shapes that the image operations share. Internal to ops_conv.c, ops_conv_transpose.c, ops_pool.c,
 * ops_norm.c, ops_layer_norm.c.
 */
#ifndef TD_OPS_IMAGE_H
#define TD_OPS_IMAGE_H
#include <autograd_impl.h>

/* Input i has the dtype of input 0, which is a float one: of any width, since a device that computes in f32 shows f16 and bf16 as f32.
 * 0, or the error recorded. */
static inline int td__image_dtype(td_call *call, int i, const char *name)
{
    td_dtype first = td_dtype_of(td_call_input(call, 0)), t = td_dtype_of(td_call_input(call, i));
    if (!td__is_real(first))
        return td_call_error(call, TD_ERR_DTYPE, "x is %s, expected f32, f64, f16 or bf16", td_dtype_name(first));
    if (t != first)
        return td_call_error(call, TD_ERR_DTYPE, "%s is %s, expected %s as x", name, td_dtype_name(t), td_dtype_name(first));
    return 0;
}

/* An optional input as the kernels take it. */
static inline void *td__image_ptr(const td_tensor *x)
{
    return x ? td__ptr(x) : NULL;
}

/* The output's size along one direction, or negative when the window does not fit. */
static inline int64_t td__image_out(int64_t size, int64_t window, int stride, int padding)
{
    int64_t room = size + 2 * (int64_t)padding - window;
    return room < 0 ? -1 : room / stride + 1;
}

/* The rows that a kernel of `window` rows covers. */
static inline int64_t td__image_reach(int64_t window, int dilation)
{
    return (window - 1) * dilation + 1;
}

/* What every convolution checks of its inputs 0 x, 1 w (dimensions as `layout` says), 2 b and its numbers. 0, or the error recorded. */
static inline int td__image_conv(td_call *call, const char *layout, int stride, int padding, int dilation, int groups)
{
    td_shape x = td_call_input_shape(call, 0), w = td_call_input_shape(call, 1);
    char xt[128], wt[128];
    int code = td__image_dtype(call, 1, "w");
    if (code == 0 && td_call_input(call, 2))
        code = td__image_dtype(call, 2, "b");
    if (code)
        return code;
    if (x.ndim != 4)
        return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, expected 4 dimensions (N,C,H,W)", td__shape_text(x, xt));
    if (w.ndim != 4)
        return td_call_error(call, TD_ERR_SHAPE, "w has shape %s, expected 4 dimensions %s", td__shape_text(w, wt), layout);
    if (w.dim[2] < 1 || w.dim[3] < 1)
        return td_call_error(call, TD_ERR_SHAPE, "w has shape %s: its windows are empty", td__shape_text(w, wt));
    if (stride < 1)
        return td_call_error(call, TD_ERR_ARGUMENT, "stride is %d, expected at least 1 (0 means 1)", stride);
    if (padding < 0)
        return td_call_error(call, TD_ERR_ARGUMENT, "padding is %d, expected at least 0", padding);
    if (dilation < 1)
        return td_call_error(call, TD_ERR_ARGUMENT, "dilation is %d, expected at least 1 (0 means 1)", dilation);
    if (groups < 1)
        return td_call_error(call, TD_ERR_ARGUMENT, "groups is %d, expected at least 1 (0 means 1)", groups);
    if (x.dim[1] % groups != 0)
        return td_call_error(call, TD_ERR_SHAPE, "x %s has %lld channels (dimension 1), not a multiple of groups %d", td__shape_text(x, xt),
                             (long long)x.dim[1], groups);
    return 0;
}

/* After a kernel that needs workspace: the error that it met, if any. An older error that is pending does not count. */
static inline int td__image_done(int before)
{
    return before ? 0 : td__pending();
}

/* An optional argument stays NULL; everything else becomes contiguous (kernels take planes). */
static inline td_tensor *td__image_arg(td_tensor *x)
{
    return x ? td_contiguous(x) : NULL;
}

/* An image: kernels take pixels, too, where the device says so. */
static inline td_tensor *td__image_pixels(td_tensor *x)
{
    return td__keeps_channels_last(x) ? x : td__image_arg(x);
}

/* A convolution's weights, laid out as its images are. */
static inline td_tensor *td__image_weights(td_tensor *w, bool channels_last)
{
    if (!channels_last || !w || w->poisoned || w->shape.ndim != 4)
        return td__image_arg(w);
    if (td__lies_channels_last(w))
        return w;
    td_tensor *cast = td__autocast_leaf(w, true);
    return cast ? cast : td_to_memory_format(w, TD_CHANNELS_LAST);
}

#endif
