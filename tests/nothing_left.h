/* tests/nothing_left.h: what a test of operations leaves behind: nothing. Include it after <cmocka.h>. */
#ifndef TD_TEST_NOTHING_LEFT_H
#define TD_TEST_NOTHING_LEFT_H
#include <string.h>
#include <autograd_impl.h>

static inline void expect_nothing_left(void)
{
    assert_string_equal(td_error_message(), "");
    td__scope_close_root();
    const td_memory_stats m = td_memory();
    assert_int_equal(td__live_nodes(), 0);
    assert_int_equal(m.live_tensors, 0);
    assert_int_equal(m.live_bytes, 0);
}

#endif
