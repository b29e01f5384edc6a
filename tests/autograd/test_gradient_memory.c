/* tests/autograd/test_gradient_memory.c: the memory of gradients: written over the incoming one, passed on without a copy, shared until someone
 * changes it, and given back when a step has consumed it. */
#include "core_ops.h"

enum { N = 1 << 16 };

static int64_t peak_of(td_tensor *loss)
{
    td_memory_reset_peak();
    int64_t before = td_memory().live_bytes;
    assert_int_equal(backward(loss), 0);
    return td_memory().peak_bytes - before;
}

typedef td_tensor *unary(td_tensor *x);
static unary *const functions[] = { td_relu, td_gelu, td_gelu_tanh, td_sigmoid, td_tanh, td_silu, td_exp, td_ln, td_sqrt };

/* f(x) has its gradient in x's own memory, f(1*x) over the incoming one: the same bits. */
static void written_over(void **state)
{
    (void)state;
    for (size_t f = 0; f < sizeof functions / sizeof *functions; f++) {
        TD_SCOPE();
        td_tensor *start = td_rand(TD_SHAPE(1000), 7, f), *w = td_randn(TD_SHAPE(1000), 8, f), *a = td_shift(start, 0.5), *b = td_shift(start, 0.5);
        td_requires_grad((td_tensors){ (td_tensor *[]){ a, b }, 2 }, true);
        assert_int_equal(backward(td_sum(td_mul(functions[f](a), w), NULL, 0, false)), 0);
        assert_int_equal(backward(td_sum(td_mul(functions[f](td_scale(b, 1)), w), NULL, 0, false)), 0);
        assert_memory_equal(td__ptr(td_grad(a)), td__ptr(td_grad(b)), 1000 * sizeof(float));
    }
}

static void no_second_copy(void **state)
{
    (void)state;
    td_tensor *x = leaf_of(td_zeros(TD_SHAPE(N), TD_F32));
    td_tensor *y = td_reshape(td_relu(td_reshape(td_tanh(td_scale(x, 2)), TD_SHAPE(2, N / 2))), TD_SHAPE(N));
    int64_t peak = peak_of(td_sum(y, NULL, 0, false));
    assert_in_range(peak, N * 4 + 1, 2 * N * 4 + 10000);             /* x's gradient and one on its way */
}

/* The loss's gradient lies over the logits where nobody else has them: the same bits as beside them; logits that somebody has, or a retained graph
 * needs, stay as they are. */
static void written_over_logits(void **state)
{
    (void)state;
    enum { ROWS = 64, CLASSES = N / ROWS };
    td_tensor *target = td_randint(0, CLASSES, TD_SHAPE(ROWS), 3, 1), *start = td_randn(TD_SHAPE(ROWS, CLASSES), 3, 2), *grad[3];
    for (int k = 0; k < 3; k++) {
        td_tensor *x = leaf_of(td_shift(start, 0)), *loss, *logits = NULL;
        int64_t before, peak;
        {
            TD_SCOPE();
            before = td_memory().live_bytes;
            logits = td_reshape(td_scale(x, 2), TD_SHAPE(ROWS, CLASSES));
            loss = td_escape(td_cross_entropy(logits, target, NULL));
            if (k == 1)
                td_keep(logits);
        }
        td_memory_reset_peak();
        if (k == 2)
            assert_int_equal(td_backward_with(loss, &(td_backward_opts){ .retain_graph = true }), 0);
        else
            assert_int_equal(backward(loss), 0);
        peak = td_memory().peak_bytes - before;
        if (k == 0)
            assert_in_range(peak, 2 * N * 4 + 1, 3 * N * 4 - 1);     /* the logits, then x's gradient beside theirs          */
        if (k == 1) {
            for (int i = 0; i < N; i++)
                assert_true(((float *)td__ptr(logits))[i] == 2 * ((float *)td__ptr(start))[i]);
            td_release(logits);
        }
        grad[k] = td_grad(x);
        if (k == 2) {
            assert_memory_equal(td__ptr(grad[0]), td__ptr(grad[2]), N * sizeof(float));
            assert_int_equal(backward(loss), 0);                     /* the mean of two that are the same                   */
            grad[k] = td_grad(x);
        }
        assert_memory_equal(td__ptr(grad[0]), td__ptr(grad[k]), N * sizeof(float));
    }
}

static void doubled(td_tensor *grad, void *user)
{
    (void)user;
    for (int64_t i = 0; i < td_numel(grad); i++)
        ((float *)td__ptr(grad))[i] *= 2;
}

/* a + b hand one gradient to both; a hook changes a's, and a second use of b adds to b's. */
static void shared_until_changed(void **state)
{
    (void)state;
    td_tensor *x = leaf_of(td_full(TD_SHAPE(4), TD_F32, 3)), *y = leaf_of(td_full(TD_SHAPE(4), TD_F32, 5));
    td_tensor *a = td_scale(x, 1), *b = td_scale(y, 1);
    td_hook(a, doubled, NULL);
    td_tensor *once = td_mul(b, td_full(TD_SHAPE(4), TD_F32, 7));
    assert_int_equal(backward(td_sum(td_add(once, td_add(a, b)), NULL, 0, false)), 0);
    for (int i = 0; i < 4; i++) {
        assert_true(((float *)td__ptr(td_grad(x)))[i] == 2);
        assert_true(((float *)td__ptr(td_grad(y)))[i] == 8);
    }
}

/* Neither input of a residual needs memory of its own for the gradient that both get. */
static void residuals_share(void **state)
{
    (void)state;
    td_tensor *x = leaf_of(td_zeros(TD_SHAPE(N), TD_F32)), *h = td_scale(x, 2);
    for (int i = 0; i < 3; i++)
        h = td_add(h, td_relu(h));
    int64_t peak = peak_of(td_sum(h, NULL, 0, false));
    assert_in_range(peak, N * 4 + 1, 3 * N * 4 + 10000);             /* two branches meet, or one and x's own */
    assert_true(((float *)td__ptr(td_grad(x)))[0] == 2);
}

static void given_back(void **state)
{
    (void)state;
    td_tensor *a = leaf_of(td_zeros(TD_SHAPE(N), TD_F32)), *b = leaf_of(td_zeros(TD_SHAPE(3), TD_F32));
    td__group *g = td__group_new((td__leaf *[]){ td__leaf_of(a), td__leaf_of(b) }, (int[]){ 1, 1 }, 2, NULL, NULL);
    int64_t without = td_memory().live_bytes;
    for (int step = 0; step < 2; step++) {
        {
            TD_SCOPE();
            assert_int_equal(backward(td_add(td_sum(a, NULL, 0, false), td_sum(b, NULL, 0, false))), 0);
        }
        assert_in_range(td_memory().live_bytes - without, N * 4, N * 4 + 2000);
        assert_true(((float *)g->flat[1]->grad->data)[3] == 0);      /* a pad */
        td__group_consume(g);
        assert_in_range(td_memory().live_bytes, without, without + (step ? 0 : 1000));   /* the first grows the scopes' stack */
        without = td_memory().live_bytes;
        assert_null(td_grad(a));
    }
    td__group_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(written_over), TEST(written_over_logits), TEST(no_second_copy), TEST(shared_until_changed), TEST(residuals_share), TEST(given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
