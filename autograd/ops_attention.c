/* autograd/ops_attention.c: td_attention. The kernel never stores the matrix of scores; what stays for the gradient is the output and
 * the log-sum-exp of each row, beside q, k and v themselves.
 *
 * The kernel takes any strides over batch, heads and rows as long as a row's elements are neighbours, so heads that are views of a
 * projection (N,T,H*D), or shared by expanding, are read in place. Others are copied once; then the copy is what is saved.
 */
#include "ops_shared.h"
#include <limits.h>
#include <math.h>
#include <string.h>

typedef struct { bool causal; double scale; } attention_attr;
enum { Q, KEY, V, MASK };                      /* inputs, and saved in this order, then … */
enum { SAVED_OUT = 3, SAVED_LSE, SAVED_MASK };

/* The output lies as q does: where heads are slices of rows (N,T,H*D), putting the heads together again is a view. */
static int infer_out(td_call *c, const td_tensor *q)
{
    const td_shape s = q->shape;
    const int64_t rows[4] = { s.dim[2] * s.dim[1] * s.dim[3], s.dim[3], s.dim[1] * s.dim[3], 1 };
    int code = td_call_infer(c, 0, s, q->dtype);
    if (!code && s.dim[1] > 1 && s.dim[2] > 1 && q->stride[1] < q->stride[2])
        memcpy(td_call_output(c, 0)->stride, rows, sizeof rows);
    return code;
}

static int attention_infer(td_call *c)
{
    static const char *const name[] = { "q", "k", "v" };
    const attention_attr *a = td_call_attr(c);
    td_tensor *in[4], *mask = td_call_input(c, MASK);
    char text[4][128];
    for (int i = 0; i < 3; i++) {
        in[i] = td_call_input(c, i);
        int code = td__op_float(c, i, name[i]);
        if (!code)
            code = td__op_same_dtype(c, 0, i);
        if (code)
            return code;
        if (in[i]->shape.ndim != 4)
            return td_call_error(c, TD_ERR_SHAPE, "%s has shape %s, expected 4 dimensions (N,H,%s,D)", name[i],
                                 td__shape_text(in[i]->shape, text[i]), i ? "S" : "T");
    }
    const td_shape q = in[Q]->shape, k = in[KEY]->shape, v = in[V]->shape;
    for (int i = 1; i < 3; i++)
        for (int d = 0; d < 4; d++)
            if (d != 2 && in[i]->shape.dim[d] != q.dim[d])
                return td_call_error(c, TD_ERR_SHAPE, "q %s and %s %s differ at dimension %d: %lld against %lld", td__shape_text(q, text[Q]), name[i],
                                     td__shape_text(in[i]->shape, text[i]), d, (long long)q.dim[d], (long long)in[i]->shape.dim[d]);
    if (k.dim[2] != v.dim[2])
        return td_call_error(c, TD_ERR_SHAPE, "k %s has %lld rows and v %s has %lld (dimension 2)", td__shape_text(k, text[KEY]),
                             (long long)k.dim[2], td__shape_text(v, text[V]), (long long)v.dim[2]);
    if (!isfinite(a->scale))
        return td_call_error(c, TD_ERR_ARGUMENT, "scale is %g, expected a finite number (0 means 1/sqrt(D))", a->scale);
    if (mask) {
        const td_shape m = mask->shape, full = { 4, { q.dim[0], q.dim[1], q.dim[2], k.dim[2] } };
        bool fits = m.ndim <= 4;
        for (int i = 0; fits && i < m.ndim; i++)
            fits = m.dim[i] == 1 || m.dim[i] == full.dim[4 - m.ndim + i];
        if (!fits)
            return td_call_error(c, TD_ERR_SHAPE, "mask %s does not broadcast to %s, the scores (N,H,T,S)", td__shape_text(m, text[3]),
                                 td__shape_text(full, text[0]));
        if (mask->dtype != TD_BOOL && mask->dtype != in[Q]->dtype)
            return td_call_error(c, TD_ERR_DTYPE, "mask is %s, expected bool (true: attend) or %s (added to the scores)",
                                 td_dtype_name(mask->dtype), td_dtype_name(in[Q]->dtype));
        if (td_call_needs_grad(c, MASK))
            return td_call_error(c, TD_ERR_UNSUPPORTED, "mask asks for a gradient, and has none (td_detach, or td_matmul and td_softmax)");
    }
    return infer_out(c, in[Q]);
}

/* x as the kernel takes it: itself, or a contiguous copy. The caller unrefs. */
static td_tensor *usable(td_tensor *x)
{
    const int64_t d = x->shape.dim[3], row = x->stride[2];
    if ((d != 1 && x->stride[3] != 1) || (x->shape.dim[2] > 1 && (row < d || row < 1 || row > INT_MAX)))
        return td__op_dense(x);
    td__tensor_ref(x);
    return x;
}

static void strides_of(const td_tensor *x, int64_t *stride)
{
    const int64_t d = x->shape.dim[3];
    stride[0] = x->stride[0], stride[1] = x->stride[1];
    stride[2] = x->shape.dim[2] > 1 ? x->stride[2] : d > 0 ? d : 1;
}

static td_attention_shape layout(const td_call *c, const td_tensor *q, const td_tensor *k, const td_tensor *v, const td_tensor *out,
                                 const td_tensor *mask)
{
    const attention_attr *a = td_call_attr(c);
    const td_shape s = q->shape;
    td_attention_shape l = { .n = s.dim[0], .h = s.dim[1], .t = s.dim[2], .s = k->shape.dim[2], .d = s.dim[3], .causal = a->causal };
    l.scale = a->scale != 0 ? a->scale : 1 / sqrt((double)(l.d > 0 ? l.d : 1));
    strides_of(q, l.q), strides_of(k, l.k), strides_of(v, l.v), strides_of(out, l.out);
    if (mask) {
        l.mask_bool = mask->dtype == TD_BOOL;
        for (int i = 0, skip = 4 - mask->shape.ndim; i < mask->shape.ndim; i++)
            l.mask[skip + i] = mask->shape.dim[i] == 1 ? 0 : mask->stride[i];
    }
    return l;
}

static int attention_run(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *mask = td_call_input(c, MASK), *x[3];
    const int before = td__pending();
    int code = td__need("td_attention", out, attention);
    if (code)
        return code;
    td_tensor *lse = td__op_stat(out, (td_shape){ 3, { out->shape.dim[0], out->shape.dim[1], out->shape.dim[2] } });
    bool made = !lse->poisoned;
    for (int i = 0; i < 3; i++) {
        x[i] = usable(td_call_input(c, i));
        made = made && !x[i]->poisoned;
    }
    if (made) {
        const td_attention_shape l = layout(c, x[Q], x[KEY], x[V], out, mask);
        td__kernels(out)->attention(out->dtype, &l, td__ptr(out), td__ptr(lse), td__ptr(x[Q]), td__ptr(x[KEY]), td__ptr(x[V]),
                                    mask ? td__ptr(mask) : NULL);
        for (int i = 0; i < 3; i++)
            td__op_save_dense(c, td_call_input(c, i), x[i]);
        td_call_save(c, out);
        td_call_save(c, lse);
        td_call_save(c, mask);
    } else {
        for (int i = 0; i < 3; i++)
            td__tensor_unref(x[i]);
        td__tensor_unref(lse);
        return td__pending();
    }
    return before ? 0 : td__pending();         /* the kernel needs memory; an older error does not count                    */
}

static int attention_grad(td_call *c, td_tensor *const *grad_out, td_grad_slot *slot)
{
    td_tensor *g = grad_out[0], *q = td_call_saved(c, Q), *k = td_call_saved(c, KEY), *v = td_call_saved(c, V);
    td_tensor *out = td_call_saved(c, SAVED_OUT), *lse = td_call_saved(c, SAVED_LSE), *mask = td_call_saved(c, SAVED_MASK);
    const int before = td__pending();
    int code = td__need("td_attention", g, attention_grad);
    if (code)
        return code;
    const td_attention_shape l = layout(c, q, k, v, out, mask);
    void *into[3];
    for (int i = 0; i < 3; i++)
        into[i] = slot[i].into ? td__ptr(slot[i].into) : NULL;
    td__kernels(g)->attention_grad(g->dtype, &l, into[Q], into[KEY], into[V], td__ptr(g), td__ptr(out), td__ptr(lse), td__ptr(q), td__ptr(k),
                                   td__ptr(v), mask ? td__ptr(mask) : NULL, slot[Q].add, slot[KEY].add, slot[V].add);
    return before ? 0 : td__pending();
}

const td_op td__op_attention = { .name = "attention", .infer = attention_infer, .run = attention_run, .grad = attention_grad,
                                 .attr_size = sizeof(attention_attr), .optional = 1u << MASK, .flags = TD_OP_LOW };

td_tensor *td_attention(td_tensor *q, td_tensor *k, td_tensor *v, const td_attention_opts *opts)
{
    TD_ENTER();
    const td_attention_opts o = opts ? *opts : (td_attention_opts){ 0 };
    return td_apply(&td__op_attention, (td_tensor *[]){ q, k, v, o.mask }, 4, &(attention_attr){ o.causal, o.scale });
}
