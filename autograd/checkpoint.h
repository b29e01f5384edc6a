/* autograd/checkpoint.h: what a checkpoint's first run (checkpoint.c) leaves for its second (recompute.c). Internal to these two.
 */
#ifndef TD_CHECKPOINT_H
#define TD_CHECKPOINT_H
#include "plan.h"

typedef td_tensor *td__checkpoint_fn(td_tensor *const *inputs, size_t n, void *user);

/* One run of a function, first or second. */
typedef struct td__rerun {
    struct td__rerun *outer;
    bool     again;
    bool     collective;               /* the first run called an operation that all ranks must call                        */
    uint64_t since;                    /* sequence number of the last node recorded before it                                */
    td_call *node;                     /* a second run: whose                                                               */
    td_tensor **cast;                  /* one for each edge of the node, made when first used (td__checkpoint_cast)          */
    uint8_t *answer;                   /* to questions that are no tensors, in order (td__checkpoint_answer)                 */
    size_t   answers, room, at;
} td__rerun;

typedef struct {
    td__checkpoint_fn *fn;
    void      *user;                   /* NULL where bytes of it were copied: the copy is the head of `memory`                */
    size_t     user_size, answers;
    int        inputs, edges;
    bool       collective;
    td_shape   shape;                  /* of the result                                                                     */
    td_dtype   dtype, autocast;        /* its dtype; the region's that was open                                              */
    int64_t    calls, drawn, step;     /* index of the first random call, how many there were, …                            */
    uint64_t   seed;
} td__checkpoint_attr;

/* What the node keeps, in its list of saved tensors: the inputs, then these. */
enum { TD__IDS, TD__MEMORY, TD__MORE };            /* sample numbers (or NULL); user's bytes, versions of the edges' leaves, answers        */

static inline size_t td__user_room(size_t user_size)
{
    return (user_size + 63) / 64 * 64;
}

static inline uint8_t *td__memory_of(const td_call *node)
{
    const td__checkpoint_attr *a = node->attr;
    return td__ptr(node->saved[a->inputs + TD__MEMORY].tensor);
}

static inline uint32_t *td__versions_of(const td_call *node)
{
    const td__checkpoint_attr *a = node->attr;
    return (uint32_t *)(td__memory_of(node) + td__user_room(a->user_size));
}

/* The leaf that edge i leads to, directly or through its cast; NULL: an input. */
static inline td_tensor *td__leaf_at(const td_call *node, int i)
{
    td__graph g = node->edge[i].graph;
    if (g && !td__graph_is_leaf(g) && td__graph_node(g)->shared)
        g = td__graph_node(g)->edge[0].graph;
    return g && td__graph_is_leaf(g) ? td__graph_leaf(g)->value : NULL;
}

/* The function's result; poison after td__fail. */
static inline td_tensor *td__checkpoint_call(td__checkpoint_fn *fn, td_tensor *const *inputs, size_t n, void *user)
{
    td_tensor *y = fn(inputs, n, user);
    if (y)
        return y;
    td__fail(TD_ERR_ARGUMENT, "td_checkpoint: the function returned NULL");
    return td__poison();
}

#endif
