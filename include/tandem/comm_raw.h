/* tandem/comm_raw.h: the collectives of comm.h on plain memory of the host, for programs that do not keep their data in tensors.
 *
 * `count` is a number of elements of `dtype` (as MPI's), of every rank's part where there is a part per rank. Pointers need no alignment
 * beyond the dtype's. With a count of 0 they may be NULL. dtypes, reductions, comparison, deadlines and errors as for tensors; a pointer
 * that is NULL or a negative count is one sentence. Memory of a GPU goes by tensors. In a step that td_capture records these are refused.
 *
 * Started ones run on the communicator's thread, in the order of the calls: the memory must stay, and not be touched, until td_wait (arrays of
 * counts are copied).
 */
#ifndef TANDEM_COMM_RAW_H
#define TANDEM_COMM_RAW_H
#include <tandem/comm.h>
#ifdef __cplusplus
extern "C" {
#endif

/* 0 or a negative code. in and out are the same or apart, unless something else is said. */
TD_API int td_raw_broadcast(td_comm *comm, void *data, int64_t count, td_dtype dtype, int root);
TD_API int td_raw_all_reduce(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op);
TD_API int td_raw_reduce(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op, int root);   /* out: the root's */
/* in: size*count, out: count; out may be in, or this rank's part of it */
TD_API int td_raw_reduce_scatter(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op);
/* in: count, out: size*count (gather: the root's alone, else NULL); in may be this rank's part of out */
TD_API int td_raw_all_gather(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype);
TD_API int td_raw_gather(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, int root);
/* in: the root's size*count, else NULL; out: count, on the root it may be its part of in */
TD_API int td_raw_scatter(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, int root);
/* size*count each */
TD_API int td_raw_all_to_all(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype);
/* counts: of every rank, the same on all; in: counts[rank], may be this rank's part of out: parts lie one behind the other */
TD_API int td_raw_all_gather_uneven(td_comm *comm, const void *in, void *out, const int64_t *counts, td_dtype dtype);
/* in_counts[j] elements go to rank j, out_counts[i] come from rank i; parts lie one behind the other. The same memory where both are equal. */
TD_API int td_raw_all_to_all_uneven(td_comm *comm, const void *in, const int64_t *in_counts, void *out, const int64_t *out_counts, td_dtype dtype);

TD_API td_work *td_raw_broadcast_start(td_comm *comm, void *data, int64_t count, td_dtype dtype, int root);
TD_API td_work *td_raw_all_reduce_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op);
TD_API td_work *td_raw_reduce_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op, int root);
TD_API td_work *td_raw_reduce_scatter_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, td_reduce op);
TD_API td_work *td_raw_all_gather_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype);
TD_API td_work *td_raw_gather_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, int root);
TD_API td_work *td_raw_scatter_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype, int root);
TD_API td_work *td_raw_all_to_all_start(td_comm *comm, const void *in, void *out, int64_t count, td_dtype dtype);
TD_API td_work *td_raw_all_gather_uneven_start(td_comm *comm, const void *in, void *out, const int64_t *counts, td_dtype dtype);
TD_API td_work *td_raw_all_to_all_uneven_start(td_comm *comm, const void *in, const int64_t *in_counts, void *out, const int64_t *out_counts,
                                               td_dtype dtype);

/* Messages between two ranks (comm.h); the received part may have another count, but not share memory with what is sent. */
TD_API int td_raw_send(td_comm *comm, const void *data, int64_t count, td_dtype dtype, int to, int tag);
TD_API int td_raw_recv(td_comm *comm, void *data, int64_t count, td_dtype dtype, int from, int tag);
TD_API int td_raw_sendrecv(td_comm *comm, const void *sent, int64_t sent_count, int to, void *received, int64_t received_count, int from,
                           td_dtype dtype, int tag);
TD_API td_work *td_raw_send_start(td_comm *comm, const void *data, int64_t count, td_dtype dtype, int to, int tag);
TD_API td_work *td_raw_recv_start(td_comm *comm, void *data, int64_t count, td_dtype dtype, int from, int tag);

#ifdef __cplusplus
}
#endif
#endif
