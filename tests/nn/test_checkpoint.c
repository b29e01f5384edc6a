/* td_checkpoint: the same bits as without it, everywhere; the memory that it saves; what it refuses. The reference is the plain call of the
 * same function from the same state.
 */
#include "nn_test.h"

enum { ROWS = 6, WIDTH = 16 };

/* ---- the same training with and without ----------------------------------------------------------------------------------------------- */

typedef enum { PLAIN, CHECKPOINTED, NESTED } way;

static td_tensor *run_module(td_tensor *const *in, size_t n, void *m)
{
    return td_forward(m, in[0]);
}

static td_tensor *run_module_nested(td_tensor *const *in, size_t n, void *m)
{
    return td_tanh(td_checkpoint(run_module, m, 0, in, n));
}

static td_tensor *apply(way w, td_module *m, td_tensor *x)
{
    if (w == PLAIN)
        return td_tanh(td_forward(m, x));
    if (w == CHECKPOINTED)
        return td_tanh(td_forward_checkpointed(m, x));
    return td_checkpoint(run_module_nested, m, 0, &x, 1);
}

typedef struct {
    unsigned char bytes[1 << 16];
    size_t used;
} state;

static void put(state *s, td_tensor *x)
{
    if (!x)
        return;
    td_tensor *dense = td_contiguous(x);
    size_t bytes = (size_t)td_numel(x) * td_dtype_size(td_dtype_of(x));
    assert_true(s->used + bytes <= sizeof s->bytes);
    memcpy(s->bytes + s->used, td_data(dense), bytes);
    s->used += bytes;
}

typedef struct {
    td_module *(*model)(void);         /* two halves: children "0" and "1"                                                     */
    td_shape shape;
    bool x_needs;
    td_dtype autocast;
} problem;

/* Two backwards' gradients, results, buffers and the next random number, after each of two steps. */
static void train(const problem *p, way w, state *s)
{
    td_seed(5);
    td__init_restart();
    td_step_set(3);
    td_module *m = p->model(), *first = td_module_get(m, "0"), *second = td_module_get(m, "1");
    td_tensors params = td_parameters(m), buffers = td_buffers(m);
    s->used = 0;
    for (int step = 0; step < 2; step++) {
        TD_SCOPE();
        int64_t ids[ROWS];
        for (int i = 0; i < ROWS; i++)
            ids[i] = 100 * step + 7 * i;
        td_samples(td_from(ids, TD_SHAPE(ROWS), TD_I64));
        td_tensor *x = td_randn(p->shape, 9, (uint64_t)step), *loss;
        td_requires_grad((td_tensors){ &x, 1 }, p->x_needs);
        {
            td_autocast region = td_autocast_begin(p->autocast);
            td_tensor *y = apply(w, first, td_dropout(x, 0.25, true));
            td_tensor *z = apply(w, second, y);
            loss = td_mean(td_add(td_mul(z, z), y), NULL, 0, false);
            put(s, z);
            td_autocast_end(&region);
        }
        td_train(m, false);            /* too late: the forward has seen true */
        td_step_set(50 + step);
        assert_int_equal(td_backward(loss), 0);
        td_train(m, true);
        put(s, td_grad(x));
        for (size_t i = 0; i < params.n; i++)
            put(s, td_grad(params.list[i]));
        for (size_t i = 0; i < buffers.n; i++)
            put(s, buffers.list[i]);
        td_zero_grad(params);
        put(s, td_dropout(td_ones(TD_SHAPE(ROWS, 8), TD_F32), 0.5, true));
    }
    td_module_free(m);
}

static void same_bits(const problem *p)
{
    static state plain, other;
    train(p, PLAIN, &plain);
    assert_true(plain.used > 1000);
    for (way w = CHECKPOINTED; w <= NESTED; w++) {
        train(p, w, &other);
        assert_int_equal(plain.used, other.used);
        for (size_t i = 0; i < plain.used; i++)
            if (plain.bytes[i] != other.bytes[i])
                fail_msg("way %d: byte %zu of %zu differs", (int)w, i, plain.used);
    }
}

static td_module *mlp(void)
{
    return td_nn_sequential(
        td_nn_sequential(td_nn_linear(WIDTH, 24, NULL), td_nn_gelu(), td_nn_dropout(0.5), td_nn_linear(24, WIDTH, NULL)),
        td_nn_sequential(td_nn_dropout(0.1), td_nn_linear(WIDTH, 12, NULL), td_nn_layer_norm(TD_SHAPE(12), NULL), td_nn_dropout(0.3),
                         td_nn_linear(12, WIDTH, NULL)));
}

static td_module *cnn(void)
{
    const td_nn_conv2d_opts pad = { .padding = 1 };
    return td_nn_sequential(
        td_nn_sequential(td_nn_conv2d(2, 4, 3, &pad), td_nn_batch_norm(4, NULL), td_nn_relu(), td_nn_conv2d(4, 3, 3, &pad)),
        td_nn_sequential(td_nn_batch_norm(3, NULL), td_nn_silu(), td_nn_dropout(0.2), td_nn_conv2d(3, 3, 3, &pad), td_nn_batch_norm(3, NULL)));
}

typedef struct { td_module base; td_tensor *weight, *bias; } again;

static td_tensor *again_forward(td_module *m, td_tensor *x)
{
    const again *a = (const again *)m;
    td_tensor *y = td_gelu(td_linear(x, a->weight, a->bias));
    return td_add(td_linear(y, a->weight, NULL), td_mul(y, a->bias));
}

/* The second half uses two of the first half's parameters, each twice. */
static td_module *tied(void)
{
    static const td_module_type type = { .kind = "again", .size = sizeof(again), .forward = again_forward };
    td_module *a = td_nn_sequential(td_nn_linear(WIDTH, WIDTH, NULL), td_nn_tanh(), td_nn_linear(WIDTH, WIDTH, NULL));
    again *b = (again *)td_module_new(&type);
    b->weight = td_module_parameter(&b->base, "weight", td_parameter_get(a, "0.weight"));
    b->bias = td_module_parameter(&b->base, "bias", td_parameter_get(a, "2.bias"));
    return td_nn_sequential(a, &b->base);
}

static void bits_of_an_mlp(void **unused)
{
    same_bits(&(problem){ mlp, TD_SHAPE(ROWS, WIDTH), true, TD_F32 });
    same_bits(&(problem){ mlp, TD_SHAPE(ROWS, WIDTH), false, TD_F32 });
}

static void bits_of_a_cnn_and_its_running_statistics(void **unused)
{
    same_bits(&(problem){ cnn, TD_SHAPE(ROWS, 2, 5, 4), true, TD_F32 });
}

static void bits_of_tied_weights(void **unused)
{
    same_bits(&(problem){ tied, TD_SHAPE(ROWS, WIDTH), true, TD_F32 });
}

static void bits_under_autocast(void **unused)
{
    same_bits(&(problem){ mlp, TD_SHAPE(ROWS, WIDTH), true, TD_BF16 });
    same_bits(&(problem){ cnn, TD_SHAPE(ROWS, 2, 5, 4), false, TD_F16 });
    same_bits(&(problem){ tied, TD_SHAPE(ROWS, WIDTH), false, TD_BF16 });
}

/* ---- several contributions, retained graphs, hooks --------------------------------------------------------------------------------------- */

static td_tensor *leaf(int64_t rows, uint64_t stream)
{
    td_tensor *x = td_randn(TD_SHAPE(rows, 5), 4, stream);
    td_requires_grad((td_tensors){ &x, 1 }, true);
    return x;
}

/* Reads its inputs several times each; the last is also the first. */
static td_tensor *tangle(td_tensor *const *in, size_t n, void *user)
{
    assert_int_equal(n, 3);
    td_tensor *a = td_mul(in[0], in[1]), *b = td_exp(td_add(a, in[2]));
    return td_add(td_mul(b, in[1]), td_mul(in[0], td_sub(b, a)));
}

static void grads_of_tangle(bool checkpointed, float *into)
{
    TD_SCOPE();
    td_tensor *x = leaf(3, 1), *y = leaf(3, 2), *u = td_tanh(x);
    td_tensor *before = td_mul(u, y), *in[] = { u, y, u };
    td_tensor *z = checkpointed ? td_checkpoint(tangle, NULL, 0, in, 3) : tangle(in, 3, NULL);
    td_tensor *loss = td_sum(td_add(td_mul(z, y), td_add(before, td_mul(u, u))), NULL, 0, false);
    assert_int_equal(td_backward_with(loss, &(td_backward_opts){ .retain_graph = true }), 0);
    assert_int_equal(td_backward(loss), 0);
    memcpy(into, td_data(td_grad(x)), 15 * sizeof(float));
    memcpy(into + 15, td_data(td_grad(y)), 15 * sizeof(float));
}

static void several_contributions_and_a_retained_graph(void **unused)
{
    float plain[30], other[30];
    grads_of_tangle(false, plain);
    grads_of_tangle(true, other);
    assert_memory_equal(plain, other, sizeof plain);
}

static int inner_hooks, outer_hooks, leaf_hooks, input_hooks;
static void count_inner(td_tensor *g, void *user) { inner_hooks++; }
static void count_outer(td_tensor *g, void *user) { outer_hooks++; }
static void count_leaf(td_tensor *g, void *user) { leaf_hooks++; }
static void count_input(td_tensor *g, void *user) { input_hooks++; }

static td_tensor *hooked(td_tensor *const *in, size_t n, void *user)
{
    td_tensor *w = user;
    td_hook(w, count_leaf, NULL);
    td_hook(in[0], count_input, NULL);
    td_tensor *y = td_exp(td_mul(in[0], w));
    td_hook(y, count_inner, NULL);
    return td_mul(y, y);
}

static void hooks_run_once(void **unused)
{
    TD_SCOPE();
    inner_hooks = outer_hooks = leaf_hooks = input_hooks = 0;
    td_tensor *w = leaf(2, 1), *x = td_tanh(leaf(2, 2));
    td_tensor *y = td_checkpoint(hooked, w, 0, &x, 1);
    td_hook(y, count_outer, NULL);
    assert_int_equal(inner_hooks, 0);
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
    assert_int_equal(inner_hooks, 1);
    assert_int_equal(outer_hooks, 1);
    assert_int_equal(leaf_hooks, 1);
    assert_int_equal(input_hooks, 1);
}

/* ---- the user's bytes ------------------------------------------------------------------------------------------------------------------------ */

typedef struct { double factor; bool seen[2]; } settings;

static td_tensor *scaled(td_tensor *const *in, size_t n, void *user)
{
    settings *s = user;
    s->seen[td_recomputing()] = true;
    return td_exp(td_scale(in[0], s->factor));
}

static void user_bytes_are_copied_or_lent(void **unused)
{
    TD_SCOPE();
    td_tensor *x = leaf(2, 3), *y;
    {
        settings s = { 0.5, { 0 } };
        y = td_checkpoint(scaled, &s, sizeof s, &x, 1);
        assert_true(s.seen[0]);
        memset(&s, 0xee, sizeof s);
    }
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
    const float *v = td_data(x), *g = td_data(td_grad(x));
    for (int i = 0; i < 10; i++)
        expect_near(g[i], 0.5 * exp(0.5 * (double)v[i]), 1e-6);
    settings lent = { 2, { 0 } };
    y = td_checkpoint(scaled, &lent, 0, &x, 1);
    assert_false(lent.seen[1]);
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
    assert_true(lent.seen[0] && lent.seen[1]);
    {
        TD_NO_GRAD();
        lent.seen[1] = false;
        y = td_checkpoint(scaled, &lent, 0, &x, 1);
        assert_false(td_needs_grad(y) || lent.seen[1]);
    }
    td_tensor *constant = td_ones(TD_SHAPE(2), TD_F32);
    assert_false(td_needs_grad(td_checkpoint(scaled, &lent, 0, &constant, 1)));
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------------------ */

enum { SIDE = 128, BLOCKS = 8, LAYERS = 6 };

static td_tensor *block(td_tensor *const *in, size_t n, void *user)
{
    td_tensor *y = in[0];
    for (int i = 0; i < LAYERS; i++) {
        TD_SCOPE();
        y = td_escape(td_exp(td_scale(y, -0.5)));
    }
    return y;
}

static int64_t peak_of_chain(bool checkpointed)
{
    TD_SCOPE();
    td_tensor *x = td_ones(TD_SHAPE(SIDE, SIDE), TD_F32);
    td_requires_grad((td_tensors){ &x, 1 }, true);
    td_tensor *loss;
    int64_t empty = td_memory().live_bytes;
    td_memory_reset_peak();
    {
        TD_SCOPE();
        td_tensor *y = x;
        for (int i = 0; i < BLOCKS; i++)
            y = checkpointed ? td_checkpoint(block, NULL, 0, &y, 1) : block(&y, 1, NULL);
        loss = td_escape(td_sum(y, NULL, 0, false));
    }
    assert_int_equal(td_backward(loss), 0);
    return (td_memory().peak_bytes - empty) / (SIDE * SIDE * (int64_t)sizeof(float));
}

static void a_deep_chain_needs_less_memory(void **unused)
{
    int64_t plain = peak_of_chain(false), less = peak_of_chain(true);
    assert_in_range(plain, BLOCKS * LAYERS, BLOCKS * LAYERS + 6);
    assert_in_range(less, BLOCKS, BLOCKS + LAYERS + 6);
}

/* ---- what is refused ------------------------------------------------------------------------------------------------------------------------- */

typedef struct { td_tensor *other, *escaped; int mode; } trouble;

static td_tensor *troubled(td_tensor *const *in, size_t n, void *user)
{
    trouble *t = user;
    switch (t->mode) {
    case 0:
        return td_recomputing() ? td_narrow(td_exp(in[0]), 0, 0, 1) : td_exp(in[0]);
    case 1:
        return td_recomputing() ? td_mul(td_exp(in[0]), t->other) : td_exp(in[0]);
    case 2:
        return td_recomputing() ? td_exp(in[0]) : td_mul(td_exp(in[0]), t->other);
    case 3:
        return td_mul(t->other, in[0]);
    case 4:
        t->escaped = td_keep(td_exp(in[0]));
        return td_mul(t->escaped, in[0]);
    case 5:
        return td_recomputing() ? td_dropout(td_exp(in[0]), 0.5, true) : td_exp(in[0]);
    case 6:
        td_backward(td_sum(td_exp(in[0]), NULL, 0, false));
        return td_exp(in[0]);
    default:
        return NULL;
    }
}

static void trouble_is(int mode, td_tensor *x, td_tensor *other, bool in_forward, const char *part)
{
    trouble t = { other, NULL, mode };
    td_tensor *y = td_checkpoint(troubled, &t, 0, &x, 1);
    td_tensor *loss = td_sum(t.escaped ? t.escaped : y, NULL, 0, false);
    if (!in_forward) {
        assert_int_equal(td_error_pending(), 0);
        assert_true(td_backward(loss) != 0);
    }
    if (!strstr(td_error_message(), part))
        fail_msg("mode %d: \"%s\" does not contain \"%s\"", mode, td_error_message(), part);
    td_error_clear();
    if (t.escaped)
        td_release(t.escaped);
    td_zero_grad((td_tensors){ (td_tensor *[]){ x }, 1 });
}

static void refusals(void **unused)
{
    TD_SCOPE();
    td_tensor *x = leaf(2, 1), *w = leaf(2, 2), *y;
    trouble_is(0, x, w, false, "did something else in its second run: it returned f32 of shape (1,5), after f32 of shape (2,5) in the first");
    trouble_is(1, x, w, false, "did something else in its second run: it uses a leaf, which it did not use in the first");
    trouble_is(2, x, w, false, "its result no longer depends on a parameter or input that it depended on in the first");
    trouble_is(3, x, td_exp(w), true, "td_checkpoint: the function reads the result of td_exp (called at ");
    trouble_is(4, x, w, false, "td_backward: a result of td_exp was made inside td_checkpoint and left it by another way than as its result");
    trouble_is(5, x, w, false, "it drew random numbers another number of times");
    trouble_is(6, x, w, true, "td_backward: called inside a function of td_checkpoint");
    trouble_is(7, x, w, true, "td_checkpoint: the function returned NULL");

    y = td_checkpoint(troubled, NULL, 4, &x, 1);
    assert_true(td_is_poisoned(y));
    expect_error(TD_ERR_ARGUMENT, "td_checkpoint: user, with a size, is NULL");
    td_tensor *none = NULL;
    td_checkpoint(tangle, NULL, 0, &none, 1);
    expect_error(TD_ERR_ARGUMENT, "td_checkpoint: input 0 is NULL");
    td_forward_checkpointed(NULL, x);
    expect_error(TD_ERR_ARGUMENT, "td_forward_checkpointed: the module is NULL");

    td_module *m = td_nn_linear(5, 2, NULL);
    td_tensor *loss = td_sum(td_forward_checkpointed(m, x), NULL, 0, false);
    td_fill(td_parameter_get(m, "bias"), 3);
    assert_int_equal(td_backward(loss), TD_ERR_STATE);
    if (!strstr(td_error_message(), "td_backward: parameter bias of shape (2) was changed since td_checkpoint's first run"))
        fail_msg("%s", td_error_message());
    td_error_clear();
    y = td_exp(x);
    loss = td_sum(td_forward_checkpointed(m, y), NULL, 0, false);
    {
        TD_NO_GRAD();
        td_fill(y, 1);
    }
    assert_int_equal(td_backward(loss), TD_ERR_STATE);
    if (!strstr(td_error_message(), "td_backward: td_checkpoint saved its input 0, shape (2,5), for the gradient, and it was changed in place"))
        fail_msg("%s", td_error_message());
    td_error_clear();
    loss = td_sum(td_forward_checkpointed(m, x), NULL, 0, false);
    assert_int_equal(td_backward(loss), 0);
    assert_int_equal(td_backward(loss), TD_ERR_STATE);
    if (!strstr(td_error_message(), "the graph was freed by an earlier td_backward"))
        fail_msg("%s", td_error_message());
    td_error_clear();
    td_module_free(m);
}

/* Gradients by finite differences, from a function that is a checkpoint. */
static td_tensor *checked(td_tensor *const *in, size_t n, void *user)
{
    return td_checkpoint(tangle, NULL, 0, (td_tensor *[]){ td_tanh(in[0]), in[1], in[0] }, 3);
}

static void gradcheck(void **unused)
{
    TD_SCOPE();
    td_tensor *in[] = { td_cast(td_randn(TD_SHAPE(3, 4), 1, 0), TD_F64), td_cast(td_randn(TD_SHAPE(3, 4), 1, 1), TD_F64) };
    assert_int_equal(td_gradcheck(checked, NULL, in, 2, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bits_of_an_mlp), TEST(bits_of_a_cnn_and_its_running_statistics), TEST(bits_of_tied_weights), TEST(bits_under_autocast),
        TEST(several_contributions_and_a_retained_graph), TEST(hooks_run_once), TEST(user_bytes_are_copied_or_lent),
        TEST(a_deep_chain_needs_less_memory), TEST(refusals), TEST(gradcheck),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
