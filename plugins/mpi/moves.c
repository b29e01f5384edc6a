/* plugins/mpi/moves.c: broadcast, all_gather, gather, scatter and all_to_all as calls of MPI, in bytes.
 *
 * MPI counts in int. What is larger goes in several calls, or in messages from rank to rank; which way is a function of what all ranks know.
 */
#include "mpi_impl.h"
#include <string.h>

enum { TAG = 1 };

static int64_t bytes_of(const td_coll *coll, int64_t count)
{
    return count * (int64_t)td_dtype_size(coll->dtype);
}

static int broadcast_bytes(mpi_state *s, const td_coll *coll, char *data, int64_t bytes, int root)
{
    int code = 0, n;
    for (int64_t at = 0; at < bytes && !code; at += n) {
        n = mpi_next(bytes - at);
        code = mpi_check(s, coll, "MPI_Bcast", MPI_Bcast(data + at, n, MPI_BYTE, root, s->mpi));
    }
    return code;
}

int mpi_broadcast(mpi_state *s, td_coll *coll)
{
    int64_t bytes = bytes_of(coll, coll->count);
    if (s->rank == coll->root && coll->in != coll->out && bytes)
        memmove(coll->out, coll->in, (size_t)bytes);
    return broadcast_bytes(s, coll, coll->out, bytes, coll->root);
}

/* ---- all_gather ------------------------------------------------------------------------------------------------------------------------------- */

static int all_gather_large(mpi_state *s, td_coll *coll)
{
    int64_t at = 0;
    int code = 0;
    for (int r = 0; r < s->size && !code; r++) {
        int64_t bytes = bytes_of(coll, coll->counts ? coll->counts[r] : coll->count);
        char *part = (char *)coll->out + at;
        if (r == s->rank && coll->in != part && bytes)
            memmove(part, coll->in, (size_t)bytes);
        code = broadcast_bytes(s, coll, part, bytes, r);
        at += bytes;
    }
    return code;
}

static int all_gather_uneven(mpi_state *s, td_coll *coll)
{
    const size_t n = (size_t)s->size;
    int *counts = s->host->base->alloc(2 * n * sizeof *counts), *places = counts ? counts + n : NULL, at = 0;
    if (!counts)
        return s->host->fail(s->comm, TD_ERR_MEMORY, "all_gather: no memory for the counts of %d ranks", s->size);
    for (size_t i = 0; i < n; at += counts[i++])
        counts[i] = (int)bytes_of(coll, coll->counts[i]), places[i] = at;
    bool in_place = coll->in == (char *)coll->out + places[s->rank];
    int code = mpi_check(s, coll, "MPI_Allgatherv", MPI_Allgatherv(in_place ? MPI_IN_PLACE : coll->in, counts[s->rank], MPI_BYTE, coll->out, counts,
                                                                   places, MPI_BYTE, s->mpi));
    s->host->base->free(counts);
    return code;
}

int mpi_all_gather(mpi_state *s, td_coll *coll)
{
    const int64_t bytes = bytes_of(coll, coll->count);
    if (bytes > TD_MPI_MOST)                   /* even: of a part; uneven: of all                                            */
        return all_gather_large(s, coll);
    if (coll->counts)
        return all_gather_uneven(s, coll);
    const char *own = (const char *)coll->out + s->rank * bytes;
    return mpi_check(s, coll, "MPI_Allgather", MPI_Allgather(coll->in == own ? MPI_IN_PLACE : coll->in, (int)bytes, MPI_BYTE, coll->out, (int)bytes,
                                                             MPI_BYTE, s->mpi));
}

/* ---- from rank to rank ------------------------------------------------------------------------------------------------------------------------ */

static int send_bytes(mpi_state *s, const td_coll *coll, const char *data, int64_t bytes, int to)
{
    int code = 0, n;
    for (int64_t at = 0; at < bytes && !code; at += n) {
        n = mpi_next(bytes - at);
        code = mpi_check(s, coll, "MPI_Send", MPI_Send(data + at, n, MPI_BYTE, to, TAG, s->mpi));
    }
    return code;
}

static int receive_bytes(mpi_state *s, const td_coll *coll, char *data, int64_t bytes, int from)
{
    int code = 0, n;
    for (int64_t at = 0; at < bytes && !code; at += n) {
        n = mpi_next(bytes - at);
        code = mpi_check(s, coll, "MPI_Recv", MPI_Recv(data + at, n, MPI_BYTE, from, TAG, s->mpi, MPI_STATUS_IGNORE));
    }
    return code;
}

static int gather_large(mpi_state *s, td_coll *coll, int64_t bytes)
{
    int code = 0;
    if (s->rank != coll->root)
        return send_bytes(s, coll, coll->in, bytes, coll->root);
    for (int r = 0; r < s->size && !code; r++) {
        char *part = (char *)coll->out + r * bytes;
        if (r != s->rank)
            code = receive_bytes(s, coll, part, bytes, r);
        else if (part != coll->in && bytes)
            memmove(part, coll->in, (size_t)bytes);
    }
    return code;
}

static int scatter_large(mpi_state *s, td_coll *coll, int64_t bytes)
{
    int code = 0;
    if (s->rank != coll->root)
        return receive_bytes(s, coll, coll->out, bytes, coll->root);
    for (int r = 0; r < s->size && !code; r++) {
        const char *part = (const char *)coll->in + r * bytes;
        if (r != s->rank)
            code = send_bytes(s, coll, part, bytes, r);
        else if (part != coll->out && bytes)
            memmove(coll->out, part, (size_t)bytes);
    }
    return code;
}

int mpi_gather(mpi_state *s, td_coll *coll)
{
    const int64_t bytes = bytes_of(coll, coll->count);
    if (bytes > TD_MPI_MOST)
        return gather_large(s, coll, bytes);
    bool in_place = s->rank == coll->root && coll->in == (char *)coll->out + s->rank * bytes;
    return mpi_check(s, coll, "MPI_Gather", MPI_Gather(in_place ? MPI_IN_PLACE : coll->in, (int)bytes, MPI_BYTE, coll->out, (int)bytes, MPI_BYTE,
                                                       coll->root, s->mpi));
}

int mpi_scatter(mpi_state *s, td_coll *coll)
{
    const int64_t bytes = bytes_of(coll, coll->count);
    if (bytes > TD_MPI_MOST)
        return scatter_large(s, coll, bytes);
    bool in_place = s->rank == coll->root && coll->out == (const char *)coll->in + s->rank * bytes;
    return mpi_check(s, coll, "MPI_Scatter", MPI_Scatter(coll->in, (int)bytes, MPI_BYTE, in_place ? MPI_IN_PLACE : coll->out, (int)bytes, MPI_BYTE,
                                                         coll->root, s->mpi));
}

/* ---- all_to_all --------------------------------------------------------------------------------------------------------------------------------- */

/* Parts of a side (out: what comes), in bytes: rank i's and where it lies. */
static int64_t part_of(const mpi_state *s, const td_coll *coll, bool out, int i, int64_t *at)
{
    const int64_t *counts = out ? coll->counts : coll->in_counts;
    int64_t before = counts ? 0 : i * coll->count;
    for (int k = 0; k < i && counts; k++)
        before += counts[k];
    (void)s;
    *at = bytes_of(coll, before);
    return bytes_of(coll, counts ? counts[i] : coll->count);
}

/* Round k: to the k-th rank behind this one, from the k-th before it. */
static int in_rounds(mpi_state *s, td_coll *coll, const char *in)
{
    int code = 0;
    for (int k = 0; k < s->size && !code; k++) {
        const int to = (s->rank + k) % s->size, from = (s->rank + s->size - k) % s->size;
        int64_t there, here, gives = part_of(s, coll, false, to, &there), takes = part_of(s, coll, true, from, &here);
        if (k == 0 && takes)
            memcpy((char *)coll->out + here, in + there, (size_t)takes);
        for (int64_t at = 0; k && at < (gives > takes ? gives : takes) && !code; at += TD_MPI_MOST) {
            const bool give = at < gives, take = at < takes;
            code = mpi_check(s, coll, "MPI_Sendrecv",
                             MPI_Sendrecv(in + there + (give ? at : 0), give ? mpi_next(gives - at) : 0, MPI_BYTE, give ? to : MPI_PROC_NULL, TAG,
                                          (char *)coll->out + here + (take ? at : 0), take ? mpi_next(takes - at) : 0, MPI_BYTE,
                                          take ? from : MPI_PROC_NULL, TAG, s->mpi, MPI_STATUS_IGNORE));
        }
    }
    return code;
}

static int uneven_at_once(mpi_state *s, td_coll *coll, const char *in)
{
    const size_t n = (size_t)s->size;
    int *number = s->host->base->alloc(4 * n * sizeof *number);
    if (!number)
        return s->host->fail(s->comm, TD_ERR_MEMORY, "all_to_all: no memory for the counts of %d ranks", s->size);
    for (int i = 0; i < s->size; i++) {
        int64_t at;
        number[i] = (int)part_of(s, coll, false, i, &at), number[n + (size_t)i] = (int)at;
        number[2 * n + (size_t)i] = (int)part_of(s, coll, true, i, &at), number[3 * n + (size_t)i] = (int)at;
    }
    int code = mpi_check(s, coll, "MPI_Alltoallv", MPI_Alltoallv(in, number, number + n, MPI_BYTE, coll->out, number + 2 * n, number + 3 * n,
                                                                 MPI_BYTE, s->mpi));
    s->host->base->free(number);
    return code;
}

int mpi_all_to_all(mpi_state *s, td_coll *coll)
{
    const bool uneven = coll->in_counts != NULL;
    const int64_t bytes = bytes_of(coll, uneven ? coll->most : coll->count);
    const char *in = coll->in;
    void *copy = NULL;
    int code = 0;
    if (in && in == coll->out) {                   /* MPI's own ways in place are not for all of this                             */
        int64_t at, all = part_of(s, coll, false, s->size - 1, &at);
        copy = s->host->base->alloc((size_t)(all + at));
        if (!copy)
            return s->host->fail(s->comm, TD_ERR_MEMORY, "all_to_all: no memory for a copy of %lld bytes", (long long)(all + at));
        in = memcpy(copy, in, (size_t)(all + at));
    }
    if (bytes > TD_MPI_MOST / s->size)
        code = in_rounds(s, coll, in);
    else if (uneven)
        code = uneven_at_once(s, coll, in);
    else
        code = mpi_check(s, coll, "MPI_Alltoall", MPI_Alltoall(in, (int)bytes, MPI_BYTE, coll->out, (int)bytes, MPI_BYTE, s->mpi));
    s->host->base->free(copy);
    return code;
}
