/* tests/nn/test_norm_layers.c: layer norm, RMS norm, group norm and embedding as modules, compared with plain loops in double. */
#include "nn_test.h"
#include <float.h>

static double at(td_tensor *x, int64_t i)
{
    return (double)((const float *)td_data(x))[i];
}

/* rows of x from `begin` on, `size` elements: expected in y, with weight and bias at first + i/per where there are some */
static void expect_row(td_tensor *x, td_tensor *y, int64_t begin, int64_t size, bool centre, double eps, td_tensor *w, td_tensor *b, int64_t first,
                       int64_t per)
{
    double mean = 0, square = 0;
    for (int64_t i = 0; i < size && centre; i++)
        mean += at(x, begin + i) / (double)size;
    for (int64_t i = 0; i < size; i++)
        square += pow(at(x, begin + i) - mean, 2) / (double)size;
    for (int64_t i = 0; i < size; i++)
        expect_near(at(y, begin + i),
                    (at(x, begin + i) - mean) / sqrt(square + eps) * (w ? at(w, first + i / per) : 1) + (b ? at(b, first + i / per) : 0), 1e-5);
}

static void shake(td_module *m)
{
    td_tensors p = td_parameters(m);
    for (size_t i = 0; i < p.n; i++)
        td_nn_init_uniform(p.list[i], 0.5, 2);
}

static void layer_norm_layer(void **state)
{
    TD_SCOPE();
    td_tensor *x = td_randn(TD_SHAPE(3, 4, 5), 3, 1);
    for (int dims = 1; dims < 3; dims++) {
        td_module *l = td_nn_layer_norm(dims == 1 ? TD_SHAPE(5) : TD_SHAPE(4, 5), &(td_nn_layer_norm_opts){ .eps = dims == 1 ? 0 : 0.25 });
        assert_int_equal(td_parameters(l).n, 2);
        assert_true(at(td_parameter_get(l, "weight"), 0) == 1 && at(td_parameter_get(l, "bias"), 4) == 0);
        shake(l);
        td_tensor *y = td_forward(l, x);
        int64_t size = dims == 1 ? 5 : 20;
        for (int64_t r = 0; r < 60 / size; r++)
            expect_row(x, y, r * size, size, true, dims == 1 ? 1e-5 : 0.25, td_parameter_get(l, "weight"), td_parameter_get(l, "bias"), 0, 1);
        td_module_free(l);
    }
    td_module *l = td_nn_layer_norm(TD_SHAPE(5), &(td_nn_layer_norm_opts){ .no_bias = true });
    assert_int_equal(td_parameters(l).n, 1);
    td_module_free(l);
    l = td_nn_layer_norm(TD_SHAPE(5), &(td_nn_layer_norm_opts){ .no_affine = true });
    assert_int_equal(td_parameters(l).n, 0);
    td_tensor *y = td_forward(l, x);
    for (int64_t r = 0; r < 12; r++)
        expect_row(x, y, 5 * r, 5, true, 1e-5, NULL, NULL, 0, 1);
    td_module_free(l);
}

/* The norm, a sum and relu at once are what they are one after the other: results, running statistics and gradients, training or not. */
static void batch_norm_relu_layer(void **state)
{
    TD_SCOPE();
    td_module *norm[2] = { td_nn_batch_norm(4, NULL), td_nn_batch_norm(4, NULL) };
    for (int i = 0; i < 4; i++) {
        td_tensor *x = td_randn(TD_SHAPE(5, 4, 3, 2), 3, (uint64_t)i), *z = i & 1 ? td_randn(TD_SHAPE(5, 4, 3, 2), 4, (uint64_t)i) : NULL;
        for (int k = 0; k < 2; k++)
            td_train(norm[k], i < 2);
        td_tensor *y = td_batch_norm_relu_forward(norm[0], x, z), *apart = td_forward(norm[1], x);
        apart = td_relu(z ? td_add(apart, z) : apart);
        for (int64_t j = 0; j < td_numel(y); j++)
            expect_near(at(y, j), at(apart, j), 1e-5);
        assert_int_equal(td_backward(td_sum(td_mul(y, x), NULL, 0, false)), 0);
        assert_int_equal(td_backward(td_sum(td_mul(apart, x), NULL, 0, false)), 0);
        for (int c = 0; c < 4; c++) {
            expect_near(at(td_grad(td_parameter_get(norm[0], "weight")), c), at(td_grad(td_parameter_get(norm[1], "weight")), c), 1e-4);
            expect_near(at(td_grad(td_parameter_get(norm[0], "bias")), c), at(td_grad(td_parameter_get(norm[1], "bias")), c), 1e-4);
            expect_near(at(td_parameter_get(norm[0], "running_var"), c), at(td_parameter_get(norm[1], "running_var"), c), 1e-6);
            expect_near(at(td_parameter_get(norm[0], "running_mean"), c), at(td_parameter_get(norm[1], "running_mean"), c), 1e-6);
        }
        td_zero_grad(td_parameters(norm[0]));
        td_zero_grad(td_parameters(norm[1]));
    }
    td_module *other = td_nn_relu();
    td_batch_norm_relu_forward(other, td_ones(TD_SHAPE(1, 4), TD_F32), NULL);
    expect_error(TD_ERR_ARGUMENT, "td_batch_norm_relu_forward: the module is a relu, expected one of td_nn_batch_norm");
    td_batch_norm_relu_forward(norm[0], td_ones(TD_SHAPE(2, 4), TD_F32), td_ones(TD_SHAPE(2, 3), TD_F32));
    expect_error(TD_ERR_SHAPE, "td_batch_norm_relu: z has shape (2,3), expected (2,4) as x");
    td_module_free(other);
    td_module_free(norm[0]);
    td_module_free(norm[1]);
}

static void rms_norm_layer(void **state)
{
    TD_SCOPE();
    td_tensor *x = td_scale(td_randn(TD_SHAPE(3, 7), 3, 2), 1e-3);           /* small: eps counts */
    for (int given = 0; given < 2; given++) {
        td_module *l = td_nn_rms_norm(7, &(td_nn_rms_norm_opts){ .eps = given ? 1e-6 : 0 });
        shake(l);
        td_tensor *y = td_forward(l, x);
        for (int r = 0; r < 3; r++)
            expect_row(x, y, 7 * r, 7, false, given ? 1e-6 : (double)FLT_EPSILON, td_parameter_get(l, "weight"), NULL, 0, 1);
        td_forward(l, td_zeros(TD_SHAPE(3, 6), TD_F32));
        expect_error(TD_ERR_SHAPE, "td_nn_rms_norm: x has shape (3,6), expected (…,7)");
        td_module_free(l);
    }
}

/* .low: the region's dtype instead of f32, the same number rounded once; outside a region nothing is different. */
static void low_layers(void **state)
{
    TD_SCOPE();
    td_tensor *x = td_randn(TD_SHAPE(3, 7), 3, 2);
    for (int rms = 0; rms < 2; rms++) {
        td_module *low = rms ? td_nn_rms_norm(7, &(td_nn_rms_norm_opts){ .low = true }) : td_nn_layer_norm(TD_SHAPE(7), &(td_nn_layer_norm_opts){ .low = true });
        td_module *high = rms ? td_nn_rms_norm(7, NULL) : td_nn_layer_norm(TD_SHAPE(7), NULL);
        assert_int_equal(td_dtype_of(td_forward(low, x)), TD_F32);
        for (td_dtype t = TD_BF16; ; t = TD_F16) {
            TD_AUTOCAST(t);
            td_tensor *a = td_forward(low, x), *b = td_forward(high, x);
            assert_int_equal(td_dtype_of(a), t);
            assert_int_equal(td_dtype_of(b), TD_F32);
            b = td_cast(b, t);
            for (int i = 0; i < 21; i++)
                assert_true(td_at(a, TD_SHAPE(i / 7, i % 7)) == td_at(b, TD_SHAPE(i / 7, i % 7)));
            if (t == TD_F16)
                break;
        }
        td_module_free(low);
        td_module_free(high);
    }
    (void)state;
}

static void group_norm_layer(void **state)
{
    TD_SCOPE();
    td_tensor *x = td_randn(TD_SHAPE(2, 6, 2, 3), 3, 3);
    td_module *l = td_nn_group_norm(3, 6, NULL);
    shake(l);
    td_tensor *y = td_forward(l, x);
    for (int r = 0; r < 6; r++)
        expect_row(x, y, 12 * r, 12, true, 1e-5, td_parameter_get(l, "weight"), td_parameter_get(l, "bias"), r % 3 * 2, 6);
    td_forward(l, td_zeros(TD_SHAPE(3, 9), TD_F32));
    expect_error(TD_ERR_SHAPE, "td_nn_group_norm: x has shape (3,9), expected (N,6,…)");
    td_module_free(l);
    l = td_nn_group_norm(3, 6, &(td_nn_group_norm_opts){ .no_affine = true });
    assert_int_equal(td_parameters(l).n, 0);
    td_module_free(l);
}

static void embedding_layer(void **state)
{
    TD_SCOPE();
    enum { V = 400, D = 50 };
    td_module *l = td_nn_embedding(V, D, &(td_embedding_opts){ .has_padding_idx = true, .padding_idx = 7 });
    td_tensor *w = td_parameter_get(l, "weight");
    double sum = 0, square = 0, n = (V - 1) * D;
    for (int64_t i = 0; i < V * D; i++) {
        assert_true(i / D != 7 || at(w, i) == 0);
        sum += at(w, i);
        square += at(w, i) * at(w, i);
    }
    assert_true(fabs(sum / n) < 5 / sqrt(n) && fabs(square / n - 1) < 5 * sqrt(2 / n));       /* N(0,1) */
    const int64_t id[] = { 3, 7, 399 };
    td_tensor *y = td_forward(l, td_from(id, TD_SHAPE(3), TD_I64));
    for (int i = 0; i < 3 * D; i++)
        assert_true(at(y, i) == at(w, id[i / D] * D + i % D));
    assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
    assert_true(at(td_grad(w), 3 * D) == 1 && at(td_grad(w), 7 * D) == 0 && at(td_grad(w), 399 * D) == 1 && at(td_grad(w), 0) == 0);
    char text[2048];
    td_summary_format(l, text, sizeof text);
    assert_non_null(strstr(text, "count=400, width=50, padding_idx=7"));
    td_module_free(l);
}

static void wrong_arguments(void **state)
{
    td_nn_layer_norm(TD_SCALAR, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_layer_norm: the shape is (), expected 1 dimension or more, of sizes of 1 or more");
    td_nn_layer_norm(TD_SHAPE(3), &(td_nn_layer_norm_opts){ .eps = -1 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_layer_norm: eps is -1, expected 0 (the default) or more");
    td_nn_rms_norm(0, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_rms_norm: width is 0, expected 1 or more");
    td_nn_group_norm(4, 6, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_group_norm: groups is 4 and channels 6, expected 1 or more, and groups that divide the channels");
    td_nn_embedding(4, 0, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_embedding: count is 4 and width is 0, expected 1 or more");
    td_nn_embedding(4, 2, &(td_embedding_opts){ .has_padding_idx = true, .padding_idx = -1 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_embedding: padding_idx is -1, expected 0 to 3");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(batch_norm_relu_layer), TEST(layer_norm_layer), TEST(rms_norm_layer), TEST(low_layers), TEST(group_norm_layer), TEST(embedding_layer), TEST(wrong_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
