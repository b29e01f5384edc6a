/* tests/base/test_plugin.c: plug-ins that are fine, missing, of another version, or none. argv[1]: where the samples lie.
 */
#include <base.h>
#include <plugin_abi.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void a_good_one(void **state)
{
    char why[300] = "x", text[20];
    const td_plugin *p = td__plugin_open("sample", why, sizeof why);
    if (!p)
        fail_msg("%s", why);
    assert_string_equal(p->name, "sample");
    assert_string_equal(p->describe(text, sizeof text), "sample");
    assert_string_equal(why, "");
    assert_ptr_equal(td__plugin_open("sample", why, sizeof why), p);
}

static void bad_ones(void **state)
{
    static const struct {
        const char *name, *reason;
    } rows[] = {
        { "oldsample", "libtandem-oldsample.so speaks version 99 of the plug-in tables and this library version 1" },
        { "absent", "libtandem-absent.so" },
        { "callsite", "libtandem-callsite.so is no plug-in of Tandem: it lacks td_plugin_v1" },
        { "../sample", "is not the name of a plug-in" },
        { "", "is not the name of a plug-in" },
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        char why[300] = "";
        assert_null(td__plugin_open(rows[i].name, why, sizeof why));
        if (!strstr(why, rows[i].reason))
            fail_msg("\"%s\": \"%s\"", rows[i].name, why);
    }
    unsetenv("TANDEM_PLUGIN_DIR");
    char why[300] = "";
    assert_null(td__plugin_open("absent", why, sizeof why));
    assert_non_null(strstr(why, "nor on the loader's path"));
    assert_null(td__plugin_open("absent", NULL, 0));
    assert_int_equal(td_error_pending(), 0);
}

int main(int argc, char **argv)
{
    td_errors(TD_ERRORS_RETURN);
    setenv("TANDEM_PLUGIN_DIR", argc > 1 ? argv[1] : ".", 1);
    const struct CMUnitTest tests[] = { cmocka_unit_test(a_good_one), cmocka_unit_test(bad_ones) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
