/* comm/comm_shm.c: collectives between the ranks of one host through shared memory.
 *
 * Every collective begins with one meeting, at which each rank's fingerprint lies in the shared page and is compared before data is
 * touched. Then, by what all ranks have published:
 *   small    the data came along with the fingerprint; each rank makes its own result. One meeting in all.
 *   arena    all tensors lie in arenas: rank r makes part r of the result from all replicas and stores it into all of them, in one pass, nothing
 *            is staged. A second meeting ends it.
 *   staged   some memory is private: pieces go through two alternating buffers per rank. A rank that writes piece t has met all others after
 *            they had read piece t - 2, so one meeting a piece is enough.
 * Which of the three is a function of what all ranks know, so all ranks take the same. Results are computed once, or from the same
 * inputs in the same order by everyone: they are the same on every rank, bit for bit.
 */
#include <stdio.h>
#include "comm_room.h"

enum { FEW = 3, SMALL_TOTAL = 128 * 1024 };

typedef struct {
    td__control *c;
    td__arena *arena;
    void  **base;                              /* every rank's arena as mapped here; base and bytes are the communicator's    */
    size_t *bytes;
    int     n, me;
    uint64_t turn;                             /* pieces staged so far, the same on every rank                                */
    const void **in; void **out; double *pre;  /* n each, for kernels                                                         */
    const td_kernels *kernels;
} shm;

/* ---- what everybody has published ------------------------------------------------------------------------------------------------ */

static int64_t offset_in_arena(const shm *s, const void *data, size_t bytes)
{
    size_t at = (size_t)((uintptr_t)data - (uintptr_t)s->base[s->me]);
    return data && at < s->bytes[s->me] && bytes <= s->bytes[s->me] - at ? (int64_t)at : -1;
}

static size_t in_bytes(const shm *s, const td_coll *coll)
{
    return (size_t)coll->count * td_dtype_size(coll->dtype) * (coll->kind == TD_COLL_REDUCE_SCATTER ? (size_t)s->n : 1);
}

static bool is_small(const shm *s, const td_coll *coll)
{
    size_t bytes = in_bytes(s, coll);
    return bytes <= TD_INLINE && bytes * (size_t)s->n <= SMALL_TOTAL;
}

static bool all_in_arena(const shm *s, const td_coll *coll, bool out_too)
{
    for (int i = 0; i < s->n; i++) {
        const td__entry *e = td__control_entry(s->c, i, coll->turn);
        if (e->in < 0 || (out_too && e->out < 0))
            return false;
    }
    return true;
}

static td_combine combine_op(td_reduce op)
{
    return op == TD_MIN ? TD_COMBINE_MIN : op == TD_MAX ? TD_COMBINE_MAX : TD_COMBINE_SUM;
}

/* Everybody takes rank 0's factor, so that a difference cannot part the replicas. */
static double post_factor(const shm *s, const td_coll *coll)
{
    double post = td__control_entry(s->c, 0, coll->turn)->post;
    return coll->op == TD_MEAN ? post / s->n : post;
}

static void combine(shm *s, const td_coll *coll, int64_t n, int outs)
{
    if (n <= 0)
        return;
    for (int i = 0; i < s->n; i++)
        s->pre[i] = td__control_entry(s->c, i, coll->turn)->pre;
    s->kernels->combine(coll->dtype, combine_op(coll->op), n, s->n, s->in, s->pre, post_factor(s, coll), s->out, outs);
}

/* Part r of n of `count` elements, cut where cache lines end. */
static int64_t cut(int64_t count, int n, int r, size_t size)
{
    int64_t line = 64 / (int64_t)size, part = (count + n - 1) / n;
    part = (part + line - 1) / line * line;
    return part * r < count ? part * r : count;
}

/* ---- small ------------------------------------------------------------------------------------------------------------------------- */

static void finish_small(shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype), part = (size_t)coll->count * size;
    char *out = coll->out;
    bool scatter = coll->kind == TD_COLL_REDUCE_SCATTER;
    switch (coll->kind) {
    case TD_COLL_ALL_REDUCE:
    case TD_COLL_REDUCE_SCATTER:
        for (int i = 0; i < s->n; i++)
            s->in[i] = td__control_inline(s->c, i, coll->turn) + (scatter ? (size_t)s->me * part : 0);
        s->out[0] = out;
        combine(s, coll, coll->count, 1);
        break;
    case TD_COLL_BROADCAST:
        memcpy(out, td__control_inline(s->c, coll->root, coll->turn), part);
        break;
    case TD_COLL_ALL_GATHER:
        for (int i = 0; i < s->n; i++)
            memcpy(out + (size_t)i * part, td__control_inline(s->c, i, coll->turn), part);
        break;
    default:
        break;
    }
}

/* ---- arena ------------------------------------------------------------------------------------------------------------------------- */

static char *peer(const shm *s, const td_coll *coll, int i, bool out)
{
    const td__entry *e = td__control_entry(s->c, i, coll->turn);
    return (char *)s->base[i] + (out ? e->out : e->in);
}

static int arena_all_reduce(shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype);
    int64_t low = cut(coll->count, s->n, s->me, size), high = cut(coll->count, s->n, s->me + 1, size);
    for (int i = 0; i < s->n; i++) {
        s->in[i] = peer(s, coll, i, false) + (size_t)low * size;
        s->out[i] = peer(s, coll, i, true) + (size_t)low * size;
    }
    combine(s, coll, high - low, s->n);
    return td__control_meet(s->c, coll);
}

static int arena_reduce_scatter(shm *s, const td_coll *coll)
{
    size_t part = (size_t)coll->count * td_dtype_size(coll->dtype);
    for (int i = 0; i < s->n; i++)
        s->in[i] = peer(s, coll, i, false) + (size_t)s->me * part;
    s->out[0] = coll->out;
    combine(s, coll, coll->count, 1);
    return td__control_meet(s->c, coll);
}

static int arena_copy(shm *s, const td_coll *coll)
{
    size_t part = (size_t)coll->count * td_dtype_size(coll->dtype);
    bool gather = coll->kind == TD_COLL_ALL_GATHER;
    for (int k = 0; k < (gather ? s->n : 1); k++) {
        int from = gather ? (s->me + k) % s->n : coll->root;    /* not all from the same one at a time */
        char *to = (char *)coll->out + (gather ? (size_t)from * part : 0);
        if (from != s->me)
            memcpy(to, peer(s, coll, from, false), part);
        else if (to != coll->in)
            memmove(to, coll->in, part);
    }
    return td__control_meet(s->c, coll);
}

/* ---- staged ------------------------------------------------------------------------------------------------------------------------ */

/* Few ranks: everyone sums whole pieces. Many: everyone its part of the piece, then copies the others' parts. */
static int staged_all_reduce(shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype);
    int64_t piece = TD_STAGE / (int64_t)size;
    for (int64_t at = 0; at < coll->count; at += piece, s->turn++) {
        int64_t n = coll->count - at < piece ? coll->count - at : piece;
        const char *in = (const char *)coll->in + (size_t)at * size;
        char *out = (char *)coll->out + (size_t)at * size;
        memcpy(td__control_stage(s->c, s->me, s->turn), in, (size_t)n * size);
        int code = td__control_meet(s->c, coll);
        if (code)
            return code;
        bool few = s->n <= FEW;
        int64_t low = few ? 0 : cut(n, s->n, s->me, size), high = few ? n : cut(n, s->n, s->me + 1, size);
        for (int i = 0; i < s->n; i++)
            s->in[i] = td__control_stage(s->c, i, s->turn) + (size_t)low * size;
        s->out[0] = few ? out : td__control_stage(s->c, s->me, s->turn) + (size_t)low * size;
        combine(s, coll, high - low, 1);
        if (few)
            continue;
        code = td__control_meet(s->c, coll);
        if (code)
            return code;
        for (int i = 0; i < s->n; i++) {
            size_t from = (size_t)cut(n, s->n, i, size) * size, to = (size_t)cut(n, s->n, i + 1, size) * size;
            memcpy(out + from, td__control_stage(s->c, i, s->turn) + from, to - from);
        }
    }
    return 0;
}

static int staged_reduce_scatter(shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype);
    int64_t line = 64 / (int64_t)size, piece = TD_STAGE / (int64_t)size / s->n / line * line;
    for (int64_t at = 0; at < coll->count; at += piece, s->turn++) {
        int64_t n = coll->count - at < piece ? coll->count - at : piece;
        char *stage = td__control_stage(s->c, s->me, s->turn);
        for (int i = 0; i < s->n; i++)
            memcpy(stage + (size_t)(i * piece) * size, (const char *)coll->in + (size_t)(i * coll->count + at) * size, (size_t)n * size);
        int code = td__control_meet(s->c, coll);
        if (code)
            return code;
        for (int i = 0; i < s->n; i++)
            s->in[i] = td__control_stage(s->c, i, s->turn) + (size_t)(s->me * piece) * size;
        s->out[0] = (char *)coll->out + (size_t)at * size;
        combine(s, coll, n, 1);
    }
    return 0;
}

static int staged_copy(shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype), total = (size_t)coll->count * size;
    bool gather = coll->kind == TD_COLL_ALL_GATHER;
    for (size_t at = 0; at < total; at += TD_STAGE, s->turn++) {
        size_t n = total - at < TD_STAGE ? total - at : TD_STAGE;
        if (gather || s->me == coll->root)
            memcpy(td__control_stage(s->c, s->me, s->turn), (const char *)coll->in + at, n);
        int code = td__control_meet(s->c, coll);
        if (code)
            return code;
        for (int k = 0; k < (gather ? s->n : 1); k++) {
            int from = gather ? (s->me + k) % s->n : coll->root;
            char *to = (char *)coll->out + (gather ? (size_t)from * total : 0) + at;
            if (from != s->me || to != (const char *)coll->in + at)
                memcpy(to, td__control_stage(s->c, from, s->turn), n);
        }
    }
    return 0;
}

/* ---- the table ------------------------------------------------------------------------------------------------------------------------ */

/* Fingerprints are equal? And who came last: the difference of arrivals is what ddp reports as skew. */
static bool compare(shm *s, td_coll *coll)
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
    shm *s = state;
    td__entry *mine = td__control_entry(s->c, s->me, coll->turn);
    size_t in = in_bytes(s, coll), part = (size_t)coll->count * td_dtype_size(coll->dtype);
    bool root = coll->kind != TD_COLL_BROADCAST || coll->root == s->me, small = is_small(s, coll);
    if (coll->kind != TD_COLL_BARRIER) {
        mine->in = offset_in_arena(s, coll->in, in);
        mine->out = offset_in_arena(s, coll->out, part);
        if (!root)
            mine->in = 0;                      /* nobody reads it */
        if (small && root)
            memcpy(td__control_inline(s->c, s->me, coll->turn), coll->in, in);
    }
    int code = td__control_meet(s->c, coll);
    if (code)
        return code;
    if (!compare(s, coll))
        return td__verdict_mismatch(s->c, coll);
    coll->begun = td__now();
    if (coll->kind == TD_COLL_BARRIER || coll->count == 0)
        return 0;
    if (small) {
        finish_small(s, coll);
        return 0;
    }
    switch (coll->kind) {
    case TD_COLL_ALL_REDUCE:
        return all_in_arena(s, coll, true) ? arena_all_reduce(s, coll) : staged_all_reduce(s, coll);
    case TD_COLL_REDUCE_SCATTER:
        return all_in_arena(s, coll, false) ? arena_reduce_scatter(s, coll) : staged_reduce_scatter(s, coll);
    default:
        return all_in_arena(s, coll, false) ? arena_copy(s, coll) : staged_copy(s, coll);
    }
}

static void close_state(void *state, bool well)
{
    (void)well;
    shm *s = state;
    if (!s)
        return;
    td__free(s->in);
    td__free(s->out);
    td__free(s->pre);
    td__free(s);
}

static int open_state(const td_comm_host *host, void *world, td_comm *comm, void **state)
{
    (void)host;
    (void)world;
    const td__reach *reach = &comm->reach;     /* of whoever made the communicator: open.c, group.c                           */
    size_t n = (size_t)reach->n;
    shm *s = td__calloc(sizeof *s);
    *state = s;
    if (!s)
        return td__pending();
    *s = (shm){ .c = comm->control, .arena = reach->arena, .base = reach->base, .bytes = reach->bytes, .n = reach->n,
                .me = comm->control->me, .kernels = td__cpu_kernels() };
    s->in = td__alloc(n * sizeof *s->in);
    s->out = td__alloc(n * sizeof *s->out);
    s->pre = td__alloc(n * sizeof *s->pre);
    return s->in && s->out && s->pre ? 0 : td__pending();
}

static void *alloc_block(void *state, size_t bytes)
{
    char error[200];
    shm *s = state;
    void *memory = td__arena_alloc(s->arena, bytes, error, sizeof error);
    if (!memory && !td__pending())
        td__fail(TD_ERR_MEMORY, "%s", error);
    return memory;
}

static void free_block(void *arena, void *block)
{
    td__arena_free(arena, block);
}

static void *arena_of(void *state)
{
    return ((shm *)state)->arena;
}

const td_comm_backend td__comm_shm = {
    .name = "shm",
    .open = open_state,
    .run = run,
    .alloc = alloc_block,
    .free = free_block,
    .arena = arena_of,
    .close = close_state,
};
