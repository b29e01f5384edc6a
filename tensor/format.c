/* tensor/format.c: the order of an image's dimensions in memory. Shapes are (N,C,H,W) always; "channels last" says that the strides are
 * those of (N,H,W,C): a pixel's channels are neighbours, which is what tensor cores and bandwidth want.
 *
 * A tensor that is contiguous is not channels last here, though with one channel or one pixel it may be both.
 */
#include "tensor_impl.h"

void td__channels_last_strides(td_shape s, int64_t *stride)
{
    stride[1] = 1;
    stride[3] = s.dim[1];
    stride[2] = stride[3] * s.dim[3];
    stride[0] = stride[2] * s.dim[2];
}

bool td__channels_last(const td_tensor *x)
{
    if (!x || x->poisoned || x->shape.ndim != 4 || td__strides_contiguous(x->shape, x->stride))
        return false;
    int64_t stride[TD_MAX_DIMS];
    td__channels_last_strides(x->shape, stride);
    for (int i = 0; i < 4; i++)
        if (x->shape.dim[i] != 1 && x->stride[i] != stride[i])
            return false;
    return true;
}

bool td__keeps_channels_last(const td_tensor *x)
{
    return x && !x->poisoned && x->storage->ops->channels_last && td__channels_last(x);
}

td_tensor *td__tensor_new_as(td_shape shape, td_dtype dtype, td_device device, bool channels_last)
{
    td_tensor *x = td__tensor_new(shape, dtype, device);
    if (channels_last && !x->poisoned)
        td__channels_last_strides(shape, x->stride);
    return x;
}
