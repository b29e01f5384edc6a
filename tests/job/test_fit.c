/* td_fit against the loop it stands for, written out: same weights bit for bit, alone and on two ranks; validation numbers against counting;
 * early stop, best weights, going on after an end and after a kill in mid-epoch; sentences. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "job_test.h"

static char *file(const char *name)
{
    static char path[4][128];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", job_folder, name);
    return path[turn];
}

/* ---- a task: the class is the largest of three sums of six numbers, sometimes mislabelled ------------------------------------------ */
enum { ROWS = 203, TEST_ROWS = 51, IN = 6, CLASSES = 3 };

static int read_row(void *user, int64_t row, void *const *into)
{
    double sum[CLASSES] = { 0 };
    for (int i = 0; i < IN; i++) {
        double v = sin(12.9898 * (double)(row * IN + i + 1) + (user ? 5 : 0)) * 2;
        ((float *)into[0])[i] = (float)v;
        sum[i % CLASSES] += v;
    }
    int best = sum[1] > sum[0];
    best = sum[2] > sum[best] ? 2 : best;
    *(int64_t *)into[1] = row % 11 == 0 ? (best + 1) % CLASSES : best;
    return 0;
}

static td_loader *data(bool test)
{
    td_field field[2] = { { TD_SHAPE(IN), TD_F32 }, { TD_SCALAR, TD_I64 } };
    td_dataset *d = td_dataset_new(&(td_dataset_source){ .rows = test ? TEST_ROWS : ROWS, .field = field, .n_fields = 2, .read = read_row },
                                   test ? job_folder : NULL);
    return td_loader_new(d, &(td_loader_opts){ .batch = 16, .shuffle = !test });
}

typedef struct { td_module *net; td_optim *opt; td_loader *train, *test; } job;

static job make(double lr)
{
    td_seed(7);
    job j = { .net = td_nn_sequential(td_nn_linear(IN, 16, NULL), td_nn_tanh(), td_nn_dropout(0.2), td_nn_linear(16, CLASSES, NULL)) };
    j.opt = td_adamw_new(td_parameters(j.net), &(td_adamw_opts){ .lr = lr });
    j.train = data(false);
    j.test = data(true);
    return j;
}

static double warm(int64_t step, int64_t total, void *user)
{
    (void)user;
    return td_schedule_cosine(step, 5, total, 0.1);
}

static void weights(const job *j, float *into)
{
    td_tensors p = td_parameters(j->net);
    for (size_t i = 0; i < p.n; i++) {
        EXPECT(td_copy_out(p.list[i], into, (size_t)td_numel(p.list[i]) * 4) == 0);
        into += td_numel(p.list[i]);
    }
}
enum { WEIGHTS = IN * 16 + 16 + 16 * CLASSES + CLASSES };

/* ---- the same as a loop --------------------------------------------------------------------------------------------------------------- */
static void by_hand(job *j, int epochs, int accumulate, double clip, float *into)
{
    td_ddp *ddp = td_size(td_world()) > 1 ? td_ddp_new(j->net, NULL) : NULL;
    int64_t batches = td_loader_batches(j->train), per = (batches + accumulate - 1) / accumulate, step = 0;
    for (int e = 0; e < epochs; e++) {
        td_batch b;
        int64_t at = 0;
        while (td_loader_next(j->train, &b)) {
            TD_SCOPE();
            at++;
            bool last = at % accumulate == 0 || at == batches;
            if (ddp)
                td_ddp_no_sync(ddp, !last);
            td_backward(td_cross_entropy(td_forward(j->net, b.x), b.y, NULL));
            if (!last)
                continue;
            td_optim_set_lr(j->opt, -1, 0.01 * warm(step++, per * epochs, NULL));
            td_clip_grad_norm(j->opt, clip);
            td_optim_step(j->opt);
        }
    }
    weights(j, into);
}

static int same_as_loop(void)
{
    float a[WEIGHTS], b[WEIGHTS];
    td_init(NULL, NULL);
    for (int accumulate = 1; accumulate <= 3; accumulate += 2) {
        job j = make(0.01);
        by_hand(&j, 3, accumulate, 0.5, a);
        td_finish();
        td_init(NULL, NULL);
        td_step_set(0);
        j = make(0.01);
        td_fit_result r = td_fit(j.net, &(td_fit_opts){ .optim = j.opt, .train = j.train, .validation = j.test, .epochs = 3, .clip_norm = 0.5,
                                                       .schedule = warm, .accumulate = accumulate, .quiet = true });
        EXPECT(r.code == 0 && r.last.epoch == 3 && !r.stopped && r.last.step == 3 * ((td_loader_batches(j.train) + accumulate - 1) / accumulate));
        EXPECT(td_optim_get_lr(j.opt, 0) == 0.01);
        weights(&j, b);
        EXPECT(memcmp(a, b, sizeof a) == 0);
        td_finish();
        td_init(NULL, NULL);
        td_step_set(0);
    }
    return td_finish();
}

static void equals_the_loop(void **state)
{
    assert_int_equal(run(1, same_as_loop), 0);
    assert_int_equal(run(2, same_as_loop), 0);
}

/* ---- validation ------------------------------------------------------------------------------------------------------------------------ */
static int numbers(void)
{
    td_init(NULL, NULL);
    job j = make(0.05);
    td_metric m[] = { TD_ACCURACY };
    td_fit_result r = td_fit(j.net, &(td_fit_opts){ .optim = j.opt, .train = j.train, .validation = j.test, .epochs = 25, .metrics = m, .n_metrics = 1,
                                                   .quiet = true });
    EXPECT(r.code == 0 && td_is_training(j.net));
    double hits = 0, loss = 0;
    TD_NO_GRAD();
    td_train(j.net, false);
    for (int64_t row = 0; row < TEST_ROWS; row++) {      /* every row by itself, on every rank */
        TD_SCOPE();
        float x[IN];
        int64_t y;
        read_row(job_folder, row, (void *[]){ x, &y });
        td_tensor *logits = td_forward(j.net, td_from(x, TD_SHAPE(1, IN), TD_F32));
        hits += td_item(td_argmax(logits, 1)) == (double)y;
        loss += td_item(td_cross_entropy(logits, td_from(&y, TD_SHAPE(1), TD_I64), NULL));
    }
    EXPECT(fabs(r.last.val_metric[0] - hits / TEST_ROWS) < 1e-12);
    EXPECT(fabs(r.last.val_loss - loss / TEST_ROWS) < 1e-5 * loss);
    EXPECT(r.last.val_metric[0] > 0.75 && r.last.metric[0] > 0.75 && r.last.loss < 0.7);
    return td_finish();
}

static void validation_counts(void **state)
{
    assert_int_equal(run(1, numbers), 0);
    assert_int_equal(run(2, numbers), 0);
}

/* ---- early stop and best weights ----------------------------------------------------------------------------------------------------------- */
static double spoil(int64_t step, int64_t total, void *user)   /* learns for 5 epochs, then goes astray */
{
    (void)total;
    return step < 5 * *(int64_t *)user ? 1 : 100;
}

static int early(void)
{
    td_init(NULL, NULL);
    job j = make(0.01);
    int64_t batches = td_loader_batches(j.train);
    td_fit_opts o = { .optim = j.opt, .train = j.train, .validation = j.test, .epochs = 40, .schedule = spoil, .user = &batches, .patience = 3,
                      .best = file("best"), .quiet = true };
    td_fit_result r = td_fit(j.net, &o);
    EXPECT(r.code == 0 && r.stopped && r.best_epoch >= 1 && r.best_epoch <= 5 && r.last.epoch == r.best_epoch + 3);
    EXPECT(r.last.val_loss > r.best_value);
    td_barrier(td_world());
    EXPECT(td_load(j.net, o.best, NULL) == 0);           /* the best weights give the best value */
    td_train(j.net, false);
    TD_NO_GRAD();
    double sum = 0, weight = 0;
    td_batch b;
    while (td_loader_next(j.test, &b)) {
        TD_SCOPE();
        if (b.rows)
            sum += td_item(td_cross_entropy(td_forward(j.net, b.x), b.y, NULL)) * (double)b.rows;
        weight += (double)b.rows;
    }
    td_tensor *all = td_from((double[]){ sum, weight }, TD_SHAPE(2), TD_F64);
    td_all_reduce(td_world(), all, TD_SUM);
    EXPECT(fabs(td_at(all, TD_SHAPE(0)) / td_at(all, TD_SHAPE(1)) - r.best_value) < 1e-6);
    return td_finish();
}

static bool two_epochs(const td_fit_epoch *e, void *user)
{
    (void)user;
    return e->epoch < 2;
}

static int told_to_stop(void)
{
    td_init(NULL, NULL);
    job j = make(0.01);
    td_fit_result r = td_fit(j.net, &(td_fit_opts){ .optim = j.opt, .train = j.train, .epochs = 9, .on_epoch = two_epochs, .quiet = true });
    EXPECT(r.code == 0 && r.stopped && r.last.epoch == 2 && r.best_epoch >= 1 && isnan(r.last.val_loss));
    return td_finish();
}

static void stops_early_and_keeps_the_best(void **state)
{
    assert_int_equal(run(1, early), 0);
    assert_int_equal(run(2, early), 0);
    assert_int_equal(run(1, told_to_stop), 0);
}

/* ---- going on ------------------------------------------------------------------------------------------------------------------------------ */
static int killed_at;                                        /* the call of the loss function at which this process ends itself */

static td_tensor *deadly(td_tensor *output, const td_batch *b, void *user)
{
    (void)user;
    if (killed_at && --killed_at == 0)
        raise(SIGKILL);
    return td_cross_entropy(output, b->y, NULL);
}

static int fit_to(const char *name, int epochs, float *into)
{
    td_init(NULL, NULL);
    td_step_set(0);
    job j = make(0.01);
    td_metric m[] = { TD_ACCURACY };
    td_fit_result r = td_fit(j.net, &(td_fit_opts){ .optim = j.opt, .train = j.train, .validation = j.test, .epochs = epochs, .loss = deadly,
                                                   .metrics = m, .n_metrics = 1, .state = name ? file(name) : NULL, .save_every = 3, .clip_norm = 1,
                                                   .quiet = true });
    EXPECT(r.code == 0 && r.last.epoch == epochs);
    weights(&j, into);
    into[WEIGHTS] = (float)r.last.loss;
    into[WEIGHTS + 1] = (float)r.last.val_loss;
    into[WEIGHTS + 2] = (float)r.last.metric[0];
    return td_finish();
}

static int in_two_parts(void)
{
    float whole[WEIGHTS + 3], parts[WEIGHTS + 3];
    EXPECT(fit_to(NULL, 4, whole) == 0);
    EXPECT(fit_to("parts", 2, parts) == 0);
    EXPECT(fit_to("parts", 4, parts) == 0);
    EXPECT(memcmp(whole, parts, sizeof whole) == 0);
    return 0;
}

static int dies(void)
{
    float w[WEIGHTS + 3];
    killed_at = 24;                                          /* in the second epoch, after its first save */
    fit_to("killed", 3, w);
    return 1;
}

static int goes_on(void)
{
    float whole[WEIGHTS + 3], rest[WEIGHTS + 3];
    EXPECT(fit_to(NULL, 3, whole) == 0);
    EXPECT(fit_to("killed", 3, rest) == 0);
    EXPECT(memcmp(whole, rest, WEIGHTS * sizeof *whole) == 0);
    for (int i = WEIGHTS; i < WEIGHTS + 3; i++)
        EXPECT(fabsf(whole[i] - rest[i]) <= 1e-6f * fabsf(whole[i]));   /* sums of the epoch in which it died: another order of adding */
    return 0;
}

static void goes_on_where_it_was(void **state)
{
    assert_int_equal(run(1, in_two_parts), 0);
    unlink(file("parts"));
    assert_int_equal(run(2, in_two_parts), 0);
    assert_int_equal(run(1, dies), 128 + SIGKILL);
    assert_int_equal(access(file("killed"), F_OK), 0);
    assert_int_equal(run(1, goes_on), 0);
}

/* ---- 16 bits, averages ----------------------------------------------------------------------------------------------------------------------- */
static int sixteen_bits(void)
{
    double loss[3];
    for (int i = 0; i < 3; i++) {
        td_init(NULL, NULL);
        td_step_set(0);
        job j = make(0.02);
        td_ema *ema = td_ema_new(td_parameters(j.net), 0.9);
        td_fit_result r = td_fit(j.net, &(td_fit_opts){ .optim = j.opt, .train = j.train, .validation = j.test, .epochs = 10, .ema = ema,
                                                       .autocast = i == 0 ? TD_F32 : i == 1 ? TD_BF16 : TD_F16, .quiet = true });
        EXPECT(r.code == 0);
        loss[i] = r.last.val_loss;
        td_finish();
    }
    EXPECT(fabs(loss[1] - loss[0]) < 0.03 * loss[0] && fabs(loss[2] - loss[0]) < 0.01 * loss[0]);
    EXPECT(loss[1] != loss[0] && loss[2] != loss[0]);
    return 0;
}

static void trains_in_sixteen_bits(void **state)
{
    assert_int_equal(run(1, sixteen_bits), 0);
    assert_int_equal(run(2, sixteen_bits), 0);
}

/* ---- sentences ----------------------------------------------------------------------------------------------------------------------------------- */
static int refuses(const td_fit_opts *change, const char *sentence)
{
    td_init(NULL, NULL);
    td_errors(TD_ERRORS_RETURN);
    job j = make(0.01);
    td_fit_opts o = *change;
    o.optim = j.opt;
    o.train = j.train;
    td_fit_result r = td_fit(j.net, &o);
    EXPECT(r.code < 0 && r.last.epoch == 0);
    EXPECT(strstr(td_error_message(), sentence));
    td_error_clear();
    return 0;
}

static int wrong_monitor(void) { return refuses(&(td_fit_opts){ .monitor = "val_loss" }, "monitor is \"val_loss\", but there is no validation loader"); }
static int unknown_monitor(void) { return refuses(&(td_fit_opts){ .monitor = "f1" }, "monitor is \"f1\", expected loss, val_loss, or a metric's name"); }
static int negative(void) { return refuses(&(td_fit_opts){ .epochs = -1 }, "td_fit: epochs is -1"); }
static int metrics_without(void) { return refuses(&(td_fit_opts){ .n_metrics = 2 }, "n_metrics is 2, expected 0 to 8, with metrics"); }
static td_tensor *whole_output(td_tensor *output, const td_batch *b, void *user) { (void)b, (void)user; return output; }
static int metric_shape(void)
{
    return refuses(&(td_fit_opts){ .metrics = (td_metric[]){ { "all", whole_output, false } }, .n_metrics = 1, .quiet = true },
                   "the metric \"all\" returned 48 elements, expected one");
}

static void wrong_input_is_one_sentence(void **state)
{
    body *bodies[] = { wrong_monitor, unknown_monitor, negative, metrics_without, metric_shape };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++)
        assert_int_equal(run(1, bodies[i]), 0);
}

/* An error while averages stand in for the weights: the weights are back in their place. */
static td_tensor *fails_in_validation(td_tensor *output, const td_batch *b, void *user)
{
    td_module *net = user;
    return td_is_training(net) ? td_cross_entropy(output, b->y, NULL) : td_cross_entropy(td_add(output, td_zeros(TD_SHAPE(7), TD_F32)), b->y, NULL);
}

static int weights_come_back(void)
{
    float plain[WEIGHTS], after[WEIGHTS];
    td_init(NULL, NULL);
    job j = make(0.01);
    EXPECT(td_fit(j.net, &(td_fit_opts){ .optim = j.opt, .train = j.train, .quiet = true }).code == 0);
    weights(&j, plain);
    td_finish();
    td_init(NULL, NULL);
    td_step_set(0);
    td_errors(TD_ERRORS_RETURN);
    j = make(0.01);
    td_ema *ema = td_ema_new(td_parameters(j.net), 0.9);
    td_fit_result r = td_fit(j.net, &(td_fit_opts){ .optim = j.opt, .train = j.train, .validation = j.test, .ema = ema, .user = j.net,
                                                   .loss = fails_in_validation, .quiet = true });
    EXPECT(r.code == TD_ERR_SHAPE);
    td_error_clear();
    weights(&j, after);
    EXPECT(memcmp(plain, after, sizeof plain) == 0);
    EXPECT(td_ema_swap(ema) == 0);
    weights(&j, after);
    EXPECT(memcmp(plain, after, sizeof plain) != 0);       /* the averages are others                                    */
    return 0;
}

static void an_error_leaves_the_weights(void **state)
{
    assert_int_equal(run(1, weights_come_back), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_loop), cmocka_unit_test(validation_counts), cmocka_unit_test(stops_early_and_keeps_the_best),
        cmocka_unit_test(goes_on_where_it_was), cmocka_unit_test(trains_in_sixteen_bits), cmocka_unit_test(wrong_input_is_one_sentence),
        cmocka_unit_test(an_error_leaves_the_weights),
    };
    if (!mkdtemp(job_folder))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    const char *names[] = { "best", "parts", "killed" };
    for (int i = 0; i < 3; i++)
        unlink(file(names[i]));
    rmdir(job_folder);
    return failed;
}
