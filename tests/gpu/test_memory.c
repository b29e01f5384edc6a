/* tests/gpu/test_memory.c: memory, copies, streams and events of the plug-in on the real device, against the host's bytes.
 */
#include "gpu.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <tandem/ops.h>
#include <cmocka.h>

static const td_device_ops *ops;

static unsigned char byte_at(size_t i, unsigned seed)
{
    return (unsigned char)((i * 2654435761u + seed) >> 7);
}

static unsigned char *pattern(size_t n, unsigned seed)
{
    unsigned char *p = malloc(n + 1);
    assert_non_null(p);
    for (size_t i = 0; i < n; i++)
        p[i] = byte_at(i, seed);
    return p;
}

static void there_and_back(void **state)
{
    static const size_t sizes[] = { 0, 1, 7, 511, 4096, (2u << 20) - 1, 2u << 20, (2u << 20) + 1, 37u << 20 };
    for (size_t s = 0; s < TD_COUNT(sizes); s++) {
        const size_t n = sizes[s];
        unsigned char *from = pattern(n, (unsigned)s), *to = calloc(n + 1, 1);
        char *a = ops->alloc(0, n), *b = ops->alloc(0, n + 3);
        assert_true(to && a && b && (uintptr_t)a % 64 == 0);
        assert_int_equal(ops->copy(0, a, false, from, true, n), 0);
        for (size_t i = 0; i < n; i++)
            from[i] = (unsigned char)~from[i];                     /* the bytes were taken before the call returned             */
        assert_int_equal(ops->copy(0, b + 3, false, a, false, n), 0);
        assert_int_equal(ops->copy(0, to, true, b + 3, false, n), 0);
        for (size_t i = 0; i < n; i++)
            if (to[i] != byte_at(i, (unsigned)s))
                fail_msg("%zu bytes: byte %zu is %d", n, i, to[i]);
        assert_int_equal(to[n], 0);
        ops->free(0, a);
        ops->free(0, b);
        free(from);
        free(to);
    }
}

/* Many small copies, more than there are staging buffers, none waited for. */
static void many_small(void **state)
{
    enum { N = 3000 };
    int64_t *device = ops->alloc(0, N * sizeof *device), back[N];
    assert_non_null(device);
    for (int64_t i = 0; i < N; i++) {
        int64_t value = i * i;
        assert_int_equal(ops->copy(0, device + i, false, &value, true, sizeof value), 0);
    }
    assert_int_equal(ops->copy(0, back, true, device, false, sizeof back), 0);
    for (int64_t i = 0; i < N; i++)
        assert_int_equal(back[i], i * i);
    ops->free(0, device);
}

static void counted(void **state)
{
    const td_device gpu = { TD_CUDA, 0 };
    td_memory_stats before = td_memory_of(gpu);
    void *warm = ops->alloc(0, 100u << 20);
    td_memory_stats during = td_memory_of(gpu);
    assert_int_equal(during.live_bytes - before.live_bytes, 100u << 20);
    assert_true(during.peak_bytes >= during.live_bytes);
    ops->free(0, warm);
    for (int i = 0; i < 100; i++) {                                /* again and again the same memory                           */
        void *p = ops->alloc(0, 100u << 20);
        assert_ptr_equal(p, warm);
        ops->free(0, p);
    }
    td_memory_stats after = td_memory_of(gpu);
    assert_int_equal(after.live_bytes, before.live_bytes);
    assert_int_equal(after.system_calls, during.system_calls);
    assert_true(after.cached_bytes >= 100 << 20);
    assert_int_equal(td_memory_of((td_device){ TD_CPU, 0 }).live_bytes, td_memory().live_bytes);
}

static void exhausted(void **state)
{
    void *held = ops->alloc(0, 64u << 20);
    assert_non_null(held);
    assert_null(ops->alloc(0, (size_t)1 << 45));                   /* 32 TiB                                                    */
    assert_int_equal(td_error_pending(), TD_ERR_MEMORY);
    assert_non_null(strstr(td_error_message(), "cuda:0 has no memory for 32.00 TiB more of other: "));
    assert_non_null(strstr(td_error_message(), "; most of it: 64.00 MiB of other"));
    td_error_clear();
    void *p = ops->alloc(0, 1000);                                 /* the device is well                                        */
    assert_non_null(p);
    ops->free(0, p);
    ops->free(0, held);
    assert_int_equal(td_error_pending(), 0);
    ops->free(0, held);
    assert_int_equal(td_error_pending(), TD_ERR_INTERNAL);
    td_error_clear();
}

/* Memory that a second stream reads comes back, is wanted again at once and written by the compute stream: the copy has the old bytes. */
static void second_stream(void **state)
{
    enum { N = 64 << 20, ROUNDS = 8 };
    void *stream = ops->stream_new(0, false), *event = ops->event_new(0);
    char *host = ops->host_alloc(0, N), *block[ROUNDS];
    assert_true(stream && event && host);
    for (int r = 0; r < ROUNDS; r++) {
        assert_int_equal(ops->synchronize(0), 0);
        memset(host, 'a' + r, N);
        char *x = ops->alloc(0, N);
        assert_non_null(x);
        assert_int_equal(ops->copy_async(0, x, host, N, false, NULL), 0);
        assert_int_equal(ops->event_record(0, event, NULL), 0);
        assert_int_equal(ops->event_wait(0, event, stream), 0);
        assert_int_equal(ops->event_synchronize(0, event), 0);
        memset(host, 0, N);
        assert_int_equal(ops->record(0, x, stream), 0);
        for (int i = 0; i < 4; i++)                                /* it takes a while                                          */
            assert_int_equal(ops->copy_async(0, host, x, N, true, stream), 0);
        ops->free(0, x);
        block[r] = ops->alloc(0, N);
        void *zero = ops->alloc(0, N);
        assert_true(block[r] && zero && block[r] != x);
        assert_int_equal(ops->copy(0, block[r], false, zero, false, N), 0);
        assert_int_equal(ops->event_record(0, event, stream), 0);
        assert_int_equal(ops->event_synchronize(0, event), 0);
        for (size_t i = 0; i < N; i += 4093)
            assert_int_equal(host[i], 'a' + r);
        ops->free(0, zero);
    }
    for (int r = 0; r < ROUNDS; r++)
        ops->free(0, block[r]);
    ops->host_free(0, host);
    ops->event_free(0, event);
    ops->stream_free(0, stream);
    assert_int_equal(td_error_pending(), 0);
}

static void streams(void **state)
{
    void *stream = ops->stream_new(0, true), *event = ops->event_new(0);
    assert_true(stream && event);
    assert_int_equal(ops->event_record(0, event, NULL), 0);
    assert_int_equal(ops->event_wait(0, event, stream), 0);
    assert_int_equal(ops->event_record(0, event, stream), 0);
    assert_int_equal(ops->event_wait(0, event, NULL), 0);
    assert_int_equal(ops->synchronize(0), 0);
    ops->event_free(0, event);
    ops->stream_free(0, stream);
    assert_int_equal(td_error_pending(), 0);
}

static void one_gpu(void **state)
{
    if (ops->count() < 2)
        skip();
    assert_null(ops->alloc(1, 10));
    assert_non_null(strstr(td_error_message(), "cuda:1 cannot be used beside cuda:0"));
    td_error_clear();
}

static void tensors(void **state)
{
    {
        TD_SCOPE();
        float from[6] = { 1, 2, 3, 4, 5, 6 }, to[6];
        td_tensor *x = td_from(from, TD_SHAPE(2, 3), TD_F32);
        assert_int_equal(td_device_of(x).kind, TD_CUDA);
        td_tensor *y = td_to(td_transpose(x, 0, 1), (td_device){ TD_CPU, 0 });
        assert_int_equal(td_copy_out(y, to, sizeof to), 0);
        static const float expected[6] = { 1, 4, 2, 5, 3, 6 };
        assert_memory_equal(to, expected, sizeof to);
    }
    assert_int_equal(td_memory().live_tensors, 0);
}

int main(void)
{
    need_gpu();
    ops = td__device_ops((td_device){ TD_CUDA, 0 });
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back), cmocka_unit_test(many_small), cmocka_unit_test(counted), cmocka_unit_test(exhausted),
        cmocka_unit_test(second_stream), cmocka_unit_test(streams), cmocka_unit_test(one_gpu), cmocka_unit_test(tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
