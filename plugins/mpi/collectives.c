/* plugins/mpi/collectives.c: a td_coll as blocking calls of MPI, on the communicator's thread.
 *
 * Nonblocking collectives make no progress while the program computes, so blocking ones run on a thread of their own. Each begins with an
 * exchange of fingerprints: MPI itself would hang, crash or answer nonsense when ranks differ. A call that hangs because a peer has died is
 * noticed by the waiting user's thread (comm/thread.c), which knows the peers of its host.
 */
#include "mpi_impl.h"
#include <stdio.h>
#include <string.h>

static int check(mpi_state *s, const td_coll *coll, const char *call, int rc)
{
    if (rc == MPI_SUCCESS)
        return 0;
    char text[300];
    mpi_text(rc, text, sizeof text);
    return s->host->fail(s->comm, TD_ERR_PEER, "%s of collective #%llu failed on rank %d: %s", call, (unsigned long long)coll->seq, s->rank, text);
}

static MPI_Datatype type_of(td_dtype t)
{
    return t == TD_F32 ? MPI_FLOAT : t == TD_F64 ? MPI_DOUBLE : t == TD_I64 ? MPI_INT64_T : MPI_INT32_T;
}

static MPI_Op op_of(td_reduce op)
{
    return op == TD_MIN ? MPI_MIN : op == TD_MAX ? MPI_MAX : MPI_SUM;
}

static int next(int64_t left)
{
    return left < TD_MPI_MOST ? (int)left : TD_MPI_MOST;
}

static bool sums(const td_coll *coll)
{
    return coll->op == TD_SUM || coll->op == TD_MEAN;
}

static void scale(mpi_state *s, const td_coll *coll, const void *in, void *out, int64_t n, double pre, double post)
{
    s->host->combine(coll->dtype, 0, n, 1, &in, &pre, post, &out, 1);
}

static void scale_result(mpi_state *s, const td_coll *coll)
{
    double post = coll->op == TD_MEAN ? coll->post / s->size : coll->post;
    if (sums(coll) && post != 1)
        scale(s, coll, coll->out, coll->out, coll->count, 1, post);
}

/* ---- fingerprints ------------------------------------------------------------------------------------------------------------------- */

static int mismatch(mpi_state *s, td_coll *coll)
{
    char mine[TD_CALL_TEXT];
    char (*texts)[TD_CALL_TEXT] = s->host->base->alloc((size_t)s->size * sizeof *texts);
    td_fingerprint *prints = s->host->base->alloc((size_t)s->size * sizeof *prints);
    if (!texts || !prints)
        return s->host->fail(s->comm, TD_ERR_MISMATCH, "ranks called different collectives, and there is no memory to say which");
    memset(mine, 0, sizeof mine);
    s->host->call_text(coll, mine);
    for (int r = 0; r < s->size; r++)
        prints[r] = s->tickets[r].print;
    int code = check(s, coll, "MPI_Allgather", MPI_Allgather(mine, TD_CALL_TEXT, MPI_CHAR, texts, TD_CALL_TEXT, MPI_CHAR, s->mpi));
    if (!code)
        code = s->host->mismatch(s->comm, prints, (const char (*)[TD_CALL_TEXT])texts);
    s->host->base->free(texts);
    s->host->base->free(prints);
    return code;
}

static int compare(mpi_state *s, td_coll *coll)
{
    mpi_ticket mine;
    memset(&mine, 0, sizeof mine);
    s->host->fingerprint(coll, &mine.print);
    mine.arrived = coll->arrived;
    int code = check(s, coll, "MPI_Allgather",
                     MPI_Allgather(&mine, sizeof mine, MPI_BYTE, s->tickets, sizeof mine, MPI_BYTE, s->mpi));
    if (code)
        return code;
    bool equal = true;
    for (int r = 0; r < s->size; r++) {
        equal &= memcmp(&s->tickets[r].print, &mine.print, sizeof mine.print) == 0;
        if (s->one_host && s->tickets[r].arrived > coll->last_arrived)   /* clocks of several hosts do not compare */
            coll->last_arrived = s->tickets[r].arrived, coll->last_rank = r;
    }
    return equal ? 0 : mismatch(s, coll);
}

/* ---- one function a kind --------------------------------------------------------------------------------------------------------------- */

static int broadcast(mpi_state *s, td_coll *coll)
{
    int64_t bytes = coll->count * (int64_t)td_dtype_size(coll->dtype);
    int code = 0, n;
    if (s->rank == coll->root && coll->in != coll->out)
        memmove(coll->out, coll->in, (size_t)bytes);
    for (int64_t at = 0; at < bytes && !code; at += n) {
        n = next(bytes - at);
        code = check(s, coll, "MPI_Bcast", MPI_Bcast((char *)coll->out + at, n, MPI_BYTE, coll->root, s->mpi));
    }
    return code;
}

static int all_reduce(mpi_state *s, td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype);
    const char *in = coll->in;
    int code = 0, n;
    if (sums(coll) && coll->pre != 1) {
        scale(s, coll, in, coll->out, coll->count, coll->pre, 1);
        in = coll->out;
    }
    for (int64_t at = 0; at < coll->count && !code; at += n) {
        n = next(coll->count - at);
        char *out = (char *)coll->out + (size_t)at * size;
        code = check(s, coll, "MPI_Allreduce", MPI_Allreduce(in == coll->out ? MPI_IN_PLACE : in + (size_t)at * size, out, n,
                                                             type_of(coll->dtype), op_of(coll->op), s->mpi));
    }
    if (!code)
        scale_result(s, coll);
    return code;
}

static int reduce_scatter_parts(mpi_state *s, td_coll *coll, const char *in)
{
    size_t size = td_dtype_size(coll->dtype);
    int code = 0, n;
    for (int r = 0; r < s->size; r++)
        for (int64_t at = 0; at < coll->count && !code; at += n) {
            n = next(coll->count - at);
            code = check(s, coll, "MPI_Reduce", MPI_Reduce(in + (size_t)(r * coll->count + at) * size, (char *)coll->out + (size_t)at * size, n,
                                                           type_of(coll->dtype), op_of(coll->op), r, s->mpi));
        }
    return code;
}

/* MPI wants in and out apart, and in must not be scaled in place. */
static int reduce_scatter(mpi_state *s, td_coll *coll)
{
    int64_t total = coll->count * s->size;
    size_t bytes = (size_t)total * td_dtype_size(coll->dtype);
    const char *in = coll->in, *out = coll->out;
    bool scales = sums(coll) && coll->pre != 1, apart = out >= in + bytes || in >= out + bytes / (size_t)s->size;
    void *copy = NULL;
    if (scales || !apart) {
        copy = s->host->base->alloc(bytes);
        if (!copy)
            return s->host->fail(s->comm, TD_ERR_MEMORY, "reduce_scatter: no memory for a copy of %lld elements", (long long)total);
        if (scales)
            scale(s, coll, in, copy, total, coll->pre, 1);
        else
            memcpy(copy, in, bytes);
        in = copy;
    }
    int code = coll->count > TD_MPI_MOST ? reduce_scatter_parts(s, coll, in)
                                         : check(s, coll, "MPI_Reduce_scatter_block",
                                                 MPI_Reduce_scatter_block(in, coll->out, (int)coll->count, type_of(coll->dtype),
                                                                          op_of(coll->op), s->mpi));
    s->host->base->free(copy);
    if (!code)
        scale_result(s, coll);
    return code;
}

static int all_gather(mpi_state *s, td_coll *coll)
{
    int64_t bytes = coll->count * (int64_t)td_dtype_size(coll->dtype);
    char *own = (char *)coll->out + s->rank * bytes;
    int code = 0, n;
    if (bytes <= TD_MPI_MOST)
        return check(s, coll, "MPI_Allgather", MPI_Allgather(coll->in == own ? MPI_IN_PLACE : coll->in, (int)bytes, MPI_BYTE, coll->out,
                                                             (int)bytes, MPI_BYTE, s->mpi));
    memmove(own, coll->in, (size_t)bytes);
    for (int r = 0; r < s->size; r++)
        for (int64_t at = 0; at < bytes && !code; at += n) {
            n = next(bytes - at);
            code = check(s, coll, "MPI_Bcast", MPI_Bcast((char *)coll->out + r * bytes + at, n, MPI_BYTE, r, s->mpi));
        }
    return code;
}

int mpi_run(void *state, td_coll *coll)
{
    mpi_state *s = state;
    int code = compare(s, coll);
    if (code || coll->kind == TD_COLL_BARRIER || coll->count == 0)
        return code;
    coll->begun = s->host->base->now();
    switch (coll->kind) {
    case TD_COLL_BROADCAST:
        return broadcast(s, coll);
    case TD_COLL_ALL_REDUCE:
        return all_reduce(s, coll);
    case TD_COLL_REDUCE_SCATTER:
        return reduce_scatter(s, coll);
    case TD_COLL_ALL_GATHER:
        return all_gather(s, coll);
    default:
        return 0;
    }
}

/* ---- life ---------------------------------------------------------------------------------------------------------------------------------- */

static mpi_state *new_state(const td_comm_host *host, td_comm *comm)
{
    mpi_state *s = host->base->alloc(sizeof *s);
    mpi_ticket *tickets = host->base->alloc((size_t)td_size(comm) * sizeof *tickets);
    if (s && tickets) {
        *s = (mpi_state){ .host = host, .comm = comm, .rank = td_rank(comm), .size = td_size(comm), .tickets = tickets };
        return s;
    }
    host->base->free(s);
    host->base->free(tickets);
    return NULL;
}

static void free_state(mpi_state *s)
{
    s->host->base->free(s->tickets);
    s->host->base->free(s);
}

/* s->mpi is there. 0 or negative after the base's fail. */
static int complete(mpi_state *s)
{
    MPI_Comm here;
    int local = 0;
    MPI_Comm_set_errhandler(s->mpi, MPI_ERRORS_RETURN);
    if (MPI_Comm_split_type(s->mpi, MPI_COMM_TYPE_SHARED, s->rank, MPI_INFO_NULL, &here) == MPI_SUCCESS) {
        MPI_Comm_size(here, &local);
        MPI_Comm_free(&here);
    }
    s->one_host = local == s->size;
    return wire_open(s);
}

int mpi_open(const td_comm_host *host, void *world, td_comm *comm, void **state)
{
    MPI_Comm given = world ? *(MPI_Comm *)world : MPI_COMM_WORLD;
    mpi_state *s = new_state(host, comm);
    if (!s)
        return host->base->pending();
    int rc = MPI_Comm_dup(given, &s->mpi);
    if (rc != MPI_SUCCESS) {
        char text[200];
        mpi_text(rc, text, sizeof text);
        free_state(s);
        return host->base->fail(TD_ERR_LAUNCH, "td_init: MPI_Comm_dup failed: %s", text);
    }
    s->world = true;
    int code = complete(s);
    if (code) {
        free_state(s);
        return code;
    }
    *state = s;
    return 0;
}

/* A rank without memory still takes its part in the split. */
int mpi_split(void *parent, td_coll *coll, td_comm *group, int color, int key, void **state)
{
    mpi_state *p = parent, *s = group ? new_state(p->host, group) : NULL;
    MPI_Comm made = MPI_COMM_NULL;
    int code = compare(p, coll);
    if (!code)
        code = check(p, coll, "MPI_Comm_split", MPI_Comm_split(p->mpi, group ? color : MPI_UNDEFINED, key, &made));
    if (!code && s) {
        s->mpi = made;
        code = complete(s);
    } else if (!code && group) {
        code = p->host->fail(group, TD_ERR_MEMORY, "no memory for a group of MPI");
    }
    if (code && s)
        free_state(s);
    else if (s)
        *state = s;
    return code;
}

void mpi_abort(void *state)
{
    mpi_state *s = state;
    MPI_Abort(s->mpi, 1);
}

void mpi_close(void *state, bool well)
{
    mpi_state *s = state;
    if (s->world || !well)
        mpi_ended(well);
    if (well) {                                /* else peers may be gone, and freeing is collective */
        wire_close(s);
        MPI_Comm_free(&s->mpi);
    }
    free_state(s);
}
