/* autograd/plan.c: what a backward will do, known before it does anything: which nodes, in which order, which leaves, which groups.
 *
 * Sequence numbers grow along the graph, so taking the largest of the nodes seen and not yet taken, again and again, lists them with every
 * consumer before its producers. The nodes waiting form a heap: of one entry in a chain, of some dozens in a wide network.
 */
#include "plan.h"

static _Atomic uint64_t walks;

/* ---- heap of nodes, largest sequence number on top ------------------------------------------------------------------------------ */

static int heap_push(td__plan *p, td_call *node)
{
    if (p->heaped == p->room) {
        size_t room = p->room ? 2 * p->room : 32;
        td_call **heap = td__grow(p->heap, p->room * sizeof *heap, room * sizeof *heap);
        if (!heap)
            return TD_ERR_MEMORY;
        p->heap = heap;
        p->room = room;
    }
    size_t i = p->heaped++;
    for (; i > 0 && p->heap[(i - 1) / 2]->seq < node->seq; i = (i - 1) / 2)
        p->heap[i] = p->heap[(i - 1) / 2];
    p->heap[i] = node;
    return 0;
}

static td_call *heap_pop(td__plan *p)
{
    td_call *top = p->heap[0], *last = p->heap[--p->heaped];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < p->heaped; i = child) {
        if (child + 1 < p->heaped && p->heap[child + 1]->seq > p->heap[child]->seq)
            child++;
        if (p->heap[child]->seq <= last->seq)
            break;
        p->heap[i] = p->heap[child];
    }
    p->heap[i] = last;
    return top;
}

/* ---- reaching -------------------------------------------------------------------------------------------------------------------- */

static int reach_group(td__plan *p, td__leaf *leaf)
{
    td__group *g = td__group_of(leaf);
    if (!g)
        return TD_ERR_MEMORY;
    if (g->walk == p->walk)
        return 0;
    if (p->groups == p->group_room) {
        size_t room = p->group_room ? 2 * p->group_room : 8;
        td__group **group = td__grow(p->group, p->group_room * sizeof *group, room * sizeof *group);
        if (!group)
            return TD_ERR_MEMORY;
        p->group = group;
        p->group_room = room;
    }
    g->walk = p->walk;
    p->group[p->groups++] = g;
    return 0;
}

int td__plan_leaf(td__plan *p, td__leaf *leaf, int expected)
{
    td__tensor_ref(leaf->value);
    leaf->walk = p->walk;
    leaf->expected = expected;
    leaf->next = NULL;
    *(p->last_leaf ? &p->last_leaf->next : &p->leaf) = leaf;
    p->last_leaf = leaf;
    return reach_group(p, leaf);
}

void td__plan_append(td__plan *p, td_call *node)
{
    td__node_ref(node);
    node->walk = p->walk;
    node->next = NULL;
    *(p->last ? &p->last->next : &p->first) = node;
    p->last = node;
}

static int reach_leaf(td__plan *p, td__leaf *leaf)
{
    if (!leaf->requires)
        return 0;
    int code = leaf->walk != p->walk ? td__plan_leaf(p, leaf, 0) : 0;
    leaf->expected += !code;
    return code;
}

static int reach_node(td__plan *p, td_call *node)
{
    if (node->walk == p->walk)
        return 0;
    char site[256];
    if (node->light && !p->border)
        return td__fail(TD_ERR_STATE, "td_backward: a result of td_%s was made inside td_checkpoint and left it by another way than as its "
                        "result, so no gradient can flow through it (%s)", node->op->name, td__site_text(node->site, site, sizeof site));
    if (node->freed)
        return td__fail(TD_ERR_STATE, "td_backward: the graph was freed by an earlier td_backward through it (td_%s, %s); the earlier one "
                        "needs .retain_graph = true (td_backward_with)", node->op->name, td__site_text(node->site, site, sizeof site));
    int code = heap_push(p, node);
    if (!code) {
        node->walk = p->walk;
        td__node_ref(node);
    }
    return code;
}

static int reach(td__plan *p, td__graph g)
{
    if (p->border && (td__graph_is_leaf(g) || td__graph_node(g)->seq <= p->since || td__graph_node(g)->shared))
        return p->border(p->user, g);
    return td__graph_is_leaf(g) ? reach_leaf(p, td__graph_leaf(g)) : reach_node(p, td__graph_node(g));
}

int td__plan_make(td__plan *p, td__graph root)
{
    int code = root ? reach(p, root) : 0;
    while (!code && p->heaped) {
        td_call *node = heap_pop(p);
        node->next = NULL;
        *(p->last ? &p->last->next : &p->first) = node;
        p->last = node;
        for (int i = 0; i < node->n_in && !code; i++)
            if (node->edge[i].graph)
                code = reach(p, node->edge[i].graph);
    }
    return code;
}

void td__plan_begin(td__plan *p)
{
    *p = (td__plan){ .walk = 1 + atomic_fetch_add_explicit(&walks, 1, memory_order_relaxed) };
}

void td__plan_prepend(td__plan *p, td__plan *part)
{
    if (part->last) {
        part->last->next = p->first;
        p->first = part->first;
        if (!p->last)
            p->last = part->last;
    }
    part->first = part->last = NULL;
    td__plan_end(part);
}

void td__plan_drop_first(td__plan *p)
{
    td_call *node = p->first;
    p->first = node->next;
    if (!p->first)
        p->last = NULL;
    for (int i = 0; i < node->n_out; i++) {
        td__tensor_unref(node->grad[i]);
        node->grad[i] = NULL;
    }
    node->placed = false;
    node->whole = (td__whole_grad){ 0 };
    td__node_unref(node);
}

void td__plan_end(td__plan *p)
{
    while (p->first)
        td__plan_drop_first(p);
    for (size_t i = 0; i < p->heaped; i++)
        td__node_unref(p->heap[i]);
    for (td__leaf *leaf = p->leaf, *next; leaf; leaf = next) {
        next = leaf->next;
        leaf->expected = 0;
        td__tensor_unref(leaf->value);
    }
    td__free(p->heap);
    td__free(p->group);
}
