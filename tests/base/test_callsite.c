/* tests/base/test_callsite.c: an error names the user's line, across a library's own inner calls.
 */
#include "callsite_library.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <tandem/scope.h>
#include <cmocka.h>

static void ends_with_line(const char *message, int line)
{
    char wanted[64];
    snprintf(wanted, sizeof wanted, " at test_callsite.c:%d", line);
    const char *found = strstr(message, wanted);
    if (!found || found[strlen(wanted)] != '\0')
        fail_msg("\"%s\" does not end with \"%s\"", message, wanted);
    td_error_clear();
}

static void the_users_line(void **state)
{
    assert_true(site_range() > 0);             /* the shared object was found */
    int line = __LINE__ + 1;
    site_inner();
    ends_with_line(td_error_message(), line);
    line = __LINE__ + 1;
    site_outer();
    ends_with_line(td_error_message(), line);
}

static void another_languages_line(void **state)
{
    td_here("train.rs", 7);
    site_inner();
    assert_string_equal(td_error_message(), "site_inner: no at train.rs:7");
    td_error_clear();
    td_here(NULL, 0);
    site_inner();
    ends_with_line(td_error_message(), __LINE__ - 1);
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = { cmocka_unit_test(the_users_line), cmocka_unit_test(another_languages_line) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
