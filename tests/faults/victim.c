/* tests/faults/victim.c: a training job in which one rank does something wrong at a given moment.
 *
 *     victim KIND RANK STEP MICROSECONDS STAMP_FILE
 *
 * At step STEP, after MICROSECONDS more, rank RANK writes CLOCK_MONOTONIC to STAMP_FILE and then: kill (SIGKILL to itself, from a second
 * thread, wherever the first is), stop (SIGSTOP likewise), return (from main, without td_finish), finish (td_finish early), exit3 (exit(3)), kind, dtype,
 * count, order (another collective than the other ranks). The others train on until they are told.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <tandem.h>

static const char *kind, *stamp_file;
static long delay_us;

static void stamp(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    FILE *f = fopen(stamp_file, "w");
    fprintf(f, "%ld.%09ld\n", (long)t.tv_sec, t.tv_nsec);
    fclose(f);
}

static void *strike(void *unused)
{
    (void)unused;
    usleep((useconds_t)delay_us);
    stamp();
    kill(getpid(), strcmp(kind, "stop") ? SIGKILL : SIGSTOP);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    kind = argv[1];
    int guilty = atoi(argv[2]), at = atoi(argv[3]);
    delay_us = atol(argv[4]);
    stamp_file = argv[5];
    td_init(&argc, &argv);
    bool me = td_rank(td_world()) == guilty;
    td_module *net = td_nn_sequential(td_nn_linear(32, 64, NULL), td_nn_relu(), td_nn_linear(64, 64, NULL), td_nn_relu(), td_nn_linear(64, 4, NULL));
    td_ddp_new(net, &(td_ddp_opts){ .first_bucket_bytes = 1000, .bucket_bytes = 8000 });
    td_optim *opt = td_sgd_new(td_parameters(net), NULL);
    td_tensor *a = td_zeros(TD_SHAPE(100), TD_F32), *b = td_zeros(TD_SHAPE(200), TD_F32), *c = td_zeros(TD_SHAPE(100), TD_F64);

    for (int step = 0; step < 1000000; step++) {
        TD_SCOPE();
        if (me && step == at) {
            pthread_t thread;
            if (!strcmp(kind, "kill") || !strcmp(kind, "stop")) {
                pthread_create(&thread, NULL, strike, NULL);
            } else {
                usleep((useconds_t)delay_us);
                stamp();
            }
            if (!strcmp(kind, "return"))
                return 0;
            if (!strcmp(kind, "finish"))
                return td_finish();
            if (!strcmp(kind, "exit3"))
                exit(3);
            if (!strcmp(kind, "kind"))
                td_broadcast(td_world(), a, 0);
            if (!strcmp(kind, "dtype"))
                td_all_reduce(td_world(), c, TD_SUM);
            if (!strcmp(kind, "count"))
                td_all_reduce(td_world(), b, TD_SUM);
            if (!strcmp(kind, "order"))
                td_barrier(td_world());
        }
        td_all_reduce(td_world(), a, TD_SUM);
        td_backward(td_sum(td_forward(net, td_randn(TD_SHAPE(16, 32), 1, (uint64_t)step)), NULL, 0, false));
        td_optim_step(opt);
        td_barrier(td_world());
    }
    return td_finish();
}
