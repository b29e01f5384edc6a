/* autograd/capture_graph.c: a captured step on a device that has graphs: the list is run once while the device records instead of computing; from
 * then on a replay is one launch.
 *
 * A graph keeps arguments as they are, so a number that changes is no argument: kernels read it from a small table in the device's memory. Who has
 * such a number asks td__graph_slot for its place. While the graph is made the numbers are noted in order; before every launch the host's part of
 * the list gives the same numbers, of that moment, in the same order, and the table is copied to the device. So nothing waits.
 * Recording moves counters of the host although nothing is computed: they are put back afterwards.
 */
#include "capture.h"
#include <string.h>

enum { TABLE = 1 << 16 };

typedef struct { td_tensor *into, *from; } filled;
typedef struct { int (*run)(void *of); void *of; } later;
struct td__device_graph {
    const td_device_ops *ops;
    int index;
    void *graph;
    td_storage *table;
    char  *host;                                       /* what goes to the table                                               */
    size_t used, recorded;                             /* bytes: so far; when the graph was made                               */
    filled *copy; size_t copies, room, copied;         /* tensors that are copied before a launch: sample numbers                */
    later *after; size_t afters, after_room;           /* to be called behind this launch                                      */
    bool   building;
};
static __thread td__device_graph *now;

/* ---- slots -------------------------------------------------------------------------------------------------------------------------------- */

bool td__graph_building(void)
{
    return now && now->building;
}

const void *td__graph_slot(const void *bytes, size_t n)
{
    td__device_graph *d = now;
    if (!d)
        return NULL;
    if (d->used + n > TABLE) {
        td__fail(TD_ERR_UNSUPPORTED, "td_capture: the step has more than %d bytes of numbers that change from replay to replay", TABLE);
        return NULL;
    }
    memcpy(d->host + d->used, bytes, n);
    const void *at = (char *)d->table->data + d->used;
    d->used += (n + 7) / 8 * 8;
    return at;
}

td_number td__graph_number(double value)
{
    const double *at = td__graph_slot(&value, sizeof value);
    return at ? (td_number){ 1, at } : (td_number){ value, NULL };
}

td_tensor *td__graph_tensor(td_tensor *from)
{
    td__device_graph *d = now;
    char a[128], b[128];
    if (d->building) {
        if (d->copies == d->room) {
            size_t room = d->room ? 2 * d->room : 8;
            filled *more = td__grow(d->copy, d->room * sizeof *more, room * sizeof *more);
            if (!more)
                return td__poison();
            d->copy = more;
            d->room = room;
        }
        td_tensor *into = td__tensor_new(from->shape, from->dtype, d->table->device);
        if (into->poisoned)
            return into;
        d->copy[d->copies++] = (filled){ into, NULL };
    } else if (d->copied >= d->copies || !td__shape_equal(from->shape, d->copy[d->copied].into->shape)) {
        td__fail(TD_ERR_SHAPE, "td_replay: there are sample numbers of shape %s, expected %s as in the captured step (td_samples)",
                 td__shape_text(from->shape, a), d->copied < d->copies ? td__shape_text(d->copy[d->copied].into->shape, b) : "none");
        return td__poison();
    }
    filled *f = &d->copy[d->copied++];
    td__tensor_ref(from);
    td__tensor_unref(f->from);
    f->from = from;
    return f->into;
}

int td__graph_after_launch(int (*run)(void *of), void *of)
{
    td__device_graph *d = now;
    if (!d || d->building)
        return 0;
    if (d->afters == d->after_room) {
        size_t room = d->after_room ? 2 * d->after_room : 8;
        later *more = td__grow(d->after, d->after_room * sizeof *more, room * sizeof *more);
        if (!more)
            return td__pending();
        d->after = more;
        d->after_room = room;
    }
    d->after[d->afters++] = (later){ run, of };
    return 0;
}

/* ---- counters of the host ------------------------------------------------------------------------------------------------------------------- */

typedef struct { void *at; size_t bytes; char was[16]; } counter;
typedef struct { td__visitor visitor; counter *counter; size_t n, room; int code; int64_t step, calls; } counters;

static void no_storage(td__visitor *v, td_storage *s, const char *name)
{
    (void)v, (void)s, (void)name;
}

static void add_counter(td__visitor *visitor, void *at, size_t bytes, const char *name)
{
    counters *c = (counters *)(void *)visitor;
    (void)name;
    for (size_t i = 0; i < c->n; i++)
        if (c->counter[i].at == at)
            return;
    if (c->n == c->room) {
        size_t room = c->room ? 2 * c->room : 64;
        counter *more = td__grow(c->counter, c->room * sizeof *more, room * sizeof *more);
        if (!more) {
            c->code = TD_ERR_MEMORY;
            return;
        }
        c->counter = more;
        c->room = room;
    }
    c->counter[c->n] = (counter){ .at = at, .bytes = bytes };
    memcpy(c->counter[c->n++].was, at, bytes);
}

static int counters_keep(counters *c, const td_graph *g)
{
    *c = (counters){ .visitor = { no_storage, add_counter }, .step = td_step_get(), .calls = td__random_calls() };
    for (td__record *r = g->first; r; r = r->next)
        if (r->kind->visit)
            r->kind->visit(r->state, &c->visitor);
    return c->code;
}

static void counters_put_back(counters *c)
{
    for (size_t i = 0; i < c->n; i++)
        memcpy(c->counter[i].at, c->counter[i].was, c->counter[i].bytes);
    td_step_set(c->step);
    td__random_calls_set(c->calls);
    td__free(c->counter);
}

/* ---- making -------------------------------------------------------------------------------------------------------------------------------- */

void td__device_graph_free(td__device_graph *d)
{
    if (!d)
        return;
    if (d->graph)
        d->ops->graph_free(d->index, d->graph);
    for (size_t i = 0; i < d->copies; i++) {
        td__tensor_unref(d->copy[i].into);
        td__tensor_unref(d->copy[i].from);
    }
    td__storage_unref(d->table);
    td__free(d->copy);
    td__free(d->after);
    td__free(d->host);
    td__free(d);
}

static int build(td_graph *g, td__device_graph *d)
{
    int code = d->ops->graph_begin(d->index);
    if (code)
        return code;
    now = d;
    d->building = true;
    code = td__records_run(g->first, NULL);
    d->building = false;
    now = NULL;
    d->recorded = d->used;
    int ended = d->ops->graph_end(d->index, code ? NULL : &d->graph);
    return code ? code : ended;
}

int td__device_graph_make(td_graph *g)
{
    td_device device;
    int code = td__records_device(g->first, &device);
    if (code)
        return code < 0 ? code : 0;
    const td_device_ops *ops = td__device_ops(device);
    td__device_graph *d = td__calloc(sizeof *d);
    if (!ops || !d) {
        td__free(d);
        return td__pending() ? td__pending() : TD_ERR_MEMORY;
    }
    d->ops = ops;
    d->index = device.index;
    d->host = td__calloc(TABLE);
    d->table = td__storage_new(device, TABLE);
    counters c = { 0 };
    code = d->host && d->table ? counters_keep(&c, g) : TD_ERR_MEMORY;
    td_scope scope = td_scope_begin();
    code = code ? code : build(g, d);
    td_scope_end(&scope);
    counters_put_back(&c);
    if (code) {
        td__device_graph_free(d);
        return code;
    }
    g->device = d;
    return 0;
}

/* ---- replaying ------------------------------------------------------------------------------------------------------------------------------- */

int td__device_graph_replay(td_graph *g)
{
    td__device_graph *d = g->device;
    int code = 0;
    d->used = d->copied = d->afters = 0;
    now = d;
    for (td__record *r = g->first; r && !code; r = r->next) {
        code = r->kind->host ? r->kind->host(r->state) : 0;
        code = code ? code : td__pending();
    }
    now = NULL;
    if (!code && d->used != d->recorded)
        code = td__fail(TD_ERR_INTERNAL, "td_replay: %zu bytes of numbers, expected the %zu of the captured step", d->used, d->recorded);
    for (size_t i = 0; i < d->copied && !code; i++)
        code = td__copy(d->copy[i].into, d->copy[i].from, false);
    if (!code && d->used)
        code = d->ops->copy(d->index, d->table->data, false, d->host, true, d->used);
    code = code ? code : d->ops->graph_launch(d->index, d->graph);
    for (size_t i = 0; i < d->afters && !code; i++)
        code = d->after[i].run(d->after[i].of);
    return code;
}
