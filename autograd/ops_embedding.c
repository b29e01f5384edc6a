/* autograd/ops_embedding.c: td_embedding: rows of a table by number.
 *
 * The gradient of a row is the sum over the places where it was looked up, in their order and in double: no atomics, so that neither threads nor
 * runs differ. It is dense: rows that were not looked up get zero.
 */
#include "ops_index.h"

static int infer(td_call *c)
{
    const td_embedding_opts *o = td_call_attr(c);
    td_tensor *w = td_call_input(c, 0), *ids = td_call_input(c, 1);
    char wt[128], it[128];
    int code = td__is_half(w->dtype) ? 0 : td__op_float(c, 0, "the weight");
    if (!code)
        code = td__op_integers(c, 1, "ids");
    if (code)
        return code;
    if (w->shape.ndim != 2)
        return td_call_error(c, TD_ERR_SHAPE, "the weight has shape %s, expected (V,D)", td__shape_text(w->shape, wt));
    if (ids->shape.ndim >= TD_MAX_DIMS)
        return td_call_error(c, TD_ERR_SHAPE, "ids %s have %d dimensions, expected at most %d: the result has one more",
                             td__shape_text(ids->shape, it), ids->shape.ndim, TD_MAX_DIMS - 1);
    if (o->has_padding_idx && (o->padding_idx < 0 || o->padding_idx >= w->shape.dim[0]))
        return td_call_error(c, TD_ERR_ARGUMENT, "padding_idx is %lld; the weight %s has %lld rows", (long long)o->padding_idx,
                             td__shape_text(w->shape, wt), (long long)w->shape.dim[0]);
    td_shape shape = ids->shape;
    shape.dim[shape.ndim++] = w->shape.dim[1];
    return td_call_infer(c, 0, shape, w->dtype);
}

static int run(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *w = td_call_input(c, 0), *ids = td_call_input(c, 1);
    int code = td__need("td_embedding", out, index_select);
    if (code)
        return code;
    td_tensor *index = td__index_open(c, ids, w, -1);
    if (index->poisoned)
        return td__pending();
    td_tensor *table = td__op_dense(w);
    if (table->poisoned) {
        td__tensor_unref(index);
        return td__pending();
    }
    td__kernels(out)->index_select(w->dtype, 1, w->shape.dim[0], td__shape_numel(ids->shape), w->shape.dim[1], td__ptr(out), td__ptr(table),
                                   td__ptr(index));
    td__tensor_unref(table);
    td__op_save_dense(c, ids, index);
    return 0;
}

static int grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const td_embedding_opts *o = td_call_attr(c);
    td_tensor *index = td_call_saved(c, 0);
    td_shape w = td_call_input_shape(c, 0);
    if (!slot[0].into)
        return 0;
    int code = td__need("td_embedding", g[0], index_select_grad), before = td__pending();
    if (code)
        return code;
    td__kernels(g[0])->index_select_grad(g[0]->dtype, 1, w.dim[0], td__shape_numel(index->shape), w.dim[1], td__ptr(slot[0].into), td__ptr(g[0]),
                                         td__ptr(index), o->has_padding_idx ? o->padding_idx : -1, slot[0].add);
    return before ? 0 : td__pending();
}

const td_op td__op_embedding = { .name = "embedding", .infer = infer, .run = run, .grad = grad,
                                 .attr_size = sizeof(td_embedding_opts), .flags = TD_OP_ANY_DTYPE };

td_tensor *td_embedding(td_tensor *weight, td_tensor *ids, const td_embedding_opts *opts)
{
    TD_ENTER();
    const td_embedding_opts standard = { 0 };
    return td_apply(&td__op_embedding, (td_tensor *[]){ weight, ids }, 2, opts ? opts : &standard);
}
