/* bench/ops_rows.c: a row for every operation that moves elements: arithmetic, activations, reductions, views, losses, indices, norms, pools.
 * (ops_rows_products.c has those that multiply.) bytes are counted from the tensors: a pass must read its inputs and write its results,
 * each once; a gradient reads what arrives and what the row's `reads` names, and writes a gradient for every leaf.
 *
 * Letters of inputs, on an (R,C) matrix of 128, 1024 or 4096 squared, or an image (N,C,32,32) of as many elements:
 *
 *     x normal   p in [1/2,2)   X normal, no gradient   m bool   w (C)   t i64 (R) below C   r i64 (R) below R   g i64 (R,C) below R
 *     i image    W (channels)   V the same, positive, no gradient
 */
#include <math.h>
#include "ops.h"

static const int side[SIZES] = { 128, 1024, 4096 };

/* ---- calls: the expression of each row is a function of `x`, its inputs, and `c`, its case --------------------------------------- */

#define ROWS_OF(...) (int[]){ 1 }, 1, false
#define COLUMNS_OF(...) (int[]){ 0 }, 1, false
#define ALL NULL, 0, false
#define TRAIN &(td_batch_norm_opts){ .train = true }

#define ARITHMETIC(X)                                                                                        \
    X(add, "add", "add", "xx", 0, td_add(x[0], x[1]))                                                        \
    X(add_row, "add", "add, one row to all", "xw", 0, td_add(x[0], x[1]))                                    \
    X(sub, "sub", "sub", "xx", 0, td_sub(x[0], x[1]))                                                        \
    X(mul, "mul", "mul", "xx", 3, td_mul(x[0], x[1]))                                                        \
    X(div, "div", "div", "xp", 3, td_div(x[0], x[1]), .calls = { { [DIVIDE] = 1 }, { [DIVIDE] = 1 } })       \
    X(neg, "neg", "neg", "x", 0, td_neg(x[0]))                                                               \
    X(scale, "scale", "scale", "x", 0, td_scale(x[0], 1.5))                                                  \
    X(shift, "shift", "shift", "x", 0, td_shift(x[0], 1.5))                                                  \
    X(eq, "eq", "eq", "XX", 0, td_eq(x[0], x[1]), .no_gradient = true)                                       \
    X(cast, "cast", "cast to bf16", "x", 0, td_cast(x[0], TD_BF16))                                          \
    X(abs, "abs", "abs", "x", 1, td_abs(x[0]))                                                               \
    X(pow2, "pow", "pow, 2", "x", 1, td_pow(x[0], 2))                                                        \
    X(pow, "pow", "pow, 2.5", "p", 1, td_pow(x[0], 2.5), .calls = { { [POW] = 1 }, { [POW] = 1 } })          \
    X(clamp, "clamp", "clamp", "x", 1, td_clamp(x[0], -0.5, 0.5))                                            \
    X(maximum, "maximum", "maximum", "xx", 3, td_maximum(x[0], x[1]))                                        \
    X(minimum, "minimum", "minimum", "xx", 3, td_minimum(x[0], x[1]))                                        \
    X(where, "where", "where", "mxx", 1, td_where(x[0], x[1], x[2]))

#define ACTIVATIONS(X)                                                                                       \
    X(relu, "relu", "relu", "x", 1, td_relu(x[0]))                                                           \
    X(gelu, "gelu", "gelu", "x", 1, td_gelu(x[0]), .calls = { { [ERF] = 1 }, { [ERF] = 1, [EXP] = 1 } })     \
    X(gelu_tanh, "gelu_tanh", "gelu_tanh", "x", 1, td_gelu_tanh(x[0]), .calls = { { [EXP] = 1, [DIVIDE] = 1 }, { [EXP] = 1, [DIVIDE] = 1 } }) \
    X(silu, "silu", "silu", "x", 1, td_silu(x[0]), .calls = { { [EXP] = 1, [DIVIDE] = 1 }, { [EXP] = 1, [DIVIDE] = 1 } }) \
    X(sigmoid, "sigmoid", "sigmoid", "x", OPS_OUT, td_sigmoid(x[0]), .calls = { { [EXP] = 1, [DIVIDE] = 1 } }) \
    X(tanh, "tanh", "tanh", "x", OPS_OUT, td_tanh(x[0]), .calls = { { [TANH] = 1 } })                        \
    X(exp, "exp", "exp", "x", OPS_OUT, td_exp(x[0]), .calls = { { [EXP] = 1 } })                             \
    X(ln, "ln", "ln", "p", 1, td_ln(x[0]), .calls = { { [LOG] = 1 }, { [DIVIDE] = 1 } })                     \
    X(sqrt, "sqrt", "sqrt", "p", OPS_OUT, td_sqrt(x[0]), .calls = { { [DIVIDE] = 1 }, { [DIVIDE] = 1 } })    \
    X(swiglu, "swiglu", "swiglu", "xx", 3, td_swiglu(x[0], x[1]), .calls = { { [EXP] = 1, [DIVIDE] = 1 }, { [EXP] = 1, [DIVIDE] = 1 } }) \
    X(softmax, "softmax", "softmax", "x", OPS_OUT, td_softmax(x[0], -1), .calls = { { [EXP] = 1 } })         \
    X(log_softmax, "log_softmax", "log_softmax", "x", OPS_OUT, td_log_softmax(x[0], -1), .calls = { { [EXP] = 1 }, { [EXP] = 1 } }) \
    X(dropout, "dropout", "dropout", "x", 0, td_dropout(x[0], 0.25, true))                                   \
    X(rotary, "rotary", "rotary", NULL, 2, td_rotary(x[0], x[1]), .make = make_rotary)                       \
    X(lstm_cell, "lstm_cell", "lstm_cell", NULL, 3 | OPS_OUT, lstm_cell(x, second), .make = make_lstm,       \
      .calls = { { [EXP] = 0.75, [TANH] = 0.5, [DIVIDE] = 0.75 } })                                          \
    X(gru_cell, "gru_cell", "gru_cell", NULL, 5 | OPS_OUT, td_gru_cell(x[0], x[1], x[2]), .make = make_gru,  \
      .calls = { { [EXP] = 2 / 3.0, [TANH] = 1 / 3.0, [DIVIDE] = 2 / 3.0 } })

#define REDUCTIONS(X)                                                                                        \
    X(sum, "sum", "sum of all", "x", 0, td_sum(x[0], ALL))                                                   \
    X(sum_rows, "sum", "sum of rows", "x", 0, td_sum(x[0], ROWS_OF()))                                       \
    X(sum_columns, "sum", "sum of columns", "x", 0, td_sum(x[0], COLUMNS_OF()))                              \
    X(mean, "mean", "mean of all", "x", 0, td_mean(x[0], ALL))                                               \
    X(amax, "amax", "amax of rows", "x", 1 | OPS_OUT, td_amax(x[0], ROWS_OF()))                              \
    X(amax_columns, "amax", "amax of columns", "x", 1 | OPS_OUT, td_amax(x[0], COLUMNS_OF()))                \
    X(amin, "amin", "amin of rows", "x", 1 | OPS_OUT, td_amin(x[0], ROWS_OF()))                              \
    X(argmax, "argmax", "argmax of rows", "X", 0, td_argmax(x[0], 1), .no_gradient = true)                   \
    X(var, "var", "var of rows", "x", 1, td_var(x[0], ROWS_OF(), 1))                                         \
    X(nll, "nll", "nll", "xt", 0, td_nll(x[0], x[1], NULL), .make = make_nll)                                \
    X(bce, "bce_with_logits", "bce_with_logits", "xX", 3, td_bce_with_logits(x[0], x[1], NULL),              \
      .calls = { { [EXP] = 1, [LOG] = 1 }, { [EXP] = 1, [DIVIDE] = 1 } })                                    \
    X(cross_entropy, "cross_entropy", "cross_entropy", "xt", 1, td_cross_entropy(x[0], x[1], NULL),          \
      .calls = { { [EXP] = 1 }, { [EXP] = 1 } })                                                             \
    X(mse, "mse", "mse", "xX", 3, td_mse(x[0], x[1]))                                                        \
    X(layer_norm, "layer_norm", "layer_norm", "xww", 3, td_layer_norm(x[0], x[1], x[2], 1, 1e-5))            \
    X(rms_norm, "rms_norm", "rms_norm", "xw", 3, td_rms_norm(x[0], x[1], 1e-5))                              \
    X(group_norm, "group_norm", "group_norm", "iWW", 3, td_group_norm(x[0], 8, x[1], x[2], 1e-5))            \
    X(batch_norm, "batch_norm", "batch_norm", "iWWVV", 3, td_batch_norm(x[0], x[1], x[2], x[3], x[4], TRAIN)) \
    X(batch_norm_relu, "batch_norm_relu", "batch_norm_relu", "iiWWVV", 1 | OPS_OUT,                          \
      td_batch_norm_relu(x[0], x[1], x[2], x[3], x[4], x[5], TRAIN))

#define MOVES(X)                                                                                             \
    X(reshape, "reshape", "reshape", "x", 0, td_reshape(x[0], TD_SHAPE(-1, 2)), .view = true)                \
    X(permute, "permute", "permute", "x", 0, td_permute(x[0], (int[]){ 1, 0 }, 2), .view = true)             \
    X(expand, "expand", "expand", "w", 0, td_expand(x[0], TD_SHAPE(td_numel(x[0]), td_numel(x[0]))), .view = true) \
    X(narrow, "narrow", "narrow", "x", 0, td_narrow(x[0], 0, 0, td_dim(x[0], 0) / 2), .view = true)          \
    X(detach, "detach", "detach", "x", 0, td_detach(x[0]), .no_gradient = true, .view = true)                \
    X(contiguous, "contiguous", "contiguous of a transpose", "x", 0, td_contiguous(td_transpose(x[0], 0, 1))) \
    X(format, "to_memory_format", "to_memory_format", "i", 0, td_to_memory_format(x[0], TD_CHANNELS_LAST))   \
    X(concat, "concat", "concat of rows", "xx", 0, td_concat(x, 2, 1))                                       \
    X(pad, "pad", "pad", "x", 0, td_pad(x[0], (int64_t[]){ 1, 1 }, (int64_t[]){ 1, 1 }, 2, 0))               \
    X(embedding, "embedding", "embedding", NULL, 0, td_embedding(x[0], x[1], NULL), .make = make_embedding)  \
    X(index_select, "index_select", "index_select of rows", "xr", 2, td_index_select(x[0], 0, x[1]))         \
    X(gather, "gather", "gather", "xg", 2, td_gather(x[0], 0, x[1]))                                         \
    X(max_pool2d, "max_pool2d", "max_pool2d, 2", "i", OPS_OUT, td_max_pool2d(x[0], 2, NULL))                 \
    X(avg_pool2d, "avg_pool2d", "avg_pool2d, 2", "i", 0, td_avg_pool2d(x[0], 2, NULL))                       \
    X(adaptive_max, "adaptive_max_pool2d", "adaptive_max_pool2d to 8", "i", OPS_OUT, td_adaptive_max_pool2d(x[0], 8, 8)) \
    X(adaptive_avg, "adaptive_avg_pool2d", "adaptive_avg_pool2d to 8", "i", 0, td_adaptive_avg_pool2d(x[0], 8, 8))

static td_tensor *lstm_cell(td_tensor **x, td_tensor **second)
{
    td_tensor *h;
    td_lstm_cell(x[0], x[1], &h, second);
    return h;
}

static void make_rotary(ops_case *c, int size)
{
    static const int64_t heads[SIZES] = { 4, 16, 256 }, positions[SIZES] = { 64, 1024, 1024 };
    ops_input(c, TD_SHAPE(heads[size], positions[size], 64), NORMAL, true);
    c->in[c->n++] = td_keep(td_rotary_table(positions[size], 64, 0, TD_F32));
}

static void make_lstm(ops_case *c, int size)
{
    const int64_t n = side[size] / 2;
    ops_input(c, TD_SHAPE(n, 4 * n), NORMAL, true);
    ops_input(c, TD_SHAPE(n, n), NORMAL, true);
}

static void make_gru(ops_case *c, int size)
{
    const int64_t n = side[size] / 2;
    ops_input(c, TD_SHAPE(n, 3 * n), NORMAL, true);
    ops_input(c, TD_SHAPE(n, 3 * n), NORMAL, true);
    ops_input(c, TD_SHAPE(n, n), NORMAL, true);
}

/* One element of each row is read: a cache line. The gradient is zeros but for those. */
static void make_nll(ops_case *c, int size)
{
    const double rows = side[size];
    c->work[FORWARD] = (ops_work){ .read = rows * (8 + 64) };
    c->work[GRADIENT] = (ops_work){ .read = rows * 8, .written = rows * rows * 4 };
}

static void make_embedding(ops_case *c, int size)
{
    static const int64_t words[SIZES] = { 512, 8192, 50257 }, wide[SIZES] = { 64, 256, 768 }, tokens[SIZES] = { 512, 4096, 16384 };
    ops_input(c, TD_SHAPE(words[size], wide[size]), NORMAL, true);
    ops_indices(c, TD_SHAPE(tokens[size]), words[size]);
    const double taken = (double)(tokens[size] * wide[size]) * 4, ids = (double)tokens[size] * 8;
    c->work[FORWARD] = (ops_work){ .read = taken + ids, .written = taken };
    c->work[GRADIENT] = (ops_work){ .read = taken + ids, .written = (double)(words[size] * wide[size]) * 4 };
}

#define FUNCTION(id, OP, NAME, INPUTS, READS, expression, ...)                                               \
    static td_tensor *call_##id(ops_case *c, td_tensor **second)                                             \
    {                                                                                                        \
        td_tensor **x = c->in;                                                                               \
        (void)second;                                                                                        \
        return expression;                                                                                   \
    }
ARITHMETIC(FUNCTION)
ACTIVATIONS(FUNCTION)
REDUCTIONS(FUNCTION)
MOVES(FUNCTION)

#define ROW(id, OP, NAME, INPUTS, READS, expression, ...) { .op = OP, .name = NAME, .inputs = INPUTS, .call = call_##id, .reads = READS, ##__VA_ARGS__ },
const ops_row ops_rows[] = { ARITHMETIC(ROW) ACTIVATIONS(ROW) REDUCTIONS(ROW) MOVES(ROW) { 0 } };

/* ---- inputs by letters -------------------------------------------------------------------------------------------------------------- */

void ops_letters(ops_case *c, const char *letters, int size)
{
    static const int64_t images[SIZES] = { 1, 16, 256 }, channels[SIZES] = { 16, 64, 64 };
    const int64_t n = side[size];
    for (; *letters; letters++)
        switch (*letters) {
        case 'x': ops_input(c, TD_SHAPE(n, n), NORMAL, true); break;
        case 'X': ops_input(c, TD_SHAPE(n, n), NORMAL, false); break;
        case 'p': ops_input(c, TD_SHAPE(n, n), POSITIVE, true); break;
        case 'm': ops_mask(c, TD_SHAPE(n, n)); break;
        case 'w': ops_input(c, TD_SHAPE(n), NORMAL, true); break;
        case 't': ops_indices(c, TD_SHAPE(n), n); break;
        case 'r': ops_indices(c, TD_SHAPE(n), n); break;
        case 'g': ops_indices(c, TD_SHAPE(n, n), n); break;
        case 'i': ops_input(c, TD_SHAPE(images[size], channels[size], 32, 32), NORMAL, true); break;
        case 'W': ops_input(c, TD_SHAPE(channels[size]), NORMAL, true); break;
        case 'V': ops_input(c, TD_SHAPE(channels[size]), POSITIVE, false); break;
        }
}
