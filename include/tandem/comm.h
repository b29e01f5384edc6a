/* tandem/comm.h: groups of ranks and collectives on tensors (on plain memory: comm_raw.h).
 *
 * Collectives are called by all ranks of the group in the same order with the same dtype, element count, reduction and root; each call's
 * fingerprint is compared before data is touched, and a difference is one sentence that names both calls. Every wait has a
 * deadline (TANDEM_TIMEOUT, 300 s); a peer that is dead, stopped or gone is reported at once. Tensors are contiguous and lie on the same kind
 * of device on every rank. What every rank gets is the same, bit for bit, on every rank.
 *
 * Data moves in every dtype. Arithmetic: f64, f32, i64, i32 and u8 in themselves (integers wrap around); f16 and bf16 in f32, rounded once at the
 * end; the mean of real dtypes alone; minimum and maximum pass NaN on. Of bool TD_MAX is "or" and TD_MIN is "and", and there is no sum, mean or
 * product. A refused dtype, a shape that does not fit, a root that is no rank: one sentence and a negative code, before anything is sent.
 *
 * Tensors of a GPU go through NCCL, on a stream of its own; f16 and bf16 are rounded by NCCL, at each of its steps. There no call waits for the
 * GPU: a blocking one and td_wait return when later work on the tensor is ordered behind the collective. What goes wrong afterwards is the
 * next call's error.
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
TD_API const char *td_comm_backend_name(const td_comm *comm);             /* "self", "shm", "hier", "mpi", "store"      */

/* blocking: 0 or a negative code. x is changed in place; where there are an out and an in they are apart, unless something else is said. */
TD_API int td_all_reduce(td_comm *comm, td_tensor *x, td_reduce op);
TD_API int td_broadcast(td_comm *comm, td_tensor *x, int root);
TD_API int td_reduce_scatter(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op);  /* in (size*n,…) -> out: rank's n; may be its part of in */
TD_API int td_all_gather(td_comm *comm, td_tensor *out, td_tensor *in);                    /* in (n,…) -> out (size*n,…); may be its part of out */
TD_API int td_barrier(td_comm *comm);
/* To the root alone, or from it. td_reduce_to: the root's x becomes the reduction, the others' stay as they are. td_gather_to: in (n,…) of every
 * rank -> the root's out (size*n,…), in the order of ranks. td_scatter_from: part r of the root's in (size*n,…) -> rank r's out (n,…). What is
 * the root's alone is NULL elsewhere; the root's in of a gather may be its part of out, its out of a scatter its part of in. */
TD_API int td_reduce_to(td_comm *comm, td_tensor *x, td_reduce op, int root);
TD_API int td_gather_to(td_comm *comm, td_tensor *out, td_tensor *in, int root);
TD_API int td_scatter_from(td_comm *comm, td_tensor *out, td_tensor *in, int root);
/* Everybody to everybody: part j of in (size*n,…) -> part `rank` of rank j's out, of the same shape. In place: the same tensor twice. */
TD_API int td_all_to_all(td_comm *comm, td_tensor *out, td_tensor *in);
/* Uneven: first dimensions that differ, 0 allowed. all_gather: every rank passes the same `size` numbers of rows; in (rows[rank],…), which may be its
 * part of out (their sum,…). all_to_all: in_rows[j] rows of in go to rank j, out_rows[i] rows of out come from rank i, `size` numbers each; what
 * i sends to j must be what j expects from i, else one sentence names both. In place where in_rows and out_rows are equal. On a GPU the
 * call waits for the other ranks' numbers, also the started one. */
TD_API int td_all_gather_uneven(td_comm *comm, td_tensor *out, td_tensor *in, const int64_t *rows);
TD_API int td_all_to_all_uneven(td_comm *comm, td_tensor *out, const int64_t *out_rows, td_tensor *in, const int64_t *in_rows);

/* started: runs on the communicator's thread in the order of the calls; the tensors must not be touched until td_wait
 * (numbers of rows are copied). An error gives a work whose td_wait returns it. */
TD_API td_work *td_all_reduce_start(td_comm *comm, td_tensor *x, td_reduce op);
TD_API td_work *td_broadcast_start(td_comm *comm, td_tensor *x, int root);
TD_API td_work *td_reduce_scatter_start(td_comm *comm, td_tensor *out, td_tensor *in, td_reduce op);
TD_API td_work *td_all_gather_start(td_comm *comm, td_tensor *out, td_tensor *in);
TD_API td_work *td_barrier_start(td_comm *comm);
TD_API td_work *td_reduce_to_start(td_comm *comm, td_tensor *x, td_reduce op, int root);
TD_API td_work *td_gather_to_start(td_comm *comm, td_tensor *out, td_tensor *in, int root);
TD_API td_work *td_scatter_from_start(td_comm *comm, td_tensor *out, td_tensor *in, int root);
TD_API td_work *td_all_to_all_start(td_comm *comm, td_tensor *out, td_tensor *in);
TD_API td_work *td_all_gather_uneven_start(td_comm *comm, td_tensor *out, td_tensor *in, const int64_t *rows);
TD_API td_work *td_all_to_all_uneven_start(td_comm *comm, td_tensor *out, const int64_t *out_rows, td_tensor *in, const int64_t *in_rows);
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

/* ---- messages between two ranks --------------------------------------------------------------------------------------------------------
 * From one rank of comm to another, on host memory, apart from the collectives. Messages of the same sender, receiver and tag (0 to 1,048,575) arrive in
 * the order of the calls; dtype and element count must agree, or both ranks are told by one sentence. The deadline and a dead, stopped or finished
 * peer are reported as in collectives. td_send may return before the message is taken, but need not: two ranks that send to each other first may
 * wait for ever; use td_sendrecv, or start one of the two. A rank may send to itself when one of the two calls is started.
 */
TD_API int td_send(td_comm *comm, td_tensor *x, int to, int tag);
TD_API int td_recv(td_comm *comm, td_tensor *x, int from, int tag);
/* Both at once, with one tag; the two tensors may have different shapes and dtypes, and share no memory. */
TD_API int td_sendrecv(td_comm *comm, td_tensor *sent, int to, td_tensor *received, int from, int tag);
/* Started, in any number: they make progress by themselves. td_wait and td_test as for collectives. */
TD_API td_work *td_send_start(td_comm *comm, td_tensor *x, int to, int tag);
TD_API td_work *td_recv_start(td_comm *comm, td_tensor *x, int from, int tag);

#ifdef __cplusplus
}
#endif
#endif
