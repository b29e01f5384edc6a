/* tests/autograd/ops_rows_matmul.c: rows for matmul, linear, affine, linear_gelu and mlp.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

/* FLIP: the input is made with its last two dimensions exchanged and transposed back; NARROW: made wider, its columns 1.. taken. */
enum { PLAIN, FLIP, NARROW };
static const struct { td_shape a, b; int va, vb; } pair[] = {
    [0] = { { 2, { 5, 7 } }, { 2, { 7, 3 } }, PLAIN, PLAIN },
    [1] = { { 2, { 5, 7 } }, { 2, { 7, 3 } }, FLIP, PLAIN },
    [2] = { { 2, { 5, 7 } }, { 2, { 7, 3 } }, PLAIN, FLIP },
    [3] = { { 2, { 5, 7 } }, { 2, { 7, 3 } }, FLIP, FLIP },
    [4] = { { 2, { 5, 7 } }, { 2, { 7, 3 } }, NARROW, NARROW },
    [5] = { { 1, { 7 } }, { 1, { 7 } }, PLAIN, PLAIN },
    [6] = { { 1, { 7 } }, { 2, { 7, 3 } }, PLAIN, FLIP },
    [7] = { { 2, { 5, 7 } }, { 1, { 7 } }, NARROW, PLAIN },
    [8] = { { 3, { 2, 5, 7 } }, { 2, { 7, 3 } }, PLAIN, PLAIN },
    [9] = { { 3, { 2, 5, 7 } }, { 3, { 2, 7, 3 } }, FLIP, PLAIN },
    [10] = { { 4, { 2, 1, 5, 3 } }, { 3, { 4, 3, 2 } }, PLAIN, FLIP },
    [11] = { { 2, { 5, 3 } }, { 3, { 4, 3, 2 } }, PLAIN, PLAIN },
    [12] = { { 3, { 2, 5, 3 } }, { 1, { 3 } }, FLIP, PLAIN },
    [13] = { { 2, { 0, 7 } }, { 2, { 7, 3 } }, PLAIN, PLAIN },
    [14] = { { 2, { 5, 0 } }, { 2, { 0, 3 } }, PLAIN, PLAIN },
    [15] = { { 3, { 0, 5, 7 } }, { 2, { 7, 3 } }, PLAIN, PLAIN },
    [16] = { { 3, { 0, 5, 7 } }, { 3, { 1, 7, 3 } }, PLAIN, FLIP },
    [17] = { { 2, { 1, 1 } }, { 2, { 1, 1 } }, PLAIN, PLAIN },
    [18] = { { 2, { 1, 7 } }, { 2, { 7, 1 } }, NARROW, NARROW },
    [19] = { { 3, { 3, 1, 7 } }, { 2, { 7, 2 } }, NARROW, PLAIN },
    [20] = { { 2, { 67, 129 } }, { 2, { 129, 53 } }, PLAIN, FLIP },
    [21] = { { 3, { 1, 4, 3 } }, { 3, { 2, 3, 2 } }, PLAIN, PLAIN },
    [22] = { { 3, { 2, 4, 3 } }, { 3, { 2, 3, 2 } }, NARROW, NARROW },
};

static td_shape made(td_shape s, int view)
{
    int n = s.ndim;
    if (view == FLIP) {
        int64_t d = s.dim[n - 1];
        s.dim[n - 1] = s.dim[n - 2], s.dim[n - 2] = d;
    }
    if (view == NARROW)
        s.dim[n - 1] += 2;
    return s;
}
static td_tensor *viewed(td_tensor *x, int view)
{
    return view == FLIP ? td_transpose(x, -1, -2) : view == NARROW ? td_narrow(x, -1, 1, td_dim(x, -1) - 2) : x;
}
/* element (r, c) of matrix number m of s's values as the product sees them */
static double element(const ops_array *x, td_shape s, int view, int64_t m, int64_t r, int64_t c)
{
    int64_t rows = s.ndim > 1 ? s.dim[s.ndim - 2] : 1, cols = s.dim[s.ndim - 1];
    if (view == FLIP)
        return x->v[(m * cols + c) * rows + r];
    if (view == NARROW)
        return x->v[(m * rows + r) * (cols + 2) + c + 1];
    return x->v[(m * rows + r) * cols + c];
}

static size_t inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill(made(pair[row->p[0]].a, pair[row->p[0]].va), t, 7);
    in[1] = ops_fill(made(pair[row->p[0]].b, pair[row->p[0]].vb), t, 8);
    return 2;
}
static td_tensor *apply(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    return td_matmul(viewed(in[0], pair[row->p[0]].va), viewed(in[1], pair[row->p[0]].vb));
}

static void reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    td_shape a = pair[row->p[0]].a, b = pair[row->p[0]].b, ba = a, bb = b, o;
    int va = pair[row->p[0]].va, vb = pair[row->p[0]].vb;
    ba.ndim = a.ndim > 2 ? a.ndim - 2 : 0, bb.ndim = b.ndim > 2 ? b.ndim - 2 : 0;
    td_shape batch = ops_broadcast(ba, bb);
    int64_t M = a.ndim > 1 ? a.dim[a.ndim - 2] : 1, K = a.dim[a.ndim - 1], N = b.ndim > 1 ? b.dim[b.ndim - 1] : 1;
    o = batch;
    if (a.ndim > 1)
        o.dim[o.ndim++] = M;
    if (b.ndim > 1)
        o.dim[o.ndim++] = N;
    ops_out(out, o);
    for (int64_t i = 0; i < ops_count(batch); i++)
        for (int64_t r = 0; r < M; r++)
            for (int64_t c = 0; c < N; c++) {
                double sum = 0;
                for (int64_t k = 0; k < K; k++)
                    sum += element(&in[0], a, va, ops_broadcast_index(ba, batch, i), r, k) *
                           (b.ndim > 1 ? element(&in[1], b, vb, ops_broadcast_index(bb, batch, i), k, c) : in[1].v[k]);
                out->v[(i * M + r) * N + c] = sum;
            }
}

/* ---- linear: p = ndim of x, its sizes (3), O, bias, x flipped (first two dimensions), w flipped; affine: 1; gelu: 1 tanh, 2 exact ------ */

static size_t linear_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    td_shape x = { p[0], { p[1], p[2], p[3] } };
    int64_t I = x.dim[x.ndim - 1];
    if (p[6])
        x.dim[0] = p[2], x.dim[1] = p[1];
    in[0] = ops_fill(x, t, 9);
    in[1] = ops_fill(p[7] != p[8] ? TD_SHAPE(I, p[4]) : TD_SHAPE(p[4], I), t, 10);
    in[2] = p[5] ? ops_fill(TD_SHAPE(p[4]), t, 11) : NULL;
    return 3;
}
static td_tensor *linear_apply(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    td_tensor *x = row->p[6] ? td_transpose(in[0], 0, 1) : in[0], *w = row->p[7] ? td_transpose(in[1], 0, 1) : in[1];
    if (row->p[9])
        return td_linear_gelu(x, w, in[2], &(td_linear_gelu_opts){ .in_out = row->p[8], .exact = row->p[9] == 2 });
    return row->p[8] ? td_affine(x, w, in[2]) : td_linear(x, w, in[2]);
}
static double gelu(double x, bool exact)
{
    return exact ? 0.5 * x * erfc(-x / sqrt(2.0)) : 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static void linear_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int *p = row->p;
    td_shape x = { p[0], { p[1], p[2], p[3] } }, o = x;
    int64_t I = x.dim[x.ndim - 1], O = p[4];
    o.dim[o.ndim - 1] = O;
    ops_out(out, o);
    for (int64_t i = 0; i < out->n; i++) {
        int64_t r = i / O, c = i % O;
        double sum = p[5] ? in[2].v[c] : 0;
        for (int64_t k = 0; k < I; k++) {
            int64_t at = r * I + k;
            if (p[6] && x.ndim == 2)
                at = k * x.dim[0] + r;
            else if (p[6])
                at = (r % x.dim[1] * x.dim[0] + r / x.dim[1]) * I + k;
            sum += in[0].v[at] * in[1].v[p[7] != p[8] ? k * O + c : c * I + k];
        }
        out->v[i] = p[9] ? gelu(sum, p[9] == 2) : sum;
    }
}

/* ---- mlp: p = rows (-1: x is one row without a dimension for it), I, H, O, biases (1 first, 2 second), in_out, exact ---------------------------- */

static size_t mlp_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill(p[0] < 0 ? TD_SHAPE(p[1]) : TD_SHAPE(p[0], p[1]), t, 12);
    in[1] = ops_fill(p[5] ? TD_SHAPE(p[1], p[2]) : TD_SHAPE(p[2], p[1]), t, 13);
    in[2] = p[4] & 1 ? ops_fill(TD_SHAPE(p[2]), t, 14) : NULL;
    in[3] = ops_fill(p[5] ? TD_SHAPE(p[2], p[3]) : TD_SHAPE(p[3], p[2]), t, 15);
    in[4] = p[4] & 2 ? ops_fill(TD_SHAPE(p[3]), t, 16) : NULL;
    return 5;
}
static td_tensor *mlp_apply(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    return td_mlp(in[0], in[1], in[2], in[3], in[4], &(td_linear_gelu_opts){ .in_out = row->p[5], .exact = row->p[6] });
}
static void mlp_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int64_t rows = row->p[0] < 0 ? 1 : row->p[0], I = row->p[1], H = row->p[2], O = row->p[3];
    ops_out(out, row->p[0] < 0 ? TD_SHAPE(O) : TD_SHAPE(rows, O));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < O; o++) {
            double sum = row->p[4] & 2 ? in[4].v[o] : 0;
            for (int64_t h = 0; h < H; h++) {
                double pre = row->p[4] & 1 ? in[2].v[h] : 0;
                for (int64_t i = 0; i < I; i++)
                    pre += in[0].v[r * I + i] * in[1].v[row->p[5] ? i * H + h : h * I + i];
                sum += gelu(pre, row->p[6]) * in[3].v[row->p[5] ? h * O + o : o * H + h];
            }
            out->v[r * O + o] = sum;
        }
}

/* K products of at most 4 each: K roundings of partial sums */
#define R(k, g)                                                                                              \
    { .op = &td__op_matmul, .name = "matmul pair " #k, .dtypes = OPS_F, .inputs = inputs, .apply = apply, .reference = reference, .abs = 200, \
      .rel = 1, .grad = g, .p = { k } }
#define L(g, ...)                                                                                            \
    { .op = &td__op_linear, .name = "linear {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = linear_inputs, .apply = linear_apply, \
      .reference = linear_reference, .abs = 200, .rel = 1, .grad = g, .p = { __VA_ARGS__ } }
#define A(g, ...)                                                                                            \
    { .op = &td__op_affine, .name = "affine {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = linear_inputs, .apply = linear_apply, \
      .reference = linear_reference, .abs = 200, .rel = 1, .grad = g, .p = { __VA_ARGS__ } }
#define G(g, ...)                                                                                            \
    { .op = &td__op_linear_gelu, .name = "linear_gelu {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = linear_inputs, .apply = linear_apply, \
      .reference = linear_reference, .abs = 250, .rel = 8, .grad = g, .p = { __VA_ARGS__ } }
/* the first layer's 200 roundings through 8 products by at most 2 */
#define M(g, ...)                                                                                            \
    { .op = &td__op_mlp, .name = "mlp {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = mlp_inputs, .apply = mlp_apply, .reference = mlp_reference, \
      .abs = 8000, .rel = 8, .grad = g, .p = { __VA_ARGS__ } }
const ops_row ops_rows_matmul[] = {
    R(0, 3), R(1, 3), R(2, 3), R(3, 3), R(4, 3), R(5, 3), R(6, 3), R(7, 3), R(8, 3), R(9, 3), R(10, 3), R(11, 3), R(12, 3), R(13, 3),
    R(14, 3), R(15, 3), R(16, 3), R(17, 3), R(18, 3), R(19, 3), R(20, 0), R(21, 3), R(22, 3), R(0, 1), R(0, 2),
    L(7, 2, 5, 7, 0, 3, 1, 0, 0), L(3, 2, 5, 7, 0, 3, 0, 0, 0), L(7, 1, 7, 0, 0, 3, 1, 0, 0), L(7, 3, 2, 3, 7, 5, 1, 0, 0),
    L(7, 3, 2, 3, 7, 5, 1, 1, 0), L(7, 2, 5, 7, 0, 3, 1, 1, 1), L(3, 2, 0, 7, 0, 3, 0, 0, 0), L(7, 2, 0, 7, 0, 3, 1, 0, 0),
    L(7, 2, 5, 0, 0, 3, 1, 0, 0), L(7, 2, 1, 1, 0, 1, 1, 0, 0), L(6, 2, 5, 7, 0, 3, 1, 0, 0), L(1, 2, 5, 7, 0, 3, 1, 0, 0),
    L(4, 2, 5, 7, 0, 3, 1, 0, 0), L(0, 2, 131, 257, 0, 61, 1, 0, 0),
    A(7, 2, 5, 7, 0, 3, 1, 0, 0, 1), A(3, 2, 5, 7, 0, 3, 0, 0, 1, 1), A(7, 3, 2, 3, 7, 5, 1, 1, 0, 1), A(7, 2, 0, 7, 0, 3, 1, 0, 0, 1),
    A(7, 1, 7, 0, 0, 3, 1, 0, 0, 1), A(7, 2, 5, 0, 0, 3, 1, 0, 0, 1), A(6, 2, 5, 7, 0, 3, 1, 0, 0, 1), A(1, 2, 5, 7, 0, 3, 1, 0, 0, 1),
    G(7, 2, 5, 7, 0, 8, 1, 0, 0, 0, 1), G(7, 2, 5, 7, 0, 3, 1, 0, 0, 0, 1), G(3, 2, 5, 7, 0, 8, 0, 0, 1, 0, 1), G(7, 3, 2, 3, 7, 8, 1, 1, 0, 1, 1),
    G(7, 2, 5, 7, 0, 3, 1, 0, 0, 0, 2), G(7, 2, 0, 7, 0, 8, 1, 0, 0, 0, 1), G(7, 2, 5, 0, 0, 8, 1, 0, 0, 1, 1), G(7, 1, 7, 0, 0, 8, 1, 0, 0, 0, 1),
    G(6, 2, 5, 7, 0, 8, 1, 0, 0, 0, 1), G(4, 2, 5, 7, 0, 8, 1, 0, 0, 0, 1), G(1, 2, 5, 7, 0, 8, 1, 0, 0, 1, 1), G(0, 2, 31, 57, 0, 24, 1, 0, 0, 0, 1),
    M(31, 5, 7, 8, 3, 3, 0, 0), M(31, 5, 7, 8, 3, 3, 1, 0), M(11, 5, 7, 8, 3, 0, 0, 0), M(31, 4, 3, 5, 2, 3, 0, 0), M(31, 4, 3, 8, 2, 3, 1, 1),
    M(31, 0, 7, 8, 3, 3, 0, 0), M(31, 5, 0, 8, 3, 3, 0, 0), M(31, 5, 7, 0, 3, 3, 1, 0), M(31, -1, 7, 8, 3, 3, 0, 0), M(24, 5, 7, 8, 3, 3, 0, 0),
    M(7, 5, 7, 8, 3, 3, 1, 0), M(8, 5, 7, 8, 3, 3, 0, 0), M(1, 5, 7, 8, 3, 3, 0, 0),
    { 0 },
};
