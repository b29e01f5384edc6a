/* ddp/one_pass.c: replicas of one host: each rank steps its own slice of every flat, for all of them, and may sum its gradients while it does.
 *
 * Values and gradients lie in the arenas, where every rank reaches every replica. Optimizer state (moments, masters) of a slice belongs to its rank, as
 * with shard_optimizer (shard.c), but a rank has all of the mean when it waits for it, and all new values when its step returns. A step:
 *
 *   meet    all ranks are in it, so nobody reads or writes weights any more; one that cannot step says so, and then none does
 *   walk    the slice by blocks: the mean of the block's gradients, the optimizer's rule, the new values into all replicas
 *   meet    all slices are done
 *
 * The mean of a block has come one of two ways. Two passes: buckets were all-reduced while backward ran, and it lies in this rank's own. One pass:
 * nothing was sent; what backward has left lies *deferred* in every rank's bucket, and the block is combined from them into a scratch that stays in
 * cache. So each gradient is read once and its mean never written. The same kernel in the same order: the same bits.
 *
 * A rank that wants deferred gradients before the step (td_grad, clipping, scaling, a second backward) comes to the same first meeting, and says so:
 * what any rank says counts for all, and all reduce in two passes there and then. One that came from its step stays for the second meeting with
 * those that did not; they come when they step. Several models meet in the order of launching, the last attached first.
 */
#include "ddp_impl.h"

enum { MOST_RANKS = 1024 };                            /* of one host                                                             */
enum { WANTED = 1, AWAY = 2, REFUSED = 4 };            /* said in the first meeting: away: not in td_optim_step. Refused also in the second  */

static const char begin_label[] = "begin of a step", end_label[] = "end of a step", place_label[] = "places of buckets";
static __thread bool owes, paying;                    /* may this thread have something deferred? Is it in a meeting?            */

/* ---- memory of the other replicas ----------------------------------------------------------------------------------------------------------- */

static int64_t *place_of(const td_ddp *d, int rank, int bucket)        /* [0] values, [1] gradients                                 */
{
    return &d->place[2 * ((size_t)(1 + rank) * (size_t)d->buckets + (size_t)bucket)];
}

static char *reach(const td_ddp *d, int rank, const td__flat *flat, int which, int64_t low)
{
    return (char *)td__comm_reach(d->comm, rank, place_of(d, rank, flat->index)[which]) + (size_t)low * td_dtype_size(flat->dtype);
}

/* After buckets were made: by every rank before its next meeting. */
static int need_places(td_ddp *d)
{
    if (d->placed)
        return 0;
    const size_t n = 2 * (size_t)d->buckets;
    td__free(d->place);
    d->place = td__alloc(n * (size_t)(1 + d->size) * sizeof *d->place);
    int code = d->place ? 0 : td__pending();
    for (int b = 0; b < d->buckets && !code; b++) {
        const td__flat *flat = d->bucket[b].flat;
        d->place[2 * b] = td__comm_place(d->comm, flat->value->data);
        d->place[2 * b + 1] = td__comm_place(d->comm, flat->grad->data);
        if (d->place[2 * b] < 0 || d->place[2 * b + 1] < 0)
            code = td__fail(TD_ERR_INTERNAL, "bucket %d of a td_ddp does not lie in shared memory", b);
    }
    code = td__comm_agree(d->comm, code, place_label);
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = TD_I64, .in = d->place, .out = d->place ? d->place + n : NULL, .count = (int64_t)n, .pre = 1,
                     .post = 1, .site = td__site, .label = place_label };
    code = code ? code : td__coll_run(d->comm, &coll);
    d->placed = !code;
    return code;
}

/* ---- meetings ----------------------------------------------------------------------------------------------------------------------------------- */

static int64_t elements(const td_ddp *d)
{
    int64_t n = 0;
    for (int b = 0; b < d->buckets; b++)
        n += d->bucket[b].flat->n;
    return n;
}

/* Says `flags` (REFUSED with this rank's error); *all: what was said by any. */
static int meet(td_ddp *d, unsigned flags, int error, const char *label, unsigned *all)
{
    const double before = td__now();
    paying = true;
    int code = need_places(d);
    td_coll coll = { .count = elements(d), .site = td__site, .label = label, .pre = d->pre, .word = flags | (uint64_t)(uint32_t)error << 32,
                     .words = d->word, .pres = d->factor };
    code = code ? code : td__comm_meet(d->comm, &coll);
    paying = false;
    d->met = td__now();
    d->stats.exposed_ms += (d->met - before) * 1e3;
    *all = 0;
    for (int r = 0; r < d->size && !code; r++)
        *all |= (unsigned)d->word[r];
    return code;
}

/* The error of the first rank that has said so becomes everybody's. */
static int share(td_ddp *d)
{
    int guilty = 0;
    while (!(d->word[guilty] & REFUSED))
        guilty++;
    paying = true;
    int code = td__comm_share_error(d->comm, guilty, (int)(int32_t)(d->word[guilty] >> 32), "td_optim_step");
    paying = false;
    return code;
}

/* ---- deferred gradients ----------------------------------------------------------------------------------------------------------------------------- */

int td__one_pass_defer(td_ddp *d)
{
    int code = 0;
    const double ready = (td__now() - d->backward_began) * 1e3;
    for (int b = 0; b < d->buckets && !code; b++) {
        td__bucket *bucket = &d->bucket[b];
        bucket->figures.ready_ms = bucket->skip ? 0 : ready;
        bucket->figures.bytes = bucket->skip ? 0 : td__bucket_filled(bucket->flat) * (int64_t)td_dtype_size(bucket->flat->dtype);
        d->stats.bytes += bucket->figures.bytes;
        code = bucket->skip ? 0 : td__bucket_fill(bucket->flat);
    }
    if (code)
        return code;
    d->pre = d->group->unit;
    d->by = pthread_self();
    d->deferred = owes = true;
    atomic_fetch_add(&td__comm_owed, 1);
    return 0;
}

static void taken(td_ddp *d)
{
    d->deferred = false;
    atomic_fetch_sub(&td__comm_owed, 1);
}

static double post(const td_ddp *d)
{
    return d->total > 0 ? 1 / d->total : 0;
}

/* The all-reduce that backward would have started. */
static int reduce(td_ddp *d)
{
    int code = 0;
    const double before = td__now();
    paying = true;
    for (int b = 0; b < d->buckets && !code; b++) {
        td__bucket *bucket = &d->bucket[b];
        const td__flat *flat = bucket->flat;
        td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = flat->dtype, .op = TD_SUM, .in = flat->grad->data, .out = flat->grad->data,
                         .count = td__bucket_filled(flat), .pre = d->pre, .post = post(d), .site = td__site, .label = bucket->label };
        code = bucket->skip ? 0 : td__coll_run(d->comm, &coll);
        bucket->figures.comm_ms = bucket->skip ? 0 : (coll.ended - coll.begun) * 1e3;
        d->stats.comm_ms += bucket->figures.comm_ms;
    }
    paying = false;
    d->stats.exposed_ms += (td__now() - before) * 1e3;
    return code;
}

/* The first meeting. *together: every rank is in its step. */
static int enter(td_ddp *d, unsigned flags, int error, bool *together)
{
    unsigned all;
    int code = meet(d, flags, error, begin_label, &all);
    *together = !code && !(all & AWAY);
    if (code || all & WANTED) {
        taken(d);
        code = code ? code : reduce(d);
    }
    if (!code && *together && all & REFUSED)
        code = share(d);
    return code;
}

/* Of those that are deferred by this thread in the order of launching, up to d: d says `flags`, others that this rank is on its way to step say so, too.
 * When any rank is away from its step, all go on with all of them: else that one would go on to the next while the others wait for its step. */
static int enter_in_order(td_ddp *d, unsigned flags, int error, bool *together)
{
    const pthread_t by = d->by;
    bool away = false, past = false;
    int code = 0;
    *together = false;
    for (td_ddp *x = td__ddps(); x && !code && !(past && !away); past |= x == d, x = x->next) {
        bool all = false;
        if (!x->deferred || x->stepping || !pthread_equal(x->by, by))
            continue;
        const bool steps = !away && x != d && x->group->by_blocks && !error;
        code = enter(x, away ? WANTED | AWAY : x == d ? flags : steps ? 0 : WANTED | AWAY, !away && x == d ? error : 0, &all);
        if (x == d)
            *together = all && !away;
        else if (steps && all)
            x->told = true, x->stepping = !code;
        away |= !all;
    }
    return code;
}

int td__one_pass_settle(td_ddp *d)
{
    bool together;
    return d->deferred ? enter_in_order(d, WANTED | AWAY, 0, &together) : 0;
}

/* Before this thread waits for other ranks in something else. */
static void pay(void)
{
    if (!owes || paying)
        return;
    owes = false;
    for (td_ddp *d = td__ddps(); d; d = d->next)
        if (d->deferred && !d->stepping && pthread_equal(d->by, pthread_self()))
            td__one_pass_settle(d);
}

/* ---- a step -------------------------------------------------------------------------------------------------------------------------------------------- */

int td__one_pass_meet(td__group *group)
{
    td_ddp *d = group->user;
    bool together = false;
    int code = 0;
    if (d->told)                                               /* with another model of this optimizer                              */
        return 0;
    if (d->deferred)
        code = enter_in_order(d, group->by_blocks ? 0 : WANTED, 0, &together);
    else
        code = td__ddp_wait_all(d);
    if (!code && !together) {
        unsigned all;
        code = meet(d, 0, 0, begin_label, &all);
        code = code ? code : all & REFUSED ? share(d) : 0;
    }
    d->told = true;
    d->stepping = !code;
    return code;
}

const void *td__one_pass_block(td__flat *flat, int64_t low, int64_t n, void *room)
{
    const td_ddp *d = flat->group->user;
    if (!d->deferred)
        return (const char *)flat->grad->data + (size_t)low * td_dtype_size(flat->dtype);
    const void *in[MOST_RANKS];
    for (int r = 0; r < d->size; r++)
        in[r] = reach(d, r, flat, 1, low);
    td__kernels(flat->leaf[0]->value)->combine(flat->dtype, TD_COMBINE_SUM, n, d->size, in, d->factor, post(d), &room, 1);
    return room;
}

void td__one_pass_store(td__flat *flat, int64_t low, int64_t n)
{
    const td_ddp *d = flat->group->user;
    const size_t bytes = (size_t)n * td_dtype_size(flat->dtype);
    const char *from = (const char *)flat->value->data + (size_t)low * td_dtype_size(flat->dtype);
    for (int k = 1; k < d->size; k++)                          /* not all to the same one at a time                                   */
        memcpy(reach(d, (d->rank + k) % d->size, flat, 0, low), from, bytes);
}

/* Of the walk, by bytes: a bucket's share is not worth a look at the clock for every block. */
static void figures(td_ddp *d)
{
    const double ms = (td__now() - d->met) * 1e3;
    d->stats.one_pass = true;
    d->stats.exposed_ms += ms;
    for (int b = 0; b < d->buckets; b++) {
        d->bucket[b].figures.comm_ms = d->stats.bytes > 0 ? ms * (double)d->bucket[b].figures.bytes / (double)d->stats.bytes : 0;
        d->stats.comm_ms += d->bucket[b].figures.comm_ms;
    }
}

/* A rank whose step was refused before it met the others: they learn it where they meet. */
static int refuse(td_ddp *d)
{
    const int error = td__pending() ? td__pending() : TD_ERR_STATE;
    bool together = false;
    unsigned all;
    int code = d->deferred ? enter_in_order(d, REFUSED, error, &together) : 0;
    if (!code && !together) {
        code = meet(d, REFUSED, error, begin_label, &all);
        code = code ? code : share(d);
    }
    return code;
}

int td__one_pass_stepped(td__group *group, bool failed)
{
    td_ddp *d = group->user;
    const bool told = d->told, stepping = d->stepping;
    unsigned all = 0;
    int code = 0;
    group->by_blocks = false;
    for (int b = 0; b < d->buckets; b++)
        d->bucket[b].flat->stepped = false;
    d->told = false;
    if (!told)
        return d->reduced && failed ? refuse(d) : 0;
    if (!stepping)
        return 0;
    if (d->deferred)
        figures(d);
    code = meet(d, failed ? REFUSED : 0, td__pending() ? td__pending() : TD_ERR_STATE, end_label, &all);
    d->stepping = false;
    if (d->deferred)
        taken(d);
    d->stepped = !code && !(all & REFUSED);
    return code ? code : all & REFUSED ? share(d) : 0;
}

/* ---- birth and death ------------------------------------------------------------------------------------------------------------------------------------- */

void td__one_pass_open(td_ddp *d)
{
    d->sliced = d->device.kind == TD_CPU && !td__ddp_sharded(d) && td__comm_one_host(d->comm) && d->size <= MOST_RANKS;
    if (!d->sliced)
        return;
    td__comm_pay = pay;
    d->word = td__alloc((size_t)d->size * sizeof *d->word);
    d->factor = td__alloc((size_t)d->size * sizeof *d->factor);
    td__which_way_open(d);
}

/* Optimizers that go on without the ddp take all of their state along. Where one rank has none to give, or an error, it stays where it is, and the next
 * step of such an optimizer is a sentence. */
void td__one_pass_leave(td_ddp *d)
{
    unsigned all;
    int n = 0, code = td__pending();
    if (!d->sliced || d->gone)
        return;
    for (td_optim *o = td__optims(); o; o = o->next)
        n += td__optim_has_parts(o, d->group);
    if (!n)
        return;
    td__whole *whole = td__calloc((size_t)n * sizeof *whole);
    int k = 0;
    code = code ? code : whole ? 0 : td__pending();
    for (td_optim *o = td__optims(); o && !code; o = o->next)
        if (td__optim_has_parts(o, d->group))
            code = td__optim_whole_room(o, d->group, &whole[k++]);
    int failed = meet(d, code ? REFUSED : 0, code, "td_ddp_free", &all);
    for (int i = 0; i < k; i++)
        code = failed || all & REFUSED ? td__optim_whole_drop(&whole[i]) : td__optim_whole_fill(&whole[i], d->group);
    td__free(whole);
}

void td__one_pass_close(td_ddp *d)
{
    if (d->deferred)
        taken(d);
    td__free(d->place);
    td__free(d->word);
    td__free(d->factor);
}
