/* tests/optim/test_rules.c: SGD and AdamW over 100 steps against their published formulas in double, in f64 (1e-12) and f32, with parameters
 * that take part in some steps only, groups of options, frozen parameters, changing rates, and leaves that move between flats. */
#include "optim_test.h"

enum { STEPS = 100 };
static const unsigned EVERY = (1u << PARAMS) - 1;

static unsigned some_of(int step)                /* every parameter misses every third step, each its own */
{
    unsigned use = 0;
    for (int i = 0; i < PARAMS; i++)
        use |= (unsigned)((step + i) % 3 != 0) << i;
    return use;
}

static void sgd(void **state)
{
    static const td_sgd_opts cases[] = {
        { .lr = 0.1f },
        { .lr = 0.05f, .weight_decay = 0.01f },
        { .lr = 0.05f, .momentum = 0.9f },
        { .lr = 0.05f, .momentum = 0.9f, .dampening = 0.5f, .weight_decay = 0.1f },
        { .lr = 0.02f, .momentum = 0.9f, .nesterov = true, .weight_decay = 0.01f },
    };
    for (size_t c = 0; c < TD_COUNT(cases); c++)
        for (int f64 = 0; f64 < 2; f64++)
            for (int skip = 0; skip < 2; skip++) {
                job j;
                begin_job(&j, f64 ? TD_F64 : TD_F32);
                td_optim *opt = td_sgd_new(all_of(&j), &cases[c]);
                for (int s = 0; s < STEPS; s++) {
                    unsigned use = skip ? some_of(s) : EVERY;
                    backward(&j, use);
                    assert_int_equal(td_optim_step(opt), 0);
                    for (int i = 0; i < PARAMS; i++)
                        if (use >> i & 1)
                            reference_sgd(&j, i, &cases[c], cases[c].lr, 1);
                }
                compare(&j, tolerance_of(j.dtype));
                assert_int_equal(td_optim_steps(opt), STEPS);
                td_optim_free(opt);
                end_job(&j);
            }
    assert_int_equal(td_step_get(), TD_COUNT(cases) * 4 * STEPS);
}

static void adamw(void **state)
{
    static const td_adamw_opts cases[] = { { 0 }, { .lr = 0.01f, .beta1 = 0.8f, .beta2 = 0.95f, .eps = 1e-6f, .weight_decay = 0.1f },
                                           { .lr = 0.01f, .weight_decay = TD_ZERO, .beta1 = TD_ZERO } };
    static const double want[][5] = { { 1e-3, 0.9, 0.999, 1e-8, 0.01 }, { 0.01f, 0.8f, 0.95f, 1e-6f, 0.1f }, { 0.01f, 0, 0.999, 1e-8, 0 } };
    for (size_t c = 0; c < TD_COUNT(cases); c++)
        for (int f64 = 0; f64 < 2; f64++)
            for (int skip = 0; skip < 2; skip++) {
                job j;
                begin_job(&j, f64 ? TD_F64 : TD_F32);
                td_optim *opt = td_adamw_new(all_of(&j), &cases[c]);
                for (int s = 0; s < STEPS; s++) {
                    unsigned use = skip ? some_of(s) : EVERY;
                    backward(&j, use);
                    assert_int_equal(td_optim_step(opt), 0);
                    for (int i = 0; i < PARAMS; i++)
                        if (use >> i & 1)
                            reference_adamw(&j, i, want[c][0], want[c][1], want[c][2], want[c][3], want[c][4], 1);
                }
                compare(&j, tolerance_of(j.dtype));
                td_optim_free(opt);
                end_job(&j);
            }
}

/* Two groups of options, a rate that follows a schedule, a parameter that is frozen for a while, and both dtypes in one optimizer. */
static void groups_and_frozen(void **state)
{
    job j, other;
    begin_job(&j, TD_F64);
    begin_job(&other, TD_F32);
    td_sgd_opts slow = { .lr = 0.01f, .momentum = 0.9f }, fast = { .lr = 0.1f, .weight_decay = 0.05f };
    td_optim *opt = td_sgd_new((td_tensors){ j.p, 4 }, &slow);
    assert_int_equal(td_sgd_add_group(opt, (td_tensors){ j.p + 4, 3 }, &fast), 0);
    assert_int_equal(td_sgd_add_group(opt, all_of(&other), &slow), 0);
    assert_true(td_optim_get_lr(opt, 1) == (double)0.1f);
    for (int s = 0; s < STEPS; s++) {
        double lr = 0.1 * td_schedule_cosine(s, 10, STEPS, 0.1);
        td_optim_set_lr(opt, 1, lr);
        td_requires_grad((td_tensors){ &j.p[2], 1 }, s < 30 || s >= 60);
        backward(&j, EVERY);
        backward(&other, EVERY);
        assert_int_equal(td_optim_step(opt), 0);
        for (int i = 0; i < PARAMS; i++) {
            /* two backwards before one step are two micro-batches of one batch: each gradient counts half */
            if (i != 2 || s < 30 || s >= 60)
                reference_sgd(&j, i, i < 4 ? &slow : &fast, i < 4 ? (double)slow.lr : lr, 0.5);
            reference_sgd(&other, i, &slow, slow.lr, 0.5);
        }
    }
    compare(&j, 1e-12);
    compare(&other, tolerance_of(TD_F32));
    td_optim_set_lr(opt, -1, 0);
    assert_true(td_optim_get_lr(opt, 0) == 0 && td_optim_get_lr(opt, 2) == 0);
    td_optim_free(opt);
    end_job(&j);
    end_job(&other);
}

static void micro_batches_are_weighted(void **state)
{
    job j;
    begin_job(&j, TD_F64);
    td_sgd_opts o = { .lr = 0.1f, .momentum = 0.5f };
    td_optim *opt = td_sgd_new(all_of(&j), &o);
    for (int s = 0; s < 20; s++) {
        double sum = 0, scaled = 0;
        for (int micro = 0; micro < 3; micro++) {
            TD_SCOPE();
            double weight = 1 + (s + micro) % 4, factor = 1 + 0.5 * micro;
            td_tensor *loss = td_zeros(TD_SCALAR, TD_F64);
            for (int i = 0; i < PARAMS; i++) {
                td_tensor *d = td_sub(j.p[i], j.b[i]);
                loss = td_add(loss, td_scale(td_sum(td_mul(j.a[i], td_mul(d, d)), NULL, 0, false), 0.5 * factor));
            }
            assert_int_equal(td_backward_weighted(loss, td_full(TD_SCALAR, TD_F64, weight)), 0);
            sum += weight;
            scaled += weight * factor;
        }
        assert_int_equal(td_optim_step(opt), 0);
        for (int i = 0; i < PARAMS; i++)
            reference_sgd(&j, i, &o, o.lr, scaled / sum);
    }
    compare(&j, 1e-12);
    td_optim_free(opt);
    end_job(&j);
}

/* What ddp does: takes the leaves over before the first step, cuts them anew later. Moments must move with their parameters. */
static void leaves_move(void **state)
{
    job j;
    begin_job(&j, TD_F64);
    td_optim *opt = td_adamw_new(all_of(&j), &(td_adamw_opts){ .lr = 0.01f });
    td__leaf *leaf[PARAMS];
    for (int i = 0; i < PARAMS; i++)
        leaf[i] = td__leaf_of(j.p[PARAMS - 1 - i]);
    td__group_free(leaf[0]->group);
    td__group *g = td__group_new(leaf, (int[]){ 2, 3, 2 }, 3, NULL, NULL);
    assert_non_null(g);
    for (int s = 0; s < STEPS; s++) {
        if (s == 20 || s == 40 || s == 60) {       /* another order, another cut */
            int turn = s / 20;
            for (int i = 0; i < PARAMS; i++)
                leaf[i] = td__leaf_of(j.p[(i * 3 + turn) % PARAMS]);
            assert_int_equal(td__group_rebuild(g, leaf, (int[]){ turn, PARAMS - turn }, 2, NULL, NULL), 0);
        }
        if (s == 80)
            td__group_free(g);                     /* detached: the optimizer makes a group of its own again */
        backward(&j, some_of(s));
        assert_int_equal(td_optim_step(opt), 0);
        for (int i = 0; i < PARAMS; i++)
            if (some_of(s) >> i & 1)
                reference_adamw(&j, i, 0.01f, 0.9, 0.999, 1e-8, 0.01, 1);
    }
    compare(&j, 1e-12);
    assert_non_null(td__leaf_of(j.p[0])->flat);
    td_optim_free(opt);
    assert_null(td__leaf_of(j.p[0])->flat);
    end_job(&j);
}

/* A gradient made before there was an optimizer counts in its first step. */
static void gradient_before_optimizer(void **state)
{
    job j;
    begin_job(&j, TD_F64);
    td_sgd_opts o = { .lr = 0.1f, .momentum = 0.9f };
    backward(&j, 0x3);
    td_optim *opt = td_sgd_new(all_of(&j), &o);
    for (int s = 0; s < 10; s++) {
        if (s > 0)
            backward(&j, EVERY);
        assert_int_equal(td_optim_step(opt), 0);
        for (int i = 0; i < PARAMS; i++)
            if (s > 0 || i < 2)
                reference_sgd(&j, i, &o, o.lr, 1);
    }
    compare(&j, 1e-12);
    td_optim_free(opt);
    end_job(&j);
}

/* Steps cost the pool nothing once moments exist. */
static void steady_state(void **state)
{
    job j;
    begin_job(&j, TD_F32);
    td_optim *opt = td_adamw_new(all_of(&j), NULL);
    for (int s = 0; s < 3; s++) {
        backward(&j, EVERY);
        td_optim_step(opt);
    }
    td_memory_stats before = td_memory();
    for (int s = 0; s < 10; s++) {
        backward(&j, EVERY);
        td_optim_step(opt);
    }
    assert_int_equal(td_memory().system_calls, before.system_calls);
    assert_int_equal(td_memory().live_bytes, before.live_bytes);
    td_optim_free(opt);
    end_job(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(sgd), TEST(adamw), TEST(groups_and_frozen), TEST(micro_batches_are_weighted), TEST(leaves_move), TEST(gradient_before_optimizer),
        TEST(steady_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
