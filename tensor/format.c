/* tensor/format.c: the order of an image's dimensions in memory. Shapes are (N,C,H,W) always; "channels last" says that the strides are
 * those of (N,H,W,C): a pixel's channels are neighbours, which is what tensor cores and bandwidth want.
 *
 * With one channel or one pixel the elements lie the same way in both orders. Then the strides of the dimensions of size 1, which mean nothing
 * else, tell what the tensor was made as: so the order is not forgotten on the way through a network.
 */
#include "tensor_impl.h"

void td__channels_last_strides(td_shape s, int64_t *stride)
{
    stride[1] = 1;
    stride[3] = s.dim[1] > 0 ? s.dim[1] : 1;
    stride[2] = stride[3] * (s.dim[3] > 0 ? s.dim[3] : 1);
    stride[0] = stride[2] * (s.dim[2] > 0 ? s.dim[2] : 1);
}

bool td__channels_last(const td_tensor *x)
{
    if (!x || x->poisoned || x->shape.ndim != 4 || x->stride[1] != 1)
        return false;
    int64_t last[TD_MAX_DIMS], first[TD_MAX_DIMS];
    bool differs = false;
    td__channels_last_strides(x->shape, last);
    td__shape_strides(x->shape, first);
    for (int i = 0; i < 4; i++) {
        if (x->stride[i] != last[i])
            return false;
        differs |= last[i] != first[i];
    }
    return differs;
}

bool td__lies_channels_last(const td_tensor *x)
{
    int64_t last[TD_MAX_DIMS];
    if (x->shape.ndim != 4)
        return false;
    td__channels_last_strides(x->shape, last);
    for (int i = 0; i < 4; i++)
        if (x->shape.dim[i] != 1 && x->stride[i] != last[i])
            return false;
    return true;
}

bool td__keeps_channels_last(const td_tensor *x)
{
    return x && !x->poisoned && x->storage->ops->channels_last && x->storage->ops->computes_half && td__channels_last(x);
}

td_tensor *td__tensor_new_as(td_shape shape, td_dtype dtype, td_device device, bool channels_last)
{
    td_tensor *x = td__tensor_new(shape, dtype, device);
    if (channels_last && !x->poisoned)
        td__channels_last_strides(shape, x->stride);
    return x;
}
