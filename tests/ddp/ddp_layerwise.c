/* tests/ddp/ddp_layerwise.c: optimizers that need norms of single parameters (LAMB, LARS) give under td_ddp the weights of one process
 * that sees the whole batch, however buckets cut and reorder the parameters; averages of weights follow. Started on 2 or 3 ranks by
 * tandem run; TAP on rank 0's standard output.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition, name) expect_((condition), #condition, name, __LINE__)

enum { STEPS = 12, IN = 6, OUT = 3 };

static td_module *net_new(void)
{
    td_module *m = td_nn_sequential(td_nn_linear(IN, 16, NULL), td_nn_tanh(), td_nn_linear(16, 9, NULL), td_nn_tanh(), td_nn_linear(9, OUT, NULL));
    td_module_to(m, TD_F64);
    return m;
}

static td_optim *lamb(td_tensors p)
{
    return td_lamb_new(p, &(td_lamb_opts){ .lr = 0.02f });
}

static td_optim *lars(td_tensors p)
{
    return td_lars_new(p, &(td_lars_opts){ .lr = 1, .trust = 0.02f });
}

/* Rows low to high of the batch of a step: all of them in one process, its share on a rank (shares differ by rows). */
static void train(td_module *m, td_optim *opt, td_ema *ema, int step, int64_t low, int64_t high)
{
    TD_SCOPE();
    const int64_t rows = 8 * size;
    td_tensor *x = td_cast(td_randn(TD_SHAPE(rows, IN), 5, (uint64_t)step), TD_F64);
    td_tensor *y = td_cast(td_randn(TD_SHAPE(rows, OUT), 6, (uint64_t)step), TD_F64);
    td_backward(td_mse(td_forward(m, td_narrow(x, 0, low, high - low)), td_narrow(y, 0, low, high - low)));
    td_optim_step(opt);
    td_ema_update(ema);
}

/* The largest difference of two models' weights over the largest weight. */
static double distance(td_module *a, td_module *b)
{
    td_tensors p = td_parameters(a), q = td_parameters(b);
    double worst = 0, most = 0;
    for (size_t i = 0; i < p.n; i++) {
        const double *u = td_data(p.list[i]), *v = td_data(q.list[i]);
        for (int64_t k = 0; k < td_numel(p.list[i]); k++) {
            worst = fmax(worst, fabs(u[k] - v[k]));
            most = fmax(most, fabs(v[k]));
        }
    }
    return worst / most;
}

static bool same_on_all_ranks(td_module *m)
{
    TD_SCOPE();
    td_tensors p = td_parameters(m);
    bool same = true;
    for (size_t i = 0; i < p.n; i++) {
        td_tensor *w = td_empty(td_shape_of(p.list[i]), TD_F64);
        td_assign(w, p.list[i]);
        td_broadcast(td_world(), w, 0);
        same &= memcmp(td_data(w), td_data(p.list[i]), (size_t)td_numel(w) * sizeof(double)) == 0;
    }
    return same;
}

static void as_one_process(const char *name, td_optim *(*make)(td_tensors))
{
    td_module *one = net_new(), *many = net_new(), *start = net_new();
    td_tensors p = td_parameters(one), q = td_parameters(many), r = td_parameters(start);
    td_ddp *d = td_ddp_new(many, &(td_ddp_opts){ .first_bucket_bytes = 256, .bucket_bytes = 700 });
    for (size_t i = 0; i < p.n; i++) {
        td_assign(p.list[i], q.list[i]);
        td_assign(r.list[i], q.list[i]);
    }
    td_optim *alone = make(p), *together = make(q);
    td_ema *average = td_ema_new(p, 0.75), *averages = td_ema_new(q, 0.75);
    for (int s = 0; s < STEPS; s++) {
        int64_t low = rank == 0 ? 0 : 8 * rank + 1, high = rank == size - 1 ? 8 * size : 8 * rank + 9;
        train(one, alone, average, s, 0, 8 * size);
        train(many, together, averages, s, low, high);
    }
    EXPECT(td_error_pending() == 0, name);
    EXPECT(distance(start, one) > 0.05, name);
    EXPECT(distance(many, one) < 1e-11, name);
    EXPECT(same_on_all_ranks(many), name);
    td_ema_swap(average);
    td_ema_swap(averages);
    EXPECT(distance(many, one) < 1e-11, name);
    EXPECT(same_on_all_ranks(many), name);
    td_ema_free(average);
    td_ema_free(averages);
    td_ddp_free(d);
    td_optim_free(alone);
    td_optim_free(together);
    td_module_free(one);
    td_module_free(many);
    td_module_free(start);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    rank = td_rank(td_world());
    size = td_size(td_world());
    as_one_process("LAMB", lamb);
    as_one_process("LARS", lars);
    EXPECT(td_memory().live_tensors == 0, "end");
    if (rank == 0)
        printf("1..%d\n", tests);
    return td_finish() != 0 || failures != 0;
}
