/* tests/comm/test_arena.c: arenas give trimmed memory back to the system, however free blocks have merged since, and hand it out again as zeros.
 */
#include <control.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

enum { MB = 1 << 20 };

static int64_t held(const td__arena *a)
{
    struct stat s;
    assert_int_equal(fstat(td__arena_fd(a), &s), 0);
    return (int64_t)s.st_blocks * 512;
}

static char *take(td__arena *a, size_t bytes)
{
    char error[200] = "";
    char *p = td__arena_alloc(a, bytes, error, sizeof error);
    if (!p)
        fail_msg("%s", error);
    for (size_t i = 0; i < bytes; i += 512)
        if (p[i])
            fail_msg("byte %zu of %zu is %d", i, bytes, p[i]);
    return memset(p, 7, bytes);
}

/* A block that is freed beside a hole merges with it, and is there although the hole is not. */
static void merged_with_holes(void **state)
{
    (void)state;
    char error[200];
    td__arena *a;
    assert_int_equal(td__arena_open(&a, 1, error, sizeof error), 0);
    char *first = take(a, 20 * MB), *second = take(a, 30 * MB), *last = take(a, 4 * MB);
    const int64_t most = held(a);
    assert_in_range(most, 54 * MB, 56 * MB);
    td__arena_free(a, first);
    td__arena_trim(a);
    assert_in_range(held(a), 34 * MB, 36 * MB);
    char *part = take(a, 12 * MB);                     /* of the hole, whose rest stays one                                     */
    assert_ptr_equal(part, first);
    assert_in_range(held(a), 46 * MB, 48 * MB);
    td__arena_free(a, second);                         /* merges with that rest                                                */
    td__arena_trim(a);
    assert_in_range(held(a), 16 * MB, 18 * MB);
    td__arena_free(a, part);
    td__arena_trim(a);
    assert_in_range(held(a), 4 * MB, 6 * MB);
    char *all = take(a, 50 * MB);
    assert_ptr_equal(all, first);
    assert_in_range(held(a), 54 * MB, 56 * MB);
    for (int i = 0; i < 4 * MB; i += 512)
        assert_int_equal(last[i], 7);
    td__arena_free(a, all);
    td__arena_free(a, last);
    td__arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(merged_with_holes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
