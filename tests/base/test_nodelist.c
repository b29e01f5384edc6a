/* tests/base/test_nodelist.c: Slurm's node lists: the names that must come out, the sentences for what is no list, and 100,000 broken ones.
 */
#include <base.h>
#include <nodelist.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int end(void **state)
{
    (void)state;
    assert_int_equal(td_memory().live_bytes, 0);
    assert_string_equal(td_error_message(), "");
    return 0;
}

static const struct { const char *list, *names; } good[] = {
    { "n0", "n0" },
    { "n[0-1]", "n0 n1" },
    { "n[0-1,7],m3", "n0 n1 n7 m3" },
    { "a[01-03]b[1-2]", "a01b1 a01b2 a02b1 a02b2 a03b1 a03b2" },
    { "n[08-11]", "n08 n09 n10 n11" },
    { "n[8-11]", "n8 n9 n10 n11" },
    { "n[098-101]", "n098 n099 n100 n101" },
    { "n[00-01],n[000-001]", "n00 n01 n000 n001" },
    { "n[7,3,5]", "n7 n3 n5" },                                              /* the list's own order */
    { "gpu-a.site.org,gpu_b", "gpu-a.site.org gpu_b" },
    { "r[1-2]n[3,5]-ib", "r1n3-ib r1n5-ib r2n3-ib r2n5-ib" },
    { "[1-3]", "1 2 3" },
    { "n[5]", "n5" },
    { "n[1-2][3-4]", "n13 n14 n23 n24" },
    { "n[999999999]", "n999999999" },
};

static void names(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(good); i++) {
        char got[512] = "", error[300] = "";
        td__nodes nodes;
        int code = td__nodelist(good[i].list, &nodes, error, sizeof error);
        for (size_t k = 0; k < nodes.n; k++)
            snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", k ? " " : "", nodes.name[k]);
        if (code || strcmp(got, good[i].names) != 0)
            fail_msg("%s: %d, \"%s\" (%s)", good[i].list, code, got, error);
        td__nodelist_free(&nodes);
    }
}

static void many(void **state)
{
    (void)state;
    char error[300];
    td__nodes nodes;
    assert_int_equal(td__nodelist("a[0-255]b[000-255]", &nodes, error, sizeof error), 0);
    assert_int_equal(nodes.n, 65536);
    assert_string_equal(nodes.name[0], "a0b000");
    assert_string_equal(nodes.name[257], "a1b001");
    assert_string_equal(nodes.name[65535], "a255b255");
    td__nodelist_free(&nodes);
}

static const struct { const char *list, *sentence; } bad[] = {
    { "", "has an empty name (character 1)" },
    { "n0,", "has an empty name (character 4)" },
    { ",n0", "has an empty name" },
    { "n0,,n1", "has an empty name" },
    { "n[0-1", "has a bracket that is not closed (character 6)" },
    { "n[", "lacks a number" },
    { "n[]", "lacks a number" },
    { "n[a]", "lacks a number" },
    { "n[1-]", "lacks a number" },
    { "n[-1]", "lacks a number" },
    { "n[1,]", "lacks a number" },
    { "n[1 2]", "has \" \" within brackets" },
    { "n[1-2-3]", "has \"-\" within brackets" },
    { "n[[1]]", "lacks a number" },
    { "n]", "has a character that no host name has (character 2)" },
    { "n 0", "has a character that no host name has" },
    { "n(x2)", "has a character that no host name has" },
    { "n[3-1]", "has a range from 3 down to 1" },
    { "n[0-9999999999]", "has a number of more than 9 digits" },
    { "n[0-999999999]", "names more than 65536 hosts" },
    { "a[0-255]b[0-255],c", "names more than 65536 hosts" },
    { "a[0-999]b[0-999]c[0-999]d[0-999]e[0-999]f[0-999]g[0-999]", "names more than 65536 hosts" },
    { "a[1]b[1]c[1]d[1]e[1]f[1]g[1]h[1]i[1]j[1]k[1]l[1]m[1]n[1]o[1]p[1]", "has more than 15 brackets in one name" },
};

static void sentences(void **state)
{
    (void)state;
    char error[300], longest[400];
    td__nodes nodes;
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        int code = td__nodelist(bad[i].list, &nodes, error, sizeof error);
        if (code != TD_ERR_LAUNCH || !strstr(error, bad[i].sentence) || nodes.n || nodes.name)
            fail_msg("\"%s\": %d, \"%s\", expected \"%s\"", bad[i].list, code, error, bad[i].sentence);
    }
    memset(longest, 'n', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(td__nodelist(longest, &nodes, error, sizeof error), TD_ERR_LAUNCH);
    assert_non_null(strstr(error, "has a name of more than"));
}

/* Good lists with bytes changed, dropped and doubled: a list or a sentence, never anything else. */
static void broken(void **state)
{
    (void)state;
    static const char alphabet[] = "n0123456789[]-,.(x \xff";
    unsigned seed = 1;
    int lists = 0;
    for (int round = 0; round < 100000; round++) {
        char text[128], error[300] = "";
        snprintf(text, sizeof text, "%s", good[rand_r(&seed) % TD_COUNT(good)].list);
        for (int change = 1 + rand_r(&seed) % 3; change > 0; change--) {
            size_t n = strlen(text), at = n ? (size_t)rand_r(&seed) % n : 0;
            char letter = alphabet[(size_t)rand_r(&seed) % (sizeof alphabet - 1)];
            switch (rand_r(&seed) % 3) {
            case 0:
                text[at] = letter;
                break;
            case 1:
                memmove(text + at, text + at + 1, n - at);
                break;
            default:
                memmove(text + at + 1, text + at, n - at + 1);
                text[at] = letter;
            }
        }
        td__nodes nodes;
        int code = td__nodelist(text, &nodes, error, sizeof error);
        assert_true(code == 0 ? nodes.n > 0 && !*error : code == TD_ERR_LAUNCH && nodes.n == 0 && strstr(error, "the node list"));
        for (size_t i = 0; i < nodes.n; i++)
            assert_true(strlen(nodes.name[i]) > 0 && !strpbrk(nodes.name[i], "[],( \xff"));
        lists += code == 0;
        td__nodelist_free(&nodes);
    }
    assert_true(lists > 1000 && lists < 99000);
}

/* The n-th request for memory fails: a sentence, and nothing is left. */
static void no_memory(void **state)
{
    (void)state;
    for (int n = 1;; n++) {
        char error[300] = "";
        td__nodes nodes;
        td__pool_fail_after(n);
        int code = td__nodelist("n[0-40],m", &nodes, error, sizeof error);
        td__pool_fail_after(-1);
        td_error_clear();
        td__nodelist_free(&nodes);
        if (code == 0) {
            assert_true(n > 40);
            break;
        }
        assert_int_equal(code, TD_ERR_MEMORY);
        assert_string_equal(error, "no memory for the node list");
    }
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(names, end), cmocka_unit_test_teardown(many, end), cmocka_unit_test_teardown(sentences, end),
        cmocka_unit_test_teardown(broken, end), cmocka_unit_test_teardown(no_memory, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
