/* td_attention, td_rotary, td_swiglu: the sentences of misuse, memory that does not grow with T*S, rows that see nothing, NaN that is
 * not hidden, what is read in place, one tensor in several places.
 */
#include <autograd_impl.h>
#include <tandem.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>
#include <quiet_test.h>
#include <sentence.h>

static td_tensor *f(td_shape s)
{
    return td_ones(s, TD_F32);
}

static td_tensor *leaf(td_tensor *x)
{
    td_requires_grad((td_tensors){ &x, 1 }, true);
    return x;
}

static void sentences(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *q = f(TD_SHAPE(2, 3, 5, 4)), *k = f(TD_SHAPE(2, 3, 7, 4));
    expect_poisoned(td_attention(f(TD_SHAPE(2, 5, 4)), k, k, NULL), TD_ERR_SHAPE, "td_attention: q has shape (2,5,4), expected 4 dimensions (N,H,T,D)");
    expect_poisoned(td_attention(q, f(TD_SHAPE(2, 2, 7, 4)), k, NULL), TD_ERR_SHAPE,
           "td_attention: q (2,3,5,4) and k (2,2,7,4) differ at dimension 1: 3 against 2");
    expect_poisoned(td_attention(q, k, f(TD_SHAPE(2, 3, 7, 6)), NULL), TD_ERR_SHAPE,
           "td_attention: q (2,3,5,4) and v (2,3,7,6) differ at dimension 3: 4 against 6");
    expect_poisoned(td_attention(q, k, q, NULL), TD_ERR_SHAPE, "td_attention: k (2,3,7,4) has 7 rows and v (2,3,5,4) has 5 (dimension 2)");
    expect_poisoned(td_attention(q, td_cast(k, TD_F64), k, NULL), TD_ERR_DTYPE, "td_attention: dtypes f32 and f64 differ (td_cast converts)");
    expect_poisoned(td_attention(td_cast(q, TD_I64), k, k, NULL), TD_ERR_DTYPE, "td_attention: q is i64; it must be a float (td_cast converts)");
    expect_poisoned(td_attention(q, k, NULL, NULL), TD_ERR_ARGUMENT, "td_attention: input 2 is NULL");
    expect_poisoned(td_attention(q, k, k, &(td_attention_opts){ .scale = (double)NAN }), TD_ERR_ARGUMENT, "td_attention: scale is nan, expected a finite number");
    expect_poisoned(td_attention(q, k, k, &(td_attention_opts){ .mask = f(TD_SHAPE(7, 5)) }), TD_ERR_SHAPE,
           "td_attention: mask (7,5) does not broadcast to (2,3,5,7), the scores (N,H,T,S)");
    expect_poisoned(td_attention(q, k, k, &(td_attention_opts){ .mask = td_ones(TD_SHAPE(5, 7), TD_F64) }), TD_ERR_DTYPE,
           "td_attention: mask is f64, expected bool (true: attend) or f32 (added to the scores)");
    expect_poisoned(td_attention(q, k, k, &(td_attention_opts){ .mask = leaf(f(TD_SHAPE(5, 7))) }), TD_ERR_UNSUPPORTED,
           "td_attention: mask asks for a gradient, and has none");
    expect_poisoned(td_rotary(f(TD_SHAPE(4)), f(TD_SHAPE(1, 4))), TD_ERR_SHAPE, "td_rotary: x has shape (4), expected at least 2 dimensions (…,T,D)");
    expect_poisoned(td_rotary(f(TD_SHAPE(2, 3)), f(TD_SHAPE(2, 3))), TD_ERR_SHAPE, "td_rotary: x has shape (2,3): its rows of 3 do not divide into pairs");
    expect_poisoned(td_rotary(q, f(TD_SHAPE(9, 4))), TD_ERR_SHAPE, "td_rotary: the table has shape (9,4), expected (5,4), the last two dimensions of x (2,3,5,4)");
    expect_poisoned(td_rotary(q, leaf(f(TD_SHAPE(5, 4)))), TD_ERR_ARGUMENT, "td_rotary: the table asks for a gradient, and has none");
    expect_poisoned(td_rotary_table(3, 5, 0, TD_F32), TD_ERR_SHAPE, "td_rotary_table: 3 positions of 5 elements");
    expect_poisoned(td_rotary_table(3, 4, -2, TD_F32), TD_ERR_ARGUMENT, "td_rotary_table: base is -2, expected a positive number (0 means 10000)");
    expect_poisoned(td_rotary_table(3, 4, 0, TD_I64), TD_ERR_DTYPE, "td_rotary_table: dtype is i64, expected a float");
    expect_poisoned(td_swiglu(f(TD_SHAPE(2, 3)), f(TD_SHAPE(3))), TD_ERR_SHAPE, "td_swiglu: gate has shape (2,3) and up (3), expected the same");
}

/* Forward and backward of (1,2,2048,16): the scores alone would be 32 MiB. */
static void no_square(void **state)
{
    (void)state;
    TD_SCOPE();
    const td_shape s = TD_SHAPE(1, 2, 2048, 16);
    td_tensor *x[3];
    for (int i = 0; i < 3; i++)
        x[i] = leaf(td_randn(s, 1, (uint64_t)i));
    const int64_t before = td_memory().live_bytes, tensor = 2 * 2048 * 16 * 4;
    td_memory_reset_peak();
    td_tensor *y = td_attention(x[0], x[1], x[2], &(td_attention_opts){ .causal = true });
    assert_true(td_memory().live_bytes - before < 2 * tensor);                        /* the output and the log-sum-exp       */
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
    assert_true(td_memory().peak_bytes - before < 16 * tensor + (8 << 20));
}

/* Query 1 sees nothing, by either kind of mask: exact zeros, and no gradient from it even where its incoming one is large. */
static void sees_nothing(void **state)
{
    (void)state;
    const double on[] = { 1, 1, 0, 0, 1, 0 }, added[] = { 0, 1, -INFINITY, -INFINITY, 2, -INFINITY };
    for (int kind = 0; kind < 2; kind++) {
        TD_SCOPE();
        td_tensor *q = leaf(td_cast(td_randn(TD_SHAPE(1, 1, 3, 4), 5, 0), TD_F64)), *k = leaf(td_cast(td_randn(TD_SHAPE(1, 1, 2, 4), 5, 1), TD_F64));
        td_tensor *v = leaf(td_cast(td_randn(TD_SHAPE(1, 1, 2, 4), 5, 2), TD_F64));
        td_tensor *mask = td_from(kind ? added : on, TD_SHAPE(3, 2), TD_F64);
        td_tensor *y = td_attention(q, k, v, &(td_attention_opts){ .mask = kind ? mask : td_cast(mask, TD_BOOL) });
        for (int d = 0; d < 4; d++) {
            assert_true(td_at(y, TD_SHAPE(0, 0, 1, d)) == 0);
            assert_true(td_at(y, TD_SHAPE(0, 0, 2, d)) == td_at(v, TD_SHAPE(0, 0, 0, d)));       /* sees key 0 alone         */
        }
        /* only query 1's output counts: nothing may arrive anywhere */
        assert_int_equal(td_backward(td_sum(td_scale(td_narrow(y, 2, 1, 1), 1e6), NULL, 0, false)), 0);
        td_tensor *in[] = { q, k, v };
        for (int i = 0; i < 3; i++)
            assert_true(td_item(td_amax(td_grad(in[i]), NULL, 0, false)) == 0 && td_item(td_amin(td_grad(in[i]), NULL, 0, false)) == 0);
    }
}

/* NaN is not "sees nothing", not even where all else is masked. */
static void nan_lives(void **state)
{
    (void)state;
    TD_SCOPE();
    const float number[] = { NAN, 1 }, inf[] = { 0, -INFINITY };
    td_tensor *q = f(TD_SHAPE(1, 1, 1, 1)), *k = td_from(number, TD_SHAPE(1, 1, 2, 1), TD_F32), *v = f(TD_SHAPE(1, 1, 2, 1));
    assert_true(isnan(td_item(td_attention(q, k, v, NULL))));
    assert_true(isnan(td_item(td_attention(q, k, v, &(td_attention_opts){ .mask = td_from(inf, TD_SHAPE(2), TD_F32) }))));
    assert_true(isnan(td_item(td_swiglu(td_full(TD_SHAPE(1), TD_F32, (double)NAN), f(TD_SHAPE(1))))));
}

/* The same tensor as q, k and v; the same as gate and up: gradients add up. */
static td_tensor *itself(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    return td_swiglu(td_attention(in[0], in[0], in[0], NULL), td_attention(in[0], in[0], in[1], NULL));
}
static td_tensor *square(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    return td_swiglu(in[0], in[0]);
}

static void one_tensor(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x[] = { td_cast(td_randn(TD_SHAPE(1, 2, 5, 3), 6, 0), TD_F64), td_cast(td_randn(TD_SHAPE(1, 2, 5, 3), 6, 1), TD_F64) };
    assert_int_equal(td_gradcheck(itself, NULL, x, 2, NULL), 0);
    assert_int_equal(td_gradcheck(square, NULL, x, 1, NULL), 0);
}

/* Heads that are views of a projection are saved as they are: nothing but output and log-sum-exp is new. */
static void in_place(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = leaf(td_randn(TD_SHAPE(2, 64, 3 * 4 * 16), 7, 0)), *part[3];
    for (int i = 0; i < 3; i++)
        part[i] = td_transpose(td_reshape(td_narrow(x, 2, i * 64, 64), TD_SHAPE(2, 64, 4, 16)), 1, 2);
    const int64_t before = td_memory().live_bytes;
    td_tensor *y = td_attention(part[0], part[1], part[2], NULL);
    assert_true(td_memory().live_bytes - before < 2 * 64 * 64 * 4 * 3 / 2);
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(sentences), TEST(no_square), TEST(sees_nothing), TEST(nan_lives), TEST(one_tensor), TEST(in_place) };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
