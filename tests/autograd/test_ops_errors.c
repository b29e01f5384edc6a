/* The sentences of misuse, word by word, and what the table cannot say: ties, overflow of integers, stamps, losses without rows.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>
#include <quiet_test.h>
#include <sentence.h>

static td_tensor *f(td_shape s)
{
    return td_ones(s, TD_F32);
}

static void arithmetic(void **state)
{
    (void)state;
    TD_SCOPE();
    expect_poisoned(td_add(f(TD_SHAPE(64, 128)), f(TD_SHAPE(64, 127))), TD_ERR_SHAPE,
           "td_add: shapes (64,128) and (64,127) do not broadcast at dimension 1: 128 against 127");
    expect_poisoned(td_mul(f(TD_SHAPE(2, 3, 4)), f(TD_SHAPE(2, 4))), TD_ERR_SHAPE,
           "td_mul: shapes (2,3,4) and (2,4) do not broadcast at dimension 1: 3 against 2");
    expect_poisoned(td_sub(f(TD_SHAPE(2)), td_ones(TD_SHAPE(2), TD_I64)), TD_ERR_DTYPE, "td_sub: dtypes f32 and i64 differ (td_cast converts)");
    expect_poisoned(td_div(td_ones(TD_SHAPE(2), TD_BOOL), td_ones(TD_SHAPE(2), TD_BOOL)), TD_ERR_DTYPE,
           "td_div: arithmetic is done in floats, i64 and i32, not bool (td_cast converts)");
    expect_poisoned(td_scale(td_ones(TD_SHAPE(2), TD_I32), 0.5), TD_ERR_ARGUMENT,
           "td_scale: 0.5 is not a whole number that i32 can take (td_cast to f32 or f64 first)");
    expect_poisoned(td_shift(td_ones(TD_SHAPE(2), TD_I64), (double)NAN), TD_ERR_ARGUMENT, "td_shift: nan is not a whole number that i64 can take");
    expect_poisoned(td_cast(f(TD_SHAPE(2)), (td_dtype)99), TD_ERR_DTYPE, "td_cast: 99 is not a dtype");
    expect_poisoned(td_add(f(TD_SHAPE(2)), NULL), TD_ERR_ARGUMENT, "td_add: input 1 is NULL");
    expect_poisoned(td_neg(NULL), TD_ERR_ARGUMENT, "td_neg: input 0 is NULL");
    expect_poisoned(td_relu(td_ones(TD_SHAPE(2), TD_I32)), TD_ERR_DTYPE, "td_relu: the input is i32; it must be a float (td_cast converts)");
}

static void reductions(void **state)
{
    (void)state;
    TD_SCOPE();
    int twice[] = { 0, -2 }, three = 3;
    expect_poisoned(td_sum(f(TD_SHAPE(2, 3)), &three, 1, false), TD_ERR_SHAPE, "td_sum: axis 3 is outside the 2 dimensions of shape (2,3)");
    expect_poisoned(td_mean(f(TD_SHAPE(2, 3)), twice, 2, false), TD_ERR_ARGUMENT, "td_mean: axis 0 is named twice");
    expect_poisoned(td_mean(td_ones(TD_SHAPE(2), TD_I64), NULL, 0, false), TD_ERR_DTYPE, "td_mean: the input is i64; it must be a float");
    expect_poisoned(td_amax(f(TD_SHAPE(3, 0)), (int[]){ 1 }, 1, false), TD_ERR_SHAPE,
           "td_amax: shape (3,0) has no elements along the reduced axes, so none is the largest or smallest");
    expect_poisoned(td_argmax(f(TD_SHAPE(0)), 0), TD_ERR_SHAPE, "td_argmax: shape (0) has no elements along the reduced axes");
    expect_poisoned(td_argmax(f(TD_SHAPE(2)), 1), TD_ERR_SHAPE, "td_argmax: axis 1 is outside the 1 dimensions of shape (2)");
    expect_poisoned(td_sum(f(TD_SHAPE(2)), NULL, 1, false), TD_ERR_ARGUMENT, "td_sum: axes is NULL");
    expect_poisoned(td_sum(f(TD_SHAPE(2)), twice, -1, false), TD_ERR_ARGUMENT, "td_sum: n_axes is not between 0 and 8");
}

/* A batch of 0 rows is as wide as any other: what -1 stands for does not depend on the number of rows. */
static void rows_of_none(void **state)
{
    (void)state;
    TD_SCOPE();
    for (int64_t rows = 0; rows < 3; rows++) {
        td_tensor *x = td_ones(TD_SHAPE(rows, 4, 7), TD_F32);
        td_tensor *y[] = { td_reshape(x, TD_SHAPE(rows, -1)), td_reshape(x, TD_SHAPE(-1, 28)), td_flatten(x, 1) };
        for (size_t i = 0; i < sizeof y / sizeof *y; i++) {
            assert_int_equal(td_shape_of(y[i]).ndim, 2);
            assert_int_equal(td_dim(y[i], 0), rows);
            assert_int_equal(td_dim(y[i], 1), 28);
        }
    }
    assert_int_equal(td_error_pending(), 0);
}

static void views(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = f(TD_SHAPE(2, 3));
    expect_poisoned(td_reshape(x, TD_SHAPE(4, 2)), TD_ERR_SHAPE, "td_reshape: shape (2,3) has 6 elements, shape (4,2) has 8");
    expect_poisoned(td_reshape(x, TD_SHAPE(4, -1)), TD_ERR_SHAPE, "td_reshape: the 6 elements of shape (2,3) do not divide into shape (4,-1)");
    expect_poisoned(td_reshape(x, TD_SHAPE(-1, -1)), TD_ERR_SHAPE, "td_reshape: shape (-1,-1): only one dimension may be -1");
    expect_poisoned(td_reshape(x, TD_SHAPE(-3, 2)), TD_ERR_SHAPE, "td_reshape: shape (-3,2): a dimension is negative");
    const int64_t huge = (int64_t)1 << 62;
    expect_poisoned(td_reshape(f(TD_SHAPE(0)), TD_SHAPE(0, huge, huge)), TD_ERR_SHAPE,
           "td_reshape: shape (0,4611686018427387904,4611686018427387904) has more elements than can be addressed");
    expect_poisoned(td_reshape(f(TD_SHAPE(0)), TD_SHAPE(-1, huge, huge)), TD_ERR_SHAPE, "td_reshape: shape (0,");
    expect_poisoned(td_reshape(f(TD_SHAPE(0, 3)), TD_SHAPE(0, 2, -1)), TD_ERR_SHAPE, "td_reshape: the 0 elements of shape (0,3) do not divide into");
    expect_poisoned(td_reshape(x, TD_SHAPE(0, -1)), TD_ERR_SHAPE, "td_reshape: the 6 elements of shape (2,3) do not divide into shape (0,-1)");
    expect_poisoned(td_flatten(NULL, 0), TD_ERR_ARGUMENT, "td_flatten: the tensor is NULL");
    expect_poisoned(td_transpose(NULL, 0, 1), TD_ERR_ARGUMENT, "td_transpose: the tensor is NULL");
    expect_poisoned(td_dropout(NULL, 0.5, false), TD_ERR_ARGUMENT, "td_dropout: input 0 is NULL");
    expect_poisoned(td_flatten(x, 2), TD_ERR_SHAPE, "td_flatten: dimension 2 is outside -2 to 1");
    expect_poisoned(td_permute(x, (int[]){ 0, 0 }, 2), TD_ERR_ARGUMENT, "td_permute: dimension 0 is named twice");
    expect_poisoned(td_permute(x, (int[]){ 0 }, 1), TD_ERR_ARGUMENT, "td_permute: 1 dimensions are named, shape (2,3) has 2");
    expect_poisoned(td_permute(x, (int[]){ 0, 2 }, 2), TD_ERR_ARGUMENT, "td_permute: dimension 2 is outside shape (2,3)");
    expect_poisoned(td_transpose(x, 0, 2), TD_ERR_SHAPE, "td_transpose: dimension 2 is outside -2 to 1");
    expect_poisoned(td_expand(x, TD_SHAPE(4, 3)), TD_ERR_SHAPE,
           "td_expand: shape (2,3) does not expand to (4,3): only dimensions of size 1 repeat, and new ones come first");
    expect_poisoned(td_narrow(x, 1, 2, 2), TD_ERR_ARGUMENT, "td_narrow: start 2, length 2 is outside dimension 1 of shape (2,3)");
    expect_poisoned(td_narrow(x, 1, INT64_MAX, 1), TD_ERR_ARGUMENT, "td_narrow: start 9223372036854775807, length 1 is outside dimension 1 of shape (2,3)");
    expect_poisoned(td_softmax(x, 2), TD_ERR_SHAPE, "td_softmax: dimension 2 is outside -2 to 1");
    expect_poisoned(td_softmax(f(TD_SCALAR), 0), TD_ERR_SHAPE, "td_softmax: a tensor of shape () has no dimension 0");
}

static void products(void **state)
{
    (void)state;
    TD_SCOPE();
    expect_poisoned(td_matmul(f(TD_SHAPE(2, 3)), f(TD_SHAPE(4, 5))), TD_ERR_SHAPE, "td_matmul: shapes (2,3) and (4,5) do not fit: the inner sizes are 3 and 4");
    expect_poisoned(td_matmul(f(TD_SCALAR), f(TD_SHAPE(4, 5))), TD_ERR_SHAPE, "td_matmul: shapes () and (4,5): a scalar is no matrix");
    expect_poisoned(td_matmul(f(TD_SHAPE(2, 2, 3)), f(TD_SHAPE(3, 3, 5))), TD_ERR_SHAPE,
           "td_matmul: shapes (2,2,3) and (3,3,5): their batch dimensions do not broadcast at dimension 0");
    expect_poisoned(td_linear(f(TD_SHAPE(64, 783)), f(TD_SHAPE(10, 784)), NULL), TD_ERR_SHAPE,
           "td_linear: input (64,783) has 783 features, weight (10,784) takes 784");
    expect_poisoned(td_linear(f(TD_SHAPE(4, 3)), f(TD_SHAPE(2, 3)), f(TD_SHAPE(3))), TD_ERR_SHAPE, "td_linear: bias (3) does not fit weight (2,3): expected (2)");
    expect_poisoned(td_linear(f(TD_SHAPE(4, 3)), f(TD_SHAPE(3)), NULL), TD_ERR_SHAPE,
           "td_linear: input (4,3) and weight (3) do not fit: expected (…,I) and (O,I)");
    expect_poisoned(td_linear(f(TD_SHAPE(4, 3)), td_ones(TD_SHAPE(2, 3), TD_F64), NULL), TD_ERR_DTYPE, "td_linear: dtypes f32 and f64 differ");
}

static void losses(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = f(TD_SHAPE(4, 10));
    int64_t class[] = { 0, 9, 3, 12 };
    td_tensor *target = td_from(class, TD_SHAPE(4), TD_I64);
    expect_poisoned(td_cross_entropy(x, target, NULL), TD_ERR_ARGUMENT, "td_cross_entropy: target of row 3 is 12; logits (4,10) have classes 0 to 9");
    class[1] = -1, class[3] = -100;
    target = td_from(class, TD_SHAPE(4), TD_I64);
    expect_poisoned(td_cross_entropy(x, target, &(td_cross_entropy_opts){ .has_ignore_index = true, .ignore_index = -100 }), TD_ERR_ARGUMENT,
           "td_cross_entropy: target of row 1 is -1; logits (4,10) have classes 0 to 9, or ignore_index -100");
    expect_poisoned(td_cross_entropy(x, td_zeros(TD_SHAPE(5), TD_I64), NULL), TD_ERR_SHAPE,
           "td_cross_entropy: logits (4,10) and target (5) do not fit: expected (N,C) and (N)");
    expect_poisoned(td_cross_entropy(x, f(TD_SHAPE(4)), NULL), TD_ERR_DTYPE, "td_cross_entropy: target is f32; class numbers are i64 (td_cast converts)");
    expect_poisoned(td_cross_entropy(x, td_zeros(TD_SHAPE(4), TD_I64), &(td_cross_entropy_opts){ .label_smoothing = 1.5f }), TD_ERR_ARGUMENT,
           "td_cross_entropy: label_smoothing is 1.5; it must be in [0,1)");
    expect_poisoned(td_mse(x, f(TD_SHAPE(4, 9))), TD_ERR_SHAPE, "td_mse: input (4,10) and target (4,9) must have the same shape");
}

/* ---- values -------------------------------------------------------------------------------------------------------------------- */

static void integers(void **state)
{
    (void)state;
    TD_SCOPE();
    const int64_t a[] = { INT64_MAX, INT64_MIN, INT64_MIN, INT64_MIN, 7, -7, INT64_MAX }, b[] = { 1, 1, -1, 0, -2, 2, 3 };
    const int64_t sum[] = { INT64_MIN, INT64_MIN + 1, INT64_MAX, INT64_MIN, 5, -5, INT64_MIN + 2 };
    const int64_t difference[] = { INT64_MAX - 1, INT64_MAX, INT64_MIN + 1, INT64_MIN, 9, -9, INT64_MAX - 3 };
    const int64_t quotient[] = { INT64_MAX, INT64_MIN, INT64_MIN, 0, -3, -3, INT64_MAX / 3 };
    const int64_t product[] = { INT64_MAX, INT64_MIN, INT64_MIN, 0, -14, -14, INT64_MAX - 2 };
    int64_t got[7];
    td_tensor *x = td_from(a, TD_SHAPE(7), TD_I64), *y = td_from(b, TD_SHAPE(7), TD_I64);
    td_copy_out(td_add(x, y), got, sizeof got);
    assert_memory_equal(got, sum, sizeof got);
    td_copy_out(td_sub(x, y), got, sizeof got);
    assert_memory_equal(got, difference, sizeof got);
    td_copy_out(td_mul(x, y), got, sizeof got);
    assert_memory_equal(got, product, sizeof got);
    td_copy_out(td_div(x, y), got, sizeof got);
    assert_memory_equal(got, quotient, sizeof got);
    const int32_t c[] = { INT32_MIN, INT32_MAX, 5 };
    int32_t got32[3];
    td_tensor *z = td_from(c, TD_SHAPE(3), TD_I32);
    td_copy_out(td_div(z, td_full(TD_SHAPE(1), TD_I32, -1)), got32, sizeof got32);
    assert_memory_equal(got32, ((int32_t[]){ INT32_MIN, -INT32_MAX, -5 }), sizeof got32);
    td_copy_out(td_neg(z), got32, sizeof got32);
    assert_memory_equal(got32, ((int32_t[]){ INT32_MIN, -INT32_MAX, -5 }), sizeof got32);
    td_copy_out(td_sum(z, NULL, 0, false), got32, sizeof *got32);
    assert_int_equal(got32[0], 4);
    const int64_t odd = ((int64_t)1 << 60) + 1;                 /* scale keeps i64 exact beyond 2^53                       */
    assert_true(td_copy_out(td_scale(td_from(&odd, TD_SHAPE(1), TD_I64), 3), got, sizeof *got) == 0 && got[0] == 3 * odd);
}

static void not_a_number(void **state)
{
    (void)state;
    TD_SCOPE();
    const float v[] = { 1, NAN, 3, -INFINITY, 2, 5, 5, 4, -0.0f };
    td_tensor *x = td_from(v, TD_SHAPE(3, 3), TD_F32);
    td_tensor *top = td_amax(x, (int[]){ 1 }, 1, false), *low = td_amin(x, (int[]){ 0 }, 1, false), *first = td_argmax(x, 1);
    assert_true(isnan(td_at(top, TD_SHAPE(0))) && td_at(top, TD_SHAPE(1)) == 5 && td_at(top, TD_SHAPE(2)) == 5);
    assert_true(td_at(low, TD_SHAPE(0)) == -INFINITY && isnan(td_at(low, TD_SHAPE(1))) && td_at(low, TD_SHAPE(2)) == 0);
    assert_true(td_at(first, TD_SHAPE(0)) == 1 && td_at(first, TD_SHAPE(1)) == 2 && td_at(first, TD_SHAPE(2)) == 0);
    td_tensor *y = td_relu(x);
    assert_true(isnan(td_at(y, TD_SHAPE(0, 1))) && td_at(y, TD_SHAPE(1, 0)) == 0);
    const float w[] = { 200, -200, INFINITY, -INFINITY, NAN, 0 };
    td_tensor *far = td_from(w, TD_SHAPE(6), TD_F32), *s = td_sigmoid(far), *t = td_tanh(far), *g = td_gelu(far);
    assert_true(td_at(s, TD_SHAPE(0)) == 1 && td_at(s, TD_SHAPE(1)) == 0 && td_at(s, TD_SHAPE(2)) == 1 && td_at(s, TD_SHAPE(3)) == 0);
    assert_true(td_at(t, TD_SHAPE(0)) == 1 && td_at(t, TD_SHAPE(1)) == -1 && td_at(t, TD_SHAPE(2)) == 1 && td_at(t, TD_SHAPE(3)) == -1);
    assert_true(td_at(g, TD_SHAPE(0)) == 200 && td_at(g, TD_SHAPE(1)) == 0 && td_at(g, TD_SHAPE(5)) == 0);
    assert_true(isnan(td_at(s, TD_SHAPE(4))) && isnan(td_at(t, TD_SHAPE(4))) && isnan(td_at(g, TD_SHAPE(4))));
    const float huge[] = { 200, -200, 1e30f, -1e30f, NAN, 0 };
    td_tensor *v2 = td_from(huge, TD_SHAPE(6), TD_F32), *gt = td_gelu_tanh(v2);   /* the cube overflows, the result does not */
    td_requires_grad((td_tensors){ &v2, 1 }, true);
    td_backward(td_sum(td_gelu_tanh(v2), NULL, 0, false));
    td_tensor *gg = td_grad(v2);
    const double value[] = { 200, 0, 1e30f, 0, NAN, 0 }, slope[] = { 1, 0, 1, 0, NAN, 0.5 };
    for (int i = 0; i < 6; i++) {
        double a = td_at(gt, TD_SHAPE(i)), b = td_at(gg, TD_SHAPE(i));
        assert_true(i == 4 ? isnan(a) && isnan(b) : a == value[i] && b == slope[i]);
    }
    const float big[] = { 1e30f, 1e30f, -1e30f, 1000, 1001, 1002 };
    td_tensor *soft = td_softmax(td_from(big, TD_SHAPE(2, 3), TD_F32), 1);
    assert_true(td_at(soft, TD_SHAPE(0, 0)) == 0.5 && td_at(soft, TD_SHAPE(0, 2)) == 0);
    assert_true(fabs(td_at(soft, TD_SHAPE(1, 2)) - 0.66524095577482178) < 1e-6);
    assert_int_equal(td_error_pending(), 0);
}

static void ties_share(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_from((const double[]){ 3, 1, 3, 3, 0, 0, -1, 0 }, TD_SHAPE(2, 4), TD_F64), *list[] = { x };
    td_requires_grad((td_tensors){ list, 1 }, true);
    assert_int_equal(td_backward(td_sum(td_amax(x, (int[]){ 1 }, 1, false), NULL, 0, false)), 0);
    double got[8];
    td_copy_out(td_grad(x), got, sizeof got);
    const double want[] = { 1.0 / 3, 0, 1.0 / 3, 1.0 / 3, 1.0 / 3, 1.0 / 3, 0, 1.0 / 3 };
    assert_memory_equal(got, want, sizeof got);
}

/* No row kept: the loss is NaN, the gradient exactly zero, the stamp 0. */
static void no_row_kept(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = f(TD_SHAPE(3, 5)), *list[] = { x };
    td_requires_grad((td_tensors){ list, 1 }, true);
    td_cross_entropy_opts o = { .has_ignore_index = true, .ignore_index = 2 };
    td_tensor *loss = td_cross_entropy(x, td_full(TD_SHAPE(3), TD_I64, 2), &o);
    assert_true(isnan(td_item(loss)));
    assert_true(loss->divisor && td_item(loss->divisor) == 0);
    assert_int_equal(td_backward(loss), 0);
    td_tensor *g = td_grad(x);
    for (int64_t i = 0; g && i < 15; i++)
        assert_true(td_at(g, TD_SHAPE(i / 5, i % 5)) == 0);
    td_tensor *empty = td_mse(f(TD_SHAPE(0, 3)), f(TD_SHAPE(0, 3)));
    assert_true(isnan(td_item(empty)) && td_item(empty->divisor) == 0);
}

static void stamps(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = f(TD_SHAPE(4, 10));
    const int64_t class[] = { 1, -1, 3, 4 };
    td_cross_entropy_opts o = { .has_ignore_index = true, .ignore_index = -1 };
    td_tensor *loss = td_cross_entropy(x, td_from(class, TD_SHAPE(4), TD_I64), &o);
    assert_true(td_item(loss->divisor) == 3);
    assert_true(td_item(td_mse(x, td_zeros(TD_SHAPE(4, 10), TD_F32))->divisor) == 40);
    td_tensor *kept[] = { td_scale(loss, 2), td_neg(loss), td_add(loss, f(TD_SCALAR)), td_sub(f(TD_SCALAR), loss), td_mul(loss, f(TD_SCALAR)),
                          td_shift(loss, 1), td_cast(loss, TD_F64), td_reshape(loss, TD_SHAPE(1)), td_div(loss, f(TD_SCALAR)) };
    for (size_t i = 0; i < TD_COUNT(kept); i++)
        assert_true(kept[i]->divisor && td_item(kept[i]->divisor) == 3);
    assert_null(td_mean(loss, NULL, 0, false)->divisor);
    assert_null(td_relu(loss)->divisor);
    assert_int_equal(td_error_pending(), 0);
}

/* What is said to be a view shares storage; what is there already is handed back. */
static void sharing(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = f(TD_SHAPE(2, 6)), *flip = td_transpose(x, 0, 1);
    assert_ptr_equal(td_reshape(x, TD_SHAPE(3, 4))->storage, x->storage);
    assert_ptr_equal(td_reshape(flip, TD_SHAPE(3, 2, 2))->storage, x->storage);
    assert_ptr_not_equal(td_reshape(flip, TD_SHAPE(12))->storage, x->storage);
    assert_ptr_equal(td_expand(x, TD_SHAPE(5, 2, 6))->storage, x->storage);
    assert_ptr_equal(td_narrow(x, 1, 2, 3)->storage, x->storage);
    assert_ptr_equal(td_detach(x)->storage, x->storage);
    assert_ptr_equal(td_contiguous(x), x);
    assert_ptr_not_equal(td_contiguous(flip), flip);
    assert_ptr_equal(td_cast(x, TD_F32), x);
    td_tensor *list[] = { x };
    td_requires_grad((td_tensors){ list, 1 }, true);
    assert_true(td_needs_grad(td_reshape(x, TD_SHAPE(12))));
    assert_false(td_needs_grad(td_detach(x)));
    assert_false(td_needs_grad(td_eq(x, x)));
    assert_false(td_needs_grad(td_cast(x, TD_I64)));
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(arithmetic), TEST(reductions), TEST(views), TEST(rows_of_none), TEST(products), TEST(losses), TEST(integers), TEST(not_a_number),
                                        TEST(ties_share), TEST(no_row_kept), TEST(stamps), TEST(sharing) };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
