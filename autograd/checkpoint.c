/* autograd/checkpoint.c: td_checkpoint: a function whose activations are computed twice instead of kept.
 *
 * The first run records a light graph: nodes and edges, nothing saved. It only tells what the result depends on: which inputs, which
 * parameters. One node takes its place in the graph, with an edge to each of those; so backward knows beforehand what it will reach, as it
 * must (ddp's header, contributions counted per leaf). The second run, when backward comes to that node, records in earnest, and
 * its nodes take the checkpoint's place at the head of the plan. They write into the same accumulators and gradients in the same order
 * as the plain function's nodes would, because sequence numbers of one function's nodes lie together; hence the same bits. No walk runs
 * inside a walk, so checkpoints nest to any depth.
 *
 * What random operations draw from, and every training flag that is asked for, are what they were in the first run.
 */
#include <stdio.h>
#include <string.h>
#include "plan.h"

typedef td_tensor *checkpoint_fn(td_tensor *const *inputs, size_t n, void *user);

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
} rerun;

typedef struct {
    checkpoint_fn *fn;
    void      *user;                   /* NULL where bytes of it were copied: the copy is the head of `memory`                */
    size_t     user_size, answers;
    int        inputs, edges;
    bool       collective;
    td_shape   shape;                  /* of the result                                                                     */
    td_dtype   dtype, autocast;        /* its dtype; the region's that was open                                              */
    int64_t    calls, drawn, step;     /* index of the first random call, how many there were, …                            */
    uint64_t   seed;
} checkpoint_attr;

/* What the node keeps, in its list of saved tensors: the inputs, then these. */
enum { IDS, MEMORY, MORE };            /* sample numbers (or NULL); user's bytes, versions of the edges' leaves, answers        */

const td_op td__op_checkpoint = { .name = "checkpoint", .attr_size = sizeof(checkpoint_attr) };

/* ---- what the two runs have in common ------------------------------------------------------------------------------------------------ */

bool td_recomputing(void)
{
    return td__tape_now.again;
}

bool td__checkpoint_answer(bool now)
{
    bool value = now;
    for (rerun *r = td__tape_now.rerun; r; r = r->outer)
        if (r->again && r->at < r->answers)
            value = r->answer[r->at++];
    for (rerun *r = td__tape_now.rerun; r; r = r->outer) {
        if (r->again)
            continue;
        if (r->answers == r->room) {
            size_t room = r->room ? 2 * r->room : 64;
            uint8_t *grown = td__grow(r->answer, r->room, room);
            if (!grown)
                return value;          /* the error is pending: no backward will ask again                                  */
            r->answer = grown;
            r->room = room;
        }
        r->answer[r->answers++] = value;
    }
    return value;
}

void td__checkpoint_note(const td_op *op)
{
    for (rerun *r = td__tape_now.rerun; r; r = r->outer)
        r->collective |= (op->flags & TD__OP_COLLECTIVE) != 0;
}

bool td__hook_known(td__graph g)
{
    const rerun *r = td__tape_now.rerun;
    while (r && !r->again)
        r = r->outer;
    return r && (td__graph_is_leaf(g) || td__graph_node(g)->seq <= r->since);
}

static td_tensor *call_fn(checkpoint_fn *fn, td_tensor *const *inputs, size_t n, void *user)
{
    td_tensor *y = fn(inputs, n, user);
    if (y)
        return y;
    td__fail(TD_ERR_ARGUMENT, "td_checkpoint: the function returned NULL");
    return td__poison();
}

/* ---- the first run ---------------------------------------------------------------------------------------------------------------------- */

/* The ways out of the light graph: inputs, leaves, and autocast's casts of leaves, each once. */
typedef struct {
    td_tensor *const *in;
    size_t      n;
    td_tensor **tensor;
    td__graph  *graph;
    size_t      edges, room;
} ways_out;

static int add_way(ways_out *w, td__graph g, td_tensor *x)
{
    if (w->edges == w->room) {
        size_t room = w->room ? 2 * w->room : 32;
        td_tensor **tensor = td__grow(w->tensor, w->room * sizeof *tensor, room * sizeof *tensor);
        if (tensor)
            w->tensor = tensor;
        td__graph *graph = tensor ? td__grow(w->graph, w->room * sizeof *graph, room * sizeof *graph) : NULL;
        if (!graph)
            return TD_ERR_MEMORY;
        w->graph = graph;
        w->room = room;
    }
    w->tensor[w->edges] = x;
    w->graph[w->edges++] = g;
    return 0;
}

static int way_out(void *user, td__graph g)
{
    ways_out *w = user;
    for (size_t i = 0; i < w->edges; i++)
        if (w->graph[i] == g)
            return 0;
    if (td__graph_is_leaf(g))
        return add_way(w, g, td__graph_leaf(g)->value);
    if (td__graph_node(g)->shared)
        return add_way(w, g, NULL);
    for (size_t i = 0; i < w->n; i++)
        if (td__graph_of(w->in[i]) == g)
            return add_way(w, g, w->in[i]);
    char site[256];
    const td_call *node = td__graph_node(g);
    return td__fail(TD_ERR_ARGUMENT, "td_checkpoint: the function reads the result of td_%s (called at %s), which is none of its %zu inputs; "
                    "pass it as one, so that it is kept for the second run", node->op->name, td__site_text(node->site, site, sizeof site), w->n);
}

/* A copy of the sample numbers: the loader's batch moves on. */
static td_tensor *copy_ids(td_tensor *ids)
{
    td_tensor *copy = td__tensor_new(ids->shape, TD_I64, ids->storage->device);
    if (!copy->poisoned && td__copy(copy, ids, false)) {
        td__tensor_unref(copy);
        return td__poison();
    }
    return copy;
}

static size_t user_room(size_t user_size)
{
    return (user_size + 63) / 64 * 64;
}

static uint8_t *memory_of(const td_call *node)
{
    const checkpoint_attr *a = node->attr;
    return td__ptr(node->saved[a->inputs + MEMORY].tensor);
}

static uint32_t *versions_of(const td_call *node)
{
    const checkpoint_attr *a = node->attr;
    return (uint32_t *)(memory_of(node) + user_room(a->user_size));
}

/* The leaf that edge i leads to, directly or through its cast; NULL: an input. */
static td_tensor *leaf_at(const td_call *node, int i)
{
    td__graph g = node->edge[i].graph;
    if (g && !td__graph_is_leaf(g) && td__graph_node(g)->shared)
        g = td__graph_node(g)->edge[0].graph;
    return g && td__graph_is_leaf(g) ? td__graph_leaf(g)->value : NULL;
}

static int keep_inputs(td_call *node, td_tensor *const *in, int n)
{
    td__saved *saved = td__calloc((size_t)(n + MORE) * sizeof *saved);
    if (!saved)
        return TD_ERR_MEMORY;
    node->saved = saved;
    node->room_saved = n + MORE;
    node->n_saved = n + MORE;
    for (int i = 0; i < n; i++) {
        td__tensor_ref(in[i]);
        saved[i].tensor = in[i];
        saved[i].version = in[i]->storage->version;
        saved[i].inputs = 1u << i;
        saved[i].output = -1;
    }
    saved[n + IDS].output = saved[n + MEMORY].output = -1;
    return 0;
}

static int keep(td_call *node, td_tensor *const *in, const rerun *r, const void *user, td_tensor *ids)
{
    const checkpoint_attr *a = node->attr;
    int code = keep_inputs(node, in, a->inputs);
    if (code)
        return code;
    size_t head = user_room(a->user_size), versions = (size_t)a->edges * sizeof(uint32_t), bytes = head + versions + a->answers;
    td_tensor *memory = td__tensor_new(TD_SHAPE((int64_t)bytes), TD_U8, (td_device){ TD_CPU, 0 });
    if (memory->poisoned)
        return TD_ERR_MEMORY;
    node->saved[a->inputs + MEMORY].tensor = memory;
    if (a->user_size)
        memcpy(memory_of(node), user, a->user_size);
    for (int i = 0; i < a->edges; i++)
        versions_of(node)[i] = leaf_at(node, i) ? leaf_at(node, i)->storage->version : 0;
    if (a->answers)
        memcpy(memory_of(node) + head + versions, r->answer, a->answers);
    if (a->drawn && ids) {
        td_tensor *copy = copy_ids(ids);
        if (copy->poisoned)
            return TD_ERR_MEMORY;
        node->saved[a->inputs + IDS].tensor = copy;
    }
    return 0;
}

/* y hangs on the light graph; from now on on one node that stands for it. */
static int replace_graph(td_tensor *y, const ways_out *w, const rerun *r, checkpoint_attr *a, const void *user, td_tensor *ids)
{
    a->edges = (int)w->edges;
    a->answers = r->answers;
    a->collective = r->collective;
    a->shape = y->shape;
    a->dtype = y->dtype;
    td_call *node = td__node_new(&td__op_checkpoint, w->tensor, w->edges, a);
    if (!node)
        return TD_ERR_MEMORY;
    node->device = y->storage->device;
    node->n_out = 1;
    for (size_t i = 0; i < w->edges; i++)
        if (!w->tensor[i]) {
            node->edge[i].graph = w->graph[i];
            td__node_ref(td__graph_node(w->graph[i]));
        }
    int code = keep(node, w->in, r, user, ids);
    if (code) {
        td__node_unref(node);
        return code;
    }
    td_call *light = td__graph_node(td__graph_of(y));
    y->graph = (void *)(td__graph)node;
    td__node_unref(light);
    return 0;
}

static td_tensor *first_run(checkpoint_fn *fn, void *user, size_t user_size, td_tensor *const *inputs, size_t n)
{
    td__tape *tape = &td__tape_now;
    rerun r = { .outer = tape->rerun, .since = tape->seq };
    for (size_t i = 0; i < n; i++) {
        td__graph g = td__graph_of(inputs[i]);
        if (g && !td__graph_is_leaf(g) && td__graph_node(g)->seq > r.since)
            r.since = tape->seq = td__graph_node(g)->seq;    /* made by another thread                                     */
    }
    td__random before = td__random_now();
    td__tensor_ref(before.ids);
    checkpoint_attr a = { .fn = fn, .user = user_size ? NULL : user, .user_size = user_size, .inputs = (int)n, .calls = before.calls,
                          .step = before.step, .seed = before.seed, .autocast = tape->autocast };
    const void *site = td__site;
    tape->light = true;
    tape->rerun = &r;
    td_tensor *y = call_fn(fn, inputs, n, user);
    tape->rerun = r.outer;
    tape->light = false;
    td__site = site;
    td__graph g = td__graph_of(y);
    int code = 0;
    if (!y->poisoned && g && !td__graph_is_leaf(g) && td__graph_node(g)->seq > r.since) {
        td__random now = td__random_now();
        a.drawn = now.calls - before.calls;
        ways_out w = { .in = inputs, .n = n };
        td__plan plan;
        td__plan_begin(&plan);
        plan.since = r.since;
        plan.border = way_out;
        plan.user = &w;
        code = td__plan_make(&plan, g);
        td__plan_end(&plan);
        code = code ? code : replace_graph(y, &w, &r, &a, user, before.ids);
        td__free(w.tensor);
        td__free(w.graph);
    }
    td__tensor_unref(before.ids);
    td__free(r.answer);
    return code ? td__poison() : y;
}

static td_tensor *checkpoint(checkpoint_fn *fn, void *user, size_t user_size, td_tensor *const *inputs, size_t n)
{
    td__tape *tape = &td__tape_now;
    if (!fn || (n && !inputs) || (user_size && !user)) {
        td__fail(TD_ERR_ARGUMENT, "td_checkpoint: %s is NULL", !fn ? "the function" : n && !inputs ? "the list of inputs" : "user, with a size,");
        return td__poison();
    }
    if (n > TD_OP_MAX_INPUTS) {
        td__fail(TD_ERR_ARGUMENT, "td_checkpoint: %zu inputs, at most %d are possible", n, TD_OP_MAX_INPUTS);
        return td__poison();
    }
    for (size_t i = 0; i < n; i++) {
        if (inputs[i] && inputs[i]->poisoned)
            return inputs[i];
        if (!inputs[i]) {
            td__fail(TD_ERR_ARGUMENT, "td_checkpoint: input %zu is NULL", i);
            return td__poison();
        }
    }
    /* Within a first run the outer function's second run will come here again. */
    td_scope scope = td_scope_begin();
    td_tensor *y = tape->grad_off || tape->light ? call_fn(fn, inputs, n, user) : first_run(fn, user, user_size, inputs, n);
    if (td__scope_holds(&y->scoped))
        td__scope_escape(&y->scoped);
    td_scope_end(&scope);
    return y;
}

td_tensor *td_checkpoint(checkpoint_fn *fn, void *user, size_t user_size, td_tensor *const *inputs, size_t n)
{
    TD_ENTER();
    return checkpoint(fn, user, user_size, inputs, n);
}

/* ---- the second run ------------------------------------------------------------------------------------------------------------------------ */

bool td__checkpoint_collective(const td_call *node)
{
    return ((const checkpoint_attr *)node->attr)->collective;
}

int td__checkpoint_check(td_call *node)
{
    const checkpoint_attr *a = node->attr;
    char site[256], shape[128];
    for (int i = 0; i < a->edges && node->n_saved; i++) {
        td_tensor *x = leaf_at(node, i);
        if (!x || x->storage->version == versions_of(node)[i])
            continue;
        const char *name = td__leaf_name(x);
        return td__fail(TD_ERR_STATE, "td_backward: %s%s of shape %s was changed since td_checkpoint's first run, so a second run would "
                        "compute something else (td_checkpoint was called at %s)", *name ? "parameter " : "a leaf", name,
                        td__shape_text(x->shape, shape), td__site_text(node->site, site, sizeof site));
    }
    return 0;
}

static int differs(const td_call *node, const char *what)
{
    char site[256];
    return td__fail(TD_ERR_STATE, "td_backward: the function of td_checkpoint (called at %s) did something else in its second run: %s",
                    td__site_text(node->site, site, sizeof site), what);
}

/* In the first run the region kept one cast of each weight, and may have ended since: its node is in the graph, its values are made again. */
td_tensor *td__checkpoint_cast(td_tensor *x, td_dtype dtype)
{
    rerun *r = td__tape_now.rerun;
    while (!r->again)
        r = r->outer;
    td_call *from = NULL;
    int at = 0;
    for (; at < r->node->n_in && !from; at++) {
        td__graph g = r->node->edge[at].graph;
        td_call *c = g && !td__graph_is_leaf(g) ? td__graph_node(g) : NULL;
        if (c && c->shared && leaf_at(r->node, at) == x && *(const td_dtype *)c->attr == dtype)
            from = c;
    }
    if (!from)
        return td_cast(x, dtype);
    td_tensor **cast = &r->cast[at - 1];
    if (!*cast) {
        td_tensor *y = td__tensor_new(x->shape, dtype, x->storage->device);
        if (y->poisoned || td__copy(y, x, false)) {
            td__tensor_unref(y);
            return td__poison();
        }
        td__node_ref(from);
        y->graph = from;
        *cast = y;
    }
    return *cast;
}

typedef struct { td_call *node; bool *met; } borders;

/* A contribution of the second run that leaves it: the walk must know the receiver, and counts what it still expects. */
static int meet(void *user, td__graph g)
{
    borders *b = user;
    for (int i = 0; i < b->node->n_in; i++)
        if (b->node->edge[i].graph == g) {
            b->met[i] = true;
            if (td__graph_is_leaf(g))
                td__graph_leaf(g)->expected++;
            return 0;
        }
    if (!td__graph_is_leaf(g))
        return differs(b->node, "it reads the result of an operation that it did not read in the first");
    char text[384];
    const char *name = td__leaf_name(td__graph_leaf(g)->value);
    snprintf(text, sizeof text, "it uses %s%s, which it did not use in the first", *name ? "parameter " : "a leaf", name);
    return differs(b->node, text);
}

static int splice(td__plan *p, td_call *node, td__graph root, uint64_t since)
{
    borders b = { .node = node, .met = td__calloc((size_t)node->n_in + 1) };
    if (!b.met)
        return TD_ERR_MEMORY;
    td__plan part = { .walk = p->walk, .since = since, .border = meet, .user = &b };
    int code = td__plan_make(&part, root);
    /* The node's own edges promised one contribution to each leaf; the nodes that take its place have been counted now. */
    for (int i = 0; i < node->n_in && !code; i++) {
        td__graph g = node->edge[i].graph;
        if (!g || (td__graph_is_leaf(g) && !td__graph_leaf(g)->requires))
            continue;
        if (!b.met[i])
            code = differs(node, "its result no longer depends on a parameter or input that it depended on in the first");
        else if (td__graph_is_leaf(g))
            td__graph_leaf(g)->expected--;
    }
    td__plan_prepend(p, &part);
    td__free(b.met);
    return code;
}

static td_tensor *second_run(td_call *node, uint64_t *since)
{
    td__tape *tape = &td__tape_now;
    const checkpoint_attr *a = node->attr;
    td_tensor *in[TD_OP_MAX_INPUTS], *ids = node->saved[a->inputs + IDS].tensor;
    for (int i = 0; i < a->inputs; i++)
        in[i] = node->saved[i].tensor;
    uint8_t *memory = memory_of(node);
    rerun r = { .outer = NULL, .again = true, .node = node, .since = tape->seq, .answers = a->answers,
                .answer = memory + user_room(a->user_size) + (size_t)a->edges * sizeof(uint32_t) };
    *since = r.since;
    r.cast = td__calloc((size_t)(node->n_in + 1) * sizeof *r.cast);
    if (!r.cast)
        return td__poison();
    td__tensor_ref(ids);
    td__random before = td__random_put((td__random){ .ids = ids, .calls = a->calls, .step = a->step, .seed = a->seed, .own = true });
    rerun *outer = tape->rerun;
    const void *site = td__site;
    bool was_off = tape->grad_off, was_again = tape->again;
    td_dtype autocast = tape->autocast;
    tape->grad_off = false;
    tape->autocast = a->autocast;
    tape->again = true;
    tape->rerun = &r;
    td_tensor *y = call_fn(a->fn, in, (size_t)a->inputs, a->user_size ? memory : a->user);
    tape->rerun = outer;
    tape->again = was_again;
    tape->grad_off = was_off;
    tape->autocast = autocast;
    td__site = site;
    for (int i = 0; i < node->n_in; i++)
        td__tensor_unref(r.cast[i]);
    td__free(r.cast);
    td__random after = td__random_put(before);
    td__tensor_unref(after.ids);
    if (!y->poisoned && after.calls - a->calls != a->drawn)
        differs(node, "it drew random numbers another number of times");
    return y;
}

static int run_again(td__plan *p, td_call *node)
{
    const checkpoint_attr *a = node->attr;
    uint64_t since;
    char first[128], second[128], text[384];
    td_tensor *y = second_run(node, &since);
    if (td__pending())
        return td__pending();
    if (!td__shape_equal(y->shape, a->shape) || y->dtype != a->dtype) {
        snprintf(text, sizeof text, "it returned %s of shape %s, after %s of shape %s in the first", td_dtype_name(y->dtype),
                 td__shape_text(y->shape, second), td_dtype_name(a->dtype), td__shape_text(a->shape, first));
        return differs(node, text);
    }
    td__graph root = td__graph_of(y);
    if (root && (td__graph_is_leaf(root) || td__graph_node(root)->seq <= since))
        return differs(node, "it returned a tensor that it did not make");
    int code = splice(p, node, root, since);
    if (!code && root && node->grad[0]) {
        td__graph_node(root)->grad[td__graph_output(root)] = node->grad[0];
        node->grad[0] = NULL;
    }
    return code;
}

int td__checkpoint_expand(td__plan *p, bool retain)
{
    td_call *node = p->first;
    p->first = node->next;
    if (!p->first)
        p->last = NULL;
    if (node->grad[0])
        td__hooks_run(node->hooks, 0, node->grad[0]);
    td_scope scope = td__scope_begin_labelled(node->label);
    int code = run_again(p, node);
    td_scope_end(&scope);
    td__tensor_unref(node->grad[0]);
    node->grad[0] = NULL;
    if (!code && (!retain || node->once)) {
        node->freed = true;
        td__node_let_go(node);
    }
    td__node_unref(node);
    return code ? code : td__pending();
}
