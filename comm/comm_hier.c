/* comm/comm_hier.c: collectives of ranks on several hosts: shared memory within a host, schedules of our own between them.
 *
 * A collective begins with an agreement (comm_hier_agree.c), which also completes what is small. A larger one follows a list of steps
 * (schedule.h, comm_hier_run.c) if it is one that pays: all_reduce, reduce_scatter, all_gather and broadcast of even parts, sums
 * in the types that all CPUs add. Everything else goes on to the MPI plug-in, whose point-to-point messages carry ours, too.
 *
 * Ranks of a host read and write each other's tensors, which must lie in their arenas for that; a tensor that does not takes the flat ring
 * over all ranks, which needs only a rank's own memory. Waits look after peers of this host and the clock themselves; a peer of
 * another host is noticed by MPI's launcher, or by the deadline.
 */
#include <stdio.h>
#include <unistd.h>
#include "comm_hier.h"

/* ---- a collective ---------------------------------------------------------------------------------------------------------------------- */

static int64_t offset_in_arena(const td__hier *h, const void *data, size_t bytes)
{
    size_t at = (size_t)((uintptr_t)data - (uintptr_t)h->base[h->me]);
    return data && at < h->bytes[h->me] && bytes <= h->bytes[h->me] - at ? (int64_t)at : -1;
}

/* A reduce_scatter may write over the beginning of what other lanes still have to read. */
static bool runs_over(const td__hier *h, const td_coll *coll, size_t in, size_t part)
{
    uintptr_t from = (uintptr_t)coll->in, to = (uintptr_t)coll->out;
    return coll->kind == TD_COLL_REDUCE_SCATTER && to < from + in && from < to + part && to != from + (size_t)h->comm->rank * part;
}

static bool is_ours(const td_coll *coll)
{
    bool sums = coll->kind == TD_COLL_ALL_REDUCE || coll->kind == TD_COLL_REDUCE_SCATTER;
    bool moves = coll->kind == TD_COLL_BARRIER || coll->kind == TD_COLL_BROADCAST || coll->kind == TD_COLL_ALL_GATHER;
    return !coll->counts && !coll->in_counts && (moves || (sums && td__is_arith(coll->dtype)));
}

/* What the others must know, where they find it. */
static void publish(td__hier *h, const td_coll *coll, size_t record)
{
    td__entry *mine = td__control_entry(&h->view, h->me, coll->turn);
    size_t in = td__hier_in_bytes(h, coll), part = (size_t)coll->count * td_dtype_size(coll->dtype);
    bool reads = coll->kind != TD_COLL_BROADCAST || coll->root == h->comm->rank;
    mine->in = reads ? offset_in_arena(h, coll->in, in) : 0;
    mine->out = runs_over(h, coll, in, part) ? -1 : offset_in_arena(h, coll->out, coll->kind == TD_COLL_ALL_GATHER ? part * (size_t)h->comm->size : part);
    if (reads && record && in)
        memcpy(td__control_inline(&h->view, h->me, coll->turn), coll->in, in);
}

int td__hier_run(void *state, td_coll *coll)
{
    td__hier *h = state;
    td__terms terms;
    bool ours = is_ours(coll);
    size_t record = ours && coll->kind != TD_COLL_BARRIER ? td__hier_record(h, coll) : 0;
    if (ours)
        publish(h, coll, record);
    int code = td__hier_agree(h, coll, record, &terms);
    if (code)
        return code;
    if (!terms.equal || !ours)
        return h->plug->run(h->plug_state, coll);
    coll->begun = td__now();
    if (coll->kind == TD_COLL_BARRIER || coll->count == 0)
        return 0;
    if (record) {
        td__hier_finish_small(h, coll, &terms);
        return 0;
    }
    int algorithm = td__hier_algorithm(h, coll, terms.shared);
    return algorithm == TD_ALGORITHM_MPI ? h->plug->run(h->plug_state, coll) : td__hier_schedule(h, coll, &terms, (td__algorithm)algorithm);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------------------ */

/* Before the ranks' first collective: MPI carries it, everybody knows its size. */
static int gather(td__hier *h, td_dtype dtype, void *mine, void *all, int64_t count)
{
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = dtype, .in = mine, .out = all, .count = count, .pre = 1, .post = 1, .label = "td_init" };
    return h->plug->run(h->plug_state, &coll);
}

static int find_hosts(td__hier *h)
{
    int size = h->comm->size, mine = h->view.slot[0].rank, *host_of = td__alloc((size_t)size * sizeof *host_of), code;
    char name[TD_HIER_NAME] = "", (*names)[TD_HIER_NAME] = td__alloc((size_t)size * sizeof *names);
    gethostname(name, sizeof name - 1);
    code = host_of && names ? 0 : td__pending();
    code = code ? code : gather(h, TD_I32, &mine, host_of, 1);
    code = code ? code : gather(h, TD_U8, name, names, TD_HIER_NAME);
    code = code ? code : td__layout_make(&h->layout, size, host_of);
    h->name = code ? NULL : td__alloc((size_t)h->layout.hosts * sizeof *h->name);
    for (int i = 0; h->name && i < h->layout.hosts; i++)
        memcpy(h->name[i], names[h->layout.member[h->layout.first[i]]], sizeof name);
    h->here = code ? 0 : h->layout.host[h->comm->rank];
    if (!code && h->layout.local[h->comm->rank] != h->me)
        code = td__fail(TD_ERR_INTERNAL, "td_init: the ranks of host %s are not in the order of their numbers", name);
    td__free(host_of);
    td__free(names);
    return code ? code : h->name ? 0 : td__pending();
}

static void close_state(void *state, bool well)
{
    td__hier *h = state;
    h->plug->close(h->plug_state, well);
    td__hier_run_free(h, well);
    td__layout_free(&h->layout);
    td__free(h->name);
    td__free(h->view.stopped_since);
    td__free(h->in);
    td__free(h->out);
    td__free(h->pre);
    if (well)                                  /* else a letter may still come                                                    */
        for (int i = 0; i < 2; i++)
            td__free(h->letter[i]);
    td__free(h);
}

/* On failure, too, the plug-in's state is closed by whoever closes *state. */
static int make_state(td_comm *comm, const td_comm_host *host, const td_comm_backend *plug, void *plug_state, td__hier **state)
{
    const td__reach *reach = &comm->reach;
    td__hier *h = *state = td__calloc(sizeof *h);
    if (!h) {
        plug->close(plug_state, false);
        return td__pending();
    }
    *h = (td__hier){ .comm = comm, .host = host, .plug = plug, .plug_state = plug_state, .kernels = td__cpu_kernels(), .view = *comm->control,
                     .arena = reach->arena, .base = reach->base, .bytes = reach->bytes, .n = reach->n, .me = comm->control->me, .forced = -1 };
    _Static_assert(sizeof(td__board) <= TD_STAGE, "the board lies where staged messages would");
    h->board = (td__board *)td__control_stage(&h->view, 0, 0);
    size_t most = (size_t)comm->size + 1;
    h->view.stopped_since = td__calloc((size_t)h->n * sizeof *h->view.stopped_since);
    h->view.timeout = comm->timeout + 2;       /* who waits for another host knows more than who waits for him                    */
    h->in = td__alloc(most * sizeof *h->in);
    h->out = td__alloc(most * sizeof *h->out);
    h->pre = td__alloc(most * sizeof *h->pre);
    for (int i = 0; i < 2; i++)
        h->letter[i] = td__calloc(TD_HIER_RECORDS + TD_HIER_HEAD);
    if (!h->view.stopped_since || !h->in || !h->out || !h->pre || !h->letter[0] || !h->letter[1])
        return td__pending();
    return find_hosts(h);
}

static int open_state(const td_comm_host *host, void *world, td_comm *comm, void **state)
{
    td__hier_parts *parts = world;
    td__hier *h;
    int code = make_state(comm, host, parts->plug, parts->plug_state, &h);
    *state = h;
    return code ? code : td__hier_choose(h);
}

/* A group takes its parent's choice of algorithms. */
static int split(void *parent, td_coll *coll, td_comm *group, int color, int key, void **state)
{
    td__hier *p = parent, *h = NULL;
    td__terms terms;
    void *plug_state = NULL;
    int code = td__hier_agree(p, coll, 0, &terms);
    code = code ? code : p->plug->split(p->plug_state, coll, group, color, key, group ? &plug_state : NULL);
    if (code || !group)
        return code;
    code = make_state(group, p->host, p->plug, plug_state, &h);
    if (h) {
        h->forced = p->forced;
        memcpy(h->best, p->best, sizeof h->best);
    }
    *state = h;
    return code && !atomic_load(&group->code) ? td__comm_fail(group, code, "%s", td_error_message()) : code;
}

/* Messages of users are the plug-in's. */
static int wire_send(void *state, int channel, int peer, int tag, const void *data, size_t n, td_wire_request *r)
{
    td__hier *h = state;
    return h->plug->wire->send(h->plug_state, channel, peer, tag, data, n, r);
}

static int wire_recv(void *state, int channel, int peer, int tag, void *data, size_t n, td_wire_request *r)
{
    td__hier *h = state;
    return h->plug->wire->recv(h->plug_state, channel, peer, tag, data, n, r);
}

static int wire_test(void *state, td_wire_request *r)
{
    td__hier *h = state;
    return h->plug->wire->test(h->plug_state, r);
}

static void wire_drop(void *state, td_wire_request *r)
{
    td__hier *h = state;
    h->plug->wire->drop(h->plug_state, r);
}

static const td_wire wire = { .send = wire_send, .recv = wire_recv, .test = wire_test, .drop = wire_drop };

static void *alloc_block(void *state, size_t bytes)
{
    return td__arena_block(((td__hier *)state)->arena, bytes);
}

static void *arena_of(void *state)
{
    return ((td__hier *)state)->arena;
}

static void abort_all(void *state)
{
    td__hier *h = state;
    h->plug->abort(h->plug_state);
}

const td_comm_backend td__comm_hier = {
    .name = "hier",
    .on_thread = true,
    .grace = 5,
    .open = open_state,
    .run = td__hier_run,
    .wire = &wire,
    .alloc = alloc_block,
    .free = td__arena_free_block,
    .arena = arena_of,
    .split = split,
    .abort = abort_all,
    .close = close_state,
};
