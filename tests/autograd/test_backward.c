/* Backward: hand-computed gradients on graphs of every shape, accumulation, freed and retained graphs, refusals, failures on the way. */
#include "core_ops.h"

static void product_and_sum(void **state)
{
    (void)state;
    td_tensor *a = LEAF(1, 2, 3), *b = LEAF(4, 5, 6);
    assert_int_equal(backward(t_sum(t_mul(a, b))), 0);
    EXPECT(td_grad(a), 4, 5, 6);
    EXPECT(td_grad(b), 1, 2, 3);
}

static void diamond(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    td_tensor *y = t_times(x, 3);
    td_tensor *z = t_add(t_mul(y, y), t_times(y, 10));   /* 9x^2 + 30x */
    assert_int_equal(backward(t_sum(z)), 0);
    EXPECT(td_grad(x), 18 + 30, 36 + 30);
}

static void one_leaf_in_both_places(void **state)
{
    (void)state;
    td_tensor *x = LEAF(3, 5);
    assert_int_equal(backward(t_sum(t_mul(x, x))), 0);
    EXPECT(td_grad(x), 6, 10);
    assert_int_equal(backward(t_sum(t_add(x, x))), 0);
    zero_grad(x);
    assert_int_equal(backward(t_sum(t_add(x, x))), 0);
    EXPECT(td_grad(x), 2, 2);
    td_tensor *y = t_times(x, 1);              /* the same for a result: the passed gradient must not be shared by both */
    zero_grad(x);
    assert_int_equal(backward(t_sum(t_add(y, t_times(y, 2)))), 0);
    EXPECT(td_grad(x), 3, 3);
    zero_grad(x);
    y = t_times(x, 1);
    td_tensor *z = t_times(x, 1), *s = t_add(y, z);
    assert_int_equal(backward(t_sum(t_add(t_add(s, t_times(y, 4)), t_times(z, 7)))), 0);
    EXPECT(td_grad(x), 13, 13);
}

static void several_outputs(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2), *out[2];
    t_two(x, out);
    assert_int_equal(backward(t_sum(out[1])), 0);        /* nothing arrives at output 0 */
    EXPECT(td_grad(x), 3, 3);
    zero_grad(x);
    t_two(x, out);
    assert_int_equal(backward(t_sum(t_mul(out[0], out[1]))), 0);   /* 6x^2 */
    EXPECT(td_grad(x), 12, 24);
}

static void functions_that_cannot_add(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    assert_int_equal(backward(t_sum(t_times_no_add(x, 5))), 0);
    assert_int_equal(backward(t_sum(t_add(t_times_no_add(x, 7), t_times_no_add(x, 3)))), 0);
    EXPECT(td_grad(x), (5 + 10) / 2., (5 + 10) / 2.);    /* the mean of two micro-batches of weight 1 */
}

static void deep_before_wide(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1), *sum = t_times(x, 0);
    for (int i = 0; i < 60; i++) {
        td_tensor *y = x;
        for (int k = 0; k < i % 7; k++)
            y = t_times(y, 2);
        sum = t_add(y, sum);
    }
    double expected = 0;
    for (int i = 0; i < 60; i++)
        expected += pow(2, i % 7);
    assert_int_equal(backward(t_sum(sum)), 0);
    EXPECT(td_grad(x), expected);
}

static void loss_is_a_leaf(void **state)
{
    (void)state;
    td_tensor *x = LEAF(3);
    assert_int_equal(backward(x), 0);
    assert_int_equal(backward(x), 0);
    EXPECT(td_grad(x), 1);
}

static void only_what_asks_gets_gradients(void **state)
{
    (void)state;
    td_tensor *a = LEAF(1, 2), *b = LEAF(3, 4), *c = VEC(5, 6);
    td_tensor *loss = t_sum(t_mul(t_mul(a, b), c));
    td_requires_grad((td_tensors){ &b, 1 }, false);      /* also when frozen after the forward */
    assert_int_equal(backward(loss), 0);
    EXPECT(td_grad(a), 15, 24);
    assert_null(td_grad(b));
    assert_null(td_grad(c));
    assert_false(td_needs_grad(b));
}

static void second_backward(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2), *y = t_exp(x);
    td_tensor *loss = t_sum(y), *other = t_sum(t_times(y, 2));
    assert_int_equal(backward(loss), 0);
    assert_int_equal(backward(loss), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "the graph was freed by an earlier td_backward");
    assert_int_equal(backward(other), TD_ERR_STATE);     /* shares a part */
    expect_error(TD_ERR_STATE, "td_t_exp");
    EXPECT(td_grad(x), exp(1), exp(2));                  /* and has added nothing */
}

static void retained_graph(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    td_tensor *loss = t_sum(t_mul(x, x));
    td_backward_opts keep = { .retain_graph = true };
    assert_int_equal(td_backward_with(loss, &keep), 0);
    EXPECT(td_grad(x), 2, 4);
    zero_grad(x);
    assert_int_equal(td_backward_with(loss, &keep), 0);
    EXPECT(td_grad(x), 2, 4);
    assert_int_equal(td_backward_with(loss, NULL), 0);
    EXPECT(td_grad(x), 2, 4);
}

static void refusals(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    assert_int_equal(backward(t_exp(x)), TD_ERR_SHAPE);
    expect_error(TD_ERR_SHAPE, "the loss must have one element, got shape (2)");
    assert_int_equal(backward(td_zeros(TD_SHAPE(1), TD_I64)), TD_ERR_DTYPE);
    expect_error(TD_ERR_DTYPE, "f16 or bf16, got i64");
    assert_int_equal(backward(t_sum(VEC(1))), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "depends on nothing that needs a gradient");
    assert_int_equal(backward(NULL), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_backward: the tensor is NULL");
    td_tensor *loss = t_sum(x);
    td_tensor *bad = t_mul(x, VEC(1));
    assert_int_equal(backward(loss), TD_ERR_SHAPE);      /* refuses while an error is pending */
    expect_error(TD_ERR_SHAPE, "shapes differ");
    assert_null(td_grad(x));
    assert_int_equal(backward(bad), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "poisoned");
    assert_int_equal(backward(loss), 0);                 /* the graph is still whole */
    EXPECT(td_grad(x), 1, 1);
}

static void leaves_only(void **state)
{
    (void)state;
    td_tensor *y = t_exp(LEAF(1));
    td_requires_grad((td_tensors){ &y, 1 }, true);
    expect_error(TD_ERR_STATE, "is the result of td_t_exp and no leaf");
    assert_null(td_grad(y));
}

static int fails(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    (void)g, (void)s;
    return td_call_error(c, TD_ERR_UNSUPPORTED, "refuses to differentiate");
}
static void failure_on_the_way(void **state)
{
    (void)state;
    static const td_op op = { .name = "t_fails", .infer = same_as_input, .run = exp_run, .grad = fails };
    td_tensor *x = LEAF(1, 2), *z = LEAF(1, 2);
    assert_int_equal(backward(t_sum(x)), 0);
    td_tensor *loss = t_sum(t_add(td_apply(&op, &x, 1, NULL), z));
    assert_int_equal(backward(loss), TD_ERR_UNSUPPORTED);
    expect_error(TD_ERR_UNSUPPORTED, "td_t_fails: refuses to differentiate");
    assert_null(td_grad(x));
    assert_null(td_grad(z));
    assert_int_equal(td__leaf_of(x)->expected, 0);
    {
        TD_SCOPE();                                      /* also when the graph held the last reference to a leaf */
        td_tensor *lost, *in = LEAF(1, 2);
        {
            TD_SCOPE();
            lost = td_escape(t_sum(t_add(t_mul(LEAF(1, 2), VEC(1, 1)), td_apply(&op, &in, 1, NULL))));
        }
        assert_int_equal(backward(lost), TD_ERR_UNSUPPORTED);
        td_error_clear();
    }
    assert_int_equal(backward(t_sum(x)), 0);             /* and afterwards all is as if nothing had been */
    EXPECT(td_grad(x), 1, 1);
}

static td_tensor *inner_loss;
static int backward_inside(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    (void)s;
    assert_int_equal(td_backward(inner_loss), TD_ERR_STATE);
    return td_call_pass(c, 0, g[0]);
}
static void first_order_only(void **state)
{
    (void)state;
    static const td_op op = { .name = "t_inside", .infer = same_as_input, .run = exp_run, .grad = backward_inside };
    td_tensor *x = LEAF(1);
    inner_loss = t_sum(x);
    assert_int_equal(backward(td_apply(&op, &x, 1, NULL)), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "gradients are first-order");
    zero_grad(x);
    assert_int_equal(backward(inner_loss), 0);
    assert_int_equal(backward(t_sum(td_grad(x))), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "gradients are first-order");
}

static void gradients_are_born_in_place(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    assert_int_equal(backward(t_sum(x)), 0);
    td_tensor *g = td_grad(x);
    zero_grad(x);
    assert_null(td_grad(x));
    assert_int_equal(backward(t_sum(t_exp(x))), 0);
    assert_ptr_equal(td_grad(x), g);
    EXPECT(g, exp(1), exp(2));
}

/* dropout's counters: a forward begins at td_samples, after a backward, after a step */
static void samples_and_random_calls(void **state)
{
    (void)state;
    const td_tensor *ids;
    int64_t first;
    td__samples_now(8, &ids, &first);
    assert_null(ids);
    assert_int_equal(first, 0);
    td__world_set(&(td__world){ .rank = 3, .size = 4 });
    td__samples_now(8, &ids, &first);
    assert_int_equal(first, 24);
    td__world_set(&(td__world){ .rank = 0, .size = 1 });
    {
        TD_SCOPE();
        td_samples(td_arange(4, TD_I64));
    }
    td__samples_now(4, &ids, &first);
    assert_int_equal(((int64_t *)td__ptr(ids))[3], 3);   /* kept, though its scope is gone */
    assert_int_equal(td__random_call_index(), 0);
    assert_int_equal(td__random_call_index(), 1);
    assert_int_equal(backward(LEAF(1)), 0);
    assert_int_equal(td__random_call_index(), 0);
    td_step_set(td_step_get() + 1);
    assert_int_equal(td__random_call_index(), 0);
    td_samples(NULL);
    assert_int_equal(td__random_call_index(), 0);
    td_samples(VEC(1));
    expect_error(TD_ERR_ARGUMENT, "td_samples: expected contiguous i64");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(product_and_sum), TEST(diamond), TEST(one_leaf_in_both_places), TEST(several_outputs), TEST(functions_that_cannot_add),
        TEST(deep_before_wide), TEST(loss_is_a_leaf), TEST(only_what_asks_gets_gradients), TEST(second_backward), TEST(retained_graph),
        TEST(refusals), TEST(leaves_only), TEST(failure_on_the_way), TEST(first_order_only), TEST(gradients_are_born_in_place),
        TEST(samples_and_random_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
