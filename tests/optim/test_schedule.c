/* tests/optim/test_schedule.c: schedules against closed forms written otherwise than in the library, and against the recurrences by which
 * PyTorch documents them. (Warm-up and cosine: test_optim.c.) */
#include "optim_test.h"

static void near(double got, double want, const char *what, int64_t step)
{
    if (!(fabs(got - want) <= 1e-13 * fmax(fabs(want), 0.1)))
        fail_msg("%s at step %lld: %.17g, expected %.17g", what, (long long)step, got, want);
}

/* lr is multiplied by gamma whenever the step is a multiple of `every` */
static void step(void **state)
{
    (void)state;
    double want = 1;
    for (int64_t s = 0; s < 100; s++) {
        want *= s > 0 && s % 7 == 0 ? 0.7 : 1;
        near(td_schedule_step(s, 7, 0.7), want, "step", s);
    }
    assert_true(td_schedule_step(-5, 2, 0.5) == 1 && td_schedule_step(4, 1, 0.5) == 0.0625 && td_schedule_step(9, 10, 0) == 1 &&
                td_schedule_step(10, 10, 0) == 0);
    assert_true(isnan(td_schedule_step(1, 0, 0.5)));
    expect_error(TD_ERR_ARGUMENT, "td_schedule_step: every is 0, expected 1 or more");
}

static void multi_step(void **state)
{
    (void)state;
    static const int64_t when[] = { 60, 10, 30, 30 };              /* one counts twice, as in PyTorch */
    double want = 1;
    for (int64_t s = 0; s < 100; s++) {
        for (size_t i = 0; i < TD_COUNT(when); i++)
            want *= s == when[i] ? 0.1 : 1;
        near(td_schedule_multi_step(s, when, 4, 0.1) / want, 1, "multi_step", s);
    }
    assert_true(td_schedule_multi_step(9, NULL, 0, 0.1) == 1);
    assert_true(isnan(td_schedule_multi_step(1, NULL, 2, 0.5)));
    expect_error(TD_ERR_ARGUMENT, "td_schedule_multi_step: n is 2 and milestones NULL, expected 0 or more milestones");
    assert_true(isnan(td_schedule_multi_step(1, when, -1, 0.5)));
    expect_error(TD_ERR_ARGUMENT, "td_schedule_multi_step: n is -1, expected 0 or more milestones");
}

static void exponential(void **state)
{
    (void)state;
    double want = 1;
    for (int64_t s = 0; s < 100; s++, want *= 0.97)
        near(td_schedule_exponential(s, 0.97), want, "exponential", s);
    assert_true(td_schedule_exponential(-1, 0.97) == 1);
}

/* PyTorch's LinearLR: by its recurrence, each rate from the one before */
static void linear(void **state)
{
    (void)state;
    const double start = 0.25, end = 1.5;
    const int64_t total = 20;
    double want = start;
    for (int64_t s = 0; s < 40; s++) {
        if (s > 0 && s <= total)
            want *= 1 + (end - start) / ((double)total * start + (double)(s - 1) * (end - start));
        near(td_schedule_linear(s, start, end, total), want, "linear", s);
    }
    assert_true(td_schedule_linear(-3, 0.5, 0, 10) == 0.5 && td_schedule_linear(10, 0.5, 0, 10) == 0 && td_schedule_linear(1, 0, 1, 1) == 1);
    assert_true(isnan(td_schedule_linear(1, 0, 1, 0)));
    expect_error(TD_ERR_ARGUMENT, "td_schedule_linear: total is 0, expected 1 or more");
}

/* a + (b-a) sin^2(pi x / 2): the cosine's other form */
static double rise(double a, double b, double x)
{
    double s = sin(acos(0) * x);
    return a + (b - a) * s * s;
}

static void one_cycle(void **state)
{
    (void)state;
    /* by hand: 10 steps, 3 of them warm: 1/25, half way, 1, then 7 steps down */
    near(td_schedule_one_cycle(0, 10, 0.3, 25, 1e4), 0.04, "one_cycle", 0);
    near(td_schedule_one_cycle(1, 10, 0.3, 25, 1e4), 0.52, "one_cycle", 1);
    near(td_schedule_one_cycle(2, 10, 0.3, 25, 1e4), 1, "one_cycle", 2);
    near(td_schedule_one_cycle(9, 10, 0.3, 25, 1e4), 4e-6, "one_cycle", 9);
    near(td_schedule_one_cycle(99, 10, 0.3, 25, 1e4), 4e-6, "one_cycle", 99);
    near(td_schedule_one_cycle(-4, 10, 0.3, 25, 1e4), 0.04, "one_cycle", -4);
    static const struct { int64_t total; double warm, div, last; } cases[] = {
        { 100, 0.3, 25, 1e4 }, { 100, 0.25, 10, 100 }, { 57, 0.4, 4, 10 }, { 33, 0, 25, 1e4 }, { 40, 1, 5, 3 }, { 2, 0.3, 25, 1e4 },
    };
    for (size_t c = 0; c < TD_COUNT(cases); c++)
        for (int64_t s = 0; s < cases[c].total; s++) {
            double peak = cases[c].warm * (double)cases[c].total - 1, end = (double)cases[c].total - 1, low = 1 / cases[c].div;
            double want = (double)s <= peak ? rise(low, 1, (double)s / peak) : rise(1, low / cases[c].last, ((double)s - peak) / (end - peak));
            near(td_schedule_one_cycle(s, cases[c].total, cases[c].warm, cases[c].div, cases[c].last), want, "one_cycle", s);
        }
    assert_true(td_schedule_one_cycle(0, 1, 1, 25, 1e4) == 1);     /* where 0/0 would be */
    assert_true(isnan(td_schedule_one_cycle(0, 0, 0.3, 25, 1e4)));
    expect_error(TD_ERR_ARGUMENT, "td_schedule_one_cycle: total is 0, warm 0.3, div 25 and final_div 10000, expected 1 or more, 0 to 1, and more than 0");
    assert_true(isnan(td_schedule_one_cycle(0, 9, 1.5, 25, 1e4)));
    expect_error(TD_ERR_ARGUMENT, "td_schedule_one_cycle: total is 9, warm 1.5, div 25 and final_div 10000, expected 1 or more, 0 to 1, and more than 0");
    assert_true(isnan(td_schedule_one_cycle(0, 9, 0.5, 0, 1)));
    expect_error(TD_ERR_ARGUMENT, "td_schedule_one_cycle: total is 9, warm 0.5, div 0 and final_div 1, expected 1 or more, 0 to 1, and more than 0");
    assert_true(isnan(td_schedule_one_cycle(0, 9, 0.5, 1, NAN)));
    expect_error(TD_ERR_ARGUMENT, "td_schedule_one_cycle: total is 9, warm 0.5, div 1 and final_div nan, expected 1 or more, 0 to 1, and more than 0");
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(step), TEST(multi_step), TEST(exponential), TEST(linear), TEST(one_cycle) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
