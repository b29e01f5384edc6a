/* comm/raw.c: the public collectives on plain memory.
 *
 * A captured step knows what it changes by its tensors; memory behind a pointer it could neither keep nor look at. So these are refused there.
 */
#include "comm_room.h"
#include <tandem/comm_raw.h>

static void refuse_record(void)
{
    if (td__recorded_here())
        td__record_refuse("a collective on plain memory is called by the step, which follows tensors alone; pass a tensor");
}

static int now(td__call call)
{
    refuse_record();
    return td__call_now(call);
}

static td_work *start(td__call call)
{
    refuse_record();
    return td__call_start(call);
}

#define RAW(...) (td__call){ .raw = true, .comm = comm, .dtype = dtype, .kind = __VA_ARGS__ }
#define TWO(...) RAW(__VA_ARGS__, .raw_in = in, .raw_out = out)

int td_raw_broadcast(td_comm *comm, void *data, int64_t count, td_dtype dtype, int root)
{
    TD_ENTER();
    return now(RAW(TD_COLL_BROADCAST, .raw_in = data, .raw_out = data, .count = count, .root = root));
}

int td_raw_all_reduce(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op)
{
    TD_ENTER();
    return now(TWO(TD_COLL_ALL_REDUCE, .count = count, .op = op));
}

int td_raw_reduce(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op, int root)
{
    TD_ENTER();
    return now(TWO(TD_COLL_REDUCE, .count = count, .op = op, .root = root));
}

int td_raw_reduce_scatter(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op)
{
    TD_ENTER();
    return now(TWO(TD_COLL_REDUCE_SCATTER, .count = count, .op = op));
}

int td_raw_all_gather(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype)
{
    TD_ENTER();
    return now(TWO(TD_COLL_ALL_GATHER, .count = count));
}

int td_raw_gather(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, int root)
{
    TD_ENTER();
    return now(TWO(TD_COLL_GATHER, .count = count, .root = root));
}

int td_raw_scatter(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, int root)
{
    TD_ENTER();
    return now(TWO(TD_COLL_SCATTER, .count = count, .root = root));
}

int td_raw_all_to_all(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype)
{
    TD_ENTER();
    return now(TWO(TD_COLL_ALL_TO_ALL, .count = count));
}

int td_raw_all_gather_uneven(td_comm *comm, const void *in, void *out, const int64_t *counts, td_dtype dtype)
{
    TD_ENTER();
    return now(TWO(TD_COLL_ALL_GATHER, .uneven = true, .rows = counts));
}

int td_raw_all_to_all_uneven(td_comm *comm, const void *in, const int64_t *in_counts, void *out, const int64_t *out_counts, td_dtype dtype)
{
    TD_ENTER();
    return now(TWO(TD_COLL_ALL_TO_ALL, .uneven = true, .rows = out_counts, .in_rows = in_counts));
}

td_work *td_raw_broadcast_start(td_comm *comm, void *data, int64_t count, td_dtype dtype, int root)
{
    TD_ENTER();
    return start(RAW(TD_COLL_BROADCAST, .raw_in = data, .raw_out = data, .count = count, .root = root));
}

td_work *td_raw_all_reduce_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op)
{
    TD_ENTER();
    return start(TWO(TD_COLL_ALL_REDUCE, .count = count, .op = op));
}

td_work *td_raw_reduce_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op, int root)
{
    TD_ENTER();
    return start(TWO(TD_COLL_REDUCE, .count = count, .op = op, .root = root));
}

td_work *td_raw_reduce_scatter_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op)
{
    TD_ENTER();
    return start(TWO(TD_COLL_REDUCE_SCATTER, .count = count, .op = op));
}

td_work *td_raw_all_gather_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype)
{
    TD_ENTER();
    return start(TWO(TD_COLL_ALL_GATHER, .count = count));
}

td_work *td_raw_gather_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, int root)
{
    TD_ENTER();
    return start(TWO(TD_COLL_GATHER, .count = count, .root = root));
}

td_work *td_raw_scatter_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, int root)
{
    TD_ENTER();
    return start(TWO(TD_COLL_SCATTER, .count = count, .root = root));
}

td_work *td_raw_all_to_all_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype)
{
    TD_ENTER();
    return start(TWO(TD_COLL_ALL_TO_ALL, .count = count));
}

td_work *td_raw_all_gather_uneven_start(td_comm *comm, const void *in, void *out, const int64_t *counts, td_dtype dtype)
{
    TD_ENTER();
    return start(TWO(TD_COLL_ALL_GATHER, .uneven = true, .rows = counts));
}

td_work *td_raw_all_to_all_uneven_start(td_comm *comm, const void *in, const int64_t *in_counts, void *out, const int64_t *out_counts, td_dtype dtype)
{
    TD_ENTER();
    return start(TWO(TD_COLL_ALL_TO_ALL, .uneven = true, .rows = out_counts, .in_rows = in_counts));
}
