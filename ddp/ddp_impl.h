/* ddp/ddp_impl.h: replicas in step, from inside. Internal to ddp/.
 *
 * The walk of one gradient: backward writes it straight into its bucket (autograd/backward.c); ready -> bucket full -> launch
 * (reducer.c, cross.c); wait and finish when the optimizer or a reader asks (cross.c, reducer.c). header.c is the small collective that opens each
 * synchronised backward; one_pass.c steps replicas of one host, and which_way.c chooses whether its step sums the gradients, too; hook.c lets the user decide what crosses, hook_top_k.c and hook_power_sgd.c do; buckets.c decides which leaf lies where; verify.c compares models; order.c
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
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <comm_impl.h>
#include <nn_impl.h>
#include <optim_impl.h>
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
    uint64_t one_pass;          /* rank 0's word counts: the step sums the gradients of this backward                   */
} td__ddp_header;

/* which_way.c: one pass or two? TRIALS steps each way, in turn, once the buckets are where they stay. */
enum { TD__WAY_TRIALS = 5 };
typedef enum { TD__WAY_MEASURE, TD__WAY_ONE, TD__WAY_TWO, TD__WAY_IN_TURN /* tests */ } td__way;
typedef struct {
    td__way way;
    bool    forced;             /* by TANDEM_ONE_PASS                                                                 */
    int     step;               /* since the last rebuild                                                             */
    int     early;              /* steps in a row that should have been one pass and had their gradients read before     */
    double  ms[2][TD__WAY_TRIALS];   /* two passes, one pass                                                                 */
} td__trials;

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

    /* replicas of one host (one_pass.c) */
    bool        sliced;         /* each rank keeps optimizer state of its slice, and steps it for all                      */
    bool        placed;         /* place is that of the buckets                                                       */
    int64_t    *place;          /* of values and gradients of each bucket of each rank: td__comm_place                 */
    uint64_t   *word; double *factor;   /* of a meeting: what each rank said                                            */
    bool        one;            /* gradients of this backward are not sent, but summed by the step                        */
    bool        deferred;       /* and so they lie here, since a backward of thread `by`; this rank's factor is `pre`      */
    pthread_t   by;
    double      pre;
    bool        stepping;       /* all ranks are in a step of this group                                               */
    bool        stepped;        /* gradients have been taken by a step since they were reduced                            */
    bool        told;           /* this step's begin has met the others, or has failed to                               */
    double      met;            /* when                                                                               */
    td__trials which;

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
/* Elements that parameters lie in: without what slices of ranks are padded with. */
static inline int64_t td__bucket_filled(const td__flat *flat)
{
    const td__leaf *last = flat->leaves ? flat->leaf[flat->leaves - 1] : NULL;
    const int64_t line = 64 / (int64_t)td_dtype_size(flat->dtype);
    return last ? (last->offset + td_numel(last->value) + line - 1) / line * line : 0;
}
int  td__bucket_fill(td__flat *flat);                /* what this rank does not have becomes zero                              */
bool td__bucket_narrow(const td_ddp *ddp, const td__flat *flat);   /* does it cross in 16 bits?                                   */
int  td__bucket_wait(td_ddp *ddp, td__bucket *bucket);    /* the host's memory is there; a GPU's stream will find it there        */
int  td__ddp_stop_cross(td_ddp *ddp);                /* behind the last bucket: has an index check failed on any rank?             */
int  td__ddp_stop_wait(td_ddp *ddp);                 /* as a bucket's wait                                                       */
void td__ddp_exposed(td_ddp *ddp);                   /* at a step's end: what the step before waited for, without waiting         */
int  td__ddp_rebuild(td_ddp *ddp);                   /* once, before the first step                                       */
td_storage *td__ddp_arena(void *ddp, size_t bytes);  /* where gradients live                                              */
void td__ddp_arena_give_back(void *ddp);             /* what is free there                                                */
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
td__flat_memory td__ddp_memory(const td_ddp *ddp, bool rebuilt);   /* rebuilt: the buckets stay where they will be               */
/* one_pass.c */
void td__one_pass_open(td_ddp *ddp);                 /* at attach: is it one host's?                                         */
void td__one_pass_close(td_ddp *ddp);
int  td__one_pass_defer(td_ddp *ddp);                /* the kernels of a backward have run: gradients stay where they are          */
int  td__one_pass_settle(td_ddp *ddp);               /* deferred gradients are wanted before the step: two passes on all ranks     */
void td__one_pass_leave(td_ddp *ddp);                /* optimizers that go on without the ddp have all of their state; collective   */
int  td__one_pass_meet(td__group *group);
const void *td__one_pass_block(td__flat *flat, int64_t low, int64_t n, void *room);
void td__one_pass_store(td__flat *flat, int64_t low, int64_t n);
int  td__one_pass_stepped(td__group *group, bool failed);
/* which_way.c */
void td__which_way_open(td_ddp *ddp);
bool td__which_way(td_ddp *ddp);                     /* rank 0: will the gradients of this backward be summed by the step?          */
void td__which_way_stepped(td_ddp *ddp, bool early); /* early: they were to be, but somebody wanted them before                     */
/* header.c */
int  td__ddp_header_send(td_ddp *ddp, bool reached, int error, double weight);
int  td__ddp_headers_finish(td_comm *comm);          /* waits; total, used, skip, active; negative when some rank has an error */
/* order.c: what a training state keeps of a td_ddp */
bool td__ddp_is_poison(const td_ddp *ddp);
void td__ddp_order(const td_ddp *ddp, int32_t *order, int32_t *cut);    /* indices of leaves bucket by bucket, and how many are in each  */
/* Lays the buckets out so. order: a permutation of 0 … leaves-1; cut: positive, adds up to leaves; no bucket of two dtypes. 0, or negative. */
int  td__ddp_set_order(td_ddp *ddp, const int32_t *order, const int32_t *cut, int buckets, bool rebuilt);
/* reducer.c */
extern const td__group_ops td__ddp_ops, td__ddp_shard_ops, td__ddp_slice_ops;
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
