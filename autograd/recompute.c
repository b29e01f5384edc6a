/* autograd/recompute.c: a checkpoint's second run, in backward: the function is called again, and what it records goes on in its place.
 * checkpoint.c says what the whole is; here is the half that backward, hooks and autocast see.
 */
#include "ops_shared.h"
#include <stdio.h>
#include "checkpoint.h"

bool td_recomputing(void)
{
    return td__tape_now.again;
}

bool td__hook_known(td__graph g)
{
    const td__rerun *r = td__tape_now.rerun;
    while (r && !r->again)
        r = r->outer;
    return r && (td__graph_is_leaf(g) || td__graph_node(g)->seq <= r->since);
}

bool td__checkpoint_collective(const td_call *node)
{
    return ((const td__checkpoint_attr *)node->attr)->collective;
}

int td__checkpoint_check(td_call *node)
{
    const td__checkpoint_attr *a = node->attr;
    char site[256], shape[128];
    for (int i = 0; i < a->edges && node->n_saved; i++) {
        td_tensor *x = td__leaf_at(node, i);
        if (!x || x->storage->version == td__versions_of(node)[i])
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
td_tensor *td__checkpoint_cast(td_tensor *x, td_dtype dtype, bool last)
{
    td__rerun *r = td__tape_now.rerun;
    while (!r->again)
        r = r->outer;
    td_call *from = NULL;
    int at = 0;
    for (; at < r->node->n_in && !from; at++) {
        td__graph g = r->node->edge[at].graph;
        td_call *c = g && !td__graph_is_leaf(g) ? td__graph_node(g) : NULL;
        const td__cast_attr *a = c && c->shared ? c->attr : NULL;
        if (a && td__leaf_at(r->node, at) == x && a->to == dtype && a->channels_last == last)
            from = c;
    }
    if (!from)
        return last ? td__cast_channels_last(x, dtype) : td_cast(x, dtype);
    td_tensor **cast = &r->cast[at - 1];
    if (!*cast) {
        td_tensor *y = td__tensor_new_as(x->shape, dtype, x->storage->device, last);
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
    const td__checkpoint_attr *a = node->attr;
    td_tensor *in[TD_OP_MAX_INPUTS], *ids = node->saved[a->inputs + TD__IDS].tensor;
    for (int i = 0; i < a->inputs; i++)
        in[i] = node->saved[i].tensor;
    uint8_t *memory = td__memory_of(node);
    td__rerun r = { .outer = NULL, .again = true, .node = node, .since = tape->seq, .answers = a->answers,
                .answer = memory + td__user_room(a->user_size) + (size_t)a->edges * sizeof(uint32_t) };
    *since = r.since;
    r.cast = td__calloc((size_t)(node->n_in + 1) * sizeof *r.cast);
    if (!r.cast)
        return td__poison();
    td__tensor_ref(ids);
    td__random before = td__random_put((td__random){ .ids = ids, .calls = a->calls, .step = a->step, .seed = a->seed, .own = true });
    td__rerun *outer = tape->rerun;
    const void *site = td__site;
    bool was_off = tape->grad_off, was_again = tape->again;
    td_dtype autocast = tape->autocast;
    tape->grad_off = false;
    tape->autocast = a->autocast;
    tape->again = true;
    tape->rerun = &r;
    td_tensor *y = td__checkpoint_call(a->fn, in, (size_t)a->inputs, a->user_size ? memory : a->user);
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
    const td__checkpoint_attr *a = node->attr;
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
