/* comm/schedule_ring.c: collectives round the ring of hosts, or of ranks.
 *
 * Part c of the data travels round the ring and collects what each host adds; the host where it ends has the result, which
 * travels round once more. Everybody sends and receives all the time, 2 (H-1)/H of the data. A received slice is added and sent on
 * before the next is waited for, so the ring never falls still: every RECV but the last ones is followed by a SEND.
 */
#include "schedule_make.h"

/* ---- all_reduce ---------------------------------------------------------------------------------------------------------------------------------- */

void td__ring_all_reduce(td__maker *m)
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

/* ---- reduce_scatter: parts of ranks travel round the ring to their hosts ------------------------------------------------------------------------ */

/* The slices that lane l moves for a host: those of its ranks l, l + lanes, …, one after the other. */
typedef struct { int local, rank; int64_t at, n; } portion;

static int portions(const td__maker *m, int node)
{
    range each = { 0, m->p->count };
    int parts = (members_of(m, node) - m->lane + m->lanes - 1) / m->lanes;
    return parts * slices(m, each);
}

static portion portion_of(const td__maker *m, int node, int i)
{
    range each = { 0, m->p->count };
    int k = slices(m, each), local = m->lane + i / k * m->lanes;
    range x = slice(m, each, i % k);
    return (portion){ local, m->y->member[first_of(m, node) + local], x.at, x.n };
}

/* Slices go round in groups, so that few slots suffice: a group's first sends stand between the last receives of the group before, or
 * links would fall still in between. Hosts may have different numbers of slices: a group is a share of each. */
static void scatter_first(td__maker *m, int next, int i)
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

static void scatter_on(td__maker *m, int next, int before, int round, int i)
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

void td__ring_reduce_scatter(td__maker *m)
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

void td__ring_all_gather(td__maker *m)
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
void td__chain_broadcast(td__maker *m)
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
