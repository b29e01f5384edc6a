/* tests/autograd/test_ops_images.c: what the table of operations cannot say of conv2d, pools, batch_norm and dropout: their sentences, the running
 * statistics, masks that do not depend on how samples are batched, adding into gradients.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <autograd_impl.h>
#include <tandem.h>

static td_tensor *filled(td_shape shape, uint64_t seed)
{
    return td_sub(td_cast(td_rand(shape, seed, 0), TD_F64), td_full(TD_SCALAR, TD_F64, 0.5));
}

static int teardown(void **state)
{
    (void)state;
    td_samples(NULL);
    td__scope_close_root();
    return td_memory().live_tensors != 0 || td__live_nodes() != 0;
}

/* x is poisoned, the sentence holds the words */
static void refused(td_tensor *y, const char *words)
{
    assert_true(td_is_poisoned(y));
    assert_non_null(td_error_message());
    if (!strstr(td_error_message(), words))
        fail_msg("expected \"%s\" in: %s", words, td_error_message());
    td_error_clear();
}

static void sentences(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = filled(TD_SHAPE(2, 3, 5, 5), 1), *w = filled(TD_SHAPE(4, 3, 3, 3), 2), *b = filled(TD_SHAPE(4), 3), *c = filled(TD_SHAPE(3), 4);
    td_tensor *one = filled(TD_SHAPE(1, 3), 5), *whole = td_ones(TD_SHAPE(2, 3, 5, 5), TD_I64);
    refused(td_conv2d(x, filled(TD_SHAPE(4, 2, 3, 3), 2), b, NULL), "td_conv2d: x (2,3,5,5) has 3 channels (dimension 1) and w (4,2,3,3) expects 2");
    refused(td_conv2d(x, w, c, NULL), "b has shape (3), expected (4)");
    refused(td_conv2d(b, w, NULL, NULL), "expected 4 dimensions");
    refused(td_conv2d(x, b, NULL, NULL), "expected 4 dimensions");
    refused(td_conv2d(x, NULL, NULL, NULL), "NULL");
    refused(td_conv2d(x, filled(TD_SHAPE(4, 3, 7, 7), 2), NULL, NULL), "larger than");
    refused(td_conv2d(x, w, NULL, &(td_conv2d_opts){ .stride = -2 }), "stride is -2");
    refused(td_conv2d(x, w, NULL, &(td_conv2d_opts){ .padding = -1 }), "padding is -1");
    refused(td_conv2d(x, td_cast(w, TD_F32), NULL, NULL), "f32");
    refused(td_conv2d(whole, w, NULL, NULL), "i64");
    refused(td_conv2d(x, w, NULL, &(td_conv2d_opts){ .dilation = -1 }), "dilation is -1, expected at least 1");
    refused(td_conv2d(x, w, NULL, &(td_conv2d_opts){ .groups = -1 }), "groups is -1, expected at least 1");
    refused(td_conv2d(x, w, NULL, &(td_conv2d_opts){ .dilation = 3 }), "the window of w (4,3,3,3) with dilation 3 is larger than x (2,3,5,5)");
    refused(td_conv2d(x, w, NULL, &(td_conv2d_opts){ .groups = 2 }), "x (2,3,5,5) has 3 channels (dimension 1), not a multiple of groups 2");
    refused(td_conv2d(x, filled(TD_SHAPE(4, 1, 3, 3), 2), NULL, &(td_conv2d_opts){ .groups = 3 }),
            "w (4,1,3,3) has 4 output channels (dimension 0), not a multiple of groups 3");
    refused(td_conv2d(x, filled(TD_SHAPE(3, 3, 3, 3), 2), NULL, &(td_conv2d_opts){ .groups = 3 }),
            "x (2,3,5,5) has 1 channels in each of 3 groups and w (3,3,3,3) expects 3 (dimension 1)");
    td_tensor *wt = filled(TD_SHAPE(3, 4, 3, 3), 2);
    refused(td_conv_transpose2d(x, w, b, NULL), "td_conv_transpose2d: x (2,3,5,5) has 3 channels (dimension 1) and w (4,3,3,3) expects 4 (dimension 0)");
    refused(td_conv_transpose2d(x, wt, c, NULL), "b has shape (3), expected (4), the output channels of w (3,4,3,3) in 1 groups");
    refused(td_conv_transpose2d(x, wt, b, &(td_conv_transpose2d_opts){ .groups = 2 }), "3 channels (dimension 1), not a multiple of groups 2");
    refused(td_conv_transpose2d(x, wt, b, &(td_conv_transpose2d_opts){ .stride = 2, .output_padding = 2 }),
            "output_padding is 2, expected 0 or more and less than 2, the larger of stride and dilation");
    refused(td_conv_transpose2d(x, wt, b, &(td_conv_transpose2d_opts){ .padding = 4 }),
            "x (2,3,5,5) with w (3,4,3,3) and padding 4 gives images of -1 by -1, expected at least 1 by 1");
    refused(td_conv_transpose2d(x, wt, b, &(td_conv_transpose2d_opts){ .dilation = -2 }), "dilation is -2");
    refused(td_conv_transpose2d(filled(TD_SHAPE(2, 3, 0, 5), 1), wt, b, NULL), "the images of x (2,3,0,5) are empty");
    refused(td_conv_transpose2d(c, wt, b, NULL), "expected 4 dimensions");
    refused(td_conv_transpose2d(x, c, b, NULL), "expected 4 dimensions");
    refused(td_conv_transpose2d(x, NULL, b, NULL), "NULL");
    refused(td_conv_transpose2d(whole, wt, b, NULL), "i64");
    refused(td_adaptive_avg_pool2d(x, 0, 2), "td_adaptive_avg_pool2d: the output's size is 0 by 2, expected at least 1 by 1");
    refused(td_adaptive_max_pool2d(c, 1, 1), "expected 4 dimensions");
    refused(td_adaptive_max_pool2d(filled(TD_SHAPE(2, 3, 5, 0), 1), 1, 1), "the images of x (2,3,5,0) are empty");
    refused(td_adaptive_max_pool2d(x, 1 << 20, 1 << 20), "more than 2^31-1 elements");
    refused(td_adaptive_avg_pool2d(whole, 1, 1), "i64");
    refused(td_max_pool2d(x, 0, NULL), "window is 0");
    refused(td_max_pool2d(x, 6, NULL), "larger than");
    refused(td_avg_pool2d(x, 3, &(td_pool2d_opts){ .padding = 2 }), "expected 0 to 1");
    refused(td_avg_pool2d(c, 1, NULL), "expected 4 dimensions");
    refused(td_max_pool2d(whole, 2, NULL), "i64");
    refused(td_batch_norm(x, b, NULL, NULL, NULL, &(td_batch_norm_opts){ .train = true }), "w has shape (4), expected (3)");
    refused(td_batch_norm(x, NULL, NULL, c, NULL, &(td_batch_norm_opts){ .train = true }), "belong together");
    refused(td_batch_norm(x, NULL, NULL, NULL, NULL, NULL), "needed");
    refused(td_batch_norm(one, NULL, NULL, NULL, NULL, &(td_batch_norm_opts){ .train = true }), "one value per channel");
    refused(td_batch_norm(c, NULL, NULL, NULL, NULL, &(td_batch_norm_opts){ .train = true }), "at least 2 dimensions");
    refused(td_batch_norm(x, NULL, NULL, c, td_expand(td_ones(TD_SHAPE(1), TD_F64), TD_SHAPE(3)), &(td_batch_norm_opts){ .train = true }),
            "not contiguous");
    refused(td_dropout(x, 1, true), "p is 1");
    refused(td_dropout(x, -0.1, false), "p is -0.1");
    refused(td_dropout(whole, 0.5, true), "i64");
    td_samples(td_arange(3, TD_I64));
    refused(td_dropout(x, 0.5, true), "not a multiple of the 3 current samples");
    td_samples(NULL);
    td_tensor *poison = td_conv2d(b, w, NULL, NULL);
    td_error_clear();
    assert_true(td_is_poisoned(td_max_pool2d(td_dropout(td_conv2d(poison, w, b, NULL), 0.5, true), 2, NULL)));
    assert_int_equal(td_error_pending(), 0);
}

/* PyTorch's rule, by hand; a training call bumps the versions, others do not; no rows change nothing. */
static void running(void **state)
{
    (void)state;
    TD_SCOPE();
    const double v[] = { 1, 2, 3, 6 };
    td_tensor *x = td_from(v, TD_SHAPE(4, 1), TD_F64), *mean = td_full(TD_SHAPE(1), TD_F64, 10), *var = td_full(TD_SHAPE(1), TD_F64, 20);
    uint32_t before = mean->storage->version;
    td_batch_norm(x, NULL, NULL, mean, var, &(td_batch_norm_opts){ .train = true });
    assert_true(fabs(td_item(mean) - (0.9 * 10 + 0.1 * 3)) < 1e-7);
    assert_true(fabs(td_item(var) - (0.9 * 20 + 0.1 * 14 / 3)) < 1e-6);
    assert_int_equal(mean->storage->version, before + 1);
    td_tensor *y = td_batch_norm(x, NULL, NULL, mean, var, NULL);
    assert_true(fabs(td_at(y, TD_SHAPE(1, 0)) - (2 - td_item(mean)) / sqrt(td_item(var) + 1e-5)) < 1e-9);
    td_batch_norm(td_zeros(TD_SHAPE(0, 1), TD_F64), NULL, NULL, mean, var, &(td_batch_norm_opts){ .train = true });
    assert_int_equal(mean->storage->version, before + 1);
    double was = td_item(mean);
    td_batch_norm(x, NULL, NULL, mean, var, &(td_batch_norm_opts){ .train = true, .momentum = TD_ZERO });
    assert_true(td_item(mean) == was);
    td_batch_norm(x, NULL, NULL, mean, var, &(td_batch_norm_opts){ .train = true, .momentum = 1 });
    assert_true(td_item(mean) == 3);
}

static int64_t zeros_in(td_tensor *x)
{
    return (int64_t)td_item(td_sum(td_cast(td_eq(x, td_zeros(TD_SCALAR, td_dtype_of(x))), TD_F64), NULL, 0, false));
}

static bool same(td_tensor *a, td_tensor *b)
{
    return td_item(td_amax(td_mul(td_sub(a, b), td_sub(a, b)), NULL, 0, false)) == 0;
}

/* 12 samples in one batch, or in three batches of 4 with their numbers: the same masks, also for the second call of the forward and for rows
 * that are parts of a sample. Forward and gradient use one mask, though sample numbers, step and calls have moved on. */
static void batches(void **state)
{
    (void)state;
    TD_SCOPE();
    int64_t ids[12];
    for (int i = 0; i < 12; i++)
        ids[i] = 1000 + 7 * ((i * 5) % 12);
    td_tensor *one = td_ones(TD_SHAPE(12, 50), TD_F32), *two = td_ones(TD_SHAPE(36, 5), TD_F32);
    td_samples(td_from(ids, TD_SHAPE(12), TD_I64));
    td_tensor *a = td_dropout(one, 0.5, true), *b = td_dropout(two, 0.25, true);
    assert_true(zeros_in(a) > 240 && zeros_in(a) < 360 && zeros_in(b) > 20 && zeros_in(b) < 70);
    for (int i = 2; i >= 0; i--) {
        td_samples(td_from(ids + 4 * i, TD_SHAPE(4), TD_I64));
        td_tensor *c = td_dropout(td_ones(TD_SHAPE(4, 50), TD_F32), 0.5, true), *d = td_dropout(td_ones(TD_SHAPE(12, 5), TD_F32), 0.25, true);
        assert_true(same(c, td_narrow(a, 0, 4 * i, 4)) && same(d, td_narrow(b, 0, 12 * i, 12)));
    }
    /* another call, step or seed is another mask */
    td_samples(td_from(ids, TD_SHAPE(12), TD_I64));
    assert_true(same(td_dropout(one, 0.5, true), a));
    assert_false(same(td_dropout(one, 0.5, true), a));
    td_step_set(td_step_get() + 1);
    assert_false(same(td_dropout(one, 0.5, true), a));
    td_step_set(td_step_get() - 1);
    assert_true(same(td_dropout(one, 0.5, true), a));
    td_seed(td_seed_get() + 1);
    td_samples(td_from(ids, TD_SHAPE(12), TD_I64));
    assert_false(same(td_dropout(one, 0.5, true), a));
    td_seed(td_seed_get() - 1);

    td_tensor *x = td_ones(TD_SHAPE(12, 50), TD_F32), *now = td_from(ids, TD_SHAPE(12), TD_I64);
    td_requires_grad((td_tensors){ &x, 1 }, true);
    td_samples(now);
    td_tensor *y = td_dropout(x, 0.5, true);
    assert_true(same(y, a));
    assert_int_equal(td_fill(now, 0), 0);                          /* the loader reuses its batch                                  */
    td_step_set(td_step_get() + 1);
    td_dropout(x, 0.5, true);
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
    assert_true(same(td_grad(x), td_detach(y)));
    td_step_set(td_step_get() - 1);
    assert_ptr_equal(td_dropout(x, 0.5, false), x);
}

/* A weight that is used twice, and an image convolved with itself: gradients are added, and one saved tensor serves two inputs. */
static td_tensor *twice(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    const td_conv2d_opts pad = { .padding = 1 };
    td_tensor *y = td_conv2d(td_conv2d(in[0], in[1], in[2], &pad), in[1], in[2], &pad);
    td_tensor *z = td_batch_norm(td_add(td_avg_pool2d(y, 2, NULL), td_max_pool2d(y, 2, NULL)), in[2], in[2], NULL, NULL,
                                 &(td_batch_norm_opts){ .train = true, .eps = 0.1f });
    td_tensor *s = td_conv2d(in[3], in[3], NULL, &pad);
    return td_add(td_sum(td_mul(z, z), NULL, 0, false), td_sum(td_mul(s, s), NULL, 0, false));
}

static void shared(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *in[] = { filled(TD_SHAPE(2, 3, 5, 5), 1), filled(TD_SHAPE(3, 3, 3, 3), 2), filled(TD_SHAPE(3), 3), filled(TD_SHAPE(2, 2, 2, 2), 4) };
    assert_int_equal(td_gradcheck(twice, NULL, in, 4, NULL), 0);
}

/* Frozen inputs get no gradient, and the others the same as when all ask. */
static void partly(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *in[3] = { filled(TD_SHAPE(2, 3, 5, 5), 1), filled(TD_SHAPE(4, 3, 3, 3), 2), filled(TD_SHAPE(4), 3) }, *all[3];
    for (int ask = 7; ask >= 1; ask--) {
        td_tensor *leaf[3];
        for (int i = 0; i < 3; i++) {
            leaf[i] = td_scale(in[i], 1);
            td_requires_grad((td_tensors){ &leaf[i], 1 }, ask >> i & 1);
        }
        assert_int_equal(td_backward(td_sum(td_conv2d(leaf[0], leaf[1], leaf[2], NULL), NULL, 0, false)), 0);
        for (int i = 0; i < 3; i++) {
            td_tensor *g = td_grad(leaf[i]);
            if (!(ask >> i & 1))
                assert_null(g);
            else if (ask == 7)
                all[i] = g;
            else
                assert_true(same(g, all[i]));
        }
    }
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = { cmocka_unit_test_teardown(sentences, teardown), cmocka_unit_test_teardown(running, teardown),
                                        cmocka_unit_test_teardown(batches, teardown), cmocka_unit_test_teardown(shared, teardown),
                                        cmocka_unit_test_teardown(partly, teardown) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
