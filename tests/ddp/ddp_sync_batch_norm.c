/* tests/ddp/ddp_sync_batch_norm.c: N ranks with shares of a batch and td_ddp_sync_batch_norm against one process with the whole batch:
 * results, running statistics, every gradient, weights after some steps; shares that are even, uneven, empty; many small buckets with
 * parameters that only some ranks use; inside td_checkpoint. Started on 2, 3 and 4 ranks by tandem run; TAP on rank 0's standard output.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition, name) expect_((condition), #condition, name, __LINE__)

enum { STEPS = 3, C = 3, SIDE = 4, OUT = 5 };

typedef struct {
    const char *name;
    td_dtype dtype;
    double tolerance;
    int64_t (*rows)(int r, int step);
    bool checkpointed, rare;
} problem;

static int64_t even(int r, int step) { return 6; }
static int64_t uneven(int r, int step) { return 5 + (r + step) % 3; }
static int64_t one_empty(int r, int step) { return r == step % 2 ? 0 : 4 + r; }

typedef struct { td_module base; td_module *body, *head, *rare; } net;

static net *net_new(td_dtype dtype)
{
    static const td_module_type type = { .kind = "net", .size = sizeof(net) };
    net *m = (net *)td_module_new(&type);
    const td_nn_conv2d_opts pad = { .padding = 1 };
    m->body = td_module_child(&m->base, "body", td_nn_sequential(td_nn_conv2d(C, 4, 3, &pad), td_nn_batch_norm(4, NULL), td_nn_tanh(),
                                                                 td_nn_conv2d(4, 4, 3, &pad)));
    m->head = td_module_child(&m->base, "head", td_nn_sequential(td_nn_batch_norm(4, &(td_nn_batch_norm_opts){ .momentum = 0.3 }), td_nn_tanh(),
                                                                 td_nn_flatten(), td_nn_linear(4 * SIDE * SIDE, 7, NULL),
                                                                 td_nn_batch_norm(7, &(td_nn_batch_norm_opts){ .no_affine = true }),
                                                                 td_nn_linear(7, OUT, NULL)));
    m->rare = td_module_child(&m->base, "rare", td_nn_linear(OUT, OUT, NULL));
    td_module_to(&m->base, dtype);
    td_tensors p = td_parameters(&m->base);
    for (size_t i = 0; i < p.n; i++) {
        TD_SCOPE();
        td_assign(p.list[i], td_scale(td_cast(td_randn(td_shape_of(p.list[i]), 2, i), dtype), 0.3));
    }
    return m;
}

static td_tensor *forward(net *m, td_tensor *x, bool checkpointed)
{
    if (!checkpointed)
        return td_forward(m->head, td_forward(m->body, x));
    return td_forward_checkpointed(m->head, td_forward_checkpointed(m->body, x));
}

static td_tensor *loss_of(net *m, td_tensor *y, td_tensor *target, bool rare)
{
    td_tensor *loss = td_mse(y, target);
    return rare ? td_add(loss, td_scale(td_sum(td_parameter_get(m->rare, "weight"), NULL, 0, false), 0.01)) : loss;
}

static td_tensor *leaf(td_tensor *x)
{
    td_tensor *y = td_detach(td_contiguous(x));
    td_requires_grad((td_tensors){ &y, 1 }, true);
    return y;
}

/* largest |a - b| over 1 + largest |b|, where b is taken `scale` times; infinite where there is a NaN (fmax passes over those) */
static double distance(td_tensor *a, td_tensor *b, double scale)
{
    TD_SCOPE();
    double worst = 0, most = 1;
    td_tensor *u = td_cast(td_contiguous(td_detach(a)), TD_F64), *v = td_cast(td_contiguous(td_detach(b)), TD_F64);
    const double *p = td_data(u), *q = td_data(v);
    if (!p || !q)
        return INFINITY;
    for (int64_t i = 0; i < td_numel(u); i++) {
        worst = fmax(worst, fabs(p[i] - scale * q[i]));
        most = fmax(most, fabs(scale * q[i]));
        if (isnan(p[i]) || isnan(q[i]))
            return INFINITY;
    }
    return worst / most;
}

static double lists_apart(td_tensors a, td_tensors b, bool grads)
{
    double worst = 0;
    for (size_t i = 0; i < a.n; i++) {
        td_tensor *u = grads ? td_grad(a.list[i]) : a.list[i], *v = grads ? td_grad(b.list[i]) : b.list[i];
        if (!u != !v)
            return INFINITY;
        double d = u ? distance(u, v, 1) : 0;
        worst = d <= worst ? worst : d;
    }
    return worst;
}

static void against_one_process(const problem *p)
{
    net *whole = net_new(p->dtype), *shared = net_new(p->dtype);
    EXPECT(td_ddp_sync_batch_norm(&shared->base, NULL) == 3, p->name);
    td_ddp *ddp = td_ddp_new(&shared->base, &(td_ddp_opts){ .bucket_bytes = 400, .first_bucket_bytes = 100 });
    td_optim *one = td_sgd_new(td_parameters(&whole->base), &(td_sgd_opts){ .lr = 0.1, .momentum = 0.9 });
    td_optim *many = td_sgd_new(td_parameters(&shared->base), &(td_sgd_opts){ .lr = 0.1, .momentum = 0.9 });
    double output = 0, grads = 0, inputs = 0, weights = 0, buffers = 0;
    bool ok = true;
    for (int step = 0; step < STEPS; step++) {
        TD_SCOPE();
        int64_t total = 0, first = 0, mine = p->rows(rank, step);
        for (int r = 0; r < size; r++) {
            first += r < rank ? p->rows(r, step) : 0;
            total += p->rows(r, step);
        }
        td_tensor *all = leaf(td_cast(td_randn(TD_SHAPE(total, C, SIDE, SIDE), 5, (uint64_t)step), p->dtype));
        td_tensor *target = td_cast(td_randn(TD_SHAPE(total, OUT), 6, (uint64_t)step), p->dtype);
        td_tensor *x = leaf(td_narrow(all, 0, first, mine));
        td_tensor *y = forward(whole, all, false), *z = forward(shared, x, p->checkpointed);
        output = fmax(output, mine ? distance(z, td_narrow(y, 0, first, mine), 1) : 0);
        td_tensor *loss = loss_of(shared, z, td_narrow(target, 0, first, mine), p->rare && rank == size - 1 && mine);
        ok &= td_backward(loss) == 0;
        /* in one process the term that only the last rank has weighs as much as that rank's rows */
        double share = (double)p->rows(size - 1, step) / (double)total;
        td_tensor *ref = td_mse(y, target);
        if (p->rare && share > 0)
            ref = td_add(ref, td_scale(td_sum(td_parameter_get(whole->rare, "weight"), NULL, 0, false), 0.01 * share));
        td_ddp_no_sync(ddp, true);         /* every backward meets every ddp; this one is the reference's alone */
        ok &= td_backward(ref) == 0;
        td_ddp_no_sync(ddp, false);
        grads = fmax(grads, lists_apart(td_parameters(&shared->base), td_parameters(&whole->base), true));
        if (mine)
            inputs = fmax(inputs, distance(td_grad(x), td_narrow(td_grad(all), 0, first, mine), (double)total / (double)mine));
        ok &= td_optim_step(one) == 0 && td_optim_step(many) == 0;
        weights = fmax(weights, lists_apart(td_parameters(&shared->base), td_parameters(&whole->base), false));
        buffers = fmax(buffers, lists_apart(td_buffers(&shared->base), td_buffers(&whole->base), false));
    }
    EXPECT(ok, p->name);
    EXPECT(output <= p->tolerance, p->name);
    EXPECT(grads <= p->tolerance, p->name);
    EXPECT(inputs <= p->tolerance, p->name);
    EXPECT(weights <= p->tolerance, p->name);
    EXPECT(buffers <= p->tolerance, p->name);
    if (failures)
        fprintf(stderr, "%s: rank %d: output %g, grads %g, inputs %g, weights %g, buffers %g\n", p->name, rank, output, grads, inputs, weights, buffers);
    /* evaluation asks nobody */
    td_train(&shared->base, false);
    td_train(&whole->base, false);
    {
        TD_SCOPE();
        td_tensor *x = td_cast(td_randn(TD_SHAPE(rank + 1, C, SIDE, SIDE), 9, 0), p->dtype);
        double d = distance(forward(shared, x, false), forward(whole, x, false), 1);
        EXPECT(d <= 10 * p->tolerance, p->name);
    }
    td_ddp_free(ddp);
    td_optim_free(one);
    td_optim_free(many);
    td_module_free(&whole->base);
    td_module_free(&shared->base);
}

/* All ranks hold the same bits of the statistics. */
static void same_statistics_everywhere(void)
{
    td_module *m = td_nn_batch_norm(9, NULL);
    td_ddp_sync_batch_norm(m, td_world());
    td_forward(m, td_randn(TD_SHAPE(3 + rank, 9), 1, (uint64_t)rank));
    td_tensor *var = td_parameter_get(m, "running_var"), *of_0 = td_empty(TD_SHAPE(9), TD_F32);
    td_assign(of_0, var);
    td_broadcast(td_world(), of_0, 0);
    EXPECT(memcmp(td_data(var), td_data(of_0), 36) == 0, "statistics");
    td_module_free(m);
}

static void refusals(void)
{
    td_module *m = td_nn_batch_norm(2, NULL);
    EXPECT(td_ddp_sync_batch_norm(m, NULL) == 1, "refusals");
    td_forward(m, td_ones(TD_SHAPE(rank == 0, 2), TD_F32));
    EXPECT(strstr(td_error_message(), "all ranks together have one value per channel"), "refusals");
    td_error_clear();
    td_module *wrong = rank == 1 ? NULL : m;
    EXPECT(td_ddp_sync_batch_norm(wrong, NULL) == TD_ERR_ARGUMENT, "refusals");
    EXPECT(strstr(td_error_message(), "td_ddp_sync_batch_norm: the module is NULL"), "refusals");
    td_error_clear();
    td_module_free(m);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    static const problem problems[] = {
        { "even f64", TD_F64, 1e-12, even, false, false },      { "even f32", TD_F32, 1e-5, even, false, false },
        { "uneven f64", TD_F64, 1e-12, uneven, false, true },   { "uneven f32", TD_F32, 1e-5, uneven, false, false },
        { "one empty f64", TD_F64, 1e-12, one_empty, false, true }, { "checkpointed f64", TD_F64, 1e-12, uneven, true, true },
        { "checkpointed, one empty", TD_F64, 1e-12, one_empty, true, false },
    };
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++)
        against_one_process(&problems[i]);
    TD_SCOPE();
    same_statistics_everywhere();
    refusals();
    if (rank == 0)
        printf("1..%d\n", tests);
    td_finish();                           /* not 0: there were errors, on purpose */
    return failures != 0;
}
