/* autograd/group.c: groups of flats: how parameters move into them, and what becomes of gradients when a group or a leaf ends.
 *
 * Making and rebuilding go in two halves: all flats' values are allocated, values move, and what they lay in goes back to the system; then the same with
 * gradients. So at its peak one of the two is there twice, not both. Without memory for the first half nothing changes; without it for the second
 * there is no group (values stay where they have come to lie, gradients where they were), or, of a group that is rebuilt, gradients are lost, with a
 * sentence. What a step's activations lay in goes first: nothing is live of them here. Handles stay what they were: a value's storage is relocated into
 * its flat, a gradient's handle is given the new storage.
 */
#include "flat.h"
#include <pthread.h>

static td__group *attached;                    /* groups with ops, in the order of attaching */
static pthread_mutex_t attached_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- moving into flats ------------------------------------------------------------------------------------------------------------ */

static void drop_grad(td__leaf *leaf)
{
    td__tensor_unref(leaf->grad);
    leaf->grad = NULL;
}

static int move_grad(td__leaf *leaf, td__flat *flat, int64_t offset)
{
    td_tensor *there = flat->grad ? td__tensor_on(flat->grad, leaf->value->shape, flat->dtype, offset) : NULL;
    if (there && there->poisoned)
        return TD_ERR_MEMORY;
    int code = there && leaf->grad && leaf->has_grad ? td__copy(there, leaf->grad, false) : 0;
    if (code) {
        td__tensor_unref(there);
        return code;
    }
    if (!there) {
        drop_grad(leaf);
    } else if (leaf->grad) {
        td_storage *old = leaf->grad->storage;
        leaf->grad->storage = there->storage;
        leaf->grad->offset = there->offset;
        there->storage = old;
        td__tensor_unref(there);
    } else {
        leaf->grad = there;
    }
    return 0;
}

static int move_values(td__flat **flat, int flats)
{
    for (int f = 0; f < flats; f++) {
        int64_t offset = 0;
        for (int i = 0; i < flat[f]->leaves; i++) {
            td__leaf *leaf = flat[f]->leaf[i];
            int code = td__storage_relocate(leaf->value->storage, flat[f]->value, (size_t)offset * td_dtype_size(flat[f]->dtype));
            if (code)
                return code;
            offset += td__flat_padded(td__shape_numel(leaf->value->shape), flat[f]->dtype);
        }
    }
    return 0;
}

/* Where values lie already. grads: with their gradients */
static int join(td__group *g, bool grads)
{
    for (int f = 0; f < g->flats; f++) {
        int64_t offset = 0;
        for (int i = 0; i < g->flat[f]->leaves; i++) {
            td__leaf *leaf = g->flat[f]->leaf[i];
            int code = grads ? move_grad(leaf, g->flat[f], offset) : 0;
            if (code)
                return code;
            leaf->flat = g->flat[f];
            leaf->offset = offset;
            leaf->group = g;
            offset += td__flat_padded(td__shape_numel(leaf->value->shape), g->flat[f]->dtype);
        }
    }
    return 0;
}

static int total(const int *cut, int flats)
{
    int n = 0;
    for (int f = 0; f < flats; f++)
        n += cut[f];
    return n;
}

/* Gradients that leaves bring along keep their mean: the group takes the weight of the first, the others are brought to it. */
static int adopt(td__group *g, td__leaf *leaf)
{
    td__group *old = leaf->group;
    if (!old)
        return 0;
    int code = 0;
    if (leaf->has_grad) {
        if (g->weight == 0) {
            g->unit = old->unit;
            g->weight = old->weight;
        }
        double was = td__group_scale(old), now = td__group_scale(g);
        code = was != now && now != 0 ? td__scale(leaf->grad, was / now) : 0;
    }
    leaf->group = NULL;
    td__free(old);
    return code;
}

/* What is free: before values move, what making the model or a step's activations have left; afterwards, what the values lay in: as much as the
 * model. A GPU's pool is left alone: giving back waits for the device. */
static void give_back(td__leaf *const *leaf, const int *cut, int flats, const td__flat_memory *memory, void *user)
{
    if (total(cut, flats) > 0 && leaf[0]->value->storage->device.kind == TD_CPU)
        td_memory_trim();
    if (memory && memory->give_back)
        memory->give_back(user);
}

td__group *td__group_new(td__leaf *const *leaf, const int *cut, int flats, const td__flat_memory *memory, void *user)
{
    if (td__leaves_check(leaf, cut, flats, NULL))
        return NULL;
    td__group *g = td__calloc(sizeof *g);
    if (!g)
        return NULL;
    g->user = user;
    give_back(leaf, cut, flats, memory, user);
    g->flat = td__flats_new(g, leaf, cut, flats, memory, user);
    int code = g->flat ? move_values(g->flat, flats) : TD_ERR_MEMORY;
    give_back(leaf, cut, flats, memory, user);
    for (int f = 0; f < flats && !code; f++)
        code = td__flat_wants_grads(g->flat[f], memory) ? td__flat_grads_new(g->flat[f], memory, user) : 0;
    if (code) {
        td__flats_free(g->flat, flats);
        td__free(g);
        return NULL;
    }
    const int n = total(cut, flats);
    for (int i = 0; i < n && !code; i++)
        code = adopt(g, leaf[i]);
    g->flats = flats;
    g->layout = 1;
    code = code ? code : join(g, true);
    if (code) {
        td__group_free(g);
        return NULL;
    }
    give_back(leaf, cut, flats, memory, user);
    return g;
}

int td__group_rebuild(td__group *g, td__leaf *const *leaf, const int *cut, int flats, const td__flat_memory *memory, void *user)
{
    int n = 0;
    for (int f = 0; f < g->flats; f++)
        n += g->flat[f]->leaves;
    if (n != total(cut, flats))
        return td__fail(TD_ERR_INTERNAL, "a group of %d parameters cannot be rebuilt with %d", n, total(cut, flats));
    int code = td__leaves_check(leaf, cut, flats, g);
    if (code)
        return code;
    give_back(leaf, cut, flats, memory, user);
    td__flat **flat = td__flats_new(g, leaf, cut, flats, memory, user);
    if (!flat)
        return td__pending() ? td__pending() : TD_ERR_MEMORY;
    code = move_values(flat, flats);
    td__flat **old = g->flat;
    int olds = g->flats;
    g->flat = flat;
    g->flats = flats;
    g->layout++;
    bool grads = memory && memory->grad;
    for (int f = 0; f < olds; f++) {
        grads |= old[f]->grad != NULL;
        td__storage_unref(old[f]->value);
        old[f]->value = NULL;
    }
    code = code ? code : join(g, false);
    give_back(leaf, cut, flats, memory, user);
    for (int f = 0; f < flats && grads && !code; f++)
        code = td__flat_grads_new(flat[f], memory, user);
    if (code)
        td__group_forget(g);
    else
        code = join(g, true);
    td__flats_free(old, olds);
    give_back(leaf, cut, flats, memory, user);
    return code;
}

/* ---- the end of groups and of leaves ------------------------------------------------------------------------------------------------ */

void td__group_give_back(td__group *g)
{
    if (g->ops)
        return;
    if (g->implicit)
        drop_grad(g->only);
    for (int f = 0; f < g->flats; f++) {
        for (int i = 0; i < g->flat[f]->leaves; i++)
            drop_grad(g->flat[f]->leaf[i]);
        td__storage_unref(g->flat[f]->grad);
        g->flat[f]->grad = NULL;
    }
}

static td__group *implicit_new(td__leaf *leaf)
{
    td__group *g = td__calloc(sizeof *g);
    if (!g)
        return NULL;
    g->implicit = true;
    g->only = leaf;
    leaf->group = g;
    leaf->flat = NULL;
    leaf->offset = 0;
    return g;
}

td__group *td__group_of(td__leaf *leaf)
{
    return leaf->group ? leaf->group : implicit_new(leaf);
}

/* A gradient that is left keeps its weight, in a group of its own. */
static void release_leaf(td__leaf *leaf, const td__group *g)
{
    leaf->group = NULL;
    leaf->flat = NULL;
    leaf->offset = 0;
    if (!leaf->has_grad)
        return;
    td__group *own = implicit_new(leaf);
    if (own) {
        own->unit = g->unit;
        own->weight = g->weight;
    }
}

void td__group_free(td__group *g)
{
    if (!g)
        return;
    td__group_attach(g, NULL);
    if (g->implicit) {
        g->only->group = NULL;
        g->only->has_grad = g->only->used = false;
        td__free(g);
        return;
    }
    for (int f = 0; f < g->flats; f++)
        for (int i = 0; i < g->flat[f]->leaves; i++)
            if (g->flat[f]->leaf[i]->group == g)
                release_leaf(g->flat[f]->leaf[i], g);
    td__flats_free(g->flat, g->flats);
    td__free(g);
}

void td__group_drop_leaf(td__leaf *leaf)
{
    td__group *g = leaf->group;
    if (!g)
        return;
    if (g->implicit) {
        td__free(g);
        leaf->group = NULL;
        return;
    }
    if (g->ops && g->ops->leaf_gone)
        g->ops->leaf_gone(leaf);
    td__flat *flat = leaf->flat;
    int kept = 0;
    for (int i = 0; i < flat->leaves; i++)
        if (flat->leaf[i] != leaf)
            flat->leaf[kept++] = flat->leaf[i];
    flat->leaves = kept;
    g->layout++;
    leaf->group = NULL;
    leaf->flat = NULL;
}

/* ---- who is told of backwards ---------------------------------------------------------------------------------------------------------- */

void td__group_attach(td__group *g, const td__group_ops *ops)
{
    pthread_mutex_lock(&attached_lock);
    if (ops && !g->ops) {
        td__group **at = &attached, *last = NULL;
        for (; *at; at = &(*at)->next)
            last = *at;
        *at = g;
        g->prev = last;
        g->next = NULL;
    } else if (!ops && g->ops) {
        if (g->prev)
            g->prev->next = g->next;
        else
            attached = g->next;
        if (g->next)
            g->next->prev = g->prev;
        g->next = g->prev = NULL;
    }
    g->ops = ops;
    pthread_mutex_unlock(&attached_lock);
}

td__group *td__groups_attached(void)
{
    pthread_mutex_lock(&attached_lock);
    td__group *first = attached;
    pthread_mutex_unlock(&attached_lock);
    return first;
}
