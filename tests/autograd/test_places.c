/* tests/autograd/test_places.c: blocks that live at the same time never share a byte: as packed (capture_pack.c), and as handed out by a plan
 * (base/pool_plan.c) to a thread whose requests follow the noted ones, or do not: left out, added, of another size, freed late or by another thread.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <capture.h>

enum { MOMENTS = 12, ACTS = 40, MOST = MOMENTS * ACTS };

static uint64_t now;
static uint32_t draw(uint32_t below)
{
    now = now * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(now >> 33) % below;
}

/* ---- packing ---------------------------------------------------------------------------------------------------------------------------- */

static size_t most_at_once(const td__packed *list, size_t n)
{
    size_t most = 0;
    for (size_t i = 0; i < n; i++) {
        size_t at_once = 0;
        for (size_t k = 0; k < n; k++)
            at_once += list[k].from <= list[i].from && list[i].from < list[k].to ? list[k].bytes : 0;
        most = at_once > most ? at_once : most;
    }
    return most;
}

static void packed_apart(void **state)
{
    (void)state;
    for (int round = 0; round < 60; round++) {
        td__packed list[200];
        size_t n = 1 + draw(200), bytes, sum = 0;
        for (size_t i = 0; i < n; i++) {
            uint32_t from = draw(300);
            list[i] = (td__packed){ 64 * (1 + draw(round % 2 ? 5 : 500)), from, from + 1 + draw(60), SIZE_MAX };
            sum += list[i].bytes;
        }
        assert_int_equal(td__pack(list, n, &bytes), 0);
        assert_true(bytes >= most_at_once(list, n) && bytes <= sum);
        assert_true(bytes <= 2 * most_at_once(list, n));
        for (size_t i = 0; i < n; i++) {
            assert_true(list[i].at % 64 == 0 && list[i].at + list[i].bytes <= bytes);
            for (size_t k = 0; k < i; k++)
                if (list[i].from < list[k].to && list[k].from < list[i].to && list[i].at < list[k].at + list[k].bytes && list[k].at < list[i].at + list[i].bytes)
                    fail_msg("round %d: blocks %zu and %zu of %zu share bytes", round, k, i, n);
        }
    }
    size_t bytes = 7;
    assert_int_equal(td__pack(NULL, 0, &bytes), 0);
    assert_int_equal(bytes, 0);
}

/* So many that small ones are placed otherwise. */
static void packed_many(void **state)
{
    (void)state;
    enum { MANY = 9000 };
    static td__packed list[MANY];
    for (int round = 0; round < 2; round++) {
        size_t bytes, sum = 0;
        for (size_t i = 0; i < MANY; i++) {
            uint32_t from = draw(9000);
            list[i] = (td__packed){ 64 * (1 + draw(i % 50 || round ? 12 : 500)), from, from + 1 + draw(30), SIZE_MAX };
            sum += list[i].bytes;
        }
        assert_int_equal(td__pack(list, MANY, &bytes), 0);
        assert_true(bytes < sum / 20);
        for (size_t i = 0; i < MANY; i++) {
            assert_true(list[i].at + list[i].bytes <= bytes);
            for (size_t k = 0; k < i; k++)
                if (list[i].from < list[k].to && list[k].from < list[i].to && list[i].at < list[k].at + list[k].bytes && list[k].at < list[i].at + list[i].bytes)
                    fail_msg("blocks %zu and %zu of %d share bytes", k, i, MANY);
        }
    }
}

/* One after the other they all fit at the same place. */
static void packed_tight(void **state)
{
    (void)state;
    td__packed chain[50];
    size_t bytes;
    for (uint32_t i = 0; i < 50; i++)
        chain[i] = (td__packed){ 640, i, i + 1, SIZE_MAX };
    assert_int_equal(td__pack(chain, 50, &bytes), 0);
    assert_int_equal(bytes, 640);
    for (uint32_t i = 0; i < 50; i++)
        chain[i].to = i + 2;
    assert_int_equal(td__pack(chain, 50, &bytes), 0);
    assert_int_equal(bytes, 1280);
}

/* ---- a thread that repeats itself ----------------------------------------------------------------------------------------------------------- */

typedef struct { unsigned char *at; size_t bytes; unsigned char mark; } held;
static held block[4 * MOST];
static int blocks;

static void put_back(int i, bool elsewhere);

static void take(size_t bytes)
{
    held *h = &block[blocks];
    assert_true(blocks < (int)TD_COUNT(block));
    *h = (held){ td__alloc(bytes), bytes, (unsigned char)(1 + draw(255)) };
    blocks++;
    assert_non_null(h->at);
    assert_int_equal((uintptr_t)h->at % 64, 0);
    memset(h->at, h->mark, bytes);
}

static void *frees(void *at)
{
    td__free(at);
    return NULL;
}

static void put_back(int i, bool elsewhere)
{
    held *h = &block[i];
    for (size_t k = 0; k < h->bytes; k++)
        if (h->at[k] != h->mark)
            fail_msg("byte %zu of a block of %zu was written by somebody else", k, h->bytes);
    pthread_t thread;
    if (!elsewhere || pthread_create(&thread, NULL, frees, h->at))
        td__free(h->at);
    else
        pthread_join(thread, NULL);
    *h = block[--blocks];
}

/* The same acts for the same seed; `odd` of a hundred are others. */
static void turn(uint64_t seed, uint32_t odd)
{
    for (uint32_t m = 0; m < MOMENTS; m++) {
        assert_true(td__pool_moment(m) || odd);
        for (int a = 0; a < ACTS; a++) {
            now = seed + 1000 * m + (uint64_t)a * 7919;
            draw(2);
            uint32_t act = draw(2), size = 1 + draw(2000) * draw(20), which = draw(1 << 16);
            if (odd) {
                now ^= (uint64_t)(uintptr_t)blocks * 31 + odd * 977 + seed * 13;
                uint32_t kind = draw(100) < odd ? draw(5) : 9;
                if (kind == 0)
                    continue;                          /* left out */
                if (kind == 1)
                    size += 64;
                if (kind == 2)
                    take(1 + draw(9000));              /* one more */
                if (kind == 3 && !act)
                    continue;                          /* late     */
                if (kind == 4 && blocks)
                    put_back((int)(which % (uint32_t)blocks), true);
            }
            if (act || !blocks)
                take(size);
            else
                put_back((int)(which % (uint32_t)blocks), false);
        }
    }
}

static void all_back(void)
{
    while (blocks)
        put_back(blocks - 1, false);
}

/* A plan of what was noted; what was not over then is left to the pool. */
static td__pool_plan *plan_of(const td__pool_log *log)
{
    static td__packed list[4 * MOST];
    uint32_t n = (uint32_t)log->n, ends = 0;
    size_t bytes;
    for (uint32_t i = 0; i < n; i++) {
        const td__pool_noted *b = td__pool_noted_at(log, i);
        bool passes = b->died != TD__POOL_NEVER && !b->elsewhere;
        ends += passes;
        list[i] = (td__packed){ passes ? TD__POOL_HEADER + (b->bytes + 63) / 64 * 64 : 0, b->born, passes ? b->died : b->born + 1, 0 };
    }
    assert_int_equal(td__pack(list, n, &bytes), 0);
    td__pool_plan *p = td__pool_plan_new(n, ends, MOMENTS, 0, bytes);
    assert_non_null(p);
    for (uint32_t i = 0; i < n; i++) {
        const td__pool_noted *b = td__pool_noted_at(log, i);
        p->place[i] = (td__pool_place){ b->bytes, list[i].bytes ? list[i].at : SIZE_MAX, 0, TD__POOL_NEVER };
        uint32_t order = 0;
        for (uint32_t k = 0; k < n; k++) {
            const td__pool_noted *other = td__pool_noted_at(log, k);
            if (other->died == TD__POOL_NEVER || other->elsewhere)
                continue;
            p->place[i].before += other->died < b->born;
            order += other->died < b->died;
        }
        if (list[i].bytes) {
            p->place[i].order = order;
            p->by_order[order] = i;
        }
    }
    for (uint32_t m = 0; m <= MOMENTS; m++)
        while (p->first[m] < n && (m == MOMENTS || td__pool_noted_at(log, p->first[m])->moment < m))
            p->first[m]++;
    return p;
}

static void turns(void **state)
{
    (void)state;
    static td__pool_log log;
    for (uint64_t seed = 1; seed < 12; seed++) {
        assert_int_equal(td__pool_log_begin(&log, MOMENTS), 0);
        turn(seed, 0);
        all_back();
        td__pool_log_end(&log);
        td__pool_plan *p = plan_of(&log);
        for (int again = 0; again < 3; again++) {
            assert_false(td__pool_plan_busy(p));
            td__pool_turn_begin(p);
            td__pool_fail_after(1);            /* the pool is not asked                                                    */
            turn(seed, 0);
            all_back();
            td__pool_fail_after(-1);
            td__pool_turn_end();
            assert_int_equal(p->fell, 0);
        }
        int64_t fell = 0;
        for (uint32_t odd = 1; odd < 60; odd += 6) {
            td__pool_turn_begin(p);
            turn(seed, odd);
            fell += p->fell;
            td__pool_turn_end();
            bool live = false;
            for (int i = 0; i < blocks; i++)
                live |= block[i].at >= (unsigned char *)p->memory && block[i].at < (unsigned char *)p->memory + p->bytes;
            assert_true(td__pool_plan_busy(p) == live);
            all_back();
        }
        assert_true(fell > 0);
        td__pool_turn_begin(p);                /* its memory lives as long as what lies in it                                */
        turn(seed, 0);
        td__pool_turn_end();
        td__pool_plan_drop(p);
        all_back();
        td__pool_log_free(&log);
    }
    assert_int_equal(td_memory().live_bytes, 0);
    assert_int_equal(td_error_pending(), 0);
}

static int quietly(void **state)
{
    (void)state;
    td_errors(TD_ERRORS_RETURN);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(packed_apart), cmocka_unit_test(packed_many), cmocka_unit_test(packed_tight), cmocka_unit_test(turns) };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
