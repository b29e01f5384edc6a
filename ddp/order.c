/* ddp/order.c: which leaf lies where, read and set from outside: a training state keeps it, so that a resumed run reduces and sums in
 * the same order from its first step on (norms over a flat and sums over ranks in slices follow the layout).
 */
#include "ddp_impl.h"

void td__ddp_order(const td_ddp *ddp, int32_t *order, int32_t *cut)
{
    int n = 0;
    for (int b = 0; b < ddp->buckets; b++) {
        const td__flat *flat = ddp->bucket[b].flat;
        cut[b] = flat->leaves;
        for (int i = 0; i < flat->leaves; i++)
            order[n++] = flat->leaf[i]->index;
    }
}

int td__ddp_set_order(td_ddp *ddp, const int32_t *order, const int32_t *cut, int buckets, bool rebuilt)
{
    td__leaf **sorted = td__alloc((size_t)ddp->leaves * sizeof *sorted);
    int *cuts = td__alloc((size_t)buckets * sizeof *cuts), code = sorted && cuts ? td__ddp_wait_all(ddp) : td__pending();
    for (int i = 0; !code && i < ddp->leaves; i++)
        sorted[i] = ddp->leaf[order[i]];
    for (int b = 0; !code && b < buckets; b++)
        cuts[b] = cut[b];
    const td__flat_memory memory = td__ddp_memory(ddp, rebuilt);
    if (!code)
        code = td__group_rebuild(ddp->group, sorted, cuts, buckets, &memory, ddp);
    if (!code)
        code = td__ddp_buckets_made(ddp);
    if (!code) {
        ddp->rebuilt = rebuilt;
        ddp->arrivals = 0;
    }
    td__free(sorted);
    td__free(cuts);
    return code;
}
