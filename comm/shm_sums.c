/* comm/shm_sums.c: reductions of more than a few KB between the ranks of one host.
 *
 *   arena    rank r makes part r of the result from all replicas and stores it where it is wanted, in one pass
 *   staged   pieces of what is private go through two alternating buffers per rank; with few ranks, or little to sum, everyone sums whole pieces, else
 *            everyone its part of a piece, and the others copy it. Where all memory is private, the first piece was staged before the meeting at which
 *            the collective began: one meeting less.
 */
#include "comm_shm.h"

enum { FEW = 3, LITTLE = 512 * 1024 };         /* LITTLE: bytes of a piece of all ranks together that one rank sums sooner than it meets again */

/* Part r of n of `count` elements, cut where cache lines end. */
static int64_t cut(int64_t count, int n, int r, size_t size)
{
    int64_t line = 64 / (int64_t)size, part = (count + n - 1) / n;
    part = (part + line - 1) / line * line;
    return part * r < count ? part * r : count;
}

static bool wants(const td__shm *s, const td_coll *coll)
{
    return coll->kind != TD_COLL_REDUCE || coll->root == s->me;
}

/* all_reduce, reduce: into every out, or the root's alone. */
static int arena_reduce(td__shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype);
    int64_t low = cut(coll->count, s->n, s->me, size), high = cut(coll->count, s->n, s->me + 1, size);
    int outs = 0;
    for (int i = 0; i < s->n; i++) {
        s->in[i] = td__shm_peer(s, coll, i, false) + (size_t)low * size;
        if (coll->kind != TD_COLL_REDUCE || i == coll->root)
            s->out[outs++] = td__shm_peer(s, coll, i, true) + (size_t)low * size;
    }
    td__shm_combine(s, coll, high - low, outs);
    return td__control_meet(s->c, coll);
}

/* The first piece, by a rank whose memory is private: it will be staged whatever the others have. All have read what lay here: they have met
 * since, for the piece before this. */
void td__shm_stage_first(td__shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype), bytes = (size_t)coll->count * size;
    memcpy(td__control_stage(s->c, s->me, s->turn), coll->in, bytes < TD_STAGE ? bytes : TD_STAGE);
}

static bool all_private(const td__shm *s, const td_coll *coll)
{
    for (int i = 0; i < s->n; i++)
        if (td__shm_in_arena(s, coll, i, false))
            return false;
    return true;
}

static int staged_reduce(td__shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype);
    int64_t piece = TD_STAGE / (int64_t)size;
    bool staged = all_private(s, coll);        /* and met since                                                                   */
    for (int64_t at = 0; at < coll->count; at += piece, s->turn++, staged = false) {
        int64_t n = coll->count - at < piece ? coll->count - at : piece;
        int code = 0;
        if (!staged) {
            memcpy(td__control_stage(s->c, s->me, s->turn), (const char *)coll->in + (size_t)at * size, (size_t)n * size);
            code = td__control_meet(s->c, coll);
        }
        if (code)
            return code;
        bool few = s->n <= FEW || (size_t)n * size * (size_t)s->n <= LITTLE;
        int64_t low = few ? 0 : cut(n, s->n, s->me, size), high = few ? n : cut(n, s->n, s->me + 1, size);
        char *out = wants(s, coll) ? (char *)coll->out + (size_t)at * size : NULL;
        for (int i = 0; i < s->n; i++)
            s->in[i] = td__control_stage(s->c, i, s->turn) + (size_t)low * size;
        s->out[0] = few ? out : td__control_stage(s->c, s->me, s->turn) + (size_t)low * size;
        if (!few || out)
            td__shm_combine(s, coll, high - low, 1);
        if (few)
            continue;
        code = td__control_meet(s->c, coll);
        if (code)
            return code;
        for (int i = 0; i < s->n && out; i++) {
            size_t from = (size_t)cut(n, s->n, i, size) * size, to = (size_t)cut(n, s->n, i + 1, size) * size;
            memcpy(out + from, td__control_stage(s->c, i, s->turn) + from, to - from);
        }
    }
    return 0;
}

static int arena_reduce_scatter(td__shm *s, const td_coll *coll)
{
    size_t part = (size_t)coll->count * td_dtype_size(coll->dtype);
    for (int i = 0; i < s->n; i++)
        s->in[i] = td__shm_peer(s, coll, i, false) + (size_t)s->me * part;
    s->out[0] = coll->out;
    td__shm_combine(s, coll, coll->count, 1);
    return td__control_meet(s->c, coll);
}

static int staged_reduce_scatter(td__shm *s, const td_coll *coll)
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
        td__shm_combine(s, coll, n, 1);
    }
    return 0;
}

int td__shm_reduce(td__shm *s, const td_coll *coll)
{
    if (coll->kind == TD_COLL_REDUCE_SCATTER)
        return td__shm_all_in_arena(s, coll, false) ? arena_reduce_scatter(s, coll) : staged_reduce_scatter(s, coll);
    bool outs = coll->kind == TD_COLL_REDUCE ? td__shm_in_arena(s, coll, coll->root, true) : td__shm_all_in_arena(s, coll, true);
    return outs && td__shm_all_in_arena(s, coll, false) ? arena_reduce(s, coll) : staged_reduce(s, coll);
}
