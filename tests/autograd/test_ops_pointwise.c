/* What the table cannot say of the pointwise operations and their losses: sentences of misuse, ties, NaN, stamps, losses without rows.
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

static td_tensor *wanted(td_tensor *x)
{
    td_requires_grad((td_tensors){ &x, 1 }, true);
    return x;
}

/* a leaf of f64 */
static td_tensor *leaf(const double *v, int64_t n)
{
    return wanted(td_from(v, TD_SHAPE(n), TD_F64));
}

static void expect_values(td_tensor *x, const double *want, size_t n)
{
    double got[16];
    assert_non_null(x);
    assert_int_equal(td_numel(x), n);
    td_copy_out(x, got, n * sizeof *got);
    for (size_t i = 0; i < n; i++)
        if (!(got[i] == want[i] || (isnan(got[i]) && isnan(want[i]))))
            fail_msg("element %zu is %g, expected %g", i, got[i], want[i]);
}

static void sentences(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *i32 = td_ones(TD_SHAPE(2), TD_I32), *mask = td_ones(TD_SHAPE(2), TD_BOOL);
    expect_poisoned(td_exp(i32), TD_ERR_DTYPE, "td_exp: the input is i32; it must be a float (td_cast converts)");
    expect_poisoned(td_ln(i32), TD_ERR_DTYPE, "td_ln: the input is i32; it must be a float");
    expect_poisoned(td_pow(i32, 2), TD_ERR_DTYPE, "td_pow: the input is i32; it must be a float");
    expect_poisoned(td_abs(mask), TD_ERR_DTYPE, "td_abs: arithmetic is done in floats, i64 and i32, not bool");
    expect_poisoned(td_silu(NULL), TD_ERR_ARGUMENT, "td_silu: input 0 is NULL");
    expect_poisoned(td_clamp(f(TD_SHAPE(2)), 1, -1), TD_ERR_ARGUMENT, "td_clamp: the bounds are 1 and -1; the low one must not be above the high one");
    expect_poisoned(td_clamp(f(TD_SHAPE(2)), (double)NAN, 1), TD_ERR_ARGUMENT, "td_clamp: the bounds are nan and 1;");
    expect_poisoned(td_maximum(f(TD_SHAPE(3, 2)), f(TD_SHAPE(3))), TD_ERR_SHAPE,
           "td_maximum: shapes (3,2) and (3) do not broadcast at dimension 1: 2 against 3");
    expect_poisoned(td_minimum(f(TD_SHAPE(2)), i32), TD_ERR_DTYPE, "td_minimum: dtypes f32 and i32 differ (td_cast converts)");
    expect_poisoned(td_where(f(TD_SHAPE(2)), f(TD_SHAPE(2)), f(TD_SHAPE(2))), TD_ERR_DTYPE, "td_where: the condition is f32; it must be bool or u8");
    expect_poisoned(td_where(mask, f(TD_SHAPE(2)), i32), TD_ERR_DTYPE, "td_where: dtypes f32 and i32 differ (td_cast converts)");
    expect_poisoned(td_where(mask, f(TD_SHAPE(3)), f(TD_SCALAR)), TD_ERR_SHAPE,
           "td_where: shapes (2) and (3) do not broadcast at dimension 0: 2 against 3");
    expect_poisoned(td_log_softmax(f(TD_SHAPE(2, 3)), 2), TD_ERR_SHAPE, "td_log_softmax: ");
    expect_poisoned(td_var(f(TD_SHAPE(2)), NULL, 0, false, -1), TD_ERR_ARGUMENT, "td_var: correction is -1; it must not be negative");
    expect_poisoned(td_var(f(TD_SHAPE(2)), NULL, 1, false, 1), TD_ERR_ARGUMENT, "td_var: axes is NULL");
    expect_poisoned(td_var(f(TD_SHAPE(2)), (int[]){ 1 }, 1, false, 1), TD_ERR_SHAPE, "td_var: axis 1 is outside the 1 dimensions of shape (2)");
}

static void losses(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *target = td_from((int64_t[]){ 1, 3 }, TD_SHAPE(2), TD_I64), *x = f(TD_SHAPE(2, 3));
    expect_poisoned(td_nll(x, target, NULL), TD_ERR_ARGUMENT, "td_nll: target of row 1 is 3; log_probabilities (2,3) have classes 0 to 2");
    expect_poisoned(td_nll(x, target, &(td_nll_opts){ .has_ignore_index = true, .ignore_index = -100 }), TD_ERR_ARGUMENT,
           "td_nll: target of row 1 is 3; log_probabilities (2,3) have classes 0 to 2, or ignore_index -100");
    expect_poisoned(td_nll(x, td_ones(TD_SHAPE(2), TD_I32), NULL), TD_ERR_DTYPE, "td_nll: target is i32; class numbers are i64 (td_cast converts)");
    expect_poisoned(td_nll(f(TD_SHAPE(3)), target, NULL), TD_ERR_SHAPE, "td_nll: log_probabilities (3) and target (2) do not fit: expected (N,C) and (N)");
    expect_poisoned(td_bce_with_logits(x, f(TD_SHAPE(2)), NULL), TD_ERR_SHAPE,
           "td_bce_with_logits: input (2,3) and target (2) must have the same shape");
    expect_poisoned(td_bce_with_logits(x, td_ones(TD_SHAPE(2, 3), TD_F64), NULL), TD_ERR_DTYPE, "td_bce_with_logits: dtypes f32 and f64 differ");
    expect_poisoned(td_bce_with_logits(x, x, &(td_bce_opts){ .pos_weight = f(TD_SHAPE(2)) }), TD_ERR_SHAPE,
           "td_bce_with_logits: pos_weight (2) does not broadcast to the input (2,3)");
    expect_poisoned(td_bce_with_logits(x, x, &(td_bce_opts){ .pos_weight = wanted(f(TD_SHAPE(3))) }), TD_ERR_ARGUMENT,
           "td_bce_with_logits: pos_weight needs gradients, and this loss has none for it (td_detach)");
}

/* Equal operands share; NaN takes the whole on both sides, as in PyTorch. */
static void ties(void **state)
{
    (void)state;
    TD_SCOPE();
    const double va[] = { 1, 2, 3, (double)NAN, 0.5 }, vb[] = { 2, 2, 1, 1, (double)NAN };
    td_tensor *a = leaf(va, 5), *b = leaf(vb, 5), *y = td_maximum(a, b);
    expect_values(y, (double[]){ 2, 2, 3, (double)NAN, (double)NAN }, 5);
    td_backward(td_sum(y, NULL, 0, false));
    expect_values(td_grad(a), (double[]){ 0, 0.5, 1, 1, 1 }, 5);
    expect_values(td_grad(b), (double[]){ 1, 0.5, 0, 1, 1 }, 5);
    a = leaf(va, 5), b = leaf(vb, 5);
    y = td_minimum(a, b);
    expect_values(y, (double[]){ 1, 2, 1, (double)NAN, (double)NAN }, 5);
    td_backward(td_sum(y, NULL, 0, false));
    expect_values(td_grad(a), (double[]){ 1, 0.5, 0, 1, 1 }, 5);
    expect_values(td_grad(b), (double[]){ 0, 0.5, 1, 1, 1 }, 5);
    a = leaf(va, 3);                                            /* one tensor as both operands                             */
    td_backward(td_sum(td_maximum(a, a), NULL, 0, false));
    expect_values(td_grad(a), (double[]){ 1, 1, 1 }, 3);
    assert_int_equal(td_error_pending(), 0);
}

/* The points where a formula breaks. */
static void edges(void **state)
{
    (void)state;
    TD_SCOPE();
    const double inf = (double)INFINITY, nan = (double)NAN, v[] = { 0, -1, nan, inf };
    td_tensor *x = leaf(v, 4);
    expect_values(td_ln(x), (double[]){ -inf, nan, nan, inf }, 4);
    expect_values(td_exp(leaf((double[]){ 0, -inf, nan, inf }, 4)), (double[]){ 1, 0, nan, inf }, 4);
    expect_values(td_sqrt(x), (double[]){ 0, nan, nan, inf }, 4);
    expect_values(td_abs(x), (double[]){ 0, 1, nan, inf }, 4);
    expect_values(td_clamp(x, -0.5, 2), (double[]){ 0, -0.5, nan, 2 }, 4);
    expect_values(td_pow(x, 0), (double[]){ 1, 1, 1, 1 }, 4);
    expect_values(td_pow(x, -1), (double[]){ inf, -1, nan, 0 }, 4);
    expect_values(td_pow(x, 5), (double[]){ 0, -1, nan, inf }, 4);
    expect_values(td_pow(x, 1.25), (double[]){ 0, nan, nan, inf }, 4);
    td_backward(td_sum(td_abs(x), NULL, 0, false));
    expect_values(td_grad(x), (double[]){ 0, -1, 0, 1 }, 4);
    x = leaf(v, 4);
    td_backward(td_sum(td_pow(x, 0), NULL, 0, false));
    expect_values(td_grad(x), (double[]){ 0, 0, 0, 0 }, 4);
    x = leaf((double[]){ -0.5, 0.25, -0.6, nan }, 4);           /* the bounds belong to the inside                         */
    td_backward(td_sum(td_clamp(x, -0.5, 0.25), NULL, 0, false));
    expect_values(td_grad(x), (double[]){ 1, 1, 0, 0 }, 4);
    td_tensor *least = td_from((int32_t[]){ INT32_MIN, -7, 7 }, TD_SHAPE(3), TD_I32);
    int32_t got[3];
    td_copy_out(td_abs(least), got, sizeof got);
    assert_int_equal(got[0], INT32_MIN);
    assert_int_equal(got[1], 7);
    assert_int_equal(td_error_pending(), 0);
}

/* The usual way around a NaN: where's other side gets exactly nothing, whatever flows there. */
static void where_hides(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *mask = td_from((uint8_t[]){ 1, 0, 200 }, TD_SHAPE(3), TD_U8);
    td_tensor *a = leaf((double[]){ 1, (double)NAN, 3 }, 3), *b = leaf((double[]){ (double)INFINITY, 5, 6 }, 3);
    td_tensor *y = td_where(mask, a, b);
    expect_values(y, (double[]){ 1, 5, 3 }, 3);
    td_backward(td_sum(td_mul(y, td_from((double[]){ 2, 3, 4 }, TD_SHAPE(3), TD_F64)), NULL, 0, false));
    expect_values(td_grad(a), (double[]){ 2, 0, 4 }, 3);
    expect_values(td_grad(b), (double[]){ 0, 3, 0 }, 3);
    assert_int_equal(td_error_pending(), 0);
}

/* nll of log_softmax is cross_entropy; stamps say the divisors; no rows: NaN and gradients of exactly zero. */
static void stamps(void **state)
{
    (void)state;
    TD_SCOPE();
    int64_t target[6] = { 3, -1, 0, 2, -1, 1 };
    td_tensor *x = wanted(td_cast(td_randn(TD_SHAPE(6, 4), 7, 0), TD_F64)), *t = td_from(target, TD_SHAPE(6), TD_I64);
    td_tensor *nll = td_nll(td_log_softmax(x, 1), t, &(td_nll_opts){ .has_ignore_index = true, .ignore_index = -1 });
    td_tensor *same = td_cross_entropy(x, t, &(td_cross_entropy_opts){ .has_ignore_index = true, .ignore_index = -1 });
    assert_true(fabs(td_item(nll) - td_item(same)) < 1e-14);
    assert_non_null(nll->divisor);
    assert_true(td_item(nll->divisor) == 4);
    td_tensor *bce = td_bce_with_logits(x, td_sigmoid(td_detach(x)), NULL);
    assert_non_null(bce->divisor);
    assert_true(td_item(bce->divisor) == 24);
    td_backward(bce);                                           /* least where the target is the probability               */
    double g[24];
    td_copy_out(td_grad(x), g, sizeof g);
    for (int i = 0; i < 24; i++)
        assert_true(fabs(g[i]) < 1e-16);
    td_tensor *none = leaf((double[]){ -1, -2 }, 2);
    td_tensor *loss = td_nll(td_reshape(none, TD_SHAPE(1, 2)), td_from((int64_t[]){ -1 }, TD_SHAPE(1), TD_I64),
                             &(td_nll_opts){ .has_ignore_index = true, .ignore_index = -1 });
    assert_true(isnan(td_item(loss)));
    assert_true(td_item(loss->divisor) == 0);
    td_backward(loss);
    expect_values(td_grad(none), (double[]){ 0, 0 }, 2);
    assert_int_equal(td_error_pending(), 0);
}

/* Logits far out: the loss is the logit itself or its tail, the gradient keeps its digits. */
static void confident_logits(void **state)
{
    (void)state;
    TD_SCOPE();
    const double x[] = { 1000, -1000, 40, -40 }, right[] = { 1, 0, 1, 0 }, wrong[] = { 0, 1, 0, 1 };
    assert_true(td_item(td_bce_with_logits(leaf(x, 4), td_from(wrong, TD_SHAPE(4), TD_F64), NULL)) == 520);
    td_tensor *a = leaf(x, 4), *loss = td_bce_with_logits(a, td_from(right, TD_SHAPE(4), TD_F64), NULL);
    assert_true(fabs(td_item(loss) / (exp(-40) / 2) - 1) < 1e-14);
    td_backward(loss);
    double g[4];
    td_copy_out(td_grad(a), g, sizeof g);
    assert_true(g[0] == 0 && g[1] == 0);
    assert_true(fabs(g[2] / (-exp(-40) / 4) - 1) < 1e-14);
    assert_true(fabs(g[3] / (exp(-40) / 4) - 1) < 1e-14);
    assert_int_equal(td_error_pending(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(sentences), TEST(losses), TEST(ties), TEST(edges), TEST(where_hides), TEST(stamps), TEST(confident_logits),
    };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
