/* ddp/reducer.c: the walk of a gradient: ready, bucket full, launch, wait, finish.
 *
 * Called by autograd through td__ddp_ops, on the thread that runs td_backward. A bucket is launched when all of its gradients are
 * in place and all buckets before it are launched, so that every rank launches the same buckets in the same order, whatever order its own
 * gradients come in. Launching is handing a descriptor to the communicator's thread; backward goes on.
 */
#include "ddp_impl.h"

/* Launch what is full: the models of this communicator one after the other (the last attached first, since a model that is attached
 * later usually comes later in forward), each one's buckets in index order. A model waits for those before it, so that the sequence of
 * collectives is the same on every rank whatever each rank's graph looks like. The headers must have arrived first: they say
 * which models and buckets take part, and the total weights. */
static int64_t go_on(td_comm *comm, int64_t most, bool launch)
{
    int64_t n = 0;
    for (td_ddp *d = td__ddps(); d; d = d->next) {
        if (d->comm != comm || !d->syncing || !d->active || d->one)
            continue;
        int next = d->launched;
        while (next < d->buckets && !d->bucket[next].pending && n < most) {
            td__bucket *bucket = &d->bucket[next++];
            n++;
            if (!launch)
                continue;
            d->launched = next;
            if (!bucket->skip && td__bucket_cross(d, bucket))
                return n;
        }
        if (next < d->buckets)
            break;
    }
    return n;
}

static void launch_full(td_comm *comm)
{
    if (!td__ddp_headers_finish(comm))
        go_on(comm, INT64_MAX, true);
}

int64_t td__ddp_full(td_comm *comm)
{
    return go_on(comm, INT64_MAX, false);
}

int td__ddp_launch(td_comm *comm, int64_t most)
{
    go_on(comm, most, true);
    return td__pending();
}

int td__ddp_wait_all(td_ddp *ddp)
{
    int code = 0;
    for (int i = 0; i < ddp->buckets; i++) {
        int c = td__bucket_wait(ddp, &ddp->bucket[i]), v = td__bucket_settle(ddp, &ddp->bucket[i]);
        code = code ? code : c ? c : v;
    }
    int c = td__ddp_stop_wait(ddp);
    return code ? code : c;
}

/* Gradients that are the mean already go on as rank 0's; on the other ranks the next backward starts from nothing. Summed over the
 * ranks that is what they stand for, and replicas that add to it locally do not count it twice. */
static int carry(td_ddp *ddp)
{
    if (!ddp->reduced)
        return 0;
    int code = td__ddp_wait_all(ddp);
    code = code ? code : td__ddp_whole(ddp);
    ddp->reduced = false;
    ddp->carried = ddp->group->weight;
    if (ddp->rank == 0)
        return code;
    ddp->group->unit = ddp->group->weight = 0;
    for (int i = 0; i < ddp->leaves; i++)
        ddp->leaf[i]->has_grad = false;
    return code;
}

static int check_alive(td_ddp *ddp)
{
    if (ddp->gone)
        return td__fail(TD_ERR_STATE, "td_backward: a parameter of a model attached by td_ddp_new has been freed; free the td_ddp first");
    td_tensors now = td_parameters(ddp->model);
    for (size_t i = 0; i < now.n; i++) {
        td__leaf *leaf = td__leaf_of(now.list[i]);
        if (leaf->requires && leaf->group != ddp->group)
            return td__fail(TD_ERR_STATE,
                            "td_backward: parameter %s was frozen or absent when td_ddp_new was called, so no bucket holds its gradient; "
                            "add and unfreeze parameters first, then attach",
                            td_parameter_name(now.list[i]));
    }
    return 0;
}

static int reducer_begin(td__group *group, bool reached, int error, double weight)
{
    td_ddp *ddp = group->user;
    if (!error)
        error = check_alive(ddp);
    if (ddp->no_sync) {
        if (reached && !error && ddp->reduced && td__ddp_sharded(ddp))
            return td__fail(TD_ERR_STATE, "td_backward: the gradients of this model are reduced, each rank's slice of them (shard_optimizer), and a "
                            "backward under td_ddp_no_sync cannot add to them; step first");
        if (reached && !error) {
            error = carry(ddp);
            ddp->local = true;
        }
        return error;
    }
    ddp->carried = 0;
    double now = td__now();
    if (!ddp->step_began)
        ddp->step_began = now;
    ddp->backward_began = now;
    int code = carry(ddp);
    error = error ? error : code;
    for (int i = 0; i < ddp->buckets; i++) {
        td__bucket *bucket = &ddp->bucket[i];
        bucket->pending = 0;
        for (int k = 0; k < bucket->flat->leaves; k++)
            bucket->pending += bucket->flat->leaf[k]->expected > 0;
    }
    ddp->launched = 0;
    ddp->verdict = 0;
    ddp->syncing = true;
    /* An error does not stop here: the header carries it, and reducer_end tells every rank the same sentence. */
    code = td__ddp_header_send(ddp, reached, error, weight);
    if (code)
        ddp->syncing = false;
    return code;
}

static void reducer_leaf_ready(td__leaf *leaf)
{
    td_ddp *ddp = leaf->group->user;
    if (!ddp->syncing)
        return;
    if (!ddp->rebuilt && ddp->arrivals < ddp->leaves)
        ddp->arrival[ddp->arrivals++] = leaf->index;
    td__bucket *bucket = leaf->flat->user;
    if (--bucket->pending == 0 && !td__ddp_paced(ddp->comm))
        launch_full(ddp->comm);
}

/* What a batch has gathered is given up on every rank. */
static void forget(td_ddp *ddp)
{
    td__ddp_wait_all(ddp);
    ddp->group->unit = ddp->group->weight = 0;
    ddp->group->stop = NULL;
    for (int i = 0; i < ddp->leaves; i++)
        ddp->leaf[i]->has_grad = ddp->leaf[i]->used = false;
    ddp->reduced = ddp->local = ddp->whole = ddp->refused = false;
    ddp->step_began = 0;
}

static void finish(td_ddp *ddp, int code)
{
    ddp->syncing = false;
    ddp->verdict = code;
    if (code) {
        forget(ddp);
    } else if (ddp->active) {
        ddp->local = ddp->refused = false;
        ddp->whole = ddp->hook.start != NULL;                  /* hooks make the mean of whole buckets                          */
        ddp->reduced = true;
        ddp->group->unit = ddp->group->weight = ddp->total;
        for (int i = 0; i < ddp->leaves; i++)
            ddp->leaf[i]->has_grad = ddp->leaf[i]->used;
        ddp->stats.backward_ms += (td__now() - ddp->backward_began) * 1e3;
    } else if (ddp->carried != 0) {                            /* reached on no rank: the mean is again what it was          */
        ddp->reduced = true;
        ddp->group->unit = ddp->group->weight = ddp->carried;
        for (int i = 0; i < ddp->leaves; i++)
            ddp->leaf[i]->has_grad = ddp->leaf[i]->used;
    } else if (ddp->step_began == ddp->backward_began) {       /* another model's: this one's step has not begun                 */
        ddp->step_began = 0;
    }
}

/* The kernels have run for all models: the first call launches what is left of every model on this communicator. */
static int reducer_end(td__group *group)
{
    td_ddp *ddp = group->user;
    td_comm *comm = ddp->comm;
    if (ddp->syncing) {
        for (td_ddp *d = td__ddps(); d; d = d->next)
            for (int i = 0; d->comm == comm && i < d->buckets; i++)
                d->bucket[i].pending = 0;
        int code = td__ddp_headers_finish(comm);
        bool active = false;
        for (td_ddp *d = td__ddps(); d; d = d->next)
            active |= d->comm == comm && d->syncing && d->active;
        /* A gradient function failed after the headers had promised gradients: the others wait for what must not be used. (Where no
         * model is reached on any rank nobody waits, and the models' gradients stay.) */
        if (!code && td__pending() && active && ddp->size > 1)
            td_abort(comm, td_error_message());
        if (!code && active)
            code = td__pending();
        if (!code && active) {
            launch_full(comm);
            code = td__pending();
        }
        for (td_ddp *d = td__ddps(); d && !code; d = d->next)
            if (d->comm == comm && d->syncing && d->active)
                code = td__hook_end(d);
        if (code && active && td__pending() && ddp->size > 1)      /* of a hook, on this rank alone */
            td_abort(comm, td_error_message());
        for (td_ddp *d = td__ddps(); d && !code; d = d->next)      /* every index of this backward has been checked by now, on every rank */
            if (d->comm == comm && d->syncing && d->active)
                code = td__ddp_stop_cross(d);
        for (td_ddp *d = td__ddps(); d && !code; d = d->next)
            if (d->comm == comm && d->syncing && d->active && d->one)
                code = td__one_pass_defer(d);
        for (td_ddp *d = td__ddps(); d; d = d->next)
            if (d->comm == comm && d->syncing)
                finish(d, code);
    }
    return ddp->verdict;
}

static int reducer_step_begin(td__group *group)
{
    td_ddp *ddp = group->user;
    if (ddp->local)
        return td__fail(TD_ERR_STATE,
                        "td_optim_step: gradients were accumulated under td_ddp_no_sync and never reduced, so the replicas would "
                        "part; call td_ddp_no_sync(ddp, false) before the last backward of a batch");
    if (!ddp->rebuilt && ddp->reduced)
        return td__ddp_rebuild(ddp);
    return 0;
}

static int reducer_wait(td__flat *flat)
{
    td__bucket *bucket = flat->user;
    int code = bucket ? td__bucket_wait(flat->group->user, bucket) : 0;
    int stop = td__ddp_stop_wait(flat->group->user);
    return code ? code : stop;
}

static void reducer_step_end(td__group *group)
{
    td_ddp *ddp = group->user;
    td_ddp_stats *s = &ddp->stats;
    if (ddp->deferred)                                         /* taken by nobody, on no rank                                     */
        td__one_pass_settle(ddp);
    if (ddp->step_began)
        s->step_ms = (td__now() - ddp->step_began) * 1e3;
    td__ddp_exposed(ddp);
    s->overlap = s->comm_ms > 0 && s->exposed_ms < s->comm_ms ? 1 - s->exposed_ms / s->comm_ms : 0;
    s->buckets = ddp->buckets;
    for (int i = 0; i < ddp->buckets; i++) {
        td__bucket *bucket = &ddp->bucket[i];
        bucket->figures.parameters = bucket->flat->leaves;
        bucket->last = bucket->figures;
        bucket->figures = (td_ddp_bucket){ 0 };
    }
    if (ddp->stepped && ddp->step_began)
        td__which_way_stepped(ddp, ddp->one && !s->one_pass);
    ddp->stepped = false;
    ddp->last = *s;
    *s = (td_ddp_stats){ .slowest_rank = -1 };
    ddp->step_began = 0;
    ddp->reduced = ddp->local = ddp->whole = ddp->refused = false;
}

static void reducer_leaf_gone(td__leaf *leaf)
{
    td_ddp *ddp = leaf->group->user;
    td__bucket_settle(ddp, leaf->flat->user);
    ddp->gone = true;
    for (int i = 0; i < ddp->leaves; i++)
        if (ddp->leaf[i] == leaf)
            ddp->leaf[i] = ddp->leaf[--ddp->leaves];
}

#define REPLICAS                                                                                              \
    .begin = reducer_begin, .leaf_ready = reducer_leaf_ready, .end = reducer_end, .step_begin = reducer_step_begin, .wait = reducer_wait,  \
    .step_end = reducer_step_end, .leaf_gone = reducer_leaf_gone
const td__group_ops td__ddp_ops = { REPLICAS };
const td__group_ops td__ddp_slice_ops = { REPLICAS, .meet = td__one_pass_meet, .block = td__one_pass_block, .store = td__one_pass_store,
                                          .stepped = td__one_pass_stepped, .sum = td__shard_sum, .gather = td__shard_gather };
const td__group_ops td__ddp_shard_ops = { REPLICAS, .sum = td__shard_sum, .stepped = td__shard_stepped, .gather = td__shard_gather,
                                          .whole = td__shard_whole };
