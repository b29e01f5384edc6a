/* td_job_state: a signal on one rank ends the loops of all after the same step, with exit status 75; the resumed run's weights equal an
 * undisturbed one's in every bit, however often it is ended; handlers that were there before are called, and come back; td_fit does the same. */
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

static const char *file(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", job_folder, name);
    return path;
}

/* ---- a task with a shuffled loader, dropout and moments: whatever a state may forget shows -------------------------------------- */
enum { ROWS = 50, IN = 6, CLASSES = 3, BATCH = 8, EPOCHS = 3, WEIGHTS = IN * 16 + 16 + 16 * CLASSES + CLASSES };

static int read_row(void *user, int64_t row, void *const *into)
{
    for (int i = 0; i < IN; i++)
        ((float *)into[0])[i] = sinf((float)(row * IN + i));
    *(int64_t *)into[1] = row * row % CLASSES;
    return 0;
}

typedef struct { td_module *net; td_optim *opt; td_loader *data; td_train_state all; } task;

static void make(task *t)
{
    td_seed(7);
    td_step_set(0);
    t->net = td_nn_sequential(td_nn_linear(IN, 16, NULL), td_nn_gelu(), td_nn_dropout(0.2), td_nn_linear(16, CLASSES, NULL));
    t->opt = td_adamw_new(td_parameters(t->net), &(td_adamw_opts){ .lr = 0.01 });
    td_field field[2] = { { TD_SHAPE(IN), TD_F32 }, { TD_SCALAR, TD_I64 } };
    td_dataset *d = td_dataset_new(&(td_dataset_source){ .rows = ROWS, .field = field, .n_fields = 2, .read = read_row }, NULL);
    t->data = td_loader_new(d, &(td_loader_opts){ .batch = BATCH, .shuffle = true });
    t->all = (td_train_state){ .model = t->net, .optims = &t->opt, .n_optims = 1, .loader = t->data };
}

static void weights(const task *t, float *into)
{
    td_tensors p = td_parameters(t->net);
    for (size_t i = 0; i < p.n; i++) {
        EXPECT(td_copy_out(p.list[i], into, (size_t)td_numel(p.list[i]) * 4) == 0);
        into += td_numel(p.list[i]);
    }
}

static int64_t signal_at;         /* the step before which rank `signal_to` sends itself a signal; -1: none              */
static int signal_to, signal_number = SIGUSR1, signals = 1;
static int64_t stopped_at;        /* the step after which the loop ended                                                  */

static void maybe_signal(int64_t step)
{
    if (step == signal_at && (signal_to < 0 || td_rank(td_world()) == signal_to))
        for (int i = 0; i < signals; i++)
            raise(signal_number);
}

static int train(const char *path, float *into)
{
    task t;
    td_init(NULL, NULL);
    make(&t);
    td_ddp_new(t.net, NULL);
    td_job_state *job = td_job_state_open(&t.all, path, &(td_job_state_opts){ .quiet = true });
    for (int64_t epoch = td_loader_epoch(t.data); epoch < EPOCHS && !td_job_state_ending(job); epoch++) {
        td_batch b;
        while (td_job_state_step(job) && td_loader_next(t.data, &b)) {
            TD_SCOPE();
            maybe_signal(t.all.step);
            td_backward(td_cross_entropy(td_forward(t.net, b.x), b.y, NULL));
            td_optim_step(t.opt);
            t.all.step++;
        }
    }
    stopped_at = t.all.step;
    EXPECT(!td_error_pending());
    weights(&t, into);
    return td_finish();
}

/* ---- the same weights, wherever it is interrupted ------------------------------------------------------------------------------------- */

static int interrupted(void)
{
    float whole[WEIGHTS], parts[WEIGHTS];
    signal_at = -1;
    EXPECT(train(file("whole"), whole) == 0);
    const int64_t steps = stopped_at;
    EXPECT(access(file("whole"), F_OK) != 0);                /* nobody asked: nothing is written */
    for (signal_at = 0; signal_at < steps; signal_at += signal_at < 8 ? 1 : 5) {
        char name[32];
        snprintf(name, sizeof name, "at-%d", (int)signal_at);
        int size = getenv("TANDEM_SIZE") ? atoi(getenv("TANDEM_SIZE")) : 1;
        signal_to = size > 2 && signal_at == 3 ? -1 : (int)signal_at % size;
        signal_number = signal_at % 2 ? SIGTERM : SIGUSR1;
        int64_t at = signal_at;
        int code = train(file(name), parts);
        bool missed = code == 0;                             /* the last step: it was done before the ranks could agree */
        EXPECT(code == TD_EXIT_AGAIN || (missed && at >= steps - 1));
        EXPECT(missed || (stopped_at > at && stopped_at <= at + 2 && access(file(name), F_OK) == 0));
        signal_at = -1;
        if (!missed)
            EXPECT(train(file(name), parts) == 0 && stopped_at == steps);
        EXPECT(memcmp(whole, parts, sizeof whole) == 0);
        unlink(file(name));
        signal_at = at;
    }
    return 0;
}

static void goes_on_bit_for_bit(void **state)
{
    for (int ranks = 1; ranks <= 3; ranks++)
        assert_int_equal(run(ranks, interrupted), 0);
}

/* Every rank stops after the same step, also when each was told at another one. */
static int at_once(void)
{
    float w[WEIGHTS];
    signal_at = 4 + 2 * (getenv("TANDEM_RANK") ? atoi(getenv("TANDEM_RANK")) : 0);
    signal_to = -1;
    EXPECT(train(file("together"), w) == TD_EXIT_AGAIN);
    EXPECT(stopped_at == 6);
    return 0;
}

static void all_ranks_stop_together(void **state)
{
    assert_int_equal(run(3, at_once), 0);
    unlink(file("together"));
}

/* ---- handlers --------------------------------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t plain_calls, info_calls, top_calls;
static struct sigaction under_top;
static void plain(int number)
{
    plain_calls += number == SIGTERM;
}
static void with_info(int number, siginfo_t *info, void *context)
{
    info_calls += number == SIGUSR1 && info && info->si_pid == getpid() && context;
}
static void on_top(int number)
{
    top_calls++;
    if (under_top.sa_flags & SA_SIGINFO)
        under_top.sa_sigaction(number, NULL, NULL);
}

static void (*handler_of(int number))(int)
{
    struct sigaction now;
    sigaction(number, NULL, &now);
    return now.sa_handler;
}

static int chained(void)
{
    td_init(NULL, NULL);
    struct sigaction info = { .sa_sigaction = with_info, .sa_flags = SA_SIGINFO };
    signal(SIGTERM, plain);
    sigaction(SIGUSR1, &info, NULL);
    td_job_state *job = td_job_state_open(NULL, NULL, NULL);
    EXPECT(handler_of(SIGTERM) != plain);
    td_job_state_free(job);                                  /* nothing came: as if it had not been */
    EXPECT(handler_of(SIGTERM) == plain && handler_of(SIGUSR1) == (void (*)(int))(void *)with_info);
    job = td_job_state_open(NULL, NULL, &(td_job_state_opts){ .quiet = true });
    for (int i = 0; i < 3; i++)
        EXPECT(td_job_state_step(job));
    kill(getpid(), SIGUSR1);
    kill(getpid(), SIGTERM);
    kill(getpid(), SIGTERM);
    EXPECT(info_calls == 1 && plain_calls == 2);
    EXPECT(!td_job_state_ending(job) && !td_job_state_step(job) && td_job_state_ending(job) && !td_job_state_step(job));
    EXPECT(td_finish() == TD_EXIT_AGAIN);
    kill(getpid(), SIGTERM);                                 /* while the program ends: nothing but the handler of before */
    EXPECT(plain_calls == 3);
    return 0;
}

/* Somebody puts a handler above ours that calls it; then ours is asked for anew. */
static int above(void)
{
    td_init(NULL, NULL);
    signal(SIGTERM, plain);
    td_job_state *job = td_job_state_open(NULL, NULL, NULL);
    struct sigaction top = { .sa_handler = on_top };
    sigaction(SIGTERM, &top, &under_top);
    td_job_state_free(job);
    EXPECT(handler_of(SIGTERM) == on_top);
    kill(getpid(), SIGTERM);
    EXPECT(top_calls == 1 && plain_calls == 1);
    job = td_job_state_open(NULL, NULL, &(td_job_state_opts){ .quiet = true });
    EXPECT(td_job_state_step(job));                          /* what came while nobody asked is not meant */
    kill(getpid(), SIGTERM);
    EXPECT(top_calls == 2 && plain_calls == 2 && !td_job_state_step(job));
    EXPECT(td_finish() == TD_EXIT_AGAIN && td_init(NULL, NULL) == 0 && td_finish() == 0);
    return 0;
}

static void handlers_are_chained(void **state)
{
    assert_int_equal(run(1, chained), 0);
    assert_int_equal(run(1, above), 0);
}

/* Before the call and after the free a signal does what it did: it ends the process. */
static int default_again(void)
{
    td_init(NULL, NULL);
    td_job_state_free(td_job_state_open(NULL, NULL, NULL));
    raise(SIGTERM);
    return 1;
}

static int never_asked(void)
{
    td_init(NULL, NULL);
    raise(SIGUSR1);
    return 1;
}

static void nothing_without_a_request(void **state)
{
    assert_int_equal(run(1, default_again), 128 + SIGTERM);
    assert_int_equal(run(1, never_asked), 128 + SIGUSR1);
}

/* ---- a second signal, while the state is being written ----------------------------------------------------------------------------------- */

static int many_signals(void)
{
    float w[WEIGHTS], whole[WEIGHTS];
    signal(SIGTERM, SIG_IGN);                                /* until the handler is there */
    pid_t me = getpid(), pest = fork();
    if (pest == 0) {                                         /* SIGTERM all the time: while it trains, saves, ends */
        while (getppid() == me && kill(me, SIGTERM) == 0)
            usleep(100);
        _exit(0);
    }
    signal_at = 5;
    signal_to = -1;
    signals = 20;
    EXPECT(train(file("pest"), w) == TD_EXIT_AGAIN);
    usleep(20000);
    signal(SIGTERM, SIG_IGN);
    kill(pest, SIGKILL);
    waitpid(pest, NULL, 0);
    signal_at = -1;
    EXPECT(train(file("pest"), w) == 0 && train(file("pest-whole"), whole) == 0 && memcmp(w, whole, sizeof w) == 0);
    unlink(file("pest"));
    return 0;
}

static void further_signals_change_nothing(void **state)
{
    assert_int_equal(run(1, many_signals), 0);
    assert_int_equal(run(2, many_signals), 0);
}

/* ---- saving now and then; one's own saving --------------------------------------------------------------------------------------------------- */

static int now_and_then(void)
{
    task t;
    td_init(NULL, NULL);
    make(&t);
    td_job_state *job = td_job_state_open(&t.all, file("often"), &(td_job_state_opts){ .save_every = 3, .quiet = true });
    EXPECT(!td_job_state_resumed(job));
    int saved = 0;
    for (t.all.step = 1; t.all.step <= 7; t.all.step++) {
        EXPECT(td_job_state_step(job));
        saved += access(file("often"), F_OK) == 0;
    }
    EXPECT(saved == 5);
    td_job_state_free(job);
    job = td_job_state_open(&t.all, file("often"), &(td_job_state_opts){ .quiet = true });
    EXPECT(td_job_state_resumed(job) && t.all.step == 6);
    EXPECT(td_finish() == 0);
    unlink(file("often"));
    return 0;
}

static void saves_now_and_then(void **state)
{
    assert_int_equal(run(1, now_and_then), 0);
    assert_int_equal(run(2, now_and_then), 0);
}

/* ---- groups with models and files of their own end together ---------------------------------------------------------------------------- */

static int in_groups(const char *name, int64_t limit, float *into)
{
    task t;
    char path[160];
    td_init(NULL, NULL);
    make(&t);
    const int color = td_rank(td_world()) % 2;
    td_comm *group = td_comm_split(td_world(), color, 0);
    t.all.ddp = td_ddp_new(t.net, &(td_ddp_opts){ .comm = group });
    snprintf(path, sizeof path, "%s-%d", file(name), color);
    td_job_state *job = td_job_state_open(&t.all, path, &(td_job_state_opts){ .quiet = true });
    td_batch b;
    while (t.all.step < limit && td_job_state_step(job) && (td_loader_next(t.data, &b) || td_loader_next(t.data, &b))) {
        TD_SCOPE();
        maybe_signal(t.all.step);
        td_backward(td_scale(td_cross_entropy(td_forward(t.net, b.x), b.y, NULL), color ? 0.5 : 1));
        td_optim_step(t.opt);
        t.all.step++;
    }
    stopped_at = t.all.step;
    weights(&t, into);
    return td_finish();
}

static int groups(void)
{
    float whole[WEIGHTS], parts[WEIGHTS];
    signal_at = -1;
    EXPECT(in_groups("group-whole", 12, whole) == 0);
    signal_at = 4;
    signal_to = 3;
    EXPECT(in_groups("group", 12, parts) == TD_EXIT_AGAIN && stopped_at == 6);
    signal_at = -1;
    EXPECT(in_groups("group", 12, parts) == 0);
    EXPECT(memcmp(whole, parts, sizeof whole) == 0);
    return 0;
}

static void groups_end_together(void **state)
{
    assert_int_equal(run(4, groups), 0);
}

/* ---- td_fit ------------------------------------------------------------------------------------------------------------------------------------- */

static int64_t losses;
static td_tensor *loss(td_tensor *output, const td_batch *b, void *user)
{
    (void)user;
    maybe_signal(losses++);
    return td_cross_entropy(output, b->y, NULL);
}

static int fit(const char *path, float *into, bool validate, td_fit_result *r)
{
    task t;
    td_init(NULL, NULL);
    make(&t);
    losses = 0;
    *r = td_fit(t.net, &(td_fit_opts){ .optim = t.opt, .train = t.data, .validation = validate ? t.data : NULL, .epochs = EPOCHS, .loss = loss,
                                       .state = path, .on_request = true, .quiet = true, .patience = 100 });
    EXPECT(r->code == 0);
    weights(&t, into);
    return td_finish();
}

static int fits(void)
{
    float whole[WEIGHTS], parts[WEIGHTS];
    td_fit_result a, b;
    signal_at = -1;
    EXPECT(fit(file("fit-whole"), whole, false, &a) == 0 && !a.stopped && !a.requested && a.last.epoch == EPOCHS);
    const int64_t steps = a.last.step;
    for (int64_t at = 1; at < steps; at += 3) {
        signal_at = at;
        signal_to = getenv("TANDEM_SIZE") ? 1 : 0;
        int code = fit(file("fit"), parts, false, &b);
        EXPECT(code == TD_EXIT_AGAIN ? b.requested && b.stopped : code == 0 && at >= steps - 2);
        signal_at = -1;
        EXPECT(fit(file("fit"), parts, false, &b) == 0 && !b.requested && (code == 0 || b.last.epoch == EPOCHS));
        EXPECT(memcmp(whole, parts, sizeof whole) == 0 && (code == 0 || fabs(a.last.loss - b.last.loss) < 1e-6));
        td_barrier(td_world());
        unlink(file("fit"));
    }
    return 0;
}

static void td_fit_ends_on_request(void **state)
{
    assert_int_equal(run(1, fits), 0);
    unlink(file("fit-whole"));
    assert_int_equal(run(2, fits), 0);
}

/* ---- sentences ------------------------------------------------------------------------------------------------------------------------------------- */

static int refuses(void)
{
    task t;
    td_init(NULL, NULL);
    td_errors(TD_ERRORS_RETURN);
    make(&t);
    td_job_state *job = td_job_state_open(&t.all, NULL, NULL);
    EXPECT(strstr(td_error_message(), "td_job_state_open: the state is given, the path NULL, save_every 0; expected a state and the path of its file"));
    EXPECT(!td_job_state_step(job) && td_job_state_ending(job) && !td_job_state_resumed(job));
    td_job_state_free(job);
    EXPECT(handler_of(SIGTERM) == SIG_DFL);
    td_error_clear();
    EXPECT(!td_job_state_step(NULL) && strstr(td_error_message(), "td_job_state_step: the job's state is NULL"));
    td_error_clear();
    FILE *f = fopen(file("garbage"), "w");
    fputs("this is no training state", f);
    fclose(f);
    job = td_job_state_open(&t.all, file("garbage"), NULL);
    EXPECT(td_error_pending() == TD_ERR_FORMAT && !td_job_state_step(job));
    td_error_clear();
    unlink(file("garbage"));
    job = td_job_state_open(&t.all, "/no/such/folder/state", &(td_job_state_opts){ .quiet = true });
    raise(SIGTERM);
    EXPECT(!td_job_state_step(job) && td_error_pending() == TD_ERR_IO);
    td_error_clear();
    EXPECT(td_fit(t.net, &(td_fit_opts){ .optim = t.opt, .train = t.data, .on_request = true }).code == TD_ERR_ARGUMENT);
    EXPECT(strstr(td_error_message(), "td_fit: on_request is true, but there is no file for the state"));
    EXPECT(td_finish() == 1);                                /* an error goes before a request */
    return 0;
}

static void sentences(void **state)
{
    assert_int_equal(run(1, refuses), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goes_on_bit_for_bit), cmocka_unit_test(all_ranks_stop_together), cmocka_unit_test(handlers_are_chained),
        cmocka_unit_test(nothing_without_a_request), cmocka_unit_test(further_signals_change_nothing), cmocka_unit_test(saves_now_and_then),
        cmocka_unit_test(groups_end_together), cmocka_unit_test(td_fit_ends_on_request), cmocka_unit_test(sentences),
    };
    if (!mkdtemp(job_folder))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    char command[160];
    snprintf(command, sizeof command, "rm -rf '%s'", job_folder);
    return system(command) ? 1 : failed;
}
