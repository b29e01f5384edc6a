/* tests/io/test_train_state.c: a training state's file: what stands in it, damage of every byte, what does not fit this program, and death while
 * it is written. Resuming bit for bit is train_state_ranks.c's.
 */
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "io_test.h"
#include <data_impl.h>
#include <ddp_impl.h>
#include <optim_impl.h>

typedef struct {
    td_module *net;
    td_optim *opt;
    td_loader *data;
    td_ema *ema;
    td_scaler *scaler;
    td_train_state state;
} job;

static int read_row(void *user, int64_t row, void *const *into)
{
    *(float *)into[0] = (float)row;
    return 0;
}

static void take_step(job *j)
{
    TD_SCOPE();
    td_tensor *x = td_full(TD_SHAPE(2, 2), TD_F32, 0.5), *y = td_zeros(TD_SHAPE(2, 1), TD_F32);
    assert_int_equal(td_backward(td_mse(td_forward(j->net, x), y)), 0);
    assert_int_equal(td_optim_step(j->opt), 0);
    assert_int_equal(td_ema_update(j->ema), 0);
    assert_int_equal(td_scaler_set(j->scaler, td_scaler_get(j->scaler) / 2, td_scaler_growth(j->scaler) + 1), 0);
}

static void begin(job *j)
{
    *j = (job){ .net = td_nn_linear(2, 1, NULL) };
    j->opt = td_adamw_new(td_parameters(j->net), NULL);
    td_dataset_source source = { .rows = 10, .read = read_row, .n_fields = 1, .field = &(td_field){ TD_SCALAR, TD_F32 } };
    j->data = td_loader_new(td_dataset_new(&source, NULL), &(td_loader_opts){ .batch = 2, .shuffle = true });
    j->ema = td_ema_new(td_parameters(j->net), 0.5);
    j->scaler = td_scaler_new(NULL);
    j->state = (td_train_state){ .scaler = j->scaler, .model = j->net, .optims = &j->opt, .n_optims = 1, .loader = j->data, .ema = j->ema, .step = 7 };
    take_step(j);
}

static void end(job *j)
{
    td_loader_free(j->data);
    td_ema_free(j->ema);
    td_scaler_free(j->scaler);
    td_optim_free(j->opt);
    td_module_free(j->net);
}

/* All that a load may change, as text. */
static void look(const job *j, char *into, size_t size)
{
    TD_SCOPE();
    size_t n = 0;
    td_tensors p = td_parameters(j->net);
    for (size_t i = 0; i < p.n; i++)
        for (int64_t k = 0; k < td_numel(p.list[i]); k++)
            n += (size_t)snprintf(into + n, size - n, "%a ", (double)((const float *)td_data(p.list[i]))[k]);
    const td__param *q = &j->opt->param[0];
    const float *moment = j->opt->span ? j->opt->span[q->span].moment[1]->data : NULL;
    snprintf(into + n, size - n, "%g %lld %g %a %lld %lld %lld %lld %lld %lld %llu",
             td_scaler_get(j->scaler), (long long)td_scaler_growth(j->scaler), td_optim_get_lr(j->opt, 0), moment ? (double)moment[0] : 0,
             (long long)td_optim_steps(j->opt), (long long)q->steps, (long long)j->state.step, (long long)td_loader_epoch(j->data),
             (long long)td_loader_position(j->data), (long long)td_step_get(), (unsigned long long)td_seed_get());
}

static void other_programs_read_it(void **state)
{
    job j;
    begin(&j);
    td_named extra = { "a/b", td_full(TD_SHAPE(3), TD_I64, 9) };
    j.state.extra = &extra;
    j.state.n_extra = 1;
    assert_int_equal(td_train_state_save(&j.state, path_of("s")), 0);
    static const char *const expected[] = { "model/weight", "model/bias", "ema/weight", "ema/bias", "extra/a/b", "optim/0/weight/steps_and_group",
                                            "optim/0/weight/moment0", "optim/0/weight/moment1", "optim/0/bias/steps_and_group",
                                            "optim/0/bias/moment0", "optim/0/bias/moment1" };
    td_safetensors *f = td_safetensors_open(path_of("s"));
    assert_int_equal(td_safetensors_count(f), TD_COUNT(expected));
    for (size_t i = 0; i < TD_COUNT(expected); i++)
        assert_string_equal(td_safetensors_name(f, i), expected[i]);
    assert_memory_equal(td_data(td_safetensors_get(f, "model/weight")), td_data(td_parameter_get(j.net, "weight")), 8);
    assert_true(td_at(td_safetensors_get(f, "optim/0/bias/steps_and_group"), TD_SHAPE(0)) == 1);
    end(&j);
}

static const char *refused;
static void try_all(job *j, const unsigned char *bytes, size_t n, const char *before)
{
    char after[2048];
    unlink(path_of("broken"));                 /* cutting an old file short could wait for the disk                         */
    put("broken", bytes, n);
    int rc = td_train_state_load(&j->state, path_of("broken"));
    refused = td_error_message();
    if (rc != TD_ERR_FORMAT || !strstr(refused, "td_train_state_load: ") || strlen(refused) < 40)
        fail_msg("%d, \"%s\"", rc, refused);
    td_error_clear();
    look(j, after, sizeof after);
    assert_string_equal(before, after);
}

/* Each byte with a bit turned, with a digit or letter another one; every length that is shorter, and some that are longer. */
static void no_byte_is_unseen(void **state)
{
    job j;
    static unsigned char bytes[16384];
    char before[2048];
    begin(&j);
    assert_int_equal(td_train_state_save(&j.state, path_of("s")), 0);
    size_t n = get("s", bytes, sizeof bytes - 16);
    assert_true(n > 1000 && n < sizeof bytes - 16);
    take_step(&j);
    look(&j, before, sizeof before);
    for (size_t i = 0; i < n; i++) {
        unsigned char was = bytes[i];
        bytes[i] = (unsigned char)(was ^ (1 << i % 8));
        try_all(&j, bytes, n, before);
        bytes[i] = was;
    }
    for (size_t i = 0; i < n; i += i < 512 ? 1 : 7)
        try_all(&j, bytes, i, before);
    memset(bytes + n, ' ', 16);
    try_all(&j, bytes, n + 1, before);
    try_all(&j, bytes, n + 16, before);
    put("whole", bytes, n);
    assert_int_equal(td_train_state_load(&j.state, path_of("whole")), 0);
    assert_true(td_scaler_get(j.scaler) == 32768 && td_scaler_growth(j.scaler) == 1 && td_optim_steps(j.opt) == 1 && j.state.step == 7);
    char after[2048];
    look(&j, after, sizeof after);
    assert_string_not_equal(before, after);
    end(&j);
}

static void expect_refusal(td_train_state *s, int code, const char *rest)
{
    int rc = td_train_state_load(s, path_of("s"));
    if (rc != code || !strstr(td_error_message(), rest))
        fail_msg("%d \"%s\", expected %d \"%s\"", rc, td_error_message(), code, rest);
    td_error_clear();
}

static void what_does_not_fit(void **state)
{
    job j;
    char before[2048], after[2048];
    begin(&j);
    td_batch b;
    for (int i = 0; i < 3; i++)
        assert_true(td_loader_next(j.data, &b));
    assert_int_equal(td_train_state_save(&j.state, path_of("s")), 0);
    take_step(&j);
    look(&j, before, sizeof before);
    td_train_state s;

    td_module *wide = td_nn_linear(3, 1, NULL), *bare = td_nn_linear(2, 1, &(td_nn_linear_opts){ .no_bias = true });
    s = (td_train_state){ .model = wide };
    expect_refusal(&s, TD_ERR_SHAPE, "\"model/weight\" has shape (1,2), expected (1,3)");
    s = (td_train_state){ .model = bare };
    expect_refusal(&s, TD_ERR_ARGUMENT, "\"model/bias\" is in the file, but not in this program");
    td_module *deep = td_nn_sequential(wide);
    s = (td_train_state){ .model = deep };
    expect_refusal(&s, TD_ERR_ARGUMENT, "\"model/0.weight\" is missing");

    s = j.state;
    td_module_to(bare, TD_F64);
    td_named extra = { "x", td_parameter_get(bare, "weight") };
    s.extra = &extra;
    s.n_extra = 1;
    expect_refusal(&s, TD_ERR_ARGUMENT, "\"extra/x\" is missing");

    s = j.state;
    td_optim *sgd = td_sgd_new(td_parameters(j.net), &(td_sgd_opts){ .momentum = 0.9 });
    s.optims = &sgd;
    expect_refusal(&s, TD_ERR_ARGUMENT, "optimizer 0 is \"adamw\" in the file, but \"sgd\" in this program");
    td_optim_free(sgd);
    td_optim *decay = td_adamw_new(td_parameters(j.net), &(td_adamw_opts){ .weight_decay = 0.5 });
    s.optims = &decay;
    expect_refusal(&s, TD_ERR_ARGUMENT, "\"weight_decay\" of group 0 of optimizer 0 is 0.01 in the file, but 0.5 in this program");
    td_optim_free(decay);
    td_tensors p = td_parameters(j.net);
    td_optim *two = td_adamw_new((td_tensors){ p.list, 1 }, NULL);
    s.optims = &two;
    expect_refusal(&s, TD_ERR_ARGUMENT, "\"optim/0/bias/steps_and_group\" is in the file, but not in this program");
    td_adamw_add_group(two, (td_tensors){ p.list + 1, 1 }, NULL);
    expect_refusal(&s, TD_ERR_ARGUMENT, "optimizer 0 has 1 groups in the file, but 2 in this program");
    td_optim_free(two);

    td_dataset_source source = { .rows = 11, .read = read_row, .n_fields = 1, .field = &(td_field){ TD_SCALAR, TD_F32 } };
    td_loader *longer = td_loader_new(td_dataset_new(&source, NULL), &(td_loader_opts){ .batch = 2, .shuffle = true });
    s = (td_train_state){ .loader = longer };
    expect_refusal(&s, TD_ERR_ARGUMENT, "\"rows\" of the loader is 10 in the file, but 11 in this program");
    td_loader_free(longer);
    td_ema *slow = td_ema_new(td_parameters(j.net), 0.25);
    s = (td_train_state){ .ema = slow, .model = j.net };
    expect_refusal(&s, TD_ERR_ARGUMENT, "the moving average's decay is 0.5 in the file, but 0.25 in this program");
    td_ema_free(slow);
    look(&j, after, sizeof after);
    assert_string_equal(before, after);

    s = (td_train_state){ .model = j.net };    /* a part alone */
    assert_int_equal(td_train_state_load(&s, path_of("s")), 0);
    assert_int_equal(s.step, 7);
    td_ddp *ddp = td_ddp_new(j.net, NULL);     /* and one that was not saved */
    s.ddp = ddp;
    expect_refusal(&s, TD_ERR_ARGUMENT, "was saved without \"ddp\"");
    td_ddp_free(ddp);
    td_module_free(deep);
    td_module_free(bare);
    end(&j);
}

static void waiting_gradients_and_bad_arguments(void **state)
{
    job j;
    begin(&j);
    assert_int_equal(td_train_state_save(NULL, path_of("s")), TD_ERR_ARGUMENT);
    td_error_clear();
    assert_int_equal(td_train_state_save(&j.state, ""), TD_ERR_ARGUMENT);
    td_error_clear();
    td_tensor *y = td_zeros(TD_SHAPE(2, 1), TD_F32);
    td_backward(td_mse(td_forward(j.net, td_ones(TD_SHAPE(2, 2), TD_F32)), y));
    assert_int_equal(td_train_state_save(&j.state, path_of("s")), TD_ERR_STATE);
    assert_non_null(strstr(td_error_message(), "the gradient of parameter \"weight\" waits for a step"));
    td_error_clear();
    assert_int_equal(access(path_of("s"), F_OK), -1);
    td_zero_grad(td_parameters(j.net));
    td_add(y, td_ones(TD_SHAPE(3, 1), TD_F32));/* an error is pending: nothing is written */
    assert_true(td_train_state_save(&j.state, path_of("s")) < 0);
    td_error_clear();
    assert_int_equal(access(path_of("s"), F_OK), -1);
    end(&j);
}

/* The layers run in another order than they are listed in, so the first step rebuilds the buckets. A resumed run has them so before its first. */
static void the_order_of_buckets(void **state)
{
    int32_t fresh[4], rebuilt[4], loaded[4], cut[4];
    td_module *net[2];
    td_ddp *ddp[2];
    for (int i = 0; i < 2; i++) {
        net[i] = td_nn_sequential(td_nn_linear(3, 2, NULL), td_nn_linear(2, 3, NULL));
        ddp[i] = td_ddp_new(net[i], &(td_ddp_opts){ .bucket_bytes = 64, .first_bucket_bytes = 64 });
    }
    td_train_state s = { .model = net[0], .ddp = ddp[0] };
    td__ddp_order(ddp[0], fresh, cut);
    assert_int_equal(td_train_state_save(&s, path_of("fresh")), 0);
    td_optim *opt = td_sgd_new(td_parameters(net[0]), NULL);
    td_tensor *y = td_forward(td_module_get(net[0], "1"), td_ones(TD_SHAPE(1, 2), TD_F32));
    assert_int_equal(td_backward(td_mse(td_forward(td_module_get(net[0], "0"), y), td_zeros(TD_SHAPE(1, 2), TD_F32))), 0);
    assert_int_equal(td_optim_step(opt), 0);
    td__ddp_order(ddp[0], rebuilt, cut);
    assert_memory_not_equal(rebuilt, fresh, sizeof fresh);
    assert_int_equal(td_train_state_save(&s, path_of("s")), 0);
    s = (td_train_state){ .model = net[1], .ddp = ddp[1] };
    assert_int_equal(td_train_state_load(&s, path_of("s")), 0);
    td__ddp_order(ddp[1], loaded, cut);
    assert_memory_equal(loaded, rebuilt, sizeof rebuilt);
    assert_true(ddp[1]->rebuilt);
    for (int b = 0; b < 4; b++)                /* the parameters went along */
        assert_memory_equal(ddp[1]->bucket[b].flat->value->data, ddp[0]->bucket[b].flat->value->data, 24);
    assert_int_equal(td_train_state_load(&s, path_of("fresh")), 0);
    td__ddp_order(ddp[1], loaded, cut);
    assert_memory_equal(loaded, fresh, sizeof fresh);
    assert_false(ddp[1]->rebuilt);
    for (int i = 0; i < 2; i++)
        td_ddp_free(ddp[i]);
    td_optim_free(opt);
    td__comm_close_world(true);                /* the world of one keeps its records of started work                          */
}

static void write_for_ever(job *j, const char *file, int64_t step, int told)
{
    for (j->state.step = step;; j->state.step = j->state.step == 1000 ? step : 1000)
        if (td_train_state_save(&j->state, file) != 0 || write(told, "", 1) != 1)
            _exit(1);
}

/* The file is replaced again and again by one of another step, and SIGKILL comes at any moment: it is always one or the other, whole, and never an
 * older one than those that are known to be written. */
static void killed_while_writing(void **state)
{
    job j;
    begin(&j);
    const char *file = path_of("s");
    for (int round = 1; round <= 40; round++) {
        int ends[2], status;
        char byte;
        assert_int_equal(pipe(ends), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            write_for_ever(&j, file, round, ends[1]);
        close(ends[1]);
        for (int known = 0; known <= round % 3; known++)
            assert_int_equal(read(ends[0], &byte, 1), 1);
        nanosleep(&(struct timespec){ .tv_nsec = round * 77777 }, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        close(ends[0]);
        j.state.step = -1;
        assert_int_equal(td_train_state_load(&j.state, file), 0);
        assert_true(j.state.step == 1000 || j.state.step == round);
    }
    end(&j);
}

/* 16-bit parameters, which stand in no module, and the f32 masters beside their moments: resumed, they take the steps that they would have taken. */
static void masters_resume(void **state)
{
    static const td_dtype dtype[] = { TD_BF16, TD_F16 };
    for (int momentum = 0; momentum < 2; momentum++) {
        TD_SCOPE();
        enum { N = 70 };
        uint16_t last[2][2][N], at_save[2][N];
        for (int resumed = 0; resumed < 2; resumed++) {
            td_tensor *p[2];
            td_named extra[2] = { { "p", NULL }, { "q", NULL } };
            for (int i = 0; i < 2; i++)
                extra[i].tensor = p[i] = td_full(TD_SHAPE(N), dtype[i], resumed ? 7 : 1);
            td_requires_grad((td_tensors){ p, 2 }, true);
            td_optim *opt = momentum ? td_adamw_new((td_tensors){ p, 2 }, &(td_adamw_opts){ .lr = 1e-4 })
                                     : td_sgd_new((td_tensors){ p, 2 }, &(td_sgd_opts){ .lr = 1e-4 });
            td_train_state s = { .optims = &opt, .n_optims = 1, .extra = extra, .n_extra = 2 };
            if (resumed)
                assert_int_equal(td_train_state_load(&s, path_of("masters")), 0);
            for (int k = resumed ? 30 : 0; k < 70; k++) {
                TD_SCOPE();
                td_tensor *loss = td_add(td_cast(td_sum(p[0], NULL, 0, false), TD_F32), td_cast(td_sum(p[1], NULL, 0, false), TD_F32));
                assert_int_equal(td_backward(loss), 0);
                assert_int_equal(td_optim_step(opt), 0);
                if (k == 29) {
                    assert_int_equal(td_train_state_save(&s, path_of("masters")), 0);
                    td_safetensors *f = td_safetensors_open(path_of("masters"));
                    td_tensor *master = td_safetensors_get(f, "optim/0/#0/master");
                    assert_true(td_dtype_of(master) == TD_F32 && td_at(master, TD_SHAPE(3)) < 0.998 && td_at(master, TD_SHAPE(3)) > 0.996);
                    for (int i = 0; i < 2; i++)
                        memcpy(at_save[i], td_data(p[i]), sizeof at_save[i]);
                }
            }
            for (int i = 0; i < 2; i++)
                memcpy(last[resumed][i], td_data(p[i]), sizeof last[0][0]);
            td_optim_free(opt);
        }
        assert_memory_equal(last[0], last[1], sizeof last[0]);
        assert_memory_not_equal(last[0], at_save, sizeof at_save);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(other_programs_read_it), TEST(no_byte_is_unseen), TEST(what_does_not_fit), TEST(waiting_gradients_and_bad_arguments),
        TEST(the_order_of_buckets), TEST(killed_while_writing), TEST(masters_resume),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
