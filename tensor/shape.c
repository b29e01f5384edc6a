/* tensor/shape.c: arithmetic on shapes: sizes, strides, broadcasting, axes, and how shapes are written in messages.
 *
 * A checked shape (td__shape_check) has 0 to 8 dimensions, none negative, and a product that fits 8-byte elements into
 * an int64_t even when a dimension of size 0 hides the others; everything below may then multiply without care.
 */
#include "tensor_impl.h"
#include <stdio.h>

int64_t td__shape_numel(td_shape s)
{
    int64_t n = 1;
    for (int i = 0; i < s.ndim; i++)
        n *= s.dim[i];
    return n;
}

bool td__shape_equal(td_shape a, td_shape b)
{
    if (a.ndim != b.ndim)
        return false;
    for (int i = 0; i < a.ndim; i++)
        if (a.dim[i] != b.dim[i])
            return false;
    return true;
}

void td__shape_strides(td_shape s, int64_t *stride)
{
    int64_t step = 1;
    for (int i = s.ndim - 1; i >= 0; i--) {
        stride[i] = step;
        step *= s.dim[i] > 0 ? s.dim[i] : 1;
    }
}

/* Strides of dimensions of size 1 mean nothing, and an empty tensor is contiguous whatever its strides. */
bool td__strides_contiguous(td_shape s, const int64_t *stride)
{
    int64_t step = 1;
    bool contiguous = true;
    for (int i = s.ndim - 1; i >= 0; i--) {
        if (s.dim[i] == 0)
            return true;
        if (s.dim[i] != 1 && stride[i] != step)
            contiguous = false;
        step *= s.dim[i];
    }
    return contiguous;
}

/* NumPy's rule: align at the last dimension; sizes must be equal, or one of them 1. */
int td__shape_broadcast(td_shape a, td_shape b, td_shape *out)
{
    int ndim = a.ndim > b.ndim ? a.ndim : b.ndim;
    td_shape r = { ndim, { 0 } };
    for (int i = 0; i < ndim; i++) {
        int ia = i - (ndim - a.ndim), ib = i - (ndim - b.ndim);
        int64_t da = ia < 0 ? 1 : a.dim[ia], db = ib < 0 ? 1 : b.dim[ib];
        if (da != db && da != 1 && db != 1)
            return 1 + i;
        r.dim[i] = da == 1 ? db : da;
    }
    *out = r;
    return 0;
}

const char *td__shape_text(td_shape s, char into[static 128])
{
    size_t used = 0;
    into[used++] = '(';
    for (int i = 0; i < s.ndim && i < TD_MAX_DIMS; i++) {
        int n = snprintf(into + used, 128 - used, i ? ",%lld" : "%lld", (long long)s.dim[i]);
        used = used + (size_t)n < 126 ? used + (size_t)n : 126;
    }
    into[used++] = ')';
    into[used] = 0;
    return into;
}

int td__shape_check(const char *who, td_shape s)
{
    char text[128];
    if (s.ndim < 0 || s.ndim > TD_MAX_DIMS)
        return td__fail(TD_ERR_SHAPE, "%s: a shape has 0 to %d dimensions, not %d", who, TD_MAX_DIMS, s.ndim);
    int64_t n = 1;
    for (int i = 0; i < s.ndim; i++) {
        if (s.dim[i] < 0)
            return td__fail(TD_ERR_SHAPE, "%s: shape %s has a negative size at dimension %d", who, td__shape_text(s, text), i);
        if (s.dim[i] > 0 && __builtin_mul_overflow(n, s.dim[i], &n))
            n = INT64_MAX;
    }
    if (n > INT64_MAX / 16)
        return td__fail(TD_ERR_SHAPE, "%s: shape %s has more elements than can be addressed", who, td__shape_text(s, text));
    return 0;
}

int td__axis(const char *who, int axis, int ndim)
{
    if (axis < -ndim || axis >= ndim) {
        if (ndim == 0)
            return td__fail(TD_ERR_SHAPE, "%s: a tensor of shape () has no dimension %d", who, axis);
        return td__fail(TD_ERR_SHAPE, "%s: dimension %d is outside -%d to %d", who, axis, ndim, ndim - 1);
    }
    return axis < 0 ? axis + ndim : axis;
}
