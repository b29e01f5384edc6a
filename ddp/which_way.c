/* ddp/which_way.c: one pass or two (one_pass.c)? The bits are the same, so it is a matter of time alone: measured.
 *
 * Once the buckets have found their order, a few steps go each way in turn, and the smaller median stays. Rank 0 measures and decides; every rank learns
 * it from the header of the backward. Where gradients are read before the step anyhow, nothing is left to gain, and buckets are sent early again.
 */
#include <stdlib.h>
#include "ddp_impl.h"

enum { WARM = 3, PATIENCE = 3 };

void td__which_way_open(td_ddp *d)
{
    const char *wanted = td__env(TD_ENV_ONE_PASS);
    if (!wanted || !strcmp(wanted, "auto"))
        d->which.way = TD__WAY_MEASURE;
    else if (!strcmp(wanted, "1"))
        d->which.way = TD__WAY_ONE;
    else if (!strcmp(wanted, "0"))
        d->which.way = TD__WAY_TWO;
    else
        td__fail(TD_ERR_ARGUMENT, "td_ddp_new: TANDEM_ONE_PASS is \"%.60s\"; expected auto, 0 or 1", wanted);
    d->which.forced = d->which.way != TD__WAY_MEASURE;
}

static bool one_now(const td__trials *w)
{
    if (w->way == TD__WAY_MEASURE)
        return w->step >= WARM && (w->step - WARM) % 2;
    return w->way == TD__WAY_ONE || (w->way == TD__WAY_IN_TURN && w->step % 2);
}

bool td__which_way(td_ddp *d)
{
    bool narrow = false;
    for (int b = 0; b < d->buckets; b++)
        narrow |= td__bucket_narrow(d, d->bucket[b].flat);
    return d->rebuilt && !d->hook.start && !narrow && one_now(&d->which);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *ms)
{
    qsort(ms, TD__WAY_TRIALS, sizeof *ms, by_value);
    return ms[TD__WAY_TRIALS / 2];
}

static void decide(td_ddp *d)
{
    td__trials *w = &d->which;
    const double two = median(w->ms[0]), one = median(w->ms[1]);
    w->way = one < two ? TD__WAY_ONE : TD__WAY_TWO;
    td__info("td_ddp: gradients are summed %s: %.3g ms a step, else %.3g (measured in %d steps; TANDEM_ONE_PASS overrides)",
             one < two ? "by the step, in one pass over them" : "during backward", one < two ? one : two, one < two ? two : one, 2 * TD__WAY_TRIALS);
}

/* On rank 0 these decide; on the others they are counted and mean nothing. */
void td__which_way_stepped(td_ddp *d, bool early)
{
    td__trials *w = &d->which;
    if (!d->rebuilt || d->rank != 0)
        return;
    w->early = early ? w->early + 1 : d->stats.one_pass ? 0 : w->early;
    if (w->way == TD__WAY_MEASURE && w->step >= WARM)
        w->ms[(w->step - WARM) % 2][(w->step - WARM) / 2] = d->stats.step_ms;
    w->step++;
    if (w->early >= PATIENCE && (w->way == TD__WAY_MEASURE || w->way == TD__WAY_ONE) && !w->forced) {
        w->way = TD__WAY_TWO;
        td__info("td_ddp: gradients are read before the step, so they are summed during backward");
    } else if (w->way == TD__WAY_MEASURE && w->step == WARM + 2 * TD__WAY_TRIALS) {
        decide(d);
    }
}
