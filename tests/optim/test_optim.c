/* tests/optim/test_optim.c: clipping, schedules, two optimizers on one group, refusals and their sentences. */
#include "optim_test.h"
#include <pthread.h>

static const unsigned EVERY = (1u << PARAMS) - 1;

static double reference_norm(const job *j, unsigned use)
{
    double sum = 0;
    for (int i = 0; i < PARAMS; i++)
        for (int64_t k = 0; k < size_of[i] && (use >> i & 1); k++)
            sum += gradient(j, i, k) * gradient(j, i, k);
    return sqrt(sum);
}

static void clipping(void **state)
{
    for (int f64 = 0; f64 < 2; f64++) {
        job j;
        begin_job(&j, f64 ? TD_F64 : TD_F32);
        td_sgd_opts o = { .lr = 0.05f, .momentum = 0.9f };
        td_optim *opt = td_sgd_new(all_of(&j), &o);
        int clipped = 0, whole = 0;
        for (int s = 0; s < 60; s++) {
            unsigned use = s % 5 == 0 ? 0x2d : EVERY;
            double norm = reference_norm(&j, use), max = s % 3 ? 3 : 1e4, factor = norm > max ? max / norm : 1;
            backward(&j, use);
            if (s % 2) {
                backward(&j, use);                 /* the mean of two equal micro-batches */
                assert_int_equal(td_error_pending(), 0);
            }
            double got = td_clip_grad_norm(opt, max);
            assert_true(fabs(got - norm) <= (f64 ? 1e-12 : 1e-4) * norm);
            double again = td_clip_grad_norm(opt, max);
            assert_true(fabs(again - fmin(norm, max)) <= (f64 ? 1e-12 : 1e-4) * norm);
            assert_int_equal(td_optim_step(opt), 0);
            clipped += factor < 1;
            whole += factor == 1;
            double g[PARAMS];
            for (int i = 0; i < PARAMS; i++) {
                g[i] = factor;
                if (use >> i & 1)
                    reference_sgd(&j, i, &o, o.lr, g[i]);
            }
        }
        assert_true(clipped > 0 && whole > 0);
        compare(&j, tolerance_of(j.dtype));
        td_optim_free(opt);
        end_job(&j);
    }
}

/* The norm and the weights of clipping that waits for the step are those of clipping at once; PyTorch's: g * min(1, max / norm). */
static void clipping_by_the_step(void **state)
{
    TD_SCOPE();
    for (int f64 = 0; f64 < 2; f64++)
        for (int rule = 0; rule < 3; rule++) {
            job a, b;
            begin_job(&a, f64 ? TD_F64 : TD_F32);
            begin_job(&b, f64 ? TD_F64 : TD_F32);
            td_optim *opt[2];
            for (int k = 0; k < 2; k++) {
                td_tensors p = all_of(k ? &b : &a);
                opt[k] = rule == 0 ? td_sgd_new(p, &(td_sgd_opts){ .lr = 0.1, .momentum = 0.9 })
                         : rule == 1 ? td_adamw_new(p, &(td_adamw_opts){ .lr = 0.01 }) : td_lamb_new(p, &(td_lamb_opts){ .lr = 0.01 });
            }
            for (int s = 0; s < 6; s++) {
                TD_SCOPE();
                backward(&a, EVERY);
                backward(&b, EVERY);
                const double max = s % 2 ? 1e-2 : 1e3, norm = td_clip_grad_norm(opt[0], max);
                td_tensor *later = td_clip_grad_norm_async(opt[1], max);
                assert_true(td_dtype_of(later) == TD_F64 && td_item(later) == norm && norm > 1e-2 && norm < 1e3);
                assert_int_equal(td_optim_step(opt[0]), 0);
                assert_int_equal(td_optim_step(opt[1]), 0);
                for (int i = 0; i < PARAMS; i++)
                    assert_memory_equal(td_data(a.p[i]), td_data(b.p[i]), (size_t)td_numel(a.p[i]) * (f64 ? 8 : 4));
            }
            td_optim_free(opt[0]);
            td_optim_free(opt[1]);
            end_job(&a);
            end_job(&b);
        }
    job j;
    begin_job(&j, TD_F64);
    td_optim *opt = td_sgd_new(all_of(&j), &(td_sgd_opts){ .lr = 0.5 });
    backward(&j, EVERY);
    double was = td_at(j.p[1], TD_SHAPE(2)), g = td_at(td_grad(j.p[1]), TD_SHAPE(2)), norm = td_item(td_clip_grad_norm_async(opt, 0.5));
    assert_true(fabs(td_item(td_clip_grad_norm_async(opt, 0.25)) - 0.5) < 1e-15);      /* twice: of what the first has left */
    assert_true(fabs(td_clip_grad_norm(opt, 1) - 0.25) < 1e-15);
    assert_int_equal(td_optim_step(opt), 0);
    assert_true(fabs(td_at(j.p[1], TD_SHAPE(2)) - (was - 0.5 * g * 0.25 / norm)) < 1e-15);
    backward(&j, EVERY);
    td_clip_grad_norm_async(opt, 1);
    backward(&j, EVERY);
    assert_true(td_optim_step(opt) != 0);
    expect_error(TD_ERR_STATE, "td_optim_step: a backward came after td_clip_grad_norm_async, which measured the gradients before it; clip "
                 "after the last backward");
    td_clip_grad_norm_async(opt, 1);
    assert_int_equal(td_optim_step(opt), 0);
    assert_true(td_clip_grad_norm_async(opt, -1) == td_clip_grad_norm_async(opt, 1));  /* poisoned, both */
    expect_error(TD_ERR_ARGUMENT, "td_clip_grad_norm_async: max_norm is -1, expected more than 0");
    td_optim_free(opt);
    end_job(&j);
}

static void norms_that_are_not_finite(void **state)
{
    job j;
    begin_job(&j, TD_F64);
    td_optim *opt = td_sgd_new(all_of(&j), NULL);
    backward(&j, EVERY);
    td_tensor *g = td_grad(j.p[3]);
    double before = td_at(td_grad(j.p[1]), TD_SHAPE(2));
    ((double *)td_data(g))[5] = INFINITY;
    assert_true(isinf(td_clip_grad_norm(opt, 1)));
    assert_true(td_at(td_grad(j.p[1]), TD_SHAPE(2)) == before);
    ((double *)td_data(g))[5] = NAN;
    assert_true(isnan(td_clip_grad_norm(opt, 1)));
    assert_true(td_at(td_grad(j.p[1]), TD_SHAPE(2)) == before);
    assert_int_equal(td_error_pending(), 0);
    assert_true(isnan(td_clip_grad_norm(opt, 0)));
    expect_error(TD_ERR_ARGUMENT, "td_clip_grad_norm: max_norm is 0, expected more than 0");
    td_zero_grad(all_of(&j));
    assert_true(td_clip_grad_norm(opt, 1) == 0);
    td_optim_free(opt);
    end_job(&j);
}

static void schedules(void **state)
{
    const double pi = acos(-1);
    assert_true(td_schedule_warmup(0, 0) == 1 && td_schedule_warmup(5, 0) == 1 && td_schedule_warmup(0, 1) == 1);
    for (int s = 0; s < 20; s++) {
        double want = s < 10 ? (s + 1) / 10.0 : 1;
        assert_true(fabs(td_schedule_warmup(s, 10) - want) < 1e-15);
    }
    for (int s = 0; s < 130; s++) {
        double want = s < 10 ? (s + 1) / 10.0 : s >= 110 ? 0.05 : 0.05 + 0.95 * pow(cos(pi * (s - 10) / 200.0), 2);
        assert_true(fabs(td_schedule_cosine(s, 10, 110, 0.05) - want) < 1e-14);
    }
    assert_true(td_schedule_cosine(0, 0, 10, 0) == 1);
    assert_true(fabs(td_schedule_cosine(5, 0, 10, 0) - 0.5) < 1e-15);
    assert_true(td_schedule_cosine(10, 0, 10, 0) == 0 && td_schedule_cosine(0, 0, 0, 0.3) == 0.3 && td_schedule_cosine(99, 0, 10, 0.25) == 0.25);
}

/* Two optimizers step parameters of one group, as under one ddp. */
static void shared_group(void **state)
{
    job j;
    begin_job(&j, TD_F64);
    td__leaf *leaf[PARAMS];
    for (int i = 0; i < PARAMS; i++)
        leaf[i] = td__leaf_of(j.p[i]);
    td__group *g = td__group_new(leaf, (int[]){ 5, 2 }, 2, NULL, NULL);
    td_sgd_opts o = { .lr = 0.05f, .momentum = 0.9f };
    td_optim *first = td_sgd_new((td_tensors){ j.p, 3 }, &o), *second = td_adamw_new((td_tensors){ j.p + 3, 4 }, &(td_adamw_opts){ .lr = 0.01f });
    for (int s = 0; s < 30; s++) {
        backward(&j, EVERY);
        if (s % 3 == 1)
            backward(&j, EVERY);
        assert_int_equal(td_optim_step(s % 2 ? first : second), 0);
        assert_int_equal(td_optim_step(s % 2 ? second : first), 0);
        for (int i = 0; i < PARAMS; i++)
            if (i < 3)
                reference_sgd(&j, i, &o, o.lr, 1);
            else
                reference_adamw(&j, i, 0.01f, 0.9, 0.999, 1e-8, 0.01, 1);
    }
    compare(&j, 1e-12);
    backward(&j, EVERY);
    assert_int_equal(td_optim_step(first), 0);
    backward(&j, EVERY);
    assert_true(td_optim_step(first) < 0);
    expect_error(TD_ERR_STATE, "td_optim_step: parameter \"\" shares a ddp with another optimizer that has not stepped since this one's last step; step "
                               "both between backwards");
    /* alone again, the rest of the group is nobody's and is consumed with it */
    td_optim_free(second);
    td_zero_grad(all_of(&j));
    for (int i = 0; i < 3; i++)
        read_out(j.p[i], j.w[i]);
    td_optim *fresh = td_sgd_new((td_tensors){ j.p, 3 }, &(td_sgd_opts){ .lr = 0.05f });
    td_optim_free(first);
    for (int s = 0; s < 5; s++) {
        backward(&j, EVERY);
        assert_int_equal(td_optim_step(fresh), 0);
        for (int i = 0; i < 3; i++)
            reference_sgd(&j, i, &(td_sgd_opts){ 0 }, 0.05f, 1);
    }
    for (int i = 0; i < 3; i++)
        assert_true(distance(&j, i) < 1e-12);
    td_optim_free(fresh);
    td__group_free(g);
    end_job(&j);
}

/* The same parameters in two optimizers: each steps what the backward before it gave. */
static void one_parameter_in_two(void **state)
{
    job j;
    begin_job(&j, TD_F64);
    td_sgd_opts o = { .lr = 0.05f }, p = { .lr = 0.02f, .momentum = 0.5f };
    td_optim *first = td_sgd_new(all_of(&j), &o), *second = td_sgd_new(all_of(&j), &p);
    int64_t twice[PARAMS] = { 0 };
    for (int s = 0; s < 10; s++) {
        backward(&j, EVERY);
        assert_int_equal(td_optim_step(s % 2 ? second : first), 0);
        for (int i = 0; i < PARAMS; i++) {
            j.steps[i] = s % 2 ? twice[i]++ : 1;
            reference_sgd(&j, i, s % 2 ? &p : &o, s % 2 ? p.lr : o.lr, 1);
        }
    }
    compare(&j, 1e-12);
    td_optim_free(first);                          /* made the group */
    backward(&j, EVERY);
    assert_int_equal(td_optim_step(second), 0);
    td__optim_free_all();
    end_job(&j);
}

static void steps_refuse_while_an_error_is_pending(void **state)
{
    job j;
    begin_job(&j, TD_F64);
    td_optim *opt = td_sgd_new(all_of(&j), &(td_sgd_opts){ .lr = 0.1f });
    backward(&j, EVERY);
    td_add(td_ones(TD_SHAPE(2), TD_F32), td_ones(TD_SHAPE(3), TD_F32));
    assert_int_equal(td_optim_step(opt), TD_ERR_SHAPE);
    assert_true(isnan(td_clip_grad_norm(opt, 1)));
    compare(&j, 0);
    assert_int_equal(td_optim_steps(opt), 0);
    td_error_clear();
    assert_int_equal(td_optim_step(opt), 0);
    assert_true(distance(&j, 3) > 0);
    assert_int_equal(td_optim_step(opt), 0);       /* no gradients: nothing to do */
    assert_int_equal(td_optim_steps(opt), 2);
    td_optim_free(opt);
    end_job(&j);
}

static void wrong_use(void **state)
{
    job j;
    begin_job(&j, TD_F32);
    td_tensor *plain = td_ones(TD_SHAPE(2, 2), TD_F32), *twice[] = { j.p[1], j.p[2], j.p[1] };
    td_sgd_new((td_tensors){ &plain, 1 }, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_sgd_new: parameter 0 of 1, (2,2) f32, is not a leaf that collects gradients; see td_requires_grad");
    td_sgd_new((td_tensors){ twice, 3 }, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_sgd_new: parameter (7) is listed twice");
    td_adamw_new((td_tensors){ NULL, 0 }, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_adamw_new: the list of parameters is empty");
    td_sgd_new(all_of(&j), &(td_sgd_opts){ .lr = -0.5f });
    expect_error(TD_ERR_ARGUMENT, "td_sgd_new: lr is -0.5, expected 0 or more (0 means 1e-3, TD_ZERO 0)");
    td_sgd_new(all_of(&j), &(td_sgd_opts){ .nesterov = true });
    expect_error(TD_ERR_ARGUMENT, "td_sgd_new: nesterov needs momentum more than 0 and no dampening, got 0 and 0");
    td_sgd_new(all_of(&j), &(td_sgd_opts){ .momentum = -0.5f });
    expect_error(TD_ERR_ARGUMENT, "td_sgd_new: momentum is -0.5 and weight_decay 0, expected 0 or more");
    td_sgd_new(all_of(&j), &(td_sgd_opts){ .momentum = 0.5f, .dampening = 2 });
    expect_error(TD_ERR_ARGUMENT, "td_sgd_new: dampening is 2, expected 0 to 1");
    td_adamw_new(all_of(&j), &(td_adamw_opts){ .beta2 = 1 });
    expect_error(TD_ERR_ARGUMENT, "td_adamw_new: beta1 is 0.9 and beta2 1, expected 0 or more (TD_ZERO for 0) and less than 1");
    td_adamw_new(all_of(&j), &(td_adamw_opts){ .lr = INFINITY });
    expect_error(TD_ERR_ARGUMENT, "td_adamw_new: lr is inf and weight_decay 0.01, expected 0 or more (TD_ZERO for 0)");
    td_sgd_new(all_of(&j), &(td_sgd_opts){ .lr = INFINITY });
    expect_error(TD_ERR_ARGUMENT, "td_sgd_new: lr is inf, expected 0 or more (0 means 1e-3, TD_ZERO 0)");
    td_adamw_new(all_of(&j), &(td_adamw_opts){ .eps = -1 });
    expect_error(TD_ERR_ARGUMENT, "td_adamw_new: eps is -1, expected more than 0");
    td_optim *opt = td_sgd_new((td_tensors){ j.p, 3 }, &(td_sgd_opts){ .lr = TD_ZERO });
    assert_true(td_optim_get_lr(opt, 0) == 0);
    td_adamw_add_group(opt, (td_tensors){ j.p + 3, 1 }, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_adamw_add_group: the optimizer is sgd, expected adamw");
    td_sgd_add_group(opt, (td_tensors){ j.p + 2, 2 }, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_sgd_add_group: parameter (33) is listed twice");
    backward(&j, EVERY);
    td_sgd_add_group(opt, (td_tensors){ j.p + 3, 1 }, NULL);
    expect_error(TD_ERR_STATE, "td_sgd_add_group: gradients wait for a step; add groups before td_backward or after td_optim_step");
    td_optim_set_lr(opt, 1, 0.1);
    expect_error(TD_ERR_ARGUMENT, "td_optim_set_lr: group is 1, expected 0 to 0, or -1 for all");
    td_optim_set_lr(opt, 0, -1);
    expect_error(TD_ERR_ARGUMENT, "td_optim_set_lr: the learning rate is -1, expected 0 or more");
    assert_true(isnan(td_optim_get_lr(opt, -1)));
    expect_error(TD_ERR_ARGUMENT, "td_optim_get_lr: group is -1, expected 0 to 0");
    assert_true(td_optim_step(NULL) < 0);
    expect_error(TD_ERR_ARGUMENT, "td_optim_step: the optimizer is NULL");
    td_optim_free(opt);
    td_optim_free(NULL);
    /* the poisoned optimizer */
    opt = td_sgd_new((td_tensors){ NULL, 0 }, NULL);
    assert_true(td_optim_step(opt) < 0);
    assert_true(isnan(td_optim_get_lr(opt, 0)));
    td_optim_set_lr(opt, 0, 1);
    assert_int_equal(td_optim_steps(opt), 0);
    td_optim_free(opt);
    td_error_clear();
    end_job(&j);
}

/* A step runs over memory: a parameter that is a view must never get there, also when it has a gradient already. */
static void views_are_no_parameters(void **state)
{
    (void)state;
    static const char sentence[] = "the parameter of shape (3,2) is a view of a larger or differently ordered tensor and cannot be "
                                   "moved into a flat; make it a tensor of its own (td_from, td_zeros, then td_assign)";
    TD_SCOPE();
    td_tensor *p = td_ones(TD_SHAPE(2), TD_F32), *view = td_transpose(td_ones(TD_SHAPE(2, 3), TD_F32), 0, 1);
    td_tensor *repeated = td_expand(td_ones(TD_SHAPE(1, 2), TD_F32), TD_SHAPE(3, 2)), *list[] = { p, view, repeated };
    td_requires_grad((td_tensors){ list, 3 }, true);
    for (int graded = 0; graded < 2; graded++) {
        for (int i = 1; i < 3; i++) {
            td_optim *opt = td_sgd_new((td_tensors){ list + i, 1 }, NULL);
            expect_error(TD_ERR_STATE, sentence);
            td_optim_free(opt);
        }
        td_tensor *loss = td_add(td_sum(td_mul(view, td_reshape(td_arange(6, TD_F32), TD_SHAPE(3, 2))), NULL, 0, false),
                                 td_sum(repeated, NULL, 0, false));
        assert_int_equal(td_backward(loss), 0);
    }
    /* a group that could not be added is not there */
    td_optim *opt = td_sgd_new((td_tensors){ list, 1 }, &(td_sgd_opts){ .lr = 1 });
    assert_true(td_sgd_add_group(opt, (td_tensors){ list + 1, 1 }, NULL) < 0);
    expect_error(TD_ERR_STATE, sentence);
    td_tensor *a = td_ones(TD_SHAPE(4), TD_F32), *same[] = { a, td_reshape(a, TD_SHAPE(2, 2)) };
    td_requires_grad((td_tensors){ same, 2 }, true);
    assert_true(td_sgd_add_group(opt, (td_tensors){ same, 2 }, NULL) < 0);
    expect_error(TD_ERR_ARGUMENT, "the parameter of shape (4) is listed twice, or shares its memory with another one");
    assert_true(isnan(td_optim_get_lr(opt, 1)));
    expect_error(TD_ERR_ARGUMENT, "td_optim_get_lr: group is 1, expected 0 to 0");
    for (int s = 0; s < 2; s++) {
        assert_int_equal(td_backward(td_add(td_sum(p, NULL, 0, false), td_sum(a, NULL, 0, false))), 0);
        assert_int_equal(td_optim_step(opt), 0);
    }
    assert_true(td_at(p, TD_SHAPE(0)) == -1 && td_at(a, TD_SHAPE(0)) == 1);
    td_optim_free(opt);
}

static void step_now(td_tensor *grad, void *opt)
{
    (void)grad;
    assert_true(td_optim_step(opt) < 0);
}

static void no_step_while_backward_runs(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *p = td_ones(TD_SHAPE(2), TD_F32), *y;
    td_requires_grad((td_tensors){ &p, 1 }, true);
    td_optim *opt = td_sgd_new((td_tensors){ &p, 1 }, &(td_sgd_opts){ .lr = 1 });
    y = td_scale(p, 2);
    td_hook(y, step_now, opt);
    assert_int_equal(td_backward(td_sum(td_add(y, p), NULL, 0, false)), TD_ERR_STATE);
    expect_error(TD_ERR_STATE, "td_optim_step: called while td_backward runs (from a hook or a gradient function); call it after td_backward");
    assert_true(td_at(p, TD_SHAPE(1)) == 1 && td_optim_steps(opt) == 0);
    td_optim_free(opt);
}

/* Gradients that are forgotten instead of stepped leave nothing behind: the next ones may come in micro-batches. */
static void forgotten_gradients_of_a_shared_group(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *p[] = { td_ones(TD_SHAPE(2), TD_F32), td_ones(TD_SHAPE(2), TD_F32) };
    td_requires_grad((td_tensors){ p, 2 }, true);
    td_optim *both = td_sgd_new((td_tensors){ p, 2 }, &(td_sgd_opts){ .lr = 1 });
    td_optim *second = td_sgd_new((td_tensors){ p + 1, 1 }, &(td_sgd_opts){ .lr = 1 });
    for (int round = 0; round < 2; round++) {
        for (int micro = 0; micro <= round; micro++)
            assert_int_equal(td_backward(td_add(td_sum(p[0], NULL, 0, false), td_sum(p[1], NULL, 0, false))), 0);
        assert_int_equal(td_optim_step(second), 0);
        td_zero_grad((td_tensors){ p, 2 });
    }
    assert_true(td_at(p[0], TD_SHAPE(0)) == 1 && td_at(p[1], TD_SHAPE(0)) == -1);
    td_optim_free(second);
    td_optim_free(both);
}

/* Each thread has an optimizer of its own. The thread sanitizer is this test's judge. */
static void *train_alone(void *failures)
{
    for (int k = 0; k < 20; k++) {
        TD_SCOPE();
        td_tensor *p[4];
        for (int i = 0; i < 4; i++)
            p[i] = td_full(TD_SHAPE(5), TD_F32, 2);
        td_requires_grad((td_tensors){ p, 4 }, true);
        td_optim *opt = td_sgd_new((td_tensors){ p, 2 }, &(td_sgd_opts){ .lr = 1 });
        bool bad = td_sgd_add_group(opt, (td_tensors){ p + 2, 2 }, &(td_sgd_opts){ .lr = 1 }) != 0;
        for (int s = 0; s < 3; s++) {
            td_tensor *l = td_add(td_add(td_sum(p[0], NULL, 0, false), td_sum(p[1], NULL, 0, false)),
                                  td_add(td_sum(p[2], NULL, 0, false), td_sum(p[3], NULL, 0, false)));
            bad |= td_backward(l) != 0 || td_optim_step(opt) != 0;
        }
        *(int *)failures += bad || td_at(p[3], TD_SHAPE(4)) != -1;
        td_optim_free(opt);
    }
    return NULL;
}

static void two_threads(void **state)
{
    (void)state;
    int failures[2] = { 0 };
    pthread_t other;
    int64_t steps = td_step_get();
    assert_int_equal(pthread_create(&other, NULL, train_alone, &failures[1]), 0);
    train_alone(&failures[0]);
    pthread_join(other, NULL);
    assert_true(failures[0] == 0 && failures[1] == 0);
    td_step_set(steps);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(clipping), TEST(clipping_by_the_step), TEST(norms_that_are_not_finite), TEST(schedules), TEST(shared_group), TEST(one_parameter_in_two),
        TEST(steps_refuse_while_an_error_is_pending), TEST(wrong_use), TEST(views_are_no_parameters), TEST(no_step_while_backward_runs),
        TEST(forgotten_gradients_of_a_shared_group), TEST(two_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
