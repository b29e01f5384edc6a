/* tests/tensor/test_device.c: TANDEM_DEVICE, the default device, and a made-up second device that stands in for CUDA: memory of its own
 * that the host may not read, so that every path that must not touch it directly is seen.
 */
#include "tensor_test.h"

/* ---- the made-up device: the addresses it hands out are shifted, so that reading them on the host is an error ------------------------ */
enum { SHIFT = 1 << 20 };
static int64_t blocks;

static void *real(const void *pointer) { return (char *)(uintptr_t)pointer - SHIFT; }
static int two(void) { return 2; }
static void *fake_alloc(int index, size_t bytes)
{
    (void)index;
    blocks++;
    return (char *)malloc(bytes + 1) + SHIFT;
}
static void fake_free(int index, void *block)
{
    (void)index;
    blocks--;
    free(real(block));
}
static int fake_copy(int index, void *to, bool to_host, const void *from, bool from_host, size_t bytes)
{
    (void)index;
    memmove(to_host ? to : real(to), from_host ? from : real(from), bytes);
    return 0;
}
static int fake_synchronize(int index) { (void)index; return 0; }
static void *fake_new(int index) { (void)index; return &blocks; }
static void *fake_stream(int index, bool high) { (void)index, (void)high; return &blocks; }
static void fake_drop(int index, void *p) { (void)index, (void)p; }
static int fake_event(int index, void *event, void *stream) { (void)index, (void)event, (void)stream; return 0; }
static void fake_move(const td_loop *l, td_dtype to, void *out, td_dtype from, const void *x, bool add)
{
    td__cpu_kernels()->copy(l, to, real(out), from, real(x), add);
}
static void fake_fill(const td_loop *l, td_dtype t, void *out, double value)
{
    td__cpu_kernels()->fill(l, t, real(out), value);
}
static const td_kernels fake_kernels = { .name = "made up", .copy = fake_move, .fill = fake_fill };
static const td_device_ops fake_ops = {
    .name = "cuda", .kind = TD_CUDA, .count = two, .alloc = fake_alloc, .free = fake_free, .copy = fake_copy,
    .synchronize = fake_synchronize, .stream_new = fake_stream, .stream_free = fake_drop, .event_new = fake_new,
    .event_record = fake_event, .event_wait = fake_event, .event_free = fake_drop, .kernels = &fake_kernels,
};

static void find_without_cuda(void **state)
{
    (void)state;
    char error[512];
    td_device d;
    assert_int_equal(td__device_find(NULL, -1, 0, &d, error, sizeof error), 0);
    assert_int_equal(d.kind, TD_CPU);
    assert_int_equal(td__device_find("auto", 3, 8, &d, error, sizeof error), 0);
    assert_int_equal(d.kind, TD_CPU);
    assert_int_equal(td__device_find("cpu", 0, 1, &d, error, sizeof error), 0);
    assert_int_equal(d.kind, TD_CPU);
    static const char *const bad[] = { "gpu", "cuda:", "cuda:x", "cuda:1x", "cuda:-1", "CPU", "cuda0" };
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        assert_int_equal(td__device_find(bad[i], 0, 1, &d, error, sizeof error), TD_ERR_ARGUMENT);
        assert_non_null(strstr(error, "TANDEM_DEVICE is"));
        assert_non_null(strstr(error, "expected cpu, cuda or cuda:N"));
        assert_non_null(strstr(error, bad[i]));
    }
    assert_int_equal(td__device_find("cuda", 0, 1, &d, error, sizeof error), TD_ERR_DEVICE);
    assert_non_null(strstr(error, "TANDEM_DEVICE is \"cuda\", but cuda:0 cannot be used: "));
    assert_true(error[strlen(error) - 1] != ' ');                  /* the reason follows */
    assert_null(td__device_ops((td_device){ TD_CUDA, 0 }));
    expect_error(TD_ERR_DEVICE, "cuda:0 cannot be used");
    assert_null(td__device_ops((td_device){ TD_CPU, 1 }));
    expect_error(TD_ERR_DEVICE, "there is no device cpu:1: this machine offers 1");
    assert_null(td__device_ops((td_device){ (td_device_kind)9, 0 }));
    expect_error(TD_ERR_DEVICE, "there is no device kind 9");
    TD_SCOPE();
    td_tensor *x = td_ones(TD_SHAPE(2), TD_F32);
    assert_true(td_is_poisoned(td_to(x, (td_device){ TD_CUDA, 0 })));
    expect_error(TD_ERR_DEVICE, "cuda:0 cannot be used");
}

static void default_from_the_environment(void **state)
{
    (void)state;
    setenv("TANDEM_DEVICE", "gpu", 1);
    assert_true(td__device_set_default((td_device){ TD_DEFAULT, 0 }) < 0);
    expect_error(TD_ERR_ARGUMENT, "TANDEM_DEVICE is \"gpu\"");
    assert_int_equal(td_device_default().kind, TD_CPU);            /* the first use says it too */
    expect_error(TD_ERR_ARGUMENT, "TANDEM_DEVICE is \"gpu\"");
    setenv("TANDEM_DEVICE", "cpu", 1);
    assert_int_equal(td_device_default().kind, TD_CPU);
    assert_int_equal(td_error_pending(), 0);
    unsetenv("TANDEM_DEVICE");
}

static void find_with_cuda(void **state)
{
    (void)state;
    char error[512];
    td_device d;
    assert_int_equal(td__device_register(&fake_ops), 0);
    assert_int_equal(td__device_find(NULL, 1, 2, &d, error, sizeof error), 0);
    assert_true(d.kind == TD_CUDA && d.index == 1);
    assert_int_equal(td__device_find(NULL, 1, 3, &d, error, sizeof error), TD_ERR_DEVICE);
    assert_non_null(strstr(error, "3 ranks on this host share 2 GPUs"));
    assert_int_equal(td__device_find("cpu", 1, 3, &d, error, sizeof error), 0);
    assert_int_equal(d.kind, TD_CPU);
    assert_int_equal(td__device_find("cuda:1", 0, 3, &d, error, sizeof error), 0);
    assert_true(d.kind == TD_CUDA && d.index == 1);
    assert_int_equal(td__device_find("cuda", 1, 2, &d, error, sizeof error), 0);
    assert_true(d.kind == TD_CUDA && d.index == 1);
    assert_int_equal(td__device_find("cuda:2", 0, 1, &d, error, sizeof error), TD_ERR_DEVICE);
    assert_non_null(strstr(error, "there is no device cuda:2: this machine offers 2"));
}

static void moving(void **state)
{
    (void)state;
    td_device gpu = { TD_CUDA, 1 }, cpu = { TD_CPU, 0 };
    {
        TD_SCOPE();
        td_tensor *x = td_arange(6, TD_F32), *y = td_to(x, gpu);
        assert_false(td_is_poisoned(y));
        assert_true(td_device_of(y).kind == TD_CUDA && td_device_of(y).index == 1);
        assert_int_equal(blocks, 1);
        assert_null(td_data(y));
        expect_error(TD_ERR_DEVICE, "td_data: the tensor of shape (6) is on cuda:1: td_copy_out reads it");
        float got[6];
        assert_int_equal(td_copy_out(y, got, sizeof got), 0);
        assert_true(got[5] == 5 && td_at(y, TD_SHAPE(3)) == 3);
        int64_t stride[] = { 1, 2 };
        td_tensor *t = td__scoped_tensor(td__tensor_view(y, TD_SHAPE(2, 3), stride, 0));
        assert_int_equal(td_copy_out(t, got, sizeof got), 0);      /* packed on its device, then copied */
        assert_true(got[0] == 0 && got[1] == 2 && got[2] == 4 && got[3] == 1 && got[5] == 5);
        assert_true(td_at(td_to(t, cpu), TD_SHAPE(1, 1)) == 3);
        char text[100];
        td_format(t, text, sizeof text);
        assert_string_equal(text, "tensor (2,3) f32 [[0, 2, 4], [1, 3, 5]]");
        assert_int_equal(td_copy_in(y, (float[]){ 9, 8, 7, 6, 5, 4 }, 24), 0);
        assert_true(td_at(y, TD_SHAPE(1)) == 8);
        td_tensor *wide = td_zeros(TD_SHAPE(2, 3), TD_F64);        /* from device to host, strides and dtypes differ */
        assert_int_equal(td_assign(wide, t), 0);
        assert_true(td_at(wide, TD_SHAPE(1, 2)) == 4 && td_at(wide, TD_SHAPE(0, 1)) == 7);
        assert_int_equal(td_assign(t, td_full(TD_SCALAR, TD_I64, 3)), 0);
        assert_true(td_at(y, TD_SHAPE(4)) == 3);
        assert_int_equal(td__device_set_default(gpu), 0);
        td_tensor *z = td_zeros(TD_SHAPE(3), TD_F32);
        assert_int_equal(td_device_of(z).kind, TD_CUDA);
        assert_true(td_at(td_from((float[]){ 1, 2, 3 }, TD_SHAPE(3), TD_F32), TD_SHAPE(2)) == 3);
        assert_true(td_is_poisoned(td_rand(TD_SHAPE(3), 0, 0)));
        expect_error(TD_ERR_UNSUPPORTED, "td_rand: the kernel \"rand\" does not exist on cuda:1");
        assert_int_equal(td__device_set_default(cpu), 0);
    }
    assert_int_equal(blocks, 0);
}

static void cpu_streams(void **state)
{
    (void)state;
    const td_device_ops *ops = td__device_ops((td_device){ TD_CPU, 0 });
    void *stream = ops->stream_new(0, true), *event = ops->event_new(0);
    assert_true(stream && event);
    assert_int_equal(ops->event_record(0, event, stream), 0);
    assert_int_equal(ops->event_wait(0, event, stream), 0);
    assert_int_equal(ops->synchronize(0), 0);
    ops->event_free(0, event);
    ops->stream_free(0, stream);
    assert_true(ops->host_memory);
    assert_string_equal(ops->name, "cpu");
    assert_int_equal(td_synchronize((td_device){ TD_CPU, 0 }), 0);
    assert_int_equal(td_kernel_times_begin((td_device){ TD_CPU, 0 }), TD_ERR_UNSUPPORTED);
    expect_error(TD_ERR_UNSUPPORTED, "td_kernel_times_begin: kernels of cpu are not timed, only those of a GPU");
    assert_int_equal(td_kernel_times_end((td_device){ TD_DEFAULT, 0 }, NULL, 0), TD_ERR_UNSUPPORTED);
    expect_error(TD_ERR_UNSUPPORTED, "td_kernel_times_end: kernels of cpu are not timed, only those of a GPU");
}

int main(void)
{
    unsetenv("TANDEM_DEVICE");
    setenv("TANDEM_PLUGIN_DIR", "/nonexistent", 1);                /* a CUDA plug-in that is really there would spoil this */
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = {
        TEST(default_from_the_environment), TEST(find_without_cuda), TEST(cpu_streams), TEST(find_with_cuda), TEST(moving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
