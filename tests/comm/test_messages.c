/* Messages between two ranks over shared memory: every way (copied, from the arena, in pieces) and kind of call; random patterns, tags and orders;
 * floods; to oneself; in groups and beside collectives; peers that die, end, differ or do not come. */
#include "ranks.h"
#include <pthread.h>

static const int64_t sizes[] = { 0, 1, 1000, 3000, 16000, 70001, 300001 };   /* of f32: copied small and large, in pieces            */

static uint32_t dice(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static float value(int from, int to, int tag, int64_t i)
{
    return (float)((i * 3 + from * 101 + to * 17 + tag * 7) % 1009);
}

static td_tensor *blank(bool arena, int64_t n)
{
    return arena ? td_zeros_shared(td_world(), TD_SHAPE(n), TD_F32) : td_zeros(TD_SHAPE(n), TD_F32);
}

static td_tensor *filled(bool arena, int64_t n, int from, int to, int tag)
{
    td_tensor *x = blank(arena, n);
    for (int64_t i = 0; i < n; i++)
        ((float *)td_data(x))[i] = value(from, to, tag, i);
    return x;
}

static bool holds(td_tensor *x, int from, int to, int tag)
{
    const float *v = td_data(x);
    for (int64_t i = 0; i < td_numel(x); i++)
        if (v[i] != value(from, to, tag, i))
            return false;
    return true;
}

/* ---- every way ---------------------------------------------------------------------------------------------------------------------------- */

static int every_way(int rank, int size, void *arg)
{
    (void)arg;
    td_comm *w = td_world();
    const int next = (rank + 1) % size, last = (rank + size - 1) % size;
    for (size_t k = 0; k < TD_COUNT(sizes); k++)
        for (int arena = 0; arena < 4; arena++) {
            TD_SCOPE();
            const int64_t n = sizes[k];
            const int tag = (int)k * 4 + arena;
            td_tensor *out = filled(arena & 1, n, rank, next, tag), *in = blank(arena & 2, n);
            EXPECT(td_sendrecv(w, out, next, in, last, tag) == 0);
            EXPECT(holds(in, last, rank, tag));
            td_fill(in, -1);
            td_work *s = td_send_start(w, out, next, tag);
            EXPECT(td_recv(w, in, last, tag) == 0 && td_wait(s) == 0);
            EXPECT(holds(in, last, rank, tag));
            td_fill(in, -1);
            td_work *r = td_recv_start(w, in, last, tag);
            EXPECT(td_send(w, out, next, tag) == 0);
            while (k % 2 && !td_test(r))
                usleep(50);
            EXPECT(td_wait(r) == 0 && holds(in, last, rank, tag));
            if (rank % 2 == 0 && rank + 1 < size)        /* one after the other */
                EXPECT(td_send(w, out, next, 900) == 0);
            else if (rank % 2)
                EXPECT(td_recv(w, in, last, 900) == 0 && holds(in, last, rank, tag));
        }
    return 0;
}

static void ways(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        all_well(n, every_way, NULL, 120);
}

/* ---- random patterns ------------------------------------------------------------------------------------------------------------------------ */

enum { MESSAGES = 300 };

static int random_pattern(int rank, int size, void *arg)
{
    uint32_t state = 77u + (uint32_t)(intptr_t)arg;
    td_comm *w = td_world();
    struct { int from, to, tag; int64_t n; bool arena; } m[MESSAGES];
    for (int turn = 0; turn < 4; turn++) {
        TD_SCOPE();
        td_tensor *x[MESSAGES], *y[MESSAGES];
        td_work *sent[MESSAGES], *got[MESSAGES];
        for (int i = 0; i < MESSAGES; i++) {
            m[i].from = (int)(dice(&state) % (uint32_t)size), m[i].to = (int)(dice(&state) % (uint32_t)size);
            m[i].tag = (int)(dice(&state) % 5) * 200000, m[i].arena = dice(&state) % 3 == 0;
            m[i].n = dice(&state) % 10 == 0 ? dice(&state) % 100000 : dice(&state) % 3000;
            sent[i] = got[i] = NULL;
        }
        const bool receive_first = (rank + turn) % 2;
        for (int way = 0; way < 2; way++)
            for (int i = 0; i < MESSAGES; i++) {
                const int salt = m[i].tag + i;
                if ((way == 0) == receive_first && m[i].to == rank) {
                    y[i] = blank(i % 4 == 0, m[i].n);
                    got[i] = td_recv_start(w, y[i], m[i].from, m[i].tag);
                } else if ((way == 1) == receive_first && m[i].from == rank) {
                    x[i] = filled(m[i].arena, m[i].n, m[i].from, m[i].to, salt);
                    sent[i] = td_send_start(w, x[i], m[i].to, m[i].tag);
                }
            }
        EXPECT(td_barrier(w) == 0);
        for (int k = 0; k < MESSAGES; k++) {
            int i = (k * 7 + rank) % MESSAGES;
            if (got[i])
                EXPECT(td_wait(got[i]) == 0 && holds(y[i], m[i].from, m[i].to, m[i].tag + i));
            if (sent[i])
                EXPECT(td_wait(sent[i]) == 0);
        }
    }
    return 0;
}

static void patterns(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        all_well(n, random_pattern, (void *)(intptr_t)n, 120);
}

/* ---- floods ----------------------------------------------------------------------------------------------------------------------------------- */

static int flood(int rank, int size, void *arg)
{
    enum { MANY = 1000 };
    td_comm *w = td_world();
    (void)arg, (void)size;
    static td_work *work[MANY];
    TD_SCOPE();
    td_tensor *x = td_zeros(TD_SHAPE(200), TD_F32);
    if (rank == 0) {
        for (int i = 0; i < MANY; i++)
            work[i] = td_send_start(w, filled(false, 200, 0, 1, i), 1, i);
        for (int i = 0; i < MANY; i++)
            EXPECT(td_wait(work[i]) == 0);
        for (int i = 0; i < MANY; i++)         /* blocking: some are taken only after others were sent */
            EXPECT(td_send(w, filled(false, 200, 0, 1, i), 1, i % 40) == 0);
    } else {
        for (int i = MANY - 1; i >= 0; i--)
            EXPECT(td_recv(w, x, 0, i) == 0 && holds(x, 0, 1, i));
        for (int b = 0; b < MANY; b += 40)
            for (int t = 39; t >= 0; t--)
                EXPECT(td_recv(w, x, 0, t) == 0 && holds(x, 0, 1, b + t));
    }
    return 0;
}

static void floods(void **state)
{
    (void)state;
    all_well(2, flood, NULL, 60);
}

/* ---- to oneself ---------------------------------------------------------------------------------------------------------------------------------- */

static void said(int rank)
{
    snprintf(shared->rank[rank].sentence, sizeof shared->rank[rank].sentence, "%s", td_error_message());
    td_error_clear();
}

static int to_itself(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    td_comm *w = td_world();
    TD_SCOPE();
    td_tensor *x = filled(false, 50000, rank, rank, 4), *y = td_zeros(TD_SHAPE(50000), TD_F32), *z = td_zeros(TD_SHAPE(50000), TD_F32);
    td_work *a = td_send_start(w, x, rank, 4), *b = td_send_start(w, y, rank, 5);
    EXPECT(td_recv(w, z, rank, 5) == 0 && td_at(z, TD_SHAPE(7)) == 0);
    EXPECT(td_recv(w, z, rank, 4) == 0 && holds(z, rank, rank, 4));
    EXPECT(td_wait(b) == 0 && td_wait(a) == 0);
    EXPECT(td_sendrecv(w, x, rank, y, rank, 1) == 0 && holds(y, rank, rank, 4));
    td_work *c = td_recv_start(w, z, rank, 9);
    EXPECT(td_send(w, x, rank, 9) == 0 && td_wait(c) == 0);
    EXPECT(td_send(w, x, rank, 4) == TD_ERR_STATE);
    said(rank);
    EXPECT(td_sendrecv(w, x, rank, x, rank, 1) == TD_ERR_ARGUMENT);
    td_error_clear();
    EXPECT(td_send(w, x, size, 0) == TD_ERR_ARGUMENT);
    td_error_clear();
    EXPECT(td_send(w, x, 0, 1 << 20) == TD_ERR_ARGUMENT);
    td_error_clear();
    EXPECT(td_wait(td_recv_start(NULL, x, 0, 0)) == TD_ERR_ARGUMENT || td_error_message()[0]);
    td_error_clear();
    EXPECT(td_sendrecv(w, x, rank, y, rank, 1) == 0);    /* nothing is broken */
    return 0;
}

static void oneself(void **state)
{
    (void)state;
    all_well(1, to_itself, NULL, 60);
    all_well(2, to_itself, NULL, 60);
    assert_non_null(strstr(shared->rank[1].sentence, "send(f32, 50000, to 1, tag 4) #"));
    assert_non_null(strstr(shared->rank[1].sentence, "is to itself, and its counterpart was not started"));
}

/* ---- groups, threads, collectives beside them ---------------------------------------------------------------------------------------------------- */

typedef struct { td_comm *g; bool failed; } use;

static void *ring(void *of)
{
    use *u = of;
    const int n = td_size(u->g), me = td_rank(u->g), next = (me + 1) % n, last = (me + n - 1) % n;
    for (int i = 0; i < 150 && !u->failed; i++) {
        TD_SCOPE();
        const int64_t count = sizes[i % 6];
        td_tensor *out = filled(i % 3 == 0, count, me, next, i), *in = blank(false, count);
        td_work *r = i % 2 ? td_recv_start(u->g, in, last, i) : NULL;
        int code = r ? td_send(u->g, out, next, i) : td_sendrecv(u->g, out, next, in, last, i);
        code = code ? code : r ? td_wait(r) : 0;
        u->failed = code || !holds(in, last, me, i);
    }
    td__scope_close_root();
    return NULL;
}

static int in_groups(int rank, int size, void *arg)
{
    (void)arg;
    pthread_t thread[2];
    use uses[2] = { { td_comm_split(td_world(), 0, -rank), false }, { td_comm_split(td_world(), rank % 2, 0), false } };
    for (int i = 0; i < 2; i++)
        EXPECT(uses[i].g && pthread_create(&thread[i], NULL, ring, &uses[i]) == 0);
    TD_SCOPE();
    td_tensor *x = td_zeros(TD_SHAPE(30000), TD_F32), *y = td_zeros(TD_SHAPE(30000), TD_F32);
    for (int i = 0; i < 50; i++) {             /* a collective and a message of one communicator at once */
        td_fill(x, rank);
        td_work *c = td_all_reduce_start(td_world(), x, TD_SUM), *s = td_send_start(td_world(), y, (rank + 1) % size, i);
        td_tensor *in = blank(false, 30000);
        EXPECT(td_recv(td_world(), in, (rank + size - 1) % size, i) == 0);
        EXPECT(td_wait(s) == 0 && td_wait(c) == 0 && td_at(x, TD_SHAPE(29999)) == size * (size - 1) / 2);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(thread[i], NULL);
        EXPECT(!uses[i].failed && td_comm_free(uses[i].g) == 0);
    }
    return 0;
}

static int made_and_freed(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    for (int i = 0; i < 200; i++) {
        TD_SCOPE();
        td_comm *g = td_comm_dup(td_world());
        td_tensor *x = td_zeros(TD_SHAPE(sizes[i % 7]), TD_F32), *y = td_zeros(TD_SHAPE(sizes[i % 7]), TD_F32);
        td_work *w = td_send_start(g, x, 1 - rank, 3);
        EXPECT(td_recv(g, y, 1 - rank, 3) == 0 && td_wait(w) == 0);
        if (i % 5 == 0)
            EXPECT(td_send(g, td_zeros(TD_SHAPE(3), TD_F32), 1 - rank, 8) == 0);   /* that nobody takes */
        EXPECT(td_comm_free(g) == 0);
    }
    size_t bytes;
    char error[200];
    td__arena *a = td_world()->reach.arena;
    EXPECT(td_barrier(td_world()) == 0);
    void *block = td__arena_alloc(a, 64, error, sizeof error);
    EXPECT(block == td__arena_base(a, &bytes));
    td__arena_free(a, block);
    return 0;
}

static void groups(void **state)
{
    (void)state;
    all_well(2, in_groups, NULL, 120);
    all_well(4, in_groups, NULL, 120);
    all_well(2, made_and_freed, NULL, 60);
}

/* ---- faults ---------------------------------------------------------------------------------------------------------------------------------------- */

static int differ(int rank, int size, void *arg)
{
    const int64_t n = *(int64_t *)arg;
    (void)size;
    td_comm *g = td_comm_split(td_world(), 0, -rank);    /* world 0 is rank 2 of it */
    TD_SCOPE();
    if (rank == 0) {
        td_tensor *x = td_zeros(TD_SHAPE(n), TD_F32);
        int code = td_send(g, x, 0, 3);
        if (!code)                             /* it was copied: the next call says it */
            code = td_recv(g, x, 0, 4);
        EXPECT(code == TD_ERR_MISMATCH);
        said(rank);
    } else if (rank == 2) {
        td_tensor *x = td_zeros(TD_SHAPE(n + 1), TD_F32);
        EXPECT(td_recv(g, x, 2, 3) == TD_ERR_MISMATCH);
        said(rank);
        EXPECT(td_recv(g, x, 2, 3) == TD_ERR_MISMATCH);
        td_error_clear();
    }
    return 0;
}

static int killed(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    TD_SCOPE();
    td_tensor *x = td_zeros(TD_SHAPE(10), TD_F32);
    if (rank == 1) {
        usleep(200000);
        kill(getpid(), SIGKILL);
    }
    if (rank == 2)
        return 0;
    EXPECT(td_recv(td_world(), x, 1, 0) == TD_ERR_PEER);
    said(rank);
    return 0;
}

/* What a rank sent before it ended arrives; what it did not is told. */
static int finished(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    TD_SCOPE();
    td_tensor *x = filled(false, 1000, 1, 0, 5);
    if (rank == 1)
        return td_send(td_world(), x, 0, 5);
    td_tensor *y = td_zeros(TD_SHAPE(1000), TD_F32);
    usleep(300000);
    EXPECT(td_recv(td_world(), y, 1, 5) == 0 && holds(y, 1, 0, 5));
    EXPECT(td_recv(td_world(), y, 1, 5) == TD_ERR_PEER);
    said(rank);
    return 0;
}

static int late(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    TD_SCOPE();
    td_tensor *x = td_zeros(TD_SHAPE(100000), TD_F32);
    td_world()->timeout = 1;
    td_world()->control->timeout = 1;
    if (rank == 0) {
        double begun = td__now();
        EXPECT(td_send(td_world(), x, 1, 0) == TD_ERR_TIMEOUT);
        shared->rank[0].told = td__now() - begun;
        said(rank);
        atomic_store(&shared->rank[0].ready, 1);
    } else {
        while (!atomic_load(&shared->rank[0].ready))
            usleep(10000);
    }
    return 0;
}

static void faults(void **state)
{
    (void)state;
    int results[MAX_RANKS];
    static const int64_t counts[] = { 10, 50000 };
    for (int k = 0; k < 2; k++) {
        char expected[200];
        all_well(3, differ, (void *)&counts[k], 60);
        for (int r = 0; r < 3; r += 2) {
            snprintf(expected, sizeof expected, "rank 0 called send(f32, %d, to 2, tag 3) #1 of group 1 of world at test_messages.c:", (int)counts[k]);
            assert_non_null(strstr(shared->rank[r].sentence, expected));
            snprintf(expected, sizeof expected, "while rank 2 called recv(f32, %d, from 0, tag 3) #1 of group 1 of world at test_messages.c:", (int)counts[k] + 1);
            assert_non_null(strstr(shared->rank[r].sentence, expected));
        }
    }
    run_ranks(3, killed, NULL, 60, results);
    assert_int_equal(results[0], 0);
    assert_non_null(strstr(shared->rank[0].sentence, "was killed or died while rank 0 waited in recv(f32, 10, from 1, tag 0) #1 at test_messages.c:"));
    all_well(2, finished, NULL, 60);
    assert_non_null(strstr(shared->rank[0].sentence, "rank 1 (pid "));
    assert_non_null(strstr(shared->rank[0].sentence, "had called td_finish while rank 0 waited in recv(f32, 1000, from 1, tag 5) #2"));
    all_well(2, late, NULL, 60);
    assert_non_null(strstr(shared->rank[0].sentence, "did not come to send(f32, 100000, to 1, tag 0) #1 at test_messages.c:"));
    assert_true(shared->rank[0].told < 10);
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(ways), cmocka_unit_test(patterns), cmocka_unit_test(floods), cmocka_unit_test(oneself),
                                               cmocka_unit_test(groups), cmocka_unit_test(faults) };
    return cmocka_run_group_tests_name("messages", tests, NULL, NULL);
}
