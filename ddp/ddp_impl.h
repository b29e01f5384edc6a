/* ddp/ddp_impl.h: replicas in step, from inside. Internal to ddp/.
 *
 * The walk of one gradient: backward writes it straight into its bucket (autograd/backward.c); ready -> bucket full -> launch
 * (reducer.c, cross.c); wait and finish when the optimizer or a reader asks (cross.c, reducer.c). header.c is the small collective that opens each
 * synchronised backward; hook.c lets the user decide what crosses, hook_top_k.c and hook_power_sgd.c do; buckets.c decides which leaf lies where; verify.c compares models; order.c
 * reads and sets the order of leaves for training states; attach.c is birth and death.
 *
 * Invariants
 *   - Every rank has the same trainable parameters in the same order (verified at attach); index i means the same one everywhere.
 *   - Buckets are launched in index order on every rank, all of them or, where no rank has a gradient in one, none; the buckets of several
 *     models on one communicator model by model, the last attached first.
 *   - Between two steps the gradients of a rank stand for the weighted sum unit*G (autograd_impl.h). After a reduction every rank
 *     holds the same G, the mean over all; then rank 0 alone carries it into a further backward, the others start from nothing.
 */
#ifndef TD_DDP_IMPL_H
#define TD_DDP_IMPL_H
#include <stdio.h>
#include <string.h>
#include <comm_impl.h>
#include <nn_impl.h>
#include <tandem/ddp_hook.h>

typedef struct {
    td__flat *flat;
    int       pending;          /* leaves that this backward still has to write                                       */
    bool      skip;             /* no rank has a gradient in it                                                       */
    td_work  *work;             /* under way, or NULL                                                                 */
    td_storage *low;            /* in 16 bits: this rank's share, then (host memory) one of each rank; or NULL          */
    td_storage *wide;           /* host memory: one rank's share in f32; or NULL                                       */
    void     *waits[2][2];      /* on a GPU: events before and after the wait, of even and odd steps; or NULL            */
    bool      waited[2];        /* and whether they were recorded                                                     */
    td_work  *values;           /* sharded: the gather of new values, under way, or NULL                               */
    td__late  late;             /* of the leaves' storages while it is                                                */
    char      label[48], values_label[48];
    td_ddp_bucket figures, last; /* of this step, of the last                                                          */
    bool      hooked;           /* a hook has started it and not finished                                              */
    td_ddp_hook_bucket seen;    /* by the hook                                                                         */
    td_tensor **parameter; int64_t *place;
} td__bucket;

/* What each rank says in the header of a synchronised backward; a bit per parameter follows. */
typedef struct {
    double   weight;            /* sum of this rank's weights since the last reduction, this backward's included        */
    double   arrived;           /* td__now: comparable on one host                                                    */
    int32_t  error;             /* pending error code, or 0                                                           */
    uint32_t reached;           /* does this backward reach the model here?                                           */
} td__ddp_header;

struct td_ddp {
    td_ddp     *next, *prev;    /* all that live, for td_finish                                                       */
    td_module  *model;
    td_comm    *comm;
    int         rank, size;
    int64_t     bucket_bytes, first_bucket_bytes;
    td_dtype    gradient_dtype; /* what f32 gradients cross as                                                        */
    bool        shard_optimizer;
    bool        whole;          /* sharded: reduced gradients are there in all slices                                   */
    bool        refused;        /* sharded: a step of them has failed here, and other ranks may have none any more        */
    td_device   device;         /* of the parameters                                                                  */
    int         odd;            /* parity of the step: which events                                                    */
    td__leaf  **leaf;           /* trainable parameters in the order of the model                                     */
    int         leaves;
    td__group  *group;
    td__bucket *bucket;
    int         buckets;

    bool        no_sync;        /* the user's wish for the following backwards                                         */
    bool        local;          /* gradients hold contributions that were not reduced (no_sync)                        */
    bool        reduced;        /* gradients hold (or will, once waited for) the mean over all ranks                    */
    double      carried;        /* in a backward: the weight of the mean that it began with; 0: there was none               */
    bool        syncing;        /* a synchronised backward is running here                                            */
    bool        active;         /* … and reaches the model on some rank                                               */
    bool        gone;           /* a parameter was freed under us                                                     */
    int         launched;       /* buckets 0 … launched-1 are launched or skipped                                     */
    double      total;          /* weights of all ranks                                                               */

    int32_t    *arrival;        /* the order in which gradients were ready in the first synchronised backward            */
    int         arrivals;
    bool        rebuilt;

    td_storage *stop;           /* on a GPU, over several ranks: a f64, not 0 where some rank's index check has failed; else NULL   */
    td_work    *stopping;       /* its sum, under way, or NULL                                                         */

    td_work    *header;         /* under way, or NULL                                                                 */
    td_storage *header_storage; /* mine, then one of each rank, in the arena                                          */
    size_t      header_bytes;
    int         verdict;        /* of this backward: a code when some rank has an error                                */

    td_ddp_hook hook;           /* start NULL: none                                                                    */
    void       *hook_user;

    td_ddp_stats stats, last;
    double      step_began, backward_began;
};

/* buckets.c */
int  td__ddp_plan(td_ddp *ddp, const int32_t *order, td__leaf **sorted, int *cut);   /* returns the number of buckets        */
int  td__ddp_buckets_made(td_ddp *ddp);              /* fills ddp->bucket after the group's flats have changed              */
void td__ddp_buckets_drop(td_ddp *ddp);
/* cross.c: a bucket's way over the ranks. */
int  td__bucket_cross(td_ddp *ddp, td__bucket *bucket);   /* starts it                                                         */
int  td__bucket_wait(td_ddp *ddp, td__bucket *bucket);    /* the host's memory is there; a GPU's stream will find it there        */
int  td__ddp_stop_cross(td_ddp *ddp);                /* behind the last bucket: has an index check failed on any rank?             */
int  td__ddp_stop_wait(td_ddp *ddp);                 /* as a bucket's wait                                                       */
void td__ddp_exposed(td_ddp *ddp);                   /* at a step's end: what the step before waited for, without waiting         */
int  td__ddp_rebuild(td_ddp *ddp);                   /* once, before the first step                                       */
td_storage *td__ddp_arena(void *ddp, size_t bytes);  /* where gradients live                                              */
/* hook.c: the same ways by the user's rules */
int  td__hook_start(td_ddp *ddp, td__bucket *bucket);
int  td__hook_end(td_ddp *ddp);                      /* all buckets of this backward have been started                     */
int  td__hook_finish(td_ddp *ddp, td__bucket *bucket);
void td__hook_forget(td__bucket *bucket);            /* the bucket goes                                                    */
void td__hook_drop(td_ddp *ddp);                     /* the hook goes                                                      */
/* shard.c */
static inline bool td__ddp_sharded(const td_ddp *ddp)
{
    return ddp->shard_optimizer && ddp->size > 1;
}
int  td__bucket_settle(td_ddp *ddp, td__bucket *bucket);   /* its values are there                                         */
int  td__ddp_whole(td_ddp *ddp);                     /* reduced gradients are there in all slices; collective              */
int  td__shard_stepped(td__group *group, bool failed);
int  td__shard_sum(td__flat *flat, double *values, int n);
int  td__shard_gather(td__flat *flat, void *values, td_dtype dtype);
int  td__shard_whole(td__group *group);
td__flat_memory td__ddp_memory(const td_ddp *ddp);
/* header.c */
int  td__ddp_header_send(td_ddp *ddp, bool reached, int error, double weight);
int  td__ddp_headers_finish(td_comm *comm);          /* waits; total, used, skip, active; negative when some rank has an error */
/* order.c: what a training state keeps of a td_ddp */
bool td__ddp_is_poison(const td_ddp *ddp);
void td__ddp_order(const td_ddp *ddp, int32_t *order, int32_t *cut);    /* indices of leaves bucket by bucket, and how many are in each  */
/* Lays the buckets out so. order: a permutation of 0 … leaves-1; cut: positive, adds up to leaves; no bucket of two dtypes. 0, or negative. */
int  td__ddp_set_order(td_ddp *ddp, const int32_t *order, const int32_t *cut, int buckets, bool rebuilt);
/* reducer.c */
extern const td__group_ops td__ddp_ops, td__ddp_shard_ops;
int  td__ddp_wait_all(td_ddp *ddp);
int64_t td__ddp_full(td_comm *comm);                 /* how many further buckets of this backward could be launched here now */
int  td__ddp_launch(td_comm *comm, int64_t most);    /* launches so many; 0 or negative                                   */
/* sync_batch_norm.c */
bool td__ddp_paced(const td_comm *comm);             /* do buckets wait for td__ddp_launch?                                */
void td__ddp_pace_forget(void);
/* verify.c */
int  td__ddp_verify(td_ddp *ddp);
/* attach.c */
void td__ddp_free_all(void);
td_ddp *td__ddps(void);                              /* the list, last attached first: the order of launching              */
/* One blocking collective on memory of that device. */
int  td__ddp_broadcast(td_ddp *ddp, td_device device, void *data, td_dtype dtype, int64_t count, int root);
#endif
