/* tests/base/test_log.c: lines are whole, prefixed, and never longer than their buffer; clocks go forward.
 */
#include "child.h"
#include <base.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static const char *launcher = "openmpi";
static void speak(void *rank_and_size)
{
    const int *r = rank_and_size;
    td__world world = { .rank = r[0], .size = r[1] };
    snprintf(world.launcher, sizeof world.launcher, "%s", launcher);
    td__world_set(&world);
    printf("user, ");                          /* td_log keeps its place among the user's own output */
    td_log("epoch %d", 3);
    td_log("ends\n");
    td_log0("for the job");
    td__say("ours");
    td__info("hint");
}

static void prefixes(void **state)
{
    child_result r = child_run(speak, (int[]){ 0, 1 });
    assert_string_equal(r.out, "user, epoch 3\nends\nfor the job\n");
    assert_string_equal(r.err, "[tandem] ours\n[tandem] hint\n");
    r = child_run(speak, (int[]){ 1, 2 });
    assert_string_equal(r.out, "user, [rank 1] epoch 3\n[rank 1] ends\n");
    assert_string_equal(r.err, "[tandem rank 1] ours\n[tandem rank 1] hint\n");
    launcher = "tandem";                       /* which puts the rank before every line itself */
    r = child_run(speak, (int[]){ 0, 2 });
    assert_string_equal(r.out, "user, epoch 3\nends\nfor the job\n");
    setenv("TANDEM_QUIET", "1", 1);
    r = child_run(speak, (int[]){ 0, 1 });
    assert_string_equal(r.err, "[tandem] ours\n");
    setenv("TANDEM_QUIET", "0", 1);
    r = child_run(speak, (int[]){ 0, 1 });
    assert_string_equal(r.err, "[tandem] ours\n[tandem] hint\n");
    unsetenv("TANDEM_QUIET");
}

static void speak_long(void *length)
{
    size_t n = *(size_t *)length;
    char *text = calloc(1, n + 1);
    memset(text, 'x', n);
    td__say("%s", text);
    td__say("%s", "");
}

static void long_and_empty_lines(void **state)
{
    for (size_t n = 4080; n < 4100; n++) {
        child_result r = child_run(speak_long, &n);
        char *newline = strchr(r.err, '\n');
        assert_non_null(newline);
        size_t length = (size_t)(newline - r.err) + 1;
        assert_true(length <= 4096);
        assert_true(length == 9 + n + 1 || (length == 4096 && memcmp(newline - 3, "...", 3) == 0));
        assert_string_equal(newline + 1, "[tandem] \n");
    }
}

static void clocks(void **state)
{
    int64_t a = td__now_ns();
    double b = td__now();
    int64_t c = td__now_ns();
    assert_true(1e-9 * (double)a <= b + 1e-6 && b <= 1e-9 * (double)c + 1e-6);
    assert_string_equal(td_version(), TD_VERSION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefixes), cmocka_unit_test(long_and_empty_lines), cmocka_unit_test(clocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
