/* tests/data/test_augment.c: flips, crops and normalisation by the loader's threads, against a reference written from the header; seeking. */
#include "data_test.h"
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { C = 2, H = 5, W = 7, NUMEL = C * H * W };

/* Pixel (c,y,x) of picture `row`: all different and none 0, so that a wrong place is seen. */
static float pixel(int64_t row, int64_t c, int64_t y, int64_t x)
{
    return (float)(1 + row * NUMEL + (c * H + y) * W + x) / 64;
}

static atomic_int slow;

static int picture_read(void *user, int64_t row, void *const *into)
{
    if (slow)
        nanosleep(&(struct timespec){ .tv_nsec = (row * 7919 % 5) * 50000 }, NULL);
    float *x = into[0];
    for (int64_t c = 0; c < C; c++)
        for (int64_t y = 0; y < H; y++)
            for (int64_t i = 0; i < W; i++)
                *x++ = pixel(row, c, y, i);
    *(int64_t *)into[1] = row % 10;
    return 0;
}

static td_dataset *pictures(int64_t rows)
{
    td_field field[] = { { { 3, { C, H, W } }, TD_F32 }, { TD_SCALAR, TD_I64 } };
    return td_dataset_new(&(td_dataset_source){ .rows = rows, .field = field, .n_fields = 2, .read = picture_read }, NULL);
}

/* The header's sentence, the long way: a padded picture is built, a window cut, mirrored, normalised. */
static void reference(const td_augment *a, int64_t row, int top, int left, bool mirrored, float *out)
{
    int p = a->crop_padding, h = H + 2 * p, w = W + 2 * p;
    float *padded = calloc((size_t)(h * w), sizeof *padded);
    for (int c = 0; c < C; c++) {
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++)
                padded[(y + p) * w + x + p] = pixel(row, c, y, x);
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++) {
                double v = padded[(y + p + top) * w + p + left + (mirrored ? W - 1 - x : x)];
                v = (v - (a->mean ? a->mean[c] : 0)) / (a->std ? a->std[c] : 1);
                out[(c * H + y) * W + x] = (float)v;
            }
    }
    free(padded);
}

/* Which window and orientation the loader chose: exactly one of all must give its bits (where a window holds no pixel, several do). */
static bool find_view(const td_augment *a, int64_t row, const float *got, int *top, int *left, bool *mirrored)
{
    float want[NUMEL];
    int p = a->crop_padding;
    *left = 0;
    *mirrored = false;
    for (*top = -p; *top <= p; ++*top)
        for (*left = -p; *left <= p; ++*left)
            for (int m = 0; m <= a->flip; m++) {
                reference(a, row, *top, *left, *mirrored = m, want);
                if (!memcmp(got, want, sizeof want))
                    return true;
            }
    return false;
}

static const double mean[C] = { 0.3, -2.5 }, std[C] = { 0.25, 3 };
static const td_augment whole = { .crop_padding = 2, .flip = true, .mean = mean, .std = std };

static void every_picture_is_one_of_the_possible(void **state)
{
    static const td_augment rows[] = { { .flip = true }, { .crop_padding = 1 }, { .mean = mean }, { .std = std }, whole,
                                       { .crop_padding = 9, .flip = true } };   /* wider than the picture */
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        td_loader *l = td_loader_new(pictures(60), &(td_loader_opts){ .batch = 16, .shuffle = true, .seed = 3, .parts = 1, .augment = rows[r] });
        td_batch b;
        int turned = 0, moved = 0;
        while (td_loader_next(l, &b)) {
            const int64_t *id = td_data(b.sample), *y = td_data(b.y);
            for (int64_t i = 0; i < b.rows; i++) {
                int top, left;
                bool mirrored;
                assert_true(find_view(&rows[r], id[i], (float *)td_data(b.x) + i * NUMEL, &top, &left, &mirrored));
                assert_int_equal(y[i], id[i] % 10);
                turned += mirrored;
                moved += top != 0 || left != 0;
            }
        }
        assert_true(rows[r].flip ? turned > 10 : turned == 0);
        assert_true(rows[r].crop_padding ? moved > 40 : moved == 0);
        td_loader_free(l);
    }
}

/* Each window of 9 and each orientation as often as the others: chi-squared with 17 degrees of freedom, p = 0.001 at 40.8. */
static void views_are_uniform(void **state)
{
    enum { N = 18000 };
    td_augment a = { .crop_padding = 1, .flip = true };
    int count[18] = { 0 };
    for (int64_t i = 0; i < N; i++) {
        td__view v = td__augment_view(&a, 12345, i / 6000, i % 6000);
        count[(v.top + 1) * 6 + (v.left + 1) * 2 + v.mirrored]++;
    }
    double chi = 0;
    for (int i = 0; i < 18; i++)
        chi += (count[i] - N / 18.0) * (count[i] - N / 18.0) / (N / 18.0);
    assert_true(chi < 40.8);
}

/* Sample by sample: the same picture with any threads, batch, number of parts and order; another one in another epoch or with another seed. */
static void depends_on_seed_epoch_and_sample_alone(void **state)
{
    enum { N = 37, EPOCHS = 3 };
    static float first[2][EPOCHS][N][NUMEL];
    static const struct { int parts, threads, batch; bool shuffle; } ways[] = { { 1, 1, 8, true }, { 1, 4, 5, true }, { 2, 2, 3, true },
                                                                               { 3, 1, 4, true }, { 1, 2, 64, false } };
    slow = 1;
    for (size_t s = 0; s < 2; s++)
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            bool seen[EPOCHS][N] = { 0 };
            for (int part = 0; part < ways[w].parts; part++) {
                td_loader *l = td_loader_new(pictures(N), &(td_loader_opts){ .batch = ways[w].batch, .shuffle = ways[w].shuffle, .seed = 8 + s,
                    .threads = ways[w].threads, .part = part, .parts = ways[w].parts, .augment = whole });
                td_batch b;
                for (int epoch = 0; epoch < EPOCHS; epoch++)
                    while (td_loader_next(l, &b))
                        for (int64_t i = 0; i < b.rows; i++) {
                            int64_t id = ((int64_t *)td_data(b.sample))[i];
                            const float *x = (float *)td_data(b.x) + i * NUMEL;
                            if (w == 0)
                                memcpy(first[s][epoch][id], x, sizeof first[s][epoch][id]);
                            assert_memory_equal(first[s][epoch][id], x, sizeof first[s][epoch][id]);
                            assert_false(seen[epoch][id]);
                            seen[epoch][id] = true;
                        }
                td_loader_free(l);
            }
            for (int i = 0; i < EPOCHS * N; i++)
                assert_true(seen[i / N][i % N]);
        }
    slow = 0;
    int same[3] = { 0 };
    for (int i = 0; i < N; i++) {
        same[0] += !memcmp(first[0][0][i], first[0][1][i], sizeof first[0][0][i]);
        same[1] += !memcmp(first[0][1][i], first[0][2][i], sizeof first[0][0][i]);
        same[2] += !memcmp(first[0][0][i], first[1][0][i], sizeof first[0][0][i]);
    }
    for (int i = 0; i < 3; i++)
        assert_true(same[i] < 8);              /* 1 in 50 by chance */
}

/* ---- seeking ----------------------------------------------------------------------------------------------------- */

typedef struct { bool more; int64_t rows, sample[8]; float x[8 * NUMEL]; } seen_batch;

static void take(td_loader *l, seen_batch *into)
{
    td_batch b;
    memset(into, 0, sizeof *into);
    into->more = td_loader_next(l, &b);
    into->rows = b.rows;
    if (b.rows > 0) {
        memcpy(into->sample, td_data(b.sample), (size_t)b.rows * sizeof(int64_t));
        memcpy(into->x, td_data(b.x), (size_t)b.rows * NUMEL * sizeof(float));
    }
}

static td_tensor *told;
static void listen_to_batches(td_tensor *sample)
{
    told = sample;
}

/* From every position of two epochs, also the end of one, a loader that seeks there gives what the undisturbed one gives. */
static void seeking_goes_on_bit_for_bit(void **state)
{
    enum { ROWS = 30, STEPS = 14 };            /* 6 batches and an end: 7 calls an epoch */
    static seen_batch want[STEPS], got;
    slow = 1;
    td_loader_opts o = { .batch = 5, .shuffle = true, .seed = 4, .threads = 3, .queue = 2, .parts = 1, .augment = whole };
    int64_t epoch[STEPS], position[STEPS];
    td_loader *l = td_loader_new(pictures(ROWS), &o);
    for (int s = 0; s < STEPS; s++) {
        epoch[s] = td_loader_epoch(l);
        position[s] = td_loader_position(l);
        assert_int_equal(epoch[s], s / 7);
        assert_int_equal(position[s], s % 7);
        take(l, &want[s]);
    }
    td_loader_free(l);
    td__on_batch = listen_to_batches;
    td_loader *other = td_loader_new(pictures(ROWS), &o);
    for (int from = STEPS - 1; from >= 0; from--) {
        assert_int_equal(td_loader_seek(other, epoch[from], position[from]), 0);
        assert_int_equal(td_loader_epoch(other), epoch[from]);
        assert_int_equal(td_loader_position(other), position[from]);
        for (int s = from; s < STEPS && s < from + 4; s++) {
            take(other, &got);
            assert_memory_equal(&got, &want[s], sizeof got);
            if (got.more)
                assert_memory_equal(td_data(told), got.sample, (size_t)got.rows * sizeof(int64_t));
            else
                assert_null(told);
        }
    }
    td_loader_free(other);
    td__on_batch = NULL;
    slow = 0;
}

static void bad_arguments(void **state)
{
    td_dataset *d = pictures(10);
    td_loader_new(d, &(td_loader_opts){ .parts = 1, .augment = { .crop_padding = -1 } });
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: augment.crop_padding is -1, expected 0 or more");
    td_loader_new(d, &(td_loader_opts){ .parts = 1, .augment = { .std = (double[]){ 1, 0 } } });
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: augment.std[1] is 0, expected a number above 0");
    td_loader_new(d, &(td_loader_opts){ .parts = 1, .augment = { .mean = (double[]){ NAN, 0 } } });
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: augment.mean[0] is nan, expected a finite number");
    td_loader *l = td_loader_new(d, &(td_loader_opts){ .batch = 4, .parts = 1, .augment = whole });
    assert_int_equal(td_loader_seek(l, 0, 4), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_loader_seek: the batch is 4, expected 0 to 3, the batches of an epoch");
    assert_int_equal(td_loader_seek(l, -1, 0), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_loader_seek: the epoch is -1, expected 0 or more, below 2^63 - 1");
    assert_int_equal(td_loader_seek(NULL, 0, 0), TD_ERR_ARGUMENT);
    expect_error(TD_ERR_ARGUMENT, "td_loader_seek: the loader is NULL");
    assert_int_equal(td_loader_position(NULL), 0);
    expect_error(TD_ERR_ARGUMENT, "td_loader_position: the loader is NULL");
    td_loader_free(l);
    td_field flat = { { 1, { 4 } }, TD_F32 }, bytes = { { 3, { 1, 2, 2 } }, TD_U8 };
    d = td_dataset_new(&(td_dataset_source){ .rows = 1, .field = &flat, .n_fields = 1, .read = picture_read }, NULL);
    td_loader_new(d, &(td_loader_opts){ .parts = 1, .augment = { .flip = true } });
    expect_error(TD_ERR_SHAPE, "td_loader_new: augment works on pictures (C,H,W), field 0 of the data set has shape (4)");
    td_dataset_free(d);
    d = td_dataset_new(&(td_dataset_source){ .rows = 1, .field = &bytes, .n_fields = 1, .read = picture_read }, NULL);
    td_loader_new(d, &(td_loader_opts){ .parts = 1, .augment = { .flip = true } });
    expect_error(TD_ERR_DTYPE, "td_loader_new: augment works on f32, field 0 of the data set is u8");
    td_dataset_free(d);
    l = td_loader_new(NULL, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_loader_new: the dataset is NULL");
    assert_int_equal(td_loader_seek(l, 0, 0), TD_ERR_ABORTED);
    assert_int_equal(td_loader_position(l), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_picture_is_one_of_the_possible), TEST(views_are_uniform), TEST(depends_on_seed_epoch_and_sample_alone),
        TEST(seeking_goes_on_bit_for_bit), TEST(bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
