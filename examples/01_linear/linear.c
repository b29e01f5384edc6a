/* 01_linear: fit y = x W^T + b by gradient descent, on any number of ranks.
 *
 *     ./linear                        alone
 *     tandem run -n 2 ./linear        two ranks: the same weights
 *     ./linear 300 --capture          the same weights: the step is recorded once and replayed; --save FILE writes them
 *
 * The data is generated: a known W and b, and a little noise. After training, W must be close to the known one.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../captured.h"

enum { IN = 8, OUT = 3, ROWS = 64 };   /* rows per step, over all ranks */

typedef struct { td_module *net; td_optim *opt; } training;

static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss = td_mse(td_forward(t->net, in.list[0]), in.list[1]);
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    int steps = 300;
    const char *save = NULL;
    bool capture = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--capture"))
            capture = true;
        else if (!strcmp(argv[i], "--save") && i + 1 < argc)
            save = argv[++i];
        else
            steps = atoi(argv[i]);
    }
    int rank = td_rank(td_world()), size = td_size(td_world());

    td_module *net = td_nn_linear(IN, OUT, NULL);
    td_ddp_new(net, NULL);
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.1f, .momentum = 0.9f });
    captured step = { train_step, &(training){ net, opt }, .on = capture };

    td_tensor *truth = td_randn(TD_SHAPE(OUT, IN), 7, 0);
    double loss_now = 0;
    for (int i = 0; i < steps; i++) {
        TD_SCOPE();
        /* every rank makes the whole batch from the same numbers and takes its share of the rows */
        int64_t from = ROWS * rank / size, to = ROWS * (rank + 1) / size;
        td_tensor *x = td_randn(TD_SHAPE(ROWS, IN), 1, (uint64_t)i);
        td_tensor *noise = td_scale(td_randn(TD_SHAPE(ROWS, OUT), 2, (uint64_t)i), 0.01);
        td_tensor *y = td_add(td_shift(td_matmul(x, td_transpose(truth, 0, 1)), 0.5), noise);
        td_tensors in = { (td_tensor *[]){ td_narrow(x, 0, from, to - from), td_narrow(y, 0, from, to - from) }, 2 };
        loss_now = td_item(captured_step(&step, in));          /* read outside of the step */
    }
    captured_end(&step);
    if (save && rank == 0)
        td_save(net, save);

    TD_SCOPE();
    td_tensor *weight = td_parameter_get(net, "weight"), *bias = td_parameter_get(net, "bias");
    double worst = 0;
    for (int o = 0; o < OUT; o++) {
        for (int i = 0; i < IN; i++)
            worst = fmax(worst, fabs(td_at(weight, TD_SHAPE(o, i)) - td_at(truth, TD_SHAPE(o, i))));
        worst = fmax(worst, fabs(td_at(bias, TD_SHAPE(o)) - 0.5));
    }
    td_log0("after %d steps on %d rank%s: loss %.6f, largest error of a weight %.4f", steps, size, size > 1 ? "s" : "", loss_now, worst);
    int status = td_finish();
    return status ? status : worst < 0.02 ? 0 : 1;
}
