/* tests/base/test_store_meet.c: meetings at the store: everybody's bytes in order, in pieces, and who is told what when somebody does not come.
 */
#include <base.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <store.h>
#include <cmocka.h>

enum { RANKS = 5 };
static const unsigned char secret[32] = { 7 };
static td__store_server *server;
static td__store *client[RANKS];

static int begin(void **state)
{
    (void)state;
    td_errors(TD_ERRORS_RETURN);
    server = td__store_serve("tcp:127.0.0.1:0", secret);
    for (int r = 0; r < RANKS; r++)
        client[r] = td__store_connect(td__store_address(server), secret, 10);
    return 0;
}

static int end(void **state)
{
    (void)state;
    for (int r = 0; r < RANKS; r++)
        td__store_close(client[r]);
    td__store_stop(server);
    assert_int_equal(td_memory().live_bytes, 0);
    assert_string_equal(td_error_message(), "");
    return 0;
}

/* ---- ranks as threads ------------------------------------------------------------------------------------------------------ */

typedef struct {
    int rank, code;
    const char *key;
    double wait, delay, told;
    td__store_absent absent;
    char all[64];
    size_t got;
    _Atomic int *stop;
} guest;

static int ask(void *of)
{
    return atomic_load((_Atomic int *)of);
}

static void *come(void *of)
{
    guest *g = of;
    char mine[16];
    int n = snprintf(mine, sizeof mine, "%.*s", g->rank, "aaaaaaaa");   /* rank r brings r letters */
    for (int i = 0; i < n; i++)
        mine[i] = (char)('0' + g->rank);
    usleep((useconds_t)(1e6 * g->delay));
    td__store_patience patience = { ask, g->stop };
    g->code = td__store_meet(client[g->rank], g->key, g->rank, RANKS, mine, (size_t)n, g->all, sizeof g->all - 1, &g->got, g->wait,
                             g->stop ? &patience : NULL, &g->absent);
    g->told = td__now();
    return NULL;
}

static void meet(guest *g, int first, int last)
{
    pthread_t thread[RANKS];
    for (int r = first; r < last; r++)
        assert_int_equal(pthread_create(&thread[r], NULL, come, &g[r]), 0);
    for (int r = first; r < last; r++)
        pthread_join(thread[r], NULL);
}

static void guests(guest *g, const char *key, double wait)
{
    memset(g, 0, RANKS * sizeof *g);
    for (int r = 0; r < RANKS; r++)
        g[r] = (guest){ .rank = r, .key = key, .wait = wait };
}

static void everybody(void **state)
{
    (void)state;
    guest g[RANKS];
    for (int round = 0; round < 20; round++) {
        guests(g, "scope/1", 20);              /* the same key: a meeting that took place is forgotten */
        meet(g, 0, RANKS);
        for (int r = 0; r < RANKS; r++) {
            assert_int_equal(g[r].code, 0);
            assert_int_equal(g[r].got, 10);
            assert_memory_equal(g[r].all, "1223334444", 10);
        }
    }
    assert_int_equal(td__store_server_members(server), RANKS);
    for (int r = 0; r < RANKS; r++)
        assert_int_equal(td__store_leave(client[r], "scope", r, NULL), 0);
    assert_int_equal(td__store_server_members(server), 0);
}

static void late(void **state)
{
    (void)state;
    guest g[RANKS];
    guests(g, "s/1", 0.2);
    meet(g, 1, 3);
    for (int r = 1; r < 3; r++) {
        assert_int_equal(g[r].code, TD_ERR_TIMEOUT);
        assert_int_equal(g[r].absent.why, TD__ABSENT_LATE);
        assert_int_equal(g[r].absent.count, 3);
        assert_int_equal(g[r].absent.rank[0], 0);
        assert_int_equal(g[r].absent.rank[1], 3);
        assert_int_equal(g[r].absent.rank[2], 4);
    }
}

/* Rank 4 goes in each way while the others wait, and once before they come. */
static void gone(void **state, const char *sentence, bool close_it, td__store_absence why)
{
    (void)state;
    guest g[RANKS];
    guests(g, "s/1", 20);
    meet(g, 0, RANKS);
    guests(g, "s/2", 20);
    pthread_t thread[RANKS];
    for (int r = 0; r < 3; r++)
        assert_int_equal(pthread_create(&thread[r], NULL, come, &g[r]), 0);
    usleep(100000);
    double when = td__now();
    if (close_it) {
        td__store_close(client[4]);
        client[4] = NULL;
    } else {
        assert_int_equal(td__store_leave(client[4], "s", 4, sentence), 0);
    }
    for (int r = 0; r < 3; r++)
        pthread_join(thread[r], NULL);
    g[3].delay = 0.05;
    meet(g, 3, 4);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(g[r].code, TD_ERR_PEER);
        assert_int_equal(g[r].absent.why, why);
        assert_int_equal(g[r].absent.count, 1);
        assert_int_equal(g[r].absent.rank[0], 4);
        assert_string_equal(g[r].absent.text, sentence ? sentence : "");
        assert_true(g[r].told - when < 5);
    }
    guests(g, "other/1", 0.1);                 /* elsewhere nobody misses it */
    meet(g, 0, 1);
    assert_int_equal(g[0].code, TD_ERR_TIMEOUT);
}

static void left(void **state)   { gone(state, NULL, false, TD__ABSENT_LEFT); }
static void failed(void **state) { gone(state, "rank 4 found a NaN", false, TD__ABSENT_FAILED); }
static void lost(void **state)   { gone(state, NULL, true, TD__ABSENT_LOST); }

/* Who has brought its part before it went is not missed. */
static void after_its_part(void **state)
{
    (void)state;
    guest g[RANKS];
    _Atomic int stop = 0;
    guests(g, "s/1", 20);
    g[4].stop = &stop;
    pthread_t four;
    assert_int_equal(pthread_create(&four, NULL, come, &g[4]), 0);
    usleep(100000);
    atomic_store(&stop, TD_ERR_ABORTED);
    pthread_join(four, NULL);
    assert_int_equal(g[4].code, TD_ERR_ABORTED);
    td__store_close(client[4]);
    client[4] = NULL;
    meet(g, 0, 4);
    for (int r = 0; r < 4; r++) {
        assert_int_equal(g[r].code, 0);
        assert_memory_equal(g[r].all, "1223334444", 10);
    }
}

static void odd_ranks(void **state)
{
    (void)state;
    guest g[RANKS];
    char all[16];
    size_t got;
    td__store_absent absent;
    guests(g, "s/1", 0.1);
    meet(g, 1, 2);
    assert_int_equal(td__store_meet(client[2], "s/2", 1, RANKS, "", 0, all, sizeof all, &got, 5, NULL, &absent), TD_ERR_PEER);
    assert_int_equal(absent.why, TD__ABSENT_TWICE);
    guests(g, "s/3", 0.3);
    pthread_t one;
    assert_int_equal(pthread_create(&one, NULL, come, &g[1]), 0);
    usleep(100000);
    assert_int_equal(td__store_meet(client[0], "s/3", 0, RANKS + 1, "", 0, all, sizeof all, &got, 5, NULL, &absent), TD_ERR_PEER);
    assert_int_equal(absent.why, TD__ABSENT_SIZE);
    pthread_join(one, NULL);
    char *much = calloc(1, TD__STORE_MEET_BYTES + 1);
    assert_int_equal(td__store_meet(client[0], "s/4", 0, RANKS, much, TD__STORE_MEET_BYTES + 1, all, sizeof all, &got, 5, NULL, &absent), TD_ERR_ARGUMENT);
    free(much);
    assert_int_equal(td__store_meet(client[0], "s/4", RANKS, RANKS, "", 0, all, sizeof all, &got, 5, NULL, &absent), TD_ERR_PEER);   /* refused */
    assert_int_equal(absent.why, TD__ABSENT_SERVER);
}

static void the_server_goes(void **state)
{
    (void)state;
    guest g[RANKS];
    pthread_t thread[RANKS];
    guests(g, "s/1", 20);
    for (int r = 0; r < 3; r++)
        assert_int_equal(pthread_create(&thread[r], NULL, come, &g[r]), 0);
    usleep(100000);
    td__store_stop(server);
    server = NULL;
    for (int r = 0; r < 3; r++) {
        pthread_join(thread[r], NULL);
        assert_int_equal(g[r].code, TD_ERR_PEER);
        assert_int_equal(g[r].absent.why, TD__ABSENT_SERVER);
        assert_true(strlen(g[r].absent.text) > 0);
    }
}

/* ---- more than a meeting has room for --------------------------------------------------------------------------------------------- */

enum { MANY = 100003 };
typedef struct { int rank; bool same; } gathering;

static unsigned char letter(int rank, size_t i)
{
    return (unsigned char)(i * 31 + (size_t)rank * 7 + (i >> 9));
}

static void *gather(void *of)
{
    gathering *g = of;
    td__store_absent absent;
    uint64_t turn = 0;
    unsigned char *mine = malloc(MANY), *all = malloc(RANKS * MANY);
    for (size_t i = 0; i < MANY; i++)
        mine[i] = letter(g->rank, i);
    g->same = td__store_gather(client[g->rank], "many", &turn, g->rank, RANKS, mine, MANY, all, 20, NULL, &absent) == 0 && turn == 8;
    for (int r = 0; r < RANKS; r++)
        for (size_t i = 0; i < MANY && g->same; i++)
            g->same = all[(size_t)r * MANY + i] == letter(r, i);
    free(mine);
    free(all);
    return NULL;
}

static void in_pieces(void **state)
{
    (void)state;
    gathering g[RANKS];
    pthread_t thread[RANKS];
    for (int r = 0; r < RANKS; r++) {
        g[r] = (gathering){ .rank = r };
        assert_int_equal(pthread_create(&thread[r], NULL, gather, &g[r]), 0);
    }
    for (int r = 0; r < RANKS; r++) {
        pthread_join(thread[r], NULL);
        assert_true(g[r].same);
    }
}

static void small_questions(void **state)
{
    (void)state;
    assert_int_equal(td__store_has(client[0], "k"), 0);
    assert_int_equal(td__store_set(client[1], "k", "v", 1), 0);
    assert_int_equal(td__store_has(client[0], "k"), 1);
    assert_int_equal(td__store_count(client[0], "n"), 1);
    assert_int_equal(td__store_count(client[1], "n"), 2);
    td__store_stop(server);
    server = NULL;
    assert_true(td__store_has(client[0], "k") < 0);
    assert_true(td__store_count(client[1], "n") < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(everybody, begin, end), cmocka_unit_test_setup_teardown(late, begin, end),
        cmocka_unit_test_setup_teardown(left, begin, end), cmocka_unit_test_setup_teardown(failed, begin, end),
        cmocka_unit_test_setup_teardown(lost, begin, end), cmocka_unit_test_setup_teardown(after_its_part, begin, end),
        cmocka_unit_test_setup_teardown(odd_ranks, begin, end), cmocka_unit_test_setup_teardown(the_server_goes, begin, end),
        cmocka_unit_test_setup_teardown(in_pieces, begin, end), cmocka_unit_test_setup_teardown(small_questions, begin, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
