/* autograd/ops_index.h: what operations with an index share. Internal to ops_embedding.c and ops_index.c.
 */
#ifndef TD_OPS_INDEX_H
#define TD_OPS_INDEX_H
#include "ops_shared.h"

/* x seen along one dimension: x (outer, size, inner); the result has `count` in place of size. */
typedef struct { int64_t outer, size, count, inner; } td__along;

static inline td__along td__along_axis(td_shape s, int axis, int64_t count)
{
    td__along a = { 1, s.dim[axis], count, 1 };
    for (int i = 0; i < s.ndim; i++)
        if (i != axis)
            *(i < axis ? &a.outer : &a.inner) *= s.dim[i];
    return a;
}

/* Input i is i64 or i32. 0, or the sentence. */
static inline int td__op_integers(td_call *c, int i, const char *name)
{
    td_dtype t = td_call_input(c, i)->dtype;
    return t == TD_I64 || t == TD_I32 ? 0 : td_call_error(c, TD_ERR_DTYPE, "%s is %s, expected i64 or i32", name, td_dtype_name(t));
}

/* x as contiguous i64, every element in [0, size): x itself with one reference more, or a copy. The caller unrefs or saves it
 * (td__op_save_dense). Poison after an error; `what` ends the sentence: "weight (50,8) has rows". */
static inline td_tensor *td__index_open(td_call *c, td_tensor *x, int64_t size, const char *name, const char *what)
{
    td_tensor *dense;
    if (x->dtype == TD_I64) {
        dense = td__op_dense(x);
    } else {
        dense = td__tensor_new(x->shape, TD_I64, x->storage->device);
        if (!dense->poisoned && td__copy(dense, x, false)) {
            td__tensor_unref(dense);
            return td__poison();
        }
    }
    if (dense->poisoned || td__need("an index", dense, index_check)) {
        td__tensor_unref(dense);
        return td__poison();
    }
    int64_t bad, value = 0, n = td__shape_numel(dense->shape);
    td__kernels(dense)->index_check(n, td__ptr(dense), size, &bad);
    if (bad < 0)
        return dense;
    char place[128];
    td_shape at = dense->shape;
    int64_t rest = bad;
    for (int i = at.ndim - 1; i >= 0; i--) {
        at.dim[i] = rest % dense->shape.dim[i];
        rest /= dense->shape.dim[i];
    }
    td_tensor *one = td__tensor_view(dense, TD_SCALAR, dense->stride, dense->offset + bad);
    if (!one->poisoned)
        td_copy_out(one, &value, sizeof value);
    td__tensor_unref(one);
    td__tensor_unref(dense);
    if (size > 0)
        td_call_error(c, TD_ERR_ARGUMENT, "%s at position %s is %lld; %s 0 to %lld", name, td__shape_text(at, place), (long long)value, what,
                      (long long)size - 1);
    else
        td_call_error(c, TD_ERR_ARGUMENT, "%s at position %s is %lld; %s none", name, td__shape_text(at, place), (long long)value, what);
    return td__poison();
}

#endif
