/* The weighted mean over micro-batches, by hand: sum(w g) / sum(w), whatever is read in between; stamps; weight 0. */
#include "core_ops.h"

/* A micro-batch: the mean over n elements of f*x, divisor n. Its gradient is f/n per element; unnormalised, f. */
static td_tensor *micro(td_tensor *x, double f, double n)
{
    return t_loss(t_times(x, f), n);
}

static void mean_of_stamped_micro_batches(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    double f[] = { 3, 5, 11 }, n[] = { 4, 10, 1 }, sum = 0, weights = 0;
    for (int i = 0; i < 3; i++) {
        TD_SCOPE();
        assert_int_equal(backward(micro(x, f[i], n[i])), 0);
        sum += n[i] * (f[i] / n[i]);
        weights += n[i];
    }
    EXPECT(td_grad(x), sum / weights, sum / weights);
}

static void reading_in_between_changes_nothing(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    assert_int_equal(backward(micro(x, 3, 4)), 0);
    EXPECT(td_grad(x), 3 / 4., 3 / 4.);
    assert_int_equal(backward(micro(x, 5, 10)), 0);
    EXPECT(td_grad(x), 8 / 14., 8 / 14.);
    EXPECT(td_grad(x), 8 / 14., 8 / 14.);
    assert_int_equal(backward(micro(x, 11, 1)), 0);
    EXPECT(td_grad(x), 19 / 15., 19 / 15.);
}

static void no_stamp_means_one(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1);
    assert_int_equal(backward(t_sum(t_times(x, 2))), 0);
    assert_int_equal(backward(t_sum(t_times(x, 8))), 0);
    EXPECT(td_grad(x), 5);
}

static void scaling_and_terms_keep_the_stamp(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1);
    td_tensor *loss = t_add(t_times(micro(x, 3, 4), 0.5), t_sum(t_times(x, 100)));   /* gradient 3/8 + 100, weight 4 */
    assert_true(td_item(loss->divisor) == 4);
    assert_null(t_exp(loss)->divisor);
    assert_int_equal(backward(loss), 0);
    assert_int_equal(backward(micro(x, 6, 2)), 0);                                   /* gradient 3, weight 2 */
    EXPECT(td_grad(x), (4 * (3 / 8. + 100) + 2 * 3) / 6);
}

static void two_stamps(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1);
    td_tensor *same = t_add(micro(x, 3, 4), micro(x, 5, 4));
    assert_true(td_item(same->divisor) == 4);
    assert_true(td_is_poisoned(t_add(micro(x, 3, 4), micro(x, 5, 6))));
    expect_error(TD_ERR_STATE, "td_backward_weighted");
}

static void weight_given(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1), *w = td_full(TD_SCALAR, TD_F32, 3);
    assert_int_equal(td_backward_weighted(t_sum(t_times(x, 2)), w), 0);
    assert_int_equal(td_backward_with(micro(x, 8, 4), &(td_backward_opts){ .weight = td_full(TD_SCALAR, TD_F64, 5) }), 0);
    EXPECT(td_grad(x), (3 * 2 + 5 * 2) / 8.);
    zero_grad(x);
    assert_int_equal(td_backward_weighted(t_sum(x), NULL), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "the weight is NULL");
    double bad[] = { -1, NAN, INFINITY };
    for (int i = 0; i < 3; i++) {
        assert_int_equal(td_backward_weighted(t_sum(x), td_full(TD_SCALAR, TD_F64, bad[i])), TD_ERR_ARGUMENT);
        expect_error(TD_ERR_ARGUMENT, "must be finite and not negative");
    }
    assert_int_equal(td_backward_weighted(t_sum(x), VEC(1, 2)), TD_ERR_SHAPE);
    expect_error(TD_ERR_SHAPE, "the weight must have one element, got shape (2)");
    assert_null(td_grad(x));
}

static int hook_calls;
static void count_hook(td_tensor *grad, void *user)
{
    (void)grad, (void)user;
    hook_calls++;
}

static void weight_zero_is_exactly_zero(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2), *nan = VEC(NAN, INFINITY);
    td_hook(x, count_hook, NULL);
    hook_calls = 0;
    assert_int_equal(backward(t_loss(t_mul(x, nan), 0)), 0);     /* alone: zeros, not NaN */
    EXPECT(td_grad(x), 0, 0);
    assert_true(td__leaf_of(x)->used);
    assert_int_equal(hook_calls, 1);
    assert_int_equal(backward(micro(x, 6, 2)), 0);
    EXPECT(td_grad(x), 3, 3);
    assert_int_equal(backward(t_loss(t_mul(x, nan), 0)), 0);     /* after others: nothing changes */
    EXPECT(td_grad(x), 3, 3);
    td_tensor *loss = t_loss(t_mul(x, nan), 0);
    assert_int_equal(backward(loss), 0);
    assert_int_equal(backward(loss), TD_ERR_STATE);              /* its graph is freed like any other */
    expect_error(TD_ERR_STATE, "freed by an earlier td_backward");
}

/* Leaves whose groups have seen other weights: each keeps its own mean. */
static void groups_with_different_units(void **state)
{
    (void)state;
    td_tensor *a = LEAF(1), *b = LEAF(1), *c = LEAF(1);
    assert_int_equal(backward(micro(a, 3, 4)), 0);
    assert_int_equal(backward(micro(b, 20, 10)), 0);
    assert_int_equal(backward(micro(t_add(t_add(a, b), c), 14, 7)), 0);
    EXPECT(td_grad(a), (3 + 14) / 11.);
    EXPECT(td_grad(b), (20 + 14) / 17.);
    EXPECT(td_grad(c), 14 / 7.);
}

static void stepping_begins_anew(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1);
    assert_int_equal(backward(micro(x, 3, 4)), 0);
    td__group *g = td__leaf_of(x)->group;
    assert_true(td__group_scale(g) == 1 && g->weight == 4);
    td__group_consume(g);
    assert_null(td_grad(x));
    assert_true(td__group_scale(g) == 0);
    assert_int_equal(backward(micro(x, 5, 2)), 0);
    EXPECT(td_grad(x), 2.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(mean_of_stamped_micro_batches), TEST(reading_in_between_changes_nothing), TEST(no_stamp_means_one),
        TEST(scaling_and_terms_keep_the_stamp), TEST(two_stamps), TEST(weight_given), TEST(weight_zero_is_exactly_zero),
        TEST(groups_with_different_units), TEST(stepping_begins_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
