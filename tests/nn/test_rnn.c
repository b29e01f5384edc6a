/* tests/nn/test_rnn.c: LSTM and GRU layers against the published formulas, written plainly in double: layers, directions, states in and out, both
 * layouts; gradients by finite differences; and what users may get wrong.
 */
#include "nn_test.h"

/* ---- the definition --------------------------------------------------------------------------------------------------------------- */

typedef struct { bool lstm; int64_t in, hidden; td_nn_rnn_opts opts; } problem;
enum { T = 4, N = 3, MOST = 4096 };

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* row i of w (rows, n) times x, plus bias i */
static double row(const double *w, const double *b, int64_t i, const double *x, int64_t n)
{
    double sum = b ? b[i] : 0;
    for (int64_t j = 0; j < n; j++)
        sum += w[i * n + j] * x[j];
    return sum;
}

/* One time step of one sequence: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; Cho et al. 2014. */
static void define_step(bool lstm, int64_t in, int64_t H, const double *const w[4], const double *x, double *h, double *c)
{
    double next[64], a[4], b[4];
    for (int64_t k = 0; k < H; k++) {
        for (int g = 0; g < (lstm ? 4 : 3); g++) {
            a[g] = row(w[0], w[2], g * H + k, x, in);
            b[g] = row(w[1], w[3], g * H + k, h, H);
        }
        if (lstm) {
            c[k] = sigmoid(a[1] + b[1]) * c[k] + sigmoid(a[0] + b[0]) * tanh(a[2] + b[2]);
            next[k] = sigmoid(a[3] + b[3]) * tanh(c[k]);
        } else {
            const double r = sigmoid(a[0] + b[0]), z = sigmoid(a[1] + b[1]);
            next[k] = (1 - z) * tanh(a[2] + r * b[2]) + z * h[k];
        }
    }
    memcpy(h, next, (size_t)H * sizeof *h);
}

static const double *values(td_module *m, const char *name, int layer, int direction)
{
    char full[64];
    snprintf(full, sizeof full, "%s_l%d%s", name, layer, direction ? "_reverse" : "");
    return td_data(td_parameter_get(m, full));
}

/* x (T,N,in) -> y (T,N,directions*H); h, c (layers*directions,N,H) from first to last */
static void define(const problem *p, td_module *m, const double *x, double *y, double *h, double *c)
{
    const int layers = p->opts.layers ? p->opts.layers : 1, D = p->opts.bidirectional ? 2 : 1;
    const int64_t H = p->hidden;
    double from[MOST];
    memcpy(from, x, (size_t)(T * N * p->in) * sizeof *x);
    for (int layer = 0; layer < layers; layer++) {
        const int64_t in = layer ? D * H : p->in;
        for (int d = 0; d < D; d++) {
            const double *w[4] = { values(m, "weight_ih", layer, d), values(m, "weight_hh", layer, d), NULL, NULL };
            if (!p->opts.no_bias)
                w[2] = values(m, "bias_ih", layer, d), w[3] = values(m, "bias_hh", layer, d);
            for (int64_t n = 0; n < N; n++)
                for (int64_t i = 0; i < T; i++) {
                    const int64_t t = d ? T - 1 - i : i, at = ((layer * D + d) * N + n) * H;
                    define_step(p->lstm, in, H, w, from + (t * N + n) * in, h + at, c + at);
                    memcpy(y + (t * N + n) * D * H + d * H, h + at, (size_t)H * sizeof *h);
                }
        }
        memcpy(from, y, (size_t)(T * N * D * H) * sizeof *y);
    }
}

/* ---- against it ---------------------------------------------------------------------------------------------------------------------- */

static td_module *make(const problem *p)
{
    td_module *m = p->lstm ? td_nn_lstm(p->in, p->hidden, &p->opts) : td_nn_gru(p->in, p->hidden, &p->opts);
    assert_int_equal(td_module_to(m, TD_F64), 0);
    return m;
}

static td_tensor *forward(const problem *p, td_module *m, td_tensor *x, td_tensor **h, td_tensor **c)
{
    return p->lstm ? td_lstm_forward(m, x, h, c) : td_gru_forward(m, x, h);
}

static td_tensor *draw(td_shape shape, uint64_t stream)
{
    return td_cast(td_randn(shape, 9, stream), TD_F64);
}

static void expect_same(td_tensor *got, const double *want, const char *what)
{
    const double *v = td_data(got);
    for (int64_t i = 0; i < td_numel(got); i++)
        if (!(fabs(v[i] - want[i]) <= 1e-13 * (1 + fabs(want[i]))))
            fail_msg("%s: element %d is %.17g, expected %.17g", what, (int)i, v[i], want[i]);
}

static td_tensor *copy(td_tensor *x)
{
    td_tensor *y = td_empty(td_shape_of(x), td_dtype_of(x));
    td_assign(y, x);
    return y;
}

static void expect_defined(problem p)
{
    TD_SCOPE();
    const int layers = p.opts.layers ? p.opts.layers : 1, D = p.opts.bidirectional ? 2 : 1;
    const td_shape states = TD_SHAPE(layers * D, N, p.hidden), out = TD_SHAPE(T, N, D * p.hidden);
    td_module *m = make(&p);
    assert_int_equal(td_parameters(m).n, (p.opts.no_bias ? 2 : 4) * layers * D);
    td_tensor *x = draw(TD_SHAPE(T, N, p.in), 1), *given = p.opts.batch_first ? td_transpose(x, 0, 1) : x;
    for (int zero = 0; zero < 2; zero++) {
        double y[MOST], h[MOST] = { 0 }, c[MOST] = { 0 };
        td_tensor *hs = NULL, *cs = NULL;
        if (!zero) {
            hs = draw(states, 2), cs = draw(states, 3);
            memcpy(h, td_data(hs), (size_t)td_numel(hs) * sizeof *h);
            memcpy(c, td_data(cs), (size_t)td_numel(cs) * sizeof *c);
        }
        define(&p, m, td_data(x), y, h, c);
        td_tensor *got = forward(&p, m, given, &hs, &cs);
        assert_int_equal(td_error_pending(), 0);
        got = p.opts.batch_first ? td_transpose(got, 0, 1) : got;
        assert_true(td__shape_equal(td_shape_of(got), out) && td__shape_equal(td_shape_of(hs), states));
        expect_same(copy(got), y, "y");
        expect_same(hs, h, "h");
        if (p.lstm)
            expect_same(cs, c, "c");
        if (zero)
            expect_same(copy(p.opts.batch_first ? td_transpose(td_forward(m, given), 0, 1) : td_forward(m, given)), y, "td_forward");
    }
    td_module_free(m);
}

static void definition(void **state)
{
    for (int lstm = 0; lstm < 2; lstm++) {
        expect_defined((problem){ lstm, 3, 5, { 0 } });
        expect_defined((problem){ lstm, 2, 3, { .no_bias = true } });
        expect_defined((problem){ lstm, 3, 4, { .layers = 3, .batch_first = true } });
        expect_defined((problem){ lstm, 3, 5, { .layers = 2, .bidirectional = true } });
        expect_defined((problem){ lstm, 3, 5, { .layers = 2, .bidirectional = true, .batch_first = true } });
    }
}

/* Two windows with the state carried are the long sequence. */
static void windows(void **state)
{
    for (int lstm = 0; lstm < 2; lstm++) {
        TD_SCOPE();
        const problem p = { lstm, 3, 5, { .layers = 2 } };
        td_module *m = make(&p);
        td_tensor *x = draw(TD_SHAPE(7, N, 3), 4), *h = NULL, *c = NULL, *hw = NULL, *cw = NULL;
        td_tensor *whole = forward(&p, m, x, &h, &c), *part[2];
        part[0] = forward(&p, m, td_narrow(x, 0, 0, 3), &hw, &cw);
        hw = td_detach(hw), cw = lstm ? td_detach(cw) : NULL;
        part[1] = forward(&p, m, td_narrow(x, 0, 3, 4), &hw, &cw);
        expect_same(td_concat(part, 2, 0), td_data(whole), "two windows");
        expect_same(hw, td_data(h), "the last state");
        td_module_free(m);
    }
}

/* ---- gradients ------------------------------------------------------------------------------------------------------------------------- */

typedef struct { problem p; td_module *m; } checked;

static td_tensor *apply(td_tensor *const *in, size_t n, void *user)
{
    checked *u = user;
    td_tensor *h = in[0], *c = u->p.lstm ? in[1] : NULL, *y = forward(&u->p, u->m, in[2], &h, &c);
    td_tensor *all[3] = { td_reshape(y, TD_SHAPE(-1)), td_reshape(h, TD_SHAPE(-1)), c ? td_reshape(c, TD_SHAPE(-1)) : NULL };
    return td_concat(all, c ? 3 : 2, 0);
}

static void gradients(void **state)
{
    for (int lstm = 0; lstm < 2; lstm++) {
        TD_SCOPE();
        checked u = { { lstm, 2, 3, { .layers = 2, .bidirectional = true, .batch_first = lstm } }, NULL };
        u.m = make(&u.p);
        td_tensors p = td_parameters(u.m);
        td_tensor *in[32] = { draw(TD_SHAPE(4, N, 3), 5), draw(TD_SHAPE(4, N, 3), 6), draw(lstm ? TD_SHAPE(N, T, 2) : TD_SHAPE(T, N, 2), 7) };
        memcpy(in + 3, p.list, p.n * sizeof *in);
        if (!lstm)
            in[1] = draw(TD_SHAPE(1), 8);                      /* not read: no gradient, none expected                        */
        assert_int_equal(td_gradcheck(apply, &u, in, 3 + p.n, NULL), 0);
        td_zero_grad(p);
        td_module_free(u.m);
    }
}

/* ---- initial values, dropout, names, empty batches ----------------------------------------------------------------------------------------- */

static void initialisation(void **state)
{
    td_module *m = td_nn_lstm(70, 100, &(td_nn_rnn_opts){ .layers = 2, .bidirectional = true });
    static const char *const names[] = { "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse",
                                         "bias_ih_l0_reverse", "bias_hh_l0_reverse", "weight_ih_l1" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_string_equal(td_parameter_name(td_parameters(m).list[i]), names[i]);
    assert_int_equal(td_dim(td_parameter_get(m, "weight_ih_l0"), 0), 400);
    assert_int_equal(td_dim(td_parameter_get(m, "weight_ih_l0"), 1), 70);
    assert_int_equal(td_dim(td_parameter_get(m, "weight_ih_l1_reverse"), 1), 200);
    td_tensors p = td_parameters(m);
    for (size_t i = 0; i < p.n; i++) {                         /* uniform in +-1/sqrt(100) */
        const float *v = td_data(p.list[i]);
        double sum = 0, square = 0, n = (double)td_numel(p.list[i]);
        for (int64_t k = 0; k < td_numel(p.list[i]); k++) {
            assert_true(v[k] >= -0.1f && v[k] <= 0.1f);
            sum += v[k], square += (double)v[k] * v[k];
        }
        assert_true(fabs(sum / n) < 5 * 0.1 / sqrt(3 * n) && fabs(square / n * 300 - 1) < 5 / sqrt(n));
    }
    char text[4096];
    td_summary_format(m, text, sizeof text);
    assert_non_null(strstr(text, "in=70, hidden=100, layers=2, bidirectional"));
    td_module_free(m);
}

/* Between layers and while training only; a sample's mask does not depend on the rest of the batch, in either layout. */
static void dropout(void **state)
{
    for (int first = 0; first < 2; first++) {
        TD_SCOPE();
        const problem p = { true, 3, 8, { .layers = 2, .dropout = 0.5, .batch_first = first } }, one = { true, 3, 8, { .dropout = 0.5 } };
        td_module *m = make(&p), *single = make(&one);
        td_tensor *x = draw(first ? TD_SHAPE(N, T, 3) : TD_SHAPE(T, N, 3), 8), *id = td_arange(N, TD_I64);
        td_samples(id);
        td_tensor *y = td_forward(m, x);
        td_samples(id);
        expect_same(td_contiguous(td_forward(m, x)), td_data(td_contiguous(y)), "the same samples");
        td_samples(td_narrow(id, 0, 2, 1));
        expect_same(td_contiguous(td_forward(m, td_narrow(x, first ? 0 : 1, 2, 1))), td_data(td_contiguous(td_narrow(y, first ? 0 : 1, 2, 1))),
                    "one sample alone");
        td_train(m, false);
        td_tensor *still = td_forward(m, x);
        double most = 0;
        for (int64_t i = 0; i < td_numel(y); i++)
            most = fmax(most, fabs(((double *)td_data(y))[i] - ((double *)td_data(still))[i]));
        assert_true(most > 1e-3);
        td_samples(NULL);
        td_tensor *train = td_forward(single, draw(TD_SHAPE(T, N, 3), 8));   /* one layer: nothing is dropped */
        td_train(single, false);
        expect_same(td_forward(single, draw(TD_SHAPE(T, N, 3), 8)), td_data(train), "one layer");
        td_module_free(m);
        td_module_free(single);
    }
}

static void no_rows(void **state)
{
    TD_SCOPE();
    const problem p = { true, 3, 5, { .layers = 2, .bidirectional = true } };
    td_module *m = make(&p);
    td_tensor *h = NULL, *c = NULL, *y = td_lstm_forward(m, td_zeros(TD_SHAPE(T, 0, 3), TD_F64), &h, &c);
    assert_true(td__shape_equal(td_shape_of(y), TD_SHAPE(T, 0, 10)) && td__shape_equal(td_shape_of(c), TD_SHAPE(4, 0, 5)));
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
    assert_true(td_item(td_sum(td_grad(td_parameter_get(m, "weight_hh_l1")), NULL, 0, false)) == 0);
    td_module_free(m);
}

/* ---- cells ------------------------------------------------------------------------------------------------------------------------------ */

static void cells(void **state)
{
    for (int kind = 0; kind < 4; kind++) {
        TD_SCOPE();
        const bool lstm = kind & 1;
        const td_nn_rnn_cell_opts opts = { .no_bias = kind & 2 };
        td_module *m = lstm ? td_nn_lstm_cell(3, 5, &opts) : td_nn_gru_cell(3, 5, &opts);
        td_module_to(m, TD_F64);
        const double *w[4] = { td_data(td_parameter_get(m, "weight_ih")), td_data(td_parameter_get(m, "weight_hh")), NULL, NULL };
        if (!opts.no_bias)
            w[2] = td_data(td_parameter_get(m, "bias_ih")), w[3] = td_data(td_parameter_get(m, "bias_hh"));
        assert_int_equal(td_parameters(m).n, opts.no_bias ? 2 : 4);
        td_tensor *x = draw(TD_SHAPE(N, 3), 1), *h = NULL, *c = NULL;
        double hd[N * 5] = { 0 }, cd[N * 5] = { 0 };
        for (int step = 0; step < 2; step++) {                 /* from zeros, then from what came */
            for (int n = 0; n < N; n++)
                define_step(lstm, 3, 5, w, (double *)td_data(x) + n * 3, hd + n * 5, cd + n * 5);
            if (lstm)
                td_lstm_cell_forward(m, x, &h, &c);
            else
                td_gru_cell_forward(m, x, &h);
            expect_same(h, hd, "h");
            if (lstm)
                expect_same(c, cd, "c");
            if (step == 0)
                expect_same(td_forward(m, x), hd, "td_forward");
        }
        td_module_free(m);
    }
}

static void wrong_arguments(void **state)
{
    TD_SCOPE();
    td_module *lstm = td_nn_lstm(3, 5, NULL), *gru = td_nn_gru(3, 5, &(td_nn_rnn_opts){ .batch_first = true }), *cell = td_nn_gru_cell(3, 5, NULL);
    td_tensor *h = td_zeros(TD_SHAPE(1, 2, 4), TD_F32), *c = NULL, *x = td_zeros(TD_SHAPE(T, 2, 3), TD_F32);
    assert_true(td_is_poisoned(td_lstm_forward(lstm, x, &h, &c)) && td_is_poisoned(h) && td_is_poisoned(c));
    expect_error(TD_ERR_SHAPE, "td_lstm_forward: h has shape (1,2,4), expected (1,2,5): layers*directions, N of x (4,2,3), hidden");
    td_lstm_forward(lstm, td_zeros(TD_SHAPE(2, 3), TD_F32), NULL, NULL);
    expect_error(TD_ERR_SHAPE, "td_lstm_forward: x has shape (2,3), expected (T,N,3)");
    td_gru_forward(gru, td_zeros(TD_SHAPE(2, 0, 3), TD_F32), NULL);
    expect_error(TD_ERR_SHAPE, "td_gru_forward: x has shape (2,0,3), (N,T,3) without a time step; expected 1 or more");
    td_gru_forward(lstm, x, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_gru_forward: the module is a lstm, expected one of td_nn_gru");
    td_gru_forward(NULL, x, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_gru_forward: the module is NULL");
    td_gru_forward(gru, NULL, NULL);
    assert_true(td_error_pending() != 0);
    td_error_clear();
    td_gru_cell_forward(cell, x, NULL);
    expect_error(TD_ERR_SHAPE, "td_gru_cell_forward: x has shape (4,2,3), expected (N,3)");
    td_lstm_cell(td_zeros(TD_SHAPE(2, 19), TD_F32), td_zeros(TD_SHAPE(2, 5), TD_F32), &h, &c);
    expect_error(TD_ERR_SHAPE, "td_lstm_cell: gates has shape (2,19), expected (2,20): N rows of 4 gates for c (2,5)");
    td_gru_cell(td_zeros(TD_SHAPE(2, 15), TD_F32), td_zeros(TD_SHAPE(2, 15), TD_F64), td_zeros(TD_SHAPE(2, 5), TD_F32));
    assert_int_equal(td_error_pending(), TD_ERR_DTYPE);
    td_error_clear();
    td_nn_lstm(0, 5, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_lstm: in is 0 and hidden is 5, expected 1 or more, up to 2147483647 and 536870911");
    td_nn_gru(3, 5, &(td_nn_rnn_opts){ .dropout = 1 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_gru: layers is 0 and dropout 1, expected 0 (one layer) to 10000, and 0 up to 1 without 1");
    td_nn_gru_cell(3, 0, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_gru_cell: in is 3 and hidden is 0, expected 1 or more, up to 2147483647 and 536870911");
    td_module_free(lstm);
    td_module_free(gru);
    td_module_free(cell);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(definition), TEST(windows), TEST(gradients), TEST(initialisation), TEST(dropout), TEST(no_rows), TEST(cells), TEST(wrong_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
