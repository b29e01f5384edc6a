/* ddp/buckets.c: which gradient lies in which bucket.
 *
 * At attach: the parameters from last to first, since backward produces gradients roughly in that order; the first bucket small,
 * so that communication starts early. Before the first step, once: the order in which gradients really came on rank 0, broadcast,
 * so that a bucket is full as early as it can be and every rank cuts alike. A bucket holds one dtype.
 */
#include "ddp_impl.h"

static int64_t bytes_of(const td__leaf *leaf)
{
    int64_t bytes = td_numel(leaf->value) * (int64_t)td_dtype_size(leaf->value->dtype);
    return (bytes + 63) / 64 * 64;
}

/* Cuts leaves taken in `order` (indices) into buckets: sorted[] bucket by bucket, cut[b] leaves in bucket b. Both have room for
 * ddp->leaves entries. Per dtype the cap is first_bucket_bytes for its first bucket, bucket_bytes for the others; a leaf larger than
 * the cap has a bucket of its own. Buckets stand in the order in which they become full. */
int td__ddp_plan(td_ddp *ddp, const int32_t *order, td__leaf **sorted, int *cut)
{
    struct { int bucket; int64_t bytes, cap; } open[8];
    for (size_t t = 0; t < TD_COUNT(open); t++)
        open[t].bucket = -1, open[t].bytes = 0, open[t].cap = ddp->first_bucket_bytes;
    int n = ddp->leaves, made = 0, *of = td__alloc((size_t)n * sizeof *of), *last = td__calloc((size_t)n * sizeof *last);
    if (!of || !last) {
        td__free(of);
        td__free(last);
        return td__pending();
    }
    for (int i = 0; i < n; i++) {
        td__leaf *leaf = ddp->leaf[order[i]];
        int t = (int)leaf->value->dtype;
        if (open[t].bucket >= 0 && open[t].bytes + bytes_of(leaf) > open[t].cap) {
            open[t].bucket = -1;
            open[t].cap = ddp->bucket_bytes;
        }
        if (open[t].bucket < 0) {
            open[t].bucket = made++;
            open[t].bytes = 0;
        }
        of[i] = open[t].bucket;
        last[of[i]] = i;
        open[t].bytes += bytes_of(leaf);
    }
    /* a bucket's place is that of its last leaf: with several dtypes an early bucket may fill late */
    int placed = 0, at = 0;
    for (int i = 0; i < n; i++) {
        int b = of[i];
        if (last[b] != i)
            continue;
        cut[placed] = 0;
        for (int k = 0; k <= i; k++)
            if (of[k] == b)
                sorted[at++] = ddp->leaf[order[k]], cut[placed]++;
        placed++;
    }
    td__free(of);
    td__free(last);
    return made;
}

td_storage *td__ddp_arena(void *ddp, size_t bytes)
{
    return td__comm_storage(((td_ddp *)ddp)->comm, ((td_ddp *)ddp)->device, bytes);
}

/* Other ranks have touched what lay there: their pages go, too. */
void td__ddp_arena_give_back(void *ddp)
{
    td__comm_give_back(((td_ddp *)ddp)->comm);
}

void td__ddp_buckets_drop(td_ddp *ddp)
{
    const td_device_ops *ops = ddp->buckets ? td__device_ops(ddp->device) : NULL;
    for (int b = 0; b < ddp->buckets; b++) {
        td__bucket *bucket = &ddp->bucket[b];
        if (bucket->low)
            td__storage_unref(bucket->low);
        if (bucket->wide)
            td__storage_unref(bucket->wide);
        td__hook_forget(bucket);
        for (int e = 0; e < 4; e++)
            if (bucket->waits[e / 2][e % 2])
                ops->event_free(ddp->device.index, bucket->waits[e / 2][e % 2]);
    }
    td__free(ddp->bucket);
    ddp->bucket = NULL;
    ddp->buckets = 0;
}

int td__ddp_buckets_made(td_ddp *ddp)
{
    td__ddp_buckets_drop(ddp);
    ddp->placed = false;
    ddp->buckets = ddp->group->flats;
    ddp->bucket = td__calloc((size_t)ddp->buckets * sizeof *ddp->bucket);
    if (!ddp->bucket) {
        ddp->buckets = 0;
        return td__pending();
    }
    for (int b = 0; b < ddp->buckets; b++) {
        ddp->bucket[b].flat = ddp->group->flat[b];
        ddp->group->flat[b]->user = &ddp->bucket[b];
        snprintf(ddp->bucket[b].label, sizeof ddp->bucket[b].label, "bucket %d of %d", b, ddp->buckets);
        snprintf(ddp->bucket[b].values_label, sizeof ddp->bucket[b].values_label, "values of bucket %d of %d", b, ddp->buckets);
    }
    return 0;
}

/* Rank 0's order of arrival; parameters that had no gradient keep their old places after those that had. */
static void complete_order(td_ddp *ddp, int32_t *order)
{
    bool *seen = td__calloc((size_t)ddp->leaves);
    int n = 0;
    for (int i = 0; seen && i < ddp->arrivals; i++)
        if (!seen[ddp->arrival[i]])
            seen[order[n++] = ddp->arrival[i]] = true;
    for (int i = ddp->leaves - 1; seen && i >= 0; i--)
        if (!seen[i])
            order[n++] = i;
    td__free(seen);
}

int td__ddp_rebuild(td_ddp *ddp)
{
    size_t n = (size_t)ddp->leaves;
    int32_t *order = td__alloc(n * sizeof *order);
    td__leaf **sorted = td__alloc(n * sizeof *sorted);
    int *cut = td__alloc(n * sizeof *cut), code = order && sorted && cut ? td__ddp_wait_all(ddp) : td__pending();
    code = code ? code : td__ddp_whole(ddp);   /* sharded: slices are cut elsewhere from now on                                */
    if (!code) {
        complete_order(ddp, order);
        code = td__ddp_broadcast(ddp, (td_device){ TD_CPU, 0 }, order, TD_I32, ddp->leaves, 0);
    }
    if (!code) {
        int buckets = td__ddp_plan(ddp, order, sorted, cut);
        const td__flat_memory memory = td__ddp_memory(ddp, true);
        code = buckets < 0 ? buckets : td__group_rebuild(ddp->group, sorted, cut, buckets, &memory, ddp);
    }
    if (!code)
        code = td__ddp_buckets_made(ddp);
    ddp->rebuilt = true;
    td__free(order);
    td__free(sorted);
    td__free(cut);
    return code;
}
