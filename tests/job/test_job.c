/* td_init and td_finish as a program sees them, in processes of their own, through libtandem.so: a world of one, two ranks by our
 * launcher's variables, jobs in turn, threads, wrong variables, the exit status, and the black box's life. */
#include <dirent.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "job_test.h"

static int files(void)
{
    DIR *d = opendir(job_folder);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

static int sum_of_ranks(void)
{
    td_tensor *x = td_full(TD_SHAPE(10), TD_F32, td_rank(td_world()) + 1);
    int n = td_size(td_world());
    EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0 && td_at(x, TD_SHAPE(9)) == n * (n + 1) / 2);
    return 0;
}

static int read_pair(void *user, int64_t row, void *const *into)
{
    (void)user;
    ((float *)into[0])[0] = ((float *)into[0])[1] = (float)row;
    return 0;
}

static int before_and_after(void)
{
    static const td_field pair = { { 1, { 2 } }, TD_F32 };
    EXPECT(td_size(td_world()) == 1 && !strcmp(td_comm_backend_name(td_world()), "self"));
    sum_of_ranks();                            /* works without td_init */
    for (int i = 0; i < 3; i++) {
        EXPECT(td_init(NULL, NULL) == 0);
        sum_of_ranks();
        td_wait(td_all_reduce_start(td_world(), td_zeros(TD_SHAPE(5000), TD_F64), TD_MEAN));
        td_loader *data = td_loader_new(td_dataset_new(&(td_dataset_source){ .rows = 6, .field = &pair, .n_fields = 1, .read = read_pair }, NULL), NULL);
        td_batch b;
        EXPECT(td_loader_next(data, &b));
        td_module *net = td_nn_linear(2, 3, NULL);
        td_sgd_new(td_parameters(net), NULL);  /* all of it is left to td_finish */
        EXPECT(td_finish() == 0);
        EXPECT(td_memory().live_tensors == 0 && td_memory().live_bytes == 0);
    }
    return 0;
}

static void alone(void **state)
{
    (void)state;
    assert_int_equal(run(1, before_and_after), 0);
    assert_int_equal(files(), 0);
}

static int jobs(void)
{
    for (int i = 0; i < 3; i++) {
        EXPECT(td_init(NULL, NULL) == 0);
        EXPECT(td_size(td_world()) == 3 && !strcmp(td_comm_backend_name(td_world()), "shm"));
        sum_of_ranks();
        td_module *net = td_nn_linear(2, 3, NULL);
        td_ddp_new(net, NULL);
        td_optim *opt = td_sgd_new(td_parameters(net), NULL);
        td_backward(td_sum(td_forward(net, td_ones(TD_SHAPE(4, 2), TD_F32)), NULL, 0, false));
        td_optim_step(opt);
        td_all_reduce_start(td_world(), td_zeros(TD_SHAPE(100000), TD_F32), TD_SUM);   /* never waited for */
        EXPECT(td_finish() == 0);
        EXPECT(td_memory().live_tensors == 0 && td_memory().live_bytes == 0);
    }
    return 0;
}

static void several(void **state)
{
    (void)state;
    assert_int_equal(run(3, jobs), 0);
    assert_int_equal(files(), 0);
}

static int twice(void)
{
    td_errors(TD_ERRORS_RETURN);
    EXPECT(td_init(NULL, NULL) == 0);
    EXPECT(td_init(NULL, NULL) == TD_ERR_STATE && strstr(td_error_message(), "running already"));
    EXPECT(td_finish() == 1);                  /* there was an error */
    return 0;
}

static int wrong_transport(void)
{
    td_errors(TD_ERRORS_RETURN);
    setenv("TANDEM_COMM", "smoke", 1);
    EXPECT(td_init(NULL, NULL) == TD_ERR_ARGUMENT && strstr(td_error_message(), "\"smoke\"; expected auto, shm, hier, mpi, store or nccl"));
    td_error_clear();
    setenv("TANDEM_COMM", "shm", 1);
    EXPECT(td_init(NULL, NULL) == 0);
    return td_finish() == 1 ? 0 : 98;
}

static int no_plugin(void)
{
    td_errors(TD_ERRORS_RETURN);
    setenv("TANDEM_COMM", "mpi", 1);
    setenv("TANDEM_PLUGIN_DIR", "/nonexistent", 1);
    EXPECT(td_init(NULL, NULL) == TD_ERR_UNSUPPORTED && strstr(td_error_message(), "need the MPI plug-in: "));
    EXPECT(td_size(td_world()) == 1);
    return 0;
}

static int not_mpi(void)
{
    td_errors(TD_ERRORS_RETURN);
    setenv("TANDEM_RANK", "7", 1);
    EXPECT(td_init(NULL, NULL) == TD_ERR_LAUNCH);
    return 0;
}

static void refusals(void **state)
{
    (void)state;
    assert_int_equal(run(1, twice), 0);
    assert_int_equal(run(2, wrong_transport), 0);
    assert_int_equal(run(2, no_plugin), 0);
    assert_int_equal(run(2, not_mpi), 0);
}

static int threads_given(void)
{
    setenv("TANDEM_THREADS", "3", 1);
    EXPECT(td_init(NULL, NULL) == 0);
    EXPECT(omp_get_max_threads() == 3);
    return td_finish();
}

static int threads_shared(void)
{
    unsetenv("OMP_NUM_THREADS");
    EXPECT(td_init(NULL, NULL) == 0);
    int share = (int)sysconf(_SC_NPROCESSORS_ONLN) / 2;
    EXPECT(omp_get_max_threads() == (share > 0 ? share : 1));
    return td_finish();
}

static void threads(void **state)
{
    (void)state;
    assert_int_equal(run(1, threads_given), 0);
    assert_int_equal(run(2, threads_shared), 0);
}

/* A rank's own error ends it with one sentence, and the other one too, long before any deadline. */
static int one_fails(void)
{
    td_init(NULL, NULL);
    freopen("/dev/null", "w", stderr);
    td_tensor *x = td_zeros(TD_SHAPE(3), TD_F32);
    if (td_rank(td_world()) == 1)
        td_add(x, td_zeros(TD_SHAPE(4), TD_F32));
    td_all_reduce(td_world(), x, TD_SUM);
    return 0;
}

static void errors(void **state)
{
    (void)state;
    int before = files();
    assert_int_equal(run(2, one_fails), 128 + 6);
    assert_int_equal(files(), before + 2);              /* both job_folder are kept */
}

static int begin(void **state)
{
    (void)state;
    return mkdtemp(job_folder) ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -rf %s", job_folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alone), cmocka_unit_test(several), cmocka_unit_test(refusals), cmocka_unit_test(threads), cmocka_unit_test(errors),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
