/* tests/nn/test_init.c: initialisers against their formulas: bounds, and moments within five standard errors. */
#include "nn_test.h"

typedef struct { double mean, variance, largest; int64_t n; } moments;

static moments measure(td_tensor *x)
{
    moments m = { .n = td_numel(x) };
    TD_SCOPE();
    const double *v = td_data(td_cast(x, TD_F64));
    for (int64_t i = 0; i < m.n; i++) {
        m.mean += v[i] / (double)m.n;
        m.largest = fmax(m.largest, fabs(v[i]));
    }
    for (int64_t i = 0; i < m.n; i++)
        m.variance += (v[i] - m.mean) * (v[i] - m.mean) / (double)m.n;
    return m;
}

/* A uniform's variance is bound^2/3 and its fourth central moment bound^4/5; a normal's s^2 and 3 s^4. */
static void expect_uniform(td_tensor *x, double bound)
{
    moments m = measure(x);
    double n = (double)m.n, variance = bound * bound / 3, error = sqrt((pow(bound, 4) / 5 - variance * variance) / n);
    assert_true(m.largest <= bound * (1 + 1e-6) && m.largest > bound * (1 - 30 / n));
    assert_true(fabs(m.mean) < 5 * sqrt(variance / n));
    assert_true(fabs(m.variance - variance) < 5 * error);
}

static void expect_normal(td_tensor *x, double mean, double std)
{
    moments m = measure(x);
    double n = (double)m.n;
    assert_true(fabs(m.mean - mean) < 5 * std / sqrt(n));
    assert_true(fabs(m.variance - std * std) < 5 * std * std * sqrt(2 / n));
    assert_true(m.largest > std * 3);
}

static void formulas(void **state)
{
    td_tensor *w = td_empty(TD_SHAPE(60, 100), TD_F32), *c = td_empty(TD_SHAPE(16, 24, 3, 5), TD_F64);
    double in = 24 * 15, out = 16 * 15;
    assert_int_equal(td_nn_init_uniform(w, -3, 3), 0);
    expect_uniform(w, 3);
    assert_int_equal(td_nn_init_normal(w, 1.5, 0.2), 0);
    expect_normal(w, 1.5, 0.2);
    td_nn_init_kaiming_uniform(w, NULL);
    expect_uniform(w, sqrt(6.0 / 100));
    td_nn_init_kaiming_uniform(c, &(td_nn_init_opts){ .a = 0.5, .fan_out = true });
    expect_uniform(c, sqrt(6.0 / (1.25 * out)));
    td_nn_init_kaiming_normal(c, NULL);
    expect_normal(c, 0, sqrt(2 / in));
    td_nn_init_kaiming_normal(w, &(td_nn_init_opts){ .a = sqrt(5) });
    expect_normal(w, 0, sqrt(2 / (6.0 * 100)));
    td_nn_init_xavier_uniform(c, NULL);
    expect_uniform(c, sqrt(6 / (in + out)));
    td_nn_init_xavier_normal(w, &(td_nn_init_opts){ .a = 1.7 });
    expect_normal(w, 0, 1.7 * sqrt(2.0 / 160));
    td_tensor *none = td_empty(TD_SHAPE(0, 3), TD_F32);
    assert_int_equal(td_nn_init_kaiming_uniform(none, NULL), 0);
    assert_int_equal(td_nn_init_uniform(none, 0, 1), 0);
}

static void layers_default_as_pytorch(void **state)
{
    td_module *l = td_nn_linear(400, 300, NULL), *c = td_nn_conv2d(24, 200, 5, NULL);
    expect_uniform(td_parameter_get(l, "weight"), 1 / sqrt(400));
    expect_uniform(td_parameter_get(l, "bias"), 1 / sqrt(400));
    expect_uniform(td_parameter_get(c, "weight"), 1 / sqrt(24 * 25));
    expect_uniform(td_parameter_get(c, "bias"), 1 / sqrt(24 * 25));
    td_module_free(l);
    td_module_free(c);
    /* fan_in is dimension 1 of the weight times the window, also where the layer is transposed (torch.nn.init) */
    c = td_nn_conv2d(24, 200, 5, &(td_nn_conv2d_opts){ .groups = 4 });
    expect_uniform(td_parameter_get(c, "weight"), 1 / sqrt(6 * 25));
    expect_uniform(td_parameter_get(c, "bias"), 1 / sqrt(6 * 25));
    td_module_free(c);
    c = td_nn_conv_transpose2d(24, 200, 3, &(td_nn_conv_transpose2d_opts){ .groups = 4 });
    expect_uniform(td_parameter_get(c, "weight"), 1 / sqrt(50 * 9));
    expect_uniform(td_parameter_get(c, "bias"), 1 / sqrt(50 * 9));
    td_module_free(c);
}

/* The n-th parameter of a job is the same whatever happened between, and no two draw alike. */
static void streams(void **state)
{
    td_module *a = td_nn_linear(10, 10, NULL), *b = td_nn_linear(10, 10, NULL);
    float *wa = td_data(td_parameter_get(a, "weight")), *wb = td_data(td_parameter_get(b, "weight"));
    assert_memory_not_equal(wa, wb, 400);
    td_tensor *plain = td_rand(TD_SHAPE(10, 10), 0, 0);
    float *u = td_data(plain);
    assert_true(fabs((double)wa[0] * sqrt(10) - (2 * (double)u[0] - 1)) > 1e-3);   /* not the bits of the user's first stream */
    td__init_restart();
    td_rand(TD_SHAPE(5), 0, 1);
    td_module *again = td_nn_linear(10, 10, NULL);
    assert_memory_equal(td_data(td_parameter_get(again, "weight")), wa, 400);
    td_seed(1);
    td_module *other = td_nn_linear(10, 10, NULL);
    assert_memory_not_equal(td_data(td_parameter_get(other, "weight")), wa, 400);
    td_seed(0);
    td_module *back = td_nn_linear(10, 10, NULL);
    assert_memory_equal(td_data(td_parameter_get(back, "weight")), wa, 400);
    td__nn_free_all();
}

static void wrong_use(void **state)
{
    td_tensor *v = td_ones(TD_SHAPE(3), TD_F32), *i = td_ones(TD_SHAPE(3, 3), TD_I64);
    td_nn_init_kaiming_uniform(v, NULL);
    expect_error(TD_ERR_SHAPE, "td_nn_init_kaiming_uniform: the tensor has shape (3), expected 2 dimensions or more to tell fan_in from fan_out");
    td_nn_init_uniform(i, 0, 1);
    expect_error(TD_ERR_DTYPE, "td_nn_init_uniform: the tensor is i64, expected f32 or f64");
    td_nn_init_uniform(v, 1, 0);
    expect_error(TD_ERR_ARGUMENT, "td_nn_init_uniform: the range [1, 0) is none");
    td_nn_init_normal(v, 0, -1);
    expect_error(TD_ERR_ARGUMENT, "td_nn_init_normal: mean 0 and std -1, expected finite ones and std 0 or more");
    td_nn_init_xavier_normal(td_ones(TD_SHAPE(2, 2), TD_F32), &(td_nn_init_opts){ .a = -1 });
    expect_error(TD_ERR_ARGUMENT, "td_nn_init_xavier_normal: the gain a is -1, expected more than 0");
    assert_true(td_item(td_sum(v, NULL, 0, false)) == 3);
    assert_true(td_nn_init_uniform(NULL, 0, 1) < 0);
    td_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(formulas), TEST(layers_default_as_pytorch), TEST(streams), TEST(wrong_use) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
