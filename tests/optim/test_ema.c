/* tests/optim/test_ema.c: moving averages of weights against the recurrence in double, while an optimizer steps and leaves move; swapping
 * there and back; refusals. */
#include "optim_test.h"

enum { STEPS = 60 };
static const unsigned EVERY = (1u << PARAMS) - 1;

static void compare_to(const job *j, double want[PARAMS][MOST], double tolerance)
{
    for (int i = 0; i < PARAMS; i++) {
        double got[MOST];
        read_out(j->p[i], got);
        for (int64_t k = 0; k < size_of[i]; k++)
            if (!(fabs(got[k] - want[i][k]) <= tolerance))
                fail_msg("parameter %d, element %lld: %.17g, expected %.17g", i, (long long)k, got[k], want[i][k]);
    }
}

static void averages(void **state)
{
    (void)state;
    static double average[PARAMS][MOST], live[PARAMS][MOST];
    for (int f64 = 0; f64 < 2; f64++) {
        job j;
        begin_job(&j, f64 ? TD_F64 : TD_F32);
        double tolerance = f64 ? 1e-13 : 4e-6;         /* f32: 60 roundings of 6e-8 of weights below 3 */
        const double decay = 0.9;
        td_ema *ema = td_ema_new(all_of(&j), decay);   /* before the optimizer moves the weights into a flat */
        td_optim *opt = td_sgd_new(all_of(&j), &(td_sgd_opts){ .lr = 0.05f, .momentum = 0.5f });
        memcpy(average, j.w, sizeof average);
        for (int s = 0; s < STEPS; s++) {
            if (s == 30) {                             /* and now elsewhere */
                td_optim_free(opt);
                opt = td_adamw_new(all_of(&j), &(td_adamw_opts){ .lr = 0.05f });
            }
            backward(&j, EVERY);
            assert_int_equal(td_optim_step(opt), 0);
            assert_int_equal(td_ema_update(ema), 0);
            for (int i = 0; i < PARAMS; i++) {
                read_out(j.p[i], live[i]);
                for (int64_t k = 0; k < size_of[i]; k++)
                    average[i][k] = decay * average[i][k] + (1 - decay) * live[i][k];
            }
            if (s % 20 != 0)
                continue;
            assert_int_equal(td_ema_swap(ema), 0);     /* evaluate ... */
            compare_to(&j, average, tolerance);
            assert_int_equal(td_ema_swap(ema), 0);     /* ... and go on: the very bits */
            compare_to(&j, live, 0);
        }
        double apart = 0;
        for (int64_t k = 0; k < size_of[3]; k++)
            apart = fmax(apart, fabs(average[3][k] - live[3][k]));
        assert_true(apart > 0.01);
        assert_int_equal(td_ema_swap(ema), 0);
        td_ema_free(ema);                              /* the averages stay in the model */
        compare_to(&j, average, tolerance);
        td_optim_free(opt);
        end_job(&j);
    }
}

static void ends_of_decay(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_full(TD_SHAPE(3), TD_F32, 2);
    td_ema *never = td_ema_new((td_tensors){ &x, 1 }, 1), *at_once = td_ema_new((td_tensors){ &x, 1 }, 0);
    td_fill(x, 7);
    td_ema_update(never);
    td_ema_update(at_once);
    td_fill(x, 8);
    td_ema_swap(never);
    assert_true(td_at(x, TD_SHAPE(2)) == 2);
    td_ema_swap(never);
    td_ema_swap(at_once);
    assert_true(td_at(x, TD_SHAPE(2)) == 7);
    td__optim_free_all();                              /* what td_finish does */
    assert_null(td__emas());
}

static void a_graph_notices_a_swap(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *p = td_ones(TD_SHAPE(2), TD_F64);
    td_requires_grad((td_tensors){ &p, 1 }, true);
    td_ema *ema = td_ema_new((td_tensors){ &p, 1 }, 0.5);
    td_tensor *loss = td_sum(td_mul(p, p), NULL, 0, false);
    assert_int_equal(td_ema_swap(ema), 0);
    assert_int_equal(td_backward(loss), TD_ERR_STATE);
    assert_non_null(strstr(td_error_message(), "was changed in place"));
    td_error_clear();
    td_ema_free(ema);
}

/* A step while averages are in the weights' place would be lost, or spoil them. */
static void no_step_while_swapped(void **state)
{
    (void)state;
    TD_SCOPE();
    td_module *m = td_nn_linear(2, 1, NULL);
    td_tensor *other = td_ones(TD_SHAPE(2), TD_F32), *w = td_parameter_get(m, "weight");
    td_requires_grad((td_tensors){ &other, 1 }, true);
    td_optim *opt = td_sgd_new(td_parameters(m), &(td_sgd_opts){ .lr = 1 }), *apart = td_sgd_new((td_tensors){ &other, 1 }, NULL);
    td_ema *ema = td_ema_new(td_parameters(m), 0.5);
    td_ema_swap(ema);
    double before = td_at(w, TD_SHAPE(0, 1));
    td_backward(td_sum(td_forward(m, td_ones(TD_SHAPE(1, 2), TD_F32)), NULL, 0, false));
    assert_int_equal(td_optim_step(opt), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "td_optim_step: parameter \"weight\" of shape (1,2) holds its moving average (td_ema_swap); swap back before "
                               "training goes on");
    assert_true(td_at(w, TD_SHAPE(0, 1)) == before);
    td_backward(td_sum(other, NULL, 0, false));
    assert_int_equal(td_optim_step(apart), 0);             /* not its parameters */
    td_ema_swap(ema);
    assert_int_equal(td_optim_step(opt), 0);
    assert_true(td_at(w, TD_SHAPE(0, 1)) == before - 1);
    td_ema_free(ema);
    td_optim_free(opt);
    td_optim_free(apart);
    td_module_free(m);
}

static void swap_now(td_tensor *grad, void *ema)
{
    (void)grad;
    assert_int_equal(td_ema_swap(ema), TD_ERR_STATE);
}

static void wrong_use(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *a = td_ones(TD_SHAPE(2, 3), TD_F32), *b = td_zeros(TD_SHAPE(4), TD_F32), *list[] = { a, b, a }, *whole = td_arange(3, TD_I64);
    td_tensor *turned = td_transpose(a, 0, 1);
    td_ema *bad = td_ema_new((td_tensors){ list, 2 }, 1.5);
    expect_error(TD_ERR_ARGUMENT, "td_ema_new: decay is 1.5, expected 0 to 1");
    assert_int_equal(td_ema_update(bad), TD_ERR_ARGUMENT);
    assert_int_equal(td_ema_swap(bad), TD_ERR_ARGUMENT);
    td_ema_free(bad);
    td_ema_free(NULL);
    td_ema_new((td_tensors){ list, 2 }, NAN);
    expect_error(TD_ERR_ARGUMENT, "td_ema_new: decay is nan, expected 0 to 1");
    td_ema_new((td_tensors){ NULL, 0 }, 0.5);
    expect_error(TD_ERR_ARGUMENT, "td_ema_new: the list of weights is empty");
    td_ema_new((td_tensors){ list, 3 }, 0.5);
    expect_error(TD_ERR_ARGUMENT, "td_ema_new: weight 2 of 3, (2,3), is listed twice");
    td_ema_new((td_tensors){ &whole, 1 }, 0.5);
    expect_error(TD_ERR_DTYPE, "td_ema_new: weight 0 of 1 is (3) i64, expected contiguous f32 or f64");
    td_ema_new((td_tensors){ &turned, 1 }, 0.5);
    expect_error(TD_ERR_ARGUMENT, "td_ema_new: weight 0 of 1 is (3,2) f32 and not contiguous, expected contiguous f32 or f64");
    assert_int_equal(td_ema_update(NULL), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_ema_update: the td_ema is NULL");
    assert_int_equal(td_ema_swap(NULL), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_ema_swap: the td_ema is NULL");
    td_ema *ema = td_ema_new((td_tensors){ list, 2 }, 0.5);
    assert_int_equal(td_ema_swap(ema), 0);
    assert_int_equal(td_ema_update(ema), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "td_ema_update: averages and weights are swapped; call td_ema_swap first");
    assert_int_equal(td_ema_swap(ema), 0);
    td_fill(b, 3);
    td_add(a, b);                                      /* shapes do not fit: averages are never made of garbage */
    assert_int_equal(td_ema_update(ema), TD_ERR_SHAPE);
    assert_int_equal(td_ema_swap(ema), TD_ERR_SHAPE);
    td_error_clear();
    td_requires_grad((td_tensors){ &b, 1 }, true);
    td_tensor *y = td_scale(b, 2);
    td_hook(y, swap_now, ema);
    td_backward(td_sum(y, NULL, 0, false));
    expect_error(TD_ERR_STATE, "td_ema_swap: called while td_backward runs (from a hook or a gradient function); call it after td_backward");
    assert_true(td_at(b, TD_SHAPE(0)) == 3);
    td_ema_free(ema);
    assert_null(td__emas());
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(averages), TEST(ends_of_decay), TEST(a_graph_notices_a_swap), TEST(no_step_while_swapped), TEST(wrong_use) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
