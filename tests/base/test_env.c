/* tests/base/test_env.c: the table of environment variables and numbers in them.
 */
#include <base.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void every_row_is_whole(void **state)
{
    for (int i = 0; i < TD_ENV_COUNT; i++) {
        assert_int_equal(strncmp(td__env_table[i].name, "TANDEM_", 7), 0);
        assert_true(strlen(td__env_table[i].standard) > 0 && strlen(td__env_table[i].help) > 5);
        for (int j = 0; j < i; j++)
            assert_string_not_equal(td__env_table[i].name, td__env_table[j].name);
    }
}

static void set_empty_unset(void **state)
{
    unsetenv("TANDEM_COMM");
    assert_null(td__env(TD_ENV_COMM));
    setenv("TANDEM_COMM", "", 1);
    assert_null(td__env(TD_ENV_COMM));
    setenv("TANDEM_COMM", "mpi", 1);
    assert_string_equal(td__env(TD_ENV_COMM), "mpi");
    unsetenv("TANDEM_COMM");
    assert_null(td__env(TD_ENV_COUNT));
}

static void numbers(void **state)
{
    static const struct {
        const char *text;
        double value;                          /* -1: refused */
    } rows[] = {
        { "5", 5 },      { "0.25", 0.25 }, { "1e2", 100 }, { "300", 300 }, { "0", -1 },      { "301", -1 }, { "-3", -1 },
        { "abc", -1 },   { "5s", -1 },     { "5 ", -1 },   { "nan", -1 },  { "inf", -1 },    { "1,5", -1 }, { "0x10", 16 },
    };
    unsetenv("TANDEM_TIMEOUT");
    assert_true(td__env_number(TD_ENV_TIMEOUT, 42, 0.1, 300) == 42);
    assert_int_equal(td_error_pending(), 0);
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        setenv("TANDEM_TIMEOUT", rows[i].text, 1);
        double got = td__env_number(TD_ENV_TIMEOUT, 42, 0.1, 300);
        bool refused = td_error_pending() == TD_ERR_ARGUMENT;
        if (refused != (rows[i].value < 0) || got != (refused ? 42 : rows[i].value))
            fail_msg("\"%s\" gives %g, %s", rows[i].text, got, td_error_message());
        if (refused && (!strstr(td_error_message(), "TANDEM_TIMEOUT") || !strstr(td_error_message(), rows[i].text)))
            fail_msg("\"%s\": %s", rows[i].text, td_error_message());
        td_error_clear();
    }
    unsetenv("TANDEM_TIMEOUT");
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_is_whole), cmocka_unit_test(set_empty_unset), cmocka_unit_test(numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
