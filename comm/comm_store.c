/* comm/comm_store.c: small collectives through the meeting-point store: what ranks on several hosts have to say to each other where there is no MPI.
 *
 * NCCL's id, headers of backward, the comparison of models and errors are small; they make a GPU job of torchrun or plain srun go. Tensors of the
 * CPU between hosts are MPI's, and a collective of more than 64 KiB says so.
 *
 * A collective is one meeting at the store (base/store.h), or a few: every rank brings its fingerprint and the first bytes of its data, and takes
 * everybody's. What does not fit follows in pieces of equal size. Each rank makes its own result, from the same inputs in the same order: the
 * same bits everywhere. The store tells at once when a rank's connection ends; what is wrong on this host, the control page tells.
 */
#include <meet.h>
#include <stdio.h>
#include <unistd.h>
#include "comm_room.h"

enum { MOST = 64 * 1024 };                     /* bytes that a rank sends                                                   */

/* All parts of a message are as long as ALIGN wants it, so that kernels can read an answer where it lies. */
enum { ALIGN = 16 };
typedef struct {
    _Alignas(ALIGN) td_fingerprint print;
    double   pre, post;
    uint64_t bytes;                            /* that this rank sends in all                                               */
} ticket;

typedef struct {
    td_comm *comm;
    td__store *store;
    bool     own;                              /* a group's: a connection of its own, since one that waits is taken          */
    int      rank, size;
    char     scope[120];
    uint64_t turn;                             /* meetings so far                                                           */
    size_t   room;                             /* bytes per rank in one of them                                             */
    ticket  *tickets;
    const unsigned char **data;                /* the ranks' parts of an answer                                             */
    const void **in; double *pre;              /* for kernels                                                               */
    unsigned char *mine, *all, *copy;          /* a message, the answer, what this rank sends                                */
} store_state;

/* ---- what is wrong --------------------------------------------------------------------------------------------------------- */

static int slot_of(const td__control *c, int rank)
{
    for (int i = 0; i < c->n; i++)
        if (c->slot[i].rank == rank)
            return i;
    return -1;
}

static void who_text(const store_state *s, int member, char *into, size_t size)
{
    int rank = td__comm_world_rank(s->comm, member);
    const td__meeting_rank *r = td__meeting_peer(rank);
    if (r)
        snprintf(into, size, "rank %d (pid %d on %s)", rank, r->pid, r->host);
    else
        snprintf(into, size, "rank %d", rank);
}

static void absent_ones(const store_state *s, const td__store_absent *absent, char *into, size_t size)
{
    size_t used = 0;
    for (int i = 0; i < absent->count && i < 4 && absent->rank[i] < s->size; i++) {
        char who[120];
        who_text(s, absent->rank[i], who, sizeof who);
        int n = snprintf(into + used, size - used, "%s%s", i ? ", " : "", who);
        used = used + (size_t)n < size ? used + (size_t)n : size - 1;
    }
    if (absent->count > 4)
        snprintf(into + used, size - used, " and %d more", absent->count - 4);
}

/* The sentence for everybody on this host. */
static int told(store_state *s, const td_coll *coll, const td__store_absent *absent)
{
    td__control *c = s->comm->control;
    char text[TD_SENTENCE], who[600], mine[TD_CALL_TEXT];
    int me = td__comm_world_rank(s->comm, s->rank);
    bool named = absent->count > 0 && absent->rank[0] >= 0 && absent->rank[0] < s->size;
    int code = td__verdict_take(c), slot = named ? slot_of(c, td__comm_world_rank(s->comm, absent->rank[0])) : -1;
    code = code ? code : atomic_load(&s->comm->code);
    if (code)
        return code;                           /* found on this host meanwhile: that is why the wait was given up */
    bool one = absent->why == TD__ABSENT_LOST || absent->why == TD__ABSENT_LEFT;
    if (one && slot >= 0 && slot != c->me) {   /* of a rank of this host the page knows more */
        int state = atomic_load(&c->slot[slot].state);
        return td__verdict_peer(c, slot, state == TD_SLOT_FINISHED || state == TD_SLOT_FAILED ? TD_PEER_FINISHED :
                                         state == TD_SLOT_EXITED ? TD_PEER_EXITED : TD_PEER_DIED, coll);
    }
    td__coll_call_text(coll, mine);
    absent_ones(s, absent, who, sizeof who);
    switch (absent->why) {
    case TD__ABSENT_LATE:
        snprintf(text, sizeof text, "%s did not come to %s within %g s (TANDEM_TIMEOUT), where rank %d waits", who, mine, s->comm->timeout, me);
        return td__verdict(c, TD_ERR_TIMEOUT, text);
    case TD__ABSENT_LOST:
        snprintf(text, sizeof text, "%s ended without td_finish, was killed, or its host cannot be reached any more, while rank %d waited in %s", who, me, mine);
        break;
    case TD__ABSENT_LEFT:
        snprintf(text, sizeof text, "%s had called td_finish while rank %d waited in %s", who, me, mine);
        break;
    case TD__ABSENT_FAILED:
        snprintf(text, sizeof text, "%s", absent->text);
        break;
    default:
        snprintf(text, sizeof text, "the ranks' meeting point at %.100s is gone (%.300s) while rank %d waited in %s", td__meeting_address(), absent->text, me, mine);
    }
    return td__verdict(c, TD_ERR_PEER, text);
}

static int give_up(void *of)
{
    store_state *s = of;
    int code = td__verdict_take(s->comm->control);
    return code ? code : atomic_load(&s->comm->code);
}

/* Whoever waits for the communicator looks at the deadline, too, but cannot say who is missing: the store is asked to be a little earlier. */
static double patience(const store_state *s)
{
    double t = s->comm->timeout;
    return t > 2 ? t - 0.4 : 0.8 * t;
}

static int meet(store_state *s, const td_coll *coll, size_t bytes, size_t *got)
{
    char key[160];
    td__store_absent absent;
    snprintf(key, sizeof key, "%s/%llu", s->scope, (unsigned long long)s->turn++);
    int code = td__store_meet(s->store, key, s->rank, s->size, s->mine, bytes, s->all, TD__STORE_MEET_BYTES, got, patience(s),
                              &(td__store_patience){ give_up, s }, &absent);
    return code ? told(s, coll, &absent) : 0;
}

static int mismatch(store_state *s, td_coll *coll)
{
    char mine[TD_CALL_TEXT] = "";
    td__store_absent absent;
    char (*texts)[TD_CALL_TEXT] = td__alloc((size_t)s->size * sizeof *texts);
    td_fingerprint *prints = td__alloc((size_t)s->size * sizeof *prints);
    int code = texts && prints ? 0 : TD_ERR_MEMORY;
    td__coll_call_text(coll, mine);
    if (!code)
        code = td__store_gather(s->store, s->scope, &s->turn, s->rank, s->size, mine, sizeof mine, texts, patience(s),
                                &(td__store_patience){ give_up, s }, &absent);
    for (int r = 0; r < s->size && !code; r++)
        prints[r] = s->tickets[r].print;
    code = code ? td__verdict(s->comm->control, TD_ERR_MISMATCH, "ranks called different collectives")
                : td__comm_host.mismatch(s->comm, prints, (const char (*)[TD_CALL_TEXT])texts);
    td__free(texts);
    td__free(prints);
    return code;
}

/* ---- what each rank sends, and what becomes of it ----------------------------------------------------------------------------- */

static size_t part_bytes(const td_coll *coll)
{
    return (size_t)coll->count * td_dtype_size(coll->dtype);
}

static size_t sent_bytes(const store_state *s, const td_coll *coll)
{
    bool root = s->rank == coll->root;
    switch (coll->kind) {
    case TD_COLL_BROADCAST:
        return root ? part_bytes(coll) : 0;
    case TD_COLL_SCATTER:
        return root ? part_bytes(coll) * (size_t)s->size : 0;
    case TD_COLL_REDUCE_SCATTER:
        return part_bytes(coll) * (size_t)s->size;
    case TD_COLL_ALL_TO_ALL: {
        int64_t all = coll->in_counts ? 0 : coll->count * s->size;
        for (int r = 0; coll->in_counts && r < s->size; r++)
            all += coll->in_counts[r];
        return (size_t)all * td_dtype_size(coll->dtype);
    }
    case TD_COLL_ALL_GATHER:
        return coll->counts ? (size_t)coll->counts[s->rank] * td_dtype_size(coll->dtype) : part_bytes(coll);
    case TD_COLL_ALL_REDUCE:
    case TD_COLL_REDUCE:
    case TD_COLL_GATHER:
        return part_bytes(coll);
    default:
        return 0;
    }
}

/* Where rank r's bytes of an all_gather or an all_to_all go in `out`. */
static size_t place_of(const td_coll *coll, int r)
{
    int64_t before = (int64_t)r * coll->count;
    if (coll->counts) {
        before = 0;
        for (int i = 0; i < r; i++)
            before += coll->counts[i];
    }
    return (size_t)before * td_dtype_size(coll->dtype);
}

/* Bytes [at, at + n) of what a rank sends have come; of them [low, high) are wanted, which begin at `to`. */
static void take(char *to, size_t low, size_t high, const unsigned char *data, size_t at, size_t n)
{
    size_t from = at > low ? at : low, until = at + n < high ? at + n : high;
    if (from < until)
        memmove(to + (from - low), data + (from - at), until - from);
}

static void reduce(store_state *s, const td_coll *coll, size_t low, size_t high, const unsigned char *const *data, size_t at, size_t n)
{
    size_t size = td_dtype_size(coll->dtype), from = at > low ? at : low, until = at + n < high ? at + n : high;
    if (from >= until)
        return;
    double post = s->tickets[0].post;          /* everybody takes rank 0's, so that a difference cannot part the replicas */
    for (int r = 0; r < s->size; r++) {
        s->in[r] = data[r] + (from - at);
        s->pre[r] = s->tickets[r].pre;
    }
    void *out = (char *)coll->out + (from - low);
    int op = coll->op == TD_MIN ? TD_COMBINE_MIN : coll->op == TD_MAX ? TD_COMBINE_MAX : coll->op == TD_PRODUCT ? TD_COMBINE_PRODUCT : TD_COMBINE_SUM;
    td__comm_host.combine(coll->dtype, op, (int64_t)((until - from) / size), s->size, s->in, s->pre, coll->op == TD_MEAN ? post / s->size : post, &out, 1);
}

/* A piece of everybody's bytes: [at, at + n) as far as each has them. */
static void use(store_state *s, const td_coll *coll, const unsigned char *const *data, size_t at, size_t piece)
{
    size_t part = part_bytes(coll), me = (size_t)s->rank;
    bool root = s->rank == coll->root;
    for (int r = 0; r < s->size; r++) {
        size_t has = s->tickets[r].bytes > at ? s->tickets[r].bytes - at : 0, n = has < piece ? has : piece;
        char *out = coll->out;
        switch (coll->kind) {
        case TD_COLL_BROADCAST:
            if (r == coll->root)
                take(out, 0, part, data[r], at, n);
            break;
        case TD_COLL_SCATTER:
            if (r == coll->root)
                take(out, me * part, (me + 1) * part, data[r], at, n);
            break;
        case TD_COLL_ALL_GATHER:
            take(out + place_of(coll, r), 0, s->tickets[r].bytes, data[r], at, n);
            break;
        case TD_COLL_GATHER:
            if (root)
                take(out + (size_t)r * part, 0, part, data[r], at, n);
            break;
        case TD_COLL_ALL_TO_ALL:
            if (coll->from) {
                size_t size = td_dtype_size(coll->dtype), low = (size_t)coll->from[2 * r + 1] * size;
                take(out + place_of(coll, r), low, low + (size_t)coll->from[2 * r] * size, data[r], at, n);
            } else {
                take(out + (size_t)r * part, me * part, (me + 1) * part, data[r], at, n);
            }
            break;
        case TD_COLL_ALL_REDUCE:
            reduce(s, coll, 0, part, data, at, n);
            return;                            /* all ranks at once */
        case TD_COLL_REDUCE:
            if (root)
                reduce(s, coll, 0, part, data, at, n);
            return;
        case TD_COLL_REDUCE_SCATTER:
            reduce(s, coll, me * part, (me + 1) * part, data, at, n);
            return;
        case TD_COLL_BARRIER:
        case TD_COLL_REPLAY:
        case TD_COLL_SPLIT:
        case TD_COLL_MEET:
            return;
        }
    }
}

/* ---- one collective --------------------------------------------------------------------------------------------------------- */

static size_t aligned(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

/* How many of its bytes from `at` on a rank puts into a meeting that has room for `piece` of each. */
static size_t in_piece(uint64_t bytes, size_t at, size_t piece)
{
    size_t left = bytes > MOST || bytes <= at ? 0 : (size_t)bytes - at;
    return left < piece ? left : piece;
}

static int odd_answer(store_state *s, size_t got)
{
    return td__comm_fail(s->comm, TD_ERR_PEER, "the ranks' meeting point at %s gives an answer of %zu bytes that nobody has sent", td__meeting_address(), got);
}

/* Bytes [at, at + piece) of every rank; in the first meeting of a collective behind its ticket. */
static int exchange(store_state *s, const td_coll *coll, const ticket *mine, size_t at, size_t piece)
{
    bool first = at == 0;
    size_t head = first ? sizeof *mine : 0, n = in_piece(mine->bytes, at, piece), got = 0, used = 0;
    if (first)
        memcpy(s->mine, mine, head);
    memset(s->mine + head, 0, aligned(n));
    if (n)
        memcpy(s->mine + head, s->copy + at, n);
    int code = meet(s, coll, head + aligned(n), &got);
    for (int r = 0; r < s->size && !code; r++) {
        if (got - used < head)
            return odd_answer(s, got);
        if (first)
            memcpy(&s->tickets[r], s->all + used, head);
        s->data[r] = s->all + used + head;
        n = aligned(in_piece(s->tickets[r].bytes, at, piece));
        if (got - used - head < n)
            return odd_answer(s, got);
        used += head + n;
    }
    return code ? code : used == got ? 0 : odd_answer(s, got);
}

static int too_big(store_state *s, const td_coll *coll, uint64_t bytes)
{
    char text[TD_CALL_TEXT];
    td__coll_call_text(coll, text);
    return td__comm_fail(s->comm, TD_ERR_UNSUPPORTED, "%s has %llu bytes of one rank, and without MPI no more than %d go through the ranks' meeting point: "
                         "collectives of CPU tensors between hosts need MPI; start the ranks with mpirun or srun --mpi=pmix", text,
                         (unsigned long long)bytes, (int)MOST);
}

static int store_run(void *state, td_coll *coll)
{
    store_state *s = state;
    ticket mine;
    memset(&mine, 0, sizeof mine);
    td__coll_fingerprint(coll, &mine.print);
    mine.pre = coll->pre, mine.post = coll->post, mine.bytes = sent_bytes(s, coll);
    if (mine.bytes && mine.bytes <= MOST)
        memcpy(s->copy, coll->in, mine.bytes); /* results may go where inputs lie                                            */
    size_t piece = (s->room - sizeof mine) / ALIGN * ALIGN;
    int code = exchange(s, coll, &mine, 0, piece);
    uint64_t most = 0;
    bool equal = true;
    for (int r = 0; r < s->size && !code; r++) {
        equal &= td__fingerprint_equal(&s->tickets[r].print, &mine.print);
        most = s->tickets[r].bytes > most ? s->tickets[r].bytes : most;
    }
    if (code || !equal)
        return code ? code : mismatch(s, coll);
    if (most > MOST)
        return too_big(s, coll, most);
    coll->begun = td__now();
    for (size_t at = 0; !code && at < most;) {
        use(s, coll, s->data, at, piece);
        at += piece;
        piece = s->room / ALIGN * ALIGN;
        if (at < most)
            code = exchange(s, coll, &mine, at, piece);
    }
    return code;
}

/* ---- life ------------------------------------------------------------------------------------------------------------------- */

static void free_state(store_state *s)
{
    if (s->own)
        td__store_close(s->store);
    td__free(s->tickets);
    td__free(s->data);
    td__free(s->in);
    td__free(s->pre);
    td__free(s->mine);
    td__free(s->all);
    td__free(s->copy);
    td__free(s);
}

/* NULL after td__fail. */
static store_state *new_state(td_comm *comm, const char *scope)
{
    size_t n = (size_t)comm->size;
    store_state *s = td__calloc(sizeof *s);
    if (!s)
        return NULL;
    *s = (store_state){ .comm = comm, .store = td__meeting_store(), .rank = comm->rank, .size = comm->size, .room = TD__STORE_MEET_BYTES / n };
    snprintf(s->scope, sizeof s->scope, "%s", scope);
    s->tickets = td__alloc(n * sizeof *s->tickets);
    s->data = td__alloc(n * sizeof *s->data);
    s->in = td__alloc(n * sizeof *s->in);
    s->pre = td__alloc(n * sizeof *s->pre);
    s->mine = td__alloc(TD__STORE_MEET_BYTES);
    s->all = td__alloc(TD__STORE_MEET_BYTES);
    s->copy = td__alloc(MOST);
    if (s->tickets && s->data && s->in && s->pre && s->mine && s->all && s->copy)
        return s;
    free_state(s);
    return NULL;
}

static int store_open(const td_comm_host *host, void *world, td_comm *comm, void **state)
{
    (void)host, (void)world;
    char scope[32];
    if (TD__STORE_MEET_BYTES / (size_t)comm->size < sizeof(ticket) + ALIGN)
        return td__fail(TD_ERR_UNSUPPORTED, "td_init: %d ranks are more than the %zu that can do without MPI", comm->size,
                        TD__STORE_MEET_BYTES / (sizeof(ticket) + ALIGN));
    snprintf(scope, sizeof scope, "world%u", td__meeting_number());
    *state = new_state(comm, scope);
    return *state ? 0 : td__pending();
}

/* The parent's ranks count their meetings alike, so all know the group's name. */
static int store_split(void *parent, td_coll *coll, td_comm *group, int color, int key, void **state)
{
    store_state *p = parent;
    (void)key;
    int code = store_run(p, coll);             /* nobody brings anything: calls are compared                                  */
    char scope[160], why[400] = "";
    snprintf(scope, sizeof scope, "%s.%llu.%d", p->scope, (unsigned long long)p->turn, color);
    if (code || !group)
        return code;
    if (strlen(scope) >= sizeof p->scope)
        return td__comm_fail(p->comm, TD_ERR_UNSUPPORTED, "groups of groups of groups are too many without MPI: %s", scope);
    store_state *s = new_state(group, scope);
    if (!s)
        return td__comm_fail(p->comm, TD_ERR_MEMORY, "no memory for %s", td_comm_name(group));
    s->own = true;
    s->store = td__store_try(td__meeting_address(), td__meeting_secret(), 10, &code, why, sizeof why);
    if (!s->store) {
        free_state(s);
        return td__comm_fail(p->comm, TD_ERR_PEER, "%s cannot reach the ranks' meeting point: %s", td_comm_name(group), why);
    }
    *state = s;
    return 0;
}

/* The communicator's thread may be waiting on the connection: a second one for the last word. */
static void store_abort(void *state)
{
    store_state *s = state;
    int code = 0;
    char why[400];
    td__store *other = td__store_try(td__meeting_address(), td__meeting_secret(), 2, &code, why, sizeof why);
    if (other)
        td__store_leave(other, s->scope, s->rank, atomic_load(&s->comm->code) ? s->comm->sentence : "a rank gave up its communicator");
    td__store_close(other);
}

static void store_close(void *state, bool well)
{
    store_state *s = state;
    char text[TD_SENTENCE], who[120];
    who_text(s, s->rank, who, sizeof who);
    snprintf(text, sizeof text, "%s had called td_finish after an error (%.600s)", who, td_error_message());
    td__store_leave(s->store, s->scope, s->rank, well ? NULL : atomic_load(&s->comm->code) ? s->comm->sentence : text);
    free_state(s);
}

const td_comm_backend td__comm_store = {
    .name = "store",
    .on_thread = true,
    .open = store_open,
    .run = store_run,
    .split = store_split,
    .abort = store_abort,
    .close = store_close,
};
