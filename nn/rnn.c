/* nn/rnn.c: LSTM and GRU over whole sequences: layers, directions, the first and the last state.
 *
 * A layer's products of its input are one product for all time steps; what is left of a step is the product of the state and the fused cell. Time
 * is axis 0, or 1 with batch_first: steps are views of the one product, so neither x nor the results are copied to turn them. What a step makes
 * besides its states dies with the step.
 */
#include "nn_impl.h"
#include <stdio.h>
#include <string.h>

/* w: four for each layer and direction; biases NULL without */
typedef struct { td_tensor *w_ih, *w_hh, *b_ih, *b_hh; } weights;
typedef struct {
    td_module base;
    int64_t in, hidden;
    int layers, directions;
    double dropout;
    bool batch_first, no_bias;
    weights *w;
} rnn;

/* A state: of one direction (N,hidden), of all (layers*directions,N,hidden); c is NULL in a GRU. */
typedef struct { td_tensor *h, *c; } state;

static td_tensor *lstm_forward(td_module *m, td_tensor *x);
static td_tensor *gru_forward(td_module *m, td_tensor *x);
static void describe(const td_module *m, char *into, size_t size);
static void destroy(td_module *m);
static const td_module_type lstm_type = { .kind = "lstm", .size = sizeof(rnn), .forward = lstm_forward, .destroy = destroy, .describe = describe };
static const td_module_type gru_type = { .kind = "gru", .size = sizeof(rnn), .forward = gru_forward, .destroy = destroy, .describe = describe };

/* ---- one direction of one layer ------------------------------------------------------------------------------------------------- */

/* The step from s, given its part of the input's product (N,G*hidden). */
static state step(const weights *w, td_tensor *gi, state s)
{
    TD_SCOPE();
    if (s.c) {
        state next;
        td_lstm_cell(td_add(gi, td_linear(s.h, w->w_hh, NULL)), s.c, &next.h, &next.c);
        return (state){ td_escape(next.h), td_escape(next.c) };
    }
    return (state){ td_escape(td_gru_cell(gi, td_linear(s.h, w->w_hh, w->b_hh), s.h)), NULL };
}

/* x -> the states of all steps, in x's layout; *s: from the first state to the last. An LSTM's two biases always meet in a sum: they are
 * added once. */
static td_tensor *direction(const weights *w, td_tensor *x, int time, bool reverse, state *s)
{
    TD_SCOPE();
    const int64_t T = td_dim(x, time), N = td_dim(x, 1 - time);
    td_tensor *bias = w->b_ih && s->c ? td_add(w->b_ih, w->b_hh) : w->b_ih, *gi = td_linear(x, w->w_ih, bias);
    td_tensor **each = td__alloc((size_t)T * sizeof *each), *y = td__poison();
    if (!each)
        return y;
    for (int64_t i = 0; i < T; i++) {
        const int64_t t = reverse ? T - 1 - i : i;
        *s = step(w, td_reshape(td_narrow(gi, time, t, 1), TD_SHAPE(N, td_dim(w->w_ih, 0))), *s);
        each[t] = s->h;
    }
    y = td_escape(td_stack(each, (size_t)T, time));
    td_escape(s->h);
    if (s->c)
        td_escape(s->c);
    td__free(each);
    return y;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------------ */

/* Between layers. A mask belongs to a sample, so the samples come first for as long as it is drawn. */
static td_tensor *drop(const rnn *r, td_tensor *x)
{
    if (r->dropout == 0 || !td_is_training(&r->base))
        return x;
    return r->batch_first ? td_dropout(x, r->dropout, true) : td_transpose(td_dropout(td_transpose(x, 0, 1), r->dropout, true), 0, 1);
}

static state first_state(const rnn *r, const state *all, int k, int64_t n, td_tensor *x, bool lstm)
{
    const td_shape shape = TD_SHAPE(n, r->hidden);
    td_tensor *given[2] = { all->h, all->c };
    for (int i = 0; i < 2; i++)
        given[i] = given[i] ? td_reshape(td_narrow(given[i], 0, k, 1), shape) : i == 0 || lstm ? td_zeros(shape, td_dtype_of(x)) : NULL;
    return (state){ given[0], given[1] };
}

static td_tensor *forward(const rnn *r, td_tensor *x, state *all, bool lstm)
{
    const int time = r->batch_first ? 1 : 0, states = r->layers * r->directions;
    const int64_t n = td_dim(x, 1 - time);
    td_tensor **last = td__calloc(2 * (size_t)states * sizeof *last);
    if (!last)
        return td__poison();
    for (int layer = 0; layer < r->layers; layer++) {
        td_tensor *y[2] = { NULL, NULL };
        for (int d = 0; d < r->directions; d++) {
            const int k = layer * r->directions + d;
            state s = first_state(r, all, k, n, x, lstm);
            y[d] = direction(&r->w[k], x, time, d == 1, &s);
            last[k] = s.h;
            last[states + k] = s.c;
        }
        x = y[1] ? td_concat(y, 2, 2) : y[0];
        if (layer < r->layers - 1)
            x = drop(r, x);
    }
    all->h = td_stack(last, (size_t)states, 0);
    all->c = lstm ? td_stack(last + states, (size_t)states, 0) : NULL;
    td__free(last);
    return x;
}

/* 0, or the sentence. The state is looked at where it is given. */
static int check(const char *who, const rnn *r, const td_tensor *x, const td_tensor *given, const char *name)
{
    char xt[128], st[128], want[128];
    const td_shape s = x->shape;
    if (!given) {
        const char *layout = r->batch_first ? "N,T" : "T,N";
        if (s.ndim != 3 || s.dim[2] != r->in)
            return td__fail(TD_ERR_SHAPE, "%s: x has shape %s, expected (%s,%lld)", who, td__shape_text(s, xt), layout, (long long)r->in);
        if (s.dim[r->batch_first ? 1 : 0] < 1)
            return td__fail(TD_ERR_SHAPE, "%s: x has shape %s, (%s,%lld) without a time step; expected 1 or more", who, td__shape_text(s, xt), layout,
                            (long long)r->in);
        return 0;
    }
    const td_shape full = TD_SHAPE(r->layers * r->directions, s.dim[r->batch_first ? 0 : 1], r->hidden);
    if (td__shape_equal(given->shape, full))
        return 0;
    return td__fail(TD_ERR_SHAPE, "%s: %s has shape %s, expected %s: layers*directions, N of x %s, hidden", who, name,
                    td__shape_text(given->shape, st), td__shape_text(full, want), td__shape_text(s, xt));
}

static td_tensor *run(const char *who, td_module *m, const td_module_type *type, td_tensor *x, td_tensor **h, td_tensor **c)
{
    const rnn *r = (const rnn *)m;
    const bool lstm = type == &lstm_type;
    state all = { h ? *h : NULL, lstm && c ? *c : NULL };
    if (h)
        *h = td__poison();
    if (c)
        *c = td__poison();
    if (td__module_check(who, m) != 0)
        return td__poison();
    if (m->type != type) {
        td__fail(TD_ERR_ARGUMENT, "%s: the module is a %s, expected one of td_nn_%s", who, m->type->kind, type->kind);
        return td__poison();
    }
    if (td__tensor_check(who, x) != 0 || (all.h && td__tensor_check(who, all.h) != 0) || (all.c && td__tensor_check(who, all.c) != 0) ||
        check(who, r, x, NULL, NULL) != 0 || (all.h && check(who, r, x, all.h, "h") != 0) || (all.c && check(who, r, x, all.c, "c") != 0))
        return td__poison();
    TD_MODULE_SCOPE(m);
    td_tensor *y = td_escape(forward(r, x, &all, lstm));
    if (h)
        *h = td_escape(all.h);
    if (c)
        *c = td_escape(all.c);
    return y;
}

td_tensor *td_lstm_forward(td_module *m, td_tensor *x, td_tensor **h, td_tensor **c)
{
    TD_ENTER();
    return run("td_lstm_forward", m, &lstm_type, x, h, c);
}

td_tensor *td_gru_forward(td_module *m, td_tensor *x, td_tensor **h)
{
    TD_ENTER();
    return run("td_gru_forward", m, &gru_type, x, h, NULL);
}

static td_tensor *lstm_forward(td_module *m, td_tensor *x)
{
    return td_lstm_forward(m, x, NULL, NULL);
}

static td_tensor *gru_forward(td_module *m, td_tensor *x)
{
    return td_gru_forward(m, x, NULL);
}

/* ---- making ------------------------------------------------------------------------------------------------------------------------ */

static void describe(const td_module *m, char *into, size_t size)
{
    const rnn *r = (const rnn *)m;
    char dropout[40] = "";
    if (r->dropout > 0)
        snprintf(dropout, sizeof dropout, ", dropout=%g", r->dropout);
    snprintf(into, size, "in=%lld, hidden=%lld, layers=%d%s%s%s%s", (long long)r->in, (long long)r->hidden, r->layers,
             r->directions == 2 ? ", bidirectional" : "", r->batch_first ? ", batch first" : "", r->no_bias ? ", no bias" : "", dropout);
}

static void destroy(td_module *m)
{
    td__free(((rnn *)m)->w);
}

/* "weight_ih" -> "weight_ih_l1_reverse" */
static td_tensor *parameter(rnn *r, const char *name, int layer, bool reverse, td_shape shape)
{
    char full[64];
    snprintf(full, sizeof full, "%s_l%d%s", name, layer, reverse ? "_reverse" : "");
    return td__layer_parameter(&r->base, full, shape, r->hidden);
}

static td_module *make(const char *who, const td_module_type *type, int64_t gates, int64_t in, int64_t hidden, const td_nn_rnn_opts *opts)
{
    const td_nn_rnn_opts o = opts ? *opts : (td_nn_rnn_opts){ 0 };
    if (in < 1 || hidden < 1 || in > INT32_MAX || hidden > INT32_MAX / 4) {
        td__fail(TD_ERR_ARGUMENT, "%s: in is %lld and hidden is %lld, expected 1 or more, up to %d and %d", who, (long long)in, (long long)hidden,
                 INT32_MAX, INT32_MAX / 4);
        return td__module_poison();
    }
    if (o.layers < 0 || o.layers > 10000 || !(o.dropout >= 0 && o.dropout < 1)) {
        td__fail(TD_ERR_ARGUMENT, "%s: layers is %d and dropout %g, expected 0 (one layer) to 10000, and 0 up to 1 without 1", who, o.layers, o.dropout);
        return td__module_poison();
    }
    const int layers = o.layers ? o.layers : 1, directions = o.bidirectional ? 2 : 1;
    weights *w = td__calloc((size_t)(layers * directions) * sizeof *w);
    td_module *m = w ? td_module_new(type) : td__module_poison();
    if (!m->tree) {
        td__free(w);
        return m;
    }
    rnn *r = (rnn *)m;
    r->in = in;
    r->hidden = hidden;
    r->layers = layers;
    r->directions = directions;
    r->dropout = o.dropout;
    r->batch_first = o.batch_first;
    r->no_bias = o.no_bias;
    r->w = w;
    for (int layer = 0; layer < layers; layer++)
        for (int d = 0; d < directions; d++, w++) {
            w->w_ih = parameter(r, "weight_ih", layer, d, TD_SHAPE(gates * hidden, layer ? directions * hidden : in));
            w->w_hh = parameter(r, "weight_hh", layer, d, TD_SHAPE(gates * hidden, hidden));
            w->b_ih = o.no_bias ? NULL : parameter(r, "bias_ih", layer, d, TD_SHAPE(gates * hidden));
            w->b_hh = o.no_bias ? NULL : parameter(r, "bias_hh", layer, d, TD_SHAPE(gates * hidden));
        }
    return td__layer_done(m);
}

td_module *td_nn_lstm(int64_t in, int64_t hidden, const td_nn_rnn_opts *opts)
{
    TD_ENTER();
    return make("td_nn_lstm", &lstm_type, 4, in, hidden, opts);
}

td_module *td_nn_gru(int64_t in, int64_t hidden, const td_nn_rnn_opts *opts)
{
    TD_ENTER();
    return make("td_nn_gru", &gru_type, 3, in, hidden, opts);
}
