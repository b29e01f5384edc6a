/* bench/hooks.c: what compressed gradients cost in accuracy, and what they save: a small network on Fashion-MNIST, once with each hook of tandem/ddp_hook.h.
 *
 *     tandem run -n 2 ./hooks [--epochs 3] [--steps N] [--within POINTS]
 *
 * Rank 0 prints a Markdown table. --within: exit status 1 if a hook's accuracy stays that many percentage points or more below the plain all-reduce's.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include "fashion.h"

static int plain(td_ddp *ddp) { return td_ddp_set_hook(ddp, NULL, NULL); }
static int top_1(td_ddp *ddp) { return td_ddp_top_k_hook(ddp, NULL); }
static int top_10(td_ddp *ddp) { return td_ddp_top_k_hook(ddp, &(td_top_k_opts){ .fraction = 0.1 }); }
static int power_1(td_ddp *ddp) { return td_ddp_power_sgd_hook(ddp, &(td_power_sgd_opts){ .rank = 1 }); }
static int power_4(td_ddp *ddp) { return td_ddp_power_sgd_hook(ddp, NULL); }

static const struct { const char *name; int (*set)(td_ddp *ddp); } way[] = {
    { "all-reduce in f32", plain },      { "bf16", td_ddp_bf16_hook },         { "top-k, 10 %", top_10 },
    { "top-k, 1 %", top_1 },             { "PowerSGD, rank 4", power_4 },      { "PowerSGD, rank 1", power_1 },
};
enum { WAYS = sizeof way / sizeof *way };

typedef struct { double accuracy, loss; int64_t bytes, steps; } result;

static result train(int (*set)(td_ddp *ddp), int epochs, int64_t most)
{
    result r = { 0 };
    td_seed(1);
    td_module *net = td_nn_sequential(
        td_nn_conv2d(1, 16, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),
        td_nn_conv2d(16, 32, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),
        td_nn_flatten(), td_nn_linear(32 * 7 * 7, 128, NULL), td_nn_relu(), td_nn_linear(128, 10, NULL));
    td_ddp *ddp = td_ddp_new(net, &(td_ddp_opts){ .bucket_bytes = 256 << 10, .first_bucket_bytes = 64 << 10 });
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.05, .momentum = 0.9 });
    td_loader *data = fashion_open(FASHION_FOLDER, "train", true, 0), *test = fashion_open(FASHION_FOLDER, "t10k", false, 0);
    set(ddp);
    const int64_t total = most && most < epochs * td_loader_batches(data) ? most : epochs * td_loader_batches(data);
    double late = 0;
    td_batch b;
    while (r.steps < total && !td_error_pending()) {
        if (!td_loader_next(data, &b))
            continue;
        TD_SCOPE();
        td_optim_set_lr(opt, -1, 0.05 * td_schedule_cosine(r.steps++, 50, total, 0.02));
        td_tensor *loss = td_cross_entropy(td_forward(net, b.x), b.y, NULL);
        td_backward(loss);
        td_optim_step(opt);
        r.bytes = td_ddp_last_step(ddp).bytes;         /* the last step's: behind PowerSGD's first ten */
        late += r.steps > total - 50 ? td_item(loss) / (double)(total < 50 ? total : 50) : 0;
    }
    r.loss = late;
    r.accuracy = fashion_accuracy(net, test);
    td_ddp_free(ddp);
    td_optim_free(opt);
    td_loader_free(data);
    td_loader_free(test);
    td_module_free(net);
    return r;
}

int main(int argc, char **argv)
{
    static const struct option known[] = { { "epochs", 1, NULL, 'e' }, { "steps", 1, NULL, 's' }, { "within", 1, NULL, 'w' }, { 0 } };
    int epochs = 3, bad = 0;
    int64_t steps = 0;
    double within = 0;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;)
        switch (c) {
        case 'e': epochs = atoi(optarg); break;
        case 's': steps = atoll(optarg); break;
        case 'w': within = atof(optarg); break;
        default: return 2;
        }
    td_init(NULL, NULL);
    const bool say = td_rank(td_world()) == 0;
    double first = 0;
    int64_t most = 0;
    if (say)
        printf("| what crosses | bytes a step and rank | of f32's | loss, last 50 steps (rank 0) | test accuracy |\n|---|---|---|---|---|\n");
    for (int i = 0; i < WAYS && !td_error_pending(); i++) {
        result r = train(way[i].set, epochs, steps);
        first = i ? first : r.accuracy;
        most = i ? most : r.bytes;
        bad |= within > 0 && !(100 * (first - r.accuracy) < within);
        if (say)
            printf("| %s | %lld | %.1f %% | %.4f | %.2f %% |\n", way[i].name, (long long)r.bytes, 100.0 * (double)r.bytes / (double)(most ? most : 1), r.loss, 100 * r.accuracy);
        fflush(stdout);
    }
    int status = td_finish();
    return status ? status : bad;
}
