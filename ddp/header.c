/* ddp/header.c: the small collective that opens each synchronised backward.
 *
 * Every rank says: its sum of weights, whether this backward reaches the model, which parameters have (or will have) a gradient,
 * and its pending error. It is started before the kernels run and finished when the first bucket is full, so it costs backward
 * nothing but the hand-over. A rank with an error still sends it: then all ranks learn the same sentence by one more collective,
 * which only happens then.
 */
#include "ddp_impl.h"

static td__ddp_header *record(const td_ddp *ddp, int i)   /* 0: mine to send; 1 + r: rank r's */
{
    return (td__ddp_header *)((char *)ddp->header_storage->data + (size_t)i * ddp->header_bytes);
}

static uint8_t *bits(td__ddp_header *header)
{
    return (uint8_t *)(header + 1);
}

int td__ddp_header_send(td_ddp *ddp, bool reached, int error, double weight)
{
    td__ddp_header *mine = record(ddp, 0);
    *mine = (td__ddp_header){ .weight = ddp->group->weight + (reached ? weight : 0),
                              .arrived = td__now(),
                              .error = error,
                              .reached = reached,
                              .one_pass = ddp->sliced && ddp->rank == 0 && td__which_way(ddp) };
    memset(bits(mine), 0, ddp->header_bytes - sizeof *mine);
    for (int i = 0; i < ddp->leaves; i++)
        if (ddp->leaf[i]->expected > 0 || ddp->leaf[i]->has_grad)
            bits(mine)[i / 8] |= (uint8_t)(1u << i % 8);
    td_coll coll = { .kind = TD_COLL_ALL_GATHER,
                     .dtype = TD_U8,
                     .in = mine,
                     .out = record(ddp, 1),
                     .count = (int64_t)ddp->header_bytes,
                     .pre = 1,
                     .post = 1,
                     .site = td__site,
                     .label = "header of a backward" };
    ddp->active = false;
    ddp->header = td__coll_start(ddp->comm, &coll);
    return ddp->header ? 0 : td__pending();
}

static void measure_skew(td_ddp *ddp)
{
    const td__world *world = td__world_now();
    if (world->local_size != world->size)   /* clocks of several hosts do not compare */
        return;
    double first = record(ddp, 1)->arrived, last = first;
    int slowest = 0;
    for (int r = 1; r < ddp->size; r++) {
        double t = record(ddp, 1 + r)->arrived;
        first = t < first ? t : first;
        if (t > last)
            last = t, slowest = r;
    }
    if ((last - first) * 1e3 >= ddp->stats.skew_ms) {
        ddp->stats.skew_ms = (last - first) * 1e3;
        ddp->stats.slowest_rank = slowest;
    }
}

static void take_in(td_ddp *ddp)
{
    measure_skew(ddp);
    ddp->total = 0;
    for (int r = 0; r < ddp->size; r++) {   /* rank order: the same sum everywhere */
        ddp->total += record(ddp, 1 + r)->weight;
        ddp->active |= record(ddp, 1 + r)->reached != 0;
    }
    if (!ddp->active)
        return;
    ddp->one = ddp->sliced && record(ddp, 1)->one_pass;
    for (int i = 0; i < ddp->leaves; i++) {
        bool used = false;
        for (int r = 0; r < ddp->size; r++)
            used |= bits(record(ddp, 1 + r))[i / 8] >> i % 8 & 1;
        ddp->leaf[i]->used = used;
    }
    for (int b = 0; b < ddp->buckets; b++) {
        td__bucket *bucket = &ddp->bucket[b];
        bucket->skip = true;
        for (int k = 0; k < bucket->flat->leaves; k++)
            bucket->skip &= !bucket->flat->leaf[k]->used;
    }
}

static int wait_for(td_ddp *ddp)
{
    double before = td__now();
    int code = td__work_wait(ddp->header, NULL);
    ddp->header = NULL;
    ddp->stats.exposed_ms += (td__now() - before) * 1e3;
    return code;
}

/* All of a communicator's headers before anything else of this backward, so that an error in any of them is met by every rank at the
 * same place in its sequence of collectives. */
int td__ddp_headers_finish(td_comm *comm)
{
    int code = 0, guilty = 0, error = 0;
    bool news = false;
    td_ddp *first = NULL;
    for (td_ddp *d = td__ddps(); d; d = d->next) {
        if (d->comm != comm || !d->syncing)
            continue;
        if (!d->header) {
            code = code ? code : d->verdict;
            continue;
        }
        first = first ? first : d;
        news = true;
        int waited = wait_for(d);
        code = code ? code : waited;
        for (int r = 0; !code && !error && r < d->size; r++)
            if (record(d, 1 + r)->error)
                error = record(d, 1 + r)->error, guilty = r;
    }
    if (!news)
        return code;
    if (!code && error)
        code = td__comm_share_error(first->comm, guilty, error, "td_backward");
    for (td_ddp *d = td__ddps(); d; d = d->next) {
        if (d->comm != comm || !d->syncing)
            continue;
        d->verdict = code;
        if (!code)
            take_in(d);
    }
    return code;
}
