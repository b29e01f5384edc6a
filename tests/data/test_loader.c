/* tests/data/test_loader.c: order whatever the threads, bounded reading ahead, errors of read, ends at any moment. */
#include "data_test.h"
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

/* A made-up data set: field 0 f32 (2) = row, -row; field 1 i64 () = 10 row. */
typedef struct { atomic_int reads, closed; int64_t fail_at; int fail_code; bool says_more, slow; } made;

static int made_read(void *user, int64_t row, void *const *into)
{
    made *m = user;
    atomic_fetch_add(&m->reads, 1);
    if (m->slow)
        nanosleep(&(struct timespec){ .tv_nsec = (row * 7919 % 5) * 100000 }, NULL);
    if (m->fail_code && row == m->fail_at) {
        if (m->says_more)
            td__fail(TD_ERR_FORMAT, "row %lld is not a picture", (long long)row);
        return m->fail_code;
    }
    ((float *)into[0])[0] = (float)row;
    ((float *)into[0])[1] = (float)-row;
    *(int64_t *)into[1] = 10 * row;
    return 0;
}

static void made_close(void *user)
{
    atomic_fetch_add(&((made *)user)->closed, 1);
}

static td_dataset *make(made *m, int64_t rows)
{
    td_field field[] = { { { 1, { 2 } }, TD_F32 }, { TD_SCALAR, TD_I64 } };
    return td_dataset_new(&(td_dataset_source){ .rows = rows, .field = field, .n_fields = 2, .read = made_read, .close = made_close }, m);
}

static void check_batch(const td_batch *b)
{
    assert_int_equal(td_dim(b->x, 0), b->rows);
    assert_int_equal(td_dim(b->x, 1), 2);
    assert_int_equal(td_numel(b->y), b->rows);
    assert_int_equal(td_numel(b->sample), b->rows);
    assert_int_equal(b->n_fields, 2);
    assert_ptr_equal(b->field[0], b->x);
    assert_ptr_equal(b->field[1], b->y);
    const int64_t *id = td_data(b->sample), *y = td_data(b->y);
    const float *x = td_data(b->x);
    for (int64_t i = 0; i < b->rows; i++) {
        assert_true(x[2 * i] == (float)id[i] && x[2 * i + 1] == (float)-id[i]);
        assert_int_equal(y[i], 10 * id[i]);
    }
}

static void any_threads_same_order(void **state)
{
    enum { N = 101 };
    for (int shuffle = 0; shuffle < 2; shuffle++)
        for (int threads = 1; threads <= 4; threads++) {
            made m = { .slow = true };
            td_loader *l = td_loader_new(make(&m, N), &(td_loader_opts){ .batch = 8, .shuffle = shuffle, .seed = 5, .threads = threads, .queue = 3,
                                                                        .parts = 1 });
            assert_int_equal(td_loader_batches(l), 13);
            for (int epoch = 0; epoch < 3; epoch++) {
                assert_int_equal(td_loader_epoch(l), epoch);
                int64_t order[N], at = 0;
                for (int64_t i = 0; i < N; i++)
                    order[i] = i;
                if (shuffle)
                    td__epoch_order(5, epoch, N, order);
                td_batch b;
                while (td_loader_next(l, &b)) {
                    assert_int_equal(b.rows, at + 8 <= N ? 8 : N - at);
                    check_batch(&b);
                    assert_memory_equal(td_data(b.sample), order + at, (size_t)b.rows * sizeof *order);
                    at += b.rows;
                }
                assert_int_equal(at, N);
                assert_null(b.x);
                assert_int_equal(td_error_pending(), 0);
            }
            td_loader_free(l);
            assert_int_equal(m.closed, 1);
        }
}

/* Two and three parts side by side see, at every step, what one part with the same global batch sees. */
static void parts_see_the_whole(void **state)
{
    for (int parts = 2; parts <= 3; parts++)
        for (int64_t rows = 0; rows <= 26; rows += 13) {
            made m = { 0 };
            td_loader *one = td_loader_new(make(&m, rows), &(td_loader_opts){ .batch = 4 * parts, .shuffle = true, .seed = 9, .parts = 1 });
            td_loader *part[3];
            for (int p = 0; p < parts; p++)
                part[p] = td_loader_new(make(&m, rows), &(td_loader_opts){ .batch = 4, .shuffle = true, .seed = 9, .part = p, .parts = parts });
            for (int step = 0; step < 2 * (int)td_loader_batches(one) + 2; step++) {
                td_batch whole, b;
                bool more = td_loader_next(one, &whole);
                int64_t at = 0;
                for (int p = 0; p < parts; p++) {
                    assert_int_equal(td_loader_next(part[p], &b), more);
                    if (!more)
                        continue;
                    check_batch(&b);
                    assert_memory_equal(td_data(b.sample), (int64_t *)td_data(whole.sample) + at, (size_t)b.rows * sizeof(int64_t));
                    at += b.rows;
                }
                if (more)
                    assert_int_equal(at, whole.rows);
            }
            td_loader_free(one);
            for (int p = 0; p < parts; p++)
                td_loader_free(part[p]);
        }
}

static void defaults_come_from_the_world(void **state)
{
    td__world two = *td__world_now(), was = two;
    two.size = 2;
    two.rank = 1;
    td__world_set(&two);
    td_seed(77);
    made m = { 0 };
    td_loader *l = td_loader_new(make(&m, 100), &(td_loader_opts){ .shuffle = true });
    assert_int_equal(td_loader_batches(l), 2);
    td_batch b;
    assert_true(td_loader_next(l, &b));
    assert_int_equal(b.rows, 32);
    int64_t order[100];
    td__epoch_order(77, 0, 100, order);
    assert_memory_equal(td_data(b.sample), order + 32, 32 * sizeof *order);
    assert_true(td_loader_next(l, &b));
    assert_int_equal(b.rows, 18);
    td_loader_free(l);
    td__world_set(&was);
    td_seed(0);
}

static void short_and_empty(void **state)
{
    made m = { 0 };
    td_batch b;
    td_loader *l = td_loader_new(make(&m, 10), &(td_loader_opts){ .batch = 4, .drop_last = true, .parts = 1 });
    assert_int_equal(td_loader_batches(l), 2);
    assert_true(td_loader_next(l, &b) && td_loader_next(l, &b) && !td_loader_next(l, &b));
    td_loader_free(l);
    l = td_loader_new(make(&m, 1), &(td_loader_opts){ .batch = 4, .part = 1, .parts = 2 });   /* this part's share is empty */
    assert_true(td_loader_next(l, &b));
    assert_int_equal(b.rows, 0);
    check_batch(&b);
    assert_false(td_loader_next(l, &b));
    td_loader_free(l);
    l = td_loader_new(make(&m, 0), &(td_loader_opts){ .parts = 1 });
    assert_int_equal(td_loader_batches(l), 0);
    assert_false(td_loader_next(l, &b));
    assert_false(td_loader_next(l, &b));
    td_loader_free(l);
    l = td_loader_new(make(&m, 3), &(td_loader_opts){ .batch = INT64_MAX, .parts = 3, .part = 2 });
    assert_true(td_loader_next(l, &b));
    assert_int_equal(b.rows, 1);
    td_loader_free(l);
}

static void set_epoch_starts_anew(void **state)
{
    made m = { 0 };
    td_loader *l = td_loader_new(make(&m, 50), &(td_loader_opts){ .batch = 5, .shuffle = true, .seed = 2, .threads = 3, .parts = 1 });
    int64_t order[50];
    td_batch b;
    for (int64_t epoch = 7; epoch >= 0; epoch -= 3) {
        td_loader_set_epoch(l, epoch);
        assert_int_equal(td_loader_epoch(l), epoch);
        td__epoch_order(2, epoch, 50, order);
        for (int k = 0; k < 4; k++) {
            assert_true(td_loader_next(l, &b));
            check_batch(&b);
            assert_memory_equal(td_data(b.sample), order + 5 * k, 5 * sizeof *order);
        }
    }
    td_loader_set_epoch(l, -1);
    expect_error(TD_ERR_ARGUMENT, "td_loader_set_epoch: the epoch is -1, expected 0 or more");
    td_loader_free(l);
}

static void reads_ahead_but_not_more(void **state)
{
    made m = { 0 };
    td_loader *l = td_loader_new(make(&m, 1000), &(td_loader_opts){ .batch = 10, .queue = 3, .threads = 4, .parts = 1 });
    assert_int_equal(m.reads, 0);
    td_batch b;
    assert_true(td_loader_next(l, &b));
    for (int i = 0; i < 2000 && m.reads < 40; i++)
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
    assert_int_equal(m.reads, 40);             /* the one in hand, and 3 */
    td_loader_free(l);
}

static void errors_of_read(void **state)
{
    made m = { .fail_at = 17, .fail_code = TD_ERR_IO };
    td_loader *l = td_loader_new(make(&m, 40), &(td_loader_opts){ .batch = 4, .threads = 2, .parts = 1 });
    td_batch b;
    int n = 0;
    while (td_loader_next(l, &b))
        n++;
    assert_int_equal(n, 4);                    /* all before the bad one were handed out */
    assert_false(td_loader_next(l, &b));       /* an error is pending */
    expect_error(TD_ERR_IO, "td_loader_next: row 17 of the data set could not be read: its read function returned -6 (TD_ERR_IO)");
    m.says_more = true;
    assert_false(td_loader_next(l, &b));       /* tried again, not skipped */
    expect_error(TD_ERR_FORMAT, "td_loader_next: row 17 of the data set could not be read: row 17 is not a picture");
    m.says_more = false;
    m.fail_code = 3;
    assert_false(td_loader_next(l, &b));
    expect_error(TD_ERR_IO, "td_loader_next: row 17 of the data set could not be read: its read function returned 3");
    m.fail_code = 0;
    for (; td_loader_next(l, &b); n++)
        assert_int_equal(((int64_t *)td_data(b.sample))[0], 4 * n);
    assert_int_equal(n, 10);
    td_loader_free(l);
}

/* An error that a thread of the library left behind belongs to the user's next call, not to the row that is being read then. */
static int read_beside_an_error(void *user, int64_t row, void *const *into)
{
    *(float *)into[0] = (float)row;
    return row == 2 ? td__fail_background(TD_ERR_PEER, "rank 1 has left"), 0 : 0;
}

static void errors_of_other_threads_are_not_read(void **state)
{
    td_field f = { TD_SCALAR, TD_F32 };
    td_dataset *d = td_dataset_new(&(td_dataset_source){ .rows = 6, .read = read_beside_an_error, .field = &f, .n_fields = 1 }, NULL);
    td_loader *l = td_loader_new(d, &(td_loader_opts){ .batch = 6 });
    td_batch b;
    assert_true(td_loader_next(l, &b));        /* the rows were read whole, whatever arrived meanwhile */
    assert_int_equal(b.rows, 6);
    assert_false(td_loader_next(l, &b));
    assert_int_equal(td_error_pending(), TD_ERR_PEER);
    assert_non_null(strstr(td_error_message(), "rank 1 has left"));
    assert_null(strstr(td_error_message(), "row"));
    td_error_clear();
    td_loader_free(l);
    td_error_clear();                          /* of an epoch that was read ahead */
}

static void ends_at_any_moment(void **state)
{
    for (int i = 0; i < 40; i++) {
        made m = { .slow = true };
        td_loader *l = td_loader_new(make(&m, 60), &(td_loader_opts){ .batch = 3, .threads = 1 + i % 4, .queue = 1 + i % 5, .parts = 1 });
        td_batch b;
        for (int k = 0; k < i % 8; k++)
            assert_true(td_loader_next(l, &b));
        if (i % 3 == 0)
            td_loader_set_epoch(l, i);
        if (i % 2)
            td_loader_free(l);
        else
            td__data_free_all();
        assert_int_equal(m.closed, 1);
    }
    td_loader_free(NULL);
}

static void steady_state_asks_for_nothing(void **state)
{
    made m = { 0 };
    td_loader *l = td_loader_new(make(&m, 64), &(td_loader_opts){ .batch = 5, .shuffle = true, .parts = 1 });
    td_batch b;
    while (td_loader_next(l, &b))
        ;
    int64_t before = td_memory().system_calls;
    for (int epoch = 0; epoch < 5; epoch++)
        while (td_loader_next(l, &b))
            ;
    assert_int_equal(td_memory().system_calls, before);
    assert_true(td_loader_waited_ms(l) >= 0);
    assert_true(td_loader_waited_ms(l) == 0);
    td_loader_free(l);
}

/* What a graph saved must be seen to change: the version moves when the slot is given back. */
static void versions_move(void **state)
{
    made m = { 0 };
    td_loader *l = td_loader_new(make(&m, 64), &(td_loader_opts){ .batch = 4, .parts = 1 });
    td_batch b;
    assert_true(td_loader_next(l, &b));
    td_storage *s = b.x->storage;
    uint32_t version = s->version;
    assert_true(td_loader_next(l, &b));
    assert_int_not_equal(s->version, version);
    td_loader_free(l);
}

static td_tensor *told;
static int tellings;
static void listen_to_batches(td_tensor *sample)
{
    told = sample;
    tellings++;
}

static void sample_numbers_are_told(void **state)
{
    td__on_batch = listen_to_batches;
    made m = { 0 };
    td_loader *a = td_loader_new(make(&m, 8), &(td_loader_opts){ .batch = 4, .parts = 1 });
    td_loader *c = td_loader_new(make(&m, 8), &(td_loader_opts){ .batch = 4, .parts = 1 });
    td_batch b;
    assert_true(td_loader_next(a, &b));
    assert_ptr_equal(told, b.sample);
    assert_true(td_loader_next(c, &b));
    assert_ptr_equal(told, b.sample);
    td_loader_free(a);                         /* not the one whose batch is current */
    assert_ptr_equal(told, b.sample);
    assert_true(td_loader_next(c, &b));
    assert_false(td_loader_next(c, &b));
    assert_null(told);
    assert_true(td_loader_next(c, &b));
    td_loader_free(c);
    assert_null(told);
    assert_int_equal(tellings, 6);
    td__on_batch = NULL;
}

static void bad_arguments(void **state)
{
    made m = { 0 };
    td_batch b;
    td_loader *l = td_loader_new(NULL, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: the dataset is NULL");
    assert_false(td_loader_next(l, &b));
    assert_int_equal(td_loader_batches(l), 0);
    td_loader_set_epoch(l, 1);
    td_loader_free(l);
    td_dataset *d = make(&m, 4);
    td_loader_new(d, &(td_loader_opts){ .batch = -3 });
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: batch is -3, expected 1 or more (0 means 32)");
    td_loader_new(d, &(td_loader_opts){ .threads = 1000 });
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: threads is 1000, expected 1 to 256 (0 means 1)");
    td_loader_new(d, &(td_loader_opts){ .queue = -1 });
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: queue is -1, expected 1 to 65536 (0 means 4)");
    td_loader_new(d, &(td_loader_opts){ .part = 2, .parts = 2 });
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: part is 2 of parts 2, expected 0 to parts - 1 (both 0: the world's)");
    l = td_loader_new(d, NULL);
    td_loader_new(d, NULL);
    expect_error(TD_ERR_STATE, "td_loader_new: another loader has taken this dataset; open it once more");
    td_dataset_free(d);
    expect_error(TD_ERR_STATE, "td_dataset_free: a loader has taken this dataset and frees it with itself");
    assert_false(td_loader_next(l, NULL));
    expect_error(TD_ERR_ARGUMENT, "td_loader_next: the batch is NULL");
    assert_false(td_loader_next(NULL, &b));
    expect_error(TD_ERR_ARGUMENT, "td_loader_next: the loader is NULL");
    td_loader_free(l);
    td_dataset_new(NULL, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_new: source is NULL, expected a td_dataset_source");
    td_dataset_new(&(td_dataset_source){ .rows = 1 }, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_new: the source has no read function");
    td_field f = { TD_SCALAR, TD_F32 };
    td_dataset_new(&(td_dataset_source){ .rows = -1, .read = made_read, .field = &f, .n_fields = 1 }, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_new: rows is -1, expected 0 or more");
    td_dataset_new(&(td_dataset_source){ .rows = 1, .read = made_read, .field = &f, .n_fields = 9 }, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_new: 9 fields given, expected 1 to 8");
    td_loader_new(td_dataset_new(&(td_dataset_source){ .rows = 1, .read = made_read, .n_fields = 2 }, NULL), NULL);
    expect_error(TD_ERR_ARGUMENT, "td_dataset_new: 0 fields given, expected 1 to 8");
    make(&m, 4);                               /* taken by nobody: the end of the job frees it */
    int closed = m.closed;
    td__data_free_all();
    assert_int_equal(m.closed, closed + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(any_threads_same_order), TEST(parts_see_the_whole), TEST(defaults_come_from_the_world), TEST(short_and_empty),
        TEST(set_epoch_starts_anew), TEST(reads_ahead_but_not_more), TEST(errors_of_read), TEST(errors_of_other_threads_are_not_read),
        TEST(ends_at_any_moment),
        TEST(steady_state_asks_for_nothing), TEST(versions_move), TEST(sample_numbers_are_told), TEST(bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
