/* Hooks: what they see, when, and that a change flows on. */
#include "core_ops.h"

static double seen[8];
static int calls;

static void note(td_tensor *grad, void *user)
{
    (void)user;
    seen[calls++] = V(grad)[0];
}
static void times_ten(td_tensor *grad, void *user)
{
    (void)user;
    assert_false(td__grad_enabled());
    for (int64_t i = 0; i < count(grad); i++)
        V(grad)[i] *= 10;
}

static void result_sees_the_complete_gradient_and_may_change_it(void **state)
{
    (void)state;
    calls = 0;
    td_tensor *x = LEAF(1, 2), *y = t_times(x, 2);
    td_hook(y, note, NULL);
    td_hook(y, times_ten, NULL);
    td_hook(y, note, NULL);
    assert_int_equal(backward(t_sum(t_add(t_times(y, 3), t_times(y, 4)))), 0);
    assert_int_equal(calls, 2);
    assert_true(seen[0] == 7 && seen[1] == 70);
    EXPECT(td_grad(x), 140, 140);
}

static void each_output_has_its_own(void **state)
{
    (void)state;
    calls = 0;
    td_tensor *x = LEAF(1), *out[2];
    t_two(x, out);
    td_hook(out[1], note, NULL);
    assert_int_equal(backward(t_sum(t_add(out[0], t_times(out[1], 5)))), 0);
    assert_int_equal(calls, 1);
    assert_true(seen[0] == 5);
}

static void leaf_sees_the_accumulated_gradient_once(void **state)
{
    (void)state;
    calls = 0;
    td_tensor *x = LEAF(1);
    td_hook(x, note, NULL);
    assert_int_equal(backward(t_sum(t_add(t_times(x, 3), t_times(x, 4)))), 0);
    assert_int_equal(calls, 1);
    assert_int_equal(backward(t_sum(t_times(x, 5))), 0);
    assert_int_equal(calls, 2);
    assert_true(seen[0] == 7 && seen[1] == 12);
}

static void later_micro_batches_of_equal_weight_look_ordinary(void **state)
{
    (void)state;
    calls = 0;
    td_tensor *x = LEAF(1, 1, 1, 1);
    for (int i = 0; i < 2; i++) {
        td_tensor *y = t_times(x, 2);
        td_hook(y, note, NULL);
        assert_int_equal(backward(t_loss(y, 4)), 0);
    }
    assert_true(seen[0] == 0.25 && seen[1] == 0.25);
}

static void ask_grad(td_tensor *grad, void *user)
{
    (void)grad;
    assert_null(td_grad(user));
}

static void refusals(void **state)
{
    (void)state;
    td_hook(VEC(1), note, NULL);
    expect_error(TD_ERR_STATE, "td_hook: the tensor of shape (1) needs no gradient");
    td_hook(NULL, note, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_hook: the tensor is NULL");
    td_tensor *x = LEAF(1);
    td_hook(x, NULL, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_hook: the function is NULL");
    td_hook(x, ask_grad, x);
    assert_int_equal(backward(t_exp(x)), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "td_grad: called while td_backward runs");
}

static void fail_here(td_tensor *grad, void *user)
{
    (void)user;
    td_copy_in(grad, NULL, 0);
}

/* A hook's error is the backward's, wherever the hook hangs and whatever the weight is. */
static void errors_of_hooks_are_returned(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1), *y;
    td_hook(x, fail_here, NULL);
    assert_int_equal(backward(t_times(x, 2)), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_copy_in: shape (1)");
    assert_int_equal(backward(x), TD_ERR_ARGUMENT);                       /* the loss is the leaf itself */
    expect_error(TD_ERR_ARGUMENT, "td_copy_in: shape (1)");
    assert_int_equal(td_backward_weighted(t_times(x, 2), td_zeros(TD_SCALAR, TD_F64)), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_copy_in: shape (1)");
    assert_null(td_grad(x));
    x = LEAF(1);
    y = t_times(x, 2);
    td_hook(y, fail_here, NULL);
    assert_int_equal(backward(y), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_copy_in: shape (1)");
    assert_null(td_grad(x));
}

static void freeze(td_tensor *grad, void *user)
{
    (void)grad;
    td_requires_grad((td_tensors){ (td_tensor *const[]){ user }, 1 }, false);
}

/* What a backward has planned does not change under it: a leaf frozen half way would keep half a gradient. */
static void leaves_do_not_change_while_backward_runs(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1), *y = t_times(x, 2);
    td_hook(y, freeze, x);
    assert_int_equal(backward(t_sum(t_add(y, x))), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "td_requires_grad: called while td_backward runs");
    assert_true(td_needs_grad(x));
    td_requires_grad((td_tensors){ NULL, 1 }, true);
    expect_error(TD_ERR_ARGUMENT, "td_requires_grad: the list of 1 tensors is NULL");
    td_zero_grad((td_tensors){ NULL, 2 });
    expect_error(TD_ERR_ARGUMENT, "td_zero_grad: the list of 2 tensors is NULL");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(result_sees_the_complete_gradient_and_may_change_it), TEST(each_output_has_its_own), TEST(leaf_sees_the_accumulated_gradient_once),
        TEST(later_micro_batches_of_equal_weight_look_ordinary), TEST(refusals), TEST(errors_of_hooks_are_returned),
        TEST(leaves_do_not_change_while_backward_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
