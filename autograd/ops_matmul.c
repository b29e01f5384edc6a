/* autograd/ops_matmul.c: matmul with broadcast batches. Its gradients are products, too. What a tensor is to BLAS: matrices.c.
 */
#include "matrices.h"
#include <limits.h>
#include <string.h>

/* a, b and out of one product, opened together. If b is one matrix and a's lie evenly, all become plain matrices. */
typedef struct { td__mat a, b, out; int dims; int64_t batch[TD_MAX_DIMS]; } product;

static td_shape batch_shape(td_shape s)
{
    td_shape b = s;
    b.ndim = s.ndim > 2 ? s.ndim - 2 : 0;
    return b;
}

static int64_t inner_of(td_shape s, bool first)
{
    return first || s.ndim == 1 ? s.dim[s.ndim - 1] : s.dim[s.ndim - 2];
}

/* ---- matmul ----------------------------------------------------------------------------------------------------------------- */

static int infer_matmul(td_call *c)
{
    td_tensor *a = td_call_input(c, 0), *b = td_call_input(c, 1);
    char ta[128], tb[128];
    int code = td__op_float(c, 0, "the first matrix");
    if (!code)
        code = td__op_same_dtype(c, 0, 1);
    if (code)
        return code;
#define SHAPES td__shape_text(a->shape, ta), td__shape_text(b->shape, tb)
    if (a->shape.ndim == 0 || b->shape.ndim == 0)
        return td_call_error(c, TD_ERR_SHAPE, "shapes %s and %s: a scalar is no matrix", SHAPES);
    int64_t k = inner_of(a->shape, true), l = inner_of(b->shape, false);
    if (k != l)
        return td_call_error(c, TD_ERR_SHAPE, "shapes %s and %s do not fit: the inner sizes are %lld and %lld", SHAPES, (long long)k, (long long)l);
    td_shape out;
    int bad = td__shape_broadcast(batch_shape(a->shape), batch_shape(b->shape), &out);
    if (bad)
        return td_call_error(c, TD_ERR_SHAPE, "shapes %s and %s: their batch dimensions do not broadcast at dimension %d", SHAPES, bad - 1);
    int64_t m = a->shape.ndim > 1 ? a->shape.dim[a->shape.ndim - 2] : 1, n = b->shape.ndim > 1 ? b->shape.dim[b->shape.ndim - 1] : 1;
    if (m > INT_MAX || n > INT_MAX || k > INT_MAX)
        return td_call_error(c, TD_ERR_UNSUPPORTED, "shapes %s and %s: BLAS takes sizes up to %d", SHAPES, INT_MAX);
#undef SHAPES
    if (a->shape.ndim > 1)
        out.dim[out.ndim++] = m;
    if (b->shape.ndim > 1)
        out.dim[out.ndim++] = n;
    return td_call_infer(c, 0, out, a->dtype);
}

/* Opens the three roles from tensors that may be NULL (not needed) but whose shapes are known. */
static int open_product(product *p, td_tensor *a, td_tensor *b, td_tensor *out, td_shape sa, td_shape sb)
{
    *p = (product){ 0 };
    td_shape batch;
    td__shape_broadcast(batch_shape(sa), batch_shape(sb), &batch);
    p->dims = batch.ndim;
    memcpy(p->batch, batch.dim, sizeof p->batch);
    int64_t m = sa.ndim > 1 ? sa.dim[sa.ndim - 2] : 1, n = sb.ndim > 1 ? sb.dim[sb.ndim - 1] : 1;
    td__mat_open_out(&p->out, out, m, n, p->dims, p->batch);
    int code = a ? td__mat_open(&p->a, a, false) : 0;
    if (!code && b)
        code = td__mat_open(&p->b, b, true);
    return code;
}

static void close_product(product *p)
{
    td__tensor_unref(p->a.x);
    td__tensor_unref(p->b.x);
}

static int run_matmul(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *a = td_call_input(c, 0), *b = td_call_input(c, 1);
    int code = td__need("td_matmul", out, gemm);
    if (code)
        return code;
    product p;
    code = open_product(&p, a, b, out, a->shape, b->shape);
    if (!code) {
        td__mat tall_a = p.a, tall_out = p.out;
        if (td__mat_count(&p.b) == 1 && td__mat_make_tall(&tall_a) && td__mat_make_tall(&tall_out))
            code = td__mat_multiply(&tall_a, &p.b, &tall_out, 0, NULL, false);
        else
            code = td__mat_multiply(&p.a, &p.b, &p.out, p.dims, p.batch, false);
        if (td_call_needs_grad(c, 1))
            td_call_save(c, a);
        if (td_call_needs_grad(c, 0))
            td_call_save(c, b);
    }
    close_product(&p);
    return code;
}

static int grad_matmul(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const td_shape sa = td_call_input_shape(c, 0), sb = td_call_input_shape(c, 1);
    product p;
    int code = open_product(&p, slot[1].into ? td__op_operand(c, 0) : NULL, slot[0].into ? td__op_operand(c, 1) : NULL, g[0], sa, sb);
    if (!code && slot[0].into) {                                /* ga = gout * b^T, summed over what a was repeated for     */
        td__mat into, bt = td__mat_flipped(&p.b), out = p.out;
        td_shape batch = batch_shape(sa);
        td__mat_open_out(&into, slot[0].into, p.out.rows, inner_of(sa, true), batch.ndim, batch.dim);
        if (td__mat_count(&p.b) == 1 && td__mat_count(&into) == td__mat_count(&p.out) && td__mat_make_tall(&out) && td__mat_make_tall(&into))
            code = td__mat_multiply(&out, &bt, &into, 0, NULL, slot[0].add);
        else
            code = td__mat_multiply(&p.out, &bt, &into, p.dims, p.batch, slot[0].add);
    }
    if (!code && slot[1].into) {                                /* gb = a^T * gout                                        */
        td__mat into, out = p.out, ta = p.a;
        td_shape batch = batch_shape(sb);
        td__mat_open_out(&into, slot[1].into, inner_of(sb, false), p.out.cols, batch.ndim, batch.dim);
        if (td__mat_count(&into) == 1 && td__mat_count(&p.a) == td__mat_count(&p.out) && td__mat_make_tall(&ta) && td__mat_make_tall(&out)) {
            td__mat at = td__mat_flipped(&ta);
            code = td__mat_multiply(&at, &out, &into, 0, NULL, slot[1].add);
        } else {
            td__mat at = td__mat_flipped(&p.a);
            code = td__mat_multiply(&at, &p.out, &into, p.dims, p.batch, slot[1].add);
        }
    }
    close_product(&p);
    return code;
}

const td_op td__op_matmul = { .name = "matmul", .infer = infer_matmul, .run = run_matmul, .grad = grad_matmul, .flags = TD_OP_LOW };

td_tensor *td_matmul(td_tensor *a, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_matmul, (td_tensor *[]){ a, b }, 2, NULL);
}
