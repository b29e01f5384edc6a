/* tests/autograd/ops_rows_nll.c: rows for nll and bce_with_logits.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

/* ---- nll: p = N C, ignore (every third row is), transposed, targets strided -------------------------------------------------------- */

static size_t inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int64_t N = row->p[0], C = row->p[1];
    in[0] = ops_fill(row->p[3] ? TD_SHAPE(C, N) : TD_SHAPE(N, C), t, 51);
    int64_t target[8192];
    const int step = row->p[4] ? 2 : 1;
    for (int64_t i = 0; i < N; i++) {
        target[step * i + step - 1] = -7;                       /* what the strides must step over                        */
        target[step * i] = row->p[2] && i % 3 == 0 ? -100 : i * 7 % C;
    }
    in[1] = td_from(target, row->p[4] ? TD_SHAPE(N, 2) : TD_SHAPE(N), TD_I64);
    return 2;
}
static td_tensor *apply_nll(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    td_tensor *target = row->p[4] ? td_reshape(td_narrow(in[1], 1, 0, 1), TD_SHAPE(-1)) : in[1];
    return td_nll(row->p[3] ? td_transpose(in[0], 0, 1) : in[0], target,
                  row->p[2] ? &(td_nll_opts){ .has_ignore_index = true, .ignore_index = -100 } : NULL);
}
static void reference_nll(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int64_t N = row->p[0], C = row->p[1];
    long double sum = 0, kept = 0;
    ops_out(out, TD_SCALAR);
    for (int64_t i = 0; i < N; i++) {
        int64_t t = (int64_t)in[1].v[row->p[4] ? 2 * i : i];
        if (row->p[2] && t == -100)
            continue;
        sum -= in[0].v[row->p[3] ? t * N + i : i * C + t];
        kept++;
    }
    out->v[0] = (double)(sum / kept);
}

/* ---- bce_with_logits: p = two sizes, transposed, weights (1: of columns, 2: of all), scale of the logits -------------------------------- */

static size_t bce_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int64_t a = row->p[0], b = row->p[1];
    in[0] = td_scale(ops_fill(row->p[2] ? TD_SHAPE(b, a) : TD_SHAPE(a, b), t, 52), row->p[4]);
    in[1] = td_scale(td_shift(ops_fill(TD_SHAPE(a, b), t, 53), 2), 0.25);      /* in [0,1]                                */
    if (!row->p[3])
        return 2;
    in[2] = ops_fill_positive(row->p[3] == 1 ? TD_SHAPE(b) : TD_SHAPE(a, b), t, 54);
    return 3;
}
static td_tensor *apply_bce_with_logits(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    return td_bce_with_logits(row->p[2] ? td_transpose(in[0], 0, 1) : in[0], in[1], n > 2 ? &(td_bce_opts){ .pos_weight = in[2] } : NULL);
}
static void reference_bce_with_logits(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int64_t a = row->p[0], b = row->p[1];
    long double sum = 0;
    ops_out(out, TD_SCALAR);
    for (int64_t i = 0; i < a * b; i++) {
        long double x = in[0].v[row->p[2] ? i % b * a + i / b : i], y = in[1].v[i];
        long double w = n > 2 ? in[2].v[row->p[3] == 1 ? i % b : i] : 1;
        /* log s(x) = -log(1 + e^-x), log(1 - s(x)) = -log(1 + e^x): 80-bit numbers take e^x for all x used here */
        sum += w * y * log1pl(expl(-x)) + (1 - y) * log1pl(expl(x));
    }
    out->v[0] = a * b > 0 ? (double)(sum / (long double)(a * b)) : (double)NAN;
}

#define R(label, make, g, ...)                                                                               \
    { .op = &td__op_##label, .name = #label " {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = make, .apply = apply_##label, \
      .reference = reference_##label, .abs = 8, .rel = 8, .grad = g, .p = { __VA_ARGS__ } }
const ops_row ops_rows_nll[] = {
    R(nll, inputs, 1, 5, 7), R(nll, inputs, 1, 1, 1), R(nll, inputs, 0, 0, 7), R(nll, inputs, 1, 7, 5, 1), R(nll, inputs, 0, 1, 5, 1),
    R(nll, inputs, 1, 7, 5, 1, 1, 1), R(nll, inputs, 1, 3, 1031), R(nll, inputs, 0, 4001, 67, 1), R(nll, inputs, 0, 701, 67, 0, 1),
    R(bce_with_logits, bce_inputs, 3, 5, 7, 0, 0, 4), R(bce_with_logits, bce_inputs, 3, 1, 1, 0, 0, 1),
    R(bce_with_logits, bce_inputs, 0, 0, 7, 0, 0, 1), R(bce_with_logits, bce_inputs, 3, 5, 7, 1, 0, 4),
    R(bce_with_logits, bce_inputs, 3, 5, 7, 0, 1, 4), R(bce_with_logits, bce_inputs, 3, 5, 7, 1, 2, 4),
    R(bce_with_logits, bce_inputs, 2, 5, 7, 0, 1, 4), R(bce_with_logits, bce_inputs, 0, 3, 67, 0, 0, 60),
    R(bce_with_logits, bce_inputs, 0, 307, 211, 1, 1, 8),
    { 0 },
};
