/* bench/peers/accuracy.c: seconds until the CNN of models.h names 90 % of Fashion-MNIST's test pictures; accuracy.py does the same in PyTorch.
 *
 *     tandem run -n 2 accuracy [--seed N] [--target 0.9] [--data DIR] [--eager]
 *
 * 64 pictures a rank, SGD, the test four times an epoch, its time counted; the clock begins when data and model are ready. Rank 0 prints one
 * line of JSON. After 12 epochs without reaching the target "seconds" is -1.
 */
#include "../common.h"
#include "../fashion.h"
#include "models.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

enum { EPOCHS = 12, TESTS = 4 };

typedef struct { const peers_model *model; td_module *net; td_optim *opt; td_graph *graph; } training;

static td_tensor *train(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss = t->model->loss(t->net, in.list[0], in.list[1]);
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

/* A graph has the shapes that it was captured with: the last batch of an epoch is smaller, and is stepped as it comes. */
static void step(training *t, td_tensors in, bool captured)
{
    if (!captured)
        train(in, t);
    else if (t->graph)
        td_replay(t->graph, in);
    else
        t->graph = td_capture(train, t, in, NULL);
}

int main(int argc, char **argv)
{
    static const struct option known[] = { { "seed", required_argument, NULL, 's' }, { "target", required_argument, NULL, 't' },
                                           { "data", required_argument, NULL, 'd' }, { "eager", no_argument, NULL, 'e' }, { NULL, 0, NULL, 0 } };
    const char *folder = FASHION_FOLDER;
    double target = 0.9;
    uint64_t seed = 1;
    bool eager = false;
    td_init(&argc, &argv);
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 's': seed = (uint64_t)atoll(optarg); break;
        case 't': target = atof(optarg); break;
        case 'd': folder = optarg; break;
        case 'e': eager = true; break;
        default: return 2;
        }
    }
    td_seed(seed);
    training t = { .model = peers_model_find("cnn") };
    t.net = t.model->build();
    if (td_size(td_world()) > 1)
        td_ddp_new(t.net, NULL);
    t.opt = peers_optim(t.model, t.net);
    td_loader *data = fashion_open(folder, "train", true, seed), *test = fashion_open(folder, "t10k", false, seed);
    td_barrier(td_world());

    double since = now(), seconds = -1, reached = 0, testing = 0;
    int64_t steps = 0, batches = td_loader_batches(data), every = (batches + TESTS - 1) / TESTS;
    while (seconds < 0 && steps < EPOCHS * batches && !td_error_pending()) {
        td_batch b;
        if (!td_loader_next(data, &b))                 /* the end of an epoch, or an error */
            continue;
        TD_SCOPE();
        step(&t, (td_tensors){ (td_tensor *[]){ b.x, b.y }, 2 }, !eager && b.rows == t.model->batch);
        steps++;
        if (steps % batches % every && steps % batches)
            continue;
        double begun = now();
        reached = fashion_accuracy(t.net, test);
        testing += now() - begun;
        if (reached >= target)
            seconds = now() - since;
    }
    if (td_rank(td_world()) == 0)
        printf("{\"seconds\": %.3f, \"steps\": %lld, \"accuracy\": %.4f, \"testing_s\": %.3f}\n", seconds, (long long)steps, reached, testing);
    td_graph_free(t.graph);
    return td_finish();
}
