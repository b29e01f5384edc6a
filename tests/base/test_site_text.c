/* tests/base/test_site_text.c: an address becomes file:line, a symbol, or module and offset, whatever is known.
 */
#include <base.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

static __attribute__((noinline)) const void *my_caller(void)
{
    return __builtin_return_address(0);
}

static void debug_information(void **state)
{
    char text[128], wanted[64];
    const void *site = my_caller();
    snprintf(wanted, sizeof wanted, "test_site_text.c:%d", __LINE__ - 1);
    assert_string_equal(td__site_text(site, text, sizeof text), wanted);
}

static void without_debug_information(void **state)
{
    char text[128];
    /* the C library has none, but a dynamic symbol */
    const void *inside = (const char *)dlsym(RTLD_DEFAULT, "gnu_get_libc_version") + 3;
    td__site_text(inside, text, sizeof text);
    assert_non_null(strstr(text, "+0x3"));
    assert_non_null(strstr(text, "gnu_get_libc_version"));
}

static void nowhere(void **state)
{
    char text[128] = "x", small[8];
    assert_string_equal(td__site_text(NULL, text, sizeof text), "");
    assert_string_equal(td__site_text((void *)(uintptr_t)0x1000, text, sizeof text), "0x1000");
    assert_string_equal(td__site_text(my_caller(), small, sizeof small), "test_si");
    assert_string_equal(td__site_text(my_caller(), small, 0), "");
}

static void statically_every_site_counts(void **state)
{
    assert_true(td__text_size == 0);
    td__enter((void *)(uintptr_t)&nowhere);
    assert_ptr_equal(td__site, (void *)(uintptr_t)&nowhere);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(debug_information), cmocka_unit_test(without_debug_information),
        cmocka_unit_test(nowhere), cmocka_unit_test(statically_every_site_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
