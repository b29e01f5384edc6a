/* Dynamic loss scaling: PyTorch's GradScaler, value for value; clipping between; several backwards, several optimizers; and a small network
 * trained in bf16 and f16 beside f32.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <sentence.h>
#include <nn_impl.h>
#include <optim_impl.h>
#include <tandem.h>

static void none_live(void)
{
    td__optim_free_all();
    td__nn_free_all();
    td__scope_close_root();
    assert_null(td__scalers());
    assert_int_equal(td__live_nodes(), 0);
    assert_int_equal(td_memory().live_tensors, 0);
}

static td_tensor *leaf(td_tensor *x)
{
    td_requires_grad((td_tensors){ &x, 1 }, true);
    return td_keep(x);
}

static td_optim *sgd(td_tensor *x, double lr)
{
    return td_sgd_new((td_tensors){ &x, 1 }, &(td_sgd_opts){ .lr = lr });
}

/* sum(p * a): its gradient is a */
static td_tensor *dot(td_tensor *p, td_tensor *a)
{
    return td_sum(td_mul(p, a), NULL, 0, false);
}

static double at(td_tensor *x, int i)
{
    return ((const float *)td_data(x))[i];
}

/* Made with torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=3) of PyTorch 2.15: two SGDs of rates 0.5 and 0.25 over one loss;
 * gradients (1, 2, 3 or Inf) and (4, 5). Of each iteration: is there an Inf, scale and growth tracker after update, p[0], q[1]. */
static const double traced[][5] = {
    { 0, 1024, 1, -0.5, -1.25 }, { 0, 1024, 2, -1, -2.5 },     { 0, 2048, 0, -1.5, -3.75 },  { 1, 1024, 0, -1.5, -5 },
    { 0, 1024, 1, -2, -6.25 },   { 0, 1024, 2, -2.5, -7.5 },   { 0, 2048, 0, -3, -8.75 },    { 0, 2048, 1, -3.5, -10 },
    { 1, 1024, 0, -3.5, -11.25 }, { 1, 512, 0, -3.5, -12.5 },  { 0, 512, 1, -4, -13.75 },    { 0, 512, 2, -4.5, -15 },
    { 0, 1024, 0, -5, -16.25 },  { 0, 1024, 1, -5.5, -17.5 },  { 0, 1024, 2, -6, -18.75 },   { 0, 2048, 0, -6.5, -20 },
};

static void as_pytorch(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *p = leaf(td_zeros(TD_SHAPE(3), TD_F32)), *q = leaf(td_zeros(TD_SHAPE(2), TD_F32));
        td_optim *op = sgd(p, 0.5), *oq = sgd(q, 0.25);
        td_scaler *s = td_scaler_new(&(td_scaler_opts){ .init_scale = 1024, .growth_interval = 3 });
        int64_t steps = 0;
        for (size_t i = 0; i < sizeof traced / sizeof *traced; i++) {
            TD_SCOPE();
            const double *want = traced[i];
            float a[] = { 1, 2, want[0] ? INFINITY : 3 }, b[] = { 4, 5 };
            td_tensor *loss = td_add(dot(p, td_from(a, TD_SHAPE(3), TD_F32)), dot(q, td_from(b, TD_SHAPE(2), TD_F32)));
            assert_int_equal(td_backward(td_scaler_scale(s, loss)), 0);
            assert_int_equal(td_scaler_unscale(s, op), 0);
            assert_true(at(td_grad(p), 0) == 1);
            assert_int_equal(td_scaler_step(s, op), 0);
            assert_int_equal(td_scaler_step(s, oq), 0);
            assert_int_equal(td_scaler_update(s), 0);
            steps += !want[0];
            assert_true(td_scaler_get(s) == want[1]);
            assert_int_equal(td_scaler_growth(s), (int64_t)want[2]);
            assert_true(at(p, 0) == want[3] && at(q, 1) == want[4]);
            assert_int_equal(td_optim_steps(op), steps);
            assert_int_equal(td_optim_steps(oq), (int64_t)i + 1);
            assert_null(td_grad(p));           /* consumed, stepped or not                                                 */
        }
        td_release(p);
        td_release(q);
    }
    none_live();
}

static void standard_options(void **state)
{
    (void)state;
    td_scaler *s = td_scaler_new(NULL);
    assert_true(td_scaler_get(s) == 65536);
    assert_int_equal(td_scaler_set(s, 8, 1999), 0);
    {
        TD_SCOPE();
        td_tensor *p = leaf(td_zeros(TD_SHAPE(2), TD_F64)), *h = td_full(TD_SCALAR, TD_F16, 40000);
        td_optim *opt = sgd(p, 1);
        assert_int_equal(td_dtype_of(td_scaler_scale(s, h)), TD_F32);    /* 16 bits would overflow                         */
        assert_true(td_item(td_scaler_scale(s, h)) == 320000);
        /* f64 gradients whose squares overflow are finite all the same */
        td_backward(td_scaler_scale(s, td_sum(td_scale(p, 1e200), NULL, 0, false)));
        assert_int_equal(td_scaler_step(s, opt), 0);
        assert_int_equal(td_scaler_update(s), 0);
        assert_true(td_scaler_get(s) == 16 && td_scaler_growth(s) == 0);
        assert_true(fabs(((const double *)td_data(p))[0] + 1e200) < 1e186);
        td_release(p);
    }
    td_scaler_free(s);
    s = td_scaler_new(&(td_scaler_opts){ .init_scale = 3e38, .growth_interval = 1 });
    {
        TD_SCOPE();
        td_tensor *p = leaf(td_zeros(TD_SHAPE(2), TD_F32));
        td_optim *opt = sgd(p, 1);
        td_scaler_step(s, opt);                /* no gradient at all: nothing found                                        */
        td_scaler_update(s);
        assert_true(td_scaler_get(s) == 3e38); /* twice that is no f32                                                     */
        td_release(p);
    }
    none_live();
}

/* Two micro-batches of 1 and 3 rows, clipped between unscale and step, are what they are without a scaler. */
static void accumulates_and_clips(void **state)
{
    (void)state;
    float result[2][4];
    double norm[2];
    for (int scaled = 0; scaled < 2; scaled++) {
        TD_SCOPE();
        td_tensor *p = leaf(td_ones(TD_SHAPE(4), TD_F32)), *x = td_randn(TD_SHAPE(4, 4), 5, 0), *y = td_randn(TD_SHAPE(4, 4), 6, 0);
        td_optim *opt = sgd(p, 0.5);
        td_scaler *s = td_scaler_new(&(td_scaler_opts){ .init_scale = 4096, .disabled = !scaled });
        for (int64_t low = 0; low < 2; low++) {
            int64_t rows = low ? 3 : 1;
            td_backward(td_scaler_scale(s, td_mse(td_mul(td_narrow(x, 0, low, rows), p), td_narrow(y, 0, low, rows))));
        }
        assert_int_equal(td_scaler_unscale(s, opt), 0);
        norm[scaled] = td_clip_grad_norm(opt, 0.25);
        assert_int_equal(td_scaler_step(s, opt), 0);
        assert_int_equal(td_scaler_update(s), 0);
        td_copy_out(p, result[scaled], sizeof result[scaled]);
        assert_true(td_scaler_get(s) == (scaled ? 4096 : 1));
        td_release(p);
    }
    assert_true(norm[0] > 0.3 && norm[0] == norm[1]);      /* powers of two change no bit                                  */
    assert_memory_equal(result[0], result[1], sizeof result[0]);
    none_live();
}

static void sentences(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *p = leaf(td_zeros(TD_SHAPE(2), TD_F32));
        td_optim *opt = sgd(p, 1);
        td_scaler *s = td_scaler_new(NULL);
        td_scaler_update(s);
        expect_error(TD_ERR_STATE, "td_scaler_update: no optimizer has been unscaled or stepped since the last td_scaler_update");
        td_scaler_unscale(s, opt);
        td_scaler_unscale(s, opt);
        expect_error(TD_ERR_STATE, "td_scaler_unscale: this optimizer has been unscaled since the last td_scaler_update");
        td_scaler_step(s, opt);
        td_scaler_step(s, opt);
        expect_error(TD_ERR_STATE, "td_scaler_step: this optimizer has been stepped since the last td_scaler_update");
        td_scaler_unscale(s, opt);
        expect_error(TD_ERR_STATE, "td_scaler_unscale: this optimizer has been stepped since the last td_scaler_update");
        td_scaler_scale(s, td_ones(TD_SCALAR, TD_I64));
        expect_error(TD_ERR_DTYPE, "td_scaler_scale: the loss is i64, expected a float");
        td_scaler_step(NULL, opt);
        expect_error(TD_ERR_ARGUMENT, "td_scaler_step: the td_scaler is NULL");
        td_scaler_set(s, INFINITY, 0);
        expect_error(TD_ERR_ARGUMENT, "td_scaler_set: scale is inf, expected more than 0 and finite in f32");
        td_scaler_new(&(td_scaler_opts){ .init_scale = -2 });
        expect_error(TD_ERR_ARGUMENT, "td_scaler_new: init_scale is -2, expected more than 0 and finite in f32");
        td_scaler_new(&(td_scaler_opts){ .growth_factor = 1 });
        expect_error(TD_ERR_ARGUMENT, "td_scaler_new: growth_factor is 1, expected more than 1");
        td_scaler_new(&(td_scaler_opts){ .backoff_factor = 1 });
        expect_error(TD_ERR_ARGUMENT, "td_scaler_new: backoff_factor is 1, expected more than 0 and less than 1");
        td_scaler *bad = td_scaler_new(&(td_scaler_opts){ .growth_interval = -2 });
        expect_error(TD_ERR_ARGUMENT, "td_scaler_new: growth_interval is -2, expected 1 or more");
        assert_int_equal(td_scaler_update(bad), TD_ERR_ARGUMENT);
        td_scaler_free(bad);
        td_scaler_free(NULL);
        td_release(p);
    }
    none_live();
}

/* ---- a small network -------------------------------------------------------------------------------------------------------------------- */

enum { ROWS = 64, STEPS = 400, LAST = 200 };

/* Mean loss of the last steps of a classifier of random clusters, and how many steps were left out. */
static double train(td_dtype dtype, int *skipped)
{
    td_module *net = td_nn_sequential(td_nn_linear(16, 48, NULL), td_nn_gelu(), td_nn_layer_norm(TD_SHAPE(48), NULL), td_nn_linear(48, 48, NULL),
                                      td_nn_gelu(), td_nn_linear(48, 5, NULL));
    td_optim *opt = td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 2e-3 });
    td_scaler *scaler = td_scaler_new(&(td_scaler_opts){ .init_scale = 0x1p24, .disabled = dtype != TD_F16 });
    td_tensor *centre = td_keep(td_scale(td_randn(TD_SHAPE(5, 16), 21, 0), 0.5));
    double sum = 0;
    for (int step = 0; step < STEPS; step++) {
        TD_SCOPE();
        int64_t label[ROWS];
        for (int i = 0; i < ROWS; i++)
            label[i] = (i * 7 + step) % 5;
        td_tensor *y = td_from(label, TD_SHAPE(ROWS), TD_I64);
        td_tensor *x = td_add(td_index_select(centre, 0, y), td_randn(TD_SHAPE(ROWS, 16), 22, (uint64_t)step));
        td_tensor *loss;
        {
            TD_AUTOCAST(dtype);
            loss = td_cross_entropy(td_forward(net, x), y, NULL);
        }
        assert_int_equal(td_dtype_of(loss), TD_F32);
        td_backward(td_scaler_scale(scaler, loss));
        td_scaler_step(scaler, opt);
        td_scaler_update(scaler);
        if (step >= STEPS - LAST)
            sum += td_item(loss) / LAST;
    }
    assert_int_equal(td_error_pending(), 0);
    *skipped = STEPS - (int)td_optim_steps(opt);
    td_release(centre);
    td_scaler_free(scaler);
    td_optim_free(opt);
    td_module_free(net);
    return sum;
}

static void follows_f32(void **state)
{
    (void)state;
    int skipped;
    double f32 = train(TD_F32, &skipped);
    assert_int_equal(skipped, 0);
    double bf16 = train(TD_BF16, &skipped);
    assert_int_equal(skipped, 0);
    double f16 = train(TD_F16, &skipped);
    print_message("loss %.5f, bf16 %.5f, f16 %.5f after %d steps left out\n", f32, bf16, f16, skipped);
    assert_true(f32 > 0.1 && f32 < 1.2);       /* of 1.609 at the start: it learns, and is not done                        */
    assert_true(fabs(bf16 - f32) < 0.01 * f32);
    assert_true(skipped > 0 && skipped < 30);  /* 2^24 is too much: the scale comes down                                   */
    assert_true(fabs(f16 - f32) < 0.01 * f32);
    none_live();
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = { cmocka_unit_test(as_pytorch), cmocka_unit_test(standard_options), cmocka_unit_test(accumulates_and_clips),
                                        cmocka_unit_test(sentences), cmocka_unit_test(follows_f32) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
