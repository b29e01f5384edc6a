/* tests/optim/test_master.c: 16-bit parameters and their f32 masters.
 *
 * Twins in bf16, f16 and f32 begin alike and get gradients that all three hold exactly. So a master has the bits of the f32 twin, and a
 * 16-bit parameter is that twin, rounded; without a master, steps this small would not move it at all.
 */
#include "optim_test.h"

enum { TWINS = 3, SIZES = 4, ALL = TWINS * SIZES, RULES = 9, LARS = RULES - 1 };
static const td_dtype twin[TWINS] = { TD_F32, TD_BF16, TD_F16 };

typedef struct { td_tensor *p[ALL], *a[ALL]; } trio;           /* [size * TWINS + twin]: dtypes alternate                        */

/* 1 to 2 in steps of 1/64, times `factor`: a number of all three dtypes */
static td_tensor *start(int64_t n, td_dtype t, double factor)
{
    TD_SCOPE();
    td_tensor *x = td_zeros(TD_SHAPE(n), TD_F32);
    for (int64_t k = 0; k < n; k++)
        ((float *)td_data(x))[k] = (float)(factor * (1 + (double)(k % 64) / 64));
    return td_keep(td_cast(x, t));
}

static td_tensor *slope(int64_t n, td_dtype t)
{
    TD_SCOPE();
    td_tensor *x = td_zeros(TD_SHAPE(n), TD_F32);
    for (int64_t k = 0; k < n; k++)
        ((float *)td_data(x))[k] = (float)(k % 7 + 1) / (k % 2 ? 8 : -8);
    return td_keep(td_cast(x, t));
}

static void begin_trio(trio *j)
{
    for (int i = 0; i < ALL; i++) {
        j->p[i] = start(size_of[i / TWINS], twin[i % TWINS], 1);
        j->a[i] = slope(size_of[i / TWINS], twin[i % TWINS]);
    }
    td_requires_grad((td_tensors){ j->p, ALL }, true);
}

static void end_trio(trio *j)
{
    for (int i = 0; i < ALL; i++) {
        td_release(j->p[i]);
        td_release(j->a[i]);
    }
}

static void slide(trio *j)
{
    TD_SCOPE();
    td_tensor *loss = td_zeros(TD_SCALAR, TD_F32);
    for (int i = 0; i < ALL; i++)
        loss = td_add(loss, td_cast(td_sum(td_mul(j->a[i], j->p[i]), NULL, 0, false), TD_F32));
    assert_int_equal(td_backward(loss), 0);
}

/* The largest distance between a 16-bit parameter and the rounding of its f32 twin. */
static double apart(const trio *j)
{
    TD_SCOPE();
    double want[MOST], got[MOST], worst = 0;
    for (int i = 0; i < ALL; i++) {
        if (twin[i % TWINS] == TD_F32)
            continue;
        read_out(td_cast(td_detach(j->p[i - i % TWINS]), twin[i % TWINS]), want);
        read_out(j->p[i], got);
        for (int64_t k = 0; k < size_of[i / TWINS]; k++)
            worst = fmax(worst, fabs(got[k] - want[k]));
    }
    return worst;
}

/* The smallest distance that an element of x has come from `from`. */
static double moved(td_tensor *x, td_tensor *from)
{
    double a[MOST], b[MOST], least = INFINITY;
    read_out(x, a);
    read_out(from, b);
    for (int64_t k = 0; k < td_numel(x); k++)
        least = fmin(least, fabs(a[k] - b[k]));
    return least;
}

static td_optim *optim_of(int rule, td_tensors p, double lr)
{
    switch (rule) {
    case 0:  return td_sgd_new(p, &(td_sgd_opts){ .lr = lr });
    case 1:  return td_sgd_new(p, &(td_sgd_opts){ .lr = lr, .momentum = 0.9, .nesterov = true, .weight_decay = 0.01 });
    case 2:  return td_adamw_new(p, &(td_adamw_opts){ .lr = lr });
    case 3:  return td_adam_new(p, &(td_adam_opts){ .lr = lr });
    case 4:  return td_rmsprop_new(p, &(td_rmsprop_opts){ .lr = lr, .momentum = 0.5, .centered = true });
    case 5:  return td_adagrad_new(p, &(td_adagrad_opts){ .lr = 10 * lr });
    case 6:  return td_lion_new(p, &(td_lion_opts){ .lr = lr });
    case 7:  return td_lamb_new(p, &(td_lamb_opts){ .lr = lr });
    default: return td_lars_new(p, &(td_lars_opts){ .lr = 10 * lr, .trust = 0.01 });
    }
}

static void follow_f32(void **state)
{
    for (int rule = 0; rule < RULES; rule++) {
        trio j;
        begin_trio(&j);
        td_optim *opt = optim_of(rule, (td_tensors){ j.p, ALL }, 3e-4);
        for (int s = 0; s < 200; s++) {
            slide(&j);
            if (s % 3 == 0)
                slide(&j);                         /* the mean of two */
            if (s % 5 == 0)
                td_release(td_keep(td_clip_grad_norm_async(opt, 4)));
            assert_int_equal(td_optim_step(opt), 0);
            /* LARS takes norms of the rounded parameters: within a rounding of the last bit */
            if (!(apart(&j) <= (rule == LARS ? 0x1p-7 : 0)))
                fail_msg("rule %d, step %d: off by %g", rule, s, apart(&j));
        }
        for (int i = 0; i < ALL; i++) {
            td_tensor *was = start(size_of[i / TWINS], twin[i % TWINS], 1);
            if (rule != LARS && !(moved(j.p[i], was) > 0))
                fail_msg("rule %d: parameter %d has an element that never moved", rule, i);
            td_release(was);
            const td__param *p = &opt->param[i];
            assert_true((opt->span[p->span].moment[TD__MASTER] != NULL) == (twin[i % TWINS] != TD_F32));
        }
        td_optim_free(opt);
        end_trio(&j);
    }
}

/* The low bits of masters move along when parameters do. */
static void masters_lie_as_parameters_do(void **state)
{
    trio j;
    begin_trio(&j);
    td_optim *opt = td_sgd_new((td_tensors){ j.p, TWINS }, &(td_sgd_opts){ .lr = 1e-4 });
    for (int s = 0; s < 300; s++) {
        slide(&j);
        assert_int_equal(td_optim_step(opt), 0);
        td_zero_grad((td_tensors){ j.p, ALL });
        if (s == 50 || s == 100 || s == 150) {
            const size_t at = TWINS * (size_t)(s / 50);
            assert_int_equal(td_sgd_add_group(opt, (td_tensors){ j.p + at, TWINS }, &(td_sgd_opts){ .lr = 1e-4 }), 0);
        }
        for (int i = 0; s == 50 && i < TWINS; i++)
            if (twin[i] == TD_BF16) {
                td_tensor *was = start(size_of[0], TD_BF16, 1);
                assert_true(moved(j.p[i], was) == 0);          /* up to here all movement is in the master */
                td_release(was);
            }
        assert_true(apart(&j) == 0);
    }
    td_optim_free(opt);
    end_trio(&j);
}

/* Who writes to a parameter is not overwritten by the master's old value; parameters beside it keep theirs. */
static void renewed(void **state)
{
    for (int rule = 0; rule < LARS; rule++) {
        trio j;
        begin_trio(&j);
        td_optim *opt = optim_of(rule, (td_tensors){ j.p, ALL }, 1e-4);
        for (int s = 0; s < 40; s++) {
            slide(&j);
            assert_int_equal(td_optim_step(opt), 0);
            for (int i = TWINS; s == 20 && i < 3 * TWINS; i++) {
                TD_SCOPE();
                td_tensor *now = start(size_of[i / TWINS], twin[i % TWINS], 4);
                td_assign(j.p[i], now);
                td_release(now);
            }
            if (!(apart(&j) == 0))
                fail_msg("rule %d, step %d: off by %g", rule, s, apart(&j));
        }
        td_tensor *was = start(size_of[1], TD_F32, 4);
        double now[MOST], then[MOST];
        read_out(j.p[TWINS + 1], now);
        read_out(was, then);
        for (int64_t k = 0; k < size_of[1]; k++)
            assert_true(fabs(now[k] - then[k]) < 0.1);
        td_release(was);
        td_optim_free(opt);
        end_trio(&j);
    }
}

static void gradients_of_16_bits(void **state)
{
    trio j;
    begin_trio(&j);
    td_optim *opt = td_sgd_new((td_tensors){ j.p, ALL }, &(td_sgd_opts){ .lr = 1e-4 });
    slide(&j);
    slide(&j);
    double got[MOST], want[MOST], sum = 0;
    for (int i = 0; i < ALL; i++) {
        read_out(td_grad(j.p[i]), got);
        read_out(j.a[i], want);
        assert_true(td_dtype_of(td_grad(j.p[i])) == twin[i % TWINS]);
        assert_memory_equal(got, want, (size_t)size_of[i / TWINS] * sizeof *got);
        for (int64_t k = 0; k < size_of[i / TWINS]; k++)
            sum += want[k] * want[k];
    }
    assert_true(fabs(td_clip_grad_norm(opt, 2) - sqrt(sum)) <= 1e-12 * sqrt(sum));
    assert_true(fabs(td_clip_grad_norm(opt, 1e6) - 2) < 0x1p-8);           /* rounded once more                        */
    assert_int_equal(td_optim_step(opt), 0);
    assert_true(td_ema_new((td_tensors){ j.p + 1, 1 }, 0.5) != NULL);
    expect_error(TD_ERR_DTYPE, "td_ema_new: weight 0 of 1 is (1) bf16, expected contiguous f32 or f64");
    td_optim_free(opt);
    end_trio(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(follow_f32), TEST(masters_lie_as_parameters_do), TEST(renewed), TEST(gradients_of_16_bits) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
