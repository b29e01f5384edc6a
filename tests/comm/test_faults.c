/* One rank dies, stops, leaves, or calls something else: every other rank returns the sentence that names it, within 2 seconds, from
 * blocking and from started collectives, and nothing is left. */
#include <dirent.h>
#include "ranks.h"

typedef struct { const char *fault; bool started; int64_t n; } plan;
enum { GUILTY = 1 };

/* Of an exchange with `more` elements to rank 0, which expects `n` of everybody. */
static int exchange(int rank, int size, int64_t n, int64_t more, bool started)
{
    int64_t in[MAX_RANKS], out[MAX_RANKS];
    for (int r = 0; r < size; r++)
        in[r] = n + (r == 0 ? more : 0), out[r] = rank < 0 ? 0 : n;
    td_tensor *x = td_zeros(TD_SHAPE(n * size + more), TD_F32), *y = td_zeros(TD_SHAPE(n * size), TD_F32);
    return started ? td_wait(td_all_to_all_uneven_start(td_world(), y, out, x, in)) : td_all_to_all_uneven(td_world(), y, out, x, in);
}

static int gathered(int size, int64_t n, bool other)
{
    int64_t rows[MAX_RANKS];
    for (int r = 0; r < size; r++)
        rows[r] = r == GUILTY || !other ? n : n + (r ? 1 : -1) * (r == 0 || r == 2);
    td_tensor *x = td_zeros(TD_SHAPE(n), TD_F32), *y = td_zeros(TD_SHAPE(n * size), TD_F32);
    return td_all_gather_uneven(td_world(), y, x, rows);
}

static int all_reduce(td_tensor *x, bool started)
{
    return started ? td_wait(td_all_reduce_start(td_world(), x, TD_SUM)) : td_all_reduce(td_world(), x, TD_SUM);
}

static void tell(int rank, int code)
{
    shared->rank[rank].error = code;
    shared->rank[rank].told = td__now();
    snprintf(shared->rank[rank].sentence, sizeof shared->rank[rank].sentence, "%s", td_error_message());
}

static int misbehave(const plan *p, td_tensor *x, int size)
{
    const char *fault = p->fault;
    shared->rank[GUILTY].at = td__now();
    if (!strncmp(fault, "kill", 4))
        kill(getpid(), SIGKILL);
    if (!strcmp(fault, "stop"))
        kill(getpid(), SIGSTOP);
    if (!strcmp(fault, "exit"))
        exit(0);
    if (!strcmp(fault, "_exit"))
        _exit(0);
    if (!strcmp(fault, "finish"))
        return 0;
    if (!strcmp(fault, "error")) {
        td__fail(TD_ERR_ARGUMENT, "something of its own");
        return 0;
    }
    if (!strcmp(fault, "abort"))
        td_abort(td_world(), "no more of this");
    td_tensor *y = td_zeros(TD_SHAPE(p->n), TD_F64), *z = td_zeros(TD_SHAPE(p->n + 1), TD_F32);
    int code = !strcmp(fault, "kind") ? td_broadcast(td_world(), x, 0)
               : !strcmp(fault, "dtype") ? all_reduce(y, p->started)
               : !strcmp(fault, "count") ? all_reduce(z, p->started)
               : !strcmp(fault, "op") ? td_all_reduce(td_world(), x, TD_MAX)
               : !strcmp(fault, "root") ? td_broadcast(td_world(), x, 1)
               : !strcmp(fault, "order") ? td_barrier(td_world())
               : !strcmp(fault, "counts") ? exchange(GUILTY, size, p->n, 1, p->started)
               : !strcmp(fault, "even") ? td_all_to_all(td_world(), td_zeros(TD_SHAPE(p->n * size), TD_F32), td_zeros(TD_SHAPE(p->n * size), TD_F32))
               : !strcmp(fault, "rows") ? gathered(size, p->n, true)
               : !strcmp(fault, "gather root") ? td_gather_to(td_world(), td_zeros(TD_SHAPE(p->n * size), TD_F32), x, 1)
                                         : all_reduce(x, p->started);
    tell(GUILTY, code);
    return 0;
}

static int body(int rank, int size, void *arg)
{
    const plan *p = arg;
    td_tensor *x = td_zeros(TD_SHAPE(p->n), TD_F32);
    for (int i = 0; i < 3; i++)
        EXPECT(all_reduce(x, p->started) == 0);
    if (rank == GUILTY)
        return misbehave(p, x, size);
    shared->rank[rank].at = td__now();
    int code = !strcmp(p->fault, "root") ? td_broadcast(td_world(), x, 0)
               : !strcmp(p->fault, "gather root") ? td_gather_to(td_world(), rank ? NULL : td_zeros(TD_SHAPE(p->n * size), TD_F32), x, 0)
               : !strcmp(p->fault, "rows") ? gathered(size, p->n, false)
               : !strcmp(p->fault, "counts") || !strcmp(p->fault, "even") || !strcmp(p->fault, "kill in exchange") ? exchange(rank, size, p->n, 0, p->started)
                                                                                          : all_reduce(x, p->started);
    tell(rank, code);
    td_error_clear();
    EXPECT(td_barrier(td_world()) == code);     /* the communicator stays as it is, with the same sentence */
    EXPECT(!strcmp(td_error_message(), shared->rank[rank].sentence));
    return 0;
}

static void expect_told(int size, const char *fault, int code, const char *const *parts)
{
    for (int r = 0; r < size; r++) {
        if (r == GUILTY)
            continue;
        const char *text = shared->rank[r].sentence;
        double took = shared->rank[r].told - shared->rank[GUILTY].at;
        if (shared->rank[r].error != code || took > 2)
            fail_msg("%s: rank %d: code %d after %.2f s: %s", fault, r, shared->rank[r].error, took, text);
        for (int i = 0; parts[i]; i++)
            if (!strstr(text, parts[i]))
                fail_msg("%s: rank %d: no \"%s\" in: %s", fault, r, parts[i], text);
        if (r != 0 && strcmp(text, shared->rank[0].sentence))
            fail_msg("%s: ranks tell different things:\n%s\n%s", fault, shared->rank[0].sentence, text);
    }
}

static void try(const char *fault, int size, bool started, int64_t n, int code, const char *const *parts)
{
    plan p = { fault, started, n };
    int results[MAX_RANKS];
    bool stops = !strcmp(fault, "stop");
    run_ranks(size, body, &p, stops ? 3 : 10, results);
    for (int r = 0; r < size; r++) {
        int expected = r != GUILTY ? 0 : !strncmp(fault, "kill", 4) ? KILLED + SIGKILL : stops ? HUNG : 0;
        if (results[r] != expected)
            fail_msg("%s: rank %d ended with %d instead of %d: %s", fault, r, results[r], expected, shared->rank[r].sentence);
    }
    expect_told(size, fault, code, parts);
}

static void everywhere(const char *fault, int code, const char *const *parts)
{
    try(fault, 2, false, 100, code, parts);
    try(fault, 3, true, 100, code, parts);
    try(fault, 3, false, 200000, code, parts);
}

#define PARTS(...) (const char *const[]){ __VA_ARGS__, NULL }

static void killed(void **state)
{
    (void)state;
    everywhere("kill", TD_ERR_PEER, PARTS("rank 1 (pid ", "was killed or died", "#4", "test_faults.c:", "its last was all_reduce(f32, "));
    everywhere("_exit", TD_ERR_PEER, PARTS("rank 1 (pid ", "was killed or died"));
    everywhere("kill in exchange", TD_ERR_PEER, PARTS("rank 1 (pid ", "was killed or died", "waited in all_to_all(f32, uneven) #4 at test_faults.c:"));
}

static void stopped(void **state)
{
    (void)state;
    try("stop", 3, false, 100, TD_ERR_PEER, PARTS("rank 1 (pid ", "is stopped by a signal", "all_reduce(f32, 100) #4"));
}

static void left(void **state)
{
    (void)state;
    everywhere("exit", TD_ERR_PEER, PARTS("rank 1 (pid ", "without td_finish", "all_reduce(f32, "));
    everywhere("finish", TD_ERR_PEER, PARTS("rank 1 (pid ", "had called td_finish while", "all_reduce(f32, "));
    everywhere("error", TD_ERR_PEER, PARTS("rank 1 (pid ", "had called td_finish after an error (something of its own"));
    everywhere("abort", TD_ERR_ABORTED, PARTS("rank 1 gave up", "no more of this"));
}

static void different_calls(void **state)
{
    (void)state;
    everywhere("dtype", TD_ERR_MISMATCH, PARTS("rank 1 called all_reduce(f64, ", "called all_reduce(f32, ", "#4", "test_faults.c:"));
    everywhere("count", TD_ERR_MISMATCH, PARTS("rank 1 called all_reduce(f32, ", "1) #4", "called all_reduce(f32, "));
    everywhere("kind", TD_ERR_MISMATCH, PARTS("rank 1 called broadcast(f32, ", "called all_reduce(f32, "));
    everywhere("order", TD_ERR_MISMATCH, PARTS("rank 1 called barrier #4 at test_faults.c:", "called all_reduce(f32, "));
    everywhere("op", TD_ERR_MISMATCH, PARTS("rank 1 called all_reduce(f32, ", ", max) #4", "called all_reduce(f32, "));
    everywhere("root", TD_ERR_MISMATCH, PARTS("rank 1 called broadcast(f32, ", "root 1", "called broadcast(f32, ", "root 0"));
    everywhere("gather root", TD_ERR_MISMATCH, PARTS("rank 1 called gather(f32, ", "root 1", "called gather(f32, ", "root 0"));
    everywhere("even", TD_ERR_MISMATCH, PARTS("rank 1 called all_to_all(f32, ", "called all_to_all(f32, uneven) #4 at test_faults.c:"));
    everywhere("counts", TD_ERR_MISMATCH, PARTS("rank 1 sends ", "1 elements to rank 0, which expects ", "in all_to_all(f32, uneven) #4 at test_faults.c:"));
    try("rows", 3, false, 100, TD_ERR_MISMATCH, PARTS("rank 1 called all_gather(f32, 300, uneven) #4 of parts of 99, 100, 101 at test_faults.c:",
                                                      "while ranks 0, 2 called all_gather(f32, 300, uneven) #4 of parts of 100, 100, 100 at test_faults.c:"));
    try("dtype", 3, false, 100, TD_ERR_MISMATCH, PARTS("while ranks 0, 2 called all_reduce(f32, 100) #4"));
}

/* The guilty rank just computes on. */
static int late(int rank, int size, void *arg)
{
    (void)size;
    bool started = *(bool *)arg;
    td_tensor *x = td_zeros(TD_SHAPE(10), TD_F32);
    EXPECT(all_reduce(x, started) == 0);
    if (rank == GUILTY) {
        shared->rank[GUILTY].at = td__now() + 0.5;
        usleep(1500000);
        return 0;
    }
    tell(rank, all_reduce(x, started));
    return 0;
}

static void deadline(void **state)
{
    (void)state;
    setenv("TANDEM_TIMEOUT", "0.5", 1);
    for (int started = 0; started < 2; started++) {
        int results[MAX_RANKS];
        run_ranks(2, late, &(bool){ started }, 10, results);
        assert_int_equal(results[0], 0);
        expect_told(2, "late", TD_ERR_TIMEOUT, PARTS("rank 1 (pid ", "did not come to all_reduce(f32, 10) #2", "within 0.5 s (TANDEM_TIMEOUT)"));
    }
    unsetenv("TANDEM_TIMEOUT");
}

/* A rank whose process ends by an error tells the others why before it is gone. */
static int aborts(int rank, int size, void *arg)
{
    (void)size, (void)arg;
    td_tensor *x = td_zeros(TD_SHAPE(10), TD_F32);
    EXPECT(td_barrier(td_world()) == 0);
    shared->rank[rank].at = td__now();
    if (rank == GUILTY) {
        freopen("/dev/null", "w", stderr);
        td_errors(TD_ERRORS_ABORT);
        td__fail(TD_ERR_SHAPE, "the shapes do not fit");
    }
    tell(rank, all_reduce(x, false));
    return 0;
}

static void fails(void **state)
{
    (void)state;
    int results[MAX_RANKS];
    run_ranks(3, aborts, NULL, 10, results);
    assert_int_equal(results[GUILTY], KILLED + SIGABRT);
    expect_told(3, "fails", TD_ERR_PEER, PARTS("rank 1 (pid ", "failed: the shapes do not fit"));
}

static int count_entries(const char *folder)
{
    DIR *d = opendir(folder);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        n += strstr(e->d_name, "tandem") != NULL;
    if (d)
        closedir(d);
    return n;
}

static void nothing_left(void **state)
{
    (void)state;
    char line[512];
    assert_int_equal(count_entries("/dev/shm"), 0);
    snprintf(line, sizeof line, "/proc/%d/task/%d/children", (int)getpid(), (int)getpid());
    FILE *f = fopen(line, "r");
    if (f) {
        assert_null(fgets(line, sizeof line, f));
        fclose(f);
    }
    assert_true(waitpid(-1, NULL, WNOHANG) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed), cmocka_unit_test(stopped), cmocka_unit_test(left), cmocka_unit_test(different_calls),
        cmocka_unit_test(deadline), cmocka_unit_test(fails), cmocka_unit_test(nothing_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
