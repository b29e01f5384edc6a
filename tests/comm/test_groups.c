/* Groups of ranks over shared memory: random colors and keys against a plain reference, nested, duplicated; several at once from threads and
 * started; ranks that die, differ or give up; made and freed a thousand times. */
#include "ranks.h"
#include <dirent.h>
#include <pthread.h>

/* The same numbers on every rank. */
static uint32_t dice(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static double sum_over(td_comm *g, double mine)
{
    TD_SCOPE();
    td_tensor *x = td_full(TD_SHAPE(1), TD_F64, mine);
    EXPECT(td_all_reduce(g, x, TD_SUM) == 0);
    return td_at(x, TD_SHAPE(0));
}

/* Sums, copies and parts over a group, small, staged and in the arena. */
static void collectives_on(td_comm *g)
{
    static const int64_t sizes[] = { 1, 1000, 70001 };
    const int n = td_size(g), me = td_rank(g);
    int world[MAX_RANKS];
    EXPECT(td_comm_ranks(g, world) == n);
    for (size_t k = 0; k < TD_COUNT(sizes); k++)
        for (int arena = 0; arena < 2; arena++) {
            TD_SCOPE();
            const int64_t count = sizes[k];
            td_tensor *x = arena ? td_zeros_shared(g, TD_SHAPE(count), TD_F32) : td_zeros(TD_SHAPE(count), TD_F32);
            td_tensor *all = arena ? td_zeros_shared(g, TD_SHAPE(count * n), TD_F32) : td_zeros(TD_SHAPE(count * n), TD_F32);
            for (int64_t i = 0; i < count; i++)
                ((float *)td_data(x))[i] = (float)(world[me] + i % 7);
            EXPECT(td_all_gather(g, all, x) == 0);
            for (int64_t i = 0; i < count * n; i++)
                EXPECT(((float *)td_data(all))[i] == (float)(world[i / count] + i % count % 7));
            td_tensor *part = td_zeros(TD_SHAPE(count), TD_F32);
            EXPECT(td_reduce_scatter(g, part, all, TD_SUM) == 0);
            for (int64_t i = 0; i < count; i++)
                EXPECT(((float *)td_data(part))[i] == (float)(n * (world[me] + i % 7)));
            EXPECT(td_all_reduce(g, x, TD_SUM) == 0);
            double sum = 0;
            for (int r = 0; r < n; r++)
                sum += world[r];
            for (int64_t i = 0; i < count; i++)
                EXPECT(((float *)td_data(x))[i] == (float)(sum + n * (i % 7)));
            td_fill(x, me);
            EXPECT(td_broadcast(g, x, n - 1) == 0 && td_at(x, TD_SHAPE(count - 1)) == n - 1);
            EXPECT(td_barrier(g) == 0);
        }
}

/* ---- who is in it -------------------------------------------------------------------------------------------------------------------- */

static void check_membership(td_comm *parent, td_comm *g, const int *color, const int *key)
{
    int rank[MAX_RANKS], n = 0, above[MAX_RANKS], given[MAX_RANKS];
    const int me = td_rank(parent);
    td_comm_ranks(parent, above);
    if (color[me] == TD_NO_COLOR) {
        EXPECT(g == NULL);
        return;
    }
    EXPECT(g != NULL);
    for (int r = 0; r < td_size(parent); r++) {
        if (color[r] != color[me])
            continue;
        int at = n++;
        while (at > 0 && key[rank[at - 1]] > key[r])
            rank[at] = rank[at - 1], at--;
        rank[at] = r;
    }
    EXPECT(td_size(g) == n && rank[td_rank(g)] == me);
    EXPECT(td_comm_ranks(g, given) == n);
    for (int i = 0; i < n; i++)
        EXPECT(given[i] == above[rank[i]] && td_comm_world_rank(g, i) == above[rank[i]]);
    EXPECT(!strcmp(td_comm_backend_name(g), n == 1 ? "self" : "shm"));
}

static int random_splits(int rank, int size, void *arg)
{
    uint32_t state = 1u + (uint32_t)size;
    (void)rank, (void)arg;
    for (int turn = 0; turn < 25; turn++) {
        int color[MAX_RANKS], key[MAX_RANKS], inner_color[MAX_RANKS], inner_key[MAX_RANKS];
        for (int r = 0; r < size; r++) {
            color[r] = (int)(dice(&state) % 4) - 1;
            key[r] = (int)(dice(&state) % 5) - 2;
            inner_color[r] = (int)(dice(&state) % 3) - 1;
            inner_key[r] = (int)(dice(&state) % 3);
        }
        td_comm *g = td_comm_split(td_world(), color[rank], key[rank]), *copy = NULL, *inner = NULL;
        check_membership(td_world(), g, color, key);
        if (g) {
            collectives_on(g);
            copy = td_comm_dup(g);
            EXPECT(copy && td_size(copy) == td_size(g) && td_rank(copy) == td_rank(g));
            inner = td_comm_split(g, inner_color[td_rank(g)], inner_key[td_rank(g)]);
            check_membership(g, inner, inner_color, inner_key);
            if (turn % 2)                      /* a parent may go first */
                EXPECT(td_comm_free(g) == 0);
            if (inner)
                collectives_on(inner);
            collectives_on(copy);
        }
        EXPECT(td_barrier(td_world()) == 0);
        if (g && turn % 2 == 0)
            EXPECT(td_comm_free(g) == 0);
        if (turn % 3) {                        /* else td_finish frees them */
            EXPECT(td_comm_free(inner) == 0);
            EXPECT(td_comm_free(copy) == 0);
        }
    }
    return 0;
}

static void splits(void **state)
{
    (void)state;
    for (int n = 1; n <= 5; n++)
        all_well(n, random_splits, NULL, 120);
}

/* ---- at the same time ---------------------------------------------------------------------------------------------------------------- */

enum { THREADS = 3, TURNS = 200 };

typedef struct { td_comm *g; int salt, failed; } use;

static void *use_group(void *of)
{
    use *u = of;
    for (int i = 0; i < TURNS && !u->failed; i++) {
        TD_SCOPE();
        td_tensor *x = td_full(TD_SHAPE(i % 5 == 4 ? 70000 : 10), TD_F32, td_rank(u->g) + u->salt + i);
        int code = i % 3 == 2 ? td_wait(td_all_reduce_start(u->g, x, TD_SUM)) : td_all_reduce(u->g, x, TD_SUM);
        const int n = td_size(u->g);
        u->failed = code || td_at(x, TD_SHAPE(9)) != n * (n - 1) / 2 + n * (u->salt + i);
    }
    td__scope_close_root();
    return NULL;
}

/* Every rank is in several groups, each used by a thread of its own, in step with nothing else. */
static int from_threads(int rank, int size, void *arg)
{
    (void)arg;
    pthread_t thread[THREADS];
    use uses[THREADS] = { { td_comm_split(td_world(), 0, -rank), 1, 0 }, { td_comm_split(td_world(), rank % 2, 0), 5, 0 },
                          { td_comm_dup(td_world()), 9, 0 } };
    for (int i = 0; i < THREADS; i++)
        EXPECT(uses[i].g && pthread_create(&thread[i], NULL, use_group, &uses[i]) == 0);
    for (int i = 0; i < 50; i++)
        EXPECT(sum_over(td_world(), rank) == size * (size - 1) / 2);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
        EXPECT(!uses[i].failed);
        EXPECT(td_comm_free(uses[i].g) == 0);
    }
    return 0;
}

/* Works on many groups started in another order on every rank: none waits for another group's. */
static int started_on_many(int rank, int size, void *arg)
{
    enum { GROUPS = 6, EACH = 4 };
    td_comm *g[GROUPS];
    (void)arg;
    for (int i = 0; i < GROUPS; i++)
        g[i] = i % 2 ? td_comm_dup(td_world()) : td_comm_split(td_world(), i == 4 ? rank / 2 : 0, i == 2 ? -rank : rank);
    for (int turn = 0; turn < 20; turn++) {
        TD_SCOPE();
        td_tensor *x[GROUPS][EACH];
        td_work *w[GROUPS][EACH];
        for (int k = 0; k < GROUPS; k++) {
            int i = (k + rank * 2 + turn) % GROUPS;
            for (int e = 0; e < EACH; e++) {
                x[i][e] = td_full(TD_SHAPE(e == 3 ? 50000 : 100), TD_F32, td_rank(g[i]) + e + i);
                w[i][e] = td_all_reduce_start(g[i], x[i][e], TD_SUM);
            }
        }
        for (int k = GROUPS - 1; k >= 0; k--) {
            int i = (k * 5 + rank) % GROUPS, n = td_size(g[i]);
            for (int e = EACH - 1; e >= 0; e--) {
                EXPECT(td_wait(w[i][e]) == 0);
                EXPECT(td_at(x[i][e], TD_SHAPE(99)) == n * (n - 1) / 2 + n * (e + i));
            }
        }
    }
    EXPECT(size >= 2);
    return 0;
}

static void at_once(void **state)
{
    (void)state;
    all_well(2, from_threads, NULL, 120);
    all_well(4, from_threads, NULL, 120);
    all_well(3, started_on_many, NULL, 120);
    all_well(4, started_on_many, NULL, 120);
}

/* ---- a thousand times ------------------------------------------------------------------------------------------------------------------ */

static int entries(const char *folder)
{
    int n = 0;
    DIR *d = opendir(folder);
    EXPECT(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static int many_times(int rank, int size, void *arg)
{
    (void)arg;
    int fds = 0, threads = 0;
    int64_t reserved = 0;
    for (int i = 0; i < 1000; i++) {
        if (i == 20) {
            fds = entries("/proc/self/fd"), threads = entries("/proc/self/task");
            reserved = td_memory().live_bytes;
        }
        td_comm *g = td_comm_split(td_world(), i % 3 == 0 ? rank % 2 : 0, i % 2 ? rank : -rank);
        EXPECT(g);
        if (i % 10 == 0) {
            TD_SCOPE();
            td_tensor *x = td_full(TD_SHAPE(4), TD_F32, 1);
            EXPECT(td_wait(td_all_reduce_start(g, x, TD_SUM)) == 0 && td_at(x, TD_SHAPE(0)) == td_size(g));
        }
        EXPECT(td_comm_free(g) == 0);
    }
    for (int i = 0; i < 100 && entries("/proc/self/task") != threads; i++)
        usleep(10000);                         /* a joined thread leaves the list a moment later                              */
    EXPECT(entries("/proc/self/task") == threads);
    EXPECT(entries("/proc/self/fd") == fds);
    EXPECT(td_barrier(td_world()) == 0);
    EXPECT(td_memory().live_bytes == reserved);
    size_t size_of;                            /* the arena is as it was: the first block is free again                       */
    char error[200];
    td__arena *a = td_world()->reach.arena;
    void *block = td__arena_alloc(a, 64, error, sizeof error);
    EXPECT(block == td__arena_base(a, &size_of));
    td__arena_free(a, block);
    return size == 0;
}

static void again_and_again(void **state)
{
    (void)state;
    all_well(3, many_times, NULL, 120);
}

/* ---- misuse ------------------------------------------------------------------------------------------------------------------------------ */

static void said(int rank)
{
    snprintf(shared->rank[rank].sentence, sizeof shared->rank[rank].sentence, "%s", td_error_message());
    td_error_clear();
}

static int wrong_color(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    EXPECT(td_comm_split(td_world(), rank == 1 ? -7 : 0, 0) == NULL);
    said(rank);
    td_comm *g = td_comm_split(td_world(), 0, 0);   /* and nothing is broken */
    EXPECT(g && td_size(g) == size);
    EXPECT(!strcmp(td_comm_name(g), "group 1 of world") && !strcmp(td_comm_name(td_world()), "world"));
    EXPECT(td_comm_free(td_world()) < 0);
    td_error_clear();
    EXPECT(td_comm_world_rank(g, size) < 0);
    td_error_clear();
    EXPECT(td_comm_split(NULL, 0, 0) == NULL && td__pending() < 0);
    td_error_clear();
    return 0;
}

static int no_memory(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    if (rank == 0)
        td__arena_set_limit(td_world()->reach.arena, 4096);
    EXPECT(td_comm_split(td_world(), 0, 0) == NULL);
    said(rank);
    td_comm *g = td_comm_split(td_world(), 0, -rank);    /* another's memory */
    EXPECT(g && sum_over(g, 1) == size);
    return 0;
}

static void refusals(void **state)
{
    (void)state;
    all_well(3, wrong_color, NULL, 60);
    for (int r = 0; r < 3; r++)
        assert_non_null(strstr(shared->rank[r].sentence, "td_comm_split: color -7 is negative"));
    all_well(3, no_memory, NULL, 60);
    for (int r = 0; r < 3; r++)
        assert_non_null(strstr(shared->rank[r].sentence, "td_comm_split: the control page of group 1 of world: "));
}

/* ---- faults ------------------------------------------------------------------------------------------------------------------------------- */

/* Ranks 0, 1 and 2, 3. Rank 1 goes; 2 and 3 work on until they meet it in the world. */
static int killed_in_group(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    td_comm *g = td_comm_split(td_world(), rank / 2, 0);
    EXPECT(sum_over(g, 1) == 2);
    if (rank == 1)
        kill(getpid(), SIGKILL);
    TD_SCOPE();
    td_tensor *x = td_full(TD_SHAPE(10), TD_F32, 1);
    if (rank == 0) {
        EXPECT(td_all_reduce(g, x, TD_SUM) == TD_ERR_PEER);
        said(rank);
        EXPECT(td_all_reduce(g, x, TD_SUM) == TD_ERR_PEER);      /* it stays so */
        td_error_clear();
        EXPECT(td_comm_free(g) < 0);
        td_error_clear();
    }
    if (rank >= 2) {
        double end = td__now() + 0.5;
        for (int more = 1; more;) {            /* well after rank 0 has been told */
            EXPECT(sum_over(g, 1) == 2);
            more = sum_over(g, td__now() < end) > 0;
        }
    }
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == TD_ERR_PEER);
    snprintf(shared->rank[rank].sentence + 700, 700, "%s", td_error_message());
    td_error_clear();
    _exit(0);
}

static int differ(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    td_comm *g = td_comm_split(td_world(), 0, -rank);
    TD_SCOPE();
    td_tensor *x = td_full(TD_SHAPE(rank == 0 ? 11 : 10), TD_F32, 1);
    EXPECT(td_all_reduce(g, x, TD_SUM) == TD_ERR_MISMATCH);
    said(rank);
    EXPECT(sum_over(td_world(), 1) == size);   /* only the group is of no more use */
    return 0;
}

static int aborted(int rank, int size, void *arg)
{
    const bool world = arg != NULL;
    td_comm *g = td_comm_split(td_world(), 0, 0), *other = td_comm_dup(g);
    TD_SCOPE();
    td_tensor *x = td_full(TD_SHAPE(10), TD_F32, 1);
    if (rank == 1) {
        usleep(100000);
        td_abort(world ? td_world() : g, "had enough");
    } else {
        EXPECT(td_all_reduce(g, x, TD_SUM) == TD_ERR_ABORTED);
        said(rank);
    }
    if (!world)
        EXPECT(sum_over(other, 1) == size);
    else if (rank != 1)
        EXPECT(td_all_reduce(other, x, TD_SUM) == TD_ERR_ABORTED);
    td_error_clear();
    return 0;
}

static int ends_with_error(int rank, int size, void *arg)
{
    (void)arg, (void)size;
    td_comm *g = td_comm_split(td_world(), rank == 0 ? 1 : 0, 0);
    TD_SCOPE();
    td_tensor *x = td_full(TD_SHAPE(10), TD_F32, 1);
    if (rank == 1) {
        td_errors(TD_ERRORS_ABORT);
        td_at(x, TD_SHAPE(100));
    } else if (rank > 1) {
        EXPECT(td_all_reduce(g, x, TD_SUM) == TD_ERR_PEER);
        said(rank);
    }
    return 0;
}

static void faults(void **state)
{
    (void)state;
    int results[MAX_RANKS];
    run_ranks(4, killed_in_group, NULL, 60, results);
    assert_int_equal(results[1], KILLED + SIGKILL);
    for (int r = 0; r < 4; r++)
        if (r != 1) {
            assert_int_equal(results[r], 0);
            assert_non_null(strstr(shared->rank[r].sentence + 700, "rank 1 (pid "));
            assert_non_null(strstr(shared->rank[r].sentence + 700, "was killed or died while rank "));
        }
    assert_non_null(strstr(shared->rank[0].sentence, "rank 1 (pid "));
    assert_non_null(strstr(shared->rank[0].sentence, "was killed or died while rank 0 waited in all_reduce(f32, 10) #2 of group 1 of world at test_groups.c:"));

    all_well(3, differ, NULL, 60);
    for (int r = 0; r < 3; r++) {
        assert_non_null(strstr(shared->rank[r].sentence, "rank 0 called all_reduce(f32, 11) #1 of group 1 of world at test_groups.c:"));
        assert_non_null(strstr(shared->rank[r].sentence, "while ranks 2, 1 called all_reduce(f32, 10) #1 of group 1 of world"));
    }
    all_well(3, aborted, NULL, 60);
    assert_non_null(strstr(shared->rank[0].sentence, "rank 1 gave up group 1 of world: had enough"));
    all_well(3, aborted, "world", 60);
    assert_non_null(strstr(shared->rank[2].sentence, "rank 1 gave up its communicator: had enough"));

    run_ranks(3, ends_with_error, NULL, 60, results);
    assert_int_equal(results[2], 0);
    assert_non_null(strstr(shared->rank[2].sentence, "rank 1 (pid "));
    assert_non_null(strstr(shared->rank[2].sentence, "failed: "));
}

int main(void)
{
    static const struct CMUnitTest tests[] = { cmocka_unit_test(splits), cmocka_unit_test(at_once), cmocka_unit_test(again_and_again),
                                               cmocka_unit_test(refusals), cmocka_unit_test(faults) };
    return cmocka_run_group_tests_name("groups", tests, NULL, NULL);
}
