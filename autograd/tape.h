/* autograd/tape.h: the call record, which is also the node of the graph. Internal to autograd's core files.
 *
 * A node is the td_call that ran, kept because an input needs gradients. Its outputs (tensor->graph) and the nodes that consumed them hold
 * references to it; it holds, for each input, an edge: the producing node, or the leaf's tensor. Input values live on only where they were
 * saved; a saved output is a handle without graph, so there are no cycles.
 *
 * tensor->graph is one word: a leaf, or a node and the number of the output, told apart by the low bits that the allocator's alignment
 * leaves free.
 */
#ifndef TD_TAPE_H
#define TD_TAPE_H
#include <autograd_impl.h>

enum { GRAPH_OUTPUT = 3, GRAPH_LEAF = 4, GRAPH_BITS = 7 };
_Static_assert(TD_OP_MAX_OUTPUTS <= GRAPH_OUTPUT + 1, "the output's number must fit into the low bits");
typedef uintptr_t td__graph;                   /* 0: no gradient flows here                                                */
static inline td__graph td__graph_of(const td_tensor *x) { return (td__graph)x->graph; }
static inline bool td__graph_is_leaf(td__graph g) { return g & GRAPH_LEAF; }
static inline td__leaf *td__graph_leaf(td__graph g) { return (td__leaf *)(g & ~(td__graph)GRAPH_BITS); }
static inline td_call *td__graph_node(td__graph g) { return (td_call *)(g & ~(td__graph)GRAPH_BITS); }
static inline int td__graph_output(td__graph g) { return (int)(g & GRAPH_OUTPUT); }

typedef struct {
    td__graph graph;                           /* where the gradient goes; 0: not wanted                                    */
    td_dtype  dtype;
    bool      channels_last;                   /* and the device keeps that                                                */
    td_shape  shape;
} td__edge;

typedef struct {
    td_tensor *tensor;                         /* one reference                                                            */
    td_tensor *narrow;                         /* while grad sees an f32 copy in its place: the 16-bit one (half.c)         */
    uint32_t   version;                        /* of its storage when saved                                                */
    uint32_t   inputs;                         /* bit i: it is input i (the same tensor may be several)                     */
    int8_t     output;                         /* which one it is, or -1                                                   */
} td__saved;

typedef struct td__hook {
    struct td__hook *next;
    void (*fn)(td_tensor *grad, void *user);
    void *user;
    int   output;                              /* of the node; leaves: 0                                                   */
} td__hook;

/* One input's gradient while a gradient function runs: see backward.c. */
typedef struct {
    td_tensor *into;                           /* the leaf's gradient or the producer's accumulator; NULL: not wanted       */
    td_tensor *temp;                           /* written instead of `into` and copied or added afterwards, or NULL         */
    bool       add;                            /* into holds something                                                     */
    bool       later;                          /* of an operation that passes: td_call_pass makes the accumulator, if it must  */
} td__dest;

_Static_assert(TD_OP_MAX_INPUTS <= 32, "td__saved.inputs and td_op.optional have a bit for each");
enum { SAVED_HERE = 4 };

/* A gradient put together from pieces: written in [low, high) of `dim` alone; low == high: it is none (grad_place.c). */
typedef struct { int output, dim; int64_t low, high; } td__whole_grad;

struct td_call {
    const td_op *op;
    const void  *attr;
    td_device    device;
    int          n_in, n_out, n_saved, room_saved;
    bool         recording;                    /* a node of the graph: gradients will be asked for                          */
    bool         view;                         /* infer made output 0 a view                                               */
    bool         freed;                        /* backward has run, the graph was not retained                             */
    bool         light;                        /* of td_checkpoint's first run: nothing was saved, no gradient may come here  */
    bool         once;                         /* of a checkpoint's second run: freed though the graph is retained           */
    bool         half;                         /* an input has 16 bits, and the device computes in f32                     */
    bool         mixed;                        /* autocast left inputs of 16 bits beside f32 ones (TD__OP_WIDE)              */
    bool         shared;                       /* a weight's cast that several graphs use: no backward frees it             */
    bool         captured;                     /* of a captured step: its edges stay, for replays                           */
    bool         over;                         /* … and its gradient goes over input 0, which nobody but the list holds, …    */
    td_call     *over_until;                   /* … and is needed until this node has run; lent                               */
    td_tensor *const *again;                   /* in a replay: the outputs of the recorded call, to be written again; else NULL   */
    uint8_t      out_last;                     /* bit i: output i is channels last                                         */
    int          error;                        /* inside infer and run: what went wrong without a code to return it          */
    td_tensor *const *in;                      /* infer and run only                                                       */
    td_tensor   *out[TD_OP_MAX_OUTPUTS];       /* infer and run only                                                       */
    td__saved   *saved, saved_here[SAVED_HERE];
    /* nodes only from here on */
    td__edge    *edge;
    int32_t      refs;
    uint64_t     seq;                          /* greater than that of every node it depends on                              */
    uint64_t     walk;                         /* the backward that reached it last                                        */
    td_call     *next;                         /* in the order of a walk, or among the dying                                */
    td_tensor   *grad[TD_OP_MAX_OUTPUTS];      /* incoming gradients during a walk                                         */
    bool         placed;                       /* during a walk: grad[0] lies in the input's already (grad_place.c)           */
    td__whole_grad whole;                      /* during a walk: of grad                                                   */
    td__dest    *dest;                         /* while its gradient function runs                                         */
    td_tensor *const *seen;                    /* then: the incoming gradients as it sees them                              */
    td__hook    *hooks;
    const void  *site;
    const char  *label;                        /* its own copy; NULL: none                                                 */
};

/* ---- tape.c ---- */
typedef struct {
    bool     grad_off;                         /* inside TD_NO_GRAD, run, grad or a hook                                   */
    bool     walking;                          /* a backward is running                                                    */
    bool     light;                            /* inside td_checkpoint's first run: nodes save nothing                      */
    bool     again;                            /* inside its second, in backward                                           */
    struct td__rerun *rerun;                   /* innermost of these runs, or NULL (checkpoint.h)                            */
    double   unit;                             /* in a backward: what gradients are counted in (autograd_impl.h)               */
    bool     draining;                         /* dying nodes are being freed                                              */
    td_dtype autocast;                         /* the region's dtype; TD_F32: none                                         */
    int      autocast_depth;                   /* regions begun and not ended                                              */
    uint64_t seq;                              /* of the last node recorded                                                */
    td_call *dying;
} td__tape;
extern __thread td__tape td__tape_now;
td_call *td__node_new(const td_op *op, td_tensor *const *in, size_t n, const void *attr);   /* NULL after td__fail          */
void td__node_ref(td_call *node);
void td__node_unref(td_call *node);
void td__saved_drop(td_call *call);
void td__node_let_go(td_call *node);           /* saved tensors and edges, at once                                         */
void td__hooks_run(td__hook *hooks, int output, td_tensor *grad);
void td__hooks_free(td__hook *hooks);

/* ---- leaf.c, flat.c, group.c, mean.c ---- */
void td__leaf_free(td__leaf *leaf);
int  td__leaf_zero(td__leaf *leaf);            /* has_grad, of zeros, unless it has one                                     */
td__group *td__group_of(td__leaf *leaf);       /* its group, an implicit one where it has none; NULL after td__fail            */
void td__group_drop_leaf(td__leaf *leaf);
int  td__flat_lend(td__leaf *leaf);            /* makes leaf->grad in leaf->flat                                             */
void td__group_give_back(td__group *g);        /* the memory of gradients that nobody needs, unless ddp's                      */
int  td__scale(td_tensor *x, double factor);  /* in place, without a new version                                           */
int  td__group_rebase(td__group *g, double unit);   /* the same weighted sum in another unit                                 */
void td__group_forget(td__group *g);           /* no gradients, no weights; no callbacks                                    */
td__group *td__groups_attached(void);          /* first of the groups with ops                                             */

/* ---- backward.c ---- */
/* Without groups' callbacks and weights: d(sum of seed*root) goes to the leaves. For td_gradcheck. */
int td__backward_seeded(td_tensor *root, td_tensor *seed);

/* ---- half.c ---- */
typedef struct {
    td_tensor *const *in;                      /* the caller's inputs; NULL: nothing was widened                            */
    td_tensor *wide[TD_OP_MAX_INPUTS];         /* what infer and run see, one reference each                                */
} td__half;
int  td__half_begin(td_call *call, td__half *h);             /* 0, or negative after td__fail; end is to be called either way */
int  td__half_end(td_call *call, td__half *h, int code);     /* code: how infer and run ended; returns it or its own         */
static inline bool td__half_grad(const td_call *node)        /* does its gradient function work on f32 copies?               */
{
    return node->half && !(node->op->flags & TD_OP_ANY_DTYPE_GRAD);
}
int  td__half_grad_begin(td_call *node, td_tensor **seen);   /* fills seen, one reference each; widens what was saved        */
void td__half_grad_end(td_call *node, td_tensor **seen);     /* to be called also when begin failed                          */
td_tensor *td__half_own(td_call *call, int input, td_tensor *g);   /* the 16-bit gradient that g is a copy of, to be passed on; or NULL */

/* ---- autocast.c ---- */
/* Replaces *in by `cast` where the region wants other dtypes; *mixed: see td_call. 0, or negative when a cast failed. */
int  td__autocast_inputs(const td_op *op, td_tensor *const **in, size_t n, td_tensor **cast, bool *mixed);

/* ---- anomaly.c: TANDEM_ANOMALY ---- */
extern int td__anomaly;                        /* 0: off; else ask                                                          */
bool     td__anomaly_wanted(void);
int      td__anomaly_forward(td_call *call, td_tensor *const *in);   /* after run; 0, or negative after td__fail              */
uint32_t td__anomaly_before(td_call *node, const td__dest *dest);    /* around a gradient function: what to hand to …         */
int      td__anomaly_backward(td_call *node, const td__dest *dest, uint32_t watched);

/* ---- samples.c ---- */
void    td__random_restart(void);              /* the next random call is the first of a forward                             */
/* All that random operations draw from. A state put in place stays until the next is: what was there is given back (with `ids`, a
 * reference). step and seed are then this thread's, until a state with `own` false is put back. */
typedef struct { td_tensor *ids; int64_t calls, step; uint64_t seed; bool own; } td__random;
td__random td__random_now(void);               /* a look: ids is lent                                                        */
td__random td__random_put(td__random state);   /* takes over state.ids                                                       */

/* ---- checkpoint.c, recompute.c ---- */
extern const td_op td__op_checkpoint;
td_tensor *td__checkpoint_cast(td_tensor *x, td_dtype dtype, bool last);   /* autocast's of leaf x, in a second run                       */
bool td__hook_known(td__graph g);              /* in a second run: what g names was there in the first, and has its hooks       */
int  td__checkpoint_check(td_call *node);      /* 0, or the sentence: a parameter that it will read has changed                */
bool td__checkpoint_collective(const td_call *node);   /* did the function call an operation that all ranks must call?         */
void td__checkpoint_note(const td_op *op);     /* the door, while tape->rerun                                                */

#endif
