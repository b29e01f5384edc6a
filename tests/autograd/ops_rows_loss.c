/* tests/autograd/ops_rows_loss.c: rows for cross_entropy and mse.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

/* ---- cross_entropy: p = N C, smoothing in percent, ignore (every third row is), logits transposed, targets strided ------------------- */

static size_t inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int64_t N = row->p[0], C = row->p[1];
    in[0] = td_scale(ops_fill(row->p[4] ? TD_SHAPE(C, N) : TD_SHAPE(N, C), t, 13), 4);
    int64_t target[4096];
    const int step = row->p[5] ? 2 : 1;
    for (int64_t i = 0; i < N; i++) {
        target[step * i + step - 1] = -7;                       /* what the strides must step over                        */
        target[step * i] = row->p[3] && i % 3 == 0 ? -100 : i * 7 % C;
    }
    in[1] = td_from(target, row->p[5] ? TD_SHAPE(N, 2) : TD_SHAPE(N), TD_I64);
    return 2;
}

static td_tensor *apply_cross_entropy(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    td_cross_entropy_opts o = { .label_smoothing = (float)row->p[2] / 100, .has_ignore_index = row->p[3], .ignore_index = -100 };
    td_tensor *target = row->p[5] ? td_reshape(td_narrow(in[1], 1, 0, 1), TD_SHAPE(-1)) : in[1];
    return td_cross_entropy(row->p[4] ? td_transpose(in[0], 0, 1) : in[0], target, row->p[2] || row->p[3] ? &o : NULL);
}

static void reference_cross_entropy(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int64_t N = row->p[0], C = row->p[1];
    const double smoothing = (double)((float)row->p[2] / 100);
    long double sum = 0, kept = 0;                              /* so that the reference's own rounding does not count     */
    ops_out(out, TD_SCALAR);
    for (int64_t i = 0; i < N; i++) {
        int64_t t = (int64_t)in[1].v[row->p[5] ? 2 * i : i];
        if (row->p[3] && t == -100)
            continue;
        double most = -INFINITY;
        long double total = 0;
#define X(c) in[0].v[row->p[4] ? (c) * N + i : i * C + (c)]
        for (int64_t c = 0; c < C; c++)
            most = fmax(most, X(c));
        for (int64_t c = 0; c < C; c++)
            total += expl((long double)X(c) - most);
        for (int64_t c = 0; c < C; c++) {
            double weight = (c == t ? 1 - smoothing : 0) + smoothing / (double)C;
            sum += weight * (logl(total) + most - X(c));
        }
        kept++;
    }
    out->v[0] = (double)(sum / kept);
}

/* ---- mse: p = two sizes, transposed -------------------------------------------------------------------------------------------------- */

static size_t mse_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill(row->p[2] ? TD_SHAPE(row->p[1], row->p[0]) : TD_SHAPE(row->p[0], row->p[1]), t, 14);
    in[1] = ops_fill(TD_SHAPE(row->p[0], row->p[1]), t, 15);
    return 2;
}
static td_tensor *apply_mse(td_tensor *const *in, size_t n, void *user)
{
    return td_mse(((const ops_row *)user)->p[2] ? td_transpose(in[0], 0, 1) : in[0], in[1]);
}
static void reference_mse(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int64_t a = row->p[0], b = row->p[1];
    long double sum = 0;
    ops_out(out, TD_SCALAR);
    for (int64_t i = 0; i < a * b; i++) {
        double d = in[0].v[row->p[2] ? i % b * a + i / b : i] - in[1].v[i];
        sum += (long double)d * d;
    }
    out->v[0] = a * b > 0 ? (double)(sum / (long double)(a * b)) : (double)NAN;
}

#define R(label, make, g, ...)                                                                               \
    { .op = &td__op_##label, .name = #label " {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = make, .apply = apply_##label, \
      .reference = reference_##label, .abs = 8, .rel = 8, .grad = g, .p = { __VA_ARGS__ } }
const ops_row ops_rows_loss[] = {
    R(cross_entropy, inputs, 1, 5, 7), R(cross_entropy, inputs, 1, 1, 1), R(cross_entropy, inputs, 1, 0, 7),
    R(cross_entropy, inputs, 1, 7, 10, 10), R(cross_entropy, inputs, 1, 7, 5, 0, 1), R(cross_entropy, inputs, 0, 1, 5, 0, 1),
    R(cross_entropy, inputs, 1, 7, 5, 20, 1), R(cross_entropy, inputs, 1, 7, 5, 20, 1, 1, 1), R(cross_entropy, inputs, 1, 3, 1031, 10, 0),
    R(cross_entropy, inputs, 0, 4001 / 2, 67, 0, 1), R(cross_entropy, inputs, 0, 701, 67, 10, 0, 1),
    R(mse, mse_inputs, 3, 5, 7), R(mse, mse_inputs, 3, 1, 1), R(mse, mse_inputs, 3, 0, 7), R(mse, mse_inputs, 3, 5, 7, 1),
    R(mse, mse_inputs, 2, 5, 7), R(mse, mse_inputs, 0, 307, 211, 1),
    { 0 },
};
