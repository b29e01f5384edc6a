/* nn/rnn_cell.c: one time step of an LSTM or a GRU as a module, for loops of one's own (decoders, sampling, control). */
#include "nn_impl.h"
#include <stdio.h>

typedef struct { td_module base; td_tensor *weight_ih, *weight_hh, *bias_ih, *bias_hh; int64_t in, hidden; } cell;

static td_tensor *lstm_forward(td_module *m, td_tensor *x);
static td_tensor *gru_forward(td_module *m, td_tensor *x);

static void describe(const td_module *m, char *into, size_t size)
{
    const cell *c = (const cell *)m;
    snprintf(into, size, "in=%lld, hidden=%lld%s", (long long)c->in, (long long)c->hidden, c->bias_ih ? "" : ", no bias");
}

static const td_module_type lstm_type = { .kind = "lstm_cell", .size = sizeof(cell), .forward = lstm_forward, .describe = describe };
static const td_module_type gru_type = { .kind = "gru_cell", .size = sizeof(cell), .forward = gru_forward, .describe = describe };

/* ---- forward --------------------------------------------------------------------------------------------------------------------- */

/* 0, or the sentence about a module of another kind or an input or state that does not fit. */
static int check(const char *who, const td_module *m, const td_module_type *type, td_tensor *x, td_tensor *const *given)
{
    const cell *c = (const cell *)m;
    char xt[128], st[128], want[128];
    int code = td__module_check(who, m);
    if (!code && m->type != type)
        code = td__fail(TD_ERR_ARGUMENT, "%s: the module is a %s, expected one of td_nn_%s", who, m->type->kind, type->kind);
    if (!code)
        code = td__tensor_check(who, x);
    if (!code && (x->shape.ndim != 2 || x->shape.dim[1] != c->in))
        code = td__fail(TD_ERR_SHAPE, "%s: x has shape %s, expected (N,%lld)", who, td__shape_text(x->shape, xt), (long long)c->in);
    for (int i = 0; i < 2 && !code; i++) {
        if (!given[i] || (code = td__tensor_check(who, given[i])) != 0)
            continue;
        const td_shape shape = TD_SHAPE(x->shape.dim[0], c->hidden);
        if (!td__shape_equal(given[i]->shape, shape))
            code = td__fail(TD_ERR_SHAPE, "%s: %s has shape %s, expected %s: N of x %s, hidden", who, i ? "c" : "h",
                            td__shape_text(given[i]->shape, st), td__shape_text(shape, want), td__shape_text(x->shape, xt));
    }
    return code;
}

static td_tensor *given_or_zeros(const cell *c, td_tensor *given, td_tensor *x)
{
    return given ? given : td_zeros(TD_SHAPE(td_dim(x, 0), c->hidden), td_dtype_of(x));
}

td_tensor *td_lstm_cell_forward(td_module *m, td_tensor *x, td_tensor **h, td_tensor **c)
{
    TD_ENTER();
    const cell *l = (const cell *)m;
    td_tensor *in[2] = { h ? *h : NULL, c ? *c : NULL }, *out[2] = { td__poison(), td__poison() };
    if (check("td_lstm_cell_forward", m, &lstm_type, x, in) == 0) {
        TD_MODULE_SCOPE(m);
        td_tensor *sum = td_add(td_linear(x, l->weight_ih, l->bias_ih), td_linear(given_or_zeros(l, in[0], x), l->weight_hh, l->bias_hh));
        td_lstm_cell(sum, given_or_zeros(l, in[1], x), &out[0], &out[1]);
        td_escape(out[0]);
        td_escape(out[1]);
    }
    if (h)
        *h = out[0];
    if (c)
        *c = out[1];
    return out[0];
}

td_tensor *td_gru_cell_forward(td_module *m, td_tensor *x, td_tensor **h)
{
    TD_ENTER();
    const cell *l = (const cell *)m;
    td_tensor *in[2] = { h ? *h : NULL, NULL }, *out = td__poison();
    if (check("td_gru_cell_forward", m, &gru_type, x, in) == 0) {
        TD_MODULE_SCOPE(m);
        td_tensor *old = given_or_zeros(l, in[0], x);
        out = td_escape(td_gru_cell(td_linear(x, l->weight_ih, l->bias_ih), td_linear(old, l->weight_hh, l->bias_hh), old));
    }
    if (h)
        *h = out;
    return out;
}

static td_tensor *lstm_forward(td_module *m, td_tensor *x)
{
    return td_lstm_cell_forward(m, x, NULL, NULL);
}

static td_tensor *gru_forward(td_module *m, td_tensor *x)
{
    return td_gru_cell_forward(m, x, NULL);
}

/* ---- making ------------------------------------------------------------------------------------------------------------------------ */

static td_module *make(const char *who, const td_module_type *type, int64_t gates, int64_t in, int64_t hidden, const td_nn_rnn_cell_opts *opts)
{
    if (in < 1 || hidden < 1 || in > INT32_MAX || hidden > INT32_MAX / 4) {
        td__fail(TD_ERR_ARGUMENT, "%s: in is %lld and hidden is %lld, expected 1 or more, up to %d and %d", who, (long long)in, (long long)hidden,
                 INT32_MAX, INT32_MAX / 4);
        return td__module_poison();
    }
    cell *c = (cell *)td_module_new(type);
    c->in = in;
    c->hidden = hidden;
    c->weight_ih = td__layer_parameter(&c->base, "weight_ih", TD_SHAPE(gates * hidden, in), hidden);
    c->weight_hh = td__layer_parameter(&c->base, "weight_hh", TD_SHAPE(gates * hidden, hidden), hidden);
    if (!opts || !opts->no_bias) {
        c->bias_ih = td__layer_parameter(&c->base, "bias_ih", TD_SHAPE(gates * hidden), hidden);
        c->bias_hh = td__layer_parameter(&c->base, "bias_hh", TD_SHAPE(gates * hidden), hidden);
    }
    return td__layer_done(&c->base);
}

td_module *td_nn_lstm_cell(int64_t in, int64_t hidden, const td_nn_rnn_cell_opts *opts)
{
    TD_ENTER();
    return make("td_nn_lstm_cell", &lstm_type, 4, in, hidden, opts);
}

td_module *td_nn_gru_cell(int64_t in, int64_t hidden, const td_nn_rnn_cell_opts *opts)
{
    TD_ENTER();
    return make("td_nn_gru_cell", &gru_type, 3, in, hidden, opts);
}
