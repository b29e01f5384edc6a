/* tandem/ddp.h: replicas in step. td_ddp_new attaches to a module's parameters; the model is called as before, and each
 * td_backward reduces gradients in buckets while it is still running. See docs/design/ddp.md.
 */
#ifndef TANDEM_DDP_H
#define TANDEM_DDP_H
#include <tandem/comm.h>
#include <tandem/nn.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct td_ddp td_ddp;
typedef struct {
    int64_t  bucket_bytes;         /* default 25 MiB                                                                  */
    int64_t  first_bucket_bytes;   /* default 1 MiB: communication starts early                                       */
    td_comm *comm;                 /* default: the world                                                              */
    td_dtype gradient_dtype;       /* default TD_F32; TD_BF16: f32 gradients cross as bf16 (half the bytes, 8 bits), each rank's share rounded once */
    bool     shard_optimizer;      /* default false; true: ZeRO-1, see below                                            */
    uint64_t reserved[7];
} td_ddp_opts;
/* shard_optimizer: each rank steps its own slice (1/ranks) of every bucket and keeps optimizer state (moments, f32 masters) of that slice alone; gradients
 * are reduce-scattered, and the new values are gathered while the next forward runs: an operation waits for the buckets of its own
 * parameters only. Weights are those of the plain optimizer, bit for bit over shared memory; over MPI and NCCL with more than two ranks as
 * closely as their sums in another order. What differs for the program:
 *   - td_grad is collective: all ranks call it. So is clipping, whose norm, like LAMB's and LARS's, is a sum over the
 *     slices (equal up to rounding in f64).
 *   - a pointer from td_data is good until td_optim_step; ask anew after it.
 *   - no further td_ddp_no_sync backward between a synchronised one and its step, and no td_ddp_free while the optimizer is to go on.
 * Any td_optim will do, made before or after td_ddp_new; the td_ema of weights is whole on every rank. PyTorch: ZeroRedundancyOptimizer; FSDP's
 * SHARD_GRAD_OP, which in addition frees the other slices' gradients. */
/* Ranks of one host over shared memory (CPU) keep optimizer state in slices without being asked: each rank steps its slice of every bucket for all,
 * and td_optim_step is collective and returns when all values are there. td_grad and clipping stay as without a td_ddp: any rank may read when it
 * likes. Either buckets are reduced while backward runs, or (one pass) the step itself sums, scales and steps block by block: the same bits; what is
 * faster is measured in the first steps and told in one line; TANDEM_ONE_PASS=0 or 1 overrides. Under one pass a rank that wants reduced gradients before the
 * step waits for the others to reach their step, or any collective or message of theirs. A rank that cannot step (an error is pending): no rank
 * steps, and all have its sentence. */
/* Collective. Compares the models (the first differing parameter is named with both shapes) and broadcasts rank 0's parameters
 * and buffers. Call it before the first step. */
TD_API td_ddp *td_ddp_new(td_module *model, const td_ddp_opts *opts);
/* Detaches; NULL is fine; td_finish does it too. Where optimizer state is in slices of one host it is collective: every rank has all of the state
 * afterwards, and the optimizer may go on. */
TD_API void    td_ddp_free(td_ddp *ddp);
/* true: following backwards accumulate locally; the next one with false reduces everything. The same on all ranks. */
TD_API void    td_ddp_no_sync(td_ddp *ddp, bool on);

/* Every td_nn_batch_norm at or below model normalises, while training, over the rows of all ranks of comm (NULL: the world), and its
 * gradients and running statistics are those of one process with all rows; shares may be uneven or empty. Evaluation stays local.
 * Collective, like each forward and backward of the model from then on: all ranks run the same of these layers in the same order.
 * Under td_ddp buckets are launched between these layers' sums instead of at once. Statistics are computed in f64. Returns the number of
 * layers, or a negative code. PyTorch: SyncBatchNorm.convert_sync_batchnorm. */
TD_API int     td_ddp_sync_batch_norm(td_module *model, td_comm *comm);

typedef struct {
    double  step_ms;          /* from the first backward's begin (of this step) to the end of td_optim_step            */
    double  backward_ms;      /* the synchronised backward                                                            */
    double  comm_ms;          /* sum of the buckets' reductions, from launch to done; one_pass: of the pass, the optimizer's arithmetic included */
    double  exposed_ms;       /* of it, what this rank waited for, and for other ranks; on a GPU what its stream waited for, in the step before;
                                 one_pass: all of it                                                                  */
    double  overlap;          /* 1 - exposed/comm, 0 when there was none                                              */
    double  skew_ms;          /* between the first and the last rank's arrival at the header, largest                  */
    int     slowest_rank;     /* the last to arrive there                                                             */
    int     buckets;
    int64_t bytes;            /* reduced per rank                                                                     */
    bool    one_pass;         /* gradients were summed by td_optim_step itself; overlap is 0 then                          */
    uint64_t reserved[3];
} td_ddp_stats;
TD_API td_ddp_stats td_ddp_last_step(const td_ddp *ddp);

/* One bucket in the last step. Buckets are numbered as they are launched, 0 first; they are laid out anew once, behind the first backward, so
 * that the first step has no figures. On a GPU
 * ready_ms is when the host launched it, comm_ms 0 (td_ddp_last_step has the sum). */
typedef struct {
    int64_t bytes;            /* of gradients, as they cross                                                          */
    int     parameters;
    double  ready_ms;         /* from the backward's begin until it was launched; 0: no rank had a gradient in it        */
    double  comm_ms;          /* its reduction                                                                         */
    uint64_t reserved[3];
} td_ddp_bucket;
TD_API td_ddp_bucket td_ddp_last_bucket(const td_ddp *ddp, int i);            /* 0 to buckets-1; else zeroes and an error   */

#ifdef __cplusplus
}
#endif
#endif
