/* The one door: what goes in, what comes out, what is refused. */
#include "core_ops.h"

static void computes_and_scopes(void **state)
{
    (void)state;
    td_tensor *y;
    {
        TD_SCOPE();
        y = td_escape(t_mul(VEC(1, 2, 3), VEC(4, 5, 6)));
    }
    assert_int_equal(td_memory().live_tensors, 1);
    EXPECT(y, 4, 10, 18);
    assert_false(td_needs_grad(y));
}

static void poison_passes_without_a_new_error(void **state)
{
    (void)state;
    td_tensor *bad = t_mul(VEC(1, 2), VEC(1, 2, 3));
    assert_true(td_is_poisoned(bad));
    expect_error(TD_ERR_SHAPE, "td_t_mul: shapes differ");
    td_tensor *out[2];
    t_two(t_mul(bad, VEC(1)), out);
    assert_true(td_is_poisoned(out[0]) && td_is_poisoned(out[1]));
    assert_int_equal(td_error_pending(), 0);
}

static void pending_error_does_not_stop_forward(void **state)
{
    (void)state;
    t_mul(VEC(1, 2), VEC(1, 2, 3));
    EXPECT(t_mul(VEC(2), VEC(3)), 6);
    expect_error(TD_ERR_SHAPE, "shapes differ");
}

static void null_input(void **state)
{
    (void)state;
    assert_true(td_is_poisoned(t_mul(VEC(1), NULL)));
    expect_error(TD_ERR_ARGUMENT, "td_t_mul: input 1 is NULL");
}

/* bias: input 1 may be NULL */
static int bias_run(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *b = td_call_input(c, 1), *y = td_call_output(c, 0);
    assert_int_equal(td_call_inputs(c), 2);
    for (int64_t i = 0; i < count(y); i++)
        V(y)[i] = V(x)[i] + (b ? V(b)[i] : 0);
    return 0;
}
static int bias_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    assert_true(td_call_needs_grad(c, 0) == (s[0].into != NULL));
    assert_true(td_call_needs_grad(c, 1) == (s[1].into != NULL));
    assert_null(td_call_input(c, 0));          /* not saved */
    assert_int_equal(td_call_input_shape(c, 0).dim[0], 2);
    td_call_pass(c, 0, g[0]);
    return td_call_pass(c, 1, g[0]);
}
static const td_op op_bias = { .name = "t_bias", .infer = same_as_input, .run = bias_run, .grad = bias_grad, .optional = 1u << 1 };

static void optional_input(void **state)
{
    (void)state;
    td_tensor *w = LEAF(1, 2), *b = LEAF(10, 20);
    td_tensor *y = td_apply(&op_bias, (td_tensor *[]){ w, NULL }, 2, NULL);
    assert_int_equal(backward(t_sum(y)), 0);
    EXPECT(td_grad(w), 1, 1);
    y = td_apply(&op_bias, (td_tensor *[]){ VEC(1, 2), b }, 2, NULL);
    EXPECT(y, 11, 22);
    assert_int_equal(backward(t_sum(y)), 0);
    EXPECT(td_grad(b), 1, 1);
}

static void too_many_inputs(void **state)
{
    (void)state;
    td_tensor *in[TD_OP_MAX_INPUTS + 1];
    for (int i = 0; i <= TD_OP_MAX_INPUTS; i++)
        in[i] = VEC(1);
    assert_true(td_is_poisoned(td_apply(&op_mul, in, TD_OP_MAX_INPUTS + 1, NULL)));
    expect_error(TD_ERR_ARGUMENT, "33 inputs, at most 32");
}

static int no_infer(td_call *c)
{
    (void)c;
    return 0;
}
static int silent_failure(td_call *c)
{
    (void)c;
    return TD_ERR_IO;
}
static void broken_records(void **state)
{
    (void)state;
    static const td_op forgets = { .name = "t_forgets", .infer = no_infer };
    static const td_op silent = { .name = "t_silent", .infer = same_as_input, .run = silent_failure };
    td_tensor *x = VEC(1);
    assert_true(td_is_poisoned(td_apply(&forgets, &x, 1, NULL)));
    expect_error(TD_ERR_INTERNAL, "td_t_forgets: infer left output 0 undefined");
    assert_true(td_is_poisoned(td_apply(&silent, &x, 1, NULL)));
    expect_error(TD_ERR_IO, "td_t_silent");
}

static int negative_infer(td_call *c)
{
    return td_call_infer(c, 0, TD_SHAPE(2, -1), TD_F64);
}
static void bad_shape(void **state)
{
    (void)state;
    static const td_op op = { .name = "t_negative", .infer = negative_infer };
    td_tensor *x = VEC(1);
    assert_true(td_is_poisoned(td_apply(&op, &x, 1, NULL)));
    expect_error(TD_ERR_SHAPE, "td_t_negative");
}

static int make_infer(td_call *c)
{
    return td_call_infer(c, 0, TD_SHAPE(2), TD_F64);
}
static int make_run(td_call *c)
{
    assert_non_null(td_call_output(c, 0));
    V(td_call_output(c, 0))[0] = V(td_call_output(c, 0))[1] = 7;
    return 0;
}
static void no_inputs(void **state)
{
    (void)state;
    static const td_op op = { .name = "t_make", .infer = make_infer, .run = make_run };
    EXPECT(td_apply(&op, NULL, 0, NULL), 7, 7);
}

static void zero_rows(void **state)
{
    (void)state;
    td_tensor *x = leaf_of(td_zeros(TD_SHAPE(0), TD_F64));
    assert_int_equal(backward(t_sum(t_mul(t_exp(x), x))), 0);
    assert_int_equal(td_numel(td_grad(x)), 0);
}

static void integers_need_no_gradient(void **state)
{
    (void)state;
    td_tensor *i = td_zeros(TD_SHAPE(3), TD_I64);
    td_requires_grad((td_tensors){ &i, 1 }, true);
    expect_error(TD_ERR_DTYPE, "i64");
    assert_false(td_needs_grad(i));
}

static int with_index_infer(td_call *c)
{
    int code = same_as_input(c);
    return code ? code : td_call_infer(c, 1, TD_SHAPE(1), TD_I64);
}
static int with_index_run(td_call *c)
{
    *(int64_t *)td__ptr(td_call_output(c, 1)) = 5;
    return times_run(c);
}
static void integer_outputs_join_no_graph(void **state)
{
    (void)state;
    static const td_op op = { .name = "t_with_index", .infer = with_index_infer, .run = with_index_run, .grad = times_grad,
                              .attr_size = sizeof(double), .n_outputs = 2 };
    td_tensor *x = LEAF(1, 2), *out[2];
    double f = 3;
    td_apply_n(&op, &x, 1, &f, out);
    assert_true(td_needs_grad(out[0]));
    assert_false(td_needs_grad(out[1]));
    assert_int_equal(backward(t_sum(out[0])), 0);
    EXPECT(td_grad(x), 3, 3);
}

/* Temporaries that run makes through the public functions die with the call; its inner calls are not recorded. */
static int nested_run(td_call *c)
{
    td_tensor *t = t_mul(td_call_input(c, 0), td_call_input(c, 0));
    assert_false(td_needs_grad(t));
    memcpy(V(td_call_output(c, 0)), V(t), (size_t)count(t) * sizeof(double));
    td_tensor *made = td_full(TD_SCALAR, TD_F64, 42);
    td_call_save(c, made);
    return 0;
}
static int nested_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    assert_true(td_item(td_call_saved(c, 0)) == 42);
    td_tensor *t = t_times(g[0], 10);
    return td_call_pass(c, 0, t);
}
static void operations_inside_operations(void **state)
{
    (void)state;
    static const td_op op = { .name = "t_nested", .infer = same_as_input, .run = nested_run, .grad = nested_grad };
    td_tensor *x = LEAF(2, 3);
    td_tensor *plain = VEC(2, 3);
    int64_t before = td_memory().live_tensors;
    td_apply(&op, &plain, 1, NULL);
    assert_int_equal(td_memory().live_tensors, before + 1);
    td_tensor *y = td_apply(&op, &x, 1, NULL);
    assert_int_equal(td_memory().live_tensors, before + 3);      /* y, and what it saved */
    EXPECT(y, 4, 9);
    assert_int_equal(backward(t_sum(y)), 0);
    EXPECT(td_grad(x), 10, 10);
}

static void views_share_storage(void **state)
{
    (void)state;
    td_tensor *x = leaf_of(td_from((double[]){ 1, 2, 3, 4, 5, 6 }, TD_SHAPE(3, 2), TD_F64));
    td_tensor *r = t_row(x, 1), *rr = t_row(x, 2);
    assert_ptr_equal(r->storage, x->storage);
    EXPECT(r, 3, 4);
    assert_int_equal(backward(t_sum(t_mul(r, rr))), 0);
    EXPECT(td_grad(x), 0, 0, 5, 6, 3, 4);
}

static void no_grad_nests(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1);
    {
        TD_NO_GRAD();
        {
            TD_NO_GRAD();
            assert_false(td__grad_enabled());
        }
        assert_false(td_needs_grad(t_exp(x)));
    }
    assert_true(td_needs_grad(t_exp(x)));
    assert_int_equal(td__live_nodes(), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(computes_and_scopes), TEST(poison_passes_without_a_new_error), TEST(pending_error_does_not_stop_forward), TEST(null_input),
        TEST(optional_input), TEST(too_many_inputs), TEST(broken_records), TEST(bad_shape), TEST(no_inputs), TEST(zero_rows),
        TEST(integers_need_no_gradient), TEST(integer_outputs_join_no_graph), TEST(operations_inside_operations), TEST(views_share_storage),
        TEST(no_grad_nests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
