/* autograd/autograd_impl.h: the tape from inside. Internal; nn, optim and ddp use the lower half.
 *
 * Names: a *leaf* is a tensor that collects a gradient (a parameter). A *flat* is a contiguous run of leaves: their values lie in one
 * storage, their gradients in another. A *group* is the set of leaves whose gradients form one weighted mean; it has one or more
 * flats. ddp makes a group whose flats are its buckets; an optimizer makes one for leaves that have none; a leaf alone gets an
 * implicit group at its first backward.
 *
 * The weighted mean. In a group, gradients G and a number `unit` stand for the weighted sum unit*G = sum of w_i g_i; `weight` is the sum of w_i
 * so far. The first micro-batch sets unit = w_1 (so its backward starts from 1: hooks see ordinary gradients); later ones start from w/unit.
 * The mean is G*unit/weight. Finalising (td_grad, step) makes G the mean and unit = weight, so that more may be added after.
 */
#ifndef TD_AUTOGRAD_IMPL_H
#define TD_AUTOGRAD_IMPL_H
#include <tensor_impl.h>
#include <tandem/op.h>

typedef struct td__leaf td__leaf;
typedef struct td__flat td__flat;
typedef struct td__group td__group;

struct td__leaf {
    td_tensor *value;              /* the leaf's tensor; the leaf lives as long as it (tensor->graph), so no reference      */
    td_tensor *grad;               /* same shape, contiguous, in the flat's gradient storage or its own; NULL without gradient */
    td__group *group;              /* NULL: none yet                                                                        */
    td__flat  *flat;               /* NULL: none                                                                            */
    int64_t    offset;             /* elements from the flat's start                                                        */
    bool       requires;           /* frozen leaves stay leaves                                                             */
    bool       has_grad;           /* grad holds something: the next contribution adds                                      */
    bool       used;               /* reached by a backward since the last step, on any rank (ddp ORs it)                     */
    int        expected;           /* contributions still to come in the backward that runs                                 */
    int        index;              /* ddp's: position among its parameters                                                  */
    int        optims;             /* optim's: how many optimizers list it                                                  */
    double     left_unit, left_weight;   /* optim's: the group's when a step took this gradient and left others' there; weight 0: no */
    /* autograd's own */
    struct td__hook *hooks;
    uint64_t   walk;               /* the backward that reached it last                                                     */
    td__leaf  *next;               /* in the list of leaves that this backward reaches                                        */
    bool       listed;             /* while a group is made                                                                 */
};
extern const char *(*td__leaf_name)(const td_tensor *x);   /* for messages: nn sets it to the parameter's path; "" for none */
td__leaf *td__leaf_of(const td_tensor *x);             /* NULL for tensors that are not leaves                             */
int       td__leaf_need_grad(td__leaf *leaf);          /* makes leaf->grad if there is none                                */
int       td__leaf_check_place(const td__leaf *leaf);  /* 0, or td__fail: its value is a view, and nothing that runs over flats may touch it */

struct td__flat {
    td__group  *group;
    td_dtype    dtype;
    int64_t     n;                 /* elements, padding included (each leaf begins on 64 bytes; pads stay zero)              */
    td__leaf  **leaf; int leaves;
    td_storage *value, *grad;      /* grad: NULL while there are no gradients, unless td__flat_memory gave it               */
    int64_t     own_low, own_high; /* elements that this rank steps and keeps optimizer state of; alone and in replicas: all */
    int         index;             /* in its group                                                                          */
    bool        stepped;           /* optim's, for `stepped`: this step changes values here                                  */
    void       *user;              /* ddp's bucket                                                                          */
};

/* Where flats lie and how they are shared. */
typedef struct {
    td_storage *(*grad)(void *user, size_t bytes);   /* ddp: the communicator's arena; kept as long as the group. NULL: the device, from the
                                                        first gradient until the step                                           */
    td_storage *(*value)(void *user, size_t bytes);  /* NULL: the device                                                      */
    void (*give_back)(void *user); /* what these have given and is free again goes back to the system; or NULL                   */
    int parts, mine;               /* a flat is padded to `parts` equal parts of whole 64 bytes, and only part `mine` is stepped here; 0, 0: all */
} td__flat_memory;

/* What ddp fills in; NULL rows mean nothing to do. Autograd and optim know nothing else of ddp. */
typedef struct {
    /* Every td_backward on any thread begins here, for every registered group, also when this backward reaches none of its leaves. `reached`:
     * does it reach some? `error`: this rank's pending error (0: none): the header must still be sent. Returns 0, or a negative code that
     * stops the backward on every rank alike (td__fail_verbatim has been called). On return leaf->expected and has_grad may have been adapted. */
    int  (*begin)(td__group *g, bool reached, int error, double weight);
    void (*leaf_ready)(td__leaf *leaf);          /* all contributions of this backward are in leaf->grad (expected > 0 fell to 0) */
    int  (*end)(td__group *g);                   /* kernels of this backward have run; called for every group whose begin returned 0,
                                                    also when backward failed after it (then td__pending() is not 0)          */
    int  (*step_begin)(td__group *g);            /* first thing of td_optim_step (optim calls it)                             */
    int  (*wait)(td__flat *f);                   /* gradients of f are reduced when it returns; idempotent                     */
    /* Where every rank steps its own part of the flats for all of them, in memory that each can reach; NULL: not so. meet: collective, the last thing
     * before values change; g->by_blocks: gradients may stay unreduced until `block` asks. Negative: no rank steps, and td__fail has been called on
     * all. Then piece by piece, from any thread: block: where the mean of n gradients from `low` on lies, in `room` (n elements) or in the flat;
     * store: n new values from `low` on go to the other ranks. `stepped` ends it. */
    int  (*meet)(td__group *g);
    const void *(*block)(td__flat *f, int64_t low, int64_t n, void *room);
    void (*store)(td__flat *f, int64_t low, int64_t n);
    int  (*sum)(td__flat *f, double *values, int n);   /* add over the ranks that share the flat's steps (and its group's), in its device's memory;
                                                    NULL: nobody does                                                               */
    int  (*stepped)(td__group *g, bool failed);  /* the own parts of flats marked `stepped` have new values, or this rank has failed to
                                                    make them: the others get them, started (with `meet`: have them); collective; NULL: replicas */
    int  (*gather)(td__flat *f, void *values, td_dtype dtype);   /* n elements on f's device, of which the own part is filled in: fills in
                                                    the others'; collective; NULL: replicas                                      */
    int  (*whole)(td__group *g);                 /* gradients that are reduced are so in all parts when it returns; collective. NULL: they are;
                                                    else a wait brings the mean in own_low … own_high alone                       */
    void (*step_end)(td__group *g);              /* gradients have been consumed (td__group_consume calls it, and td_zero_grad of all) */
    void (*leaf_gone)(td__leaf *leaf);           /* the tensor is being freed; the leaf is taken out of its flat after this      */
} td__group_ops;

struct td__group {
    double      unit, weight;      /* see the head of this file; 0, 0: no backward yet                                        */
    td__flat  **flat; int flats;
    uint64_t    layout;            /* changes when flats change; optimizers remap their state                               */
    const td__group_ops *ops; void *user;   /* ops: set by td__group_attach                                                       */
    const double *stop;            /* set by ddp: in the device's memory, not 0 when it is read: nothing is stepped on any rank. NULL: no such word */
    uint64_t    traps;             /* td__traps when it was looked at last: what came before a bad index was found is nobody's       */
    bool        implicit;          /* of one leaf without flat                                                              */
    td__leaf   *only;              /* that leaf                                                                             */
    td__group  *next, *prev;       /* all groups with ops                                                                   */
    uint64_t    walk;              /* the backward that reached it last                                                     */
    bool        begun;             /* begin returned 0 in the backward that runs                                            */
    bool        by_blocks;         /* optim's, during a step: it takes all gradients of the group, block by block (td__group_ops.meet) */
};

/* ---- group.c, mean.c ---- */
/* Cuts leaves (no group yet, or an implicit one; not frozen) into flats: cut[i] leaves each, in the order given; one dtype per flat. Values are
 * moved, gradients too where there are some. memory NULL: the device's, all parts. */
td__group *td__group_new(td__leaf *const *leaf, const int *cut, int flats, const td__flat_memory *memory, void *user);
/* The same leaves in another order or cut; values, gradients and flags move along; layout changes. */
int  td__group_rebuild(td__group *g, td__leaf *const *leaf, const int *cut, int flats, const td__flat_memory *memory, void *user);
/* From now on every backward calls ops; ops NULL: no longer. Order of attaching is the order of begin on every rank. */
void td__group_attach(td__group *g, const td__group_ops *ops);
/* A micro-batch of weight w counts in g's mean. Backward calls it (after begin) for the groups it reaches; ddp for a group that only
 * other ranks reach. */
void td__group_weigh(td__group *g, double w);
void td__group_free(td__group *g);                     /* leaves live on, without group; flats' storages as long as views of them */
int  td__group_finalise(td__group *g);                 /* waits, makes G the mean                                           */
double td__group_scale(const td__group *g);            /* unit/weight: what a step multiplies G by; 0 when weight is 0          */
void td__group_consume(td__group *g);                  /* after a step: no gradients, no weights; bumps the stepped values' versions;
                                                          calls step_end                                                     */

void td__group_untrap(td__group *g);                   /* no gradients, no weights, if a bad index was found since they began         */

/* ---- tape.c, backward.c ---- */
bool td__grad_enabled(void);
int  td__not_in_backward(const char *who);             /* 0, or td__fail: a hook or gradient function called it                */
/* What a forward asks of the world besides tensors (a training flag): `now`, but in a checkpoint's second run the first one's answer. */
bool td__checkpoint_answer(bool now);
double td__backward_unit(void);                        /* inside a gradient function: what gradients are counted in               */
/* Flags of op records that only this library's own operations set; the public ones (tandem/op.h) are below 1u << 16. */
enum {
    /* All ranks run it together (synchronised batch norm). Its gradient function is also called in a backward of weight 0, with grad_out
     * NULL and no slot wanted, so that no other rank waits in vain. */
    TD__OP_COLLECTIVE = 1u << 16,
    /* The gradient function hands gradients of as many elements as output 0's to td_call_pass and does nothing else with their slots: no
     * memory is made for what may be g itself. */
    TD__OP_PASSES = 1u << 17,
    /* The gradient of input 0, of output 0's shape and dtype, may be written over the incoming gradient: each element is read before it is written. */
    TD__OP_OVERWRITES = 1u << 18,
    /* Inside TD_AUTOCAST, where the device computes in 16 bits: inputs of 16 bits stay as they are beside f32 ones, and results are in f32
     * (td__call_mixed). _ALIKE: only where all have one shape. */
    TD__OP_WIDE = 1u << 19,
    TD__OP_WIDE_ALIKE = 1u << 20,
    /* Images stay as they lie (tensor/format.c): the gradient function gets its incoming gradients channels last where the output was, and
     * slots channels last where the input was and the device keeps that. Everybody else's are contiguous. */
    TD__OP_FORMATS = 1u << 21,
    /* The gradient of input 0 may be written over input 0, which `run` saved first: what of it an element needs is read before the element is written. */
    TD__OP_OVERWRITES_INPUT = 1u << 22,
    /* The gradient function writes to and adds to slots of any strides. */
    TD__OP_STRIDED_GRAD = 1u << 23,
};
_Static_assert(TD__OP_COLLECTIVE + TD__OP_PASSES + TD__OP_OVERWRITES + TD__OP_WIDE + TD__OP_WIDE_ALIKE + TD__OP_FORMATS + TD__OP_OVERWRITES_INPUT + TD__OP_STRIDED_GRAD
                   == (TD__OP_COLLECTIVE | TD__OP_PASSES | TD__OP_OVERWRITES | TD__OP_WIDE | TD__OP_WIDE_ALIKE | TD__OP_FORMATS | TD__OP_OVERWRITES_INPUT |
                       TD__OP_STRIDED_GRAD),
               "two flags of one bit");
bool td__call_mixed(const td_call *call);
const char *td__call_name(const td_call *call);         /* of its operation, without td_                                        */
/* In infer: td_call_infer, but channels last where `like` (may be NULL) is and its device keeps that. */
int td__call_infer_like(td_call *call, int output, td_shape shape, td_dtype dtype, const td_tensor *like);
/* A leaf's cast inside TD_AUTOCAST, channels last if so asked, kept as the door's casts are; NULL: x is no leaf or there is no region. */
td_tensor *td__autocast_leaf(td_tensor *x, bool channels_last);
int  td__live_nodes(void);                             /* recorded calls that exist                                         */
td_dtype td__autocast_now(void);                       /* of this thread; TD_F32: no region, or switched off                */
void     td__autocast_drop(void);                      /* forget the casts of leaves that the region keeps                  */
void     td__graphs_free_all(void);                    /* captured steps (capture.c); td_finish calls it                      */
/* ---- capture_graph.c: numbers that a captured step on a GPU must not keep ---- */
/* The place on the device that will hold these bytes when the graph runs; NULL: no graph is made or replayed, take the numbers themselves. */
const void *td__graph_slot(const void *bytes, size_t n);
td_number  td__graph_number(double value);
td_tensor *td__graph_tensor(td_tensor *from);           /* the tensor that will hold a copy of `from`, lent; only where td__graph_slot gives places */
bool       td__graph_building(void);                    /* the device records what it is told                                   */
/* the thread's sample numbers: ids (i64, rows) or NULL with `first`; advances the index of random calls of this forward */
int64_t td__random_call_index(void);
int64_t td__random_calls(void);                        /* the index that the next one gets; for training states            */
void td__random_calls_set(int64_t calls);
uint64_t td__random_seed(void);                        /* the seed to draw from: td_seed_get, or a checkpoint's               */
void td__samples_now(int64_t rows, const td_tensor **ids, int64_t *first);

#endif
