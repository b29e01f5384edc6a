/* Started collectives: in flight beside computing, in the order of the calls, waited for in any order, tested, mixed with blocking ones; the
 * same memory again and again; the arena's blocks; what may not be passed; the ranks' meeting. */
#include "ranks.h"
#include <tandem/comm_raw.h>

static int in_flight(int rank, int size, void *arg)
{
    (void)arg;
    enum { N = 20, ELEMENTS = 50000 };
    td_comm *w = td_world();
    td_tensor *x[N];
    td_work *work[N];
    for (int i = 0; i < N; i++) {
        x[i] = i % 2 ? td_zeros_shared(w, TD_SHAPE(ELEMENTS), TD_F32) : td_zeros(TD_SHAPE(ELEMENTS), TD_F32);
        td__fill(x[i], rank + i);
        work[i] = td_all_reduce_start(w, x[i], TD_SUM);
    }
    volatile double sum = 0;
    for (int i = 0; i < 1000000; i++)
        sum += i;
    td_tensor *y = td_full(TD_SHAPE(3), TD_F64, rank);
    EXPECT(td_all_reduce(w, y, TD_SUM) == 0);     /* takes its turn after all of them */
    for (int i = 0; i < N; i++)
        EXPECT(td_test(work[i]));
    double ranks = size * (size - 1) / 2.0;
    EXPECT(((double *)td__ptr(y))[2] == ranks);
    for (int k = 0; k < N; k++) {
        int i = (k * 7 + 3) % N;
        td_coll figures;
        EXPECT(td__work_wait(work[i], &figures) == 0);
        EXPECT(figures.seq == (uint64_t)i + 1 && figures.ended >= figures.begun);
        EXPECT(td_at(x[i], TD_SHAPE(ELEMENTS - 1)) == ranks + size * i);
    }
    return 0;
}

/* A tensor that dies before its work ends is kept by the work. */
static int kept_by_work(int rank, int size, void *arg)
{
    (void)arg;
    td_work *work;
    {
        TD_SCOPE();
        work = td_all_reduce_start(td_world(), td_full(TD_SHAPE(300000), TD_F64, rank), TD_MAX);
    }
    EXPECT(td_wait(work) == 0);
    return size == 0;
}

static int steady(int rank, int size, void *arg)
{
    (void)rank, (void)size, (void)arg;
    td_comm *w = td_world();
    int64_t calls = 0;
    for (int step = 0; step < 30; step++) {
        TD_SCOPE();
        td_tensor *a = td_zeros_shared(w, TD_SHAPE(70000), TD_F32), *b = td_zeros_shared(w, TD_SHAPE(100), TD_F64);
        EXPECT(td_at(a, TD_SHAPE(69999)) == 0 && td_at(b, TD_SHAPE(99)) == 0);
        td_work *first = td_all_reduce_start(w, a, TD_SUM), *second = td_all_reduce_start(w, b, TD_SUM);
        EXPECT(td_wait(first) == 0 && td_wait(second) == 0);
        EXPECT(td_all_reduce(w, a, TD_SUM) == 0);
        td__fill(a, 5);
        td__fill(b, 5);
        if (step == 5)
            calls = td_memory().system_calls;
    }
    EXPECT(td_memory().system_calls == calls);
    return 0;
}

/* A captured step's collectives, run once more from the list. */
static int recorded(int rank, int size, void *arg)
{
    (void)arg;
    td_comm *w = td_world();
    td__recording list = { 0 };
    td_tensor *x = td_full(TD_SHAPE(5), TD_F32, rank + 1), *all = td_zeros(TD_SHAPE(5 * size), TD_F32), *y = td_full(TD_SHAPE(3), TD_I32, rank);
    td_work *before = td_broadcast_start(w, y, 0);
    td__recording_now = &list;
    td_work *work = td_all_reduce_start(w, x, TD_SUM);
    EXPECT(td_wait(work) == 0 && td_all_gather(w, all, x) == 0 && td_barrier(w) == 0 && list.depth == 0 && !list.code);
    EXPECT(td_wait(before) == 0 && list.code && strstr(list.reason, "started before the step") && list.depth == 0);
    td__recording_now = NULL;
    double sum = size * (size + 1) / 2.0;
    EXPECT(td_at(x, TD_SHAPE(4)) == sum && td_at(all, TD_SHAPE(5 * size - 1)) == sum);
    for (int turn = 0; turn < 2; turn++) {
        td__fill(x, rank + 2 + turn);
        int n = 0;
        for (td__record *r = list.first; r; r = r->next, n++)
            EXPECT(r->kind->run(r->state) == 0);
        EXPECT(n == 4 && td_at(all, TD_SHAPE(5 * size - 1)) == sum + size * (1 + turn));
    }
    td__records_free(list.first);
    return 0;
}

/* The others are noted too, with a copy of their rows; plain memory is refused. */
static int recorded_parts(int rank, int size, void *arg)
{
    (void)arg;
    td_comm *w = td_world();
    td__recording list = { 0 };
    td_tensor *x = td_full(TD_SHAPE(6), TD_F32, rank + 1), *all = td_zeros(TD_SHAPE(6 * size), TD_F32), *sum = td_full(TD_SHAPE(6), TD_F32, 1);
    td_tensor *back = td_zeros(TD_SHAPE(6), TD_F32), *exchanged = td_zeros(TD_SHAPE(6 * size), TD_F32), *uneven = td_zeros(TD_SHAPE(6 * size), TD_F32);
    int64_t rows[MAX_RANKS];
    for (int r = 0; r < size; r++)
        rows[r] = 6;
    td__recording_now = &list;
    EXPECT(td_gather_to(w, rank ? NULL : all, x, 0) == 0 && td_scatter_from(w, back, rank ? NULL : all, 0) == 0);
    EXPECT(td_reduce_to(w, sum, TD_PRODUCT, 0) == 0 && td_all_gather_uneven(w, all, x, rows) == 0 && td_all_to_all(w, exchanged, all) == 0);
    td_work *work = td_all_to_all_uneven_start(w, uneven, rows, all, rows), *barrier = td_barrier_start(w);
    memset(rows, 0, sizeof rows);
    EXPECT(td_wait(work) == 0 && td_wait(barrier) == 0 && list.depth == 0 && !list.code);
    td__recording_now = NULL;
    for (int turn = 0; turn < 2; turn++) {
        td__fill(x, rank + 2 + turn);
        int n = 0;
        for (td__record *r = list.first; r; r = r->next, n++)
            EXPECT(r->kind->run(r->state) == 0);
        EXPECT(n == 9 && td_at(back, TD_SHAPE(5)) == rank + 2 + turn && td_at(all, TD_SHAPE(6 * size - 1)) == size + 1 + turn);
        for (int r = 0; r < size; r++)
            EXPECT(td_at(exchanged, TD_SHAPE(6 * r)) == rank + 2 + turn && td_at(uneven, TD_SHAPE(6 * r + 5)) == rank + 2 + turn);
    }
    void *memory = td_data(x);
    td__recording_now = &list;
    EXPECT(td_raw_all_reduce(w, memory, memory, 6, TD_F32, TD_SUM) == 0 && list.code && strstr(list.reason, "plain memory") && list.depth == 0);
    td__recording_now = NULL;
    td__records_free(list.first);
    return 0;
}

static void captured(void **state)
{
    (void)state;
    all_well(2, recorded_parts, NULL, 20);
    all_well(1, recorded_parts, NULL, 20);
    all_well(2, recorded, NULL, 20);
    all_well(1, recorded, NULL, 20);
}

static void started(void **state)
{
    (void)state;
    for (int size = 1; size <= 4; size++)
        all_well(size, size == 1 ? kept_by_work : in_flight, NULL, 20);
    all_well(3, kept_by_work, NULL, 20);
    all_well(2, steady, NULL, 20);
    all_well(1, steady, NULL, 20);
}

/* ---- misuse: one sentence, and nothing hangs, as every rank makes the same mistake ----------------------------------------------------- */

static void refused(int code, int expected, const char *part)
{
    if (code != expected || !strstr(td_error_message(), part)) {
        fprintf(stderr, "code %d instead of %d, no \"%s\" in: %s\n", code, expected, part, td_error_message());
        _exit(98);
    }
    td_error_clear();
}

static td_tensor *part_of_whole(td_tensor *x, int64_t at, int64_t n)
{
    return td__scoped_tensor(td__tensor_on(x->storage, TD_SHAPE(n), x->dtype, at));
}

static int misuse(int rank, int size, void *arg)
{
    (void)arg;
    td_comm *w = td_world();
    td_tensor *x = td_zeros(TD_SHAPE(4, 6), TD_F32), *i = td_zeros(TD_SHAPE(4), TD_I32), *h = td_zeros(TD_SHAPE(4), TD_BOOL);
    td_tensor *slice = td__scoped_tensor(td__tensor_view(x, TD_SHAPE(4, 3), (int64_t[]){ 6, 1 }, 0));
    refused(td_all_reduce(NULL, x, TD_SUM), TD_ERR_ARGUMENT, "the communicator is NULL");
    refused(td_all_reduce(w, slice, TD_SUM), TD_ERR_SHAPE, "(4,3) is not contiguous");
    refused(td_all_reduce(w, h, TD_SUM), TD_ERR_DTYPE, "of bool there are TD_MAX (or) and TD_MIN (and)");
    refused(td_all_reduce(w, i, TD_MEAN), TD_ERR_DTYPE, "mean of i32");
    refused(td_all_reduce(w, x, (td_reduce)9), TD_ERR_ARGUMENT, "9 is no reduction");
    refused(td_broadcast(w, x, size), TD_ERR_ARGUMENT, "none of the ranks");
    refused(td_all_gather(w, x, x), TD_ERR_SHAPE, "the first dimension of out (4,6) must be");
    refused(td_all_gather(w, td_zeros(TD_SHAPE(4 * size), TD_F32), i), TD_ERR_DTYPE, "out is f32 and in is i32");
    refused(td_reduce_scatter(w, x, td_zeros(TD_SHAPE(4 * size + 1, 6), TD_F32), TD_SUM), TD_ERR_SHAPE, "in (");
    td_tensor *whole = td_zeros(TD_SHAPE(2 * size), TD_F32);
    td_tensor *wrong = td__scoped_tensor(td__tensor_on(whole->storage, TD_SHAPE(2), TD_F32, 1));
    refused(td_all_gather(w, whole, wrong), TD_ERR_ARGUMENT, "share memory");
    refused(td_gather_to(w, NULL, x, rank), TD_ERR_ARGUMENT, "td_gather_to: the tensor is NULL");
    refused(td_gather_to(w, x, x, size), TD_ERR_ARGUMENT, "root 2 is none of the ranks 0 to 1");
    refused(td_scatter_from(w, x, x, rank), TD_ERR_SHAPE, "with 2 ranks the first dimension of in (4,6) must be 2 times that of out (4,6)");
    refused(td_reduce_to(w, h, TD_PRODUCT, 0), TD_ERR_DTYPE, "td_reduce_to: of bool there are");
    refused(td_all_to_all(w, x, slice), TD_ERR_SHAPE, "not contiguous");
    refused(td_all_to_all(w, td_zeros(TD_SHAPE(3), TD_F32), td_zeros(TD_SHAPE(3), TD_F32)), TD_ERR_SHAPE, "a multiple of 2");
    refused(td_all_to_all(w, part_of_whole(whole, 0, 2), part_of_whole(whole, 1, 2)), TD_ERR_ARGUMENT, "only when they are the same");
    const int64_t two[] = { 2, 2 }, less[] = { 2, -1 }, other[] = { 1, 3 };
    refused(td_all_gather_uneven(w, x, x, NULL), TD_ERR_ARGUMENT, "rows is NULL; expected 2 numbers");
    refused(td_all_gather_uneven(w, x, x, less), TD_ERR_ARGUMENT, "rows[1] is -1");
    refused(td_all_gather_uneven(w, x, x, two), TD_ERR_SHAPE, "in (4,6) must have 2 rows, its number in rows");
    refused(td_all_gather_uneven(w, td_zeros(TD_SHAPE(4, 5), TD_F32), td_zeros(TD_SHAPE(2, 6), TD_F32), two), TD_ERR_SHAPE, "may differ in the first dimension alone");
    refused(td_all_to_all_uneven(w, x, two, x, other), TD_ERR_ARGUMENT, "only when they are the same, with equal numbers of rows");
    float f[8] = { 0 };
    refused(td_raw_all_reduce(NULL, f, f, 1, TD_F32, TD_SUM), TD_ERR_ARGUMENT, "td_raw_all_reduce: the communicator is NULL");
    refused(td_raw_all_reduce(w, f, NULL, 1, TD_F32, TD_SUM), TD_ERR_ARGUMENT, "td_raw_all_reduce: out is NULL; expected 1 elements");
    refused(td_raw_all_reduce(w, f, f + 1, 2, TD_F32, TD_SUM), TD_ERR_ARGUMENT, "in and out share memory; they may only when they are the same");
    refused(td_raw_all_gather(w, f, f, -1, TD_F32), TD_ERR_ARGUMENT, "the count is -1");
    refused(td_raw_all_gather(w, f + 1, f, 2, TD_F32), TD_ERR_ARGUMENT, "where one is this rank's part of the other");
    refused(td_raw_reduce(w, f, f, 2, (td_dtype)77, TD_SUM, 0), TD_ERR_DTYPE, "");
    refused(td_raw_all_to_all_uneven(w, f, two, f, other, TD_F32), TD_ERR_ARGUMENT, "in_counts and out_counts are equal");
    refused(td_wait(td_raw_scatter_start(w, NULL, f, 2, TD_F32, rank)), TD_ERR_ARGUMENT, "td_raw_scatter: in is NULL; expected 4 elements");
    EXPECT(td_raw_all_reduce(w, NULL, NULL, 0, TD_F32, TD_SUM) == 0);
    refused(td_wait(NULL), TD_ERR_ARGUMENT, "NULL");
    td_work *bad = td_all_reduce_start(w, h, TD_SUM);
    td_error_clear();
    EXPECT(td_test(bad));
    refused(td_wait(bad), TD_ERR_DTYPE, "of bool");
    td_work *good = td_all_reduce_start(w, x, TD_SUM);
    EXPECT(td_wait(good) == 0);
    refused(td_wait(good), TD_ERR_STATE, "already");
    EXPECT(td_is_poisoned(td_zeros_shared(w, TD_SHAPE((int64_t)1 << 50), TD_F64)));
    refused(td_error_pending(), TD_ERR_MEMORY, "shared memory cannot be had");
    EXPECT(td_all_reduce(w, x, TD_SUM) == 0);     /* none of it has harmed the communicator */
    return rank < 0;
}

static void refusals(void **state)
{
    (void)state;
    all_well(2, misuse, NULL, 10);
}

/* ---- meeting ---------------------------------------------------------------------------------------------------------------------------- */

static int alone(const char *job, int rank, int size, bool secret, char *sentence, size_t n)
{
    td__world w = ranks_world(rank, size, job);
    w.has_secret = secret;
    memset(w.secret, 7, sizeof w.secret);
    td__world_set(&w);
    td_errors(TD_ERRORS_RETURN);
    int code = td__comm_open_world(NULL, NULL);
    snprintf(sentence, n, "%s", td_error_message());
    return code;
}

static void never_comes(void **state)
{
    (void)state;
    char text[1536];
    setenv("TANDEM_TIMEOUT", "0.3", 1);
    assert_int_equal(alone("missing", 0, 3, false, text, sizeof text), TD_ERR_TIMEOUT);
    assert_non_null(strstr(text, "local ranks 1, 2 (of 3 on this host) of job missing did not come within 0.3 s"));
    td_error_clear();
    assert_int_equal(alone("missing", 1, 3, true, text, sizeof text), TD_ERR_TIMEOUT);
    assert_non_null(strstr(text, "local rank 0"));
    td_error_clear();
    unsetenv("TANDEM_TIMEOUT");
}

/* Two jobs with the same ranks at the same time, and one of the same name but another secret. */
static int three_jobs(int rank, int size, void *arg)
{
    (void)size, (void)arg;
    td_tensor *x = td_full(TD_SHAPE(1), TD_I64, 1);
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0 && td_item(x) == 2);
    return rank < 0;
}

static void jobs_do_not_meet(void **state)
{
    (void)state;
    pid_t pid[6];
    if (!shared)
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int k = 0; k < 6; k++) {
        pid[k] = fork();
        if (pid[k] == 0) {
            char text[1536];
            int code = alone(k < 2 ? "job-a" : "job-b", k % 2, 2, k >= 4, text, sizeof text);
            _exit(code ? 97 : three_jobs(k % 2, 2, NULL));
        }
    }
    for (int k = 0; k < 6; k++) {
        int status;
        assert_int_equal(waitpid(pid[k], &status, 0), pid[k]);
        assert_int_equal(status, 0);
    }
}

/* A world ends and another begins in the same processes, under the same name. */
static int again(int rank, int size, void *arg)
{
    (void)arg;
    for (int i = 0; i < 5; i++) {
        TD_SCOPE();
        td_tensor *x = td_zeros_shared(td_world(), TD_SHAPE(30000), TD_F32);
        td__fill(x, rank);
        EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0);
        td__comm_close_world(true);
        EXPECT(td_size(td_world()) == 1);
        EXPECT(td_at(x, TD_SHAPE(29999)) == size * (size - 1) / 2);   /* blocks outlive the communicator */
        EXPECT(td__comm_open_world(NULL, NULL) == 0);
    }
    return 0;
}

static void worlds_in_turn(void **state)
{
    (void)state;
    all_well(3, again, NULL, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(started), cmocka_unit_test(captured), cmocka_unit_test(refusals), cmocka_unit_test(jobs_do_not_meet), cmocka_unit_test(worlds_in_turn),
        cmocka_unit_test(never_comes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
