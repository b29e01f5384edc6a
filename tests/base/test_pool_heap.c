/* tests/base/test_pool_heap.c: the pool's larger blocks: what one size has given back serves others, the process holds little more than what lives at
 * the most, and what is trimmed goes back to the system from between blocks that live.
 */
#include <pool_plan.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MB = 1 << 20 };
#ifdef __SANITIZE_THREAD__
enum { SHADOWED = 1 };                         /* what is resident is several times what the program touches                    */
#else
enum { SHADOWED = 0 };
#endif

static int begin(void **state)
{
    (void)state;
    td_errors(TD_ERRORS_RETURN);
    td_memory_trim();
    return 0;
}

static int end(void **state)
{
    (void)state;
    assert_int_equal(td_memory().live_bytes, 0);
    td_memory_trim();
    assert_in_range(td_memory().cached_bytes, 0, MB + 8 * 4096);            /* small blocks stay                                */
    return 0;
}

#ifndef __SANITIZE_ADDRESS__
static int64_t resident(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_int_equal(fscanf(f, "%*d %ld", &pages), 1);
    fclose(f);
    return pages * 4096;
}

/* Free blocks merge: forward small ones, backward large ones, and again, in less than both take. */
static void sizes_share(void **state)
{
    (void)state;
    enum { N = 60 };
    void *small[N], *large[N / 12];
    int64_t calls = 0, before = resident();
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < N; i++)
            small[i] = memset(td__alloc(MB), 1, MB);
        for (int i = 0; i < N; i++)
            td__free(small[(i * 7 + round) % N]);
        for (int i = 0; i < N / 12; i++)
            large[i] = memset(td__alloc(11 * MB), 2, 11 * MB);
        for (int i = 0; i < N / 12; i++)
            td__free(large[i]);
        if (round == 0)
            calls = td_memory().system_calls;
    }
    assert_int_equal(td_memory().system_calls, calls);
    assert_in_range(td_memory().cached_bytes, (int64_t)N * MB, (int64_t)N * MB + 2 * MB);
    if (!SHADOWED)
        assert_true(resident() - before < (int64_t)(N + 6) * MB);            /* a huge page at each end, and small ones             */
    td_memory_trim();
    if (!SHADOWED)
        assert_true(resident() - before < 6 * MB);
}

/* From between two that live. Their neighbour is zero when it asks for zeros, and writing there harms nobody. */
static void trimmed_between(void **state)
{
    (void)state;
    unsigned char *a = memset(td__alloc(3 * MB), 1, 3 * MB), *b = memset(td__alloc(40 * MB), 2, 40 * MB), *c = memset(td__alloc(3 * MB), 3, 3 * MB);
    const int64_t before = resident();
    td__free(b);
    assert_in_range(td_memory().cached_bytes, 40 * MB, 42 * MB);
    td_memory_trim();
    if (!SHADOWED)
        assert_in_range(before - resident(), 35 * MB, 42 * MB);
    assert_in_range(td_memory().cached_bytes, 0, 2 * MB);
    unsigned char *again = td__calloc(30 * MB);
    for (int i = 0; i < 30 * MB; i++)
        if (again[i])
            fail_msg("byte %d is %d", i, again[i]);
    memset(again, 4, 30 * MB);
    for (int i = 0; i < 3 * MB; i++)
        if (a[i] != 1 || c[i] != 3)
            fail_msg("byte %d of a neighbour was overwritten", i);
    td__free(a), td__free(again), td__free(c);
}
#endif

/* Blocks of all sizes by chance: none shares a byte with another, zeros are zeros, what is held stays near what lives, and nothing new is touched once
 * the same has been done before. */
static void by_chance(void **state)
{
    (void)state;
    enum { SLOTS = 48, TURNS = 6000 };
    unsigned char *held[SLOTS] = { NULL };
    size_t size[SLOTS] = { 0 };
    int64_t most = 0, kept = 0;
    unsigned seed = 12345;
    for (int i = 0; i < TURNS; i++) {
        seed = seed * 1664525u + 1013904223u;
        const unsigned slot = (seed >> 8) % SLOTS;
        if (held[slot]) {
            for (size_t k = 0; k < size[slot]; k += k + 4096 < size[slot] ? 4096 : size[slot] - k > 1 ? size[slot] - k - 1 : 1)
                if (held[slot][k] != (unsigned char)(slot + 1))
                    fail_msg("turn %d: byte %zu of %zu was overwritten", i, k, size[slot]);
            td__free(held[slot]);
            held[slot] = NULL;
        } else {
            const unsigned shift = 12 + (seed >> 4) % 10;
            size[slot] = ((size_t)1 << shift) + (seed >> 3) % ((size_t)1 << shift);
            held[slot] = seed >> 2 & 1 ? td__calloc(size[slot]) : td__alloc(size[slot]);
            for (size_t k = 0; seed >> 2 & 1 && k < size[slot]; k += 512)
                assert_int_equal(held[slot][k], 0);
            memset(held[slot], (int)slot + 1, size[slot]);
        }
        if (i % 1000 == 999)
            td_memory_trim();
        const td_memory_stats m = td_memory();
        assert_true(m.cached_bytes >= 0);
        most = m.live_bytes > most ? m.live_bytes : most;
        kept = m.live_bytes + m.cached_bytes > kept ? m.live_bytes + m.cached_bytes : kept;
    }
    for (int i = 0; i < SLOTS; i++)
        td__free(held[i]);
#ifndef __SANITIZE_ADDRESS__
    if (kept > most + most / 4 + 2 * MB)
        fail_msg("%lld bytes are held where %lld live at the most", (long long)kept, (long long)most);
#endif
}

/* More than a region. */
static void large(void **state)
{
    (void)state;
    const size_t much = (size_t)300 << 20;
    unsigned char *a = td__alloc(much), *b = td__alloc(100), *c = td__calloc(much);
    assert_true(a && b && c);
    a[0] = a[much - 1] = 1;
    assert_int_equal(c[0] + c[much - 1], 0);
    td__free(a);
    td_memory_trim();
    a = td__calloc(much);
    assert_int_equal(a[0] + a[much - 1], 0);
    td__free(c), td__free(b), td__free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifndef __SANITIZE_ADDRESS__
        cmocka_unit_test_setup_teardown(sizes_share, begin, end),
        cmocka_unit_test_setup_teardown(trimmed_between, begin, end),
#endif
        cmocka_unit_test_setup_teardown(by_chance, begin, end),
        cmocka_unit_test_setup_teardown(large, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
