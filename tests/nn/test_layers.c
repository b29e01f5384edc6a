/* tests/nn/test_layers.c: each layer hands its parameters, options and mode to its operation: compared with plain loops in double. */
#include "nn_test.h"

static double at(td_tensor *x, int64_t i)
{
    return (double)((const float *)td_data(x))[i];
}

static void linear_layer(void **state)
{
    enum { N = 3, I = 5, O = 4 };
    for (int no_bias = 0; no_bias < 2; no_bias++) {
        TD_SCOPE();
        td_module *l = td_nn_linear(I, O, &(td_nn_linear_opts){ .no_bias = no_bias });
        td_tensor *x = td_randn(TD_SHAPE(N, I), 3, 1), *y = td_forward(l, x), *w = td_parameter_get(l, "weight");
        assert_int_equal(td_parameters(l).n, no_bias ? 1 : 2);
        for (int n = 0; n < N; n++)
            for (int o = 0; o < O; o++) {
                double sum = no_bias ? 0 : at(td_parameter_get(l, "bias"), o);
                for (int i = 0; i < I; i++)
                    sum += at(x, n * I + i) * at(w, o * I + i);
                expect_near(at(y, n * O + o), sum, 1e-6);
            }
        td_module_free(l);
    }
}

static void conv2d_layer(void **state)
{
    enum { N = 2, C = 3, H = 7, W = 6, O = 2, K = 3, S = 2, P = 1, OH = (H + 2 * P - K) / S + 1, OW = (W + 2 * P - K) / S + 1 };
    TD_SCOPE();
    td_module *l = td_nn_conv2d(C, O, K, &(td_nn_conv2d_opts){ .stride = S, .padding = P });
    td_tensor *x = td_randn(TD_SHAPE(N, C, H, W), 3, 2), *y = td_forward(l, x), *w = td_parameter_get(l, "weight"), *b = td_parameter_get(l, "bias");
    assert_true(td__shape_equal(td_shape_of(y), TD_SHAPE(N, O, OH, OW)));
    for (int n = 0; n < N; n++)
        for (int o = 0; o < O; o++)
            for (int i = 0; i < OH; i++)
                for (int j = 0; j < OW; j++) {
                    double sum = at(b, o);
                    for (int c = 0; c < C; c++)
                        for (int u = 0; u < K; u++)
                            for (int v = 0; v < K; v++) {
                                int h = i * S - P + u, q = j * S - P + v;
                                if (h >= 0 && h < H && q >= 0 && q < W)
                                    sum += at(x, ((n * C + c) * H + h) * W + q) * at(w, ((o * C + c) * K + u) * K + v);
                            }
                    expect_near(at(y, ((n * O + o) * OH + i) * OW + j), sum, 1e-5);
                }
    td_module_free(l);
    l = td_nn_conv2d(1, 1, 1, &(td_nn_conv2d_opts){ .no_bias = true });
    assert_int_equal(td_parameters(l).n, 1);
    td_module_free(l);
}

/* Grouped, dilated: the layer hands its options on, and its weight has PyTorch's shape. */
static void conv2d_grouped_layer(void **state)
{
    enum { C = 4, O = 6, G = 2, D = 2, H = 8 };
    TD_SCOPE();
    td_module *l = td_nn_conv2d(C, O, 3, &(td_nn_conv2d_opts){ .padding = 1, .dilation = D, .groups = G });
    td_tensor *w = td_parameter_get(l, "weight"), *b = td_parameter_get(l, "bias"), *x = td_randn(TD_SHAPE(2, C, H, H), 3, 6);
    assert_true(td__shape_equal(td_shape_of(w), TD_SHAPE(O, C / G, 3, 3)));
    td_tensor *y = td_forward(l, x);
    assert_true(td__shape_equal(td_shape_of(y), TD_SHAPE(2, O, 6, 6)));
    for (int o = 0; o < O; o++) {                      /* pixel (2, 3) of image 1: all its window lies in the image                    */
        double sum = at(b, o);
        for (int c = 0; c < C / G; c++)
            for (int u = 0; u < 3; u++)
                for (int v = 0; v < 3; v++)
                    sum += at(x, ((C + o / (O / G) * (C / G) + c) * H + 2 + u * D - 1) * H + 3 + v * D - 1) * at(w, ((o * C / G + c) * 3 + u) * 3 + v);
        expect_near(at(y, ((O + o) * 6 + 2) * 6 + 3), sum, 1e-5);
    }
    char text[1024];
    td_summary_format(l, text, sizeof text);
    assert_non_null(strstr(text, "conv2d (in=4, out=6, kernel=3, stride=1, padding=1, dilation=2, groups=2)"));
    td_module_free(l);
}

static void conv_transpose2d_layer(void **state)
{
    enum { C = 4, O = 6, G = 2, K = 3, S = 2, P = 1, H = 3, OH = (H - 1) * S - 2 * P + K + 1 };
    TD_SCOPE();
    td_module *l = td_nn_conv_transpose2d(C, O, K, &(td_nn_conv_transpose2d_opts){ .stride = S, .padding = P, .output_padding = 1, .groups = G });
    td_tensor *w = td_parameter_get(l, "weight"), *b = td_parameter_get(l, "bias"), *x = td_randn(TD_SHAPE(1, C, H, H), 3, 7);
    assert_int_equal(td_parameters(l).n, 2);
    assert_true(td__shape_equal(td_shape_of(w), TD_SHAPE(C, O / G, K, K)));
    td_tensor *y = td_forward(l, x);
    assert_true(td__shape_equal(td_shape_of(y), TD_SHAPE(1, O, OH, OH)));
    double want[O][OH][OH];
    for (int o = 0; o < O; o++)
        for (int i = 0; i < OH * OH; i++)
            want[o][i / OH][i % OH] = at(b, o);
    for (int c = 0; c < C; c++)
        for (int i = 0; i < H * H; i++)
            for (int k = 0; k < K * K; k++) {
                int u = i / H * S + k / K - P, v = i % H * S + k % K - P;
                for (int o = 0; o < O / G && u >= 0 && u < OH && v >= 0 && v < OH; o++)
                    want[c / (C / G) * (O / G) + o][u][v] += at(x, c * H * H + i) * at(w, (c * (O / G) + o) * K * K + k);
            }
    for (int i = 0; i < O * OH * OH; i++)
        expect_near(at(y, i), want[i / OH / OH][i / OH % OH][i % OH], 1e-5);
    char text[1024];
    td_summary_format(l, text, sizeof text);
    assert_non_null(strstr(text, "conv_transpose2d (in=4, out=6, kernel=3, stride=2, padding=1, output_padding=1, groups=2)"));
    td_module_free(l);
    l = td_nn_conv_transpose2d(2, 3, 2, &(td_nn_conv_transpose2d_opts){ .no_bias = true });
    assert_int_equal(td_parameters(l).n, 1);
    assert_true(td__shape_equal(td_shape_of(td_forward(l, td_zeros(TD_SHAPE(1, 2, 2, 2), TD_F32))), TD_SHAPE(1, 3, 3, 3)));
    td_module_free(l);
}

static void pool_layers(void **state)
{
    enum { H = 5, W = 5, K = 3, S = 2, P = 1, O = 3 };
    TD_SCOPE();
    td_module *max = td_nn_max_pool2d(K, &(td_pool2d_opts){ .stride = S, .padding = P });
    td_module *avg = td_nn_avg_pool2d(K, &(td_pool2d_opts){ .stride = S, .padding = P });
    td_tensor *x = td_randn(TD_SHAPE(1, 1, H, W), 3, 3), *m = td_forward(max, x), *a = td_forward(avg, x);
    for (int i = 0; i < O; i++)
        for (int j = 0; j < O; j++) {
            double most = -INFINITY, sum = 0;
            for (int u = 0; u < K; u++)
                for (int v = 0; v < K; v++) {
                    int h = i * S - P + u, q = j * S - P + v;
                    if (h < 0 || h >= H || q < 0 || q >= W)
                        continue;
                    most = fmax(most, at(x, h * W + q));
                    sum += at(x, h * W + q);
                }
            assert_true(at(m, i * O + j) == most);
            expect_near(at(a, i * O + j), sum / (K * K), 1e-6);
        }
    td_module *plain = td_nn_max_pool2d(2, NULL);
    assert_true(td__shape_equal(td_shape_of(td_forward(plain, x)), TD_SHAPE(1, 1, 2, 2)));
    td_module_free(max);
    td_module_free(avg);
    td_module_free(plain);
}

static void adaptive_pool_layers(void **state)
{
    TD_SCOPE();
    td_module *max = td_nn_adaptive_max_pool2d(2, 1), *avg = td_nn_adaptive_avg_pool2d(2, 1);
    td_tensor *x = td_randn(TD_SHAPE(1, 1, 5, 3), 3, 8), *m = td_forward(max, x), *a = td_forward(avg, x);
    assert_true(td__shape_equal(td_shape_of(m), TD_SHAPE(1, 1, 2, 1)) && td__shape_equal(td_shape_of(a), TD_SHAPE(1, 1, 2, 1)));
    for (int i = 0; i < 2; i++) {                      /* rows 0 to 2, and 2 to 4                                                  */
        double most = -INFINITY, sum = 0;
        for (int k = 0; k < 9; k++) {
            most = fmax(most, at(x, i * 6 + k));
            sum += at(x, i * 6 + k);
        }
        assert_true(at(m, i) == most);
        expect_near(at(a, i), sum / 9, 1e-6);
    }
    td_module_free(max);
    td_module_free(avg);
}

static void batch_norm_layer(void **state)
{
    enum { N = 6, C = 3, HW = 4, M = N * HW };
    TD_SCOPE();
    td_module *l = td_nn_batch_norm(C, &(td_nn_batch_norm_opts){ .momentum = 0.25f });
    td_nn_init_uniform(td_parameter_get(l, "weight"), 0.5, 2);
    td_nn_init_uniform(td_parameter_get(l, "bias"), -1, 1);
    td_tensor *x = td_randn(TD_SHAPE(N, C, 2, 2), 3, 4), *w = td_parameter_get(l, "weight"), *b = td_parameter_get(l, "bias");
    double mean[C] = { 0 }, var[C] = { 0 };
    for (int c = 0; c < C; c++) {
        for (int n = 0; n < N; n++)
            for (int i = 0; i < HW; i++)
                mean[c] += at(x, (n * C + c) * HW + i) / M;
        for (int n = 0; n < N; n++)
            for (int i = 0; i < HW; i++)
                var[c] += pow(at(x, (n * C + c) * HW + i) - mean[c], 2) / M;
    }
    td_tensor *y = td_forward(l, x);
    td_train(l, false);
    td_tensor *z = td_forward(l, x);
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) {
            double running_mean = 0.25 * mean[c], running_var = 0.75 + 0.25 * var[c] * M / (M - 1);
            expect_near(at(td_parameter_get(l, "running_mean"), c), running_mean, 1e-6);
            expect_near(at(td_parameter_get(l, "running_var"), c), running_var, 1e-6);
            for (int i = 0; i < HW; i++) {
                double v = at(x, (n * C + c) * HW + i);
                expect_near(at(y, (n * C + c) * HW + i), (v - mean[c]) / sqrt(var[c] + 1e-5) * at(w, c) + at(b, c), 1e-5);
                expect_near(at(z, (n * C + c) * HW + i), (v - running_mean) / sqrt(running_var + 1e-5) * at(w, c) + at(b, c), 1e-5);
            }
        }
    td_module_free(l);
    l = td_nn_batch_norm(2, &(td_nn_batch_norm_opts){ .no_affine = true });
    assert_int_equal(td_parameters(l).n, 0);
    assert_int_equal(td_buffers(l).n, 2);
    td_module_free(l);
}

static void activation_layers(void **state)
{
    TD_SCOPE();
    td_module *layer[] = { td_nn_relu(), td_nn_gelu(), td_nn_sigmoid(), td_nn_tanh(), td_nn_silu() };
    td_tensor *x = td_randn(TD_SHAPE(4, 9), 3, 5);
    for (int k = 0; k < 5; k++) {
        td_tensor *y = td_forward(layer[k], x);
        for (int i = 0; i < 36; i++) {
            double v = at(x, i);
            double want[] = { v > 0 ? v : 0, v * (1 + erf(v / sqrt(2))) / 2, 1 / (1 + exp(-v)), tanh(v), v / (1 + exp(-v)) };
            expect_near(at(y, i), want[k], 1e-6);
        }
        td_module_free(layer[k]);
    }
    td_module *flat = td_nn_flatten();
    assert_true(td__shape_equal(td_shape_of(td_forward(flat, td_zeros(TD_SHAPE(2, 3, 4), TD_F32))), TD_SHAPE(2, 12)));
    td_module_free(flat);
}

static void dropout_layer(void **state)
{
    TD_SCOPE();
    enum { N = 50, D = 200 };
    td_module *l = td_nn_dropout(0.3);
    td_tensor *x = td_ones(TD_SHAPE(N, D), TD_F32), *y = td_forward(l, x);
    int zeros = 0;
    for (int i = 0; i < N * D; i++) {
        assert_true(at(y, i) == 0 || fabs(at(y, i) - 1 / 0.7) < 1e-6);
        zeros += at(y, i) == 0;
    }
    assert_true(fabs(zeros - 3000.0) < 5 * sqrt(N * D * 0.3 * 0.7));
    td_train(l, false);
    assert_ptr_equal(td_forward(l, x), x);
    td_module_free(l);
}

static void wrong_arguments(void **state)
{
    td_nn_linear(3, -1, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_linear: in is 3 and out is -1, expected 1 or more");
    td_nn_conv2d(1, 2, 0, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_conv2d: in is 1, out 2 and kernel 0, expected 1 or more");
    td_nn_conv2d(1, 2, 3, &(td_nn_conv2d_opts){ .padding = -1 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_conv2d: stride is 1 and padding -1, expected 1 or more and 0 or more");
    td_nn_conv2d(4, 6, 3, &(td_nn_conv2d_opts){ .groups = 3 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_conv2d: groups is 3, expected a divisor of in 4 and out 6");
    td_nn_conv2d(4, 6, 3, &(td_nn_conv2d_opts){ .dilation = -1 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_conv2d: dilation is -1 and groups 1, expected 1 or more");
    td_nn_conv_transpose2d(4, 6, 0, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_conv_transpose2d: in is 4, out 6 and kernel 0, expected 1 or more");
    td_nn_conv_transpose2d(4, 6, 3, &(td_nn_conv_transpose2d_opts){ .output_padding = 1 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_conv_transpose2d: output_padding is 1, expected 0 or more and less than 1, the larger of stride and dilation");
    td_nn_adaptive_avg_pool2d(0, 1);
    expect_error(TD_ERR_ARGUMENT, "td_nn_adaptive_avg_pool2d: the output's size is 0 by 1, expected at least 1 by 1");
    td_nn_batch_norm(0, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_batch_norm: channels is 0, expected 1 or more");
    td_nn_batch_norm(1, &(td_nn_batch_norm_opts){ .momentum = 2 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_batch_norm: momentum is 2 and eps 0, expected 0 to 1 (TD_ZERO for 0) and more than 0");
    td_nn_max_pool2d(2, &(td_pool2d_opts){ .padding = 2 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_max_pool2d: window is 2, stride 2 and padding 2, expected 1 or more, 1 or more, and at most half the window");
    td_nn_avg_pool2d(0, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_nn_avg_pool2d: window is 0, stride 0 and padding 0, expected 1 or more, 1 or more, and at most half the window");
    td_nn_dropout(1);
    expect_error(TD_ERR_ARGUMENT, "td_nn_dropout: p is 1, expected 0 or more and less than 1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(linear_layer), TEST(conv2d_layer), TEST(conv2d_grouped_layer), TEST(conv_transpose2d_layer),
        TEST(pool_layers), TEST(adaptive_pool_layers), TEST(batch_norm_layer), TEST(activation_layers), TEST(dropout_layer),
        TEST(wrong_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
