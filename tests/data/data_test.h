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

/* The pending error is this code and sentence (the caller's place may follow); it is cleared. */
static inline void expect_error(int code, const char *sentence)
{
    const char *got = td_error_message();
    size_t n = strlen(sentence);
    if (strncmp(got, sentence, n) != 0 || (got[n] != '\0' && strncmp(got + n, " at ", 4) != 0))
        fail_msg("expected the sentence\n    %s\ngot\n    %s", sentence, got);
    assert_int_equal(td_error_pending(), code);
    td_error_clear();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin_test, nothing_left)
#endif
