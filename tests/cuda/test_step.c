/* tests/cuda/test_step.c: a step of training on the made-up GPU of device.c: how often the host reads from it or waits for it (never, once the
 * caches are warm), and that clipping, master weights and single numbers that stay on the device give what the host would have worked out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <tandem.h>
#include <optim_impl.h>
#include <ddp_impl.h>

extern long td__emulated_waits;

enum { ROWS = 12, IN = 8, HIDDEN = 16, OUT = 5 };

static td_module *mlp(void)
{
    td_seed(3);
    return td_nn_sequential(td_nn_linear(IN, HIDDEN, NULL), td_nn_gelu(), td_nn_linear(HIDDEN, OUT, NULL));
}

static void one_step(td_module *net, td_optim *opt, td_tensor *x, td_tensor *y, int step)
{
    TD_SCOPE();
    td_optim_set_lr(opt, -1, 0.01 * td_schedule_cosine(step, 2, 100, 0));
    assert_int_equal(td_backward(td_add(td_mse(td_forward(net, x), y), td_scale(td_mse(td_forward(net, x), y), 0.5))), 0);
    td_clip_grad_norm_async(opt, 0.05);
    assert_int_equal(td_optim_step(opt), 0);
}

static void no_step_waits(void **state)
{
    (void)state;
    TD_SCOPE();
    td_module *net = mlp();
    const td_tensors p = td_parameters(net);
    td_tensor *x = td_randn(TD_SHAPE(ROWS, IN), 1, 1), *y = td_randn(TD_SHAPE(ROWS, OUT), 1, 2);
    assert_int_equal(td_device_of(p.list[0]).kind, TD_CUDA);
    for (int rule = 0; rule < 4; rule++) {
        td_optim *opt = rule == 0 ? td_adamw_new(p, NULL) : rule == 1 ? td_sgd_new(p, &(td_sgd_opts){ .momentum = 0.9 })
                        : rule == 2 ? td_lamb_new(p, NULL) : td_lars_new(p, NULL);
        one_step(net, opt, x, y, 0);
        const long before = td__emulated_waits;
        for (int step = 1; step < 4; step++)
            one_step(net, opt, x, y, step);
        assert_int_equal(td__emulated_waits, before);
        td_optim_free(opt);
    }
    const long before = td__emulated_waits;
    td_item(td_sum(x, NULL, 0, false));            /* it does count */
    assert_true(td__emulated_waits > before);
    td_module_free(net);
}

/* Where targets are ignored only the device knows the divisor: a backward reads it, once. */
static void ignored_targets_are_one_read(void **state)
{
    (void)state;
    TD_SCOPE();
    td_module *net = mlp();
    int64_t target[ROWS];
    for (int i = 0; i < ROWS; i++)
        target[i] = i % 4 == 0 ? -100 : i % OUT;
    td_tensor *x = td_randn(TD_SHAPE(ROWS, IN), 1, 1), *y = td_from(target, TD_SHAPE(ROWS), TD_I64);
    for (int ignore = 0; ignore < 2; ignore++) {
        td_tensor *t = ignore ? y : td_zeros(TD_SHAPE(ROWS), TD_I64);
        td_tensor *loss = td_cross_entropy(td_forward(net, x), t, &(td_cross_entropy_opts){ .has_ignore_index = ignore, .ignore_index = -100 });
        const long before = td__emulated_waits;
        assert_int_equal(td_backward(loss), 0);
        assert_in_range(td__emulated_waits - before, 0, 3 * ignore);       /* td_item copies, waits, looks for traps */
        assert_int_equal(td__emulated_waits == before, !ignore);
        double weight;
        assert_int_equal(td__number_of(loss->divisor, &weight), !ignore);
        assert_true(ignore || weight == ROWS);
        td_zero_grad(td_parameters(net));
    }
    td_module_free(net);
}

/* y = x w in f64: clipping and AdamW by hand. */
static void clipped_adamw_by_hand(void **state)
{
    (void)state;
    TD_SCOPE();
    enum { N = 6 };
    double w[N], m[N] = { 0 }, v[N] = { 0 }, x[ROWS * N], got[N];
    const double lr = 0.05, b1 = 0.9, b2 = 0.999, eps = 1e-8, decay = 0.01, max = 0.3;
    for (int i = 0; i < ROWS * N; i++)
        x[i] = sin(i * 1.7);
    for (int i = 0; i < N; i++)
        w[i] = cos(i * 0.9);
    td_tensor *p = td_from(w, TD_SHAPE(N, 1), TD_F64), *data = td_from(x, TD_SHAPE(ROWS, N), TD_F64), *zero = td_zeros(TD_SHAPE(ROWS, 1), TD_F64);
    td_requires_grad((td_tensors){ &p, 1 }, true);
    td_optim *opt = td_adamw_new((td_tensors){ &p, 1 }, &(td_adamw_opts){ .lr = lr });
    int clipped = 0;
    for (int step = 1; step <= 40; step++) {
        TD_SCOPE();
        td_backward(td_mse(td_matmul(data, p), zero));
        td_tensor *norm = td_clip_grad_norm_async(opt, max);
        assert_int_equal(td_optim_step(opt), 0);
        double g[N] = { 0 }, sum = 0;
        for (int r = 0; r < ROWS; r++) {
            double y = 0;
            for (int i = 0; i < N; i++)
                y += x[r * N + i] * w[i];
            for (int i = 0; i < N; i++)
                g[i] += 2 * y * x[r * N + i] / ROWS;
        }
        for (int i = 0; i < N; i++)
            sum += g[i] * g[i];
        const double factor = fmin(1, max / sqrt(sum));
        clipped += factor < 1;
        assert_true(fabs(td_item(norm) - sqrt(sum)) <= 1e-12 * sqrt(sum));
        for (int i = 0; i < N; i++) {
            const double d = g[i] * factor;
            m[i] = b1 * m[i] + (1 - b1) * d;
            v[i] = b2 * v[i] + (1 - b2) * d * d;
            w[i] = w[i] * (1 - lr * decay) - lr * m[i] / (1 - pow(b1, step)) / (sqrt(v[i] / (1 - pow(b2, step))) + eps);
        }
        td_copy_out(p, got, sizeof got);
        for (int i = 0; i < N; i++)
            assert_true(fabs(got[i] - w[i]) <= 1e-9);
    }
    assert_true(clipped > 5 && clipped < 40);
    td_optim_free(opt);
}

/* A world of one, several buckets on the device: no wait either, and the weights of training without a td_ddp. */
static void ddp_on_the_device(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        TD_SCOPE();
        td_module *net[] = { mlp(), mlp() };
        for (size_t i = 0; i < td_parameters(net[0]).n; i++)
            td_assign(td_parameters(net[1]).list[i], td_parameters(net[0]).list[i]);
        td_ddp *ddp = td_ddp_new(net[0], &(td_ddp_opts){ .first_bucket_bytes = 128, .bucket_bytes = 512, .gradient_dtype = bf16 ? TD_BF16 : TD_F32 });
        td_optim *opt[] = { td_adamw_new(td_parameters(net[0]), NULL), td_adamw_new(td_parameters(net[1]), NULL) };
        td_tensor *x = td_randn(TD_SHAPE(ROWS, IN), 1, 1), *y = td_randn(TD_SHAPE(ROWS, OUT), 1, 2);
        for (int step = 0; step < 5; step++) {
            const long before = td__emulated_waits;
            one_step(net[0], opt[0], x, y, step);
            assert_true(step == 0 || td__emulated_waits == before);
            one_step(net[1], opt[1], x, y, step);
        }
        td_ddp_stats s = td_ddp_last_step(ddp);
        assert_true(s.buckets >= 3 && s.exposed_ms == s.buckets);      /* two events a bucket, each 1 ms after the one before */
        for (size_t i = 0; i < td_parameters(net[0]).n; i++) {
            float a[HIDDEN * IN], b[HIDDEN * IN];
            const int64_t n = td_numel(td_parameters(net[0]).list[i]);
            td_copy_out(td_parameters(net[0]).list[i], a, (size_t)n * sizeof *a);
            td_copy_out(td_parameters(net[1]).list[i], b, (size_t)n * sizeof *b);
            for (int64_t k = 0; k < n; k++)
                assert_true(fabsf(a[k] - b[k]) <= (bf16 ? 5e-3f : 1e-6f));
        }
        td_optim_free(opt[0]);
        td_optim_free(opt[1]);
        td_ddp_free(ddp);
        td_module_free(net[0]);
        td_module_free(net[1]);
    }
    td__ddp_pace_forget();
}

static int nothing_left(void **state)
{
    (void)state;
    assert_int_equal(td_memory().live_tensors, 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(no_step_waits), cmocka_unit_test(ignored_targets_are_one_read),
                                        cmocka_unit_test(clipped_adamw_by_hand),
                                        cmocka_unit_test(ddp_on_the_device) };
    return cmocka_run_group_tests(tests, NULL, nothing_left);
}
