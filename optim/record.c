/* optim/record.c: what a captured step does with optimizers: each call is noted, and a replay makes it again, with the learning rate of that
 * moment. Optimizers and averages are the program's to free, so a replay first looks whether they still live.
 */
#include "optim_impl.h"

typedef struct { const td__param *first; size_t i, count; } run;
typedef struct { void *on; double number; run *run; size_t runs, room; } call;
static __thread call *making;                          /* the step whose kernels a graph of the device records                  */

static int gone(const char *who)
{
    return td__fail(TD_ERR_STATE, "td_replay: the object of the captured %s has been freed; free the graph first", who);
}

static bool lives(const td_optim *opt)
{
    const td_optim *o = td__optims();
    while (o && o != opt)
        o = o->next;
    return o != NULL;
}

int td__optim_check_lives(const td_optim *opt, const char *what)
{
    return lives(opt) ? 0 : gone(what);
}

static int step_again(void *state)
{
    call *c = state;
    int rc = td__optim_check_lives(c->on, "td_optim_step");
    if (rc)
        return rc;
    if (td__graph_building()) {
        making = c;
        c->runs = 0;
    }
    rc = td_optim_step(c->on);
    making = NULL;
    return rc;
}

void td__note_run(td_optim *opt, size_t i, size_t count)
{
    call *c = making;
    if (!c)
        return;
    if (c->runs == c->room) {
        size_t room = c->room ? 2 * c->room : 8;
        run *more = td__grow(c->run, c->room * sizeof *more, room * sizeof *more);
        if (!more)
            return;                                    /* the error is pending                                                 */
        c->run = more;
        c->room = room;
    }
    c->run[c->runs++] = (run){ opt->walk[i], i, count };
}

static int step_host(void *state)
{
    const call *c = state;
    td_optim *opt = c->on;
    int rc = td__optim_check_lives(opt, "td_optim_step");
    if (rc)
        return rc;
    for (size_t k = 0; k < c->runs; k++) {
        const td__param *p = c->run[k].first;
        if (!opt->laid_out || c->run[k].i >= opt->n || opt->walk[c->run[k].i] != p || p->flat != p->leaf->flat || p->offset != p->leaf->offset)
            return td__fail(TD_ERR_STATE, "td_replay: the optimizer's parameters lie elsewhere since the step was captured; capture it anew");
        td__step_host(opt, c->run[k].i, c->run[k].count);
    }
    opt->factored = false;
    opt->steps++;
    td_step_set(td_step_get() + 1);
    return 0;
}

static void step_drop(void *state)
{
    td__free(((call *)state)->run);
}

static void step_visit(void *state, td__visitor *v)
{
    static const char *const moment[TD__STATES] = { "the first moments of an optimizer", "the second moments of an optimizer", "the third moments of an optimizer",
                                                   "the masters of an optimizer" };
    td_optim *opt = ((call *)state)->on;
    if (!lives(opt))
        return;
    v->number(v, &opt->steps, sizeof opt->steps, "an optimizer's count of steps");
    for (size_t i = 0; i < opt->n; i++) {
        v->storage(v, opt->param[i].value->storage, td__leaf_name(opt->param[i].value));
        v->number(v, &opt->param[i].steps, sizeof opt->param[i].steps, "a parameter's count of steps");
    }
    for (int s = 0; s < opt->spans; s++)
        for (int m = 0; m < TD__STATES; m++)
            v->storage(v, opt->span[s].moment[m], moment[m]);
}

static int clip_again(void *state)
{
    const call *c = state;
    int rc = td__optim_check_lives(c->on, "td_clip_grad_norm");
    if (rc)
        return rc;
    td_clip_grad_norm(c->on, c->number);
    return td__pending();
}

static int ema_again(void *state)
{
    const call *c = state;
    return td__ema_lives(c->on) ? td_ema_update(c->on) : gone("td_ema_update");
}

static void ema_visit(void *state, td__visitor *v)
{
    td__ema_parts parts;
    if (td__ema_lives(((call *)state)->on) && td__ema_look(((call *)state)->on, &parts))
        for (size_t i = 0; i < parts.n; i++)
            v->storage(v, parts.average[i]->storage, "a moving average");
}

static void note(const td__record_kind *kind, void *on, double number)
{
    call *c = td__record_begin(kind);
    if (c)
        *c = (call){ .on = on, .number = number };
}

void td__note_step(td_optim *opt)
{
    static const td__record_kind kind = { "td_optim_step", sizeof(call), step_again, step_host, step_drop, step_visit };
    note(&kind, opt, 0);
}

void td__note_clip(td_optim *opt, double max_norm)
{
    static const td__record_kind kind = { "td_clip_grad_norm", sizeof(call), clip_again, NULL, NULL, NULL };
    note(&kind, opt, max_norm);
}

void td__note_ema(td_ema *ema)
{
    static const td__record_kind kind = { "td_ema_update", sizeof(call), ema_again, NULL, NULL, ema_visit };
    note(&kind, ema, 0);
}

void td__note_rate(const char *who)
{
    if (td__recorded_here())
        td__record_refuse("%s is called by the step, and the learning rate is read anew by every replay; call it before td_replay", who);
}

void td__note_scaler(const char *who)
{
    if (td__recorded_here())
        td__record_refuse("%s is called by the step: whether a scaled step is left out is decided by the host, anew each time; capture steps in bf16, "
                          "which need no scaler", who);
}
