/* The checker itself: right gradients pass, wrong ones are counted, bad inputs are refused. */
#include "core_ops.h"

static int wrong_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    (void)c;
    for (int64_t i = 0; i < count(g[0]); i++)
        put(&s[0], i, V(g[0])[i] * (i == 1 ? 2.0001 : 2));
    return 0;
}
static const td_op op_wrong = { .name = "t_wrong", .infer = same_as_input, .run = times_run, .grad = wrong_grad, .attr_size = sizeof(double) };

static td_tensor *right(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    return t_mul(t_exp(t_times(in[0], 0.5)), t_add(in[1], t_mul(in[0], in[0])));
}
static td_tensor *wrong(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    return td_apply(&op_wrong, in, 1, &(double){ 2 });
}
static td_tensor *missing(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    TD_NO_GRAD();
    return t_exp(in[0]);
}
static td_tensor *random_calls(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    return t_times(in[0], (double)(1 + td__random_call_index() + 10 * td__random_call_index()));
}
static td_tensor *changing(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    return (*(int *)user)++ ? t_sum(in[0]) : t_exp(in[0]);
}
static td_tensor *single(td_tensor *const *in, size_t n, void *user)
{
    (void)in, (void)n, (void)user;
    return td_zeros(TD_SHAPE(2), TD_F32);
}

static void passes(void **state)
{
    (void)state;
    td_tensor *in[] = { VEC(0.3, -1.2, 2), VEC(1, 2, -0.7) };
    assert_int_equal(td_gradcheck(right, NULL, in, 2, NULL), 0);
    assert_null(td_grad(in[0]));
    EXPECT(in[0], 0.3, -1.2, 2);
    assert_int_equal(td_gradcheck(random_calls, NULL, in, 1, NULL), 0);
}

/* dense: a contiguous copy of any strides */
static int dense_run(td_call *c)
{
    return td__copy(td_call_output(c, 0), td_call_input(c, 0), false);
}
static int dense_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    (void)s;
    return td_call_pass(c, 0, g[0]);
}
static const td_op op_dense = { .name = "t_dense", .infer = same_as_input, .run = dense_run, .grad = dense_grad };
static td_tensor *dense_square(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    td_tensor *x = td_apply(&op_dense, in, 1, NULL);
    return t_mul(t_mul(x, x), td_from((double[]){ 1, 10, 100, 1000, 1e4, 1e5 }, TD_SHAPE(3, 2), TD_F64));
}

static void strided_inputs(void **state)
{
    (void)state;
    td_tensor *whole = td_from((double[]){ 1, 2, 3, 4, 5, 6 }, TD_SHAPE(2, 3), TD_F64);
    td_tensor *turned = td__scoped_tensor(td__tensor_view(whole, TD_SHAPE(3, 2), (int64_t[]){ 1, 3 }, 0));
    assert_int_equal(td_gradcheck(dense_square, NULL, &turned, 1, NULL), 0);
    EXPECT(whole, 1, 2, 3, 4, 5, 6);
}

static void finds_one_wrong_element(void **state)
{
    (void)state;
    td_tensor *x = VEC(0.3, -1.2, 2);
    assert_int_equal(td_gradcheck(wrong, NULL, &x, 1, NULL), 1);
    assert_int_equal(td_gradcheck(wrong, NULL, &x, 1, &(td_gradcheck_opts){ .rtol = 1e-3 }), 0);
    assert_int_equal(td_gradcheck(missing, NULL, &x, 1, NULL), 3);
}

static void refusals(void **state)
{
    (void)state;
    td_tensor *f32 = td_zeros(TD_SHAPE(2), TD_F32), *x = VEC(1, 2), *y = t_exp(LEAF(1));
    assert_int_equal(td_gradcheck(right, NULL, &f32, 1, NULL), TD_ERR_DTYPE);
    expect_error(TD_ERR_DTYPE, "input 0, shape (2), must be f64, got f32");
    assert_int_equal(td_gradcheck(right, NULL, &y, 1, NULL), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "no leaf");
    assert_int_equal(td_gradcheck(single, NULL, &x, 1, NULL), TD_ERR_DTYPE);
    expect_error(TD_ERR_DTYPE, "must return f64, got f32");
    int calls = 0;
    assert_int_equal(td_gradcheck(changing, &calls, &x, 1, NULL), TD_ERR_SHAPE);
    expect_error(TD_ERR_SHAPE, "must return the same shape each time");
    td_tensor *wide = td__scoped_tensor(td__tensor_view(VEC(1), TD_SHAPE(4), (int64_t[]){ 0 }, 0));
    assert_int_equal(td_gradcheck(right, NULL, &wide, 1, NULL), TD_ERR_SHAPE);
    expect_error(TD_ERR_SHAPE, "repeats its elements along dimension 0");
}

static void no_elements(void **state)
{
    (void)state;
    td_tensor *none = td_zeros(TD_SHAPE(0), TD_F64);
    assert_int_equal(td_gradcheck(missing, NULL, &none, 1, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(passes), TEST(strided_inputs), TEST(finds_one_wrong_element), TEST(refusals), TEST(no_elements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
