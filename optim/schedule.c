/* optim/schedule.c: learning rate schedules: pure functions of the step. */
#include "optim_impl.h"
#include <math.h>

static const double PI = 3.14159265358979323846;

double td_schedule_warmup(int64_t step, int64_t warmup)
{
    if (step < 0)
        step = 0;
    return step + 1 < warmup ? (double)(step + 1) / (double)warmup : 1;
}

double td_schedule_cosine(int64_t step, int64_t warmup, int64_t total, double floor)
{
    if (warmup < 0)
        warmup = 0;
    if (step < warmup)
        return td_schedule_warmup(step, warmup);
    if (step >= total)
        return floor;
    double done = (double)(step - warmup) / (double)(total - warmup);
    return floor + (1 - floor) * 0.5 * (1 + cos(PI * done));
}

/* gamma^n for n of 0 or more; the same on every machine that has the same libm */
static double power(double gamma, int64_t n)
{
    return n > 0 ? pow(gamma, (double)n) : 1;
}

double td_schedule_step(int64_t step, int64_t every, double gamma)
{
    TD_ENTER();
    if (every < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_schedule_step: every is %lld, expected 1 or more", (long long)every);
        return NAN;
    }
    return power(gamma, step / every);
}

double td_schedule_multi_step(int64_t step, const int64_t *milestones, int n, double gamma)
{
    TD_ENTER();
    if (n < 0 || (n > 0 && !milestones)) {
        td__fail(TD_ERR_ARGUMENT, "td_schedule_multi_step: n is %d%s, expected 0 or more milestones", n, milestones ? "" : " and milestones NULL");
        return NAN;
    }
    int64_t passed = 0;
    for (int i = 0; i < n; i++)
        passed += (step < 0 ? 0 : step) >= milestones[i];
    return power(gamma, passed);
}

double td_schedule_exponential(int64_t step, double gamma)
{
    TD_ENTER();
    return power(gamma, step);
}

double td_schedule_linear(int64_t step, double start, double end, int64_t total)
{
    TD_ENTER();
    if (total < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_schedule_linear: total is %lld, expected 1 or more", (long long)total);
        return NAN;
    }
    if (step >= total)
        return end;
    return step <= 0 ? start : start + (end - start) * (double)step / (double)total;
}

/* half a cosine from `from` to `to` as done goes from 0 to 1 */
static double half_cosine(double from, double to, double done)
{
    return to + (from - to) * 0.5 * (1 + cos(PI * done));
}

double td_schedule_one_cycle(int64_t step, int64_t total, double warm, double div, double final_div)
{
    TD_ENTER();
    if (total < 1 || !(warm >= 0 && warm <= 1) || !(div > 0) || !(final_div > 0)) {
        td__fail(TD_ERR_ARGUMENT, "td_schedule_one_cycle: total is %lld, warm %g, div %g and final_div %g, expected 1 or more, 0 to 1, and more than 0",
                 (long long)total, warm, div, final_div);
        return NAN;
    }
    const double first = 1 / div, last = first / final_div, peak = warm * (double)total - 1, end = (double)(total - 1);
    const double at = step < 0 ? 0 : step > total - 1 ? end : (double)step;
    if (at < peak)
        return half_cosine(first, 1, at / peak);
    return at == peak ? 1 : half_cosine(1, last, (at - peak) / (end - peak));
}
