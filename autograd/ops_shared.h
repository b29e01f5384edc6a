/* autograd/ops_shared.h: small things that the operations of several files share. Internal to autograd/ops_*.c.
 */
#ifndef TD_OPS_SHARED_H
#define TD_OPS_SHARED_H
#include "ops_list.h"

/* Floats of any width: f16 and bf16 come as f32 (op.h), or as they are to a device that computes in them. 0, or the sentence. */
static inline int td__op_float(td_call *c, int i, const char *what)
{
    td_dtype t = td_call_input(c, i)->dtype;
    return td__is_real(t) ? 0 : td_call_error(c, TD_ERR_DTYPE, "%s is %s; it must be a float (td_cast converts)", what, td_dtype_name(t));
}

static inline int td__op_arith(td_call *c, int i)
{
    td_dtype t = td_call_input(c, i)->dtype;
    return td__is_arith(t) || td__is_half(t) ? 0 : td_call_error(c, TD_ERR_DTYPE, "arithmetic is done in floats, i64 and i32, not %s (td_cast "
                                                                 "converts)", td_dtype_name(t));
}

static inline int td__op_same_dtype(td_call *c, int i, int j)
{
    td_dtype a = td_call_input(c, i)->dtype, b = td_call_input(c, j)->dtype;
    return a == b ? 0 : td_call_error(c, TD_ERR_DTYPE, "dtypes %s and %s differ (td_cast converts)", td_dtype_name(a), td_dtype_name(b));
}

/* x itself with one reference more, or a contiguous copy. The caller unrefs. Poison after td__fail. */
static inline td_tensor *td__op_dense(td_tensor *x)
{
    if (td__strides_contiguous(x->shape, x->stride)) {
        td__tensor_ref(x);
        return x;
    }
    td_tensor *y = td__tensor_new(x->shape, x->dtype, x->storage->device);
    if (!y->poisoned && td__copy(y, x, false)) {
        td__tensor_unref(y);
        return td__poison();
    }
    return y;
}

/* Saves what td__op_dense gave for x: the copy is handed over, x itself only lent. */
static inline void td__op_save_dense(td_call *c, td_tensor *x, td_tensor *dense)
{
    td_call_save(c, dense);
    if (dense == x)
        td__tensor_unref(dense);
}

/* In grad: saved input i of an operation on two tensors. x*x saves its one tensor under number 0. */
static inline td_tensor *td__op_operand(const td_call *c, int i)
{
    td_tensor *x = td_call_input(c, i);
    return x ? x : td_call_input(c, 0);
}

/* ops_pad.c: `value` everywhere in whole but in the part of shape `inside` that begins `before[d]` elements into each dimension. */
/* Strides that show elements of shape `from` under shape `to`, of as many elements; false: there are none. */
bool td__reshape_strides(td_shape from, const int64_t *from_stride, td_shape to, int64_t *stride);
int  td__narrow_of(const td_call *c, int64_t *start);    /* a node of td__op_narrow: the dimension that it cuts                      */
int td__op_fill_around(const char *who, td_tensor *whole, const int64_t *before, td_shape inside, double value);

static inline td_tensor *td__op_temp(const td_tensor *like, td_shape shape)
{
    return td__tensor_new(shape, like->dtype, like->storage->device);
}

/* For what is kept beside the data (counts, log-sums, means, deviations): in f32 beside f16 and bf16, which only a device that computes in
 * them shows to an operation; else in the data's dtype. */
static inline td_tensor *td__op_stat(const td_tensor *like, td_shape shape)
{
    return td__tensor_new(shape, td__is_half(like->dtype) ? TD_F32 : like->dtype, like->storage->device);
}

/* A kernel has written `value` into the scalar x: the host knows it as well, and no step reads it back (td__number_of). */
static inline void td__op_known(td_tensor *x, double value)
{
    union { double word; char bytes[8]; } element = { 0 };
    td__element_put(x->dtype, element.bytes, value);
    x->number = td__element_get(x->dtype, element.bytes);
    x->number_version = x->storage->version;
    x->number_known = true;
}

/* ---- ops_arith.c ---- */
/* The shape that a and b broadcast to; 0, or the sentence. */
int td__op_broadcast(td_call *c, td_shape a, td_shape b, td_shape *shape);

/* ---- ops_cast.c ---- */
typedef struct { td_dtype to; bool channels_last; } td__cast_attr;         /* channels_last: also where x is not          */
td_tensor *td__cast_channels_last(td_tensor *x, td_dtype dtype);

/* ---- ops_loss.c ---- */
/* Before and after a loss's kernel, which gets &bad: the check of targets beside x (N,C). `after` returns 0 or the sentence's code. */
td__check td__op_target_check(td_call *c, const td_tensor *x, bool has_ignore, int64_t ignore, int64_t *bad);
int       td__op_target_bad(const td__check *check, td_tensor *target, int64_t bad);

/* ---- ops_reduce.c ---- */
/* What every reduction's attributes begin with. */
typedef struct { int n, axis[TD_MAX_DIMS]; bool keep; } td__reduce_attr;
int      td__reduce_attr_set(const td_op *op, const int *axes, int n, bool keep, td__reduce_attr *into);   /* 0, or td__fail          */
int64_t  td__reduce_axes(td_call *c, td_shape s);              /* the mask of reduced axes; negative after the sentence   */
td_shape td__reduced_shape(td_shape s, uint32_t axes, bool keep);
/* g (a reduction's result, kept dimensions or not) as a view over `shape`, repeated along the axes of the mask. The caller unrefs. */
td_tensor *td__reduced_view(td_tensor *g, td_shape shape, uint32_t axes);
/* Is x contiguous and are the reduced axes neighbours, so that it is (outer, n, inner), reduced along n? Not where few results are made of many elements:
 * threads have more to share in other ways then. Depends on the shape and strides alone. */
bool td__reduces_in_one_go(const td_tensor *x, uint32_t axes, int64_t *outer, int64_t *n, int64_t *inner);

#endif
