/* tests/base/test_plugin.c: plug-ins that are fine, missing, of another version, or none. argv[1]: where the samples lie.
 */
#include <base.h>
#include <plugin_abi.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
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
        { "oldsample", "libtandem-oldsample.so speaks version 99 of the plug-in tables and this library version " },
        { "absent", "libtandem-absent.so is not in TANDEM_PLUGIN_DIR (" },
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

/* Folders as in PATH: the first that has the file decides, be it good or not. */
static void several_folders(void **state)
{
    static const struct {
        const char *folders;                   /* %s: where the samples lie                                                    */
        const char *reason;                    /* NULL: it opens                                                             */
    } rows[] = {
        { "/nonexistent:%s", NULL }, { "%s:/nonexistent", NULL }, { "::%s:", NULL }, { "%s:%s", NULL },
        { "/nonexistent:/", "libtandem-sample.so is not in TANDEM_PLUGIN_DIR (/nonexistent:/)" },
        { ":", "libtandem-sample.so is not in TANDEM_PLUGIN_DIR (:)" },
        { "BROKEN", "the broken file, not the good one after it" },
    };
    const char *where = getenv("TANDEM_PLUGIN_DIR");
    char samples[512], broken[64] = "/tmp/tandem-plugin-XXXXXX", file[128];
    assert_true(where && strlen(where) < sizeof samples && mkdtemp(broken));
    strcpy(samples, where);
    snprintf(file, sizeof file, "%s/libtandem-sample.so", broken);
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fputs("no library\n", f);
    fclose(f);
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        char folders[2048], why[300] = "";
        const bool bad = strstr(rows[i].folders, "BROKEN");
        if (bad)
            snprintf(folders, sizeof folders, "%s:%s", broken, samples);
        else
            snprintf(folders, sizeof folders, rows[i].folders, samples, samples);
        setenv("TANDEM_PLUGIN_DIR", folders, 1);
        const td_plugin *p = td__plugin_open("sample", why, sizeof why);
        if (!p != (rows[i].reason != NULL) || (bad ? !strstr(why, broken) : rows[i].reason && !strstr(why, rows[i].reason)))
            fail_msg("\"%s\": \"%s\"", folders, why);
    }
    unlink(file);
    rmdir(broken);
    setenv("TANDEM_PLUGIN_DIR", samples, 1);
}

int main(int argc, char **argv)
{
    td_errors(TD_ERRORS_RETURN);
    setenv("TANDEM_PLUGIN_DIR", argc > 1 ? argv[1] : ".", 1);
    const struct CMUnitTest tests[] = { cmocka_unit_test(a_good_one), cmocka_unit_test(several_folders), cmocka_unit_test(bad_ones) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
