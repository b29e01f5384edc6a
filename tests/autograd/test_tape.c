/* The life of graphs: iterative freeing, what saved tensors are protected from, what memory is held and when it goes. */
#include <pthread.h>
#include "core_ops.h"

enum { CHAIN = 100000, SMALL_STACK = 256 << 10 };

/* One handle at a time: the graph alone keeps the chain. */
static td_tensor *chain(td_tensor *x, int n)
{
    td_tensor *y = td_keep(t_times(x, 1));
    for (int i = 1; i < n; i++) {
        TD_SCOPE();
        td_tensor *next = td_keep(t_times(y, 1));
        td_release(y);
        y = next;
    }
    return y;
}

static void *chain_dropped(void *unused)
{
    (void)unused;
    td_tensor *y = chain(LEAF(1), CHAIN);
    int nodes = td__live_nodes();
    td_release(y);
    return (void *)(intptr_t)(nodes == CHAIN && td__live_nodes() == 0);
}

static void *chain_backward(void *unused)
{
    (void)unused;
    td_tensor *x = LEAF(2), *y = chain(x, CHAIN);
    bool ok = td_backward(y) == 0 && V(td_grad(x))[0] == 1 && td__live_nodes() == 1;
    td_release(y);
    return (void *)(intptr_t)(ok && td__live_nodes() == 0);
}

static void *on_small_stack(void *(*fn)(void *))
{
    pthread_t t;
    pthread_attr_t a;
    void *result;
    pthread_attr_init(&a);
    assert_int_equal(pthread_attr_setstacksize(&a, SMALL_STACK), 0);
    assert_int_equal(pthread_create(&t, &a, fn, NULL), 0);
    pthread_join(t, &result);
    pthread_attr_destroy(&a);
    return result;
}

static void long_chain_dropped_on_a_small_stack(void **state)
{
    (void)state;
    assert_non_null(on_small_stack(chain_dropped));
}

static void long_chain_backward_on_a_small_stack(void **state)
{
    (void)state;
    assert_non_null(on_small_stack(chain_backward));
}

static void saved_input_changed(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2), *k = VEC(3, 4);
    td_tensor *loss = t_sum(t_mul(x, k));
    td_fill(k, 0);
    assert_int_equal(backward(loss), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "td_t_mul saved its input 1, shape (2), for the gradient, and it was changed in place since");
    assert_null(td_grad(x));
}

static void saved_output_changed_through_a_view(void **state)
{
    (void)state;
    td_tensor *x = leaf_of(td_from((double[]){ 1, 2 }, TD_SHAPE(2, 1), TD_F64));
    td_tensor *y = t_exp(x), *row = t_row(y, 1);
    td_tensor *loss = t_sum(row);
    {
        TD_NO_GRAD();
        td_fill(row, 0);
    }
    assert_int_equal(backward(loss), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "td_t_exp saved its output 0");
}

static void unsaved_values_may_change(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2), *k = VEC(3, 4), *frozen = VEC(5, 6);
    td_tensor *loss = t_sum(t_add(t_mul(x, k), frozen));
    assert_int_equal(td_fill(frozen, 0), 0);
    assert_int_equal(backward(loss), 0);
    EXPECT(td_grad(x), 3, 4);
}

static void in_place_rules(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    assert_int_equal(td_fill(x, 3), 0);                  /* leaves may be written: no gradient is recorded for it … */
    td_tensor *y = t_exp(x), *loss = t_sum(t_mul(x, x));
    assert_int_equal(td_fill(x, 4), 0);                  /* … but what a graph has saved is protected */
    assert_int_equal(backward(loss), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "td_t_mul saved its input 0");
    assert_int_equal(td_fill(y, 0), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "the result of td_t_exp, shape (2), belongs to the graph");
    TD_NO_GRAD();
    assert_int_equal(td_fill(y, 5), 0);
    EXPECT(y, 5, 5);
}

static void a_step_counts_as_a_change(void **state)
{
    (void)state;
    td_tensor *x = LEAF(1, 2);
    td_tensor *loss = t_sum(t_mul(x, x));
    assert_int_equal(td_backward_with(loss, &(td_backward_opts){ .retain_graph = true }), 0);
    td__group_consume(td__leaf_of(x)->group);
    assert_int_equal(backward(loss), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "changed in place since");
    td_tensor *again = t_sum(t_mul(x, x));
    zero_grad(x);                              /* forgetting gradients is no change */
    assert_int_equal(backward(again), 0);
    EXPECT(td_grad(x), 2, 4);
}

/* Values that were not saved die with their scope; saved ones are freed while backward runs. */
static void memory_follows_the_walk(void **state)
{
    (void)state;
    enum { N = 1 << 14, LAYERS = 20 };
    td_tensor *x = leaf_of(td_ones(TD_SHAPE(N), TD_F64));
    int64_t bytes = N * (int64_t)sizeof(double), empty = td_memory().live_bytes;
    td_tensor *loss;
    {
        TD_SCOPE();
        td_tensor *y = x;
        for (int i = 0; i < LAYERS; i++)
            y = t_times(y, 1);
        loss = td_escape(t_sum(y));
    }
    assert_in_range(td_memory().live_bytes - empty, 0, bytes / 2);       /* nothing was saved */
    assert_int_equal(backward(loss), 0);
    zero_grad(x);
    empty = td_memory().live_bytes;
    {
        TD_SCOPE();
        td_tensor *y = x;
        for (int i = 0; i < LAYERS; i++)
            y = t_exp(t_times(y, 0.5));
        loss = td_escape(t_sum(y));
    }
    int64_t held = td_memory().live_bytes - empty;
    assert_in_range(held, LAYERS * bytes, LAYERS * bytes + bytes / 2);
    td_memory_reset_peak();
    assert_int_equal(backward(loss), 0);
    assert_in_range(td_memory().peak_bytes - empty, held, held + 3 * bytes);   /* gradients replace activations, not add to them */
    assert_in_range(td_memory().live_bytes - empty, 0, bytes / 2);
}

static void leaves_live_as_long_as_their_graph(void **state)
{
    (void)state;
    td_tensor *loss;
    {
        TD_SCOPE();
        loss = td_escape(t_sum(t_mul(LEAF(1, 2), LEAF(3, 4))));
    }
    assert_int_equal(backward(loss), 0);
    assert_int_equal(td_memory().live_tensors, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(long_chain_dropped_on_a_small_stack), TEST(long_chain_backward_on_a_small_stack), TEST(saved_input_changed),
        TEST(saved_output_changed_through_a_view), TEST(unsaved_values_may_change), TEST(in_place_rules), TEST(a_step_counts_as_a_change),
        TEST(memory_follows_the_walk), TEST(leaves_live_as_long_as_their_graph),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
