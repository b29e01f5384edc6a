/* bench/peers/ours.c: training steps of one model, timed; peer.py does the same in PyTorch. Started by bench/peers/run.
 *
 *     [tandem run -n 2] ours mlp|cnn|resnet|gpt|gpt2 [--steps N] [--warm N] [--capture] [--save FILE] [--no-dropout]
 *
 * --warm: steps before the timed ones, whose losses are printed. --capture: the first step is recorded, the others are replayed. --save: the
 * initial weights, for the peer to start from. Rank 0 prints one line of JSON: losses, ms of each timed step, medians of its parts (not
 * when captured), MB of memory (the most over the ranks: VmHWM; Pss after the last step, where pages that ranks share count by halves; the
 * library's pool), and ms to the end of the first step since TANDEM_BENCH_T0 (seconds of CLOCK_MONOTONIC, set by the parent).
 */
#include "../common.h"
#include "models.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POOL = 8, MAX_STEPS = 1000 };                   /* batches that take turns                                            */

typedef struct {
    const peers_model *model;
    td_module *net;
    td_ddp *ddp;                                       /* NULL on one rank                                                   */
    td_optim *opt;
    td_graph *graph;
    bool capture;
    double part[4];                                    /* of the last step, ms: forward, backward, exposed, optimizer          */
} bench;

/* MB from a line "Name:   123 kB" of a file in /proc/self */
static double mb(const char *path, const char *name)
{
    char line[256];
    double kb = 0;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name)))
            kb = atof(line + strlen(name));
    if (f)
        fclose(f);
    return kb * 1024 / 1e6;
}

static td_tensor *train(td_tensors in, void *user)
{
    bench *b = user;
    double t0 = now();
    td_tensor *loss = b->model->loss(b->net, in.list[0], in.list[1]);
    double t1 = now();
    td_backward(loss);
    double t2 = now();
    td_optim_step(b->opt);
    double t3 = now();
    b->part[0] = (t1 - t0) * 1e3, b->part[1] = (t2 - t1) * 1e3, b->part[3] = (t3 - t2) * 1e3;
    return loss;
}

static td_tensor *step(bench *b, td_tensors in)
{
    if (!b->capture)
        return train(in, b);
    if (b->graph)
        return td_replay(b->graph, in);
    b->graph = td_capture(train, b, in, NULL);
    return td_graph_result(b->graph);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        { "steps", required_argument, NULL, 's' }, { "warm", required_argument, NULL, 'w' },   { "capture", no_argument, NULL, 'c' },
        { "save", required_argument, NULL, 'S' },  { "no-dropout", no_argument, NULL, 'd' },   { NULL, 0, NULL, 0 },
    };
    const char *save = NULL;
    int steps = 20, warm = 5;
    bool dropout = true;
    bench b = { 0 };
    td_init(&argc, &argv);
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 's': steps = atoi(optarg); break;
        case 'w': warm = atoi(optarg); break;
        case 'c': b.capture = true; break;
        case 'S': save = optarg; break;
        case 'd': dropout = false; break;
        default: return 2;
        }
    }
    b.model = optind < argc ? peers_model_find(argv[optind]) : NULL;
    if (!b.model || steps < 0 || warm < 1 || steps + warm > MAX_STEPS) {
        fprintf(stderr, "ours: usage: ours mlp|cnn|resnet|gpt|gpt2 [--steps N] [--warm 1…] [--capture] [--save FILE] [--no-dropout], at most %d steps\n", MAX_STEPS);
        return 2;
    }
    int rank = td_rank(td_world()), ranks = td_size(td_world());
    td_seed(1);
    b.net = b.model->build();
    td_train(b.net, dropout);
    if (save && rank == 0)
        td_save(b.net, save);
    b.ddp = ranks > 1 ? td_ddp_new(b.net, NULL) : NULL;
    b.opt = peers_optim(b.model, b.net);
    td_tensor *pool[POOL][2];
    for (int i = 0; i < POOL; i++) {
        TD_SCOPE();
        peers_batch(b.model, (int64_t)(i * ranks + rank) * b.model->batch, &pool[i][0], &pool[i][1]);
        td_keep(pool[i][0]);
        td_keep(pool[i][1]);
    }

    static double ms[MAX_STEPS], part[4][MAX_STEPS], loss[MAX_STEPS];
    double first = 0;
    for (int i = 0; i < warm + steps && !td_error_pending(); i++) {
        TD_SCOPE();
        double since = now();
        td_tensor *result = step(&b, (td_tensors){ pool[i % POOL], 2 });
        if (i == 0)
            first = now();
        if (i < warm) {
            loss[i] = td_item(result);
            continue;
        }
        ms[i - warm] = (now() - since) * 1e3;
        b.part[2] = b.ddp ? td_ddp_last_step(b.ddp).exposed_ms : 0;
        for (int k = 0; k < 4; k++)
            part[k][i - warm] = b.part[k];
    }
    {
        TD_SCOPE();
        const double mine[2] = { mb("/proc/self/status", "VmHWM:"), mb("/proc/self/smaps_rollup", "Pss:") };
        td_tensor *most = td_from(mine, TD_SHAPE(2), TD_F64);
        td_all_reduce(td_world(), most, TD_MAX);
        const char *t0 = getenv("TANDEM_BENCH_T0"), *names[4] = { "forward", "backward", "exposed", "optimizer" };
        if (rank == 0 && !td_error_pending()) {
            printf("{\"losses\": [");
            for (int i = 0; i < warm; i++)
                printf("%s%.9g", i ? ", " : "", loss[i]);
            printf("], \"ms\": [");
            for (int i = 0; i < steps; i++)
                printf("%s%.4f", i ? ", " : "", ms[i]);
            printf("], \"parts\": {");
            for (int k = 0; k < 4; k++)
                if (!b.capture || k == 2)
                    printf("%s\"%s\": %.4f", k && !b.capture ? ", " : "", names[k], median(part[k], steps));
            printf("}, \"hwm_mb\": %.1f, \"pss_mb\": %.1f, \"pool_mb\": %.1f, \"first_ms\": %.2f}\n", td_at(most, TD_SHAPE(0)), td_at(most, TD_SHAPE(1)),
                   (double)td_memory().peak_bytes / 1e6, t0 ? (first - atof(t0)) * 1e3 : -1.0);
        }
    }
    td_graph_free(b.graph);
    for (int i = 0; i < POOL; i++) {
        td_release(pool[i][0]);
        td_release(pool[i][1]);
    }
    return td_finish();
}
