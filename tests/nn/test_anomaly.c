/* TANDEM_ANOMALY: which sentence comes from which mistake, and where none may come. The sentences are written out by hand.
 */
#include <stdlib.h>
#include "nn_test.h"
#include <tape.h>

static int wary(void **state)
{
    setenv("TANDEM_ANOMALY", "1", 1);
    td__anomaly = -1;
    return begin_test(state);
}

static int calm(void **state)
{
    unsetenv("TANDEM_ANOMALY");
    td__anomaly = -1;
    return nothing_left(state);
}

static td_tensor *vec(int64_t n, const float *v, bool needs)
{
    td_tensor *x = td_from(v, TD_SHAPE(n), TD_F32);
    td_requires_grad((td_tensors){ &x, 1 }, needs);
    return x;
}
#define VEC(needs, ...) vec((int64_t)(sizeof((float[]){ __VA_ARGS__ }) / sizeof(float)), (float[]){ __VA_ARGS__ }, needs)

static td_tensor *total(td_tensor *x)
{
    return td_sum(x, NULL, 0, false);
}

static void forward(void **unused)
{
    TD_SCOPE();
    assert_true(td_is_poisoned(td_ln(VEC(false, 1, 2, -3, -4))));
    expect_error(TD_ERR_NOT_FINITE, "td_ln, forward, made NaN or Inf from finite inputs: 2 of 4 elements of its result, shape (4), are not "
                                    "finite, the first: [2] is NaN, where input 0 is -3");
    td_div(VEC(false, 1, 0), VEC(false, 2, 0));
    expect_error(TD_ERR_NOT_FINITE, "td_div, forward, made NaN or Inf from finite inputs: 1 of 2 elements of its result, shape (2), is not "
                                    "finite: [1] is NaN, where input 0 is 0 and input 1 is 0");
    td_exp(td_reshape(VEC(true, 1, 100, -100, 2), TD_SHAPE(2, 2)));
    expect_error(TD_ERR_NOT_FINITE, "td_exp, forward, made NaN or Inf from finite inputs: 1 of 4 elements of its result, shape (2,2), is not "
                                    "finite: [0,1] is Inf, where input 0 is 100");
    td_cast(VEC(false, 1, -70000), TD_F16);
    expect_error(TD_ERR_NOT_FINITE, "td_cast, forward, made NaN or Inf from finite inputs: 1 of 2 elements of its result, shape (2), is not "
                                    "finite: [1] is -Inf, where input 0 is -70000");
    td_sum(td_mul(VEC(false, 3e38f, 1), VEC(false, 1, 1)), NULL, 0, false);
    assert_int_equal(td_error_pending(), 0);
}

static void backward(void **unused)
{
    TD_SCOPE();
    td_tensor *x = VEC(true, 4, 0, 9), *loss = total(td_sqrt(x));
    assert_int_equal(td_backward(loss), TD_ERR_NOT_FINITE);
    expect_error(TD_ERR_NOT_FINITE, "td_sqrt, backward, made NaN or Inf from finite gradients: 1 of 3 elements of the gradient of input 0, shape "
                                    "(3), is not finite: [1] is Inf, where the incoming gradient 0 is 1 and output 0 is 0; it was called");
    assert_null(td_grad(x));
    /* adding to what is there: the second contribution is at fault */
    td_tensor *y = VEC(true, 0, 1);
    loss = total(td_add(td_sqrt(td_scale(y, 1)), td_mul(y, y)));
    assert_int_equal(td_backward(loss), TD_ERR_NOT_FINITE);
    assert_non_null(strstr(td_error_message(), "td_sqrt, backward"));
    td_error_clear();
}

/* Fails in the middle of a module, first in forward, then in backward. */
static td_tensor *bad_forward(td_module *m, td_tensor *x)
{
    return td_is_training(m) ? td_sqrt(td_relu(x)) : td_ln(x);
}

static void inside_a_module(void **unused)
{
    TD_SCOPE();
    static const td_module_type type = { .kind = "bad", .size = sizeof(td_module), .forward = bad_forward };
    td_module *m = td_nn_sequential(td_nn_flatten(), td_nn_sequential(td_module_new(&type), td_nn_relu()));
    td_tensor *x = td_reshape(VEC(true, -1, 4), TD_SHAPE(1, 2));
    td_train(m, false);
    td_forward(m, x);
    const char *got = td_error_message();
    if (!strstr(got, "td_ln, forward") || !strstr(got, "[0,0] is NaN, where input 0 is -1 (in module 1.0 (bad)) at "))
        fail_msg("%s", got);
    td_error_clear();
    td_train(m, true);
    td_backward(total(td_forward(m, x)));
    got = td_error_message();
    if (!strstr(got, "td_sqrt, backward") || !strstr(got, "it was called (in module 1.0 (bad)) at "))
        fail_msg("%s", got);
    td_error_clear();
    td_module_free(m);
}

static void sixteen_bits(void **unused)
{
    TD_SCOPE();
    td_tensor *x = td_cast(VEC(true, 300, 2), TD_F16);
    td_mul(x, x);
    expect_error(TD_ERR_NOT_FINITE, "td_mul, forward, made NaN or Inf from finite inputs: 1 of 2 elements of its result, shape (2), is not "
                                    "finite: [0] is Inf, where input 0 is 300 and input 1 is 300");
}

static void nobodys_fault(void **unused)
{
    TD_SCOPE();
    /* a mask of -Inf, added and by where; a border of -Inf; scaling by Inf on purpose */
    td_tensor *x = td_from((float[]){ 1, 2, 3, 4 }, TD_SHAPE(2, 2), TD_F32);
    td_requires_grad((td_tensors){ &x, 1 }, true);
    td_tensor *mask = td_reshape(VEC(false, 0, -INFINITY, 0, 0), TD_SHAPE(2, 2));
    td_tensor *p = td_softmax(td_add(x, mask), 1);
    assert_int_equal(td_backward(total(td_mul(p, p))), 0);
    assert_true(td_at(p, TD_SHAPE(0, 1)) == 0);
    td_tensor *hidden = td_where(td_eq(mask, td_zeros(TD_SHAPE(2, 2), TD_F32)), x, td_full(TD_SCALAR, TD_F32, -INFINITY));
    assert_int_equal(td_backward(total(td_softmax(hidden, 1))), 0);
    const int64_t one[] = { 0, 1 };
    td_tensor *wide = td_pad(x, one, one, 2, -INFINITY);
    assert_int_equal(td_backward(total(td_amax(wide, NULL, 0, false))), 0);
    td_scale(x, INFINITY);
    /* what passes through; an empty batch */
    td_tensor *nan = td_full(TD_SHAPE(2, 2), TD_F32, NAN);
    td_exp(td_mul(nan, x));
    td_tensor *none = td_narrow(x, 0, 0, 0), *loss = td_mse(none, td_zeros(TD_SHAPE(0, 2), TD_F32));
    assert_true(isnan(td_item(loss)));
    assert_int_equal(td_backward(td_scale(loss, 2)), 0);
    assert_string_equal(td_error_message(), "");
}

static void off_unless_asked(void **unused)
{
    TD_SCOPE();
    unsetenv("TANDEM_ANOMALY");
    td__anomaly = -1;
    td_ln(VEC(false, -1));
    assert_int_equal(td_error_pending(), 0);
    assert_int_equal(td__anomaly, 0);
    setenv("TANDEM_ANOMALY", "yes", 1);
    td__anomaly = -1;
    td_ln(VEC(false, -1));
    assert_int_equal(td_error_pending(), TD_ERR_ARGUMENT);
    assert_non_null(strstr(td_error_message(), "TANDEM_ANOMALY is \"yes\""));
    td_error_clear();
}

#define WARY(f) cmocka_unit_test_setup_teardown(f, wary, calm)
int main(void)
{
    const struct CMUnitTest tests[] = {
        WARY(forward), WARY(backward), WARY(inside_a_module), WARY(sixteen_bits), WARY(nobodys_fault), WARY(off_unless_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
