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
    expect_error(TD_ERR_MEMORY, "cuda:0 has no memory for 200.00 MiB more of other: 156.00 MiB of 256.00 MiB are free, and this process holds 0 bytes of "
                                "cache and 100.00 MiB in 1 blocks (other 100.00 MiB); most of it: 100.00 MiB of other");
    ops->free(0, held);
    held = ops->alloc(0, (size_t)200 << 20);                           /* the cached 100 MiB are given back for it                  */
    assert_non_null(held);
    ops->free(0, held);
    ops->free(0, held);
    expect_error(TD_ERR_INTERNAL, "that it never handed out");
}

/* What a program at work holds, told by what it is for and by the lines that asked for it. */
static void exhaustion(void **state)
{
    static const char site;
    ops->memory_trim(0);                                               /* the pieces of other tests are in the way                  */
    td__site = &site;
    td_here("net.c", 7);
    void *weights = ops->alloc(0, 20u << 20), *late = ops->alloc(0, 5u << 20);
    ops->label(0, weights, TD_MEMORY_PARAMETERS);
    td__memory_now = TD_MEMORY_ACTIVATIONS;
    void *results[4];
    for (int i = 0; i < 4; i++)
        results[i] = ops->alloc(0, 30u << 20);
    td_memory_stats m = { 0 };
    ops->memory(0, &m);
    assert_true(m.part[TD_MEMORY_PARAMETERS].live_bytes == 20 << 20 && m.part[TD_MEMORY_ACTIVATIONS].live_bytes == 120 << 20);
    assert_null(td__cuda_scratch((size_t)150 << 20));
    expect_error(TD_ERR_MEMORY, "cuda:0 has no memory for 150.00 MiB more of workspace: ");
    assert_null(ops->alloc(0, (size_t)200 << 20));
    td__memory_now = TD_MEMORY_OTHER;
    expect_error(TD_ERR_MEMORY, "(other 5.00 MiB, parameters 20.00 MiB, activations 120.00 MiB); most of it: 120.00 MiB of activations from net.c:7, "
                                "20.00 MiB of parameters from net.c:7, 5.00 MiB of other from net.c:7");
    ops->label(0, (char *)weights + 512, TD_MEMORY_PARAMETERS);
    expect_error(TD_ERR_INTERNAL, "a block of cuda:0 that it never handed out is said to be of parameters");
    for (int i = 0; i < 4; i++)
        ops->free(0, results[i]);
    results[0] = ops->alloc(0, (size_t)200 << 20);                    /* what was freed is there for another size                 */
    assert_non_null(results[0]);
    ops->free(0, results[0]);
    ops->free(0, weights);
    ops->free(0, late);
    ops->memory_reset_peak(0);
    ops->memory_trim(0);
    ops->memory(0, &m);
    assert_true(m.live_bytes == 0 && m.peak_bytes == 0 && m.cached_bytes == 0 && m.part[TD_MEMORY_ACTIVATIONS].peak_bytes == 0);
    td_here(NULL, 0);
    td__site = NULL;
}

/* Memory that a stream beside the compute stream reads comes back before that stream got there: nobody may write into it meanwhile. */
static void other_stream(void **state)
{
    enum { N = 8 << 20 };
    char *x = ops->alloc(0, N), *y, *host = ops->host_alloc(0, N);
    void *stream = ops->stream_new(0, false), *event = ops->event_new(0);
    assert_true(x && host && stream && event);
    memset(host, 'x', N);
    assert_int_equal(ops->copy_async(0, x, host, N, false, NULL), 0);
    assert_int_equal(ops->event_record(0, event, NULL), 0);
    assert_int_equal(ops->event_wait(0, event, stream), 0);
    assert_int_equal(ops->event_synchronize(0, event), 0);
    memset(host, 0, N);
    assert_int_equal(ops->record(0, x, stream), 0);
    assert_int_equal(ops->copy_async(0, host, x, N, true, stream), 0);
    ops->free(0, x);
    y = ops->alloc(0, N);
    assert_true(y && y != x);
    assert_int_equal(host[0], 0);                                              /* nobody waited                                            */
    assert_int_equal(ops->event_record(0, event, stream), 0);
    assert_int_equal(ops->event_synchronize(0, event), 0);
    assert_true(host[0] == 'x' && host[N - 1] == 'x');
    char *z = ops->alloc(0, N);
    assert_ptr_equal(z, x);
    ops->free(0, y);
    ops->free(0, z);
    assert_int_equal(ops->record(0, z, stream), TD_ERR_INTERNAL);
    td_error_clear();
    ops->event_free(0, event);
    ops->stream_free(0, stream);
    ops->host_free(0, host);
    assert_ptr_equal(ops->host_alloc(0, N - 5), host);                        /* cached by the power of two                             */
    ops->host_free(0, host);
    ops->host_free(0, host);
    expect_error(TD_ERR_INTERNAL, "pinned host memory comes back that was never handed out");
    fake.no_pinned = true;
    assert_null(ops->host_alloc(0, 100));
    expect_error(TD_ERR_MEMORY, "4096 bytes of pinned host memory cannot be had");
    fake.no_pinned = false;
    void *small = ops->host_alloc(0, 100);
    assert_non_null(small);
    ops->host_free(0, small);
}

/* Scratch of a recorded graph stays its own; nothing that the recording forbids is called. */
static void held_scratch(void **state)
{
    ops->memory_trim(0);
    void *hold = cuda_hold_begin();
    assert_non_null(hold);
    fake.capturing = true;
    void *a = td__cuda_scratch(3000), *b = td__cuda_scratch(70u << 20);      /* b: the driver is asked                                  */
    td__cuda_scratch_free(a);
    td__cuda_scratch_free(b);
    assert_null(td__cuda_scratch((size_t)300 << 20));
    fake.capturing = false;
    assert_false(fake.spoilt);
    expect_error(TD_ERR_MEMORY, "cuda:0 has no memory for 300.00 MiB more of workspace");
    cuda_hold_end(hold);
    void *c = td__cuda_scratch(3000), *d = td__cuda_scratch(70u << 20);
    assert_true(a && b && c && d && c != a && d != b);
    td__cuda_scratch_free(c);
    td__cuda_scratch_free(d);
    cuda_hold_release(hold);
    cuda_hold_release(NULL);
    void *e = td__cuda_scratch((size_t)200 << 20);                          /* all of it can be given back again                        */
    assert_non_null(e);
    td__cuda_scratch_free(e);
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
    char text[800], small[20];
    const size_t memory = fake.memory;
    ops->memory_trim(0);
    fake.memory = (size_t)80 << 30;
    assert_string_equal(td_plugin_v1(&td__host)->describe(text, sizeof text),
                        "driver for CUDA 13.0, runtime 13.0\n"
                        "+cuda:0\tFake 0, compute capability 9.0, 80.0 GiB of memory, 80.0 free\n"
                        "+cuda:1\tFake 1, compute capability 9.0, 80.0 GiB of memory, 80.0 free\n"
                        "+cuBLASLt\t13.0.2\n+NCCL\t2.28.9\n+cuDNN\t9.19.0");
    fake.memory = memory;
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
        cmocka_unit_test(copies), cmocka_unit_test(small_copies), cmocka_unit_test(memory), cmocka_unit_test(exhaustion), cmocka_unit_test(other_stream),
        cmocka_unit_test(held_scratch), cmocka_unit_test(streams), cmocka_unit_test(errors),
        cmocka_unit_test(times), cmocka_unit_test(described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
