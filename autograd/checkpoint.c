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
#include <string.h>
#include "checkpoint.h"

const td_op td__op_checkpoint = { .name = "checkpoint", .attr_size = sizeof(td__checkpoint_attr) };

/* ---- questions that are no tensors -------------------------------------------------------------------------------------------------- */

bool td__checkpoint_answer(bool now)
{
    bool value = now;
    for (td__rerun *r = td__tape_now.rerun; r; r = r->outer)
        if (r->again && r->at < r->answers)
            value = r->answer[r->at++];
    for (td__rerun *r = td__tape_now.rerun; r; r = r->outer) {
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
    for (td__rerun *r = td__tape_now.rerun; r; r = r->outer)
        r->collective |= (op->flags & TD__OP_COLLECTIVE) != 0;
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

static int keep_inputs(td_call *node, td_tensor *const *in, int n)
{
    td__saved *saved = td__calloc((size_t)(n + TD__MORE) * sizeof *saved);
    if (!saved)
        return TD_ERR_MEMORY;
    node->saved = saved;
    node->room_saved = n + TD__MORE;
    node->n_saved = n + TD__MORE;
    for (int i = 0; i < n; i++) {
        td__tensor_ref(in[i]);
        saved[i].tensor = in[i];
        saved[i].version = in[i]->storage->version;
        saved[i].inputs = 1u << i;
        saved[i].output = -1;
    }
    saved[n + TD__IDS].output = saved[n + TD__MEMORY].output = -1;
    return 0;
}

static int keep(td_call *node, td_tensor *const *in, const td__rerun *r, const void *user, td_tensor *ids)
{
    const td__checkpoint_attr *a = node->attr;
    int code = keep_inputs(node, in, a->inputs);
    if (code)
        return code;
    size_t head = td__user_room(a->user_size), versions = (size_t)a->edges * sizeof(uint32_t), bytes = head + versions + a->answers;
    td_tensor *memory = td__tensor_new(TD_SHAPE((int64_t)bytes), TD_U8, (td_device){ TD_CPU, 0 });
    if (memory->poisoned)
        return TD_ERR_MEMORY;
    node->saved[a->inputs + TD__MEMORY].tensor = memory;
    if (a->user_size)
        memcpy(td__memory_of(node), user, a->user_size);
    for (int i = 0; i < a->edges; i++)
        td__versions_of(node)[i] = td__leaf_at(node, i) ? td__leaf_at(node, i)->storage->version : 0;
    if (a->answers)
        memcpy(td__memory_of(node) + head + versions, r->answer, a->answers);
    if (a->drawn && ids) {
        td_tensor *copy = copy_ids(ids);
        if (copy->poisoned)
            return TD_ERR_MEMORY;
        node->saved[a->inputs + TD__IDS].tensor = copy;
    }
    return 0;
}

/* y hangs on the light graph; from now on on one node that stands for it. */
static int replace_graph(td_tensor *y, const ways_out *w, const td__rerun *r, td__checkpoint_attr *a, const void *user, td_tensor *ids)
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

static td_tensor *first_run(td__checkpoint_fn *fn, void *user, size_t user_size, td_tensor *const *inputs, size_t n)
{
    td__tape *tape = &td__tape_now;
    td__rerun r = { .outer = tape->rerun, .since = tape->seq };
    for (size_t i = 0; i < n; i++) {
        td__graph g = td__graph_of(inputs[i]);
        if (g && !td__graph_is_leaf(g) && td__graph_node(g)->seq > r.since)
            r.since = tape->seq = td__graph_node(g)->seq;    /* made by another thread                                     */
    }
    td__random before = td__random_now();
    td__tensor_ref(before.ids);
    td__checkpoint_attr a = { .fn = fn, .user = user_size ? NULL : user, .user_size = user_size, .inputs = (int)n, .calls = before.calls,
                          .step = before.step, .seed = before.seed, .autocast = tape->autocast };
    const void *site = td__site;
    tape->light = true;
    tape->rerun = &r;
    td_tensor *y = td__checkpoint_call(fn, inputs, n, user);
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

static td_tensor *checkpoint(td__checkpoint_fn *fn, void *user, size_t user_size, td_tensor *const *inputs, size_t n)
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
    td_tensor *y = tape->grad_off || tape->light ? td__checkpoint_call(fn, inputs, n, user) : first_run(fn, user, user_size, inputs, n);
    if (td__scope_holds(&y->scoped))
        td__scope_escape(&y->scoped);
    td_scope_end(&scope);
    return y;
}

td_tensor *td_checkpoint(td__checkpoint_fn *fn, void *user, size_t user_size, td_tensor *const *inputs, size_t n)
{
    TD_ENTER();
    if (td__recorded_here())
        td__record_refuse("td_checkpoint is called by the step: its function is called again by every backward, and a replay calls nothing of the program");
    return checkpoint(fn, user, user_size, inputs, n);
}
