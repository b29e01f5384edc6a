/* comm/schedule.c: who lives where, and a rank's list of steps by the algorithm that is asked for (schedule_ring.c, schedule_halving.c). schedule.h says how
 * lists are read.
 *
 * Sums: an element's result is made once, in a fixed order, and copied to all others: the same bits everywhere.
 */
#include "schedule_make.h"

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

/* ---- which of them ------------------------------------------------------------------------------------------------------------------------------- */

static void alone(td__maker *m)
{
    range r = lane_of(m);
    for (int i = 0; i < slices(m, r); i++) {
        range x = slice(m, r, i);
        combine(m, -1, inputs(x.at), every(x.at), x.n, true, -1);
    }
}

static void make(td__maker *m)
{
    switch (m->p->kind) {
    case TD_PLAN_ALL_REDUCE:
        if (m->nodes == 1)
            alone(m);
        else if (m->p->algorithm == TD_ALGORITHM_HALVING)
            td__halving_all_reduce(m);
        else
            td__ring_all_reduce(m);
        break;
    case TD_PLAN_REDUCE_SCATTER:
        td__ring_reduce_scatter(m);
        break;
    case TD_PLAN_ALL_GATHER:
        td__ring_all_gather(m);
        break;
    case TD_PLAN_BROADCAST:
        td__chain_broadcast(m);
        break;
    }
}

int td__schedule_make(td__schedule *s, const td__layout *y, const td__plan *p, int rank)
{
    bool flat = p->algorithm == TD_ALGORITHM_RING;
    td__maker m = { .s = s, .y = y, .p = p, .nodes = flat ? y->ranks : y->hosts };
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
