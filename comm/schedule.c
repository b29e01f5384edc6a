/* comm/schedule.c: ring, hierarchical ring, recursive halving and doubling, as lists of steps. schedule.h says how they are read.
 *
 * Ring. Part c of the data travels round the ring and collects what each host adds; the host where it ends has the result, which
 * travels round once more. Everybody sends and receives all the time, 2 (H-1)/H of the data. A received slice is added and sent on
 * before the next is waited for, so the ring never falls still: every RECV but the last ones is followed by a SEND.
 *
 * Halving. In round k hosts at a distance of P/2, P/4, … 1 exchange halves of what is left, then the results come back in the opposite
 * order: the same amount in 2 log P rounds instead of 2 (H-1). Hosts beyond the largest power of two, P, hand their data to a partner
 * first and get the result in the end. What the next round will send is received first, and sent slice by slice.
 *
 * Sums: an element's result is made once, in a fixed order, and copied to all others: the same bits everywhere.
 */
#include <base.h>
#include "schedule.h"

const char *const td__algorithm_names[TD_ALGORITHMS] = { "ring", "hier", "halving" };

/* ---- who lives where ------------------------------------------------------------------------------------------------------------------- */

int td__layout_make(td__layout *y, int ranks, const int *host_of)
{
    size_t n = (size_t)ranks;
    *y = (td__layout){ .ranks = ranks };
    y->host = td__alloc((4 * n + 1) * sizeof *y->host);
    if (!y->host)
        return td__pending();
    y->local = y->host + n, y->member = y->local + n, y->first = y->member + n;
    int placed = 0;
    for (int r = 0; r < ranks; r++)
        y->host[r] = -1;
    for (int r = 0; r < ranks; r++) {
        if (y->host[r] >= 0)
            continue;
        y->first[y->hosts] = placed;
        for (int k = r; k < ranks; k++)
            if (host_of[k] == host_of[r]) {
                y->host[k] = y->hosts;
                y->local[k] = placed - y->first[y->hosts];
                y->member[placed++] = k;
            }
        y->hosts++;
    }
    y->first[y->hosts] = placed;
    return 0;
}

void td__layout_free(td__layout *y)
{
    td__free(y->host);
    *y = (td__layout){ 0 };
}

/* ---- a list in the making ---------------------------------------------------------------------------------------------------------------- */

/* A node is a host, or with the flat ring a rank. */
typedef struct {
    td__schedule *s;
    const td__layout *y;
    const td__plan *p;
    int nodes, me, lanes, lane;                /* lane -1: this rank only meets the others                                       */
    int mates;                                 /* ranks of my node                                                               */
    int turn, slots;                           /* slots given out; how many there are                                            */
    int *busy;                                 /* of each slot: the step after which it is free                                  */
    bool failed;
} maker;

static int first_of(const maker *m, int node)
{
    return m->p->algorithm == TD_ALGORITHM_RING ? node : m->y->first[node];
}

static int members_of(const maker *m, int node)
{
    return m->p->algorithm == TD_ALGORITHM_RING ? 1 : m->y->first[node + 1] - m->y->first[node];
}

static int node_of(const maker *m, int rank)
{
    int host = m->y->host[rank];
    return m->p->algorithm == TD_ALGORITHM_RING ? m->y->first[host] + m->y->local[rank] : host;
}

/* The rank that cares for my lane there. */
static int peer_at(const maker *m, int node)
{
    return m->y->member[first_of(m, node) + m->lane];
}

static int add(maker *m, td__step step)
{
    td__schedule *s = m->s;
    if (s->count == s->room) {
        int room = s->room ? 2 * s->room : 256;
        td__step *grown = td__grow(s->step, (size_t)s->room * sizeof *grown, (size_t)room * sizeof *grown);
        if (!grown) {
            m->failed = true;
            return 0;
        }
        s->step = grown, s->room = room;
    }
    s->step[s->count] = step;
    return s->count++;
}

static td__place own(int64_t at)
{
    return (td__place){ TD_SPACE_OUT, -1, at };
}

static td__place inputs(int64_t at)
{
    return (td__place){ TD_SPACE_IN, 0, at };
}

static td__place every(int64_t at)
{
    return (td__place){ TD_SPACE_EVERY_OUT, 0, at };
}

static int send(maker *m, int peer, int tag, td__place from, int64_t n)
{
    return add(m, (td__step){ .kind = TD_STEP_SEND, .peer = peer, .tag = tag, .from = from, .n = n, .slot = -1, .after = -1 });
}

static int recv(maker *m, int peer, int tag, td__place to, int64_t n, int after)
{
    return add(m, (td__step){ .kind = TD_STEP_RECV, .peer = peer, .tag = tag, .to = to, .n = n, .slot = -1, .after = after });
}

static int combine(maker *m, int slot, td__place from, td__place to, int64_t n, bool last, int after)
{
    return add(m, (td__step){ .kind = TD_STEP_COMBINE, .slot = slot, .from = from, .to = to, .n = n, .last = last, .after = after });
}

static void copy(maker *m, td__place from, int64_t at, int64_t n)
{
    add(m, (td__step){ .kind = TD_STEP_COPY, .from = from, .to = every(at), .n = n, .slot = -1, .after = -1 });
}

/* What came into our own OUT is everybody's. */
static void share(maker *m, int64_t at, int64_t n)
{
    if (m->mates > 1)
        copy(m, own(at), at, n);
}

static int take_slot(maker *m)
{
    return m->turn++ % m->slots;
}

/* ---- cutting ----------------------------------------------------------------------------------------------------------------------------- */

typedef struct { int64_t at, n; } range;

static range part(range whole, int parts, int i, int64_t line)
{
    int64_t each = (whole.n + parts - 1) / parts;
    each = (each + line - 1) / line * line;
    int64_t low = each * i < whole.n ? each * i : whole.n, high = each * (i + 1) < whole.n ? each * (i + 1) : whole.n;
    return (range){ whole.at + low, high - low };
}

static range lane_of(const maker *m)
{
    return part((range){ 0, m->p->count }, m->lanes, m->lane, m->p->line);
}

static int slices(const maker *m, range r)
{
    return (int)((r.n + m->p->slice - 1) / m->p->slice);
}

static range slice(const maker *m, range r, int i)
{
    int64_t low = i * m->p->slice, left = r.n - low;
    return (range){ r.at + low, left < m->p->slice ? left : m->p->slice };
}

/* ---- all_reduce, ring ---------------------------------------------------------------------------------------------------------------------- */

static void alone(maker *m)
{
    range r = lane_of(m);
    for (int i = 0; i < slices(m, r); i++) {
        range x = slice(m, r, i);
        combine(m, -1, inputs(x.at), every(x.at), x.n, true, -1);
    }
}

static void ring_all_reduce(maker *m)
{
    int h = m->nodes, next = peer_at(m, (m->me + 1) % h), before = peer_at(m, (m->me + h - 1) % h), *sent = td__alloc((size_t)h * sizeof *sent);
    if (!sent) {
        m->failed = true;
        return;
    }
    range lane = lane_of(m), c = part(lane, h, m->me, m->p->line);
    for (int i = 0; i < slices(m, c); i++) {
        range x = slice(m, c, i);
        combine(m, -1, inputs(x.at), own(x.at), x.n, false, -1);
        sent[m->me] = send(m, next, 0, own(x.at), x.n);
    }
    for (int round = 0; round < h - 1; round++) {
        int which = (m->me + 2 * h - round - 1) % h;
        c = part(lane, h, which, m->p->line);
        for (int i = 0; i < slices(m, c); i++) {
            range x = slice(m, c, i);
            int slot = take_slot(m);
            bool last = round == h - 2;
            recv(m, before, round, (td__place){ TD_SPACE_SLOT, slot, 0 }, x.n, m->busy[slot]);
            m->busy[slot] = combine(m, slot, inputs(x.at), last ? every(x.at) : own(x.at), x.n, last, -1);
            sent[which] = send(m, next, round + 1, own(x.at), x.n);
        }
    }
    for (int round = 0; round < h - 1; round++) {
        int which = (m->me + h - round) % h;
        c = part(lane, h, which, m->p->line);
        for (int i = 0; i < slices(m, c); i++) {
            range x = slice(m, c, i);
            recv(m, before, h - 1 + round, own(x.at), x.n, sent[which]);
            if (round < h - 2)
                send(m, next, h + round, own(x.at), x.n);
            share(m, x.at, x.n);
        }
    }
    td__free(sent);
}

/* ---- all_reduce, halving and doubling ------------------------------------------------------------------------------------------------------- */

/* id: my number among the P hosts that exchange; levels: log2 P; beyond: hosts that are folded into a partner first. */
typedef struct { maker *m; int id, levels, beyond; } cube;

static int host_of_id(const cube *q, int id)
{
    return id < q->beyond ? 2 * id : id + q->beyond;
}

static int partner(const cube *q, int level)
{
    return peer_at(q->m, host_of_id(q, q->id ^ (1 << (q->levels - 1 - level))));
}

/* Of a range that is divided in this round: what I keep, or what I send. */
static range half(const cube *q, range r, int level, bool keep)
{
    bool upper = q->id >> (q->levels - 1 - level) & 1;
    return part(r, 2, upper == keep, q->m->p->line);
}

typedef void each_slice(const cube *q, range x, int level, void *of);

/* The slices of a range in the order in which they cross in round `level`: first what the receiver will send on in the round after. */
static void in_order(const cube *q, range r, int level, int as, each_slice *visit, void *of)
{
    const maker *m = q->m;
    if (r.n == 0)
        return;
    if (r.n > m->p->slice && level + 1 < q->levels) {
        in_order(q, half(q, r, level + 1, false), level + 1, as, visit, of);
        in_order(q, half(q, r, level + 1, true), level + 1, as, visit, of);
        return;
    }
    for (int i = 0; i < slices(m, r); i++)
        visit(q, slice(m, r, i), as, of);
}

/* fresh: nothing has been added yet; forward: what goes on as soon as it has come. */
typedef struct { bool fresh, last; range forward; int *sent; } halving;

static void send_own(const cube *q, range x, int level, void *of)
{
    halving *v = of;
    v->sent[level] = send(q->m, partner(q, level), level, own(x.at), x.n);
}

static void add_and_send(const cube *q, range x, int level, void *of)
{
    combine(q->m, -1, inputs(x.at), own(x.at), x.n, false, -1);
    send_own(q, x, level, of);
}

static void receive_half(const cube *q, range x, int level, void *of)
{
    maker *m = q->m;
    halving *v = of;
    int slot = take_slot(m);
    recv(m, partner(q, level), level, (td__place){ TD_SPACE_SLOT, slot, 0 }, x.n, m->busy[slot]);
    m->busy[slot] = combine(m, slot, v->fresh ? inputs(x.at) : own(x.at), v->last ? every(x.at) : own(x.at), x.n, v->last, -1);
    if (v->forward.n && x.at >= v->forward.at && x.at + x.n <= v->forward.at + v->forward.n)
        send_own(q, x, level + 1, of);
}

/* The slices that are known after the doubling rounds from the last down to `level`: mine first, as they come. */
static void known(const cube *q, range r, int level, int as, each_slice *visit, void *of)
{
    const maker *m = q->m;
    if (r.n == 0)
        return;
    if (r.n > m->p->slice && level < q->levels) {
        known(q, half(q, r, level, true), level + 1, as, visit, of);
        known(q, half(q, r, level, false), level + 1, as, visit, of);
        return;
    }
    for (int i = 0; i < slices(m, r); i++)
        visit(q, slice(m, r, i), as, of);
}

typedef struct { int *sent; bool forward; } doubling;

static void send_result(const cube *q, range x, int level, void *of)
{
    (void)of;
    send(q->m, partner(q, level), 64 + level, own(x.at), x.n);
}

static void receive_result(const cube *q, range x, int level, void *of)
{
    doubling *v = of;
    recv(q->m, partner(q, level), 64 + level, own(x.at), x.n, v->sent[level]);
    if (v->forward)
        send_result(q, x, level - 1, of);
    share(q->m, x.at, x.n);
}

static void halve_and_double(cube *q, range lane, bool fresh)
{
    maker *m = q->m;
    range left[32] = { lane };                 /* what is left at the beginning of a round                                      */
    int sent[32];
    halving v = { .fresh = fresh, .sent = sent };
    for (int k = 0; k < q->levels; k++) {
        sent[k] = -1;
        left[k + 1] = half(q, left[k], k, true);
    }
    range first = half(q, lane, 0, false);
    in_order(q, first, 0, 0, fresh ? add_and_send : send_own, &v);
    for (int k = 0; k < q->levels; k++) {
        range next = left[k + 1];
        v.last = k == q->levels - 1;
        bool whole = next.n <= m->p->slice;    /* it comes in one piece, of which a part goes on                                 */
        range forward = v.last ? (range){ -1, 0 } : half(q, next, k + 1, false);
        v.forward = whole ? (range){ -1, 0 } : forward;
        in_order(q, next, k, k, receive_half, &v);
        if (whole)
            in_order(q, forward, k + 1, k + 1, send_own, &v);
        v.fresh = false;
    }
    doubling d = { .sent = sent };
    known(q, left[q->levels], q->levels, q->levels - 1, send_result, &d);
    for (int k = q->levels - 1; k >= 0; k--) {
        range mine = left[k + 1], theirs = half(q, left[k], k, false);
        bool whole = left[k].n <= m->p->slice;
        d.forward = k > 0 && !whole;
        if (d.forward)
            known(q, mine, k + 1, k - 1, send_result, &d);
        known(q, theirs, k + 1, k, receive_result, &d);
        if (k > 0 && whole)
            known(q, left[k], k, k - 1, send_result, &d);
    }
}

enum { FOLD = 200, UNFOLD = 201 };             /* rounds before the first and after the last                                     */

static void halving_all_reduce(maker *m)
{
    cube q = { .m = m };
    while (2 << q.levels <= m->nodes)
        q.levels++;
    q.beyond = m->nodes - (1 << q.levels);
    range lane = lane_of(m);
    bool paired = m->me < 2 * q.beyond, folded = paired && m->me % 2;
    int other = paired ? peer_at(m, m->me ^ 1) : -1, sent = -1;
    q.id = paired ? m->me / 2 : m->me - q.beyond;
    for (int i = 0; paired && i < slices(m, lane); i++) {
        range x = slice(m, lane, i);
        int slot = folded ? -1 : take_slot(m);
        if (!folded)
            recv(m, other, FOLD, (td__place){ TD_SPACE_SLOT, slot, 0 }, x.n, m->busy[slot]);
        int step = combine(m, slot, inputs(x.at), own(x.at), x.n, false, -1);
        if (!folded)
            m->busy[slot] = step;
        else
            sent = send(m, other, FOLD, own(x.at), x.n);
    }
    if (!folded)
        halve_and_double(&q, lane, !paired);
    for (int i = 0; paired && i < slices(m, lane); i++) {
        range x = slice(m, lane, i);
        if (!folded) {
            send(m, other, UNFOLD, own(x.at), x.n);
            continue;
        }
        recv(m, other, UNFOLD, own(x.at), x.n, sent);
        share(m, x.at, x.n);
    }
}

/* ---- reduce_scatter: parts of ranks travel round the ring to their hosts ------------------------------------------------------------------------ */

/* The slices that lane l moves for a host: those of its ranks l, l + lanes, …, one after the other. */
typedef struct { int local, rank; int64_t at, n; } portion;

static int portions(const maker *m, int node)
{
    range each = { 0, m->p->count };
    int parts = (members_of(m, node) - m->lane + m->lanes - 1) / m->lanes;
    return parts * slices(m, each);
}

static portion portion_of(const maker *m, int node, int i)
{
    range each = { 0, m->p->count };
    int k = slices(m, each), local = m->lane + i / k * m->lanes;
    range x = slice(m, each, i % k);
    return (portion){ local, m->y->member[first_of(m, node) + local], x.at, x.n };
}

/* Slices go round in groups, so that few slots suffice: a group's first sends stand between the last receives of the group before, or
 * links would fall still in between. Hosts may have different numbers of slices: a group is a share of each. */
static void scatter_first(maker *m, int next, int i)
{
    int node = (m->me + m->nodes - 1) % m->nodes;
    if (i >= portions(m, node))
        return;
    portion x = portion_of(m, node, i);
    int slot = take_slot(m), step;
    td__place at = { TD_SPACE_SLOT, slot, 0 };
    step = combine(m, -1, inputs(x.rank * m->p->count + x.at), at, x.n, false, m->busy[slot]);
    m->busy[slot] = step;
    m->busy[slot] = send(m, next, 0, at, x.n);
}

static void scatter_on(maker *m, int next, int before, int round, int i)
{
    int node = (m->me + 2 * m->nodes - round - 2) % m->nodes;
    bool last = round == m->nodes - 2;
    if (i >= portions(m, node))
        return;
    portion x = portion_of(m, node, i);
    int slot = take_slot(m);
    td__place at = { TD_SPACE_SLOT, slot, 0 }, to = last ? (td__place){ TD_SPACE_OUT, x.local, x.at } : at;
    recv(m, before, round, at, x.n, m->busy[slot]);
    m->busy[slot] = combine(m, slot, inputs(x.rank * m->p->count + x.at), to, x.n, last, -1);
    if (!last)
        m->busy[slot] = send(m, next, round + 1, at, x.n);
}

static void ring_reduce_scatter(maker *m)
{
    int h = m->nodes, group = m->p->slots, most = 0;
    if (h == 1) {
        for (int i = 0; i < portions(m, 0); i++) {
            portion x = portion_of(m, 0, i);
            combine(m, -1, inputs(x.rank * m->p->count + x.at), (td__place){ TD_SPACE_OUT, x.local, x.at }, x.n, true, -1);
        }
        return;
    }
    int next = peer_at(m, (m->me + 1) % h), before = peer_at(m, (m->me + h - 1) % h);
    for (int node = 0; node < h; node++)
        most = portions(m, node) > most ? portions(m, node) : most;
    for (int i = 0; i < group; i++)
        scatter_first(m, next, i);
    for (int from = 0; from < most; from += group)
        for (int round = 0; round < h - 1; round++)
            for (int i = from; i < from + group; i++) {
                scatter_on(m, next, before, round, i);
                if (round == h - 2)
                    scatter_first(m, next, i + group);
            }
}

/* ---- all_gather and broadcast -------------------------------------------------------------------------------------------------------------------- */

static void ring_all_gather(maker *m)
{
    int h = m->nodes, next = peer_at(m, (m->me + 1) % h), before = peer_at(m, (m->me + h - 1) % h);
    int64_t count = m->p->count;
    for (int i = 0; i < portions(m, m->me); i++) {
        portion x = portion_of(m, m->me, i);
        td__place from = { TD_SPACE_IN, x.local, x.at };
        if (h > 1)
            send(m, next, 0, from, x.n);
        copy(m, from, x.rank * count + x.at, x.n);
    }
    for (int round = 0; round < h - 1; round++) {
        int node = (m->me + h - round - 1) % h;
        for (int i = 0; i < portions(m, node); i++) {
            portion x = portion_of(m, node, i);
            int64_t at = x.rank * count + x.at;
            recv(m, before, round, own(at), x.n, -1);
            if (round < h - 2)
                send(m, next, round + 1, own(at), x.n);
            share(m, at, x.n);
        }
    }
}

/* A chain: every host passes on what it gets, slice by slice. */
static void chain_broadcast(maker *m)
{
    int h = m->nodes, from = node_of(m, m->p->root), local = m->p->algorithm == TD_ALGORITHM_RING ? 0 : m->y->local[m->p->root];
    int place = (m->me - from + h) % h, next = peer_at(m, (m->me + 1) % h), before = peer_at(m, (m->me + h - 1) % h);
    range lane = lane_of(m);
    for (int i = 0; i < slices(m, lane); i++) {
        range x = slice(m, lane, i);
        td__place at = place ? own(x.at) : (td__place){ TD_SPACE_IN, local, x.at };
        if (place)
            recv(m, before, 0, at, x.n, -1);
        if (place < h - 1)
            send(m, next, 0, at, x.n);
        if (place)
            share(m, x.at, x.n);
        else
            copy(m, at, x.at, x.n);
    }
}

/* ---- which of them ------------------------------------------------------------------------------------------------------------------------------- */

static void make(maker *m)
{
    switch (m->p->kind) {
    case TD_PLAN_ALL_REDUCE:
        if (m->nodes == 1)
            alone(m);
        else if (m->p->algorithm == TD_ALGORITHM_HALVING)
            halving_all_reduce(m);
        else
            ring_all_reduce(m);
        break;
    case TD_PLAN_REDUCE_SCATTER:
        ring_reduce_scatter(m);
        break;
    case TD_PLAN_ALL_GATHER:
        ring_all_gather(m);
        break;
    case TD_PLAN_BROADCAST:
        chain_broadcast(m);
        break;
    }
}

int td__schedule_make(td__schedule *s, const td__layout *y, const td__plan *p, int rank)
{
    bool flat = p->algorithm == TD_ALGORITHM_RING;
    maker m = { .s = s, .y = y, .p = p, .nodes = flat ? y->ranks : y->hosts };
    m.slots = p->kind == TD_PLAN_REDUCE_SCATTER ? 2 * p->slots + 1 : p->slots;
    m.me = node_of(&m, rank);
    m.mates = members_of(&m, m.me);
    m.lanes = m.mates;
    for (int node = 0; node < m.nodes; node++)
        m.lanes = members_of(&m, node) < m.lanes ? members_of(&m, node) : m.lanes;
    m.lane = flat ? 0 : y->local[rank];
    m.busy = td__alloc((size_t)m.slots * sizeof *m.busy);
    s->count = 0;
    s->slots = m.slots;
    if (!m.busy)
        return td__pending();
    for (int i = 0; i < m.slots; i++)
        m.busy[i] = -1;
    if (m.lane < m.lanes)
        make(&m);
    if (m.mates > 1)
        add(&m, (td__step){ .kind = TD_STEP_MEET, .slot = -1, .after = -1 });
    td__free(m.busy);
    return m.failed ? td__pending() : 0;
}

void td__schedule_free(td__schedule *s)
{
    td__free(s->step);
    *s = (td__schedule){ 0 };
}
