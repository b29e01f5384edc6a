/* autograd/ops_matmul.c: matmul with broadcast batches, and linear.
 *
 * A tensor's last two dimensions are a matrix that BLAS can read as it is, plainly or transposed, where one of them is contiguous:
 * transposed views cost nothing. Anything else is copied first. Products of many matrices with one are a single large product
 * where the many lie evenly. Gradients are products too, written or added (beta) straight into their destinations.
 */
#include "ops_shared.h"
#include <limits.h>
#include <string.h>

/* One operand: matrices (rows,cols) over batch dimensions. */
typedef struct {
    td_tensor *x;                                              /* holds the memory; referenced                            */
    int64_t rows, cols, row_stride, col_stride;
    int batch_dims;
    int64_t batch[TD_MAX_DIMS], batch_stride[TD_MAX_DIMS];
    bool trans;                                                /* for gemm, with ld                                       */
    int64_t ld;
} mat;

/* Can BLAS read it? */
static bool find_layout(mat *m)
{
    const int64_t r = m->rows, c = m->cols, rs = m->row_stride, cs = m->col_stride;
    if ((c <= 1 || cs == 1) && (r <= 1 || rs >= (c > 1 ? c : 1))) {
        m->trans = false;
        m->ld = r <= 1 ? (c > 1 ? c : 1) : rs;
        return m->ld <= INT_MAX;
    }
    if ((r <= 1 || rs == 1) && (c <= 1 || cs >= (r > 1 ? r : 1))) {
        m->trans = true;
        m->ld = c <= 1 ? (r > 1 ? r : 1) : cs;
        return m->ld <= INT_MAX;
    }
    return false;
}

static void look(mat *m, const td_tensor *x, bool column)
{
    int n = x->shape.ndim;
    if (n == 1) {
        m->rows = column ? x->shape.dim[0] : 1, m->cols = column ? 1 : x->shape.dim[0];
        m->row_stride = column ? x->stride[0] : 0, m->col_stride = column ? 0 : x->stride[0];
        m->batch_dims = 0;
        return;
    }
    m->rows = x->shape.dim[n - 2], m->cols = x->shape.dim[n - 1];
    m->row_stride = x->stride[n - 2], m->col_stride = x->stride[n - 1];
    m->batch_dims = n - 2;
    memcpy(m->batch, x->shape.dim, sizeof m->batch);
    memcpy(m->batch_stride, x->stride, sizeof m->batch_stride);
}

/* x as matrices; a vector becomes a column or a row. 0, or an error; m->x is then to be unrefed either way. */
static int open_mat(mat *m, td_tensor *x, bool column)
{
    look(m, x, column);
    if (find_layout(m)) {
        td__tensor_ref(x);
        m->x = x;
        return 0;
    }
    td_tensor *dense = td__tensor_new(x->shape, x->dtype, x->storage->device);
    m->x = dense;
    int code = dense->poisoned ? td__pending() : td__copy(dense, x, false);
    if (!code) {
        look(m, dense, column);
        find_layout(m);
    }
    return code;
}

/* The result or a destination: contiguous, seen as (…,rows,cols) with the batch dimensions of `like`. */
static void open_out(mat *m, td_tensor *x, int64_t rows, int64_t cols, int batch_dims, const int64_t *batch)
{
    *m = (mat){ .x = x, .rows = rows, .cols = cols, .row_stride = cols, .col_stride = 1, .batch_dims = batch_dims };
    int64_t step = rows * cols;
    for (int i = batch_dims - 1; i >= 0; i--) {
        m->batch[i] = batch[i];
        m->batch_stride[i] = step;
        step *= batch[i];
    }
    find_layout(m);
}

static mat flipped(const mat *m)
{
    mat f = *m;
    f.rows = m->cols, f.cols = m->rows, f.row_stride = m->col_stride, f.col_stride = m->row_stride, f.trans = !m->trans;
    return f;
}

/* Where all matrices lie evenly below each other they are one tall matrix. */
static bool make_tall(mat *m)
{
    int64_t rows = m->rows, step = m->rows == 1 ? 0 : m->row_stride;
    for (int i = m->batch_dims - 1; i >= 0; i--) {
        if (m->batch[i] == 1)
            continue;
        if (step == 0 && rows == 1)
            step = m->batch_stride[i];
        else if (m->batch_stride[i] != step * rows)
            return false;
        rows *= m->batch[i];
    }
    mat tall = *m;
    tall.rows = rows, tall.row_stride = step, tall.batch_dims = 0;
    if (!find_layout(&tall))
        return false;
    *m = tall;
    return true;
}

static int64_t batch_count(const mat *m)
{
    int64_t n = 1;
    for (int i = 0; i < m->batch_dims; i++)
        n *= m->batch[i];
    return n;
}

/* Offset of m's matrix at the batch index `at` of `dims` broadcast dimensions; *first: no smaller index meets the same matrix. */
static int64_t batch_offset(const mat *m, int dims, const int64_t *at, bool *first)
{
    int64_t offset = 0;
    *first = true;
    for (int i = 0; i < dims; i++) {
        int k = i - (dims - m->batch_dims);
        if (k >= 0 && m->batch[k] != 1)
            offset += at[i] * m->batch_stride[k];
        else if (at[i] != 0)
            *first = false;
    }
    return offset;
}

/* out = or += a * b over the batch dimensions that a, b and out broadcast to; out's own broadcast dimensions are summed. */
static void multiply(const mat *a, const mat *b, const mat *out, int dims, const int64_t *batch, bool add)
{
    td_tensor *t = out->x;
    const size_t size = td_dtype_size(t->dtype);
    int64_t total = 1, at[TD_MAX_DIMS] = { 0 };
    for (int i = 0; i < dims; i++)
        total *= batch[i];
    if (total == 0 && !add && batch_count(out) > 0) {           /* a sum over nothing                                     */
        td_loop l = td__loop(t->shape, t, NULL, NULL, NULL);
        td__kernels(t)->fill(&l, t->dtype, td__ptr(t), 0.0);
    }
    for (int64_t i = 0; i < total; i++) {
        bool first, ignored;
        const char *pa = (const char *)td__ptr(a->x) + (size_t)batch_offset(a, dims, at, &ignored) * size;
        const char *pb = (const char *)td__ptr(b->x) + (size_t)batch_offset(b, dims, at, &ignored) * size;
        char *pc = (char *)td__ptr(t) + (size_t)batch_offset(out, dims, at, &first) * size;
        td__kernels(t)->gemm(t->dtype, a->trans, b->trans, out->rows, out->cols, a->cols, 1.0, pa, a->ld, pb, b->ld, add || !first ? 1.0 : 0.0,
                             pc, out->ld);
        for (int d = dims - 1; d >= 0 && ++at[d] == batch[d]; d--)
            at[d] = 0;
    }
}

/* a, b and out of one product, opened together. If b is one matrix and a's lie evenly, all become plain matrices. */
typedef struct { mat a, b, out; int dims; int64_t batch[TD_MAX_DIMS]; } product;

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
    td__shape_text(a->shape, ta), td__shape_text(b->shape, tb);
    if (a->shape.ndim == 0 || b->shape.ndim == 0)
        return td_call_error(c, TD_ERR_SHAPE, "shapes %s and %s: a scalar is no matrix", ta, tb);
    int64_t k = inner_of(a->shape, true), l = inner_of(b->shape, false);
    if (k != l)
        return td_call_error(c, TD_ERR_SHAPE, "shapes %s and %s do not fit: the inner sizes are %lld and %lld", ta, tb, (long long)k, (long long)l);
    td_shape out;
    int bad = td__shape_broadcast(batch_shape(a->shape), batch_shape(b->shape), &out);
    if (bad)
        return td_call_error(c, TD_ERR_SHAPE, "shapes %s and %s: their batch dimensions do not broadcast at dimension %d", ta, tb, bad - 1);
    int64_t m = a->shape.ndim > 1 ? a->shape.dim[a->shape.ndim - 2] : 1, n = b->shape.ndim > 1 ? b->shape.dim[b->shape.ndim - 1] : 1;
    if (m > INT_MAX || n > INT_MAX || k > INT_MAX)
        return td_call_error(c, TD_ERR_UNSUPPORTED, "shapes %s and %s: BLAS takes sizes up to %d", ta, tb, INT_MAX);
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
    open_out(&p->out, out, m, n, p->dims, p->batch);
    int code = a ? open_mat(&p->a, a, false) : 0;
    if (!code && b)
        code = open_mat(&p->b, b, true);
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
        mat tall_a = p.a, tall_out = p.out;
        if (batch_count(&p.b) == 1 && make_tall(&tall_a) && make_tall(&tall_out))
            multiply(&tall_a, &p.b, &tall_out, 0, NULL, false);
        else
            multiply(&p.a, &p.b, &p.out, p.dims, p.batch, false);
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
        mat into, bt = flipped(&p.b), out = p.out;
        td_shape batch = batch_shape(sa);
        open_out(&into, slot[0].into, p.out.rows, inner_of(sa, true), batch.ndim, batch.dim);
        if (batch_count(&p.b) == 1 && batch_count(&into) == batch_count(&p.out) && make_tall(&out) && make_tall(&into))
            multiply(&out, &bt, &into, 0, NULL, slot[0].add);
        else
            multiply(&p.out, &bt, &into, p.dims, p.batch, slot[0].add);
    }
    if (!code && slot[1].into) {                                /* gb = a^T * gout                                        */
        mat into, out = p.out, ta = p.a;
        td_shape batch = batch_shape(sb);
        open_out(&into, slot[1].into, inner_of(sb, false), p.out.cols, batch.ndim, batch.dim);
        if (batch_count(&into) == 1 && batch_count(&p.a) == batch_count(&p.out) && make_tall(&ta) && make_tall(&out)) {
            mat at = flipped(&ta);
            multiply(&at, &out, &into, 0, NULL, slot[1].add);
        } else {
            mat at = flipped(&p.a);
            multiply(&at, &p.out, &into, p.dims, p.batch, slot[1].add);
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

/* ---- linear: x (…,I)  w (O,I)  b (O)|NULL -> (…,O) ------------------------------------------------------------------------------ */

static int infer_linear(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *w = td_call_input(c, 1), *b = td_call_input(c, 2);
    char tx[128], tw[128], tb[128];
    int code = td__op_float(c, 0, "the input");
    if (!code)
        code = td__op_same_dtype(c, 0, 1);
    if (!code && b)
        code = td__op_same_dtype(c, 0, 2);
    if (code)
        return code;
    td__shape_text(x->shape, tx), td__shape_text(w->shape, tw);
    if (x->shape.ndim == 0 || w->shape.ndim != 2)
        return td_call_error(c, TD_ERR_SHAPE, "input %s and weight %s do not fit: expected (…,I) and (O,I)", tx, tw);
    if (x->shape.dim[x->shape.ndim - 1] != w->shape.dim[1])
        return td_call_error(c, TD_ERR_SHAPE, "input %s has %lld features, weight %s takes %lld", tx, (long long)x->shape.dim[x->shape.ndim - 1],
                             tw, (long long)w->shape.dim[1]);
    if (b && (b->shape.ndim != 1 || b->shape.dim[0] != w->shape.dim[0]))
        return td_call_error(c, TD_ERR_SHAPE, "bias %s does not fit weight %s: expected (%lld)", td__shape_text(b->shape, tb), tw,
                             (long long)w->shape.dim[0]);
    if (w->shape.dim[0] > INT_MAX || w->shape.dim[1] > INT_MAX)
        return td_call_error(c, TD_ERR_UNSUPPORTED, "weight %s: BLAS takes sizes up to %d", tw, INT_MAX);
    td_shape out = x->shape;
    out.dim[out.ndim - 1] = w->shape.dim[0];
    return td_call_infer(c, 0, out, x->dtype);
}

/* x (…,I) as one matrix (rows,I) */
static int open_rows(mat *m, td_tensor *x)
{
    int code = open_mat(m, x, false);
    if (code || make_tall(m))
        return code;
    td_tensor *dense = td__op_dense(m->x);
    td__tensor_unref(m->x);
    m->x = dense;
    if (dense->poisoned)
        return td__pending();
    look(m, dense, false);
    find_layout(m);
    make_tall(m);
    return 0;
}

static int run_linear(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *w = td_call_input(c, 1), *b = td_call_input(c, 2);
    int code = td__need("td_linear", out, gemm);
    if (code)
        return code;
    mat mx = { 0 }, mw = { 0 }, mo;
    if (!(code = open_rows(&mx, x)) && !(code = open_mat(&mw, w, false)) && b) {
        td_loop l = td__loop(out->shape, out, b, NULL, NULL);   /* every row begins as the bias, then the product is added  */
        if (!(code = td__need("td_linear", out, copy)))
            td__kernels(out)->copy(&l, out->dtype, td__ptr(out), b->dtype, td__ptr(b), false);
    }
    if (!code) {
        mat wt = flipped(&mw);
        open_out(&mo, out, mx.rows, mw.rows, 0, NULL);
        multiply(&mx, &wt, &mo, 0, NULL, b != NULL);
        if (td_call_needs_grad(c, 1))
            td_call_save(c, x);
        if (td_call_needs_grad(c, 0))
            td_call_save(c, w);
    }
    td__tensor_unref(mx.x);
    td__tensor_unref(mw.x);
    return code;
}

static int grad_linear(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const td_shape sx = td_call_input_shape(c, 0), sw = td_call_input_shape(c, 1);
    mat mx = { 0 }, mw = { 0 }, mg, into;
    int64_t o = sw.dim[0], i = sw.dim[1], rows = 1;
    for (int d = 0; d + 1 < sx.ndim; d++)
        rows *= sx.dim[d];
    open_out(&mg, g[0], rows, o, 0, NULL);
    int code = 0;
    if (slot[0].into && !(code = open_mat(&mw, td__op_operand(c, 1), false))) {   /* gx = gout * w            */
        open_out(&into, slot[0].into, rows, i, 0, NULL);
        multiply(&mg, &mw, &into, 0, NULL, slot[0].add);
    }
    if (!code && slot[1].into && !(code = open_rows(&mx, td__op_operand(c, 0)))) {         /* gw = gout^T * x          */
        mat gt = flipped(&mg);
        open_out(&into, slot[1].into, o, i, 0, NULL);
        multiply(&gt, &mx, &into, 0, NULL, slot[1].add);
    }
    if (!code && td_call_inputs(c) > 2 && slot[2].into)         /* gb = column sums of gout                               */
        code = td__sum_to(g[0], 1.0, slot[2].into, slot[2].add);
    td__tensor_unref(mx.x);
    td__tensor_unref(mw.x);
    return code;
}

const td_op td__op_linear = { .name = "linear", .infer = infer_linear, .run = run_linear, .grad = grad_linear,
                              .optional = 1u << 2, .flags = TD_OP_LOW };

td_tensor *td_linear(td_tensor *x, td_tensor *w, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_linear, (td_tensor *[]){ x, w, b }, 3, NULL);
}
