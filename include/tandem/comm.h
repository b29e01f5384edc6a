/* tandem/comm.h: groups of ranks and collectives on tensors.
 *
 * Collectives are called by all ranks of the group in the same order with the same dtype and element count; each call's
 * fingerprint is compared before data is touched, and a difference is one sentence that names both calls. Every wait has a
 * deadline (TANDEM_TIMEOUT, 300 s); a peer that is dead, stopped or gone is reported at once. Tensors are contiguous;
 * arithmetic in f32, f64, i64, i32 (data movement in any dtype). The result is the same, bit for bit, on every rank.
 *
 * Tensors of a GPU go through NCCL, on a stream of its own; arithmetic in f16 and bf16, too. There no call waits for the GPU: a blocking one and
 * td_wait return when later work on the tensor is ordered behind the collective. What goes wrong afterwards is the next call's error.
 */
#ifndef TANDEM_COMM_H
#define TANDEM_COMM_H
#include <tandem/tensor.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct td_comm td_comm;
typedef struct td_work td_work;                                           /* a started collective                     */
typedef enum { TD_SUM, TD_MEAN, TD_MIN, TD_MAX, TD_PRODUCT } td_reduce;

TD_API td_comm    *td_world(void);                                        /* after td_init; before: a world of one      */
TD_API int         td_rank(const td_comm *comm);
TD_API int         td_size(const td_comm *comm);
TD_API const char *td_comm_backend_name(const td_comm *comm);             /* "self", "shm", "mpi"                       */

/* blocking: 0 or a negative code; x in place */
TD_API int td_all_reduce(td_comm *comm, td_tensor *x, td_reduce op);
TD_API int td_broadcast(td_comm *comm, td_tensor *x, int root);
TD_API int td_reduce_scatter(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op);  /* in (size*n,…) -> out: rank's n */
TD_API int td_all_gather(td_comm *comm, td_tensor *out, td_tensor *in);                    /* in (n,…) -> out (size*n,…)     */
TD_API int td_barrier(td_comm *comm);

/* started: runs on the communicator's thread in the order of the calls; the tensors must not be touched until td_wait.
 * An error gives a work whose td_wait returns it. */
TD_API td_work *td_all_reduce_start(td_comm *comm, td_tensor *x, td_reduce op);
TD_API td_work *td_broadcast_start(td_comm *comm, td_tensor *x, int root);
TD_API td_work *td_reduce_scatter_start(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op);
TD_API td_work *td_all_gather_start(td_comm *comm, td_tensor *out, td_tensor *in);
TD_API int  td_wait(td_work *work);                                       /* frees it; a deadline always stands         */
TD_API bool td_test(td_work *work);                                       /* finished? does not free it                 */
/* Gives up all that is under way, on every rank; of the world: in its groups, too. */
TD_API void td_abort(td_comm *comm, const char *why);

/* On the default device, in memory that collectives stage nothing of (on the CPU: the group's arena). Owned by the innermost scope like any tensor. */
TD_API td_tensor *td_zeros_shared(td_comm *comm, td_shape shape, td_dtype dtype);

/* ---- groups ----------------------------------------------------------------------------------------------------------------------------
 * A group is a communicator of its own: its collectives are numbered, compared and timed apart, and it has its own thread for started ones. So
 * several groups may be used at the same time, from one thread in any order (started), or from several (each communicator by one at a time).
 * On one host a group goes over shared memory, over several by MPI. Calls that make or free one are collective: split and dup over the parent's
 * ranks, free over the group's. Sentences name ranks by their number in the world, and the group: "group 2 of world".
 */
enum { TD_NO_COLOR = -1 };
/* One group for each color >= 0, its ranks ordered by key, then by their rank in comm. NULL: color is TD_NO_COLOR, or an error (of any rank, told to
 * all). Yours to td_comm_free; td_finish frees those that are left. A group may outlive its parent. */
TD_API td_comm    *td_comm_split(td_comm *comm, int color, int key);
TD_API td_comm    *td_comm_dup(td_comm *comm);                            /* the same ranks in the same order                   */
/* Waits for what was started and for all ranks of the group. Works that nobody has waited for are gone; tensors of td_zeros_shared live on. NULL is
 * allowed. 0 or a negative code: the group is gone in any case. */
TD_API int         td_comm_free(td_comm *comm);
TD_API const char *td_comm_name(const td_comm *comm);                     /* "world", "group 2 of world"                         */
TD_API int         td_comm_world_rank(const td_comm *comm, int rank);     /* of a rank of comm; negative: there is no such rank   */
TD_API int         td_comm_ranks(const td_comm *comm, int *ranks);        /* world ranks into ranks[td_size(comm)]; how many      */

#ifdef __cplusplus
}
#endif
#endif
