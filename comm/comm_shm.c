/* comm/comm_shm.c: collectives between the ranks of one host through shared memory.
 *
 * Every collective begins with one meeting, at which each rank's fingerprint lies in the shared page and is compared before data is
 * touched. Then, by what all ranks have published:
 *   small    the data came along with the fingerprint; each rank makes its own result. One meeting in all.
 *   arena    what others read or write lies in arenas: reductions (shm_sums.c) are made in one pass, a part by each rank, everything else
 *            (shm_moves.c) is copied from there; nothing is staged. A second meeting ends it.
 *   staged   some memory is private: pieces go through two alternating buffers per rank. A rank that writes piece t has met all others after
 *            they had read piece t - 2, so one meeting a piece is enough.
 * Which of the three is a function of what all ranks know, so all ranks take the same. Results are computed once, or from the same
 * inputs in the same order by everyone: they are the same on every rank, bit for bit.
 */
#include <stdio.h>
#include "comm_shm.h"

enum { SMALL_TOTAL = 128 * 1024 };

/* ---- what everybody has published ------------------------------------------------------------------------------------------------ */

static int64_t offset_in_arena(const td__shm *s, const void *data, size_t bytes)
{
    if (!bytes)
        return 0;                              /* nobody reads it */
    size_t at = (size_t)((uintptr_t)data - (uintptr_t)s->base[s->me]);
    return data && at < s->bytes[s->me] && bytes <= s->bytes[s->me] - at ? (int64_t)at : -1;
}

static bool is_root(const td__shm *s, const td_coll *coll)
{
    return coll->root == s->me;
}

/* What others read of this rank's in. */
static size_t in_bytes(const td__shm *s, const td_coll *coll)
{
    int64_t n = coll->count;
    if (coll->kind == TD_COLL_REDUCE_SCATTER || coll->kind == TD_COLL_SCATTER || coll->kind == TD_COLL_ALL_TO_ALL)
        n *= s->n;
    if (coll->kind == TD_COLL_ALL_GATHER && coll->counts)
        n = coll->counts[s->me];
    for (int i = 0; i < s->n && coll->in_counts; i++)
        n += coll->in_counts[i];
    if ((coll->kind == TD_COLL_BROADCAST || coll->kind == TD_COLL_SCATTER) && !is_root(s, coll))
        n = 0;
    return (size_t)n * td_dtype_size(coll->dtype);
}

/* What others may write of this rank's out. */
static size_t out_bytes(const td__shm *s, const td_coll *coll)
{
    int64_t n = coll->kind == TD_COLL_ALL_REDUCE ? coll->count
                : !is_root(s, coll) ? 0
                : coll->kind == TD_COLL_REDUCE ? coll->count
                : coll->kind == TD_COLL_GATHER ? coll->count * s->n : 0;
    return (size_t)n * td_dtype_size(coll->dtype);
}

/* Would this rank's result overwrite what others still read? */
static bool in_the_way(const td__shm *s, const td_coll *coll, size_t bytes)
{
    const char *in = coll->in, *out = coll->out;
    if (coll->kind == TD_COLL_ALL_TO_ALL)
        return in == out;
    size_t part = (size_t)coll->count * td_dtype_size(coll->dtype);
    return coll->kind == TD_COLL_REDUCE_SCATTER && out < in + bytes && in < out + part && out != in + (size_t)s->me * part;
}

/* The same on all ranks whose fingerprints are equal. */
static bool is_small(const td__shm *s, const td_coll *coll)
{
    bool parts = coll->kind == TD_COLL_REDUCE_SCATTER || coll->kind == TD_COLL_SCATTER || coll->kind == TD_COLL_ALL_TO_ALL;
    size_t bytes = (size_t)td__shm_largest(s, coll) * td_dtype_size(coll->dtype);
    return bytes <= TD_INLINE / (parts ? (size_t)s->n : 1) && bytes * (size_t)(parts ? s->n : 1) * (size_t)s->n <= SMALL_TOTAL;
}

bool td__shm_all_in_arena(const td__shm *s, const td_coll *coll, bool out)
{
    for (int i = 0; i < s->n; i++)
        if (!td__shm_in_arena(s, coll, i, out))
            return false;
    return true;
}

static td_combine combine_op(td_reduce op)
{
    return op == TD_MIN ? TD_COMBINE_MIN : op == TD_MAX ? TD_COMBINE_MAX : op == TD_PRODUCT ? TD_COMBINE_PRODUCT : TD_COMBINE_SUM;
}

/* Everybody takes rank 0's factor, so that a difference cannot part the replicas. */
static double post_factor(const td__shm *s, const td_coll *coll)
{
    double post = td__control_entry(s->c, 0, coll->turn)->post;
    return coll->op == TD_MEAN ? post / s->n : post;
}

void td__shm_combine(td__shm *s, const td_coll *coll, int64_t n, int outs)
{
    if (n <= 0)
        return;
    for (int i = 0; i < s->n; i++)
        s->pre[i] = td__control_entry(s->c, i, coll->turn)->pre;
    s->kernels->combine(coll->dtype, combine_op(coll->op), n, s->n, s->in, s->pre, post_factor(s, coll), s->out, outs);
}

/* ---- small ------------------------------------------------------------------------------------------------------------------------- */

static bool reduces(const td_coll *coll)
{
    return coll->kind == TD_COLL_ALL_REDUCE || coll->kind == TD_COLL_REDUCE_SCATTER || coll->kind == TD_COLL_REDUCE;
}

static void finish_small(td__shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype), skip = coll->kind == TD_COLL_REDUCE_SCATTER ? (size_t)(s->me * coll->count) * size : 0;
    if (reduces(coll)) {
        for (int i = 0; i < s->n; i++)
            s->in[i] = td__control_inline(s->c, i, coll->turn) + skip;
        s->out[0] = coll->out;
        if (coll->kind != TD_COLL_REDUCE || is_root(s, coll))
            td__shm_combine(s, coll, coll->count, 1);
        return;
    }
    td__shm_take(s, coll);
    for (int i = 0; i < s->n; i++) {
        td__taken t = s->taken[i];
        if (t.count)
            memcpy((char *)coll->out + (size_t)t.to * size, td__control_inline(s->c, i, coll->turn) + (size_t)t.at * size, (size_t)t.count * size);
    }
}

/* ---- the table ------------------------------------------------------------------------------------------------------------------------ */

/* Fingerprints are equal? And who came last: the difference of arrivals is what ddp reports as skew. */
static bool compare(td__shm *s, td_coll *coll)
{
    const td_fingerprint *mine = &td__control_entry(s->c, s->me, coll->turn)->print;
    bool equal = true;
    coll->last_arrived = 0;
    for (int i = 0; i < s->n; i++) {
        const td__entry *e = td__control_entry(s->c, i, coll->turn);
        equal &= td__fingerprint_equal(mine, &e->print);
        if (e->arrived > coll->last_arrived)
            coll->last_arrived = e->arrived, coll->last_rank = i;
    }
    return equal;
}

static int run(void *state, td_coll *coll)
{
    td__shm *s = state;
    td__entry *mine = td__control_entry(s->c, s->me, coll->turn);
    const bool moves = coll->kind != TD_COLL_BARRIER && coll->kind != TD_COLL_MEET;
    bool small = is_small(s, coll);
    if (moves) {
        size_t in = in_bytes(s, coll);
        mine->in = in && in_the_way(s, coll, in) ? -1 : offset_in_arena(s, coll->in, in);
        mine->out = offset_in_arena(s, coll->out, out_bytes(s, coll));
        if (small && in)
            memcpy(td__control_inline(s->c, s->me, coll->turn), coll->in, in);
        else if ((coll->kind == TD_COLL_ALL_REDUCE || coll->kind == TD_COLL_REDUCE) && mine->in < 0)
            td__shm_stage_first(s, coll);
    }
    int code = td__control_meet(s->c, coll);
    if (code)
        return code;
    if (!compare(s, coll))
        return td__verdict_mismatch(s->c, coll);
    coll->begun = td__now();
    for (int i = 0; i < s->n && coll->kind == TD_COLL_MEET; i++) {
        const td__entry *e = td__control_entry(s->c, i, coll->turn);
        coll->words[i] = e->word;
        coll->pres[i] = e->pre;
    }
    if (!moves || td__shm_largest(s, coll) == 0)
        return 0;
    if (small) {
        finish_small(s, coll);
        return 0;
    }
    return reduces(coll) ? td__shm_reduce(s, coll) : td__shm_move(s, coll);
}

static void close_state(void *state, bool well)
{
    (void)well;
    td__shm *s = state;
    if (!s)
        return;
    td__free(s->in);
    td__free(s->out);
    td__free(s->pre);
    td__free(s->taken);
    td__free(s);
}

static int open_state(const td_comm_host *host, void *world, td_comm *comm, void **state)
{
    (void)host;
    (void)world;
    const td__reach *reach = &comm->reach;     /* of whoever made the communicator: open.c, group.c                           */
    size_t n = (size_t)reach->n;
    td__shm *s = td__calloc(sizeof *s);
    *state = s;
    if (!s)
        return td__pending();
    *s = (td__shm){ .c = comm->control, .arena = reach->arena, .base = reach->base, .bytes = reach->bytes, .n = reach->n,
                .me = comm->control->me, .kernels = td__cpu_kernels() };
    s->in = td__alloc(n * sizeof *s->in);
    s->out = td__alloc(n * sizeof *s->out);
    s->pre = td__alloc(n * sizeof *s->pre);
    s->taken = td__alloc(n * sizeof *s->taken);
    return s->in && s->out && s->pre && s->taken ? 0 : td__pending();
}

static void *alloc_block(void *state, size_t bytes)
{
    return td__arena_block(((td__shm *)state)->arena, bytes);
}

static void *arena_of(void *state)
{
    return ((td__shm *)state)->arena;
}

const td_comm_backend td__comm_shm = {
    .name = "shm",
    .open = open_state,
    .run = run,
    .alloc = alloc_block,
    .free = td__arena_free_block,
    .arena = arena_of,
    .close = close_state,
};
