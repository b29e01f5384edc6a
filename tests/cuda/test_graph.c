/* tests/cuda/test_graph.c: plugins/cuda/graph.c on the fake runtime: nothing runs while it is recorded, everything at every launch; memory stays the
 * graph's; what a graph cannot hold is one sentence, and the recording is given up.
 */
#include "../../plugins/cuda/cuda_impl.h"
#include "fake_cuda.h"
#include <setjmp.h>
#include <stdarg.h>
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

static void add_one(void *at)
{
    *(int *)at += 1;
}

static void launches(void **state)
{
    int *x = ops->alloc(0, sizeof *x), *y = ops->alloc(0, sizeof *y), zero = 0, back = -1;
    void *graph = NULL;
    assert_int_equal(ops->copy(0, x, false, &zero, true, sizeof zero), 0);
    assert_int_equal(ops->copy(0, y, false, &zero, true, sizeof zero), 0);
    assert_int_equal(ops->graph_begin(0), 0);
    int *scratch = td__cuda_scratch(sizeof *scratch);
    fake_kernel(td__cuda_stream(), add_one, x);
    assert_int_equal(ops->copy(0, scratch, false, x, false, sizeof *x), 0);
    assert_int_equal(ops->copy(0, y, false, scratch, false, sizeof *x), 0);
    td__cuda_scratch_free(scratch);
    assert_int_equal(ops->graph_end(0, &graph), 0);
    assert_non_null(graph);
    assert_int_equal(ops->copy(0, &back, true, x, false, sizeof back), 0);
    assert_int_equal(back, 0);
    int *other = td__cuda_scratch(sizeof *other);                      /* what the graph writes to is nobody else's               */
    assert_ptr_not_equal(other, scratch);
    long waits = fake_host_waits;
    for (int i = 0; i < 3; i++)
        assert_int_equal(ops->graph_launch(0, graph), 0);
    assert_int_equal(fake_host_waits, waits);
    assert_int_equal(ops->copy(0, &back, true, y, false, sizeof back), 0);
    assert_int_equal(back, 3);
    assert_int_equal(ops->graph_launch(0, graph), 0);
    ops->graph_free(0, graph);                                         /* under way: it is waited for                            */
    assert_int_equal(*y, 4);
    assert_int_equal(fake.graphs, 0);
    td__cuda_scratch_free(other);
    ops->free(0, x);
    ops->free(0, y);
}

static void refusals(void **state)
{
    int *x = ops->alloc(0, sizeof *x), back = 5;
    void *graph = NULL, *event = ops->event_new(0);
    static const char *const says[] = { "the host reads memory of the GPU", "host memory is copied to the GPU", "the host waits for the GPU",
                                        "the host waits for the GPU" };
    for (int i = 0; i < 4; i++) {
        assert_int_equal(ops->graph_begin(0), 0);
        int code = i == 0 ? ops->copy(0, &back, true, x, false, sizeof back) : i == 1 ? ops->copy(0, x, false, &back, true, sizeof back)
                   : i == 2 ? ops->synchronize(0) : ops->event_synchronize(0, event);
        assert_int_equal(code, TD_ERR_STATE);
        expect_error(TD_ERR_STATE, says[i]);
        assert_int_equal(ops->graph_end(0, NULL), 0);
        assert_null(graph);
    }
    assert_int_equal(ops->graph_begin(0), 0);
    assert_int_equal(ops->graph_begin(0), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "recorded already");
    fake.spoilt = true;                                                /* something else has ended it                            */
    assert_int_equal(ops->graph_end(0, &graph), TD_ERR_DEVICE);
    expect_error(TD_ERR_DEVICE, "the recorded step cannot become a graph");
    assert_null(graph);
    assert_int_equal(ops->graph_end(0, &graph), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "no recording");
    assert_int_equal(ops->synchronize(0), 0);
    ops->event_free(0, event);
    ops->free(0, x);
    ops->memory_trim(0);
    td_memory_stats m = { 0 };
    ops->memory(0, &m);
    assert_true(m.live_bytes == 0 && m.cached_bytes == 0);
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    fake.driver = 13000;
    const td_plugin *plugin = td_plugin_v1(&td__host);
    if (!plugin || !plugin->device)
        return 1;
    ops = plugin->device;
    const struct CMUnitTest tests[] = { cmocka_unit_test(launches), cmocka_unit_test(refusals) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
