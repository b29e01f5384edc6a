/* tests/ddp/ddp_scaler.c: dynamic loss scaling under td_ddp: an Inf on one rank only makes every rank leave the step out and halve its scale;
 * scales and weights stay equal, and a clean run equals one process with the whole batch. Started on 2 or 3 ranks by tandem run; TAP on
 * rank 0's standard output.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition, name) expect_((condition), #condition, name, __LINE__)

enum { IN = 6, OUT = 3, STEPS = 10 };

static td_module *net_new(void)
{
    return td_nn_sequential(td_nn_linear(IN, 16, NULL), td_nn_tanh(), td_nn_linear(16, OUT, NULL));
}

/* One step on rows low to high of the step's batch; bad: one of the inputs is Inf. Returns the norm that clipping saw. */
static double train(td_module *m, td_optim *opt, td_scaler *scaler, int step, int64_t low, int64_t high, bool bad, td_dtype dtype)
{
    TD_SCOPE();
    const int64_t rows = 8 * size;
    td_tensor *x = td_narrow(td_randn(TD_SHAPE(rows, IN), 5, (uint64_t)step), 0, low, high - low), *loss;
    td_tensor *y = td_narrow(td_randn(TD_SHAPE(rows, OUT), 6, (uint64_t)step), 0, low, high - low);
    if (bad)
        x = td_scale(x, INFINITY);
    {
        TD_AUTOCAST(dtype);
        loss = td_mse(td_forward(m, x), y);
    }
    td_backward(td_scaler_scale(scaler, loss));
    double norm = NAN;
    if (step % 2) {                                             /* every other step looks before it steps                      */
        td_scaler_unscale(scaler, opt);
        norm = td_clip_grad_norm(opt, 0.5);
    }
    td_scaler_step(scaler, opt);
    td_scaler_update(scaler);
    return norm;
}

static double distance(td_module *a, td_module *b)
{
    td_tensors p = td_parameters(a), q = td_parameters(b);
    double worst = 0, most = 0;
    for (size_t i = 0; i < p.n; i++) {
        const float *u = td_data(p.list[i]), *v = td_data(q.list[i]);
        for (int64_t k = 0; k < td_numel(p.list[i]); k++) {
            worst = fmax(worst, isfinite(u[k]) ? fabs((double)u[k] - v[k]) : INFINITY);
            most = fmax(most, fabs(v[k]));
        }
    }
    return worst / most;
}

static bool same_everywhere(const void *data, size_t bytes)
{
    TD_SCOPE();
    td_tensor *mine = td_from(data, TD_SHAPE((int64_t)bytes), TD_U8), *first = td_scale(td_cast(mine, TD_I32), 1);
    td_tensor *own = td_cast(mine, TD_I32);
    td_broadcast(td_world(), first, 0);
    return memcmp(td_data(first), td_data(own), bytes * sizeof(int32_t)) == 0;
}

static bool same_weights(td_module *m)
{
    td_tensors p = td_parameters(m);
    bool same = true;
    for (size_t i = 0; i < p.n; i++)
        same &= same_everywhere(td_data(p.list[i]), (size_t)td_numel(p.list[i]) * sizeof(float));
    return same;
}

/* bad_step, bad_rank: where the Inf is; bad_step -1: nowhere. The whole-batch process sees it as an Inf in its batch. */
static void one_case(const char *name, int bad_step, int bad_rank, td_dtype dtype, double tolerance)
{
    td_module *whole = net_new(), *replica = net_new();
    td_tensors from = td_parameters(whole), to = td_parameters(replica);
    for (size_t i = 0; i < to.n; i++)
        td_assign(to.list[i], from.list[i]);
    td_optim *a = td_sgd_new(td_parameters(whole), &(td_sgd_opts){ .lr = 0.1, .momentum = 0.9 });
    td_ddp *ddp = td_ddp_new(replica, NULL);
    td_optim *b = td_sgd_new(td_parameters(replica), &(td_sgd_opts){ .lr = 0.1, .momentum = 0.9 });
    td_scaler *sa = td_scaler_new(&(td_scaler_opts){ .init_scale = 1024, .growth_interval = 4 });
    td_scaler *sb = td_scaler_new(&(td_scaler_opts){ .init_scale = 1024, .growth_interval = 4 });
    bool norms = true, scales = true;
    for (int step = 0; step < STEPS; step++) {
        double na = train(whole, a, sa, step, 0, 8 * size, step == bad_step, dtype);
        double nb = train(replica, b, sb, step, 8 * rank, 8 * rank + 8, step == bad_step && rank == bad_rank, dtype);
        norms &= step % 2 == 0 || (isfinite(na) ? fabs(na - nb) <= (tolerance + 1e-6) * na : !isfinite(nb));
        scales &= td_scaler_get(sa) == td_scaler_get(sb) && td_scaler_growth(sa) == td_scaler_growth(sb);
    }
    double scale = td_scaler_get(sb);
    EXPECT(norms, name);
    EXPECT(scales, name);
    EXPECT(same_everywhere(&scale, sizeof scale), name);
    EXPECT(td_optim_steps(b) == STEPS - (bad_step >= 0), name);
    EXPECT(distance(replica, whole) < tolerance, name);
    EXPECT(same_weights(replica), name);
    td_scaler_free(sa);
    td_scaler_free(sb);
    td_optim_free(b);
    td_ddp_free(ddp);
    td_optim_free(a);
    td_module_free(replica);
    td_module_free(whole);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    rank = td_rank(td_world()), size = td_size(td_world());
    if (rank == 0)
        printf("TAP version 13\n");
    one_case("no Inf", -1, 0, TD_F32, 1e-5);
    one_case("Inf on the last rank, unscaled by the step", 4, size - 1, TD_F32, 1e-5);
    one_case("Inf on rank 0, unscaled before clipping", 5, 0, TD_F32, 1e-5);
    one_case("Inf under autocast to f16", 3, size - 1, TD_F16, 0.01);
    if (rank == 0)
        printf("1..%d\n", tests);
    return td_finish() || failures;
}
