/* ddp/cross.c: one bucket's way over the ranks: what is missing becomes zero, the collective starts, and is waited for.
 *
 * On a GPU all of this is put on its streams and nobody waits: the wait is one of the compute stream. What that costs is measured by events around it,
 * read a step later.
 *
 * In bf16 (gradient_dtype) a rank sends its share of the mean, unit/total * G, rounded once. GPUs add the shares in their library; in host
 * memory they are gathered and added in f32 in rank order. Either way every rank gets the same bits.
 *
 * With a sharded optimizer (shard.c) a rank gets its own slice alone: a reduce_scatter in the place of the all_reduce, whose sums are the same ones, and an
 * all_to_all in the place of the all_gather of 16 bits.
 */
#include "ddp_impl.h"

static td_loop all_of(int64_t n)
{
    return (td_loop){ .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 }, { 1 } } };
}

static bool on_host(const td_ddp *ddp)
{
    return ddp->device.kind == TD_CPU;
}

/* A gradient that this rank does not have contributes exactly zero. What lies in the bucket may be an old step's. */
int td__bucket_fill(td__flat *flat)
{
    size_t size = td_dtype_size(flat->dtype);
    int code = 0;
    for (int i = 0; i < flat->leaves && !code; i++) {
        const td__leaf *leaf = flat->leaf[i];
        td_loop l = all_of(td_numel(leaf->value));
        if (leaf->has_grad || l.dim[0] == 0)
            continue;
        code = td__need("td_backward", leaf->value, fill);
        if (!code)
            td__kernels(leaf->value)->fill(&l, flat->dtype, (char *)flat->grad->data + (size_t)leaf->offset * size, 0);
    }
    return code;
}

/* ---- 16 bits ---------------------------------------------------------------------------------------------------------------------------------- */

bool td__bucket_narrow(const td_ddp *ddp, const td__flat *flat)
{
    return flat->dtype == TD_F32 && ddp->gradient_dtype != TD_F32;
}

static int need_room(td_ddp *ddp, td__bucket *bucket)
{
    const size_t n = (size_t)bucket->flat->n, size = td_dtype_size(ddp->gradient_dtype);
    if (!bucket->low)
        bucket->low = td__comm_storage(ddp->comm, ddp->device, n * size * (size_t)(!on_host(ddp) ? 1 : td__ddp_sharded(ddp) ? 2 : 1 + ddp->size));
    if (bucket->low && on_host(ddp) && !bucket->wide)
        bucket->wide = td__storage_new(ddp->device, n * sizeof(float));
    return bucket->low && (bucket->wide || !on_host(ddp)) ? 0 : td__pending();
}

/* This rank's share of the mean into bucket->low. */
static int lower(td_ddp *ddp, td__bucket *bucket)
{
    const td__flat *flat = bucket->flat;
    const td_tensor *like = flat->leaf[0]->value;
    const double factor = ddp->total > 0 ? ddp->group->unit / ddp->total : 0;
    const td_loop l = all_of(flat->n);
    int code = need_room(ddp, bucket);
    code = code ? code : td__need("td_backward", like, times);
    code = code ? code : td__need("td_backward", like, copy);
    code = code ? code : td__need("td_backward", like, fill);
    if (code)
        return code;
    if (factor == 0) {                         /* never 0*NaN */
        td__kernels(like)->fill(&l, ddp->gradient_dtype, bucket->low->data, 0);
        return 0;
    }
    if (factor != 1)
        td__kernels(like)->times(TD_F32, flat->n, flat->grad->data, td__number(factor));
    td__kernels(like)->copy(&l, ddp->gradient_dtype, bucket->low->data, TD_F32, flat->grad->data, false);
    return 0;
}

/* What this rank gets of a reduced flat: its own slice where nobody needs more. */
static int64_t first_of(const td_ddp *ddp, const td__flat *flat)
{
    return td__ddp_sharded(ddp) ? flat->own_low : 0;
}

static int64_t count_of(const td_ddp *ddp, const td__flat *flat)
{
    return td__ddp_sharded(ddp) ? flat->own_high - flat->own_low : td__bucket_filled(flat);
}

/* The mean out of what has come. */
static void mean_of(td_ddp *ddp, td__bucket *bucket)
{
    const td__flat *flat = bucket->flat;
    const td_kernels *k = td__kernels(flat->leaf[0]->value);
    const td_loop l = all_of(count_of(ddp, flat));
    const size_t size = td_dtype_size(ddp->gradient_dtype), share = (size_t)l.dim[0] * size;
    const char *come = (const char *)bucket->low->data + (size_t)(on_host(ddp) ? flat->n : first_of(ddp, flat)) * size;
    float *mean = (float *)flat->grad->data + first_of(ddp, flat);
    k->copy(&l, TD_F32, mean, ddp->gradient_dtype, come, false);
    for (int r = 1; on_host(ddp) && r < ddp->size; r++) {
        k->copy(&l, TD_F32, bucket->wide->data, ddp->gradient_dtype, come + (size_t)r * share, false);
        k->add(&l, TD_F32, mean, mean, bucket->wide->data, false);
    }
}

/* ---- launch, wait ----------------------------------------------------------------------------------------------------------------------------- */

int td__bucket_cross(td_ddp *ddp, td__bucket *bucket)
{
    td__flat *flat = bucket->flat;
    int code = td__bucket_fill(flat);
    bucket->figures.ready_ms = (td__now() - ddp->backward_began) * 1e3;
    if (!code && ddp->hook.start)
        return td__hook_start(ddp, bucket);
    if (!code && td__bucket_narrow(ddp, flat))
        code = lower(ddp, bucket);
    if (code)
        return code;
    td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = flat->dtype, .device = ddp->device, .op = TD_SUM, .in = flat->grad->data,
                     .out = flat->grad->data, .count = td__ddp_sharded(ddp) ? flat->n : count_of(ddp, flat), .pre = ddp->group->unit, .post = ddp->total > 0 ? 1 / ddp->total : 0,
                     .site = td__site, .label = bucket->label };
    if (td__bucket_narrow(ddp, flat)) {
        coll.dtype = ddp->gradient_dtype;
        coll.in = coll.out = bucket->low->data;
        coll.pre = coll.post = 1;
        coll.plain = true;
        if (on_host(ddp)) {
            coll.kind = td__ddp_sharded(ddp) ? TD_COLL_ALL_TO_ALL : TD_COLL_ALL_GATHER;
            coll.count = count_of(ddp, flat);
            coll.out = (char *)bucket->low->data + (size_t)flat->n * td_dtype_size(coll.dtype);
        }
    }
    bucket->figures.bytes = (td__ddp_sharded(ddp) ? flat->n : count_of(ddp, flat)) * (int64_t)td_dtype_size(coll.dtype);
    if (td__ddp_sharded(ddp) && coll.kind == TD_COLL_ALL_REDUCE) {
        coll.kind = TD_COLL_REDUCE_SCATTER;
        coll.count = flat->own_high - flat->own_low;
        coll.out = (char *)coll.out + (size_t)flat->own_low * td_dtype_size(coll.dtype);
    }
    bucket->work = td__coll_start(ddp->comm, &coll);
    ddp->stats.bytes += bucket->figures.bytes;
    return bucket->work ? 0 : td__pending();
}

/* A bad index is garbage in every rank's mean, but only its own rank's kernels see the device's word. So the words are summed as the buckets are, and
 * whoever steps this group reads the sum (td_step.stop): nobody's host waits, and all ranks leave their weights alone or none. What an earlier backward
 * of the same batch has found stays found. A f64, since the kernels read `stop` as it comes. */
int td__ddp_stop_cross(td_ddp *ddp)
{
    const td_tensor *like = ddp->leaf[0]->value;
    const td_kernels *k = td__kernels(like);
    const td_loop one = all_of(1);
    const int32_t *word = ddp->stop ? like->storage->ops->trap_word() : NULL;
    int code = td__ddp_stop_wait(ddp);
    if (!ddp->stop || code)
        return code;
    if (!ddp->group->stop)
        code = td__need("td_backward", like, fill);
    if (!code && word)
        code = td__need("td_backward", like, copy);
    if (code)
        return code;
    if (!ddp->group->stop)
        k->fill(&one, TD_F64, ddp->stop->data, 0);
    if (word)
        k->copy(&one, TD_F64, ddp->stop->data, TD_I32, word, true);
    td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = TD_F64, .device = ddp->device, .op = TD_MAX, .in = ddp->stop->data, .out = ddp->stop->data,
                     .count = 1, .pre = 1, .post = 1, .plain = true, .site = td__site, .label = "word of index checks" };
    ddp->stopping = td__coll_start(ddp->comm, &coll);
    ddp->group->stop = ddp->stop->data;
    return ddp->stopping ? 0 : td__pending();
}

int td__ddp_stop_wait(td_ddp *ddp)
{
    int code = ddp->stopping ? td__work_wait(ddp->stopping, NULL) : 0;
    ddp->stopping = NULL;
    return code;
}

/* Not while a graph is captured: its events are not this stream's. */
static void mark(td_ddp *ddp, td__bucket *bucket, int end)
{
    const td_device_ops *ops = bucket->flat->grad->ops;
    void **event = &bucket->waits[ddp->odd][end];
    if (on_host(ddp) || !ops->event_new_timed || !ops->event_ms || td__recording_now)
        return;
    if (!*event)
        *event = ops->event_new_timed(ddp->device.index);
    bucket->waited[ddp->odd] = *event && ops->event_record(ddp->device.index, *event, NULL) == 0 && end;
}

int td__bucket_wait(td_ddp *ddp, td__bucket *bucket)
{
    if (ddp->deferred)
        return ddp->stepping ? 0 : td__one_pass_settle(ddp);
    if (bucket->hooked)
        return td__hook_finish(ddp, bucket);
    if (!bucket->work)
        return 0;
    td_coll figures;
    double before = td__now();
    mark(ddp, bucket, 0);
    int code = td__work_wait(bucket->work, &figures);
    bucket->work = NULL;
    mark(ddp, bucket, 1);
    ddp->stats.exposed_ms += (td__now() - before) * 1e3;
    bucket->figures.comm_ms = (figures.ended - figures.begun) * 1e3;
    ddp->stats.comm_ms += bucket->figures.comm_ms;
    if (!code && td__bucket_narrow(ddp, bucket->flat))
        mean_of(ddp, bucket);
    return code;
}

void td__ddp_exposed(td_ddp *ddp)
{
    if (on_host(ddp))
        return;
    double sum = 0;
    bool all = true;
    ddp->odd = !ddp->odd;                      /* now the step before: its events are read, and recorded anew by the next step      */
    for (int b = 0; b < ddp->buckets; b++) {
        td__bucket *bucket = &ddp->bucket[b];
        double ms = 0;
        void **e = bucket->waits[ddp->odd];
        if (bucket->waited[ddp->odd])
            all &= bucket->flat->value->ops->event_ms(ddp->device.index, e[0], e[1], &ms) == 0;
        bucket->waited[ddp->odd] = false;
        sum += ms;
    }
    ddp->stats.exposed_ms = all ? sum : ddp->last.exposed_ms;
    double comm_ms, waited_ms;                 /* of all that has passed since the last step, by the communication stream's own events     */
    td__comm_device_times(ddp->comm, &comm_ms, &waited_ms);
    ddp->stats.comm_ms += comm_ms;
}
