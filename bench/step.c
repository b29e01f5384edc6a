/* bench/step.c: one training step, taken apart: data, forward, backward, exposed communication, optimizer.
 *
 *     tandem run -n 2 ./step mlp          MLP 784-1024-1024-10, batch 64 per rank, SGD with momentum
 *     ./step cnn --steps 60               conv 32, pool, conv 64, pool, linear 128, dropout, linear 10; batch 64 per rank
 *     tandem run -n 2 ./step first        the end of the first step, in ms since the launcher began (TANDEM_BENCH_T0, seconds of
 *                                         CLOCK_MONOTONIC, set by bench/run)
 *
 * Generated data. Rank 0 prints one row of a Markdown table: medians over the steps, ms; then, on standard error, in how many steps gradients were
 * summed by the optimizer's step, in one pass (measured in the first steps; TANDEM_ONE_PASS=0 or 1: see bench/one_pass).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <tandem.h>
#include "common.h"

enum { ROWS = 64, MAX_STEPS = 1000 };

static td_module *mlp(void)
{
    return td_nn_sequential(td_nn_linear(784, 1024, NULL), td_nn_relu(), td_nn_linear(1024, 1024, NULL), td_nn_relu(),
                            td_nn_linear(1024, 10, NULL));
}

static td_module *cnn(void)
{
    return td_nn_sequential(td_nn_conv2d(1, 32, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),
                            td_nn_conv2d(32, 64, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),
                            td_nn_flatten(), td_nn_linear(3136, 128, NULL), td_nn_relu(), td_nn_dropout(0.25), td_nn_linear(128, 10, NULL));
}

static int read_row(void *user, int64_t row, void *const *into)
{
    (void)user;
    float *x = into[0];
    for (int i = 0; i < 784; i++)
        x[i] = (float)((row * 31 + i * 17) % 251) / 251;
    *(int64_t *)into[1] = row % 10;
    return 0;
}

int main(int argc, char **argv)
{
    const char *model = argc > 1 ? argv[1] : "mlp";
    int steps = argc > 3 && !strcmp(argv[2], "--steps") ? atoi(argv[3]) : 100;
    bool first = !strcmp(model, "first"), images = !strcmp(model, "cnn");
    if (steps < 1 || steps > MAX_STEPS || (!first && !images && strcmp(model, "mlp"))) {
        fprintf(stderr, "step: usage: step mlp|cnn|first [--steps 1..%d]\n", MAX_STEPS);
        return 2;
    }
    td_init(&argc, &argv);
    td_module *net = images ? cnn() : first ? td_nn_sequential(td_nn_linear(784, 64, NULL), td_nn_relu(), td_nn_linear(64, 10, NULL)) : mlp();
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.02f, .momentum = 0.9f });
    td_field field[2] = { { images ? TD_SHAPE(1, 28, 28) : TD_SHAPE(784), TD_F32 }, { TD_SCALAR, TD_I64 } };
    td_dataset_source source = { .rows = (int64_t)ROWS * td_size(td_world()) * (MAX_STEPS + 20), .field = field, .n_fields = 2, .read = read_row };
    td_loader *data = td_loader_new(td_dataset_new(&source, NULL), &(td_loader_opts){ .batch = ROWS });

    static double part[6][MAX_STEPS];   /* step, data, forward, backward, exposed, optimizer */
    int warm = first ? 0 : 16, ones = 0;   /* the ways of td_ddp are tried in 13 steps                       */
    for (int i = -warm; i < (first ? 1 : steps); i++) {
        TD_SCOPE();
        double t0 = now();
        td_batch b;
        td_loader_next(data, &b);
        double t1 = now();
        td_tensor *loss = td_cross_entropy(td_forward(net, b.x), b.y, NULL);
        double t2 = now();
        td_backward(loss);
        double t3 = now();
        td_optim_step(opt);
        double t4 = now();
        if (i < 0)
            continue;
        const double exposed = td_ddp_last_step(ddp).exposed_ms;
        ones += td_ddp_last_step(ddp).one_pass;
        const double ms[6] = { (t4 - t0) * 1e3, (t1 - t0) * 1e3, (t2 - t1) * 1e3, (t3 - t2) * 1e3, exposed, (t4 - t3) * 1e3 };
        for (int k = 0; k < 6; k++)
            part[k][i] = ms[k];
    }
    if (td_rank(td_world()) == 0 && first) {
        const char *t0 = getenv("TANDEM_BENCH_T0");
        printf("%.1f\n", t0 ? (now() - atof(t0)) * 1e3 : -1.0);
    } else if (td_rank(td_world()) == 0) {
        struct rusage use;
        getrusage(RUSAGE_SELF, &use);
        td_memory_stats memory = td_memory();
        printf("| %s %dx%s |", model, td_size(td_world()), getenv("OMP_NUM_THREADS") ? getenv("OMP_NUM_THREADS") : "?");
        for (int k = 0; k < 6; k++)
            printf(" %.2f |", median(part[k], steps));
        printf(" %.0f | %.1f | %.0f |\n", ROWS * td_size(td_world()) / median(part[0], steps) * 1e3, (double)memory.peak_bytes / 1e6,
               (double)use.ru_maxrss / 1e3);
        if (td_size(td_world()) > 1)
            fprintf(stderr, "%s: %d of %d steps in one pass\n", model, ones, steps);
    }
    return td_finish();
}
