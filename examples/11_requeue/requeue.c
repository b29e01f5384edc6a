/* 11_requeue: a training job that can be interrupted: asked to end (SIGTERM, SIGUSR1) it saves its state and ends with status 75; started again it goes
 * on, and ends with the same bits as one that was never interrupted.
 *
 *     tandem run -n 2 ./requeue --state run.state --weights end.safetensors
 *     sbatch cluster/slurm/requeue.sbatch ./requeue --state run.state               the script puts the job back into the queue
 *
 * Options: --data DIR, --state FILE, --weights FILE (at the end), --steps N, --batch N (over all ranks), --pause MS (per step: to watch it),
 * --capture (the step is recorded once and replayed: the same bits).
 */
#include "../captured.h"
#include "../numbers.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct { const char *data, *state, *weights; int64_t steps, batch, pause_ms; bool capture; } options;

static options parse(int argc, char **argv)
{
    options o = { .data = "/usr/share/datasets/fashion-mnist", .state = "requeue.state", .steps = 1000, .batch = 64 };
    static const struct option known[] = {
        { "data", required_argument, NULL, 'd' },  { "state", required_argument, NULL, 's' }, { "weights", required_argument, NULL, 'w' },
        { "steps", required_argument, NULL, 'n' }, { "batch", required_argument, NULL, 'b' }, { "pause", required_argument, NULL, 'p' },
        { "capture", no_argument, NULL, 'c' },     { NULL, 0, NULL, 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'd': o.data = optarg; break;
        case 's': o.state = optarg; break;
        case 'w': o.weights = optarg; break;
        case 'n': o.steps = whole_number(optarg); break;
        case 'b': o.batch = whole_number(optarg); break;
        case 'c': o.capture = true; break;
        case 'p': o.pause_ms = whole_number(optarg); break;
        default: exit(2);
        }
    }
    return o;
}

typedef struct { td_module *net; td_optim *opt; } training;

static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss = td_cross_entropy(td_forward(t->net, in.list[0]), in.list[1], NULL);
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    options o = parse(argc, argv);
    const int ranks = td_size(td_world());
    if (o.batch < ranks || o.batch % ranks) {
        td_log0("requeue: --batch %lld cannot be divided among %d ranks", (long long)o.batch, ranks);
        td_finish();
        return 2;
    }
    td_module *net = td_nn_sequential(
        td_nn_conv2d(1, 8, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_batch_norm(8, NULL), td_nn_relu(), td_nn_max_pool2d(4, NULL),
        td_nn_flatten(), td_nn_linear(8 * 7 * 7, 64, NULL), td_nn_relu(), td_nn_dropout(0.1), td_nn_linear(64, 10, NULL));
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 2e-3f });
    char prefix[4096];
    snprintf(prefix, sizeof prefix, "%s/train", o.data);
    td_loader *data = td_loader_new(td_dataset_idx(prefix), &(td_loader_opts){ .batch = o.batch / ranks, .shuffle = true });

    /* everything that the next step depends on; `step` is this program's own counter */
    td_train_state all = { .model = net, .optims = &opt, .n_optims = 1, .loader = data, .ddp = ddp };
    td_job_state *job = td_job_state_open(&all, o.state, NULL);
    td_log0("steps %lld to %lld on %d ranks", (long long)all.step, (long long)o.steps, ranks);
    double loss_now = 0;
    captured one = { train_step, &(training){ net, opt }, .on = o.capture };
    while (all.step < o.steps && td_job_state_step(job)) {
        TD_SCOPE();
        td_batch b;
        if (!td_loader_next(data, &b)) {       /* the end of an epoch, or an error */
            if (td_error_pending())
                break;
            continue;
        }
        td_optim_set_lr(opt, -1, 2e-3 * td_schedule_cosine(all.step, 20, o.steps, 0.05));
        td_tensor *loss = captured_step(&one, (td_tensors){ (td_tensor *[]){ b.x, b.y }, 2 });
        all.step++;
        if (all.step % 100 == 0 || all.step == o.steps)
            loss_now = td_item(loss);
        if (o.pause_ms)
            nanosleep(&(struct timespec){ .tv_sec = o.pause_ms / 1000, .tv_nsec = o.pause_ms % 1000 * 1000000 }, NULL);
    }
    captured_end(&one);
    if (all.step >= o.steps && !td_error_pending()) {
        td_log0("step %lld: done, last loss %.4f", (long long)all.step, loss_now);
        if (o.weights && td_rank(td_world()) == 0)
            td_save(net, o.weights);
    }
    return td_finish();                        /* TD_EXIT_AGAIN, 75, when the loop has ended on request */
}
