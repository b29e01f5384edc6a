/* tests/quiet_test.h: a cmocka group whose tests ask for errors and leave nothing behind. Include it after <cmocka.h>. */
#ifndef TD_TEST_QUIET_TEST_H
#define TD_TEST_QUIET_TEST_H
#include <nothing_left.h>

static inline int quietly(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    return 0;
}

static inline int nothing_left(void **state)
{
    expect_nothing_left();
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, nothing_left)
#endif
