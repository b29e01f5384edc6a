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
#include <nothing_left.h>
#include <sentence.h>

static inline int begin_test(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    td_error_clear();
    td_seed(0);
    return 0;
}

static inline int nothing_left(void **state)
{
    td__nn_free_all();
    td_samples(NULL);
    expect_nothing_left();
    return 0;
}

static inline void expect_near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * (1 + fabs(want))))
        fail_msg("expected %.17g within %g, got %.17g", want, tolerance, got);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin_test, nothing_left)
#endif
