/* job/fit.c: td_fit: the loop of tandem.h written once, with validation, best weights, early stop and a state to go on from.
 *
 * An error anywhere ends it with that code; nothing here prints an error or turns one into another.
 */
#include <autograd_impl.h>
#include <optim_impl.h>
#include <base.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "fit_impl.h"

static td_tensor *output_of(td__fit *f, const td_batch *b)
{
    return f->o->forward ? f->o->forward(f->model, b, f->o->user) : td_forward(f->model, b->x);
}

static td_tensor *loss_of(td__fit *f, td_tensor *output, const td_batch *b)
{
    return f->o->loss ? f->o->loss(output, b, f->o->user) : td_cross_entropy(output, b->y, NULL);
}

/* Both under autocast where it is asked for; backward and step are not. */
static td_tensor *forward(td__fit *f, const td_batch *b, td_tensor **output)
{
    td_autocast cast = td_autocast_begin(f->o->autocast);
    *output = output_of(f, b);
    td_tensor *loss = loss_of(f, *output, b);
    td_autocast_end(&cast);
    return loss;
}

/* ---- one step ------------------------------------------------------------------------------------------------------------------- */

static int optimizer_step(td__fit *f)
{
    const td_fit_opts *o = f->o;
    int64_t total = f->steps_per_epoch * f->epochs;
    int code = 0;
    for (int g = 0; o->schedule && g < f->groups; g++)
        td_optim_set_lr(f->optim, g, f->base_lr[g] * o->schedule(f->step, total, o->user));
    if (o->clip_norm > 0) {
        if (f->scaler && (code = td_scaler_unscale(f->scaler, f->optim)))
            return code;
        td_clip_grad_norm(f->optim, o->clip_norm);
        if ((code = td_error_pending()))
            return code;
    }
    code = f->scaler ? td_scaler_step(f->scaler, f->optim) : td_optim_step(f->optim);
    if (!code && f->scaler)
        code = td_scaler_update(f->scaler);
    if (!code && o->ema)
        code = td_ema_update(o->ema);
    f->step++;
    return code;
}

/* Batch number `at` of the epoch (from 0) of `batches`: does it end a group of batches that make one step? */
static bool ends_step(const td_fit_opts *o, int64_t at, int64_t batches)
{
    int64_t k = o->accumulate > 1 ? o->accumulate : 1;
    return (at + 1) % k == 0 || at + 1 == batches;
}

static int train_batch(td__fit *f, const td_batch *b, int64_t at, int64_t batches, td_progress *progress)
{
    TD_SCOPE();
    bool last = ends_step(f->o, at, batches);
    if (f->ddp)
        td_ddp_no_sync(f->ddp, !last);
    td_tensor *output, *loss = forward(f, b, &output);
    int code = td_backward(f->scaler ? td_scaler_scale(f->scaler, loss) : loss);
    if (!code)
        code = td__fit_totals_add(&f->totals, loss, output, b, f->o);
    if (!code && last)
        code = optimizer_step(f);
    if (!code && progress)
        td_progress_step(progress, b->rows, loss, f->ddp);
    return code ? code : td_error_pending();
}

/* ---- one epoch ------------------------------------------------------------------------------------------------------------------ */

/* Between two steps: has somebody asked for the end? Then the state is saved. */
static int look_for_request(td__fit *f)
{
    if (!f->asked || td_job_state_step(f->asked))
        return 0;
    int code = td_error_pending();
    f->requested = code == 0;
    return code ? code : td__fit_state_save(f);
}

static int train_epoch(td__fit *f)
{
    const int64_t batches = td_loader_batches(f->o->train);
    int64_t at = td_loader_position(f->o->train);        /* not 0 where a state was saved in mid-epoch                        */
    char title[64];
    snprintf(title, sizeof title, "epoch %lld/%lld", (long long)f->epoch + 1, (long long)f->epochs);
    td_progress *progress = f->o->quiet ? NULL : td_progress_new(&(td_progress_opts){ .title = title, .steps = batches - at });
    int code = 0;
    td_batch b;
    td_train(f->model, true);
    while (!code && !f->requested && td_loader_next(f->o->train, &b)) {
        code = train_batch(f, &b, at, batches, progress);
        bool stepped = ends_step(f->o, at, batches);
        at++;
        if (!code && stepped && f->o->save_every > 0 && f->step % f->o->save_every == 0 && at < batches)
            code = td__fit_state_save(f);
        if (!code && stepped)
            code = look_for_request(f);
    }
    if (progress)
        td_progress_end(progress);
    return code ? code : td_error_pending();
}

static int validate(td__fit *f, td_fit_epoch *e)
{
    td__fit_totals totals = { 0 };
    td_batch b;
    if (!f->o->validation)
        return 0;
    int code = td__fit_totals_begin(&totals, f->o->n_metrics);
    if (!code && f->o->ema)
        code = td_ema_swap(f->o->ema);
    TD_NO_GRAD();
    td_train(f->model, false);
    while (!code && td_loader_next(f->o->validation, &b)) {
        TD_SCOPE();
        td_tensor *output, *loss = forward(f, &b, &output);
        code = td__fit_totals_add(&totals, loss, output, &b, f->o);
    }
    td_train(f->model, true);
    td__ema_swap_back(f->o->ema);
    if (!code)
        code = td_error_pending();
    if (!code)
        code = td__fit_totals_read(&totals, &e->val_loss, e->val_metric);
    td__fit_totals_end(&totals);
    return code;
}

static void say(const td__fit *f, const td_fit_epoch *e)
{
    char line[640];
    size_t n = (size_t)snprintf(line, sizeof line, "epoch %lld: loss %.4f", (long long)e->epoch, e->loss);
    for (int i = 0; i < f->o->n_metrics && n < sizeof line; i++)
        n += (size_t)snprintf(line + n, sizeof line - n, ", %s %.4f", f->o->metrics[i].name, e->metric[i]);
    if (f->o->validation && n < sizeof line)
        n += (size_t)snprintf(line + n, sizeof line - n, ", val_loss %.4f", e->val_loss);
    for (int i = 0; f->o->validation && i < f->o->n_metrics && n < sizeof line; i++)
        n += (size_t)snprintf(line + n, sizeof line - n, ", val_%s %.4f", f->o->metrics[i].name, e->val_metric[i]);
    td_log0("%s, %.1f s%s", line, e->seconds, e->best ? " (best)" : "");
}

static int run_epoch(td__fit *f, td_fit_epoch *e)
{
    double began = td__now();
    int code = train_epoch(f);
    if (f->requested)
        return code;
    *e = (td_fit_epoch){ .val_loss = NAN };
    for (int i = 0; i < TD_FIT_MAX_METRICS; i++)
        e->metric[i] = e->val_metric[i] = NAN;
    if (!code)
        code = td__fit_totals_read(&f->totals, &e->loss, e->metric);
    if (!code)
        code = td_fill(f->totals.sums, 0);
    if (!code)
        code = validate(f, e);
    if (code)
        return code;
    e->epoch = ++f->epoch;
    e->step = f->step;
    code = td__fit_judge(f, e);
    if (!code)
        code = td__fit_state_save(f);
    e->seconds = td__now() - began;
    if (!code && !f->o->quiet)
        say(f, e);
    return code;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------------ */

static int check(const td_module *model, const td_fit_opts *o)
{
    if (!model || !o || !o->optim || !o->train)
        return td__fail(TD_ERR_ARGUMENT, "td_fit: %s is NULL", !model ? "the model" : !o ? "opts" : !o->optim ? "opts.optim" : "opts.train");
    if (o->epochs < 0 || o->accumulate < 0 || o->patience < 0 || o->save_every < 0 || !(o->clip_norm >= 0) || !(o->min_delta >= 0))
        return td__fail(TD_ERR_ARGUMENT, "td_fit: epochs is %lld, accumulate %d, patience %d, save_every %lld, clip_norm %g, min_delta %g, expected 0 "
                        "or more", (long long)o->epochs, o->accumulate, o->patience, (long long)o->save_every, o->clip_norm, o->min_delta);
    if (o->n_metrics < 0 || o->n_metrics > TD_FIT_MAX_METRICS || (o->n_metrics && !o->metrics))
        return td__fail(TD_ERR_ARGUMENT, "td_fit: n_metrics is %d, expected 0 to %d%s", o->n_metrics, TD_FIT_MAX_METRICS,
                        o->n_metrics > 0 && !o->metrics ? ", with metrics" : "");
    if (o->on_request && !o->state)
        return td__fail(TD_ERR_ARGUMENT, "td_fit: on_request is true, but there is no file for the state (opts.state)");
    for (int i = 0; i < o->n_metrics; i++)
        if (!o->metrics[i].name || !o->metrics[i].fn)
            return td__fail(TD_ERR_ARGUMENT, "td_fit: metric %d of %d has no name or no function", i, o->n_metrics);
    return td_error_pending();
}

static bool has_ddp(td_module *model)
{
    td_tensors p = td_parameters(model);
    for (size_t i = 0; i < p.n; i++) {
        const td__leaf *leaf = td__leaf_of(p.list[i]);
        if (leaf && leaf->group && leaf->group->ops)
            return true;
    }
    return false;
}

static int begin(td__fit *f)
{
    const td_fit_opts *o = f->o;
    f->optim = o->optim;
    f->ddp = o->ddp;
    f->scaler = o->scaler;
    int64_t batches = td_loader_batches(o->train), k = o->accumulate > 1 ? o->accumulate : 1;
    f->steps_per_epoch = (batches + k - 1) / k;
    f->groups = f->optim->n_options;
    f->base_lr = td__calloc((size_t)(f->groups ? f->groups : 1) * sizeof *f->base_lr);
    f->memory = td_keep(td_zeros(TD_SHAPE(TD__FIT_MEMORY), TD_F64));
    int code = f->base_lr ? td__fit_totals_begin(&f->totals, o->n_metrics) : TD_ERR_MEMORY;
    for (int g = 0; !code && g < f->groups; g++)
        f->base_lr[g] = td_optim_get_lr(f->optim, g);
    if (!code)
        code = td__fit_monitor_find(f);
    if (!code && td_size(td_world()) > 1 && !f->ddp && !has_ddp(f->model)) {
        f->ddp = td_ddp_new(f->model, NULL);
        f->own_ddp = true;
        code = td_error_pending();
    }
    if (!code && o->autocast == TD_F16 && !f->scaler) {
        f->scaler = td_scaler_new(NULL);
        f->own_scaler = true;
        code = td_error_pending();
    }
    if (!code)
        code = td__fit_state_open(f);
    if (!code && o->on_request) {
        f->asked = td_job_state_open(NULL, NULL, &(td_job_state_opts){ .quiet = o->quiet });
        code = td_error_pending();
    }
    return code;
}

static void end(td__fit *f)
{
    for (int g = 0; f->o->schedule && f->base_lr && g < f->groups && !td_error_pending(); g++)
        td_optim_set_lr(f->optim, g, f->base_lr[g]);
    td__free(f->base_lr);
    td__fit_totals_end(&f->totals);
    if (f->memory)
        td_release(f->memory);
    td_job_state_free(f->asked);
    if (f->own_scaler)
        td_scaler_free(f->scaler);
    if (f->own_ddp)
        td_ddp_free(f->ddp);
}

td_fit_result td_fit(td_module *model, const td_fit_opts *opts)
{
    TD_ENTER();
    td_fit_result r = { .code = check(model, opts) };
    if (r.code)
        return r;
    td__fit f = { .model = model, .o = opts, .epochs = opts->epochs ? opts->epochs : 1 };
    const bool was_training = td_is_training(model);
    r.code = begin(&f);
    while (!r.code && f.epoch < f.epochs && !r.stopped) {
        r.stopped = opts->patience > 0 && f.not_better >= opts->patience;   /* a state that was saved when it stopped     */
        if (r.stopped)
            break;
        r.code = run_epoch(&f, &r.last);
        if (f.requested)
            break;
        if (!r.code && opts->on_epoch && !opts->on_epoch(&r.last, opts->user))
            r.stopped = true;
        if (!r.code && opts->patience > 0 && f.not_better >= opts->patience)
            r.stopped = true;
        if (!r.code && !r.stopped && f.epoch < f.epochs)     /* a signal during the validation */
            r.code = look_for_request(&f);
        if (f.requested)
            break;
    }
    r.requested = f.requested;
    r.stopped |= f.requested;
    r.best_epoch = f.best_epoch;
    r.best_value = f.best_epoch ? f.best_value : NAN;
    end(&f);
    td_train(model, was_training);
    return r;
}
