/* tests/nn/nn_test.h: what the tests of nn/ share: errors returned, nothing left behind, sentences compared. */
#ifndef NN_TEST_H
#define NN_TEST_H
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <nn_impl.h>

static inline int begin_test(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    td_error_clear();
    td_seed(0);
    return 0;
}

static inline int nothing_left(void **state)
{
    assert_string_equal(td_error_message(), "");
    td__nn_free_all();
    td_samples(NULL);
    td__scope_close_root();
    td_memory_stats m = td_memory();
    assert_int_equal(td__live_nodes(), 0);
    assert_int_equal(m.live_tensors, 0);
    assert_int_equal(m.live_bytes, 0);
    return 0;
}

/* The pending error is this code and sentence (module and caller's place may follow); it is cleared. */
static inline void expect_error(int code, const char *sentence)
{
    const char *got = td_error_message();
    size_t n = strlen(sentence);
    if (strncmp(got, sentence, n) != 0 || (got[n] != '\0' && strncmp(got + n, " at ", 4) != 0 && strncmp(got + n, " (in ", 5) != 0))
        fail_msg("expected the sentence\n    %s\ngot\n    %s", sentence, got);
    assert_int_equal(td_error_pending(), code);
    td_error_clear();
}

static inline void expect_near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * (1 + fabs(want))))
        fail_msg("expected %.17g within %g, got %.17g", want, tolerance, got);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin_test, nothing_left)
#endif
