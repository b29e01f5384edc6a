/* comm/schedule_make.h: a list of steps in the making: who I am in it, its steps, and how ranges are cut. Internal to schedule.c and the files of its
 * algorithms.
 */
#ifndef TD_SCHEDULE_MAKE_H
#define TD_SCHEDULE_MAKE_H
#include <base.h>
#include "schedule.h"

/* A node is a host, or with the flat ring a rank. */
typedef struct {
    td__schedule *s;
    const td__layout *y;
    const td__plan *p;
    int nodes, me, lanes, lane;                /* lane >= lanes: this rank only meets the others                                 */
    int mates;                                 /* ranks of my node                                                               */
    int turn, slots;                           /* slots given out; how many there are                                            */
    int *busy;                                 /* of each slot: the step after which it is free                                  */
    bool failed;
} td__maker;

static inline int first_of(const td__maker *m, int node)
{
    return m->p->algorithm == TD_ALGORITHM_RING ? node : m->y->first[node];
}

static inline int members_of(const td__maker *m, int node)
{
    return m->p->algorithm == TD_ALGORITHM_RING ? 1 : m->y->first[node + 1] - m->y->first[node];
}

static inline int node_of(const td__maker *m, int rank)
{
    int host = m->y->host[rank];
    return m->p->algorithm == TD_ALGORITHM_RING ? m->y->first[host] + m->y->local[rank] : host;
}

/* The rank that cares for my lane there. */
static inline int peer_at(const td__maker *m, int node)
{
    return m->y->member[first_of(m, node) + m->lane];
}

static inline int add(td__maker *m, td__step step)
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

static inline td__place own(int64_t at)
{
    return (td__place){ TD_SPACE_OUT, -1, at };
}

static inline td__place inputs(int64_t at)
{
    return (td__place){ TD_SPACE_IN, 0, at };
}

static inline td__place every(int64_t at)
{
    return (td__place){ TD_SPACE_EVERY_OUT, 0, at };
}

static inline int send(td__maker *m, int peer, int tag, td__place from, int64_t n)
{
    return add(m, (td__step){ .kind = TD_STEP_SEND, .peer = peer, .tag = tag, .from = from, .n = n, .slot = -1, .after = -1 });
}

static inline int recv(td__maker *m, int peer, int tag, td__place to, int64_t n, int after)
{
    return add(m, (td__step){ .kind = TD_STEP_RECV, .peer = peer, .tag = tag, .to = to, .n = n, .slot = -1, .after = after });
}

static inline int combine(td__maker *m, int slot, td__place from, td__place to, int64_t n, bool last, int after)
{
    return add(m, (td__step){ .kind = TD_STEP_COMBINE, .slot = slot, .from = from, .to = to, .n = n, .last = last, .after = after });
}

static inline void copy(td__maker *m, td__place from, int64_t at, int64_t n)
{
    add(m, (td__step){ .kind = TD_STEP_COPY, .from = from, .to = every(at), .n = n, .slot = -1, .after = -1 });
}

/* What came into our own OUT is everybody's. */
static inline void share(td__maker *m, int64_t at, int64_t n)
{
    if (m->mates > 1)
        copy(m, own(at), at, n);
}

static inline int take_slot(td__maker *m)
{
    return m->turn++ % m->slots;
}

/* ---- cutting ----------------------------------------------------------------------------------------------------------------------------- */

typedef struct { int64_t at, n; } range;

static inline range part(range whole, int parts, int i, int64_t line)
{
    int64_t each = (whole.n + parts - 1) / parts;
    each = (each + line - 1) / line * line;
    int64_t low = each * i < whole.n ? each * i : whole.n, high = each * (i + 1) < whole.n ? each * (i + 1) : whole.n;
    return (range){ whole.at + low, high - low };
}

static inline range lane_of(const td__maker *m)
{
    return part((range){ 0, m->p->count }, m->lanes, m->lane, m->p->line);
}

static inline int slices(const td__maker *m, range r)
{
    return (int)((r.n + m->p->slice - 1) / m->p->slice);
}

static inline range slice(const td__maker *m, range r, int i)
{
    int64_t low = i * m->p->slice, left = r.n - low;
    return (range){ r.at + low, left < m->p->slice ? left : m->p->slice };
}

/* ---- the algorithms ----------------------------------------------------------------------------------------------------------------------- */

/* schedule_ring.c */
void td__ring_all_reduce(td__maker *m);
void td__ring_reduce_scatter(td__maker *m);
void td__ring_all_gather(td__maker *m);
void td__chain_broadcast(td__maker *m);
/* schedule_halving.c */
void td__halving_all_reduce(td__maker *m);
#endif
