/* bench/one_pass.c: what it gains to sum gradients in the optimizer's step, in one pass over them, on one host (docs/design/ddp.md).
 *
 *     tandem run -n 2 bench/one_pass mlp [steps]           MLP 784-1024-1024-10, batch 64 a rank, SGD with momentum
 *     tandem run -n 2 bench/one_pass adamw [steps]         the same under AdamW
 *     tandem run -n 2 bench/one_pass gpt [steps]           GPT-2 124M, one row of 256 tokens a rank, AdamW
 *
 * Steps go one way and the other in turn, so that both see the same machine. Rank 0 prints medians in ms and the share by which a step is shorter, then
 * bytes: optimizer state, the process's share of resident memory at the end (what two ranks map counts half each) and the peak of what it has mapped.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <ddp_impl.h>
#include "common.h"
#include "../examples/05_gpt/model.h"

enum { MAX_STEPS = 400, WARM = 4 };
enum { STEP, BACKWARD, OPTIM, COMM, EXPOSED, PARTS };

/* MB of resident memory, each page divided by how many processes map it. */
static double proportional(void)
{
    char line[200];
    long kb = 0;
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Pss: %ld", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return (double)kb / 1e3;
}

int main(int argc, char **argv)
{
    const char *model = argc > 1 ? argv[1] : "mlp";
    const bool is_gpt = !strcmp(model, "gpt");
    int steps = argc > 2 ? atoi(argv[2]) : is_gpt ? 8 : 100;
    if (steps < 1 || steps > MAX_STEPS || (!is_gpt && strcmp(model, "mlp") && strcmp(model, "adamw"))) {
        fprintf(stderr, "one_pass: usage: one_pass mlp|adamw|gpt [1..%d]\n", MAX_STEPS);
        return 2;
    }
    td_init(&argc, &argv);
    gpt_opts opts = { 0 };
    gpt_preset("124M", &opts);
    gpt *g = is_gpt ? gpt_new(&opts) : NULL;
    td_module *net = is_gpt ? &g->base : td_nn_sequential(td_nn_linear(784, 1024, NULL), td_nn_relu(), td_nn_linear(1024, 1024, NULL), td_nn_relu(),
                                                          td_nn_linear(1024, 10, NULL));
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = strcmp(model, "mlp") ? td_adamw_new(td_parameters(net), NULL) : td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.02, .momentum = 0.9 });
    ddp->which.way = TD__WAY_IN_TURN;
    ddp->which.forced = true;

    static double part[2][PARTS][MAX_STEPS];
    int n[2] = { 0, 0 };
    for (int i = -WARM; i < 2 * steps; i++) {
        TD_SCOPE();
        const uint64_t row = (uint64_t)(1000 * i + td_rank(td_world()));
        td_tensor *ids = is_gpt ? td_randint(0, 50257, TD_SHAPE(1, 257), 5, row) : NULL;
        td_tensor *x = is_gpt ? td_narrow(ids, 1, 0, 256) : td_rand(TD_SHAPE(64, 784), 5, row), *y = is_gpt ? td_narrow(ids, 1, 1, 256)
                                                                                                            : td_randint(0, 10, TD_SHAPE(64), 6, row);
        const double t0 = now();
        td_tensor *loss = is_gpt ? gpt_loss(g, x, y) : td_cross_entropy(td_forward(net, x), y, NULL);
        const double t1 = now();
        td_backward(loss);
        const double t2 = now();
        td_optim_step(opt);
        const double t3 = now();
        const td_ddp_stats s = td_ddp_last_step(ddp);
        const int way = s.one_pass;
        if (i < 0 || n[way] == MAX_STEPS)
            continue;
        const double ms[PARTS] = { [STEP] = 1e3 * (t3 - t0), [BACKWARD] = 1e3 * (t2 - t1), [OPTIM] = 1e3 * (t3 - t2), [COMM] = s.comm_ms, [EXPOSED] = s.exposed_ms };
        for (int k = STEP; k < PARTS; k++)
            part[way][k][n[way]] = ms[k];
        n[way]++;
    }
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    const double resident = proportional();
    td_barrier(td_world());
    if (td_rank(td_world()) == 0) {
        double step[2];
        printf("| %s, %d ranks | step | backward | td_optim_step | comm_ms | exposed_ms |\n|---|---|---|---|---|---|\n", model, td_size(td_world()));
        for (int way = 0; way < 2; way++) {
            printf("| %s (%d steps) |", way ? "one pass" : "two passes", n[way]);
            for (int k = STEP; k < PARTS; k++)
                printf(" %.2f |", n[way] ? median(part[way][k], n[way]) : 0);
            step[way] = n[way] ? median(part[way][STEP], n[way]) : 0;
            printf("\n");
        }
        printf("\none pass / two passes: %.3f; optimizer state %.1f MB, resident share %.0f MB, peak resident %.0f MB a rank\n", step[1] / step[0],
               (double)td_optim_bytes(opt) / 1e6, resident, (double)use.ru_maxrss / 1e3);
    }
    return td_finish();
}
