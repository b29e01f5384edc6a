/* tests/cuda/test_channels_last.c: training steps of a small residual network on the emulated device: pictures with the channels last train as others
 * do, in f32 and under autocast in bf16, and stay so from the first convolution to the mean.
 */
#include "../../examples/06_resnet/model.h"
#include <autograd_impl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

enum { STEPS = 3, BATCH = 3, SIZE = 9 };

static void train(td_memory_format format, td_dtype autocast, double loss[STEPS], double *sum)
{
    td_seed(9);                                        /* another seed between: or initialisation would go on from the one before  */
    td_module_free(td_nn_linear(1, 1, NULL));
    td_seed(5);
    td_module *net = resnet_new(&(resnet_opts){ .depth = 8, .width = 8, .classes = 5 });
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.02, .momentum = 0.9 });
    td_train(net, true);
    for (int i = 0; i < STEPS; i++) {
        TD_SCOPE();
        td_tensor *x = td_to_memory_format(td_randn(TD_SHAPE(BATCH, 3, SIZE, SIZE), 3, (uint64_t)i), format), *l;
        td_tensor *y = td_randint(0, 5, TD_SHAPE(BATCH), 4, (uint64_t)i);
        {
            TD_AUTOCAST(autocast);
            l = td_cross_entropy(td_forward(net, x), y, NULL);
        }
        assert_int_equal(td_backward(l), 0);
        td_optim_step(opt);
        loss[i] = td_item(l);
    }
    *sum = 0;
    td_tensors p = td_parameters(net);
    for (size_t i = 0; i < p.n; i++) {
        TD_SCOPE();
        assert_true(td_is_contiguous(p.list[i]));
        *sum += td_item(td_sum(td_mul(p.list[i], p.list[i]), NULL, 0, false));
    }
    td_optim_free(opt);
    td_module_free(net);
}

static void trains_alike(void **state)
{
    (void)state;
    double rows[STEPS], last[STEPS], half[STEPS], sum[3];
    train(TD_CONTIGUOUS, TD_F32, rows, &sum[0]);
    train(TD_CHANNELS_LAST, TD_F32, last, &sum[1]);
    train(TD_CHANNELS_LAST, TD_BF16, half, &sum[2]);
    for (int i = 0; i < STEPS; i++) {
        print_message("step %d: loss %.7f, channels last %.7f, and in bf16 %.7f\n", i + 1, rows[i], last[i], half[i]);
        assert_true(fabs(last[i] - rows[i]) < 2e-4 * fabs(rows[i]));
        assert_true(fabs(half[i] - rows[i]) < 0.05 * fabs(rows[i]));
    }
    assert_true(fabs(sum[1] - sum[0]) < 1e-5 * sum[0]);
    assert_true(fabs(sum[2] - sum[0]) < 1e-2 * sum[0]);
}

/* Every operation of a block hands the order on, and so do their gradients; what does not know of it gets rows. */
static void handed_on(void **state)
{
    (void)state;
    td_tensor *x = td_to_memory_format(td_cast(td_randn(TD_SHAPE(2, 8, 6, 5), 1, 0), TD_BF16), TD_CHANNELS_LAST);
    td_tensor *w = td_randn(TD_SHAPE(16, 8, 3, 3), 2, 0), *one = td_ones(TD_SHAPE(16), TD_F32), *zero = td_zeros(TD_SHAPE(16), TD_F32);
    td_requires_grad((td_tensors){ &w, 1 }, true);
    TD_AUTOCAST(TD_BF16);
    td_tensor *y = td_conv2d(x, w, NULL, &(td_conv2d_opts){ .padding = 1 });
    assert_true(td__channels_last(y));
    assert_int_equal(td_dtype_of(y), TD_BF16);
    td_tensor *z = td_batch_norm_relu(y, NULL, one, zero, NULL, NULL, &(td_batch_norm_opts){ .train = true });
    td_tensor *pool = td_max_pool2d(z, 3, &(td_pool2d_opts){ .stride = 2, .padding = 1 }), *sum = td_relu(td_add(pool, td_scale(pool, 2)));
    td_tensor *pixel = td_adaptive_avg_pool2d(sum, 1, 1);
    assert_true(td__channels_last(z) && td__channels_last(pool) && td__channels_last(sum) && td__channels_last(pixel));
    assert_true(td_is_contiguous(td_flatten(pixel, 1)) && td_is_contiguous(td_flatten(sum, 1)));
    td_tensor *flat = td_flatten(sum, 1);
    assert_int_equal(td_backward(td_sum(td_cast(td_mul(flat, flat), TD_F32), NULL, 0, false)), 0);
    td_tensor *g = td_grad(w);
    assert_non_null(g);
    assert_true(td_is_contiguous(g));
    /* the same from rows */
    td_tensor *as_rows = td_to_memory_format(x, TD_CONTIGUOUS), *first = td_keep(td_add(g, td_zeros(td_shape_of(g), TD_F32)));
    td_zero_grad((td_tensors){ &w, 1 });
    y = td_conv2d(as_rows, w, NULL, &(td_conv2d_opts){ .padding = 1 });
    assert_true(td_is_contiguous(y));
    z = td_batch_norm_relu(y, NULL, one, zero, NULL, NULL, &(td_batch_norm_opts){ .train = true });
    pool = td_max_pool2d(z, 3, &(td_pool2d_opts){ .stride = 2, .padding = 1 });
    flat = td_flatten(td_relu(td_add(pool, td_scale(pool, 2))), 1);
    assert_int_equal(td_backward(td_sum(td_cast(td_mul(flat, flat), TD_F32), NULL, 0, false)), 0);
    td_tensor *difference = td_sub(td_grad(w), first);
    const double error = td_item(td_sum(td_mul(difference, difference), NULL, 0, false)), size = td_item(td_sum(td_mul(first, first), NULL, 0, false));
    assert_true(size > 0 && error < 1e-4 * size);
    td_release(first);
}

static int no_errors(void **state)
{
    (void)state;
    if (td_error_pending())
        print_error("%s\n", td_error_message());
    return td_error_pending();
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test_teardown(handed_on, no_errors), cmocka_unit_test_teardown(trains_alike, no_errors) };
    td_errors(TD_ERRORS_RETURN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
