/* tests/job/state_loop.c STATE RESULT MS: the training loop of tandem/job.h with steps of MS milliseconds, for state.sh, which sends it signals. Says where
 * it begins and ends; writes the weights to RESULT when it has come to its end. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <tandem.h>

enum { ROWS = 120, IN = 6, CLASSES = 3 };

static int read_row(void *user, int64_t row, void *const *into)
{
    (void)user;
    for (int i = 0; i < IN; i++)
        ((float *)into[0])[i] = sinf((float)(row * IN + i));
    *(int64_t *)into[1] = row * row % CLASSES;
    return 0;
}

static void say(const char *what, int64_t step)
{
    printf("%s %lld rank %d pid %d\n", what, (long long)step, td_rank(td_world()), (int)getpid());
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    td_init(NULL, NULL);
    td_seed(7);
    td_module *net = td_nn_sequential(td_nn_linear(IN, 16, NULL), td_nn_gelu(), td_nn_dropout(0.2), td_nn_linear(16, CLASSES, NULL));
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 0.01 });
    td_field field[2] = { { TD_SHAPE(IN), TD_F32 }, { TD_SCALAR, TD_I64 } };
    td_dataset *d = td_dataset_new(&(td_dataset_source){ .rows = ROWS, .field = field, .n_fields = 2, .read = read_row }, NULL);
    td_loader *data = td_loader_new(d, &(td_loader_opts){ .batch = 4, .shuffle = true });

    td_train_state all = { .model = net, .optims = &opt, .n_optims = 1, .loader = data, .ddp = ddp };
    td_job_state *job = td_job_state_open(&all, argv[1], NULL);
    say(td_job_state_resumed(job) ? "resumed" : "began", all.step);
    const long ms = atol(argv[3]);
    for (int64_t epoch = td_loader_epoch(data); epoch < 40 && !td_job_state_ending(job); epoch++) {
        td_batch b;
        while (td_job_state_step(job) && td_loader_next(data, &b)) {
            TD_SCOPE();
            td_backward(td_cross_entropy(td_forward(net, b.x), b.y, NULL));
            td_optim_step(opt);
            all.step++;
            nanosleep(&(struct timespec){ .tv_nsec = ms * 1000000 }, NULL);
        }
    }
    say(td_job_state_ending(job) ? "stopped" : "done", all.step);
    if (!td_job_state_ending(job) && td_rank(td_world()) == 0)
        td_save(net, argv[2]);
    return td_finish();
}
