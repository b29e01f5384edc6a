/* tandem/ddp_hook.h: gradients' way over the ranks, by one's own rules. PyTorch: register_comm_hook.
 *
 * Without a hook a full bucket is all-reduced. With one, the hook gets the bucket and decides what crosses:
 *
 *     start     in td_backward, when the bucket is full (and all before it): gradient holds this rank's share of the mean, so that the sum over the ranks
 *               is the mean. Starts collectives and returns; backward goes on.
 *     end       once all buckets of this backward have been started; may be NULL. For hooks of several rounds: the next one starts here.
 *     finish    when the mean is wanted (td_optim_step, td_grad): waits for what was started and leaves the mean, the same bits on every rank, in gradient.
 *
 * Buckets are started in the same order on every rank. finish may be called on one rank earlier than on another, or in another order (a rank may read a gradient
 * when it likes), so it must start no collective. Operations on tensors are not recorded here; what they make is released when the function returns,
 * unless td_keep holds it. An error (pending, or a negative result) stops the step on every rank.
 */
#ifndef TANDEM_DDP_HOOK_H
#define TANDEM_DDP_HOOK_H
#include <tandem/ddp.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    td_tensor *gradient;              /* (n), f32 or f64, of all parameters of the bucket; in memory that collectives stage nothing of; yours
                                         to overwrite between start and finish                                                 */
    td_comm   *comm;
    int        index, buckets;
    uint64_t   layout;                /* changes when buckets are laid out anew (once, behind the first backward): what was kept for a bucket is
                                         then for other parameters                                                             */
    int        parameters;
    td_tensor *const *parameter;      /* in the order of their places                                                         */
    const int64_t    *place;          /* the element of gradient where each begins; the few between two are 0 and stay so        */
    int64_t    bytes;                 /* add what this rank hands to collectives: td_ddp_stats.bytes, td_ddp_bucket.bytes         */
    uint64_t   reserved[4];
} td_ddp_hook_bucket;

typedef struct {
    const char *name;                 /* for messages                                                                         */
    int  (*start)(td_ddp_hook_bucket *bucket, void *user);    /* 0, or negative after an error                                   */
    int  (*end)(void *user);                                  /* NULL: nothing to do                                             */
    int  (*finish)(td_ddp_hook_bucket *bucket, void *user);
    void (*free)(void *user);                                 /* when another hook is set or the td_ddp freed; NULL: nothing to do */
    uint64_t reserved[4];
} td_ddp_hook;
/* Copies *hook. NULL: the all-reduce again. The same on all ranks, between two steps (no gradients wait). 0 or negative; on an error `user` stays yours. */
TD_API int td_ddp_set_hook(td_ddp *ddp, const td_ddp_hook *hook, void *user);

/* ---- ready-made ------------------------------------------------------------------------------------------------------------------ */
/* f32 gradients cross as bf16: td_ddp_opts.gradient_dtype, set later. */
TD_API int td_ddp_bf16_hook(td_ddp *ddp);

/* Of each bucket the largest elements by magnitude cross, with their places; the rest stays on its rank and is added next time (error feedback:
 * Stich, Cordonnier and Jaggi 2018). 8 bytes an element sent, 12 in f64. Host memory only. */
typedef struct {
    double fraction;                  /* of a bucket's elements; default 0.01; more than 0, up to 1                             */
    uint64_t reserved[4];
} td_top_k_opts;
TD_API int td_ddp_top_k_hook(td_ddp *ddp, const td_top_k_opts *opts);

/* PowerSGD (Vogels, Karimireddy and Jaggi 2019): the gradient of a parameter (m,…) is taken as a matrix (m,k) and crosses as P (m,rank) and Q (k,rank) of one
 * step of subspace iteration, begun from the last step's Q; what is lost is added next time. Vectors, and matrices that would not get smaller, cross whole. */
typedef struct {
    int64_t  rank;                    /* default 4                                                                            */
    int64_t  start_step;              /* steps with a plain all-reduce before compression begins; default 10; TD_ZERO for 0; PyTorch: 1000 */
    bool     no_error_feedback;       /* default false                                                                        */
    bool     no_warm_start;           /* default false; true: a new random Q each step                                         */
    uint64_t seed;                    /* default 0: of the first Q, the same on every rank                                       */
    uint64_t reserved[4];
} td_power_sgd_opts;
TD_API int td_ddp_power_sgd_hook(td_ddp *ddp, const td_power_sgd_opts *opts);

#ifdef __cplusplus
}
#endif
#endif
