/* tests/cuda/test_blocks.c: the allocator of GPU memory over a made-up memory: no two blocks overlap, what comes back is merged and used
 * again, a steady state asks for nothing, and an exhausted source is asked again after everything cached was given back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "../../plugins/cuda/blocks.h"

/* addresses only: nobody may touch a block */
enum { PIECES = 4096 };
static struct { uintptr_t at; size_t size; } piece[PIECES];
static size_t pieces_live, held, limit, waits;
static uintptr_t next_at = 1 << 20;

static void *take(size_t bytes)
{
    if (held + bytes > limit)
        return NULL;
    for (int i = 0; i < PIECES; i++)
        if (!piece[i].at) {
            piece[i].at = next_at;
            piece[i].size = bytes;
            next_at += bytes;                          /* neighbours of different pieces must not be merged               */
            held += bytes;
            pieces_live++;
            return (void *)piece[i].at;
        }
    return NULL;
}

static void give(void *at, size_t bytes)
{
    assert_true(waits > 0);                            /* never before idle                                               */
    for (int i = 0; i < PIECES; i++)
        if (piece[i].at == (uintptr_t)at) {
            assert_int_equal(piece[i].size, bytes);
            piece[i].at = 0;
            held -= bytes;
            pieces_live--;
            return;
        }
    fail_msg("a piece that was never taken comes back");
}

static void idle(void) { waits++; }

static blocks *start(size_t most)
{
    static const blocks_source source = { take, give, idle };
    memset(piece, 0, sizeof piece);
    held = pieces_live = waits = 0;
    limit = most;
    blocks *b = blocks_new(&source);
    assert_non_null(b);
    return b;
}

static void stop(blocks *b)
{
    blocks_free(b);
    assert_int_equal(pieces_live, 0);
    assert_int_equal(held, 0);
}

static uint32_t seed = 1;
static uint32_t random_bits(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static size_t random_size(void)
{
    return random_bits() % ((size_t)1 << (random_bits() % 27));      /* 0 … 64 MiB, every magnitude as often                */
}

/* Blocks lie inside one piece each, aligned, and never in each other; the numbers add up. */
static void check(blocks *b, uintptr_t *at, size_t *size, int n)
{
    int64_t live = 0;
    for (int i = 0; i < n; i++) {
        if (!at[i])
            continue;
        live++;
        assert_int_equal(at[i] % BLOCKS_ALIGN, 0);
        bool inside = false;
        for (int p = 0; p < PIECES && !inside; p++)
            inside = piece[p].at && at[i] >= piece[p].at && at[i] + size[i] <= piece[p].at + piece[p].size;
        assert_true(inside);
        for (int j = 0; j < i; j++)
            if (at[j] && size[i] && size[j])
                assert_true(at[i] + size[i] <= at[j] || at[j] + size[j] <= at[i]);
    }
    blocks_stats s = blocks_count(b);
    assert_int_equal(s.live_blocks, live);
    assert_int_equal(s.pieces, pieces_live);
    assert_int_equal((size_t)(s.live_bytes + s.cached_bytes), held);
    assert_true(s.peak_bytes >= s.live_bytes);
}

static void any_order(void **state)
{
    enum { N = 200 };
    uintptr_t at[N] = { 0 };
    size_t size[N];
    blocks *b = start((size_t)8 << 30);
    for (int round = 0; round < 4000; round++) {
        int i = (int)(random_bits() % N);
        if (at[i]) {
            assert_int_equal(blocks_give(b, (void *)at[i]), 0);
            at[i] = 0;
        } else {
            size[i] = random_size();
            at[i] = (uintptr_t)blocks_take(b, size[i], NULL);
            assert_true(at[i] != 0);
        }
        if (round % 50 == 0)
            check(b, at, size, N);
    }
    for (int i = 0; i < N; i++)
        if (at[i])
            assert_int_equal(blocks_give(b, (void *)at[i]), 0);
    blocks_trim(b);                                    /* all was merged back into whole pieces, or some would stay             */
    assert_int_equal(pieces_live, 0);
    assert_int_equal(blocks_count(b).cached_bytes, 0);
    assert_int_equal(blocks_count(b).live_bytes, 0);
    stop(b);
}

static void steady(void **state)
{
    blocks *b = start((size_t)4 << 30);
    void *at[64];
    int64_t takes = 0;
    for (int step = 0; step < 5; step++) {
        uint32_t was = seed;
        for (int i = 0; i < 64; i++)
            at[i] = blocks_take(b, random_size(), NULL);
        for (int i = 0; i < 64; i++)
            assert_int_equal(blocks_give(b, at[step % 2 ? 63 - i : i]), 0);
        seed = was;
        if (step == 1)
            takes = blocks_count(b).takes;
    }
    assert_int_equal(blocks_count(b).takes, takes);
    assert_int_equal(waits, 0);
    stop(b);
}

static void exhausted(void **state)
{
    const size_t MIB = 1 << 20;
    blocks *b = start(100 * MIB);
    void *x = blocks_take(b, 40 * MIB, NULL), *y = blocks_take(b, 50 * MIB, NULL);
    assert_true(x && y);
    assert_null(blocks_take(b, 30 * MIB, NULL));       /* 10 MiB are left                                                       */
    void *z = blocks_take(b, 9 * MIB, NULL);           /* less than a piece of the usual size                                    */
    assert_non_null(z);
    assert_int_equal(blocks_give(b, x), 0);
    waits = 0;
    void *w = blocks_take(b, 45 * MIB, NULL);          /* x's 40 are given back, after a wait; 40 are there: too few              */
    assert_null(w);
    assert_int_equal(waits, 1);
    assert_int_equal(blocks_give(b, y), 0);
    w = blocks_take(b, 90 * MIB, NULL);
    assert_non_null(w);
    assert_null(blocks_take(b, SIZE_MAX, NULL));
    assert_null(blocks_take(b, SIZE_MAX / 2, NULL));
    assert_int_equal(blocks_count(b).live_blocks, 2);
    stop(b);                                           /* what is handed out is taken back too                                    */
}

static void strangers(void **state)
{
    blocks *b = start((size_t)1 << 30);
    char *x = blocks_take(b, 1000, NULL);
    assert_int_equal(blocks_give(b, x + BLOCKS_ALIGN), -1);
    assert_int_equal(blocks_give(b, NULL), -1);
    assert_int_equal(blocks_give(b, x), 0);
    assert_int_equal(blocks_give(b, x), -1);           /* twice                                                                   */
    stop(b);
}

static void holders(void **state)
{
    blocks *b = start((size_t)1 << 30);
    static const int site[5];
    blocks_holder h[3];
    assert_int_equal(blocks_largest(b, h, 3), 0);
    static const size_t sizes[] = { 3 << 20, 512, 7 << 20, 5 << 20, 1024 };
    for (int i = 0; i < 5; i++)
        assert_non_null(blocks_take(b, sizes[i], &site[i]));
    assert_int_equal(blocks_largest(b, h, 3), 3);
    assert_true(h[0].bytes == sizes[2] && h[1].bytes == sizes[3] && h[2].bytes == sizes[0]);
    assert_true(h[0].site == &site[2] && h[1].site == &site[3] && h[2].site == &site[0]);
    blocks_holder all[9];
    assert_int_equal(blocks_largest(b, all, 9), 5);
    assert_true(all[4].bytes == 512 && all[3].bytes == 1024);
    assert_int_equal(blocks_count(b).peak_bytes, blocks_count(b).live_bytes);
    stop(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_order), cmocka_unit_test(steady), cmocka_unit_test(exhausted), cmocka_unit_test(strangers), cmocka_unit_test(holders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
