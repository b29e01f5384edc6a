/* tests/optim/test_capture.c: a captured step against the step itself, bit for bit, over 20 steps whose learning rate, samples, counter and divisor
 * change each time; what cannot be captured is named; .verify finds what it must.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <nn_impl.h>
#include <optim_impl.h>
#include <quiet_test.h>
#include <tandem/capture.h>
#include <tandem/ops.h>
#include <tandem/scope.h>

static void expect_sentence(int code, const char *part)
{
    assert_int_equal(td_error_pending(), code);
    if (!strstr(td_error_message(), part))
        fail_msg("\"%s\" is not in \"%s\"", part, td_error_message());
    if (!strstr(td_error_message(), ".c:"))
        fail_msg("no line in \"%s\"", td_error_message());
    td_error_clear();
}

enum { STEPS = 20, ROWS = 6, CLASSES = 5, MOST = 64 };

static bool gpu(void)
{
    return td_device_default().kind == TD_CUDA;
}

typedef struct { td_module *net; td_optim *opt; td_ema *ema; bool images, half, clip, twice; td_tensor *seen, *norm; int calls; } job;

static td_module *mlp(void)
{
    return td_nn_sequential(td_nn_linear(12, 33, NULL), td_nn_gelu(), td_nn_layer_norm(TD_SHAPE(33), NULL), td_nn_dropout(0.3),
                            td_nn_linear(33, CLASSES, NULL));
}

static td_module *cnn(void)
{
    return td_nn_sequential(td_nn_conv2d(3, 8, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_batch_norm(8, NULL), td_nn_relu(),
                            td_nn_max_pool2d(2, NULL), td_nn_dropout(0.2), td_nn_conv2d(8, 4, 3, NULL), td_nn_batch_norm(4, NULL), td_nn_relu(),
                            td_nn_flatten(), td_nn_linear(16, CLASSES, NULL));
}

static job begin(bool images)
{
    td_seed(7);
    td_step_set(0);
    td_samples(NULL);
    job j = { .net = images ? cnn() : mlp(), .images = images };
    for (size_t i = 0; i < td_parameters(j.net).n; i++) {      /* numbers of initialisation are counted over the process        */
        TD_NO_GRAD();
        TD_SCOPE();
        td_tensor *p = td_parameters(j.net).list[i];
        td_assign(p, td_scale(td_randn(td_shape_of(p), 3, i), 0.3));
    }
    j.norm = td_keep(td_zeros(TD_SCALAR, TD_F64));
    j.opt = td_adamw_new(td_parameters(j.net), &(td_adamw_opts){ .lr = 3e-3, .weight_decay = 0.1 });
    return j;
}

static void end(job *j)
{
    td_samples(NULL);
    td_release(j->norm);
    td_ema_free(j->ema);
    td_optim_free(j->opt);
    td_module_free(j->net);
}

/* The step's whole input: a batch, its targets of which some do not count (so the divisor changes), its sample numbers. */
static td_tensors batch(const job *j, int s, td_tensor *into[3])
{
    int64_t target[ROWS], ids[ROWS];
    for (int i = 0; i < ROWS; i++) {
        target[i] = (s + i) % 4 == 0 ? -100 : (3 * i + s) % CLASSES;
        ids[i] = 1000 * s + 7 * i;
    }
    into[0] = td_randn(j->images ? TD_SHAPE(ROWS, 3, 8, 8) : TD_SHAPE(ROWS, 12), 5, (uint64_t)s);
    into[1] = td_from(target, TD_SHAPE(ROWS), TD_I64);
    into[2] = td_from(ids, TD_SHAPE(ROWS), TD_I64);
    return (td_tensors){ into, 3 };
}

static td_tensor *loss_of(job *j, td_tensors in)
{
    TD_AUTOCAST(j->half ? TD_BF16 : TD_F32);
    td_tensor *y = td_forward(j->net, in.list[0]);
    td_tensor *loss = td_cross_entropy(y, in.list[1], &(td_cross_entropy_opts){ .has_ignore_index = true, .ignore_index = -100 });
    return td_escape(gpu() ? td_sum(loss, NULL, 0, false) : loss);     /* a divisor that only the device knows has no place in a graph */
}

static td_tensor *step(td_tensors in, void *user)
{
    job *j = user;
    j->calls++;
    td_samples(in.list[2]);
    td_tensor *loss = loss_of(j, in);
    td_backward(loss);
    if (j->twice)                              /* a second micro-batch, weighed by its own divisor */
        td_backward(td_add(loss_of(j, in), td_scale(td_sum(td_mul(td_parameters(j->net).list[0], td_parameters(j->net).list[0]), NULL, 0, false), 1e-3)));
    if (j->clip && (j->images || gpu()))
        td_assign(j->norm, td_clip_grad_norm_async(j->opt, 0.5));
    else if (j->clip)
        td_clip_grad_norm(j->opt, 0.5);
    td_optim_step(j->opt);
    if (j->ema)
        td_ema_update(j->ema);
    if (j->seen)
        td_assign(j->seen, td_add(j->seen, loss));
    return loss;
}

/* ---- everything that a run leaves -------------------------------------------------------------------------------------------------- */

typedef struct { char bytes[MOST * 4096]; size_t n; float loss[STEPS + 1]; } outcome;
static outcome want, got;

static void put(outcome *o, td_tensor *x)
{
    size_t n = (size_t)td_numel(x) * td_dtype_size(td_dtype_of(x));
    assert_true(o->n + n <= sizeof o->bytes);
    assert_int_equal(td_copy_out(x, o->bytes + o->n, n), 0);
    o->n += n;
}

static void look(job *j, outcome *o)
{
    o->n = 0;
    for (size_t i = 0; i < td_parameters(j->net).n; i++)
        put(o, td_parameters(j->net).list[i]);
    for (size_t i = 0; i < td_buffers(j->net).n; i++)
        put(o, td_buffers(j->net).list[i]);
    if (j->seen)
        put(o, j->seen);
    put(o, j->norm);
    td__ema_parts parts;
    if (j->ema && td__ema_look(j->ema, &parts))
        for (size_t i = 0; i < parts.n; i++)
            put(o, parts.average[i]);
    for (int s = 0; s < j->opt->spans; s++)
        for (int m = 0; m < 2; m++) {
            const td_storage *moment = j->opt->span[s].moment[m];
            assert_true(moment && o->n + moment->bytes <= sizeof o->bytes);
            memcpy(o->bytes + o->n, moment->data, moment->bytes);
            o->n += moment->bytes;
        }
    int64_t counts[2] = { td_step_get(), td_optim_steps(j->opt) };
    memcpy(o->bytes + o->n, counts, sizeof counts);
    o->n += sizeof counts;
}

static void options(job *j, int which)
{
    j->clip = which & 1;
    j->twice = which & 2;
    j->half = which & 4;
    if (which & 8) {
        j->ema = td_ema_new(td_parameters(j->net), 0.9);
        j->seen = td_keep(td_zeros(TD_SCALAR, TD_F32));
    }
}

static void same_bits(void **state)
{
    (void)state;
    const int steps = gpu() ? 5 : STEPS;       /* emulated kernels take their time                                         */
    for (int images = 0; images < 2; images++)
        for (int which = 0; which < 16; which += gpu() ? 3 + 6 * (which == 3) : which < 4 ? 1 : 4) {
            TD_SCOPE();
            td_tensor *in[3];
            job a = begin(images);
            options(&a, which);
            for (int s = 0; s <= steps; s++) {
                TD_SCOPE();
                td_optim_set_lr(a.opt, -1, 3e-3 * td_schedule_cosine(s, 3, STEPS, 0.1));
                want.loss[s] = (float)td_item(step(batch(&a, s, in), &a));
            }
            look(&a, &want);
            end(&a);
            td_release(a.seen);
            job b = begin(images);
            options(&b, which);
            td_optim_set_lr(b.opt, -1, 3e-3 * td_schedule_cosine(0, 3, STEPS, 0.1));
            td_graph *g = td_capture(step, &b, batch(&b, 0, in), &(td_capture_opts){ .verify = which == 3 ? 4 : 0 });
            got.loss[0] = (float)td_item(td_graph_result(g));
            for (int s = 1; s <= steps; s++) {
                TD_SCOPE();
                td_optim_set_lr(b.opt, -1, 3e-3 * td_schedule_cosine(s, 3, STEPS, 0.1));
                got.loss[s] = (float)td_item(td_replay(g, batch(&b, s, in)));
            }
            assert_string_equal(td_error_pending() ? td_error_message() : "", "");
            assert_int_equal(td_graph_replays(g), steps);
            assert_int_equal(b.calls, which == 3 ? 1 + steps / 4 : 1);
            look(&b, &got);
            for (int s = 0; s <= steps; s++)
                if (memcmp(&want.loss[s], &got.loss[s], 4))
                    fail_msg("images %d, options %d: loss %d is %.9g, expected %.9g", images, which, s, got.loss[s], want.loss[s]);
            assert_int_equal(want.n, got.n);
            for (size_t i = 0; i < want.n; i++)
                if (want.bytes[i] != got.bytes[i])
                    fail_msg("images %d, options %d: byte %zu of %zu of the state differs", images, which, i, want.n);
            td_graph_free(g);
            end(&b);
            td_release(b.seen);
        }
}

/* ---- refusals -------------------------------------------------------------------------------------------------------------------------- */

static void wrong_inputs(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *in[3], *other[3];
    job j = begin(false);
    td_graph *g = td_capture(step, &j, batch(&j, 0, in), NULL);
    memcpy(other, in, sizeof in);
    other[0] = td_zeros(TD_SHAPE(ROWS + 1, 12), TD_F32);
    assert_true(td_is_poisoned(td_replay(g, (td_tensors){ other, 3 })));
    expect_sentence(TD_ERR_SHAPE, "input 0 is (7,12) f32 on ");
    other[0] = td_cast(in[0], TD_F64);
    assert_true(td_is_poisoned(td_replay(g, (td_tensors){ other, 3 })));
    expect_sentence(TD_ERR_SHAPE, "input 0 is (6,12) f64 on ");
    assert_true(td_is_poisoned(td_replay(g, (td_tensors){ in, 2 })));
    expect_sentence(TD_ERR_ARGUMENT, "2 inputs, expected the 3");
    assert_true(td_is_poisoned(td_replay(NULL, (td_tensors){ in, 3 })));
    expect_sentence(TD_ERR_ARGUMENT, "NULL");
    td_graph_free(td_capture(NULL, NULL, (td_tensors){ in, 3 }, NULL));
    expect_sentence(TD_ERR_ARGUMENT, "the step is NULL");
    other[0] = td_scale(td_parameters(j.net).list[0], 2);
    td_graph_free(td_capture(step, &j, (td_tensors){ other, 3 }, NULL));
    expect_sentence(TD_ERR_ARGUMENT, "asks for a gradient");
    /* the graph is as good as before */
    assert_false(td_is_poisoned(td_replay(g, (td_tensors){ in, 3 })));
    td_graph_free(g);
    end(&j);
}

enum { ITEM, DATA, COPY_OUT, COPY_IN, RATE, COUNTER, GRAD, HOOK, CHECKPOINT, CONSTANT, OUTSIDE, PRINT, CASES };
static td_tensor *outside;

static void hook(td_tensor *grad, void *user)
{
    (void)grad, (void)user;
}

static td_tensor *square(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    return td_mul(in[0], in[0]);
}

typedef struct { job *j; int what; } wrong;

static td_tensor *wrong_step(td_tensors in, void *user)
{
    wrong *w = user;
    job *j = w->j;
    float one[1] = { 1 };
    td_tensor *loss = loss_of(j, in), *p = td_parameters(j->net).list[1];
    switch (w->what) {
    case ITEM: assert_true(isfinite(td_item(loss))); break;
    case DATA: assert_non_null(td_data(loss)); break;
    case COPY_OUT: td_copy_out(loss, one, sizeof one); break;
    case COPY_IN: td_copy_in(td_zeros(TD_SHAPE(1), TD_F32), one, sizeof one); break;
    case RATE: td_optim_set_lr(j->opt, -1, 0.1); break;
    case COUNTER: loss = td_scale(loss, (double)td_step_get() + 1); break;
    case HOOK: td_hook(loss, hook, NULL); break;
    case CHECKPOINT: loss = td_checkpoint(square, NULL, 0, &loss, 1); break;
    case CONSTANT: td_assign(td_from(one, TD_SHAPE(1), TD_F32), td_full(TD_SHAPE(1), TD_F32, 2)); break;
    case OUTSIDE: loss = td_add(loss, outside); break;
    default: break;
    }
    (void)p;
    td_backward(loss);
    if (w->what == GRAD)
        assert_non_null(td_grad(p));
    td_optim_step(j->opt);
    if (w->what == PRINT)
        td_print(loss);
    return loss;
}

/* Each is named, with the line that did it, and the step has counted all the same. */
static void what_cannot_be(void **state)
{
    (void)state;
    static const char *const says[CASES] = { "td_item is called", "td_data is called", "td_copy_out is called", "td_copy_in is called", "td_optim_set_lr is",
                                             "td_step_get is called", "td_grad is called", "has a td_hook", "td_checkpoint is called",
                                             "made by td_from", "made before td_capture", "td_print is called" };
    for (int what = 0; what < CASES; what++) {
        if (what == DATA && gpu())             /* is an error there anyway                                                  */
            continue;
        TD_SCOPE();
        td_tensor *in[3];
        job j = begin(false);
        wrong w = { &j, what };
        outside = td_sum(td_parameters(j.net).list[0], NULL, 0, false);
        float before, after;
        before = (float)td_at(td_parameters(j.net).list[1], TD_SHAPE(3));
        td_graph *g = td_capture(wrong_step, &w, batch(&j, 0, in), NULL);
        expect_sentence(TD_ERR_STATE, says[what]);
        after = (float)td_at(td_parameters(j.net).list[1], TD_SHAPE(3));
        assert_true(before != after);
        assert_int_equal(td_optim_steps(j.opt), 1);
        assert_true(td_is_poisoned(td_replay(g, (td_tensors){ in, 3 })));
        td_error_clear();
        td_graph_free(g);
        end(&j);
    }
}

/* ---- verify ---------------------------------------------------------------------------------------------------------------------------- */

static double secret;

static td_tensor *secretive(td_tensors in, void *user)
{
    job *j = user;
    td_tensor *loss = td_scale(loss_of(j, in), secret);
    td_backward(loss);
    td_optim_step(j->opt);
    return loss;
}

static void verify_finds(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *in[3];
    job j = begin(true);
    secret = 1;
    td_graph *g = td_capture(secretive, &j, batch(&j, 0, in), &(td_capture_opts){ .verify = 2 });
    for (int s = 1; s < 4; s++)
        assert_false(td_is_poisoned(td_replay(g, batch(&j, s, in))));
    secret = 2;
    assert_true(td_is_poisoned(td_replay(g, batch(&j, 4, in))));
    expect_sentence(TD_ERR_STATE, "the result is not the same after replay 4");
    td_graph_free(g);
    g = td_capture(secretive, &j, batch(&j, 0, in), &(td_capture_opts){ .verify = -1 });
    expect_sentence(TD_ERR_ARGUMENT, "verify is -1");
    td_graph_free(g);
    end(&j);
}

static td_tensor *quiet(td_tensors in, void *user)             /* the difference is in the weights alone */
{
    job *j = user;
    td_tensor *loss = loss_of(j, in);
    td_backward(td_sum(td_add(loss, td_scale(td_sum(td_parameters(j->net).list[3], NULL, 0, false), secret)), NULL, 0, false));
    td_optim_step(j->opt);
    return loss;
}

static void verify_names(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *in[3];
    job j = begin(true);
    secret = 1;
    td_graph *g = td_capture(quiet, &j, batch(&j, 0, in), &(td_capture_opts){ .verify = 1 });
    assert_false(td_is_poisoned(td_replay(g, batch(&j, 1, in))));
    secret = 1.5;
    assert_true(td_is_poisoned(td_replay(g, batch(&j, 2, in))));
    expect_sentence(TD_ERR_STATE, "1.bias");
    td_graph_free(g);
    end(&j);
}

/* ---- what only a graph of a GPU cannot hold ---------------------------------------------------------------------------------------------- */

enum { LEFT, CLIP, HOST_OP, DIVISOR, FROM_HOST, GPU_CASES };

static td_tensor *half_step(td_tensors in, void *user)
{
    wrong *w = user;
    td_tensor *y = td_forward(w->j->net, in.list[0]), *loss = td_mean(td_mul(y, y), NULL, 0, false);
    if (w->what == DIVISOR)
        loss = td_cross_entropy(y, in.list[1], &(td_cross_entropy_opts){ .has_ignore_index = true, .ignore_index = -100 });
    if (w->what == HOST_OP)
        td_add(outside, outside);
    if (w->what == FROM_HOST)
        loss = td_add(loss, td_to(outside, td_device_default()));
    td_backward(loss);
    if (w->what == CLIP)
        td_clip_grad_norm(w->j->opt, 1);
    if (w->what != LEFT)
        td_optim_step(w->j->opt);
    return loss;
}

static void not_in_a_graph(void **state)
{
    (void)state;
    static const char *const says[GPU_CASES] = { "is left over at the end of the step", "the host reads memory of the GPU", "computes on cpu in a step on",
                                                 "the step cannot become a graph of the GPU", "host memory is copied to the GPU" };
    for (int what = 0; what < GPU_CASES && gpu(); what++) {
        TD_SCOPE();
        td_tensor *in[3];
        job j = begin(false);
        wrong w = { &j, what };
        outside = td_to(td_ones(TD_SCALAR, TD_F32), (td_device){ TD_CPU, 0 });
        td_graph *g = td_capture(half_step, &w, batch(&j, 0, in), NULL);
        if (!strstr(td_error_message(), says[what]))
            fail_msg("\"%s\" is not in \"%s\"", says[what], td_error_message());
        td_error_clear();
        assert_int_equal(td_optim_steps(j.opt), what != LEFT);         /* recording has moved nothing                            */
        td_graph_free(g);
        end(&j);
    }
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------------ */

static void what_goes(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *in[3];
    job j = begin(false);
    td_graph *g = td_capture(step, &j, batch(&j, 0, in), NULL);
    td_optim_free(j.opt);
    assert_true(td_is_poisoned(td_replay(g, batch(&j, 1, in))));
    expect_sentence(TD_ERR_STATE, "has been freed");
    j.opt = td_sgd_new(td_parameters(j.net), &(td_sgd_opts){ .lr = 0.1 });
    td_graph_free(g);
    /* a step that returns nothing, and one whose graph outlives the network */
    g = td_capture(step, &j, batch(&j, 1, in), NULL);
    td_requires_grad((td_tensors){ td_parameters(j.net).list, 1 }, false);
    assert_true(td_is_poisoned(td_replay(g, batch(&j, 2, in))));
    expect_sentence(TD_ERR_STATE, "was frozen since");
    end(&j);
    td_graph_free(g);
    td_graph_free(NULL);
}

static td_tensor *nothing(td_tensors in, void *user)
{
    td_assign(user, td_add(user, in.list[0]));
    return NULL;
}

static void without_result(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *sum = td_zeros(TD_SHAPE(3), TD_F32), *one = td_ones(TD_SHAPE(3), TD_F32);
    td_graph *g = td_capture(nothing, sum, (td_tensors){ &one, 1 }, &(td_capture_opts){ .verify = 2 });
    for (int i = 0; i < 4; i++)
        assert_null(td_replay(g, (td_tensors){ &one, 1 }));
    assert_true(td_at(sum, TD_SHAPE(2)) == 5);
    td_graph_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(same_bits), TEST(wrong_inputs), TEST(what_cannot_be), TEST(verify_finds), TEST(verify_names), TEST(what_goes), TEST(without_result),
        TEST(not_in_a_graph),
    };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
