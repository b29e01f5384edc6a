/* autograd/matrices.c: tensors as matrices for BLAS, and products over batch dimensions.
 *
 * Products of many matrices with one are a single large product where the many lie evenly; others are handed over in one go where their
 * offsets grow evenly. Gradients are products too, written or added (beta) straight into their destinations.
 */
#include "matrices.h"
#include <limits.h>
#include <string.h>

/* Can BLAS read it? */
static bool find_layout(td__mat *m)
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

static void look(td__mat *m, const td_tensor *x, bool column)
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

int td__mat_open(td__mat *m, td_tensor *x, bool column)
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

void td__mat_open_out(td__mat *m, td_tensor *x, int64_t rows, int64_t cols, int batch_dims, const int64_t *batch)
{
    *m = (td__mat){ .x = x, .rows = rows, .cols = cols, .row_stride = cols, .col_stride = 1, .batch_dims = batch_dims };
    int64_t step = rows * cols;
    for (int i = batch_dims - 1; i >= 0; i--) {
        m->batch[i] = batch[i];
        m->batch_stride[i] = step;
        step *= batch[i];
    }
    find_layout(m);
}

td__mat td__mat_flipped(const td__mat *m)
{
    td__mat f = *m;
    f.rows = m->cols, f.cols = m->rows, f.row_stride = m->col_stride, f.col_stride = m->row_stride, f.trans = !m->trans;
    return f;
}

bool td__mat_make_tall(td__mat *m)
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
    td__mat tall = *m;
    tall.rows = rows, tall.row_stride = step, tall.batch_dims = 0;
    if (!find_layout(&tall))
        return false;
    *m = tall;
    return true;
}

int64_t td__mat_count(const td__mat *m)
{
    int64_t n = 1;
    for (int i = 0; i < m->batch_dims; i++)
        n *= m->batch[i];
    return n;
}

/* An axis of a product's batch: its length, and how far one step moves in a, b and out. c 0: what lies along it is summed. */
typedef struct { int64_t n, a, b, c; } axis;

/* how far one step along batch dimension i of `dims` moves in m; 0 where m repeats itself */
static int64_t step_of(const td__mat *m, int dims, int i)
{
    const int k = i - (dims - m->batch_dims);
    return k >= 0 && m->batch[k] != 1 ? m->batch_stride[k] : 0;
}

/* The axes longer than 1; neighbours that all three walk as one are one. Returns how many. */
static int find_axes(const td__mat *a, const td__mat *b, const td__mat *out, int dims, const int64_t *batch, axis *into)
{
    int n = 0;
    for (int i = 0; i < dims; i++) {
        const axis x = { batch[i], step_of(a, dims, i), step_of(b, dims, i), step_of(out, dims, i) };
        axis *last = n > 0 ? &into[n - 1] : NULL;
        if (x.n == 1)
            continue;
        if (last && last->a == x.a * x.n && last->b == x.b * x.n && last->c == x.c * x.n)
            *last = (axis){ last->n * x.n, x.a, x.b, x.c };
        else
            into[n++] = x;
    }
    return n;
}

/* x's elements in f32, gaps and all, so that m's strides hold; the caller unrefs ->x. */
static td__mat widened(const td__mat *m)
{
    int64_t last = (m->rows - 1) * m->row_stride + (m->cols - 1) * m->col_stride;
    for (int i = 0; i < m->batch_dims; i++)
        last += (m->batch[i] - 1) * m->batch_stride[i];
    const td_shape line = { 1, { last + 1 } };
    td__mat wide = *m;
    td_tensor *from = td__tensor_view(m->x, line, &(int64_t){ 1 }, m->x->offset);
    wide.x = td__tensor_new(line, TD_F32, m->x->storage->device);
    if (!from->poisoned && !wide.x->poisoned && td__copy(wide.x, from, false)) {
        td__tensor_unref(wide.x);
        wide.x = td__poison();
    }
    td__tensor_unref(from);
    return wide;
}

/* Sums of several products in 16 bits: each would be rounded. In f32, rounded once. */
static int multiply_wide(const td__mat *a, const td__mat *b, const td__mat *out, int dims, const int64_t *batch, bool add)
{
    td__mat wa = widened(a), wb = widened(b), wo = *out;
    wo.x = td__tensor_new(out->x->shape, TD_F32, out->x->storage->device);
    int code = wa.x->poisoned || wb.x->poisoned || wo.x->poisoned ? td__pending() : td__mat_multiply(&wa, &wb, &wo, dims, batch, false);
    if (!code)
        code = td__copy(out->x, wo.x, add);
    td__tensor_unref(wa.x);
    td__tensor_unref(wb.x);
    td__tensor_unref(wo.x);
    return code;
}

int td__mat_multiply(const td__mat *a, const td__mat *b, const td__mat *out, int dims, const int64_t *batch, bool add)
{
    td_tensor *t = out->x;
    const td_kernels *kernels = td__kernels(t);
    const int64_t size = (int64_t)td_dtype_size(t->dtype), m = out->rows, n = out->cols, k = a->cols;
    axis list[TD_MAX_DIMS];
    const int axes = find_axes(a, b, out, dims, batch, list);
    int64_t total = 1, at[TD_MAX_DIMS] = { 0 };
    int even = -1;                                             /* the axis handed over in one go: the longest that is not summed */
    bool sums = false;
    for (int i = 0; i < axes; i++) {
        total *= list[i].n;
        sums = sums || list[i].c == 0;
        if (list[i].c != 0 && kernels->gemm_batched && (even < 0 || list[i].n > list[even].n))
            even = i;
    }
    if (total == 0) {
        if (!add && td__mat_count(out) > 0) {                   /* a sum over nothing                                     */
            td_loop l = td__loop(t->shape, t, NULL, NULL, NULL);
            kernels->fill(&l, t->dtype, td__ptr(t), 0.0);
        }
        return 0;
    }
    if (sums && td__is_half(t->dtype) && m > 0 && n > 0 && k > 0)
        return multiply_wide(a, b, out, dims, batch, add);
    const axis together = even >= 0 ? list[even] : (axis){ 1, 0, 0, 0 };
    if (even >= 0)
        list[even].n = 1;
    for (int64_t i = 0; i < total / together.n; i++) {
        const char *pa = td__ptr(a->x), *pb = td__ptr(b->x);
        char *pc = td__ptr(t);
        bool first = true;                                      /* to reach these results                                 */
        for (int d = 0; d < axes; d++) {
            pa += at[d] * list[d].a * size, pb += at[d] * list[d].b * size, pc += at[d] * list[d].c * size;
            first = first && (list[d].c != 0 || at[d] == 0);
        }
        const double beta = add || !first ? 1.0 : 0.0;
        if (even >= 0)
            kernels->gemm_batched(t->dtype, a->trans, b->trans, together.n, m, n, k, 1.0, pa, a->ld, together.a, pb, b->ld, together.b, beta, pc,
                                  out->ld, together.c);
        else
            kernels->gemm(t->dtype, a->trans, b->trans, m, n, k, 1.0, pa, a->ld, pb, b->ld, beta, pc, out->ld);
        for (int d = axes - 1; d >= 0 && ++at[d] == list[d].n; d--)
            at[d] = 0;
    }
    return 0;
}

int td__mat_open_rows(td__mat *m, td_tensor *x)
{
    int code = td__mat_open(m, x, false);
    if (code || td__mat_make_tall(m))
        return code;
    td_tensor *dense = td__op_dense(m->x);
    td__tensor_unref(m->x);
    m->x = dense;
    if (dense->poisoned)
        return td__pending();
    look(m, dense, false);
    find_layout(m);
    td__mat_make_tall(m);
    return 0;
}

