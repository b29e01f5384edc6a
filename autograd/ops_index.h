/* autograd/ops_index.h: what operations with an index share. Internal to ops_embedding.c and ops_index.c.
 */
#ifndef TD_OPS_INDEX_H
#define TD_OPS_INDEX_H
#include "ops_shared.h"
#include <stdio.h>

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

/* "the id at position (1,2) is 50; the weight (50,8) has rows 0 to 49": c->op is the operation's name, c->axis negative for an embedding. */
static inline int td__index_say(const td__check *c, int64_t position, int64_t value)
{
    char place[128], text[128], what[192], most[32] = "none";
    td_shape at = c->at;
    for (int i = at.ndim - 1; i >= 0; i--) {
        at.dim[i] = position % c->at.dim[i];
        position /= c->at.dim[i];
    }
    td__shape_text(c->of, text);
    if (c->axis < 0)
        snprintf(what, sizeof what, "the weight %s has rows", text);
    else
        snprintf(what, sizeof what, "dimension %d of x %s has places", c->axis, text);
    if (c->size > 0)
        snprintf(most, sizeof most, "0 to %lld", (long long)c->size - 1);
    return td__fail(TD_ERR_ARGUMENT, "td_%s: the %s at position %s is %lld; %s %s", c->op, c->axis < 0 ? "id" : "index", td__shape_text(at, place),
                    (long long)value, what, most);
}

/* index as contiguous i64, every element in [0, size), size being that of x's dimension `axis` (-1: of a weight's rows): index itself with one
 * reference more, or a copy. The caller unrefs or saves it (td__op_save_dense). Poison after an error. A device with a trap tells later. */
static inline td_tensor *td__index_open(td_call *c, td_tensor *index, const td_tensor *x, int axis)
{
    td_tensor *dense;
    if (index->dtype == TD_I64) {
        dense = td__op_dense(index);
    } else {
        dense = td__tensor_new(index->shape, TD_I64, index->storage->device);
        if (!dense->poisoned && td__copy(dense, index, false)) {
            td__tensor_unref(dense);
            return td__poison();
        }
    }
    if (dense->poisoned || td__need("an index", dense, index_check)) {
        td__tensor_unref(dense);
        return td__poison();
    }
    const td__check check = { .say = td__index_say, .op = td__call_name(c), .at = dense->shape, .of = x->shape, .size = x->shape.dim[axis < 0 ? 0 : axis],
                              .axis = axis };
    int64_t bad = dense->storage->ops->trapped ? td__check_number(&check) : -1, value = 0;
    td__kernels(dense)->index_check(td__shape_numel(dense->shape), td__ptr(dense), check.size, &bad);
    if (bad < 0)
        return dense;
    td_tensor *one = td__tensor_view(dense, TD_SCALAR, dense->stride, dense->offset + bad);
    if (!one->poisoned)
        td_copy_out(one, &value, sizeof value);
    td__tensor_unref(one);
    td__tensor_unref(dense);
    td__index_say(&check, bad, value);
    return td__poison();
}

#endif
