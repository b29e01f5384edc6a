/* comm/schedule_halving.c: all_reduce by recursive halving and doubling.
 *
 * In round k hosts at a distance of P/2, P/4, … 1 exchange halves of what is left, then the results come back in the opposite
 * order: the same amount as round the ring, in 2 log P rounds instead of 2 (H-1). Hosts beyond the largest power of two, P, hand their data to a
 * partner first and get the result in the end. What the next round will send is received first, and sent slice by slice.
 */
#include "schedule_make.h"

/* id: my number among the P hosts that exchange; levels: log2 P; beyond: hosts that are folded into a partner first. */
typedef struct { td__maker *m; int id, levels, beyond; } cube;

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
    const td__maker *m = q->m;
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
    td__maker *m = q->m;
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
    const td__maker *m = q->m;
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
    td__maker *m = q->m;
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

void td__halving_all_reduce(td__maker *m)
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
