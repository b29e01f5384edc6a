/* autograd/node_grad.c: one node of a backward: its complete gradients go through the hooks and the gradient function, straight into the
 * leaves' gradients or the producers' accumulators; what was saved is freed at once; a leaf that has all its contributions is ready.
 */
#include "capture.h"
#include <stdio.h>

int td__node_check(td_call *node)
{
    char site[256], which[32], shape[128];
    for (int i = 0; i < node->n_saved; i++) {
        td__saved *s = &node->saved[i];
        if ((!s->inputs && s->output < 0) || s->tensor->storage->version == s->version)
            continue;
        snprintf(which, sizeof which, "%s %d", s->inputs ? "input" : "output", s->inputs ? __builtin_ctz(s->inputs) : s->output);
        return td__fail(TD_ERR_STATE, "td_backward: td_%s saved its %s, shape %s, for the gradient, and it was changed in place since (the "
                        "operation was called at %s)", node->op->name, which, td__shape_text(s->tensor->shape, shape),
                        td__site_text(node->site, site, sizeof site));
    }
    return node->op == &td__op_checkpoint ? td__checkpoint_check(node) : 0;
}

/* Does input i's gradient come channels last? */
static bool last(const td_call *node, int i)
{
    return node->op->flags & TD__OP_FORMATS && node->edge[i].channels_last;
}

static td_tensor *new_like(td_call *node, int input, bool wide)
{
    return td__tensor_new_as(node->edge[input].shape, wide ? TD_F32 : node->edge[input].dtype, node->device, last(node, input));
}

static bool lies(const td_tensor *x, bool channels_last)
{
    return channels_last ? td__lies_channels_last(x) : td__strides_contiguous(x->shape, x->stride);
}

/* The incoming gradients in the order that the gradient function is promised. Others may have written them in another. */
static int put_in_order(td_call *node)
{
    for (int i = 0; i < node->n_out; i++) {
        td_tensor *g = node->grad[i];
        const bool as = node->op->flags & TD__OP_FORMATS && node->out_last >> i & 1;
        if (!g || lies(g, as))
            continue;
        td_tensor *made = td__tensor_new_as(g->shape, g->dtype, g->storage->device, as);
        int code = made->poisoned ? TD_ERR_MEMORY : td__copy(made, g, false);
        if (code) {
            td__tensor_unref(made);
            return code;
        }
        td__tensor_unref(g);
        node->grad[i] = made;
    }
    return 0;
}

/* Before a gradient is changed: memory that td_call_pass has let several inputs share, or that a hook kept, is left to the others. */
static int make_own(td_tensor **grad)
{
    td_tensor *g = *grad;
    if (g->refs == 1 && g->storage->refs == 1)
        return 0;
    td_tensor *own = td__tensor_new_as(g->shape, g->dtype, g->storage->device, td__channels_last(g));
    int code = own->poisoned ? TD_ERR_MEMORY : td__copy(own, g, false);
    if (code) {
        td__tensor_unref(own);
        return code;
    }
    td__tensor_unref(g);
    *grad = own;
    return 0;
}

/* May input i's accumulator be left to td_call_pass? Not where the gradient is summed to a smaller shape or arrives in f32 for 16 bits, nor
 * where two inputs share it. */
static bool passed(const td_call *node, int i)
{
    const td_tensor *g = node->grad[0];
    if (!(node->op->flags & TD__OP_PASSES) || !g || g->dtype != node->edge[i].dtype || td__half_grad(node) ||
        td__shape_numel(g->shape) != td__shape_numel(node->edge[i].shape))
        return false;
    for (int k = 0; k < node->n_in; k++)
        if (k != i && node->edge[k].graph == node->edge[i].graph)
            return false;
    return true;
}

/* May input i's gradient be written over the incoming one, which is needed no more? TANDEM_ANOMALY looks at both. */
static bool overwrites(const td_call *node, int i)
{
    const td_tensor *g = node->grad[0];
    return node->op->flags & TD__OP_OVERWRITES && i == 0 && g && !td__anomaly && g->refs == 1 && g->storage->refs == 1 && !g->storage->base &&
           g->dtype == node->edge[i].dtype && !td__half_grad(node) && td__shape_equal(g->shape, node->edge[i].shape) && lies(g, last(node, i));
}

/* May input i's gradient be written over input i itself, which this node alone still holds, and only until this function has run? In a captured step
 * the list holds it, too, and each replay makes it anew (capture_empty.c). */
static bool overwrites_input(td_call *node, int i, bool keeps)
{
    const td_tensor *x = node->n_saved ? node->saved[0].tensor : NULL;
    if (!(node->op->flags & TD__OP_OVERWRITES_INPUT) || i != 0 || keeps || td__anomaly || !x || !(node->saved[0].inputs & 1) || x->storage->base ||
        x->dtype != node->edge[i].dtype || td__half_grad(node) || !td__shape_equal(x->shape, node->edge[i].shape) || !lies(x, last(node, i)))
        return false;
    return x->refs == 1 && x->storage->refs == 1 ? !x->storage->release : node->captured && td__capture_overwrites(node);
}

/* Where input i's gradient goes, and whether something is there already. Two inputs that share a destination, functions that cannot
 * add, and those that work in f32 for 16 bits, write to a temporary. */
static int find_dest(td_call *node, td__dest *dest, int i, bool keeps)
{
    td__dest *d = &dest[i];
    td__graph g = node->edge[i].graph;
    *d = (td__dest){ 0 };
    if (!g)
        return 0;
    if (td__graph_is_leaf(g)) {
        td__leaf *leaf = td__graph_leaf(g);
        if (!leaf->requires)
            return 0;
        char shape[128];
        if (leaf->value->dtype != node->edge[i].dtype)
            return td__fail(TD_ERR_STATE, "td_backward: input %d of td_%s, shape %s, was %s in the forward and is %s now; run the forward again", i,
                            node->op->name, td__shape_text(leaf->value->shape, shape), td_dtype_name(node->edge[i].dtype),
                            td_dtype_name(leaf->value->dtype));
        int code = td__leaf_need_grad(leaf);
        if (code)
            return code;
        d->into = leaf->grad;
        d->add = leaf->has_grad;
    } else {
        td_call *from = td__graph_node(g);
        td_tensor **slot = &from->grad[td__graph_output(g)];
        d->add = *slot != NULL;
        const bool in_place = from->placed || (from->whole.high > 0 && from->whole.output == td__graph_output(g));
        int code = !*slot ? 0 : in_place ? td__grad_complete(from) : make_own(slot);
        if (code)
            return code;
        if (!*slot && node->op->flags & TD__OP_STRIDED_GRAD && (d->into = td__grad_place(g, node->edge[i].shape)))
            return d->into->poisoned ? TD_ERR_MEMORY : 0;
        if (!*slot && passed(node, i)) {
            d->later = true;
            d->into = td__poison();            /* says that it is wanted */
            return 0;
        }
        if (!*slot && overwrites(node, i)) {
            td__tensor_ref(node->grad[0]);
            d->into = *slot = node->grad[0];
            return 0;
        }
        if (!*slot && overwrites_input(node, i, keeps)) {
            td_tensor *x = node->saved[0].tensor, *over = x;
            if (x->refs == 1)
                td__tensor_ref(x);
            else                               /* the list's handle stays what it is: of gradients one reference says that they may be passed on */
                over = td__tensor_view(x, x->shape, x->stride, x->offset);
            if (over->poisoned)
                return TD_ERR_MEMORY;
            *slot = over;
        }
        if (!*slot) {
            td_tensor *made = new_like(node, i, false);
            if (made->poisoned)
                return TD_ERR_MEMORY;
            *slot = made;
        }
        d->into = *slot;
    }
    bool shared = false;
    for (int k = 0; k < i; k++)
        shared |= dest[k].into == d->into;
    d->add |= shared;
    bool wide = td__half_grad(node) && td__is_half(node->edge[i].dtype);
    if (wide || shared || !lies(d->into, last(node, i)) || (d->add && node->op->flags & TD_OP_NO_ADD)) {
        d->temp = new_like(node, i, wide);
        if (d->temp->poisoned)
            return TD_ERR_MEMORY;
    }
    return 0;
}

static int call_grad(td_call *node, td__dest *dest, bool keeps)
{
    td_grad_slot slot[TD_OP_MAX_INPUTS];
    td_tensor *seen[TD_OP_MAX_OUTPUTS];
    const bool half = td__half_grad(node);
    int code = put_in_order(node);
    if (code)
        return code;
    code = half ? td__half_grad_begin(node, seen) : 0;
    for (int i = 0; i < node->n_in && !code; i++) {
        code = find_dest(node, dest, i, keeps);
        slot[i] = dest[i].temp ? (td_grad_slot){ dest[i].temp, false } : (td_grad_slot){ dest[i].into, dest[i].add };
    }
    bool wary = td__anomaly && !code && td__anomaly_wanted();
    uint32_t watched = wary ? td__anomaly_before(node, dest) : 0;
    if (!code) {
        td_scope scope = td__scope_begin_labelled(node->label);
        node->dest = dest;
        node->seen = half ? seen : NULL;
        code = node->op->grad(node, half ? seen : node->grad, slot);
        node->dest = NULL;
        node->seen = NULL;
        if (code && !td__pending())
            td_call_error(node, code < 0 ? code : TD_ERR_INTERNAL, "the gradient failed with code %d and no sentence", code);
        td_scope_end(&scope);
    }
    for (int i = 0; i < node->n_in && !code; i++)
        if (dest[i].temp)
            code = td__copy(dest[i].into, dest[i].temp, dest[i].add);
    if (half)
        td__half_grad_end(node, seen);
    return wary && !code ? td__anomaly_backward(node, dest, watched) : code;
}

void td__leaf_done(td__leaf *leaf)
{
    if (--leaf->expected != 0)
        return;
    leaf->used = true;
    td__hooks_run(leaf->hooks, 0, leaf->grad);       /* a hook's error is found pending by who called                          */
    td__group *g = leaf->group;
    if (g && g->ops && g->ops->leaf_ready)
        g->ops->leaf_ready(leaf);
}

/* Its incoming gradients are needed no more, and what it saved neither, unless retained. */
static void spend(td_call *node, bool retain)
{
    for (int i = 0; i < node->n_out; i++) {
        td__tensor_unref(node->grad[i]);
        node->grad[i] = NULL;
    }
    if (!retain) {
        node->freed = true;
        td__saved_drop(node);
    }
}

static int node_placed(td_call *node, bool retain)
{
    retain &= !node->once;
    spend(node, retain);
    if (!retain && !node->captured)
        td__node_let_go(node);
    return td__pending();
}

int td__node_run(td_call *node, bool retain)
{
    td__dest dest[TD_OP_MAX_INPUTS];
    for (int i = 0; i < node->n_in; i++)
        dest[i] = (td__dest){ 0 };
    if (node->placed)
        return node_placed(node, retain);
    int code = td__grad_complete(node);
    for (int i = 0; i < node->n_out && node->hooks && !code; i++)
        if (node->grad[i] && !(code = make_own(&node->grad[i])))
            td__hooks_run(node->hooks, i, node->grad[i]);
    code = code ? code : td__node_check(node);
    retain &= !node->once;
    retain |= node->shared;
    const void *site = td__site;
    td__site = node->site;
    code = code ? code : call_grad(node, dest, retain);
    td__site = site;
    for (int i = 0; i < node->n_in; i++)
        td__tensor_unref(dest[i].temp);
    if (code)
        return code;
    spend(node, retain);
    for (int i = 0; i < node->n_in; i++)
        if (dest[i].into && td__graph_is_leaf(node->edge[i].graph))
            td__graph_leaf(node->edge[i].graph)->has_grad = true;
    for (int i = 0; i < node->n_in; i++)
        if (dest[i].into && td__graph_is_leaf(node->edge[i].graph))
            td__leaf_done(td__graph_leaf(node->edge[i].graph));
    if (!retain && !node->captured)
        td__node_let_go(node);
    return td__pending();
}
