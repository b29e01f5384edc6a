/* autograd/capture_plan.c: the memory of replays on the CPU: one stretch, in which everything that does not live at the same time lies at the
 * same place.
 *
 * Two things lie in it. Results of operations that the list alone holds: from the entry that writes them to the last entry, or node of a backward,
 * that reads them (capture_uses.c). Their storages are put at their places once. And whatever a replay asks of the pool: gradients, copies, scratch,
 * handles: it runs the same lines as the one before, so one replay is noted and the requests of later ones find their places by their number
 * (base/pool_plan.c). The first replay is the one that is noted; until its end only results share memory.
 *
 * A replay that asks for something else than the noted one is right all the same, and is noted anew soon: after 2, 4, 8 … replays, since what
 * differs each time need not be planned each time.
 */
#include "capture.h"
#include <stdlib.h>
#include <string.h>

enum { LINE = 64, LARGE = 64 << 10, MOST_DOUBLINGS = 12 };

struct td__placing {
    td__use *result; size_t results;                   /* in the order of their first moments                                  */
    td_tensor **stamped; size_t stamps;                /* outputs that each replay stamps anew, lent                             */
    uint32_t moments;
    td__pool_plan *plan;                               /* where all lies now; NULL: nowhere                                     */
    bool whole;                                        /* what a replay asks for is in it, not just results                       */
    int  noted;                                        /* how often replays were noted                                         */
    int64_t turns, again;                              /* replays; the one that is to be noted next                             */
    int64_t apart, fell;
    td__pool_log log;
};

/* ---- what is to be laid out ---------------------------------------------------------------------------------------------------------------- */

static int earlier_first(const void *a, const void *b)
{
    const td__use *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* A loss's divisor is made anew by each replay, and the one before is dropped first: the new one finds its place free. */
static int find_stamps(td__placing *l, const td__list_uses *u)
{
    l->stamped = td__alloc((u->handles + 1) * sizeof *l->stamped);
    for (size_t i = 0; i < u->handles && l->stamped; i++)
        if (u->handle[i].made && u->handle[i].x->divisor)
            l->stamped[l->stamps++] = u->handle[i].x;
    return l->stamped ? 0 : TD_ERR_MEMORY;
}

static int find_results(td__placing *l, td__list_uses *u)
{
    int code = 0;
    l->result = td__alloc((u->n + 1) * sizeof *l->result);
    if (!l->result)
        return TD_ERR_MEMORY;
    for (size_t i = 0; i < u->n && !code; i++) {
        td__use *use = &u->use[i];
        if (use->movable && use->first == UINT32_MAX)
            td__storage_empty(use->storage);
        else if (use->movable && use->filled)
            l->result[l->results++] = *use;
        else if (!use->storage->data)                  /* was the list's while it was recorded                                    */
            code = td__storage_refill(use->storage);
    }
    qsort(l->result, l->results, sizeof *l->result, earlier_first);
    return code;
}

int td__placing_make(td_graph *g)
{
    td__list_uses u;
    td__placing *l = td__calloc(sizeof *l);
    if (!l)
        return TD_ERR_MEMORY;
    g->layout = l;
    int code = td__list_uses_find(g->first, &u);
    l->moments = u.now;
    code = code ? code : find_results(l, &u);
    code = code ? code : find_stamps(l, &u);
    td__list_uses_free(&u);
    return code;
}

void td__placing_free(td__placing *l)
{
    if (!l)
        return;
    td__pool_plan_drop(l->plan);
    td__free(l->result);
    td__free(l->stamped);
    td__free(l);
}

/* ---- laying out ------------------------------------------------------------------------------------------------------------------------------ */

static size_t whole_lines(size_t bytes)
{
    return (bytes + LINE - 1) / LINE * LINE;
}

/* Blocks that outlive the replay have a place of their own, free again when the next one asks; large ones, which may stay for good, do not. */
static bool planned(const td__pool_noted *b)
{
    return !b->elsewhere && (b->died != TD__POOL_NEVER || b->bytes <= LARGE);
}

static bool passing(const td__pool_noted *b)
{
    return planned(b) && b->died != TD__POOL_NEVER;
}

/* The event at which `moment` began, or the first later one did. */
static uint32_t began(const td__pool_log *log, uint32_t moment)
{
    while (moment < log->moments && log->began[moment] == TD__POOL_NEVER)
        moment++;
    return moment < log->moments ? log->began[moment] : log->events;
}

/* What has to be packed: first the results, then the requests noted. */
static td__packed *items(const td__placing *l, const td__pool_log *log, size_t *n)
{
    const size_t requests = log ? log->n : 0;
    td__packed *list = td__alloc((l->results + requests + 1) * sizeof *list);
    *n = 0;
    for (size_t i = 0; list && i < l->results; i++) {
        const td__use *use = &l->result[i];
        list[(*n)++] = (td__packed){ whole_lines(use->storage->bytes), log ? began(log, use->first) : use->first,
                                     log ? began(log, use->last + 1) : use->last + 1, 0 };
    }
    for (size_t i = 0; list && i < requests; i++) {
        const td__pool_noted *b = td__pool_noted_at(log, i);
        if (planned(b))
            list[(*n)++] = (td__packed){ TD__POOL_HEADER + whole_lines(b->bytes), passing(b) ? b->born : 0, passing(b) ? b->died : UINT32_MAX, 0 };
    }
    return list;
}

static void put_results(const td__placing *l, const td__packed *list, const uint32_t *over, const td__pool_log *log)
{
    td__pool_plan *p = l->plan;
    for (size_t i = 0; i < l->results; i++) {
        const td__use *use = &l->result[i];
        p->stretch[i] = (td__pool_stretch){ list[i].at, whole_lines(use->storage->bytes), use->first, use->last, log ? over[began(log, use->first)] : 0 };
        td__storage_put(use->storage, p->memory + list[i].at);
    }
}

/* over[e]: how many passing blocks have ended when event e comes. */
static uint32_t *count_ends(const td__pool_log *log, uint32_t *ends)
{
    uint32_t *over = td__calloc(((size_t)log->events + 2) * sizeof *over);
    for (size_t i = 0; over && i < log->n; i++)
        if (passing(td__pool_noted_at(log, i)))
            over[td__pool_noted_at(log, i)->died + 1]++;
    for (uint32_t e = 0; over && e < log->events; e++)
        over[e + 1] += over[e];
    *ends = over ? over[log->events] : 0;
    return over;
}

static void put_requests(const td__placing *l, const td__packed *list, const uint32_t *over, const td__pool_log *log)
{
    td__pool_plan *p = l->plan;
    size_t next = l->results;
    for (uint32_t i = 0; i < p->places; i++) {
        const td__pool_noted *b = td__pool_noted_at(log, i);
        td__pool_place *at = &p->place[i];
        *at = (td__pool_place){ b->bytes, planned(b) ? list[next++].at : SIZE_MAX, over[b->born], TD__POOL_NEVER };
        if (!passing(b))
            continue;
        at->order = over[b->died];                     /* an event ends one block, so this is its number in the row               */
        p->by_order[at->order] = i;
    }
    uint32_t i = 0;
    for (uint32_t m = 0; m <= p->moments; m++) {
        while (i < p->places && td__pool_noted_at(log, i)->moment < m)
            i++;
        p->first[m] = m < p->moments ? i : p->places;
    }
}

/* Everything gets its place; log NULL: results alone. */
static int lay_out(td__placing *l, const td__pool_log *log)
{
    for (size_t i = 0; i < l->results; i++)
        td__storage_empty(l->result[i].storage);
    td__pool_plan_drop(l->plan);
    l->plan = NULL;
    l->whole = false;
    size_t n, bytes = 0;
    uint32_t ends = 0, *over = log ? count_ends(log, &ends) : NULL;
    td__packed *list = items(l, log, &n);
    int code = !list || (log && !over) ? TD_ERR_MEMORY : td__pack(list, n, &bytes);
    if (!code) {
        td_memory_trim();                              /* what the step or the last replay used instead: else the process has both      */
        l->plan = td__pool_plan_new(log ? (uint32_t)log->n : 0, ends, l->moments, (uint32_t)l->results, bytes);
    }
    if (l->plan) {
        put_results(l, list, over, log);
        if (log)
            put_requests(l, list, over, log);
        l->whole = log != NULL;
        l->apart = 0;
        for (size_t i = 0; i < n; i++)
            l->apart += (int64_t)list[i].bytes;
    }
    td__free(over);
    td__free(list);
    return l->plan ? 0 : code ? code : TD_ERR_MEMORY;
}

/* ---- replays ------------------------------------------------------------------------------------------------------------------------------- */

/* Before the entry that begins with `moment`. A block that lives on where results should lie now keeps its place, and they get other memory. */
int td__placing_moment(td__placing *l, uint32_t moment)
{
    int code = 0;
    if (td__pool_moment(moment))
        return 0;
    for (size_t i = 0; i < l->results && !code; i++)
        if (l->result[i].first == moment)
            code = td__storage_refill(l->result[i].storage);
    l->plan->fell++;
    return code;
}

static int note(td_graph *g, td__placing *l)
{
    int code = l->plan && !l->whole && !td__pool_plan_busy(l->plan) ? 0 : lay_out(l, NULL);
    code = code ? code : td__pool_log_begin(&l->log, l->moments);
    if (code)
        return code;
    td__pool_turn_begin(l->plan);
    code = td__records_run(g->first, l);
    td__pool_turn_end();
    td__pool_log_end(&l->log);
    l->fell = l->plan->fell;
    if (!code && !l->log.failed) {
        code = lay_out(l, &l->log);
        l->noted++;
        l->again = INT64_MAX;
    }
    td__pool_log_free(&l->log);
    return code;
}

static int run(td_graph *g, td__placing *l)
{
    td__pool_turn_begin(l->plan);
    int code = td__records_run(g->first, l);
    td__pool_turn_end();
    l->fell = l->plan->fell + l->plan->left;
    if (l->plan->fell && l->again == INT64_MAX)
        l->again = l->turns + (1 << (l->noted < MOST_DOUBLINGS ? l->noted : MOST_DOUBLINGS));
    return code;
}

int td__placing_replay(td_graph *g)
{
    td__placing *l = g->layout;
    l->turns++;
    for (size_t i = 0; i < l->stamps; i++) {
        td__tensor_unref(l->stamped[i]->divisor);
        l->stamped[i]->divisor = NULL;
    }
    return l->whole && l->turns < l->again && !td__pool_plan_busy(l->plan) ? run(g, l) : note(g, l);
}

td__pool_plan *td__placing_plan(const td_graph *g)
{
    return g->layout ? g->layout->plan : NULL;
}

td_graph_figures td__placing_figures(const td_graph *g)
{
    const td__placing *l = g->layout;
    td_graph_figures f = { .eager = g->eager, .fused = g->fused };
    for (const td__record *r = g->first; r; r = r->next)
        f.entries++;
    if (!l)
        return f;
    f.planned = l->plan ? (int64_t)l->plan->bytes : 0;
    f.apart = l->apart;
    f.fell = l->fell;
    return f;
}
