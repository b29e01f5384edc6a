/* tests/autograd/ops_rows_rnn.c: rows for lstm_cell and gru_cell. References are the published formulas, element by element.
 *
 * p = N, H, layout (1: the gates are the middle of wider rows, and strided), and for the LSTM which results count: 0 both, side by side; 1 h'; 2 c'.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* (N, width) as it is made, and as the operation gets it */
static td_tensor *wide(const int *p, int64_t width, td_dtype t, uint64_t seed)
{
    return td_scale(ops_fill(p[2] ? TD_SHAPE(p[0], width + 5) : TD_SHAPE(p[0], width), t, seed), 2);
}

static td_tensor *view(const int *p, td_tensor *x, int64_t width)
{
    return p[2] ? td_narrow(x, 1, 2, width) : x;
}

static double at(const int *p, const ops_array *x, int64_t row, int64_t width, int64_t column)
{
    return p[2] ? x->v[row * (width + 5) + 2 + column] : x->v[row * width + column];
}

/* ---- LSTM ---------------------------------------------------------------------------------------------------------------------------- */

static size_t lstm_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = wide(row->p, 4 * row->p[1], t, 61);
    in[1] = ops_fill(TD_SHAPE(row->p[0], row->p[1]), t, 62);
    return 2;
}

static td_tensor *lstm_apply(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    const int *p = ((const ops_row *)user)->p;
    td_tensor *both[2];
    td_lstm_cell(view(p, in[0], 4 * p[1]), in[1], p[3] == 2 ? NULL : &both[0], p[3] == 1 ? NULL : &both[1]);
    return p[3] ? both[p[3] - 1] : td_concat(both, 2, 1);
}

static void lstm_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    (void)n;
    const int *p = row->p, H = p[1], W = p[3] ? H : 2 * H;
    ops_out(out, TD_SHAPE(p[0], W));
    for (int64_t r = 0; r < p[0]; r++)
        for (int64_t k = 0; k < H; k++) {
            const double i = sigmoid(at(p, in, r, 4 * H, k)), f = sigmoid(at(p, in, r, 4 * H, H + k)), g = tanh(at(p, in, r, 4 * H, 2 * H + k)),
                         o = sigmoid(at(p, in, r, 4 * H, 3 * H + k)), c = f * in[1].v[r * H + k] + i * g;
            if (p[3] != 2)
                out->v[r * W + k] = o * tanh(c);
            if (p[3] != 1)
                out->v[r * W + (p[3] ? 0 : H) + k] = c;
        }
}

/* ---- GRU ----------------------------------------------------------------------------------------------------------------------------- */

static size_t gru_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = wide(row->p, 3 * row->p[1], t, 63);
    in[1] = wide(row->p, 3 * row->p[1], t, 64);
    in[2] = ops_fill(TD_SHAPE(row->p[0], row->p[1]), t, 65);
    return 3;
}

static td_tensor *gru_apply(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    const int *p = ((const ops_row *)user)->p;
    return td_gru_cell(view(p, in[0], 3 * p[1]), view(p, in[1], 3 * p[1]), in[2]);
}

static void gru_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    (void)n;
    const int *p = row->p, H = p[1], W = 3 * H;
    ops_out(out, TD_SHAPE(p[0], H));
    for (int64_t b = 0; b < p[0]; b++)
        for (int64_t k = 0; k < H; k++) {
            const double r = sigmoid(at(p, in, b, W, k) + at(p, in + 1, b, W, k)), z = sigmoid(at(p, in, b, W, H + k) + at(p, in + 1, b, W, H + k)),
                         c = tanh(at(p, in, b, W, 2 * H + k) + r * at(p, in + 1, b, W, 2 * H + k));
            out->v[b * H + k] = (1 - z) * c + z * in[2].v[b * H + k];
        }
}

/* Tolerances: exp and tanh of 4 units in the last place each, a division and sums of two products of numbers up to 4: the sums of gates up to 8
 * round by 4 units before the sigmoid, whose slope is at most 1/4. */
#define LSTM(g, ...)                                                                                         \
    { .op = &td__op_lstm_cell, .name = "lstm_cell {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = lstm_inputs, .apply = lstm_apply, \
      .reference = lstm_reference, .abs = 16, .rel = 16, .grad = g, .p = { __VA_ARGS__ } }
#define GRU(g, ...)                                                                                          \
    { .op = &td__op_gru_cell, .name = "gru_cell {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = gru_inputs, .apply = gru_apply, \
      .reference = gru_reference, .abs = 32, .rel = 16, .grad = g, .p = { __VA_ARGS__ } }
const ops_row ops_rows_rnn[] = {
    LSTM(3, 3, 5), LSTM(3, 1, 1), LSTM(3, 2, 7, 1), LSTM(3, 3, 5, 0, 1), LSTM(3, 3, 5, 0, 2), LSTM(1, 2, 3), LSTM(2, 2, 3), LSTM(3, 0, 4), LSTM(3, 4, 0),
    LSTM(0, 7, 300), LSTM(0, 67, 257, 1), GRU(7, 3, 5), GRU(7, 1, 1), GRU(7, 2, 7, 1), GRU(1, 2, 3), GRU(2, 2, 3), GRU(4, 2, 3), GRU(7, 0, 4),
    GRU(7, 4, 0), GRU(0, 7, 300), GRU(0, 67, 257, 1), { 0 },
};
