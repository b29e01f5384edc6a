/* ddp/attach.c: a td_ddp's birth and death.
 */
#include "ddp_impl.h"

static td_ddp *all_ddps;   /* of this process; td_finish frees what is left */

td_ddp *td__ddps(void)
{
    return all_ddps;
}

int td__ddp_broadcast(td_ddp *ddp, td_device device, void *data, td_dtype dtype, int64_t count, int root)
{
    td_coll coll = { .kind = TD_COLL_BROADCAST, .dtype = dtype, .device = device, .root = root, .in = data, .out = data, .count = count, .pre = 1, .post = 1,
                     .site = td__site, .label = "td_ddp_new" };
    return td__coll_run(ddp->comm, &coll);
}

/* The trainable parameters, each once. Those of an optimizer's group move to ours; those of another ddp are an error. */
static int collect(td_ddp *ddp)
{
    td_tensors p = td_parameters(ddp->model);
    ddp->leaf = td__alloc((p.n + 1) * sizeof *ddp->leaf);
    if (!ddp->leaf)
        return td__pending();
    for (size_t i = 0; i < p.n; i++) {
        td__leaf *leaf = td__leaf_of(p.list[i]);
        if (!leaf->requires)
            continue;
        if (leaf->group && leaf->group->ops)
            return td__fail(TD_ERR_STATE, "td_ddp_new: parameter %s is attached to a td_ddp already", td_parameter_name(p.list[i]));
        if (leaf->has_grad)
            return td__fail(TD_ERR_STATE, "td_ddp_new: parameter %s has a gradient already; attach before the first backward",
                            td_parameter_name(p.list[i]));
        const td_device device = leaf->value->storage->device;
        char a[24], b[24];
        if (ddp->leaves == 0)
            ddp->device = device;
        else if (!td__device_equal(device, ddp->device))
            return td__fail(TD_ERR_DEVICE, "td_ddp_new: parameter %s is on %s and others on %s; the model must be on one device",
                            td_parameter_name(p.list[i]), td__device_text(device, a), td__device_text(ddp->device, b));
        leaf->index = ddp->leaves;
        ddp->leaf[ddp->leaves++] = leaf;
    }
    if (!ddp->leaves)
        return td__fail(TD_ERR_ARGUMENT, "td_ddp_new: the model has no trainable parameter");
    for (int i = 0; i < ddp->leaves; i++)
        if (ddp->leaf[i]->group)
            td__group_free(ddp->leaf[i]->group);
    return 0;
}

static int make_buckets(td_ddp *ddp)
{
    size_t n = (size_t)ddp->leaves;
    int32_t *order = td__alloc(n * sizeof *order);
    td__leaf **sorted = td__alloc(n * sizeof *sorted);
    int *cut = td__alloc(n * sizeof *cut), code = order && sorted && cut ? 0 : td__pending();
    if (!code) {
        for (int i = 0; i < ddp->leaves; i++)
            order[i] = ddp->leaves - 1 - i;
        int buckets = td__ddp_plan(ddp, order, sorted, cut);
        const td__flat_memory memory = td__ddp_memory(ddp, false);
        ddp->group = buckets < 0 ? NULL : td__group_new(sorted, cut, buckets, &memory, ddp);
        code = ddp->group ? td__ddp_buckets_made(ddp) : td__pending();
    }
    td__free(order);
    td__free(sorted);
    td__free(cut);
    return code;
}

static int broadcast_state(td_ddp *ddp)
{
    for (int b = 0; b < ddp->buckets; b++) {
        td__flat *flat = ddp->bucket[b].flat;
        int code = td__ddp_broadcast(ddp, ddp->device, flat->value->data, flat->dtype, flat->n, 0);
        if (code)
            return code;
        flat->value->version++;
    }
    td_tensors frozen = td_parameters(ddp->model), buffers = td_buffers(ddp->model);
    for (size_t i = 0; i < frozen.n + buffers.n; i++) {
        td_tensor *x = i < frozen.n ? frozen.list[i] : buffers.list[i - frozen.n];
        if (i < frozen.n && td__leaf_of(x)->requires)
            continue;
        int code = td_broadcast(ddp->comm, x, 0);
        if (code)
            return code;
    }
    return 0;
}

static td_ddp poisoned;

td_ddp *td_ddp_new(td_module *model, const td_ddp_opts *opts)
{
    TD_ENTER();
    static const td_ddp_opts standard;
    opts = opts ? opts : &standard;
    td_ddp *ddp = td__calloc(sizeof *ddp);
    if (!ddp)
        return &poisoned;
    ddp->model = model;
    ddp->comm = opts->comm ? opts->comm : td_world();
    ddp->rank = td_rank(ddp->comm);
    ddp->size = td_size(ddp->comm);
    ddp->bucket_bytes = opts->bucket_bytes ? opts->bucket_bytes : 25 << 20;
    ddp->first_bucket_bytes = opts->first_bucket_bytes ? opts->first_bucket_bytes : 1 << 20;
    ddp->gradient_dtype = opts->gradient_dtype;
    ddp->shard_optimizer = opts->shard_optimizer;
    ddp->stats.slowest_rank = ddp->last.slowest_rank = -1;

    int code = td__pending();
    code = code ? code : td__module_check("td_ddp_new", model);
    if (!code && (ddp->bucket_bytes < 0 || ddp->first_bucket_bytes < 0))
        code = td__fail(TD_ERR_ARGUMENT, "td_ddp_new: bucket_bytes %lld and first_bucket_bytes %lld must not be negative",
                        (long long)ddp->bucket_bytes, (long long)ddp->first_bucket_bytes);
    if (!code && ddp->gradient_dtype != TD_F32 && ddp->gradient_dtype != TD_BF16)
        code = td__fail(TD_ERR_DTYPE, "td_ddp_new: gradient_dtype is %s, expected f32 or bf16", td_dtype_name(ddp->gradient_dtype));
    code = td__comm_agree(ddp->comm, code, "td_ddp_new");
    code = code ? code : td__ddp_verify(ddp);
    code = code ? code : td__comm_agree(ddp->comm, collect(ddp), "td_ddp_new");
    if (!code) {
        ddp->arrival = td__alloc((size_t)ddp->leaves * sizeof *ddp->arrival);
        ddp->header_bytes = (sizeof(td__ddp_header) + (size_t)(ddp->leaves + 7) / 8 + 63) / 64 * 64;
        ddp->header_storage = td__comm_storage(ddp->comm, (td_device){ TD_CPU, 0 }, ddp->header_bytes * (size_t)(ddp->size + 1));
        td__one_pass_open(ddp);
        code = td__comm_agree(ddp->comm, ddp->arrival && ddp->header_storage && !td__pending() ? make_buckets(ddp) : td__pending(), "td_ddp_new");
    }
    if (!code && ddp->size > 1 && td__device_ops(ddp->device)->trap_word) {
        ddp->stop = td__storage_new(ddp->device, sizeof(double));
        code = td__comm_agree(ddp->comm, ddp->stop ? 0 : td__pending(), "td_ddp_new");
    }
    code = code ? code : broadcast_state(ddp);
    if (code) {
        td_ddp_free(ddp);
        return &poisoned;
    }
    ddp->group->user = ddp;
    td__group_attach(ddp->group, ddp->sliced ? &td__ddp_slice_ops : td__ddp_sharded(ddp) ? &td__ddp_shard_ops : &td__ddp_ops);
    ddp->next = all_ddps;
    if (all_ddps)
        all_ddps->prev = ddp;
    all_ddps = ddp;
    return ddp;
}

static void ddp_free(td_ddp *ddp, bool goes_on)
{
    if (ddp->header)
        td__work_wait(ddp->header, NULL);
    td__ddp_wait_all(ddp);
    if (goes_on)
        td__one_pass_leave(ddp);
    td__hook_drop(ddp);
    td__one_pass_close(ddp);
    if (ddp->prev)
        ddp->prev->next = ddp->next;
    else if (all_ddps == ddp)
        all_ddps = ddp->next;
    if (ddp->next)
        ddp->next->prev = ddp->prev;
    if (ddp->group)
        td__group_free(ddp->group);
    if (ddp->header_storage)
        td__storage_unref(ddp->header_storage);
    if (ddp->stop)
        td__storage_unref(ddp->stop);
    td__ddp_buckets_drop(ddp);
    td__free(ddp->arrival);
    td__free(ddp->leaf);
    td__free(ddp);
}

void td_ddp_free(td_ddp *ddp)
{
    TD_ENTER();
    if (ddp && ddp != &poisoned)
        ddp_free(ddp, ddp->group && ddp->group->ops);
}

bool td__ddp_is_poison(const td_ddp *ddp)
{
    return ddp == &poisoned;
}

void td__ddp_free_all(void)
{
    while (all_ddps)
        ddp_free(all_ddps, false);
    td__ddp_pace_forget();
}

typedef struct { td_ddp *ddp; bool on; } synced;

static int no_sync_again(void *state)
{
    const synced *s = state;
    s->ddp->no_sync = s->on;
    return 0;
}

void td_ddp_no_sync(td_ddp *ddp, bool on)
{
    TD_ENTER();
    static const td__record_kind kind = { "td_ddp_no_sync", sizeof(synced), no_sync_again, no_sync_again, NULL, NULL };
    synced *noted = ddp && ddp != &poisoned ? td__record_begin(&kind) : NULL;
    if (noted)
        *noted = (synced){ ddp, on };
    if (ddp && ddp != &poisoned)
        td__record_end();
    if (!ddp)
        td__fail(TD_ERR_ARGUMENT, "td_ddp_no_sync: the td_ddp is NULL");
    else if (ddp != &poisoned)
        ddp->no_sync = on;
}

td_ddp_stats td_ddp_last_step(const td_ddp *ddp)
{
    TD_ENTER();
    if (!ddp)
        td__fail(TD_ERR_ARGUMENT, "td_ddp_last_step: the td_ddp is NULL");
    return ddp ? ddp->last : poisoned.last;
}

td_ddp_bucket td_ddp_last_bucket(const td_ddp *ddp, int i)
{
    TD_ENTER();
    if (!ddp)
        td__fail(TD_ERR_ARGUMENT, "td_ddp_last_bucket: the td_ddp is NULL");
    else if (ddp != &poisoned && (i < 0 || i >= ddp->buckets))
        td__fail(TD_ERR_ARGUMENT, "td_ddp_last_bucket: there is no bucket %d; there are %d, from 0", i, ddp->buckets);
    else if (ddp != &poisoned)
        return ddp->bucket[i].last;
    return (td_ddp_bucket){ 0 };
}
