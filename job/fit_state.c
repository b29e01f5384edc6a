/* job/fit_state.c: what td_fit remembers: the training state it goes on from, the best epoch, how long nothing was better.
 *
 * All ranks decide alike: the numbers judged are sums over all ranks, and whether the file exists is rank 0's answer.
 */
#include <optim_impl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "fit_impl.h"

int td__fit_monitor_find(td__fit *f)
{
    const td_fit_opts *o = f->o;
    const char *name = o->monitor ? o->monitor : o->validation ? "val_loss" : "loss";
    bool val = strncmp(name, "val_", 4) == 0;
    if (val && !o->validation)
        return td__fail(TD_ERR_ARGUMENT, "td_fit: monitor is \"%s\", but there is no validation loader", name);
    const char *bare = val ? name + 4 : name;
    if (strcmp(bare, "loss") == 0) {
        f->monitor = val ? -2 : -1;
        return 0;
    }
    for (int i = 0; i < o->n_metrics; i++)
        if (strcmp(bare, o->metrics[i].name) == 0) {
            f->monitor = val ? 100 + i : i;
            return 0;
        }
    return td__fail(TD_ERR_ARGUMENT, "td_fit: monitor is \"%s\", expected loss, val_loss, or a metric's name with or without val_", name);
}

/* ---- the training state ------------------------------------------------------------------------------------------------------- */

static int whole_state(td__fit *f, bool save)
{
    td_named extra = { "fit", f->memory };
    td_train_state s = { .model = f->model, .optims = &f->optim, .n_optims = 1, .loader = f->o->train, .scaler = f->scaler, .ema = f->o->ema,
                         .ddp = f->ddp, .extra = &extra, .n_extra = 1, .step = f->step };
    int code = save ? td_train_state_save(&s, f->o->state) : td_train_state_load(&s, f->o->state);
    f->step = s.step;
    return code;
}

/* The sums of the epoch under way are saved over all ranks, and are rank 0's after a load. */
int td__fit_state_save(td__fit *f)
{
    if (!f->o->state)
        return 0;
    TD_SCOPE();
    double v[TD__FIT_MEMORY] = { (double)f->epoch, (double)f->best_epoch, (double)f->not_better, f->best_value };
    td_tensor *all = td_zeros(TD_SHAPE(f->totals.n), TD_F64);
    td_assign(all, f->totals.sums);
    int code = td_all_reduce(td_world(), all, TD_SUM);
    if (!code)
        code = td_copy_out(all, v + TD__FIT_SUMS, (size_t)f->totals.n * sizeof *v);
    if (!code)
        code = td_copy_in(f->memory, v, sizeof v);
    return code ? code : whole_state(f, true);
}

int td__fit_state_open(td__fit *f)
{
    if (!f->o->state)
        return 0;
    TD_SCOPE();
    int rank = td_rank(td_world());
    td_tensor *there = td_full(TD_SCALAR, TD_I64, rank == 0 && access(f->o->state, F_OK) == 0);
    int code = td_broadcast(td_world(), there, 0);
    if (code || td_item(there) == 0)
        return code;
    double v[TD__FIT_MEMORY];
    if ((code = whole_state(f, false)) || (code = td_copy_out(f->memory, v, sizeof v)))
        return code;
    f->epoch = (int64_t)v[0];
    f->best_epoch = (int64_t)v[1];
    f->not_better = (int64_t)v[2];
    f->best_value = v[3];
    if (rank != 0)
        memset(v + TD__FIT_SUMS, 0, sizeof v - TD__FIT_SUMS * sizeof *v);
    code = td_copy_in(f->totals.sums, v + TD__FIT_SUMS, (size_t)f->totals.n * sizeof *v);
    if (!f->o->quiet)
        td_log0("td_fit: going on from %s after %lld epochs, %lld steps", f->o->state, (long long)f->epoch, (long long)f->step);
    return code;
}

/* ---- the best epoch ---------------------------------------------------------------------------------------------------------- */

static int keep_best(td__fit *f)
{
    int code = 0;
    if (!f->o->best)
        return 0;
    if (f->o->ema && (code = td_ema_swap(f->o->ema)))
        return code;
    if (td_rank(td_world()) == 0)
        code = td_save(f->model, f->o->best);
    td__ema_swap_back(f->o->ema);
    return code;
}

int td__fit_judge(td__fit *f, td_fit_epoch *e)
{
    const int m = f->monitor, i = m >= 100 ? m - 100 : m;
    double value = m == -2 ? e->val_loss : m == -1 ? e->loss : m >= 100 ? e->val_metric[i] : e->metric[i];
    bool lower = m < 0 || f->o->metrics[i].lower_is_better;
    bool first = f->best_epoch == 0;
    e->best = value == value && (first || (lower ? value < f->best_value - f->o->min_delta : value > f->best_value + f->o->min_delta));
    if (!e->best) {
        f->not_better++;
        return 0;
    }
    f->best_epoch = e->epoch;
    f->best_value = value;
    f->not_better = 0;
    return keep_best(f);
}
