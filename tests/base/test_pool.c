/* tests/base/test_pool.c: alignment, waste, reuse without the system, threads, failures, statistics.
 */
#include "child.h"
#include <pool_plan.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <cmocka.h>

static int begin(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    td_memory_trim();
    return 0;
}

static int end(void **state)
{
    td_memory_stats m = td_memory();
    assert_int_equal(m.live_bytes, 0);
    assert_int_equal(m.live_tensors, 0);
    assert_int_equal(td_error_pending(), 0);
    return 0;
}

static const size_t sizes[] = { 0, 1, 63, 64, 65, 1000, 1024, 1025, 1152, 1153, 4096, 4097, 32767, 32768, 32769, 40000, 65536, 1000003,
                                1 << 20, (1 << 20) + 1, 5000011, 12345678 };

static void aligned_and_apart(void **state)
{
    unsigned char *p[TD_COUNT(sizes)];
    int64_t total = 0;
    for (size_t i = 0; i < TD_COUNT(sizes); i++) {
        p[i] = td__alloc(sizes[i]);
        assert_non_null(p[i]);
        assert_int_equal((uintptr_t)p[i] % 64, 0);
        memset(p[i], (int)i + 1, sizes[i]);
        total += (int64_t)sizes[i];
        assert_int_equal(td_memory().live_bytes, total);
    }
    for (size_t i = 0; i < TD_COUNT(sizes); i++) {
        for (size_t k = 0; k < sizes[i]; k += sizes[i] > 5000 ? 997 : 1)
            assert_int_equal(p[i][k], i + 1);
        td__free(p[i]);
    }
    td__free(NULL);
}

static void little_is_wasted(void **state)
{
    for (size_t n = 1025; n < (size_t)40 << 20; n += n / 37 + 1) {
        void *p = td__alloc(n);
        int64_t before = td_memory().cached_bytes;
        td__free(p);
        int64_t whole = td_memory().cached_bytes - before;
        assert_true(whole >= (int64_t)n);
        if (whole - (int64_t)n >= (int64_t)n / 8 + 1)
            fail_msg("%zu bytes take %lld", n, (long long)whole);
        td_memory_trim();
    }
}

static void powers_of_two_waste_nothing(void **state)
{
    for (size_t n = 64; n <= (size_t)16 << 20; n *= 2) {
        void *p = td__alloc(n);
        int64_t before = td_memory().cached_bytes;
        td__free(p);
        assert_int_equal(td_memory().cached_bytes - before, n > 32 << 10 ? n + TD__POOL_HEADER : n);     /* a larger one's header is free, too */
    }
}

static void step(int round)
{
    void *p[TD_COUNT(sizes)];
    for (size_t i = 0; i < TD_COUNT(sizes); i++)
        p[i] = td__alloc(sizes[i]);
    for (size_t i = 0; i < TD_COUNT(sizes); i++)
        td__free(p[(i * 5 + (size_t)round) % TD_COUNT(sizes)]);              /* 5 and 22 have no common divisor */
}

static void steady_state_asks_for_nothing(void **state)
{
    for (int i = 0; i < 100; i++)
        step(i);
    int64_t calls = td_memory().system_calls;
    assert_true(calls > 0);
    for (int i = 0; i < 1000; i++)
        step(i);
    assert_int_equal(td_memory().system_calls, calls);
}

static void many_small_ones_share_chunks(void **state)
{
    enum { N = 20000 };
    static void *p[N];
    int64_t calls = td_memory().system_calls;
    for (int i = 0; i < N; i++)
        p[i] = td__alloc(100);
    assert_in_range(td_memory().system_calls - calls, 1, 8);                 /* 3.8 MB in chunks of 1 MiB */
    for (int i = 0; i < N; i++)
        td__free(p[i]);
}

static void trimming(void **state)
{
    void *p = td__alloc(50 << 20);
    memset(p, 1, 50 << 20);
    td__free(p);
    assert_true(td_memory().cached_bytes >= 50 << 20);
    td_memory_trim();
    assert_true(td_memory().cached_bytes < 4 << 20);
}

static void peak(void **state)
{
    td_memory_reset_peak();
    void *a = td__alloc(1000), *b = td__alloc(2000);
    td__free(a);
    a = td__alloc(500);
    assert_int_equal(td_memory().peak_bytes, 3000);
    td_memory_reset_peak();
    assert_int_equal(td_memory().peak_bytes, 2500);
    td__free(a), td__free(b);
}

static void zeroed_also_when_reused(void **state)
{
    for (size_t i = 0; i < TD_COUNT(sizes); i++) {
        for (int round = 0; round < 2; round++) {
            unsigned char *p = td__calloc(sizes[i]);
            for (size_t k = 0; k < sizes[i]; k++)
                if (p[k])
                    fail_msg("byte %zu of %zu is %d", k, sizes[i], p[k]);
            memset(p, 0xff, sizes[i]);
            td__free(p);
        }
    }
}

static void categories(void **state)
{
    void *x = td__alloc_as(1000, TD_MEMORY_ACTIVATIONS), *y = td__alloc_as(50, TD_MEMORY_DATA), *z = td__alloc(7);
    td_memory_stats m = td_memory();
    assert_int_equal(m.part[TD_MEMORY_ACTIVATIONS].live_bytes, 1000);
    assert_int_equal(m.part[TD_MEMORY_DATA].live_bytes, 50);
    assert_int_equal(m.part[TD_MEMORY_OTHER].live_bytes, 7);
    td__pool_label(x, TD_MEMORY_PARAMETERS);
    m = td_memory();
    assert_int_equal(m.live_bytes, 1057);
    assert_int_equal(m.part[TD_MEMORY_ACTIVATIONS].live_bytes, 0);
    assert_int_equal(m.part[TD_MEMORY_PARAMETERS].live_bytes, 1000);
    assert_true(m.part[TD_MEMORY_ACTIVATIONS].peak_bytes >= 1000);
    td__free(x);
    td_memory_reset_peak();
    m = td_memory();
    assert_int_equal(m.part[TD_MEMORY_PARAMETERS].peak_bytes, 0);
    assert_int_equal(m.part[TD_MEMORY_DATA].peak_bytes, 50);
    td__free(y);
    td__free(z);
    for (int c = 0; c < TD_MEMORY_CATEGORIES; c++) {
        assert_int_equal(td_memory().part[c].live_bytes, 0);
        assert_true(td_memory_category_name((td_memory_category)c)[0] != (char)63);
    }
    assert_string_equal(td_memory_category_name(TD_MEMORY_CATEGORIES), "?");
}

static void growing(void **state)
{
    char *p = td__strdup("hello");
    assert_int_equal(td_memory().live_bytes, 6);
    p = td__grow(p, 6, 100000);
    assert_string_equal(p, "hello");
    td__pool_fail_after(1);
    assert_null(td__grow(p, 100000, 200000));
    assert_string_equal(p, "hello");           /* stays valid */
    assert_int_equal(td_error_pending(), TD_ERR_MEMORY);
    td_error_clear();
    p = td__grow(p, 100000, 6);
    assert_string_equal(p, "hello");
    td__free(p);
    p = td__grow(NULL, 0, 10);
    assert_non_null(p);
    td__free(p);
}

static void the_nth_request_fails(void **state)
{
    td__pool_fail_after(3);
    void *a = td__alloc(10), *b = td__alloc(10), *c = td__alloc(10), *d = td__alloc(10);
    assert_true(a && b && !c && d);
    assert_int_equal(td_error_pending(), TD_ERR_MEMORY);
    assert_non_null(strstr(td_error_message(), "10 bytes"));
    td_error_clear();
    td__free(a), td__free(b), td__free(d);
}

static void impossible_sizes(void **state)
{
    const size_t much[] = { SIZE_MAX, SIZE_MAX / 2, (size_t)1 << 45, (size_t)1 << 62 };
    for (size_t i = 0; i < TD_COUNT(much); i++) {
#ifdef __SANITIZE_ADDRESS__
        if (much[i] == (size_t)1 << 45)        /* its allocator ends the process */
            continue;
#endif
        void *p = td__alloc(much[i]);
        if (p && much[i] == (size_t)1 << 45) { /* a machine that promises everything */
            td__free(p);
            td_memory_trim();
            continue;
        }
        assert_null(p);
        assert_int_equal(td_error_pending(), TD_ERR_MEMORY);
        td_error_clear();
    }
}

static void *churn(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument * 7919u + 1;
    unsigned char *held[64] = { NULL };
    size_t size[64] = { 0 };
    for (int i = 0; i < 20000; i++) {
        seed = seed * 1664525u + 1013904223u;
        unsigned slot = seed >> 26;
        if (held[slot]) {
            if (size[slot] && (held[slot][0] != (unsigned char)slot || held[slot][size[slot] - 1] != (unsigned char)slot))
                return "a block was shared";
            td__free(held[slot]);
            held[slot] = NULL;
        } else {
            size[slot] = (seed >> 8) % (slot == 0 ? 100000 : 3000);
            held[slot] = td__alloc(size[slot]);
            if (size[slot])
                held[slot][0] = held[slot][size[slot] - 1] = (unsigned char)slot;
        }
        td__count_tensor(1);
        td__count_tensor(-1);
    }
    for (int i = 0; i < 64; i++)
        td__free(held[i]);
    return NULL;
}

static void four_threads(void **state)
{
    pthread_t t[4];
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, churn, (void *)i);
    for (int i = 0; i < 4; i++) {
        void *wrong = NULL;
        pthread_join(t[i], &wrong);
        assert_null(wrong);
    }
}

static void free_twice(void *unused)
{
    void *p = td__alloc(10);
    td__free(p);
    td__free(p);
}

static void freeing_twice_is_caught(void **state)
{
    child_result r = child_run(free_twice, NULL);
    assert_true(WIFSIGNALED(r.status) && WTERMSIG(r.status) == SIGABRT);
    assert_non_null(strstr(r.err, "freed already"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(aligned_and_apart, begin, end),
        cmocka_unit_test_setup_teardown(little_is_wasted, begin, end),
        cmocka_unit_test_setup_teardown(powers_of_two_waste_nothing, begin, end),
        cmocka_unit_test_setup_teardown(steady_state_asks_for_nothing, begin, end),
        cmocka_unit_test_setup_teardown(many_small_ones_share_chunks, begin, end),
        cmocka_unit_test_setup_teardown(trimming, begin, end),
        cmocka_unit_test_setup_teardown(peak, begin, end),
        cmocka_unit_test_setup_teardown(zeroed_also_when_reused, begin, end),
        cmocka_unit_test_setup_teardown(categories, begin, end),
        cmocka_unit_test_setup_teardown(growing, begin, end),
        cmocka_unit_test_setup_teardown(the_nth_request_fails, begin, end),
        cmocka_unit_test_setup_teardown(impossible_sizes, begin, end),
        cmocka_unit_test_setup_teardown(four_threads, begin, end),
        cmocka_unit_test_setup_teardown(freeing_twice_is_caught, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
