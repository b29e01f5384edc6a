/* plugins/mpi/collectives.c: a td_coll as blocking calls of MPI, on the communicator's thread.
 *
 * Nonblocking collectives make no progress while the program computes, so blocking ones run on a thread of their own. Each begins with an
 * exchange of fingerprints: MPI itself would hang, crash or answer nonsense when ranks differ. A call that hangs because a peer has died is
 * noticed by the waiting user's thread (comm/thread.c), which knows the peers of its host.
 */
#include "mpi_impl.h"
#include <stdio.h>
#include <string.h>

int mpi_check(mpi_state *s, const td_coll *coll, const char *call, int rc)
{
    if (rc == MPI_SUCCESS)
        return 0;
    char text[300];
    mpi_text(rc, text, sizeof text);
    return s->host->fail(s->comm, TD_ERR_PEER, "%s of collective #%llu failed on rank %d: %s", call, (unsigned long long)coll->seq, s->rank, text);
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
    int code = mpi_check(s, coll, "MPI_Allgather", MPI_Allgather(mine, TD_CALL_TEXT, MPI_CHAR, texts, TD_CALL_TEXT, MPI_CHAR, s->mpi));
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
    int code = mpi_check(s, coll, "MPI_Allgather",
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

int mpi_run(void *state, td_coll *coll)
{
    mpi_state *s = state;
    int code = compare(s, coll);
    if (code || coll->kind == TD_COLL_BARRIER || (coll->in_counts ? coll->most : coll->count) == 0)
        return code;
    coll->begun = s->host->base->now();
    switch (coll->kind) {
    case TD_COLL_BROADCAST:
        return mpi_broadcast(s, coll);
    case TD_COLL_ALL_REDUCE:
    case TD_COLL_REDUCE:
        return mpi_reduce(s, coll);
    case TD_COLL_REDUCE_SCATTER:
        return mpi_reduce_scatter(s, coll);
    case TD_COLL_ALL_GATHER:
        return mpi_all_gather(s, coll);
    case TD_COLL_GATHER:
        return mpi_gather(s, coll);
    case TD_COLL_SCATTER:
        return mpi_scatter(s, coll);
    case TD_COLL_ALL_TO_ALL:
        return mpi_all_to_all(s, coll);
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
    int code = sums_open(s);
    return code ? code : wire_open(s);
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
        code = mpi_check(p, coll, "MPI_Comm_split", MPI_Comm_split(p->mpi, group ? color : MPI_UNDEFINED, key, &made));
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
        sums_close(s);
        MPI_Comm_free(&s->mpi);
    }
    free_state(s);
}
