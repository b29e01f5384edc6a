/* autograd/capture.c: td_capture calls a step once and keeps the list of what it did (tensor/record.c); td_replay runs the list.
 *
 * The list holds references to everything it works on, so every replay writes the same storages (where they lie: capture_plan.c). The inputs are
 * the graph's own tensors, which a replay fills first. Nothing in the list is a number that a replay must read anew: entries look it up when they
 * run, as the step did.
 */
#include "capture.h"
#include <pthread.h>

static td_graph poison;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static td_graph *live;
static __thread const td_graph *running;               /* inside td_replay or its step                                          */

/* ---- life ----------------------------------------------------------------------------------------------------------------------------- */

static td_graph *graph_new(void)
{
    td_graph *g = td__calloc(sizeof *g);
    if (!g)
        return &poison;
    pthread_mutex_lock(&lock);
    g->next = live;
    if (live)
        live->prev = g;
    live = g;
    pthread_mutex_unlock(&lock);
    return g;
}

void td_graph_free(td_graph *g)
{
    TD_ENTER();
    if (!g || g == &poison)
        return;
    if (g == running) {
        td__fail(TD_ERR_STATE, "td_graph_free: called while this graph is replayed");
        return;
    }
    pthread_mutex_lock(&lock);
    *(g->prev ? &g->prev->next : &live) = g->next;
    if (g->next)
        g->next->prev = g->prev;
    pthread_mutex_unlock(&lock);
    td__device_graph_free(g->device);
    td__records_free(g->first);
    td__placing_free(g->layout);
    td__tensor_unref(g->result);
    for (size_t i = 0; i < g->n_in; i++)
        td__tensor_unref(g->in[i]);
    td__free(g->in);
    td__free(g);
}

void td__graphs_free_all(void)
{
    while (live)
        td_graph_free(live);
}

static int check(const char *who, const td_graph *g)
{
    if (!g)
        return td__fail(TD_ERR_ARGUMENT, "%s: the td_graph is NULL", who);
    if (td__pending())
        return td__pending();
    return g == &poison ? TD_ERR_ARGUMENT : 0;
}

/* ---- inputs ------------------------------------------------------------------------------------------------------------------------------ */

static int check_inputs(const char *who, td_tensors inputs)
{
    char shape[128];
    if (inputs.n && !inputs.list)
        return td__fail(TD_ERR_ARGUMENT, "%s: the list of %zu inputs is NULL", who, inputs.n);
    for (size_t i = 0; i < inputs.n; i++) {
        int code = td__tensor_check(who, inputs.list[i]);
        if (code)
            return code;
        if (td_needs_grad(inputs.list[i]))
            return td__fail(TD_ERR_ARGUMENT, "%s: input %zu, shape %s, asks for a gradient, and a step's inputs get none: parameters are not passed, and "
                            "td_detach takes a tensor from its graph", who, i, td__shape_text(inputs.list[i]->shape, shape));
    }
    return 0;
}

static int own_inputs(td_graph *g, td_tensors inputs)
{
    g->in = td__calloc((inputs.n + 1) * sizeof *g->in);
    if (!g->in)
        return TD_ERR_MEMORY;
    for (; g->n_in < inputs.n; g->n_in++) {
        td_tensor *given = inputs.list[g->n_in];
        td_tensor *own = td__tensor_new_as(given->shape, given->dtype, given->storage->device, td__channels_last(given));
        int code = own->poisoned ? TD_ERR_MEMORY : td__copy(own, given, false);
        if (code) {
            td__tensor_unref(own);
            return code;
        }
        g->in[g->n_in] = own;
    }
    return 0;
}

static int other_inputs(const td_graph *g, td_tensors inputs, size_t i)
{
    char a[128], b[128], site[256], here[24], there[24];
    td__site_text(g->site, site, sizeof site);
    if (inputs.n != g->n_in)
        return td__fail(TD_ERR_ARGUMENT, "td_replay: %zu inputs, expected the %zu that the step was captured with at %s", inputs.n, g->n_in, site);
    const td_tensor *x = inputs.list[i], *own = g->in[i];
    return td__fail(TD_ERR_SHAPE, "td_replay: input %zu is %s %s on %s, expected %s %s on %s as in the step captured at %s", i,
                    td__shape_text(x->shape, a), td_dtype_name(x->dtype), td__device_text(x->storage->device, here),
                    td__shape_text(own->shape, b), td_dtype_name(own->dtype), td__device_text(own->storage->device, there), site);
}

static int fill_inputs(td_graph *g, td_tensors inputs)
{
    int code = check_inputs("td_replay", inputs);
    if (code)
        return code;
    if (inputs.n != g->n_in)
        return other_inputs(g, inputs, 0);
    for (size_t i = 0; i < inputs.n; i++) {
        const td_tensor *x = inputs.list[i], *own = g->in[i];
        if (!td__shape_equal(x->shape, own->shape) || x->dtype != own->dtype || !td__device_equal(x->storage->device, own->storage->device))
            return other_inputs(g, inputs, i);
    }
    for (size_t i = 0; i < inputs.n && !code; i++) {
        if (inputs.list[i] == g->in[i])
            continue;
        code = td__copy(g->in[i], inputs.list[i], false);
        g->in[i]->storage->version++;
    }
    return code;
}

/* ---- recording ---------------------------------------------------------------------------------------------------------------------------- */

/* The step, called with the graph's own inputs. What it returned gets a reference. */
td_tensor *td__capture_step(td_graph *g)
{
    const td_graph *before = running;
    running = g;
    td_scope scope = td_scope_begin();
    td_tensor *result = g->step((td_tensors){ g->in, g->n_in }, g->user);
    td__tensor_ref(result);
    td_scope_end(&scope);
    running = before;
    return result;
}

static int refused(const td__recording *r)
{
    td__site = r->reason_site;
    return td__fail(r->code, "td_capture: %s", r->reason);
}

static int record(td_graph *g)
{
    td__recording r = { 0 };
    td__emptying *e = td__calloc(sizeof *e);
    if (!e)
        return TD_ERR_MEMORY;
    td__autocast_drop();                               /* weights cast before would not be cast again in a replay                  */
    td__recording_now = &r;
    td__empty_begin(e, &r);
    g->result = td__capture_step(g);
    td__record_end_constants(&r);
    td__recording_now = NULL;
    td__autocast_drop();
    g->eager = td__empty_end(e);
    td__free(e);
    g->first = r.first;
    const void *site = td__site;
    int code = td__pending();
    if (!code && g->result && g->result->poisoned)
        code = TD_ERR_ARGUMENT;
    if (!code && r.code) {
        code = refused(&r);
        td__site = site;
    }
    code = code ? code : td__device_graph_make(g);
    code = code || g->device ? code : td__capture_fuse(g);
    return code || g->device ? code : td__placing_make(g);      /* last: of the list as it will be run                           */
}

static int check_capture(td_tensor *(*step)(td_tensors, void *), td_tensors inputs, const td_capture_opts *opts)
{
    if (td__pending())
        return td__pending();
    if (!step)
        return td__fail(TD_ERR_ARGUMENT, "td_capture: the step is NULL");
    if (opts && opts->verify < 0)
        return td__fail(TD_ERR_ARGUMENT, "td_capture: verify is %lld, expected 0 or more", (long long)opts->verify);
    if (td__recording_now || running)
        return td__fail(TD_ERR_STATE, "td_capture: called inside a step that is captured or replayed");
    if (td__tape_now.rerun || td__tape_now.light || td__not_in_backward("td_capture"))
        return td__pending() ? td__pending() : td__fail(TD_ERR_STATE, "td_capture: called inside a function of td_checkpoint");
    return check_inputs("td_capture", inputs);
}

td_graph *td_capture(td_tensor *(*step)(td_tensors inputs, void *user), void *user, td_tensors inputs, const td_capture_opts *opts)
{
    TD_ENTER();
    if (check_capture(step, inputs, opts))
        return &poison;
    td_graph *g = graph_new();
    if (g == &poison)
        return g;
    g->step = step;
    g->user = user;
    g->site = td__site;
    g->verify = opts ? opts->verify : 0;
    if (!own_inputs(g, inputs) && !record(g))
        return g;
    td_graph_free(g);
    return &poison;
}

/* ---- replaying ------------------------------------------------------------------------------------------------------------------------------ */

int td__records_run(const td__record *first, td__placing *layout)
{
    const void *site = td__site;
    int code = 0;
    uint32_t moment = 0;
    for (const td__record *r = first; r && !code; r = r->next) {
        td__site = r->site;
        code = layout ? td__placing_moment(layout, moment) : 0;
        moment += td__record_moments(r);
        code = code ? code : r->kind->run((void *)(uintptr_t)r->state);
        code = code ? code : td__pending();
    }
    td__site = site;
    return code;
}

int td__graph_once(td_graph *g)
{
    return g->device ? td__device_graph_replay(g) : td__placing_replay(g);
}

td_tensor *td_replay(td_graph *g, td_tensors inputs)
{
    TD_ENTER();
    if (check("td_replay", g))
        return td__poison();
    if (td__recording_now || running || td__tape_now.walking) {
        td__fail(TD_ERR_STATE, "td_replay: called inside a step that is captured or replayed, or in a backward");
        return td__poison();
    }
    if (fill_inputs(g, inputs))
        return td__poison();
    running = g;
    td_scope scope = td_scope_begin();
    g->replays++;
    int code = g->verify && g->replays % g->verify == 0 ? td__capture_verified(g) : td__graph_once(g);
    td_scope_end(&scope);
    running = NULL;
    if (code && !td__pending())
        td__fail(code, "td_replay: failed with code %d and no sentence", code);
    return code ? td__poison() : g->result;
}

td_tensor *td_graph_result(const td_graph *g)
{
    TD_ENTER();
    return check("td_graph_result", g) ? td__poison() : g->result;
}

int64_t td_graph_replays(const td_graph *g)
{
    TD_ENTER();
    return check("td_graph_replays", g) ? 0 : g->replays;
}

td_graph_figures td_graph_stats(const td_graph *g)
{
    TD_ENTER();
    return check("td_graph_stats", g) ? (td_graph_figures){ 0 } : td__placing_figures(g);
}
