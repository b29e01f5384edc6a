/* tests/data/data_test.h: what the tests of data/ share: errors returned, nothing left behind, sentences compared. */
#ifndef DATA_TEST_H
#define DATA_TEST_H
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <data_impl.h>
#include <sentence.h>

static inline int begin_test(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    td_error_clear();
    return 0;
}

static inline int nothing_left(void **state)
{
    assert_int_equal(td_error_pending(), 0);
    td__scope_close_root();
    td_memory_stats m = td_memory();
    assert_int_equal(m.live_tensors, 0);
    assert_int_equal(m.live_bytes, 0);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin_test, nothing_left)
#endif
