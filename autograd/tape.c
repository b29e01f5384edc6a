/* autograd/tape.c: the life of nodes: recording, counting, freeing; gradients on and off.
 *
 * A graph is freed as its last output goes. That may release a chain of 100,000 nodes, each kept only by the next: nodes whose count falls
 * to zero are put on a list of this thread and freed one by one by the outermost call, so the stack stays flat.
 */
#include "tape.h"
#include <string.h>

__thread td__tape td__tape_now;
static atomic_int live_nodes;

int td__live_nodes(void)
{
    return atomic_load_explicit(&live_nodes, memory_order_relaxed);
}

/* ---- on and off ------------------------------------------------------------------------------------------------------------ */

bool td__grad_enabled(void)
{
    return !td__tape_now.grad_off;
}

td_grad_mode td_no_grad_begin(void)
{
    td_grad_mode mode = { td__tape_now.grad_off };
    td__tape_now.grad_off = true;
    return mode;
}

void td_no_grad_end(td_grad_mode *mode)
{
    if (mode)
        td__tape_now.grad_off = mode->was;
}

int td__not_in_backward(const char *who)
{
    if (!td__tape_now.walking)
        return 0;
    return td__fail(TD_ERR_STATE, "%s: called while td_backward runs (from a hook or a gradient function); call it after td_backward", who);
}

bool td_needs_grad(const td_tensor *x)
{
    if (!x || !x->graph)
        return false;
    td__graph g = td__graph_of(x);
    return !td__graph_is_leaf(g) || td__graph_leaf(g)->requires;
}

/* ---- nodes --------------------------------------------------------------------------------------------------------------------- */

static void edge_set(td_call *node, td__edge *e, const td_tensor *x)
{
    e->graph = 0;
    e->channels_last = td__keeps_channels_last(x);
    if (!x) {
        e->shape = TD_SCALAR;
        e->dtype = TD_F32;
        return;
    }
    e->shape = x->shape;
    e->dtype = x->dtype;
    if (!td_needs_grad(x))
        return;
    e->graph = td__graph_of(x);
    if (td__graph_is_leaf(e->graph)) {
        td__tensor_ref(td__graph_leaf(e->graph)->value);
        return;
    }
    td_call *from = td__graph_node(e->graph);
    td__node_ref(from);
    if (from->seq > node->seq)
        node->seq = from->seq;
}

/* The node lies in one block: record, edges, attributes, label. The label is copied since a module may go before its graph. */
td_call *td__node_new(const td_op *op, td_tensor *const *in, size_t n, const void *attr)
{
    td__tape *tape = &td__tape_now;
    const char *label = td__scope_label();
    size_t label_size = label ? strlen(label) + 1 : 0;
    size_t attr_size = (op->attr_size + 15) / 16 * 16;
    size_t head = (sizeof(td_call) + n * sizeof(td__edge) + 15) / 16 * 16;
    td_call *node = td__alloc(head + attr_size + label_size);
    if (!node)
        return NULL;
    memset(node, 0, sizeof *node);
    node->op = op;
    node->edge = (td__edge *)(node + 1);
    node->saved = node->saved_here;
    node->room_saved = SAVED_HERE;
    node->recording = true;
    node->light = tape->light;
    node->once = tape->again;
    node->refs = 1;
    node->seq = tape->seq;
    node->site = td__site;
    if (op->attr_size) {
        node->attr = (char *)node + head;
        memcpy((char *)node + head, attr, op->attr_size);
    }
    if (label)
        node->label = memcpy((char *)node + head + attr_size, label, label_size);
    node->n_in = (int)n;
    for (size_t i = 0; i < n; i++)
        edge_set(node, &node->edge[i], in[i]);
    tape->seq = ++node->seq;
    atomic_fetch_add_explicit(&live_nodes, 1, memory_order_relaxed);
    return node;
}

void td__node_ref(td_call *node)
{
    node->refs++;
}

void td__saved_drop(td_call *call)
{
    for (int i = 0; i < call->n_saved; i++)
        td__tensor_unref(call->saved[i].tensor);
    call->n_saved = 0;
    if (call->saved != call->saved_here)
        td__free(call->saved);
    call->saved = call->saved_here;
    call->room_saved = SAVED_HERE;
}

void td__node_let_go(td_call *node)
{
    td__saved_drop(node);
    for (int i = 0; i < node->n_in; i++) {
        td__graph g = node->edge[i].graph;
        node->edge[i].graph = 0;
        if (!g)
            continue;
        if (td__graph_is_leaf(g))
            td__tensor_unref(td__graph_leaf(g)->value);
        else
            td__node_unref(td__graph_node(g));
    }
}

void td__node_unref(td_call *node)
{
    td__tape *tape = &td__tape_now;
    if (--node->refs > 0)
        return;
    node->next = tape->dying;
    tape->dying = node;
    if (tape->draining)
        return;
    tape->draining = true;
    while (tape->dying) {
        node = tape->dying;
        tape->dying = node->next;
        td__node_let_go(node);
        for (int i = 0; i < TD_OP_MAX_OUTPUTS; i++)
            td__tensor_unref(node->grad[i]);
        td__hooks_free(node->hooks);
        td__free(node);
        atomic_fetch_sub_explicit(&live_nodes, 1, memory_order_relaxed);
    }
    tape->draining = false;
}

/* ---- what tensors ask of autograd ---------------------------------------------------------------------------------------------- */

static void graph_free(td_tensor *x)
{
    td__graph g = td__graph_of(x);
    x->graph = NULL;
    if (td__graph_is_leaf(g))
        td__leaf_free(td__graph_leaf(g));
    else
        td__node_unref(td__graph_node(g));
}

/* What an operation made is not written behind the graph's back. Leaves may be: td_assign and td_fill say that they leave no gradient,
 * and versions protect what the graph has saved. */
static int inplace_check(td_tensor *x)
{
    if (td__tape_now.grad_off || !td_needs_grad(x) || td__graph_is_leaf(td__graph_of(x)))
        return 0;
    char shape[128];
    return td__fail(TD_ERR_STATE, "the result of td_%s, shape %s, belongs to the graph and cannot be changed in place while gradients are on; "
                    "change a td_detach of it, or put TD_NO_GRAD(); before the change", td__graph_node(td__graph_of(x))->op->name,
                    td__shape_text(x->shape, shape));
}

__attribute__((constructor)) static void install(void)
{
    td__tensor_graph_free = graph_free;
    td__tensor_inplace_check = inplace_check;
}
