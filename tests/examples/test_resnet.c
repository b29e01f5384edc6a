/* tests/examples/test_resnet.c: the model of 06_resnet: torchvision's names, shapes and published numbers of parameters; He et al.'s
 * initial spread; residual blocks against the same arithmetic written out.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include "model.h"

static int64_t numel_of(td_tensors list)
{
    int64_t sum = 0;
    for (size_t i = 0; i < list.n; i++)
        sum += td_numel(list.list[i]);
    return sum;
}

/* torchvision lists 11.689512, 25.557032 million parameters for 1,000 classes; resnet18.state_dict() has 122 tensors, of which 20
 * are num_batches_tracked, resnet50's 320 and 53. */
static void published_sizes(void **state)
{
    static const struct { int depth; int64_t parameters; size_t tensors; } row[] = { { 18, 11689512, 102 }, { 50, 25557032, 267 } };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        td_module *net = resnet_new(&(resnet_opts){ .depth = row[i].depth, .classes = 1000 });
        assert_int_equal(numel_of(td_parameters(net)), row[i].parameters);
        assert_int_equal(td_parameters(net).n + td_buffers(net).n, row[i].tensors);
        td_module_free(net);
    }
}

static void shape_is(td_module *net, const char *path, td_shape want)
{
    td_shape got = td_shape_of(td_parameter_get(net, path));
    assert_int_equal(got.ndim, want.ndim);
    for (int i = 0; i < want.ndim; i++)
        assert_int_equal(got.dim[i], want.dim[i]);
}

static void names_and_shapes(void **state)
{
    td_module *net = resnet_new(&(resnet_opts){ .depth = 50, .width = 8, .classes = 7 });
    shape_is(net, "conv1.weight", TD_SHAPE(8, 3, 7, 7));
    shape_is(net, "bn1.running_var", TD_SHAPE(8));
    shape_is(net, "layer1.0.conv1.weight", TD_SHAPE(8, 8, 1, 1));
    shape_is(net, "layer1.0.conv3.weight", TD_SHAPE(32, 8, 1, 1));
    shape_is(net, "layer1.0.downsample.0.weight", TD_SHAPE(32, 8, 1, 1));
    shape_is(net, "layer1.0.downsample.1.bias", TD_SHAPE(32));
    shape_is(net, "layer3.5.bn3.weight", TD_SHAPE(128));
    shape_is(net, "layer4.0.conv2.weight", TD_SHAPE(64, 64, 3, 3));
    shape_is(net, "fc.weight", TD_SHAPE(7, 256));
    td_module_free(net);
    net = resnet_new(NULL);                    /* ResNet-20 */
    shape_is(net, "conv1.weight", TD_SHAPE(16, 3, 3, 3));
    shape_is(net, "layer3.2.conv2.weight", TD_SHAPE(64, 64, 3, 3));
    shape_is(net, "layer2.0.downsample.0.weight", TD_SHAPE(32, 16, 1, 1));
    shape_is(net, "fc.weight", TD_SHAPE(10, 64));
    assert_null(td_module_get(net, "layer4"));
    assert_null(td_module_get(net, "layer1.0.downsample"));
    td_module_free(net);
}

/* Standard deviation sqrt(2 / (out * k * k)), mean 0, within 5 standard errors. */
static void initial_spread(void **state)
{
    TD_SCOPE();
    td_module *net = resnet_new(&(resnet_opts){ .depth = 20, .zero_gamma = true });
    td_tensor *w = td_parameter_get(net, "layer3.1.conv1.weight");
    int64_t n = td_numel(w);
    const float *v = td_data(w);
    double sum = 0, squares = 0, want = sqrt(2 / (64 * 9.0));
    for (int64_t i = 0; i < n; i++)
        sum += v[i], squares += (double)v[i] * v[i];
    assert_true(fabs(sum / (double)n) < 5 * want / sqrt((double)n));
    assert_true(fabs(sqrt(squares / (double)n) / want - 1) < 5 / sqrt(2 * (double)n));
    assert_true(td_at(td_parameter_get(net, "layer2.0.bn2.weight"), TD_SHAPE(3)) == 0);
    assert_true(td_at(td_parameter_get(net, "layer2.0.bn1.weight"), TD_SHAPE(3)) == 1);
    td_module_free(net);
}

static td_tensor *plain_conv(td_module *net, const char *path, td_tensor *x, int stride, int padding)
{
    return td_conv2d(x, td_parameter_get(net, path), NULL, &(td_conv2d_opts){ .stride = stride, .padding = padding });
}

/* (x - mean) * w / sqrt(var + eps) + b from the plain operations, for evaluation. */
static td_tensor *plain_norm(td_module *net, const char *bn, td_tensor *x)
{
    static const char *const part[] = { "running_mean", "running_var", "weight", "bias" };
    td_tensor *p[4];
    for (int i = 0; i < 4; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s.%s", bn, part[i]);
        td_tensor *v = td_parameter_get(net, path);
        p[i] = td_reshape(v, TD_SHAPE(1, td_numel(v), 1, 1));
    }
    return td_add(td_mul(td_div(td_sub(x, p[0]), td_sqrt(td_shift(p[1], 1e-5))), p[2]), p[3]);
}

/* Depth 8 (one block a stage) in f64 with all norms' numbers drawn at random: block by block by hand. */
static void forward_by_hand(void **state)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_module *net = resnet_new(&(resnet_opts){ .depth = 8, .width = 4, .classes = 3 });
    td_module_to(net, TD_F64);
    td_tensors list[] = { td_parameters(net), td_buffers(net) };
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < list[k].n; i++)
            if (td_shape_of(list[k].list[i]).ndim == 1)
                td_nn_init_uniform(list[k].list[i], 0.5, 1.5);
    td_train(net, false);
    td_tensor *x = td_cast(td_randn(TD_SHAPE(2, 3, 9, 11), 5, 1), TD_F64);
    td_tensor *h = td_relu(plain_norm(net, "bn1", plain_conv(net, "conv1.weight", x, 1, 1)));
    for (int s = 1; s <= 3; s++) {
        char path[8][48];
        static const char *const part[] = { "conv1.weight", "bn1", "conv2.weight", "bn2", "downsample.0.weight", "downsample.1" };
        for (int i = 0; i < 6; i++)
            snprintf(path[i], sizeof path[i], "layer%d.0.%s", s, part[i]);
        td_tensor *y = td_relu(plain_norm(net, path[1], plain_conv(net, path[0], h, s > 1 ? 2 : 1, 1)));
        y = plain_norm(net, path[3], plain_conv(net, path[2], y, 1, 1));
        h = td_relu(td_add(y, s > 1 ? plain_norm(net, path[5], plain_conv(net, path[4], h, 2, 0)) : h));
    }
    td_tensor *w = td_parameter_get(net, "fc.weight"), *b = td_parameter_get(net, "fc.bias");
    td_tensor *want = td_add(td_matmul(td_mean(td_flatten(h, 2), (int[]){ 2 }, 1, false), td_transpose(w, 0, 1)), b);
    td_tensor *got = td_forward(net, x);
    assert_int_equal(td_shape_of(got).dim[0], 2);
    assert_int_equal(td_shape_of(got).dim[1], 3);
    double scale = td_item(td_amax(td_abs(want), NULL, 0, false));
    assert_true(scale > 1e-3);
    assert_true(td_item(td_amax(td_abs(td_sub(got, want)), NULL, 0, false)) < 1e-12 * scale);
    td_module_free(net);
}

static void four_stages_take_any_picture(void **state)
{
    static const struct { int depth; bool small; } row[] = { { 18, false }, { 18, true }, { 34, false }, { 50, false }, { 50, true } };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        TD_SCOPE();
        td_module *net = resnet_new(&(resnet_opts){ .depth = row[i].depth, .width = 2, .channels = 1, .classes = 4, .small_images = row[i].small });
        td_tensor *y = td_forward(net, td_randn(TD_SHAPE(2, 1, 29, 35), 5, 1));
        assert_int_equal(td_shape_of(y).dim[1], 4);
        assert_true(isfinite(td_item(td_sum(y, NULL, 0, false))));
        td_module_free(net);
    }
}

static void no_such_depth(void **state)
{
    for (int depth = -4; depth < 8; depth += 3)
        if (depth != 0)                        /* 0: the default */
            assert_null(resnet_new(&(resnet_opts){ .depth = depth }));
    assert_null(resnet_new(&(resnet_opts){ .depth = 21 }));
}

static int nothing_left(void **state)
{
    assert_int_equal(td_error_pending(), 0);
    assert_int_equal(td_memory().live_tensors, 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(published_sizes, nothing_left), cmocka_unit_test_teardown(names_and_shapes, nothing_left),
        cmocka_unit_test_teardown(initial_spread, nothing_left),  cmocka_unit_test_teardown(forward_by_hand, nothing_left),
        cmocka_unit_test_teardown(four_stages_take_any_picture, nothing_left), cmocka_unit_test_teardown(no_such_depth, nothing_left),
    };
    td_errors(TD_ERRORS_RETURN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
