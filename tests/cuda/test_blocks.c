/* tests/cuda/test_blocks.c: the allocator of GPU memory over a made-up memory: no two blocks overlap, what comes back is merged and used
 * again, a steady state asks for nothing, and an exhausted source is asked again after everything cached was given back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <string.h>
#include <cmocka.h>
#include "../../plugins/cuda/blocks.h"

/* addresses only: nobody may touch a block */
enum { PIECES = 4096 };
static struct { uintptr_t at; size_t size; } piece[PIECES];
static size_t pieces_live, held, limit, waits;
static uintptr_t next_at = 1 << 20;
enum { MARKS = 16 };
static struct mark { void *stream; bool passed; } marks[MARKS];
static bool no_marks;
static int asked;

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

static void idle(void)
{
    waits++;
    for (int i = 0; i < MARKS; i++)
        marks[i].passed = true;
}

/* A mark on stream k stands until the test lets it pass. */
static void *mark(void *stream)
{
    for (int i = 0; i < MARKS && !no_marks; i++)
        if (!marks[i].stream) {
            marks[i].stream = stream;
            marks[i].passed = false;
            return &marks[i];
        }
    return NULL;
}

static bool passed(void *mark)
{
    struct mark *m = mark;
    asked++;
    if (m->passed)
        m->stream = NULL;
    return m->passed;
}

static void let_pass(const void *stream)
{
    for (int i = 0; i < MARKS; i++)
        if (marks[i].stream == stream)
            marks[i].passed = true;
}

static int marks_set(void)
{
    int n = 0;
    for (int i = 0; i < MARKS; i++)
        n += marks[i].stream != NULL;
    return n;
}

static void *take_plain(blocks *b, size_t bytes) { return blocks_take(b, bytes, (blocks_tag){ NULL, 0 }); }

static blocks *start(size_t most)
{
    static const blocks_source source = { take, give, idle, mark, passed };
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
            at[i] = (uintptr_t)take_plain(b, size[i]);
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
            at[i] = take_plain(b, random_size());
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
    void *x = take_plain(b, 40 * MIB), *y = take_plain(b, 50 * MIB);
    assert_true(x && y);
    assert_null(take_plain(b, 30 * MIB));       /* 10 MiB are left                                                       */
    void *z = take_plain(b, 9 * MIB);           /* less than a piece of the usual size                                    */
    assert_non_null(z);
    assert_int_equal(blocks_give(b, x), 0);
    waits = 0;
    void *w = take_plain(b, 45 * MIB);          /* x's 40 are given back, after a wait; 40 are there: too few              */
    assert_null(w);
    assert_int_equal(waits, 1);
    assert_int_equal(blocks_give(b, y), 0);
    w = take_plain(b, 90 * MIB);
    assert_non_null(w);
    assert_null(take_plain(b, SIZE_MAX));
    assert_null(take_plain(b, SIZE_MAX / 2));
    assert_int_equal(blocks_count(b).live_blocks, 2);
    stop(b);                                           /* what is handed out is taken back too                                    */
}

static void strangers(void **state)
{
    blocks *b = start((size_t)1 << 30);
    char *x = take_plain(b, 1000);
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
    assert_int_equal(blocks_holders(b, h, 3), 0);
    static const struct { size_t bytes; int site, category; } row[] = {
        { 3 << 20, 0, 1 }, { 512, 1, 1 }, { 7 << 20, 2, 1 }, { 5 << 20, 3, 2 }, { 1024, 4, 1 }, { 6 << 20, 0, 1 }, { 2 << 20, 3, 1 },
    };
    for (int i = 0; i < 7; i++)
        assert_non_null(blocks_take(b, row[i].bytes, (blocks_tag){ &site[row[i].site], row[i].category }));
    assert_int_equal(blocks_holders(b, h, 3), 3);
    assert_true(h[0].bytes == 9 << 20 && h[0].blocks == 2 && h[0].tag.site == &site[0]);       /* of one line and category: their sum     */
    assert_true(h[1].bytes == 7 << 20 && h[1].blocks == 1 && h[1].tag.site == &site[2]);
    assert_true(h[2].bytes == 5 << 20 && h[2].tag.site == &site[3] && h[2].tag.category == 2);
    blocks_holder all[9];
    assert_int_equal(blocks_holders(b, all, 9), 6);
    assert_true(all[5].bytes == 512 && all[4].bytes == 1024 && all[3].bytes == 2 << 20);
    for (int i = 0; i < 3000; i++)                                             /* more lines than are told apart: no harm              */
        assert_non_null(blocks_take(b, 1, (blocks_tag){ (const char *)site + 16 + i, 3 }));
    assert_int_equal(blocks_holders(b, h, 3), 3);
    assert_true(h[0].bytes == 9 << 20);
    assert_int_equal(blocks_count(b).peak_bytes, blocks_count(b).live_bytes);
    stop(b);
}

static void categories(void **state)
{
    blocks *b = start((size_t)1 << 30);
    void *x = blocks_take(b, 1000, (blocks_tag){ NULL, 4 }), *y = blocks_take(b, 5000, (blocks_tag){ NULL, 1 });
    blocks_stats s = blocks_count(b);
    assert_true(s.part[4].live_bytes == 1024 && s.part[1].live_bytes == 5120 && s.part[0].live_bytes == 0);
    assert_int_equal(blocks_label(b, x, 1), 0);
    assert_int_equal(blocks_label(b, (char *)x + 512, 1), -1);
    s = blocks_count(b);
    assert_true(s.part[4].live_bytes == 0 && s.part[4].peak_bytes == 1024 && s.part[1].live_bytes == 6144 && s.part[1].peak_bytes == 6144);
    assert_int_equal(s.live_bytes, 6144);
    blocks_outside(b, 100, 2);
    s = blocks_count(b);
    assert_true(s.part[2].live_bytes == 100 && s.live_bytes == 6244 && s.peak_bytes == 6244 && s.live_blocks == 3);
    blocks_outside(b, -100, 2);
    assert_int_equal(blocks_give(b, y), 0);
    blocks_reset_peak(b);
    s = blocks_count(b);
    assert_true(s.part[1].live_bytes == 1024 && s.part[1].peak_bytes == 1024 && s.part[4].peak_bytes == 0 && s.peak_bytes == 1024);
    stop(b);
}

/* A block that another stream uses comes back, and is not handed out before the mark on that stream has passed. */
static void other_streams(void **state)
{
    static char copy, sums;
    const size_t MIB = 1 << 20;
    blocks *b = start(32 * MIB);
    void *x = take_plain(b, 32 * MIB);
    assert_int_equal(blocks_record(b, x, &copy), 0);
    assert_int_equal(blocks_record(b, x, &sums), 0);
    assert_int_equal(blocks_record(b, x, &copy), 0);                          /* once is enough                                        */
    assert_int_equal(blocks_record(b, (char *)x + 512, &copy), -1);
    assert_int_equal(blocks_give(b, x), 0);
    assert_int_equal(marks_set(), 2);
    assert_int_equal(blocks_count(b).live_bytes, 0);
    assert_int_equal(blocks_give(b, x), -1);
    let_pass(&copy);
    limit = 64 * MIB;
    void *y = take_plain(b, 32 * MIB);
    assert_true(y && y != x);
    assert_int_equal(blocks_give(b, y), 0);
    let_pass(&sums);
    void *z = take_plain(b, 32 * MIB), *w = take_plain(b, 32 * MIB);
    assert_true((z == x && w == y) || (z == y && w == x));
    assert_int_equal(marks_set(), 0);
    assert_int_equal(waits, 0);
    /* when there is no more the device is waited for, and then nothing waits any longer; a mark that could not be set neither */
    no_marks = true;
    assert_int_equal(blocks_record(b, z, &copy), 0);
    assert_int_equal(blocks_give(b, z), 0);
    no_marks = false;
    assert_int_equal(blocks_record(b, w, &sums), 0);
    assert_int_equal(blocks_give(b, w), 0);
    z = take_plain(b, 64 * MIB);
    assert_non_null(z);
    assert_true(waits == 1 && marks_set() == 0);
    /* neighbours: the one that waits is not merged into the free one */
    assert_int_equal(blocks_give(b, z), 0);
    char *p = take_plain(b, 1000), *q = take_plain(b, 1000);
    assert_int_equal(blocks_record(b, q, &copy), 0);
    assert_int_equal(blocks_give(b, q), 0);
    assert_int_equal(blocks_give(b, p), 0);
    for (int i = 0; i < 100; i++)
        assert_true(take_plain(b, 1024) != q);
    static char many[BLOCKS_STREAMS + 1];
    p = take_plain(b, 10);
    for (int i = 0; i <= BLOCKS_STREAMS; i++)
        assert_int_equal(blocks_record(b, p, &many[i]), i < BLOCKS_STREAMS ? 0 : -1);
    stop(b);
    assert_int_equal(marks_set(), 0);
}

static void *takes_elsewhere(void *b)
{
    return take_plain(b, 1000);
}

/* What is taken inside a hold stays its own until the release. */
static void holds(void **state)
{
    static char copy;
    const size_t MIB = 1 << 20;
    blocks *b = start(256 * MIB);
    void *before = take_plain(b, 1000), *cached = take_plain(b, 1000);
    assert_int_equal(blocks_give(b, cached), 0);
    blocks_hold *hold = blocks_hold_begin(b);
    assert_non_null(hold);
    assert_null(blocks_hold_begin(b));
    void *x = take_plain(b, 1000), *y = take_plain(b, 3000), *big = take_plain(b, 40 * MIB), *kept = take_plain(b, 2000);
    assert_ptr_equal(x, cached);
    pthread_t other;
    void *theirs;
    assert_int_equal(pthread_create(&other, NULL, takes_elsewhere, b), 0);
    pthread_join(other, &theirs);
    assert_int_equal(blocks_give(b, theirs), 0);
    assert_int_equal(blocks_count(b).held_bytes, 0);
    assert_int_equal(blocks_give(b, x), 0);
    assert_int_equal(blocks_give(b, y), 0);
    assert_int_equal(blocks_give(b, big), 0);
    assert_int_equal(blocks_count(b).held_bytes, 1024 + 3072 + 40 * (int64_t)MIB);
    assert_ptr_equal(take_plain(b, 40 * MIB), big);                           /* inside, it is used again                              */
    assert_int_equal(blocks_give(b, big), 0);
    void *merged = take_plain(b, 4096);
    assert_ptr_equal(merged, x);
    assert_int_equal(blocks_give(b, merged), 0);
    /* one that another stream uses: neither asked about nor marked while a stream is recorded */
    void *side = take_plain(b, 1000);
    assert_int_equal(blocks_record(b, side, &copy), 0);
    asked = 0;
    assert_int_equal(blocks_give(b, side), 0);
    void *next = take_plain(b, 1000);
    assert_true(next != side && marks_set() == 0 && asked == 0);
    assert_int_equal(blocks_give(b, next), 0);
    waits = 0;
    assert_null(take_plain(b, 300 * MIB));
    blocks_trim(b);
    assert_int_equal(waits, 0);
    blocks_hold_end(b, hold);
    for (int i = 0; i < 50; i++) {
        void *z = take_plain(b, 1000);
        assert_true(z && z != x && z != y && z != side && z != next && z != merged);
    }
    assert_int_equal(marks_set(), 1);
    void *other_big = take_plain(b, 40 * MIB);
    assert_true(other_big != big);
    assert_int_equal(blocks_give(b, other_big), 0);
    assert_int_equal(blocks_give(b, kept), 0);                                /* comes back after the end: still the hold's            */
    for (int i = 0; i < 50; i++)
        assert_true(take_plain(b, 2000) != kept);
    waits = 0;
    blocks_trim(b);
    assert_true(blocks_count(b).held_bytes >= 40 * (int64_t)MIB);
    blocks_hold *second = blocks_hold_begin(b);
    void *mine = take_plain(b, 40 * MIB);
    assert_true(second && mine && mine != big);
    blocks_hold_release(b, hold);                                             /* while another one is open                             */
    void *again = take_plain(b, 40 * MIB);
    assert_ptr_equal(again, big);
    blocks_hold_end(b, second);
    let_pass(&copy);
    blocks_hold_release(b, second);
    blocks_hold_release(b, NULL);
    assert_int_equal(blocks_count(b).held_bytes, 0);
    assert_int_equal(blocks_give(b, mine), 0);
    assert_int_equal(blocks_give(b, again), 0);
    assert_int_equal(blocks_give(b, before), 0);
    stop(b);
}

/* Random takes, gives, records, marks that pass, and holds: never two owners of one place. */
static void any_order_held(void **state)
{
    enum { N = 120 };
    uintptr_t at[N] = { 0 };
    size_t size[N];
    static char stream[3];
    blocks *b = start((size_t)16 << 30);
    blocks_hold *hold[2] = { NULL };
    int open = -1;
    for (int round = 0; round < 6000; round++) {
        int i = (int)(random_bits() % N);
        if (at[i]) {
            for (int s = 0; s < 3; s++)
                if (random_bits() % 8 == 0)
                    assert_int_equal(blocks_record(b, (void *)at[i], &stream[s]), 0);
            assert_int_equal(blocks_give(b, (void *)at[i]), 0);
            at[i] = 0;
        } else {
            size[i] = random_size() >> 3;
            at[i] = (uintptr_t)take_plain(b, size[i]);
            assert_true(at[i] != 0);
        }
        if (random_bits() % 4 == 0)
            let_pass(&stream[random_bits() % 3]);
        if (random_bits() % 50 == 0) {
            int h = (int)(random_bits() % 2);
            if (open >= 0)
                blocks_hold_end(b, hold[open]), open = -1;
            else if (hold[h])
                blocks_hold_release(b, hold[h]), hold[h] = NULL;
            else
                hold[open = h] = blocks_hold_begin(b);
        }
        if (round % 50 == 0)
            check(b, at, size, N);
    }
    for (int i = 0; i < N; i++)
        if (at[i])
            assert_int_equal(blocks_give(b, (void *)at[i]), 0);
    for (int h = 0; h < 2; h++)
        blocks_hold_release(b, hold[h]);
    assert_int_equal(blocks_count(b).held_bytes, 0);
    blocks_trim(b);
    assert_int_equal(pieces_live, 0);
    assert_int_equal(blocks_count(b).cached_bytes, 0);
    for (int c = 0; c < BLOCKS_CATEGORIES; c++)
        assert_int_equal(blocks_count(b).part[c].live_bytes, 0);
    stop(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_order), cmocka_unit_test(steady), cmocka_unit_test(exhausted), cmocka_unit_test(strangers), cmocka_unit_test(holders),
        cmocka_unit_test(categories), cmocka_unit_test(other_streams), cmocka_unit_test(holds), cmocka_unit_test(any_order_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
