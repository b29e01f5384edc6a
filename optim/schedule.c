/* optim/schedule.c: learning rate schedules: pure functions of the step. */
#include <tandem/optim.h>
#include <math.h>

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
    return floor + (1 - floor) * 0.5 * (1 + cos(3.14159265358979323846 * done));
}
