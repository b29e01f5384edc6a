/* tests/cuda/test_feed.c: the loader over the plug-in's host side, on a fake runtime whose streams get on only when they are waited for, or at
 * random moments: whatever the order, what the compute stream reads is the batch that td_loader_next handed out.
 */
#include "../../plugins/cuda/cuda_impl.h"
#include "fake_cuda.h"
#include <data_impl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

TD_API const td_plugin *td_plugin_v1(const td_host *host);
static const td_device_ops *ops;

enum { ROWS = 203, WIDTH = 37 };
static int fails_at = -1;
static _Atomic unsigned delays;

static float value(int64_t row, int i)
{
    return (float)(row * 1000 + i);
}

static int read_row(void *user, int64_t row, void *const *into)
{
    (void)user;
    if (row == fails_at)
        return TD_ERR_IO;
    if (atomic_fetch_add(&delays, 0x9E3779B9u) >> 29 == 0)
        usleep(50);
    for (int i = 0; i < WIDTH; i++)
        ((float *)into[0])[i] = value(row, i);
    *(int64_t *)into[1] = -row;
    return 0;
}

static td_loader *loader(int64_t rows, const td_loader_opts *opts)
{
    static const td_field field[] = { { { 1, { WIDTH } }, TD_F32 }, { { 0, { 0 } }, TD_I64 } };
    td_loader *l = td_loader_new(td_dataset_new(&(td_dataset_source){ .rows = rows, .field = field, .n_fields = 2, .read = read_row }, NULL), opts);
    assert_int_equal(td_error_pending(), 0);
    return l;
}

static int nothing_left(void **state)
{
    td_error_clear();
    fake.chaos = 0;
    td_memory_stats m = td_memory_of(td_device_default());
    return m.live_tensors != 0 || m.live_bytes != 0;
}

/* What a step reads of a batch, on the compute stream and when that gets there; looked at in the end. */
typedef struct { int64_t rows, *sample, *y; float *x; int64_t expected[32]; } seen;

static void *read_later(td_tensor *t)
{
    const size_t bytes = (size_t)td__shape_numel(t->shape) * td_dtype_size(t->dtype);
    void *copy = ops->alloc(0, bytes);
    assert_non_null(copy);
    assert_int_equal(ops->copy(0, copy, false, td__ptr(t), false, bytes), 0);
    return copy;
}

static void look(seen *s)
{
    int64_t sample[32], y[32];
    float x[32 * WIDTH];
    assert_true(s->rows <= 32);
    assert_int_equal(td__cuda_read(sample, s->sample, (size_t)s->rows * sizeof *sample), 0);
    assert_int_equal(td__cuda_read(y, s->y, (size_t)s->rows * sizeof *y), 0);
    assert_int_equal(td__cuda_read(x, s->x, (size_t)s->rows * WIDTH * sizeof *x), 0);
    for (int64_t r = 0; r < s->rows; r++) {
        assert_int_equal(sample[r], s->expected[r]);
        assert_int_equal(y[r], -s->expected[r]);
        for (int i = 0; i < WIDTH; i++)
            if (x[r * WIDTH + i] != value(s->expected[r], i))
                fail_msg("row %lld, sample %lld: element %d is %g", (long long)r, (long long)s->expected[r], i, (double)x[r * WIDTH + i]);
    }
    ops->free(0, s->sample);
    ops->free(0, s->y);
    ops->free(0, s->x);
}

/* The sample numbers of batch k of an epoch, by the pure functions that the loader promises. */
static int64_t expect(const td_loader_opts *o, int64_t rows, int64_t epoch, int64_t k, int64_t *into)
{
    static int64_t order[ROWS];
    int parts = o->parts ? o->parts : 1;
    if (o->shuffle)
        td__epoch_order(o->seed, epoch, rows, order);
    td__share share = td__shard(k, o->part, parts, o->batch, rows);
    for (int64_t i = 0; i < share.rows; i++)
        into[i] = o->shuffle ? order[share.first + i] : share.first + i;
    return share.rows;
}

static void epochs(int64_t rows, const td_loader_opts *o, int n, unsigned chaos)
{
    enum { MOST = 256 };
    static seen all[MOST];
    int have = 0;
    fake.chaos = chaos;
    td_loader *l = loader(rows, o);
    for (int e = 0; e < n; e++) {
        td_batch b;
        int64_t k = 0;
        for (; td_loader_next(l, &b); k++) {
            assert_true(have < MOST);
            seen *s = &all[have++];
            s->rows = expect(o, rows, e, k, s->expected);
            assert_int_equal(b.rows, s->rows);
            s->sample = read_later(b.sample);
            s->y = read_later(b.y);
            s->x = read_later(b.x);
            if (chaos % 3 == 1)
                usleep(100);
        }
        assert_int_equal(td_error_pending(), 0);
        assert_int_equal(k, td_loader_batches(l));
    }
    if (chaos % 2)
        td_loader_free(l);                                             /* before the compute stream has read the last batches            */
    for (int i = 0; i < have; i++)
        look(&all[i]);
    if (chaos % 2 == 0)
        td_loader_free(l);
}

static void in_any_order(void **state)
{
    for (unsigned chaos = 0; chaos < 24; chaos++)
        epochs(ROWS, &(td_loader_opts){ .batch = 8, .shuffle = true, .seed = 5, .threads = 1 + (int)chaos % 4, .queue = 1 + (int)chaos % 3 }, 3, chaos);
}

static void parts(void **state)
{
    for (int part = 0; part < 3; part++) {
        epochs(4, &(td_loader_opts){ .batch = 1, .part = part, .parts = 3, .queue = 2 }, 4, 7);       /* the last is a row for one of three      */
        epochs(0, &(td_loader_opts){ .batch = 8, .part = part, .parts = 3 }, 2, 8);
        epochs(1, &(td_loader_opts){ .batch = 8, .part = part, .parts = 3 }, 2, 9);
    }
}

/* The user's thread waits for no event where data is there in time. */
static void no_waits(void **state)
{
    fake.chaos = 0;
    td_loader *l = loader(ROWS, &(td_loader_opts){ .batch = 8 });
    td_batch b;
    const long before = fake_host_waits;
    while (td_loader_next(l, &b)) {
        float *x = read_later(b.x);
        ops->free(0, x);
    }
    assert_int_equal(fake_host_waits, before);
    td_loader_free(l);
}

static void seeking(void **state)
{
    const td_loader_opts o = { .batch = 8, .shuffle = true, .seed = 3, .threads = 2, .queue = 3 };
    for (unsigned chaos = 0; chaos < 12; chaos++) {
        fake.chaos = chaos;
        td_loader *l = loader(ROWS, &o);
        td_batch b;
        seen all[8];
        for (int i = 0; i < 8; i++) {
            int64_t epoch = i / 2, k = (i * 7 + (int)chaos) % 20;
            assert_int_equal(td_loader_seek(l, epoch, k), 0);
            assert_true(td_loader_next(l, &b));
            all[i].rows = expect(&o, ROWS, epoch, k, all[i].expected);
            all[i].sample = read_later(b.sample);
            all[i].y = read_later(b.y);
            all[i].x = read_later(b.x);
        }
        for (int i = 0; i < 8; i++)
            look(&all[i]);
        td_loader_free(l);
    }
}

/* Freed at any moment: its memory may be written by others at once. */
static void early_free(void **state)
{
    for (unsigned chaos = 0; chaos < 30; chaos++) {
        fake.chaos = chaos;
        td_loader *l = loader(ROWS, &(td_loader_opts){ .batch = 16, .threads = 3 });
        td_batch b;
        seen s = { 0 };
        for (unsigned i = 0; i < chaos % 5; i++)
            assert_true(td_loader_next(l, &b));
        if (chaos % 5) {
            s.rows = expect(&(td_loader_opts){ .batch = 16 }, ROWS, 0, chaos % 5 - 1, s.expected);
            s.sample = read_later(b.sample);
            s.y = read_later(b.y);
            s.x = read_later(b.x);
        }
        td_loader_free(l);
        char zero[8192] = { 0 };
        void *others[20];
        for (int i = 0; i < 20; i++) {
            others[i] = ops->alloc(0, sizeof zero);
            assert_int_equal(ops->copy(0, others[i], false, zero, true, sizeof zero), 0);
        }
        if (chaos % 5)
            look(&s);
        for (int i = 0; i < 20; i++) {
            char now[sizeof zero];
            assert_int_equal(td__cuda_read(now, others[i], sizeof now), 0);
            assert_memory_equal(now, zero, sizeof now);
            ops->free(0, others[i]);
        }
    }
}

/* A loader's memory was somebody else's a moment ago, whose kernels have not run yet. */
static void second_hand(void **state)
{
    enum { BLOCKS = 10, BYTES = 16 * WIDTH * 4 };
    for (unsigned chaos = 0; chaos < 10; chaos++) {
        char was[BYTES], now[BYTES];
        void *block[BLOCKS], *copy[BLOCKS];
        fake.chaos = chaos;
        ops->memory_trim(0);
        memset(was, 'w', sizeof was);
        for (int i = 0; i < BLOCKS; i++) {
            block[i] = ops->alloc(0, BYTES);
            copy[i] = ops->alloc(0, BYTES);
            assert_int_equal(ops->copy(0, block[i], false, was, true, BYTES), 0);
            assert_int_equal(ops->copy(0, copy[i], false, block[i], false, BYTES), 0);
        }
        for (int i = 0; i < BLOCKS; i++)
            ops->free(0, block[i]);
        td_loader *l = loader(ROWS, &(td_loader_opts){ .batch = 16 });
        td_batch b;
        assert_true(td_loader_next(l, &b));
        usleep(1000);
        fake.chaos = 0;
        for (int i = 0; i < BLOCKS; i++) {
            assert_int_equal(td__cuda_read(now, copy[i], BYTES), 0);
            assert_memory_equal(now, was, BYTES);
            ops->free(0, copy[i]);
        }
        td_loader_free(l);
    }
}

static void expect_error(int code, const char *part)
{
    assert_int_equal(td_error_pending(), code);
    if (!strstr(td_error_message(), part))
        fail_msg("\"%s\" is not in \"%s\"", part, td_error_message());
    td_error_clear();
}

/* Each is one sentence; what was freed or repaired is enough to go on. */
static void errors(void **state)
{
    td_batch b;
    const size_t memory = fake.memory;
    ops->memory_trim(0);
    fake.memory = 4 << 20;
    td_dataset *data = td_dataset_new(&(td_dataset_source){ .rows = 1 << 20, .field = &(td_field){ { 1, { WIDTH } }, TD_F32 }, .n_fields = 1,
                                                            .read = read_row }, NULL);
    td_loader *l = td_loader_new(data, &(td_loader_opts){ .batch = 1 << 16 });
    expect_error(TD_ERR_MEMORY, "cuda:0 has no memory for 9.25 MiB more of data: 4.00 MiB of 4.00 MiB are free");
    assert_false(td_loader_next(l, &b));
    fake.memory = memory;
    fake.no_pinned = true;
    l = td_loader_new(data, &(td_loader_opts){ .batch = 1 << 16 });
    expect_error(TD_ERR_MEMORY, "of pinned host memory cannot be had");
    fake.no_pinned = false;
    l = td_loader_new(data, &(td_loader_opts){ .batch = 1 << 16 });
    assert_int_equal(td_error_pending(), 0);
    td_loader_free(l);
    fails_at = 20;
    l = loader(ROWS, &(td_loader_opts){ .batch = 8 });
    assert_true(td_loader_next(l, &b) && td_loader_next(l, &b));
    assert_false(td_loader_next(l, &b));
    expect_error(TD_ERR_IO, "td_loader_next: row 20 of the data set could not be read");
    fails_at = -1;
    assert_true(td_loader_next(l, &b));
    assert_int_equal(td_loader_position(l), 3);
    fake.wait_error = cudaErrorIllegalAddress;
    for (int i = 0; i < 10 && td_loader_next(l, &b); i++)
        ;
    expect_error(TD_ERR_DEVICE, "td_loader_next: the loader's last copy to the device failed: ");
    fake.wait_error = cudaSuccess;
    assert_true(td_loader_next(l, &b));
    td_loader_free(l);
}

static void counted(void **state)
{
    td_loader *l = loader(ROWS, &(td_loader_opts){ .batch = 8, .queue = 4 });
    td_memory_stats m = td_memory_of(td_device_default());
    assert_true(m.part[TD_MEMORY_DATA].live_bytes >= 5 * 8 * (WIDTH * 4 + 16));
    assert_int_equal(m.part[TD_MEMORY_DATA].live_bytes, m.live_bytes);
    char table[1600];
    const size_t length = td_memory_summary(td_device_default(), table, sizeof table);
    assert_int_equal(length, strlen(table));
    assert_non_null(strstr(table, "cuda:0 "));
    assert_non_null(strstr(table, "\ndata           "));
    td_loader_free(l);
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    fake.driver = 13000;
    fake.memory = 64u << 20;
    const td_plugin *plugin = td_plugin_v1(&td__host);
    if (!plugin || !plugin->device)
        return 1;
    ops = plugin->device;
    if (td__device_register(ops) || td__device_set_default((td_device){ TD_CUDA, 0 }))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(in_any_order, nothing_left), cmocka_unit_test_teardown(parts, nothing_left), cmocka_unit_test_teardown(no_waits, nothing_left),
        cmocka_unit_test_teardown(seeking, nothing_left), cmocka_unit_test_teardown(early_free, nothing_left), cmocka_unit_test_teardown(second_hand, nothing_left), cmocka_unit_test_teardown(errors, nothing_left),
        cmocka_unit_test_teardown(counted, nothing_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
