/* comm/comm_hier_run.c: carries out this rank's list of steps (schedule.h) over the wire.
 *
 * Receives are started ahead, TD_HIER_SLOTS of them, so while one slice is added the next ones come in. Sends are started where
 * the list has them and looked at only when something must wait for them. In steady state nothing is allocated.
 */
#include "comm_hier.h"

typedef struct {
    td__hier *h;
    const td_coll *coll;
    bool    whole;                             /* the ranks of this host work together; else this rank is one by itself          */
    int     mates, me;
    size_t  size;                              /* of an element                                                                  */
    int64_t slice;
    double  post;
    int     at, posted, under_way, left;       /* the step now; RECVs before `posted` are started, SENDs before `left` are done  */
    const char *in_of; char *out_of;           /* this rank's own                                                                */
} run_state;

/* ---- memory ----------------------------------------------------------------------------------------------------------------------------- */

static char *in_of(const run_state *r, int local)
{
    if (!r->whole || local == r->me)
        return (char *)r->in_of;
    return (char *)r->h->base[local] + td__control_entry(&r->h->view, local, r->coll->turn)->in;
}

static char *out_of(const run_state *r, int local)
{
    if (!r->whole || local < 0 || local == r->me)
        return r->out_of;
    return (char *)r->h->base[local] + td__control_entry(&r->h->view, local, r->coll->turn)->out;
}

static char *memory(const run_state *r, td__place p)
{
    size_t at = (size_t)p.at * r->size;
    if (p.space == TD_SPACE_SLOT)
        return r->h->slot + (size_t)p.of * TD_HIER_SLICE + at;
    return (p.space == TD_SPACE_IN ? in_of(r, p.of) : out_of(r, p.of)) + at;
}

/* ---- messages ----------------------------------------------------------------------------------------------------------------------------- */

/* Takes note of sends that have left their memory, oldest first. 0 or negative. */
static int reap(run_state *r, int until)
{
    td__hier *h = r->h;
    for (; r->left < until; r->left++) {
        if (h->list.step[r->left].kind != TD_STEP_SEND)
            continue;
        int code = h->plug->wire->test(h->plug_state, &h->request[r->left]);
        if (code <= 0)
            return code;
    }
    return 0;
}

static int drain(run_state *r, int until)
{
    td__hier *h = r->h;
    for (; r->left < until; r->left++) {
        if (h->list.step[r->left].kind != TD_STEP_SEND)
            continue;
        int code = td__hier_await(h, r->coll, &h->request[r->left], h->list.step[r->left].peer);
        if (code)
            return code;
    }
    return 0;
}

static bool is_done(run_state *r, int after)
{
    return after < 0 || (after < r->at && (r->h->list.step[after].kind != TD_STEP_SEND || r->left > after));
}

static int start_receives(run_state *r)
{
    td__hier *h = r->h;
    const td__schedule *list = &h->list;
    while (r->under_way < TD_HIER_SLOTS && r->posted < list->count) {
        const td__step *s = &list->step[r->posted];
        if (s->kind == TD_STEP_RECV) {
            if (s->after >= 0 && list->step[s->after].kind == TD_STEP_SEND && s->after < r->at) {
                int code = reap(r, s->after + 1);
                if (code)
                    return code;
            }
            if (!is_done(r, s->after))
                return 0;
            int code = h->plug->wire->recv(h->plug_state, TD_WIRE_SCHEDULES, s->peer, s->tag, memory(r, s->to), (size_t)s->n * r->size,
                                           &h->request[r->posted]);
            if (code)
                return code;
            r->under_way++;
        }
        r->posted++;
    }
    return 0;
}

static int take(run_state *r)
{
    td__hier *h = r->h;
    int peer = h->list.step[r->at].peer;
    if (r->posted <= r->at) {                  /* it waits for a send of ours                                                     */
        int code = drain(r, h->list.step[r->at].after + 1);
        code = code ? code : start_receives(r);
        if (code)
            return code;
    }
    r->under_way--;
    return td__hier_await(h, r->coll, &h->request[r->at], peer);
}

/* ---- data ------------------------------------------------------------------------------------------------------------------------------------ */

static int combine(run_state *r, const td__step *s)
{
    td__hier *h = r->h;
    int k = 0, outs = 0, code = is_done(r, s->after) ? 0 : drain(r, s->after + 1);
    bool all = s->from.space == TD_SPACE_IN;
    if (code)
        return code;
    if (s->slot >= 0)
        h->in[k] = h->slot + (size_t)s->slot * TD_HIER_SLICE, h->pre[k++] = 1;
    for (int i = 0; i < (all ? r->mates : 1); i++) {
        int local = r->whole ? i : r->me;
        h->in[k] = (all ? in_of(r, local) : r->out_of) + (size_t)s->from.at * r->size;
        h->pre[k++] = all ? td__control_entry(&h->view, local, r->coll->turn)->pre : 1;
    }
    if (s->to.space == TD_SPACE_EVERY_OUT)
        for (; outs < r->mates; outs++)
            h->out[outs] = out_of(r, r->whole ? outs : -1) + (size_t)s->to.at * r->size;
    else
        h->out[outs++] = memory(r, s->to);
    double post = s->last ? r->post : 1;
    if (k == 1 && outs == 1 && h->in[0] == h->out[0] && h->pre[0] == 1 && post == 1)
        return 0;
    h->kernels->combine(r->coll->dtype, td__hier_op(r->coll->op), s->n, k, h->in, h->pre, post, h->out, outs);
    return 0;
}

static void copy(run_state *r, const td__step *s)
{
    const char *from = memory(r, s->from);
    for (int i = 0; i < r->mates; i++) {
        char *to = out_of(r, r->whole ? i : -1) + (size_t)s->to.at * r->size;
        if (to != from)
            memmove(to, from, (size_t)s->n * r->size);
    }
}

/* After a failure. What can be taken back is: nobody may write to the caller's tensors any more. */
static void give_up(run_state *r)
{
    td__hier *h = r->h;
    for (int i = r->left; i < r->posted || i < r->at; i++) {
        int kind = h->list.step[i].kind;
        if ((kind == TD_STEP_SEND && i < r->at) || (kind == TD_STEP_RECV && i >= r->at && i < r->posted))
            h->plug->wire->drop(h->plug_state, &h->request[i]);
    }
}

static int carry_out(run_state *r)
{
    td__hier *h = r->h;
    for (; r->at < h->list.count; r->at++) {
        const td__step *s = &h->list.step[r->at];
        int code = start_receives(r);
        if (code)
            return code;
        switch (s->kind) {
        case TD_STEP_SEND:
            code = h->plug->wire->send(h->plug_state, TD_WIRE_SCHEDULES, s->peer, s->tag, memory(r, s->from), (size_t)s->n * r->size, &h->request[r->at]);
            break;
        case TD_STEP_RECV:
            code = take(r);
            break;
        case TD_STEP_COMBINE:
            code = combine(r, s);
            break;
        case TD_STEP_COPY:
            copy(r, s);
            break;
        case TD_STEP_MEET:                     /* what the others may write to again must have left                              */
            code = drain(r, r->at);
            code = code ? code : td__control_meet(&h->view, r->coll);
            break;
        }
        if (code)
            return code;
    }
    return drain(r, h->list.count);
}

/* ---- a collective --------------------------------------------------------------------------------------------------------------------------- */

/* Enough slices that links and arithmetic overlap, not so many that messages cost more than their bytes. */
static int64_t slice_for(const td__hier *h, const td_coll *coll, td__algorithm algorithm, size_t size)
{
    int nodes = algorithm == TD_ALGORITHM_RING ? h->comm->size : h->layout.hosts;
    int64_t part = coll->count * (int64_t)size, slice;
    if (coll->kind == TD_COLL_ALL_REDUCE)
        part /= algorithm == TD_ALGORITHM_RING ? nodes : h->comm->size;
    slice = part / 4;
    slice = slice < TD_HIER_LEAST ? TD_HIER_LEAST : slice > TD_HIER_SLICE ? TD_HIER_SLICE : slice;
    return slice / 64 * 64 / (int64_t)size;
}

static int make_room(td__hier *h)
{
    if (h->list.count > h->room) {
        td__free(h->request);
        h->request = td__alloc((size_t)h->list.room * sizeof *h->request);
        h->room = h->request ? h->list.room : 0;
    }
    if (h->list.slots > h->slots) {
        td__free(h->slot);
        h->slot = td__alloc((size_t)h->list.slots * TD_HIER_SLICE);
        h->slots = h->slot ? h->list.slots : 0;
    }
    return h->list.count <= h->room && h->list.slots <= h->slots ? 0 : td__pending();
}

static td__plan_kind plan_kind(td_coll_kind kind)
{
    return kind == TD_COLL_ALL_REDUCE ? TD_PLAN_ALL_REDUCE : kind == TD_COLL_REDUCE_SCATTER ? TD_PLAN_REDUCE_SCATTER
         : kind == TD_COLL_ALL_GATHER ? TD_PLAN_ALL_GATHER : TD_PLAN_BROADCAST;
}

int td__hier_schedule(td__hier *h, td_coll *coll, const td__terms *terms, td__algorithm algorithm)
{
    size_t size = td_dtype_size(coll->dtype);
    td__plan plan = { .kind = plan_kind(coll->kind), .algorithm = algorithm, .root = coll->root, .count = coll->count,
                      .slice = slice_for(h, coll, algorithm, size), .line = 64 / (int64_t)size, .slots = TD_HIER_SLOTS };
    int code = td__schedule_make(&h->list, &h->layout, &plan, h->comm->rank);
    code = code ? code : make_room(h);
    if (code)                                  /* recorded as this thread's error: the communicator's, as others wait now         */
        return td__comm_fail(h->comm, code, "%s", td_error_message());
    bool whole = algorithm != TD_ALGORITHM_RING;
    run_state r = { .h = h, .coll = coll, .whole = whole, .mates = whole ? h->n : 1, .me = h->me, .size = size, .slice = plan.slice,
                    .post = td__hier_post(h, coll, terms), .in_of = coll->in, .out_of = coll->out };
    code = carry_out(&r);
    if (code)
        give_up(&r);
    return code;
}

void td__hier_run_free(td__hier *h, bool well)
{
    td__schedule_free(&h->list);
    td__free(h->request);
    if (well)                                  /* else a message may still come into it                                           */
        td__free(h->slot);
}
