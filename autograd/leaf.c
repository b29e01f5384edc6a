/* autograd/leaf.c: leaves: tensors that collect a gradient.
 *
 * A leaf's record hangs on its tensor and dies with it. Its gradient is made when a backward first reaches it, in the flat that a group gave
 * it or in memory of its own, and given back by the step that consumes it. `has_grad` says whether the gradient holds anything: forgetting gradients touches no memory.
 */
#include "tape.h"

static const char *no_name(const td_tensor *x)
{
    (void)x;
    return "";
}

const char *(*td__leaf_name)(const td_tensor *x) = no_name;

td__leaf *td__leaf_of(const td_tensor *x)
{
    if (!x || !x->graph || !td__graph_is_leaf(td__graph_of(x)))
        return NULL;
    return td__graph_leaf(td__graph_of(x));
}

static td__leaf *leaf_new(td_tensor *x)
{
    td__leaf *leaf = td__calloc(sizeof *leaf);
    if (!leaf)
        return NULL;
    leaf->value = x;
    td__storage_label(x->storage, TD_MEMORY_PARAMETERS);
    x->graph = (void *)((td__graph)leaf | GRAPH_LEAF);
    return leaf;
}

void td__leaf_free(td__leaf *leaf)
{
    td__group_drop_leaf(leaf);
    td__tensor_unref(leaf->grad);
    td__hooks_free(leaf->hooks);
    td__free(leaf);
}

int td__leaf_need_grad(td__leaf *leaf)
{
    if (leaf->grad)
        return 0;
    if (leaf->flat)
        return td__flat_lend(leaf);
    td_tensor *g = td__tensor_new(leaf->value->shape, leaf->value->dtype, leaf->value->storage->device);
    if (g->poisoned)
        return td__pending() ? td__pending() : TD_ERR_MEMORY;
    td__storage_label(g->storage, TD_MEMORY_GRADIENTS);
    leaf->grad = g;
    return 0;
}

int td__leaf_zero(td__leaf *leaf)
{
    int code = td__leaf_need_grad(leaf);
    if (!code && !leaf->has_grad)
        code = td__fill(leaf->grad, 0);
    leaf->has_grad |= !code;
    return code;
}

/* ---- public ------------------------------------------------------------------------------------------------------------------- */

static int check_list(const char *who, td_tensors list)
{
    return list.n && !list.list ? td__fail(TD_ERR_ARGUMENT, "%s: the list of %zu tensors is NULL", who, list.n) : 0;
}

static int check_leaf(const char *who, td_tensors list, size_t i)
{
    td_tensor *x = list.list[i];
    int code = td__tensor_check(who, x);
    char shape[128];
    if (!code && x->graph && !td__leaf_of(x))
        return td__fail(TD_ERR_STATE, "%s: tensor %zu, shape %s, is the result of td_%s and no leaf; td_detach makes one", who, i,
                        td__shape_text(x->shape, shape), td__graph_node(td__graph_of(x))->op->name);
    return code;
}

void td_requires_grad(td_tensors leaves, bool on)
{
    TD_ENTER();
    char shape[128];
    if (td__not_in_backward("td_requires_grad") || check_list("td_requires_grad", leaves))
        return;
    for (size_t i = 0; i < leaves.n; i++) {
        if (leaves.list[i] && leaves.list[i]->poisoned)
            continue;
        if (check_leaf("td_requires_grad", leaves, i))
            return;
        td_tensor *x = leaves.list[i];
        td__leaf *leaf = td__leaf_of(x);
        if (on && !td__is_float(x->dtype) && !td__is_half(x->dtype)) {
            td__fail(TD_ERR_DTYPE, "td_requires_grad: tensor %zu, shape %s, is %s; parameters are f32, f64, f16 or bf16", i,
                     td__shape_text(x->shape, shape), td_dtype_name(x->dtype));
            return;
        }
        if (!leaf && on)
            leaf = leaf_new(x);
        if (leaf)
            leaf->requires = on;
    }
}

td_tensor *td_grad(td_tensor *x)
{
    TD_ENTER();
    if (td__recorded_here())
        td__record_refuse("td_grad is called by the step: gradients live from a backward to the optimizer's step, at another place in each replay; "
                          "td_clip_grad_norm looks at them in place");
    td__leaf *leaf = td__leaf_of(x);
    if (!leaf)
        return NULL;
    if (td__tape_now.walking) {
        td__fail(TD_ERR_STATE, "td_grad: called while td_backward runs; a hook gets the gradient as its argument");
        return NULL;
    }
    if (leaf->group && td__group_finalise(leaf->group))
        return NULL;
    if (leaf->group && leaf->group->ops && leaf->group->ops->whole && leaf->group->ops->whole(leaf->group))
        return NULL;
    return leaf->has_grad ? leaf->grad : NULL;
}

/* A group of which nothing is left begins anew, weights included; else the weights stay, for the gradients that do. */
static void forget(td__leaf *leaf)
{
    td__group *g = leaf->group;
    if (g && g->ops && g->ops->wait && leaf->flat)
        g->ops->wait(leaf->flat);
    leaf->has_grad = leaf->used = false;
    if (!g)
        return;
    for (int f = 0; f < g->flats; f++)
        for (int i = 0; i < g->flat[f]->leaves; i++)
            if (g->flat[f]->leaf[i]->has_grad)
                return;
    td__group_forget(g);
    if (g->ops && g->ops->step_end)
        g->ops->step_end(g);
}

typedef struct { td_tensor **list; size_t n; } forgotten;

static int zero_again(void *state)
{
    forgotten *f = state;
    td_zero_grad((td_tensors){ f->list, f->n });
    return td__pending();
}

static void zero_drop(void *state)
{
    forgotten *f = state;
    for (size_t i = 0; i < f->n; i++)
        td__tensor_unref(f->list[i]);
    td__free(f->list);
}

static void note_zero(td_tensors leaves)
{
    static const td__record_kind kind = { "td_zero_grad", sizeof(forgotten), zero_again, NULL, zero_drop, NULL };
    forgotten *f = td__record_begin(&kind);
    if (f && (f->list = td__calloc((leaves.n + 1) * sizeof *f->list)))
        for (; f->n < leaves.n; f->n++) {
            f->list[f->n] = leaves.list[f->n];
            td__tensor_ref(f->list[f->n]);
        }
    td__record_end();
}

void td_zero_grad(td_tensors leaves)
{
    TD_ENTER();
    if (td__not_in_backward("td_zero_grad") || check_list("td_zero_grad", leaves))
        return;
    for (size_t i = 0; i < leaves.n; i++) {
        if (leaves.list[i] && leaves.list[i]->poisoned)
            continue;
        if (check_leaf("td_zero_grad", leaves, i))
            return;
        td__leaf *leaf = td__leaf_of(leaves.list[i]);
        if (leaf)
            forget(leaf);
    }
    if (td__recording_now)
        note_zero(leaves);
}
