/* tests/cuda/test_exhausted.c: a training step in which any request for memory fails once, be it a result's, a gradient's, a moment's or a
 * kernel's scratch: one sentence, no weight changes for the worse, and the next step goes on. And what a step's memory counts as.
 * On the emulated device and, with TANDEM_DEVICE=cpu, on the CPU.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <tandem/nn.h>
#include <tandem/optim.h>
#include <tensor_impl.h>

enum { N = 3, CLASSES = 5 };

static int begin(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    return 0;
}

static int end(void **state)
{
    td_memory_stats m = td_memory();
    return td_error_pending() != 0 || m.live_tensors != 0 || m.part[TD_MEMORY_PARAMETERS].live_bytes != 0 ||
           m.part[TD_MEMORY_GRADIENTS].live_bytes != 0 || m.part[TD_MEMORY_OPTIMIZER].live_bytes != 0 || m.part[TD_MEMORY_WORKSPACE].live_bytes != 0 ||
           m.part[TD_MEMORY_ACTIVATIONS].live_bytes != 0;
}

static td_module *network(void)
{
    return td_nn_sequential(td_nn_conv2d(3, 6, 3, NULL), td_nn_batch_norm(6, NULL), td_nn_relu(), td_nn_flatten(), td_nn_linear(6 * 4 * 4, 64, NULL),
                            td_nn_layer_norm(TD_SHAPE(64), NULL), td_nn_gelu(), td_nn_linear(64, CLASSES, NULL));
}

/* 0, or the code of the error that is pending. */
static int step(td_module *net, td_optim *opt, double *loss_value)
{
    TD_SCOPE();
    int64_t label[N] = { 0, 3, 4 };
    td_tensor *x = td_randn(TD_SHAPE(N, 3, 6, 6), 1, 2), *y = td_from(label, TD_SHAPE(N), TD_I64);
    td_tensor *loss = td_cross_entropy(td_forward(net, x), y, NULL);
    if (td_backward(loss) == 0)
        td_optim_step(opt);
    *loss_value = td_error_pending() ? NAN : td_item(loss);
    return td_error_pending();
}

static void any_request_fails(void **state)
{
    td_module *net = network();
    td_optim *opt = td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 1e-2f });
    int failed = 0;
    double loss = 0, first = 0, last = 0;
    for (int64_t n = 1;; n++) {
        td__pool_fail_after(n);
        int code = step(net, opt, &loss);
        td__pool_fail_after(-1);
        if (!code) {
            first = first != 0 ? first : loss;
            last = loss;
            if (n > failed + 40)
                break;
            continue;
        }
        failed++;
        assert_int_equal(code, TD_ERR_MEMORY);
        assert_non_null(strstr(td_error_message(), "cannot be had"));
        td_error_clear();
    }
    assert_true(failed > 60);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(step(net, opt, &last), 0);
        assert_true(isfinite(last));
    }
    assert_true(last < first);
    td_optim_free(opt);
    td_module_free(net);
}

static void categories(void **state)
{
    td_memory_reset_peak();
    td_module *net = network();
    int64_t count = 0;
    td_tensors p = td_parameters(net);
    for (size_t i = 0; i < p.n; i++)
        count += td_numel(p.list[i]);
    const int64_t buffers = 2 * 6 * 4;
    td_memory_stats m = td_memory();
    assert_true(m.part[TD_MEMORY_PARAMETERS].live_bytes >= 4 * count + buffers && m.part[TD_MEMORY_PARAMETERS].live_bytes < 4 * count + buffers + 64);
    td_optim *opt = td_adamw_new(p, &(td_adamw_opts){ .lr = 1e-2f });
    double loss;
    assert_int_equal(step(net, opt, &loss), 0);
    m = td_memory();
    assert_true(m.part[TD_MEMORY_PARAMETERS].live_bytes >= 4 * count + buffers && m.part[TD_MEMORY_PARAMETERS].live_bytes < 5 * count + 1000);
    assert_true(m.part[TD_MEMORY_OPTIMIZER].live_bytes >= 8 * count && m.part[TD_MEMORY_OPTIMIZER].live_bytes < 9 * count);
    assert_true(m.part[TD_MEMORY_GRADIENTS].peak_bytes >= 4 * count && m.part[TD_MEMORY_GRADIENTS].peak_bytes < 5 * count);
    assert_int_equal(m.part[TD_MEMORY_ACTIVATIONS].live_bytes, 0);
    assert_true(m.part[TD_MEMORY_ACTIVATIONS].peak_bytes > N * (2 * 6 * 16 + 3 * 64) * 4);
    int64_t sum = 0;
    for (int c = 0; c < TD_MEMORY_CATEGORIES; c++)
        sum += m.part[c].live_bytes;
    assert_int_equal(sum, m.live_bytes);
    if (td_device_default().kind == TD_CUDA)
        assert_true(m.part[TD_MEMORY_WORKSPACE].peak_bytes > 0);
    td_ema *ema = td_ema_new(p, 0.9);
    assert_true(td_memory().part[TD_MEMORY_OPTIMIZER].live_bytes >= 12 * count);
    td_ema_free(ema);
    td_optim_free(opt);
    td_module_free(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(categories, begin, end), cmocka_unit_test_setup_teardown(any_request_fails, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
