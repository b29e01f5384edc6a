/* tests/cuda/test_host.c [refused]: the plug-in's host side (plugin, device, memory, copies, streams) on a fake runtime that does nothing
 * before it is waited for: bytes, sentences, exhaustion. "refused" runs one way of having no GPU per process: the driver is asked once.
 */
#include "../../plugins/cuda/cuda_impl.h"
#include "fake_cuda.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

TD_API const td_plugin *td_plugin_v1(const td_host *host);
const td_kernels td__cuda_kernels = { .name = "cuda" };
size_t cublas_version(void) { return 130002; }
static const td_device_ops *ops;

static void expect_error(int code, const char *part)
{
    assert_int_equal(td_error_pending(), code);
    if (!strstr(td_error_message(), part))
        fail_msg("\"%s\" is not in \"%s\"", part, td_error_message());
    td_error_clear();
}

static void copies(void **state)
{
    static const size_t sizes[] = { 1, 511, (2u << 20) - 1, 2u << 20, (2u << 20) + 1, 21u << 20 };      /* up to more than the whole ring */
    for (size_t s = 0; s < TD_COUNT(sizes); s++) {
        const size_t n = sizes[s];
        unsigned char *from = malloc(n), *to = calloc(n + 1, 1);
        char *a = ops->alloc(0, n), *b = ops->alloc(0, n);
        assert_true(from && to && a && b);
        for (size_t i = 0; i < n; i++)
            from[i] = (unsigned char)(i * 2654435761u >> 9);
        memset(a, 0, n);
        assert_int_equal(ops->copy(0, a, false, from, true, n), 0);
        memset(from, 0xee, n);                                         /* the caller's bytes were taken                           */
        assert_int_equal(ops->copy(0, b, false, a, false, n), 0);
        assert_int_equal(ops->copy(0, to, true, b, false, n), 0);
        for (size_t i = 0; i < n; i++)
            if (to[i] != (unsigned char)(i * 2654435761u >> 9))
                fail_msg("%zu bytes: byte %zu differs", n, i);
        assert_int_equal(to[n], 0);
        ops->free(0, a);
        ops->free(0, b);
        free(from);
        free(to);
    }
}

static void small_copies(void **state)
{
    enum { N = 1000 };
    int64_t *device = ops->alloc(0, N * sizeof *device), back[N];
    for (int64_t i = 0; i < N; i++) {
        int64_t value = 3 * i + 1;
        assert_int_equal(ops->copy(0, device + i, false, &value, true, sizeof value), 0);
    }
    assert_int_equal(td__cuda_read(back, device, sizeof back), 0);
    for (int64_t i = 0; i < N; i++)
        assert_int_equal(back[i], 3 * i + 1);
    ops->free(0, device);
}

static void memory(void **state)
{
    void *held = ops->alloc(0, 100u << 20), *scratch = td__cuda_scratch(1000);
    td_memory_stats m = { 0 };
    assert_true(held && scratch);
    assert_int_equal(ops->memory(0, &m), 0);
    assert_int_equal(m.live_bytes, (100 << 20) + 1024);
    td__cuda_scratch_free(scratch);
    assert_null(ops->alloc(0, (size_t)200 << 20));
    expect_error(TD_ERR_MEMORY, "cuda:0 has no memory for 200.00 MiB more: this process holds 100.00 MiB in 1 blocks and 0 bytes of cache, 156.00 MiB of "
                                "256.00 MiB are free; the largest: 100.00 MiB");
    ops->free(0, held);
    held = ops->alloc(0, (size_t)200 << 20);                           /* the cached 100 MiB are given back for it                  */
    assert_non_null(held);
    ops->free(0, held);
    ops->free(0, held);
    expect_error(TD_ERR_INTERNAL, "that it never handed out");
}

static void streams(void **state)
{
    void *stream = ops->stream_new(0, true), *event = ops->event_new(0);
    assert_true(stream && event);
    assert_true(ops->event_record(0, event, NULL) == 0 && ops->event_wait(0, event, stream) == 0);
    ops->event_free(0, event);
    ops->stream_free(0, stream);
    assert_int_equal(td__cuda_processors(), 3);
    assert_true(td__cuda_stream() == cuda_compute && cuda_compute);
}

static void errors(void **state)
{
    assert_null(ops->alloc(1, 10));
    expect_error(TD_ERR_DEVICE, "cuda:1 cannot be used beside cuda:0: a process computes on one GPU");
    td__cuda_launched("add");
    assert_int_equal(td_error_pending(), 0);
    cudaSetDevice(99);                                                 /* leaves an error for the next launch to find              */
    td__cuda_launched("mul");
    expect_error(TD_ERR_DEVICE, "the kernel \"mul\" cannot be started on cuda:0");
    fake.wait_error = cudaErrorIllegalAddress;
    assert_int_equal(ops->synchronize(0), TD_ERR_DEVICE);
    expect_error(TD_ERR_DEVICE, "a kernel that was started before has failed: illegal address (cudaErrorIllegalAddress); the last one started was \"mul\"");
    fake.wait_error = cudaSuccess;
}

static void launch(const char *row, double ms)
{
    td__cuda_stream();
    fake.clock += ms;
    td__cuda_launched(row);
    fake.clock += 0.25;                                                /* a gap that belongs to no kernel                           */
}

/* More launches than the ring holds; neither recorded ones nor those before and after count. */
static void times(void **state)
{
    enum { CALLS = 10000 };
    td_kernel_time t[4];
    assert_int_equal(ops->times_end(0, t, 4), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "the kernels of cuda:0 are not being timed");
    launch("before", 1);
    assert_int_equal(ops->times_begin(0), 0);
    for (int i = 0; i < CALLS; i++) {
        launch("add", 0.5);
        launch(i % 2 ? "gemm" : "softmax", i % 2 ? 2 : 0.125);
    }
    fake.capturing = true;
    launch("recorded", 1);
    fake.capturing = false;
    assert_int_equal(ops->times_end(0, t, 4), 3);
    launch("after", 1);
    const td_kernel_time expected[3] = { { "gemm", CALLS / 2, CALLS }, { "add", CALLS, CALLS / 2 }, { "softmax", CALLS / 2, CALLS / 16 } };
    for (int i = 0; i < 3; i++) {
        assert_string_equal(t[i].kernel, expected[i].kernel);
        assert_int_equal(t[i].calls, expected[i].calls);
        assert_float_equal(t[i].ms, expected[i].ms, 1e-6);
    }
    assert_int_equal(ops->times_begin(0), 0);                          /* anew, from nothing                                        */
    launch("add", 3);
    assert_int_equal(ops->times_end(0, t, 0), 1);
}

static void described(void **state)
{
    char text[200], small[20];
    assert_string_equal(td_plugin_v1(&td__host)->describe(text, sizeof text),
                        "driver for CUDA 13.0, runtime 13.0, cuBLASLt 13.0.2, cuda:0 Fake 0 0 GiB, cuda:1 Fake 1 0 GiB");
    td_plugin_v1(&td__host)->describe(small, sizeof small);
    assert_int_equal(strlen(small), sizeof small - 1);
}

/* Each in a process of its own. */
static int refused(int which)
{
    static const struct { cudaError_t e; int driver, devices, major; const char *sentence; } rows[] = {
        { cudaErrorInsufficientDriver, 12020, 0, 9, "the NVIDIA driver is made for CUDA 12.2 and this build needs 13.0: a newer driver is needed" },
        { cudaErrorInsufficientDriver, 0, 0, 9, "this machine has no NVIDIA driver, or one that is too old for CUDA 13.0" },
        { cudaErrorNoDevice, 13000, 0, 9, "the NVIDIA driver shows no GPU to this process (does CUDA_VISIBLE_DEVICES hide it?)" },
        { cudaSuccess, 13000, 0, 9, "the NVIDIA driver shows no GPU to this process (does CUDA_VISIBLE_DEVICES hide it?)" },
        { cudaErrorSystemNotReady, 13000, 0, 9, "the GPUs cannot be counted: some error (cudaErrorSome)" },
        { cudaSuccess, 13000, 1, 8, "the GPU Fake 0 has compute capability 8.0 and this build's kernels need 9.0" },
    };
    if (which >= (int)TD_COUNT(rows))
        return 77;
    fake = (fake_gpu){ .devices = rows[which].devices, .driver = rows[which].driver, .major = rows[which].major, .count_error = rows[which].e };
    const td_plugin *p = td_plugin_v1(&td__host);
    bool well = p && !p->device && p->why && strcmp(p->why, rows[which].sentence) == 0 && cuda_count() == 0;
    printf("%s\n", p && p->why ? p->why : "not refused");
    return !well;
}

int main(int argc, char **argv)
{
    td_errors(TD_ERRORS_RETURN);
    if (argc > 1)
        return refused(atoi(argv[1]));
    fake.devices = 2;
    fake.driver = 13000;
    const td_plugin *plugin = td_plugin_v1(&td__host);
    if (!plugin || !plugin->device) {
        printf("refused: %s\n", plugin ? plugin->why : "");
        return 1;
    }
    ops = plugin->device;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies), cmocka_unit_test(small_copies), cmocka_unit_test(memory), cmocka_unit_test(streams), cmocka_unit_test(errors),
        cmocka_unit_test(times), cmocka_unit_test(described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
