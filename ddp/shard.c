/* ddp/shard.c: the sharded optimizer (ZeRO stage 1): each rank steps its own slice of every flat, for all.
 *
 * A flat is padded to as many equal slices as there are ranks. A bucket's gradients are reduced into the slices (cross.c: the same sums in the
 * same order as for replicas), the optimizer steps the slice and keeps moments of it alone, and the values are gathered again. The gathers
 * are started when the step is over, the last flat first, since that is the one that the next forward begins with. While one is
 * under way its parameters' storages are `late`: whoever asks for their memory (an operation, a reader, the next step) waits for that flat,
 * and for no other.
 *
 * Replicas of one host share their steps, too, in another way (one_pass.c).
 *
 * Between a reduction and the step a rank has the mean of its own slice only; the rest of the flat is what it sent. Who wants all of it
 * (td_grad, a further synchronised backward) gathers the gradients, too.
 */
#include <stddef.h>
#include "ddp_impl.h"

static td__bucket *bucket_of(td__late *late)
{
    return (td__bucket *)(void *)((char *)late - offsetof(td__bucket, late));
}

static void set_late(td__bucket *bucket, td__late *late)
{
    for (int i = 0; i < bucket->flat->leaves; i++)
        bucket->flat->leaf[i]->value->storage->late = late;
}

static td_coll gather_of(const td__flat *flat, void *data, td_dtype dtype, const char *label)
{
    const int64_t part = flat->own_high - flat->own_low;
    return (td_coll){ .kind = TD_COLL_ALL_GATHER, .dtype = dtype, .device = flat->value->device, .in = (char *)data + (size_t)flat->own_low * td_dtype_size(dtype),
                      .out = data, .count = part, .pre = 1, .post = 1, .plain = true, .site = td__site, .label = label };
}

/* ---- values ------------------------------------------------------------------------------------------------------------------------------- */

int td__bucket_settle(td_ddp *ddp, td__bucket *bucket)
{
    td_work *work = bucket->values;
    if (!work)
        return 0;
    td_coll figures = { 0 };
    const double before = td__now();
    bucket->values = NULL;
    set_late(bucket, NULL);
    int code = td__work_wait(work, &figures);
    ddp->stats.exposed_ms += (td__now() - before) * 1e3;
    ddp->stats.comm_ms += (figures.ended - figures.begun) * 1e3;
    return code;
}

/* An error is pending then: nobody acts on what is there. */
static void wait_late(td__late *late)
{
    td__bucket *bucket = bucket_of(late);
    td__bucket_settle(bucket->flat->group->user, bucket);
}

static int start(td_ddp *ddp, td__bucket *bucket)
{
    td__flat *flat = bucket->flat;
    int code = td__bucket_settle(ddp, bucket);
    const td_coll coll = gather_of(flat, flat->value->data, flat->dtype, bucket->values_label);
    bucket->values = td__coll_start(ddp->comm, &coll);
    bucket->late.wait = wait_late;
    set_late(bucket, &bucket->late);
    return code ? code : bucket->values ? 0 : td__pending();
}

int td__shard_stepped(td__group *group, bool failed)
{
    td_ddp *ddp = group->user;
    int code = 0;
    for (int b = ddp->buckets - 1; b >= 0; b--) {
        td__bucket *bucket = &ddp->bucket[b];
        int c = bucket->flat->stepped && ddp->reduced ? start(ddp, bucket) : 0;
        bucket->flat->stepped = false;
        code = code ? code : c;
    }
    ddp->refused = failed && ddp->reduced;
    return code;
}

/* ---- gradients, numbers, state --------------------------------------------------------------------------------------------------------------- */

int td__ddp_whole(td_ddp *ddp)
{
    if (!td__ddp_sharded(ddp) || !ddp->reduced || ddp->whole)
        return 0;
    if (ddp->refused)
        return td__fail(TD_ERR_STATE, "gradients that were reduced in slices (shard_optimizer) are no more: td_optim_step has failed on this rank, and the "
                        "others may have taken theirs");
    int code = td__ddp_wait_all(ddp);
    for (int b = 0; b < ddp->buckets && !code; b++) {
        td__flat *flat = ddp->bucket[b].flat;
        td_coll coll = gather_of(flat, flat->grad->data, flat->dtype, "td_grad under shard_optimizer");
        code = ddp->bucket[b].skip ? 0 : td__coll_run(ddp->comm, &coll);
    }
    ddp->whole = !code;
    return code;
}

int td__shard_whole(td__group *group)
{
    return td__ddp_whole(group->user);
}

int td__shard_sum(td__flat *flat, double *values, int n)
{
    td_ddp *ddp = flat->group->user;
    if (ddp->local)
        return td__fail(TD_ERR_STATE, "the norm of gradients that were accumulated under td_ddp_no_sync is nobody's with shard_optimizer; clip and unscale "
                        "after the synchronised backward");
    td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = TD_F64, .device = flat->value->device, .op = TD_SUM, .in = values, .out = values, .count = n,
                     .pre = 1, .post = 1, .plain = true, .site = td__site, .label = "sum over slices" };
    return td__coll_run(ddp->comm, &coll);
}

int td__shard_gather(td__flat *flat, void *values, td_dtype dtype)
{
    td_coll coll = gather_of(flat, values, dtype, "state of a sharded optimizer");
    if (flat->own_high - flat->own_low == flat->n)     /* not cut yet                                                          */
        return 0;
    return td__coll_run(((td_ddp *)flat->group->user)->comm, &coll);
}

/* ---- where flats lie ----------------------------------------------------------------------------------------------------------------------------- */

/* Replicas of one host have no slices before the buckets are where they stay: state that an optimizer brings along is cut once. */
td__flat_memory td__ddp_memory(const td_ddp *ddp, bool rebuilt)
{
    td__flat_memory memory = { .grad = td__ddp_arena, .give_back = td__ddp_arena_give_back };
    if (td__ddp_sharded(ddp) || ddp->sliced)
        memory.value = td__ddp_arena;
    if (td__ddp_sharded(ddp) || (ddp->sliced && rebuilt)) {
        memory.parts = ddp->size;
        memory.mine = ddp->rank;
    }
    return memory;
}
