/* plugins/cuda/nccl_parts.c: gather, scatter, all_to_all and all_gather of uneven parts: NCCL has messages for them, sent and received together as
 * one group. A rank's own part is a message to itself, too; where it lies already where it belongs it is none.
 */
#include "nccl_impl.h"

/* Parts of a side, in elements: what goes to rank r, or comes from it, and where it lies. */
typedef struct { int64_t n, at; } part;

static part given(const nccl_state *s, const td_coll *coll, int r, const part *before)
{
    switch (coll->kind) {
    case TD_COLL_GATHER: return (part){ r == coll->root ? coll->count : 0, 0 };
    case TD_COLL_SCATTER: return (part){ s->rank == coll->root ? coll->count : 0, r * coll->count };
    case TD_COLL_ALL_GATHER: return (part){ coll->counts[s->rank], 0 };
    default: return (part){ coll->in_counts ? coll->in_counts[r] : coll->count, before->at + before->n };
    }
}

static part taken(const nccl_state *s, const td_coll *coll, int r, const part *before)
{
    switch (coll->kind) {
    case TD_COLL_GATHER: return (part){ s->rank == coll->root ? coll->count : 0, r * coll->count };
    case TD_COLL_SCATTER: return (part){ r == coll->root ? coll->count : 0, 0 };
    default: return (part){ coll->counts ? coll->counts[r] : coll->count, before->at + before->n };
    }
}

int nccl_parts(nccl_state *s, const td_coll *coll, const void *in, const char **name)
{
    const size_t size = td_dtype_size(coll->dtype);
    const int t = nccl_type(coll->dtype);
    part give = { 0, 0 }, take = { 0, 0 };
    *name = "ncclGroupStart";
    int result = s->lib->group_start();
    if (result != NCCL_OK)
        return result;
    for (int r = 0; r < s->ranks && (result == NCCL_OK || result == NCCL_IN_PROGRESS); r++) {
        give = given(s, coll, r, &give);
        take = taken(s, coll, r, &take);
        const char *from = (const char *)in + (size_t)give.at * size;
        char *to = (char *)coll->out + (size_t)take.at * size;
        if (r == s->rank && from == to)
            continue;
        *name = "ncclSend";
        if (give.n)
            result = s->lib->send(from, (size_t)give.n, t, r, s->comm, s->stream);
        if (!take.n || (result != NCCL_OK && result != NCCL_IN_PROGRESS))
            continue;
        *name = "ncclRecv";
        result = s->lib->receive(to, (size_t)take.n, t, r, s->comm, s->stream);
    }
    const int ended = s->lib->group_end();     /* also after an error: the group must end                                     */
    if (result != NCCL_OK && result != NCCL_IN_PROGRESS)
        return result;
    *name = "ncclGroupEnd";
    return ended;
}
