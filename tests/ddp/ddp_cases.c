/* tests/ddp/ddp_cases.c: what td_ddp promises beyond equal weights (tests/truth has those). Started on 2 or 3 ranks by tandem run.
 *
 * Every case runs on all ranks; each rank's verdict is summed, so that a failure on one fails everywhere and no rank goes on alone.
 * TAP on rank 0's standard output.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../expect.h"

#define EXPECT(condition) expect_((condition), #condition, NULL, __LINE__)

/* ---- small models: y = w x, one number; gradients are easy by hand ---------------------------------------------------------- */
static td_module *line_new(double w)
{
    td_module *m = td_nn_linear(1, 1, &(td_nn_linear_opts){ .no_bias = true });
    td_module_to(m, TD_F64);
    td_fill(td_parameter_get(m, "weight"), w);
    return m;
}

static td_tensor *column(int n, const double *values)
{
    return td_from(values, TD_SHAPE(n, 1), TD_F64);
}

/* loss = mean (w x - 0)^2 over n rows with x = value: gradient 2 w value^2, weight n */
static td_tensor *square_loss(td_module *m, int n, double value)
{
    double x[8];
    for (int i = 0; i < n; i++)
        x[i] = value;
    return td_mse(td_forward(m, column(n, x)), td_zeros(TD_SHAPE(n, 1), TD_F64));
}

static double weight_of(td_module *m)
{
    return td_item(td_parameter_get(m, "weight"));
}

static double grad_of(td_module *m)
{
    td_tensor *g = td_grad(td_parameter_get(m, "weight"));
    return g ? td_item(g) : NAN;
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fmax(1, fabs(b));
}

/* ---- cases -------------------------------------------------------------------------------------------------------------------- */
static void models_that_differ_are_named(void)
{
    td_module *m = td_nn_sequential(td_nn_linear(4, 3, NULL), td_nn_relu(), td_nn_linear(3, rank == size - 1 ? 5 : 2, NULL));
    td_ddp *d = td_ddp_new(m, NULL);
    EXPECT(has_error(TD_ERR_MISMATCH, "rank 0 has parameter 2.weight f32 (2,3) where rank"));
    td_ddp_free(d);
    td_module_free(m);

    m = rank == 0 ? td_nn_sequential(td_nn_linear(4, 3, NULL)) : td_nn_sequential(td_nn_linear(4, 3, NULL), td_nn_linear(3, 1, NULL));
    d = td_ddp_new(m, NULL);
    EXPECT(has_error(TD_ERR_MISMATCH, "rank 0 has nothing more where rank 1 has parameter 1.weight f32 (1,3)"));
    td_module_free(m);
}

static void state_of_rank0_wins(void)
{
    td_seed((uint64_t)rank);
    td_module *m = td_nn_sequential(td_nn_linear(2, 3, NULL), td_nn_batch_norm(3, NULL));
    td_fill(td_parameter_get(m, "1.running_mean"), rank + 5);
    td_requires_grad((td_tensors){ (td_tensor *[]){ td_parameter_get(m, "0.bias") }, 1 }, false);
    td_fill(td_parameter_get(m, "0.bias"), rank + 7);
    td_ddp *d = td_ddp_new(m, NULL);
    EXPECT(td_at(td_parameter_get(m, "1.running_mean"), TD_SHAPE(1)) == 5);
    EXPECT(td_at(td_parameter_get(m, "0.bias"), TD_SHAPE(1)) == 7);   /* frozen: in no bucket, but state all the same */
    td_tensor *w = td_empty(TD_SHAPE(3, 2), TD_F32);
    td_assign(w, td_parameter_get(m, "0.weight"));
    td_broadcast(td_world(), w, 0);
    EXPECT(!memcmp(td_data(w), td_data(td_parameter_get(m, "0.weight")), 24));
    td_ddp_free(d);
    td_module_free(m);
    td_seed(0);
}

static void error_on_one_rank_reaches_all(void)
{
    td_module *m = line_new(3);
    td_ddp *d = td_ddp_new(m, NULL);
    td_optim *opt = td_sgd_new(td_parameters(m), &(td_sgd_opts){ .lr = 0.1f });
    td_tensor *loss = square_loss(m, 2, 1);
    if (rank == 1)
        td_add(td_zeros(TD_SHAPE(3), TD_F64), td_zeros(TD_SHAPE(4), TD_F64));   /* a mistake on rank 1 alone */
    int code = td_backward(loss), step = td_optim_step(opt);
    EXPECT(code == TD_ERR_SHAPE && step != 0);
    EXPECT(strstr(td_error_message(), "td_add") && strstr(td_error_message(), "rank 1"));
    EXPECT(has_error(TD_ERR_SHAPE, "(3)") && weight_of(m) == 3);
    EXPECT(td_backward(square_loss(m, 2, 1)) == 0 && td_optim_step(opt) == 0 && near(weight_of(m), 3 - 0.1f * 6.0));   /* and on it goes */
    td_ddp_free(d);
    td_optim_free(opt);
    td_module_free(m);
}

static void unreduced_gradients_are_refused(void)
{
    td_module *m = line_new(1);
    td_ddp *d = td_ddp_new(m, NULL);
    td_optim *opt = td_sgd_new(td_parameters(m), NULL);
    td_ddp_no_sync(d, true);
    td_backward(square_loss(m, 1, 1));
    td_optim_step(opt);
    EXPECT(has_error(TD_ERR_STATE, "td_ddp_no_sync") && weight_of(m) == 1);
    td_ddp_free(d);
    td_optim_free(opt);
    td_module_free(m);
}

/* Rank r has r+1 rows of value r+1: the mean over ranks and backwards, by hand. */
static void second_synchronised_backward(void)
{
    for (int read_between = 0; read_between < 3; read_between++) {   /* nobody, rank 0 alone, all */
        td_module *m = line_new(1);
        td_ddp *d = td_ddp_new(m, NULL);
        double sum = 0, weights = 0;
        for (int pass = 0; pass < 3; pass++) {
            td_backward(square_loss(m, rank + 1, rank + 1 + pass));
            for (int r = 0; r < size; r++) {
                sum += (r + 1) * 2.0 * (r + 1 + pass) * (r + 1 + pass);
                weights += r + 1;
            }
            if (read_between == 2 || (read_between == 1 && rank == 0))
                if (!near(grad_of(m), sum / weights))
                    failures++, fprintf(stderr, "rank %d pass %d: %.17g, not %.17g\n", rank, pass, grad_of(m), sum / weights);
        }
        EXPECT(near(grad_of(m), sum / weights));
        td_ddp_free(d);
        td_module_free(m);
    }
}

static void accumulation_with_weights_by_hand(void)
{
    td_module *m = line_new(2);
    td_ddp *d = td_ddp_new(m, NULL);
    double sum = 0, weights = 0;
    for (int micro = 0; micro < 3; micro++) {
        td_ddp_no_sync(d, micro < 2);
        int rows = rank == 0 && micro == 0 ? 0 : 1 + (rank + micro) % 3;
        td_backward(square_loss(m, rows, micro + 1));
        for (int r = 0; r < size; r++) {
            int n = r == 0 && micro == 0 ? 0 : 1 + (r + micro) % 3;
            sum += n * 4.0 * (micro + 1) * (micro + 1);
            weights += n;
        }
    }
    EXPECT(near(grad_of(m), sum / weights));
    td_ddp_free(d);
    td_module_free(m);
}

static void weight_zero_is_exactly_nothing(void)
{
    td_module *m = line_new(1);
    td_ddp *d = td_ddp_new(m, NULL);
    td_tensor *loss;
    if (rank == 0) {
        double nan = NAN;
        loss = td_mse(td_forward(m, td_narrow(column(1, &nan), 0, 0, 0)), td_zeros(TD_SHAPE(0, 1), TD_F64));
    } else {
        loss = square_loss(m, 2, 3);
    }
    td_backward(loss);
    EXPECT(size == 1 || near(grad_of(m), 18));
    td_tensor *w = td_full(TD_SCALAR, TD_F64, rank == 0 ? 0 : 1);
    td_zero_grad(td_parameters(m));
    double x = rank == 0 ? NAN : 2;   /* NaN values with weight 0 stay out as well */
    td_backward_weighted(td_mse(td_forward(m, column(1, &x)), td_zeros(TD_SHAPE(1, 1), TD_F64)), w);
    EXPECT(size == 1 || near(grad_of(m), 8));
    td_ddp_free(d);
    td_module_free(m);
}

static void unused_everywhere_is_left_alone(void)
{
    td_module *used = line_new(1), *idle = line_new(5), *m = td_nn_sequential(used, idle);
    td_ddp *d = td_ddp_new(m, NULL);
    td_optim *opt = td_adamw_new(td_parameters(m), &(td_adamw_opts){ .lr = 0.1f, .weight_decay = 0.5f });
    for (int i = 0; i < 3; i++) {
        TD_SCOPE();
        td_backward(square_loss(used, 2, 1));
        td_optim_step(opt);
    }
    EXPECT(weight_of(idle) == 5 && weight_of(used) != 1);
    EXPECT(td_grad(td_parameter_get(idle, "weight")) == NULL);
    td_backward(rank == 0 ? square_loss(idle, 1, 1) : square_loss(used, 1, 1));   /* now used on rank 0 only: by all ranks alike */
    td_optim_step(opt);
    td_tensor *w = td_full(TD_SCALAR, TD_F64, weight_of(idle));
    td_broadcast(td_world(), w, 0);
    EXPECT(weight_of(idle) != 5 && td_item(w) == weight_of(idle));
    td_ddp_free(d);
    td_optim_free(opt);
    td_module_free(m);
}

static void reached_on_some_ranks_only(void)
{
    td_module *a = line_new(1), *b = line_new(1);
    td_ddp *da = td_ddp_new(a, NULL), *db = td_ddp_new(b, NULL);
    td_backward(rank == 0 ? square_loss(a, 1, 1) : square_loss(b, 1, 2));   /* each model reached by other ranks */
    EXPECT(near(grad_of(a), 2));
    EXPECT(size == 1 || near(grad_of(b), 8));
    td_ddp_free(da);
    td_ddp_free(db);
    td_module_free(a);
    td_module_free(b);
}

static void clipping_sees_all_ranks(void)
{
    td_module *m = line_new(1);
    td_ddp *d = td_ddp_new(m, NULL);
    td_optim *opt = td_sgd_new(td_parameters(m), &(td_sgd_opts){ .lr = 1 });
    td_backward(square_loss(m, 1, rank + 1));
    double mean = 0;
    for (int r = 0; r < size; r++)
        mean += 2.0 * (r + 1) * (r + 1) / size;
    EXPECT(near(td_clip_grad_norm(opt, 0.5), mean));
    EXPECT(fabs(grad_of(m) - 0.5) < 1e-6);   /* PyTorch divides by norm + 1e-6 */
    td_optim_step(opt);
    EXPECT(fabs(weight_of(m) - 0.5) < 1e-6);
    td_ddp_free(d);
    td_optim_free(opt);
    td_module_free(m);
}

static void optimizer_made_before_ddp_and_two_optimizers(void)
{
    td_module *a = line_new(1), *b = line_new(1), *m = td_nn_sequential(a, b);
    td_optim *oa = td_sgd_new(td_parameters(a), &(td_sgd_opts){ .lr = 0.5f, .momentum = 0.9f });
    td_ddp *d = td_ddp_new(m, NULL);
    td_optim *ob = td_sgd_new(td_parameters(b), &(td_sgd_opts){ .lr = 0.25f });
    double wa = 1, wb = 1, va = 0;
    for (int i = 0; i < 3; i++) {
        TD_SCOPE();
        td_backward(td_add(square_loss(a, 1, 1), td_scale(square_loss(b, 1, 1), 3)));
        td_optim_step(oa);
        td_optim_step(ob);
        va = 0.9f * va + 2 * wa;
        wa -= 0.5 * va;
        wb -= 0.25 * 3 * 2 * wb;
    }
    EXPECT(near(weight_of(a), wa) && near(weight_of(b), wb));
    td_ddp_free(d);
    td_optim_free(oa);
    td_optim_free(ob);
    td_module_free(m);
}

static void unfreezing_late_is_an_error(void)
{
    td_module *m = td_nn_linear(2, 2, NULL);
    td_tensors bias = { (td_tensor *[]){ td_parameter_get(m, "bias") }, 1 };
    td_requires_grad(bias, false);
    td_ddp *d = td_ddp_new(m, NULL);
    td_requires_grad(bias, true);
    td_backward(td_sum(td_forward(m, td_ones(TD_SHAPE(1, 2), TD_F32)), NULL, 0, false));
    EXPECT(has_error(TD_ERR_STATE, "bias was frozen or absent"));
    td_ddp_free(d);
    td_module_free(m);
}

/* Four layers, buckets of a few hundred bytes: rebuilt in order of arrival, figures of the step, an injected straggler found. */
static void buckets_and_figures(void)
{
    td_module *m = td_nn_sequential(td_nn_linear(16, 16, NULL), td_nn_linear(16, 16, NULL), td_nn_linear(16, 16, NULL), td_nn_linear(16, 4, NULL));
    td_ddp *d = td_ddp_new(m, &(td_ddp_opts){ .first_bucket_bytes = 256, .bucket_bytes = 1200 });
    td_optim *opt = td_sgd_new(td_parameters(m), NULL);
    bool numbers = true;
    for (int i = 0; i < 3; i++) {
        TD_SCOPE();
        if (rank == size - 1)
            nanosleep(&(struct timespec){ .tv_nsec = 60000000 }, NULL);
        td_backward(td_sum(td_forward(m, td_ones(TD_SHAPE(4, 16), TD_F32)), NULL, 0, false));
        td_optim_step(opt);
        td_ddp_stats s = td_ddp_last_step(d);
        numbers &= s.buckets >= 3 && s.bytes >= 4 * (3 * 272 + 68) && s.comm_ms > 0 && s.exposed_ms >= 0 && s.step_ms >= s.backward_ms;
        if (size > 1)
            numbers &= s.slowest_rank == size - 1 && s.skew_ms > 30 && s.skew_ms < 5000;
        /* bucket by bucket: they add up, and are ready one after the other */
        td_ddp_bucket sum = { 0 };
        for (int b = 0; b < s.buckets; b++) {
            td_ddp_bucket one = td_ddp_last_bucket(d, b);
            numbers &= one.ready_ms >= sum.ready_ms && one.ready_ms <= s.backward_ms;
            sum.bytes += one.bytes, sum.parameters += one.parameters, sum.comm_ms += one.comm_ms, sum.ready_ms = one.ready_ms;
        }
        numbers &= i == 0 || (sum.bytes == s.bytes && sum.parameters == 8 && sum.comm_ms > 0.999 * s.comm_ms && sum.comm_ms < 1.001 * s.comm_ms);
    }
    EXPECT(numbers);
    EXPECT(td_ddp_last_bucket(d, -1).bytes == 0 && has_error(TD_ERR_ARGUMENT, "td_ddp_last_bucket: there is no bucket -1"));
    td_ddp_free(d);
    td_optim_free(opt);
    td_module_free(m);
}

/* A model's step begins with its own backward, not with one that did not reach it. */
static void steps_of_models_in_turns(void)
{
    td_module *m[] = { line_new(1), line_new(1) };
    td_ddp *d[2];
    td_optim *opt[2];
    for (int i = 0; i < 2; i++) {
        d[i] = td_ddp_new(m[i], NULL);
        opt[i] = td_sgd_new(td_parameters(m[i]), NULL);
    }
    double slow = 0, quick = INFINITY;
    for (int i = 0; i < 6; i++) {
        td_backward(square_loss(m[i % 2], 1, 1));
        if (i % 2)
            nanosleep(&(struct timespec){ .tv_nsec = 60000000 }, NULL);
        td_optim_step(opt[i % 2]);
        const double ms = td_ddp_last_step(d[i % 2]).step_ms;
        if (i % 2)
            slow = fmax(slow, ms);
        else if (i > 0)
            quick = fmin(quick, ms);
    }
    EXPECT(slow >= 60 && quick < 50);
    for (int i = 0; i < 2; i++) {
        td_ddp_free(d[i]);
        td_optim_free(opt[i]);
        td_module_free(m[i]);
    }
}

static void no_handle_is_a_sentence(void)
{
    td_ddp_free(NULL);
    td_ddp_no_sync(NULL, true);
    EXPECT(has_error(TD_ERR_ARGUMENT, "td_ddp_no_sync: the td_ddp is NULL"));
    td_ddp_stats none = td_ddp_last_step(NULL);
    EXPECT(has_error(TD_ERR_ARGUMENT, "td_ddp_last_step: the td_ddp is NULL") && none.buckets == 0);
    EXPECT(td_ddp_last_bucket(NULL, 0).bytes == 0 && has_error(TD_ERR_ARGUMENT, "td_ddp_last_bucket: the td_ddp is NULL"));
}

static void spoil(td_tensor *grad, void *user)
{
    (void)user;
    td_copy_in(grad, NULL, 0);
}

/* Another graph's backward between the model's and its step, well or with an error in the middle: the reduced gradients stay. */
static void a_backward_that_reaches_no_model(void)
{
    for (int fails = 0; fails < 2; fails++) {
        td_module *m = line_new(1);
        td_ddp *d = td_ddp_new(m, NULL);
        td_optim *opt = td_sgd_new(td_parameters(m), &(td_sgd_opts){ .lr = 0.125 });
        td_tensor *other = td_ones(TD_SHAPE(2), TD_F64), *y;
        td_requires_grad((td_tensors){ &other, 1 }, true);
        td_backward(square_loss(m, 1, rank + 1));
        y = td_scale(other, 2);
        if (fails)
            td_hook(y, spoil, NULL);
        EXPECT(td_backward(td_sum(y, NULL, 0, false)) == (fails ? TD_ERR_ARGUMENT : 0));
        EXPECT(fails ? has_error(TD_ERR_ARGUMENT, "td_copy_in") : td_item(td_narrow(td_grad(other), 0, 1, 1)) == 2);
        double sum = 0;
        for (int r = 0; r < size; r++)
            sum += 2.0 * (r + 1) * (r + 1);
        EXPECT(near(grad_of(m), sum / size));
        EXPECT(td_optim_step(opt) == 0);
        EXPECT(near(weight_of(m), 1 - 0.125 * sum / size));
        td_optim_free(opt);
        td_ddp_free(d);
        td_module_free(m);
    }
}

/* Seen before the ranks talk: all refuse with rank 0's sentence, and go on afterwards. */
static void changed_in_place_is_refused_together(void)
{
    td_module *m = line_new(1);
    td_ddp *d = td_ddp_new(m, NULL);
    td_tensor *x = td_ones(TD_SHAPE(1, 1), TD_F64), *loss = td_sum(td_forward(m, x), NULL, 0, false);
    if (rank == 0)
        td_fill(x, 3);
    EXPECT(td_backward(loss) == TD_ERR_STATE);
    EXPECT(has_error(TD_ERR_STATE, "was changed in place since"));
    EXPECT(td_barrier(td_world()) == 0);
    EXPECT(isnan(grad_of(m)));
    td_backward(square_loss(m, 1, 1));
    EXPECT(near(grad_of(m), 2));
    td_ddp_free(d);
    td_module_free(m);
}

/* Gradients that cross in bf16: every rank the same bits, and no further from f32's than each share's rounding. */
static void gradients_in_bf16(void)
{
    td_module *m[3];
    td_ddp *d[2];
    for (int k = 0; k < 3; k++)
        m[k] = td_nn_sequential(td_nn_linear(37, 19, NULL), td_nn_tanh(), td_nn_linear(19, 3, NULL));
    d[0] = td_ddp_new(m[0], NULL);
    d[1] = td_ddp_new(m[1], &(td_ddp_opts){ .gradient_dtype = TD_BF16, .first_bucket_bytes = 256, .bucket_bytes = 1024 });
    for (int k = 1; k < 3; k++)
        for (size_t i = 0; i < td_parameters(m[k]).n; i++)
            td_assign(td_parameters(m[k]).list[i], td_parameters(m[0]).list[i]);
    td_optim *opt = td_sgd_new(td_parameters(m[1]), &(td_sgd_opts){ .lr = 0.1 });
    for (int step = 0; step < 2; step++) {
        TD_SCOPE();
        const uint64_t seed = (uint64_t)(10 + 4 * step + rank);
        const int rows = 3 + 2 * rank, total = size * 3 + size * (size - 1);
        td_tensor *x = td_randn(TD_SHAPE(rows, 37), seed, 1), *y = td_randn(TD_SHAPE(rows, 3), seed, 2);
        for (int k = 0; k < 3; k++)
            td_backward(td_mse(td_forward(m[k], x), y));
        td_tensors p[3] = { td_parameters(m[0]), td_parameters(m[1]), td_parameters(m[2]) };
        bool close = true, equal = true, different = false;
        for (size_t i = 0; i < p[0].n; i++) {
            td_tensor *want = td_grad(p[0].list[i]), *got = td_grad(p[1].list[i]), *first = td_zeros(td_shape_of(got), TD_F32);
            td_tensor *share = td_abs(td_scale(td_grad(p[2].list[i]), (double)rows / total));
            td_assign(first, got);
            td_broadcast(td_world(), first, 0);
            td_all_reduce(td_world(), share, TD_SUM);
            const float *w = td_data(want), *g = td_data(got), *s = td_data(share);
            equal &= !memcmp(td_data(first), g, (size_t)td_numel(got) * sizeof *g);
            for (int64_t j = 0; j < td_numel(got); j++) {
                close &= fabsf(w[j] - g[j]) <= s[j] * 0x1p-8f + 1e-6f * s[j];
                different |= w[j] != g[j];
            }
        }
        EXPECT(close && equal && different);
        EXPECT(td_optim_step(opt) == 0);
        EXPECT(td_ddp_last_step(d[1]).bytes > 0 && td_ddp_last_step(d[1]).bytes < 4 * (37 * 19 + 19 + 19 * 3 + 3));
        td_zero_grad(p[0]);
        td_zero_grad(p[2]);
        for (size_t i = 0; i < p[0].n; i++) {
            td_assign(p[0].list[i], p[1].list[i]);
            td_assign(p[2].list[i], p[1].list[i]);
        }
    }
    td_optim_free(opt);
    td_ddp_free(d[0]);
    td_ddp_free(d[1]);
    for (int k = 0; k < 3; k++)
        td_module_free(m[k]);
    m[0] = line_new(1);
    td_ddp_free(td_ddp_new(m[0], &(td_ddp_opts){ .gradient_dtype = TD_I64 }));
    EXPECT(has_error(TD_ERR_DTYPE, "gradient_dtype is i64, expected f32 or bf16"));
    td_module_free(m[0]);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    static void (*const cases[])(void) = {
        models_that_differ_are_named, state_of_rank0_wins, error_on_one_rank_reaches_all, unreduced_gradients_are_refused,
        second_synchronised_backward, accumulation_with_weights_by_hand, weight_zero_is_exactly_nothing, unused_everywhere_is_left_alone,
        reached_on_some_ranks_only, clipping_sees_all_ranks, optimizer_made_before_ddp_and_two_optimizers, unfreezing_late_is_an_error,
        buckets_and_figures, steps_of_models_in_turns, no_handle_is_a_sentence, a_backward_that_reaches_no_model, changed_in_place_is_refused_together,
        gradients_in_bf16,
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        TD_SCOPE();
        cases[i]();
    }
    EXPECT(td_memory().live_tensors == 0);
    if (rank == 0)
        printf("1..%d\n", tests);
    td_finish();   /* errors were provoked: its status is 1 */
    if (td_memory().live_bytes != 0)
        return fprintf(stderr, "ddp_cases: %lld bytes of the pool are left\n", (long long)td_memory().live_bytes), 1;
    return failures != 0;
}
