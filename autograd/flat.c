/* autograd/flat.c: flats and groups: where parameters and gradients lie, and what their weighted mean is.
 *
 * Making and rebuilding go in two halves: all flats' values are allocated, values move, and what they lay in goes back to the system; then the same with
 * gradients. So at its peak one of the two is there twice, not both. Without memory for the first half nothing changes; without it for the second
 * there is no group (values stay where they have come to lie, gradients where they were), or, of a group that is rebuilt, gradients are lost, with a
 * sentence. What a step's activations lay in goes first: nothing is live of them here. Handles stay what they were: a value's storage is relocated into its flat, a
 * gradient's handle is given the new storage. Leaves begin on 64 bytes, pads are zero and stay so (kernels that scale or sum a whole flat may run over them).
 *
 * Gradients in memory that ddp gave stay. Others exist from the first one that a backward brings until the step that consumes them, so that
 * a forward, which has no gradients, has their memory for its activations.
 */
#include "tape.h"
#include <pthread.h>

enum { ALIGN = 64 };

static td__group *attached;                    /* groups with ops, in the order of attaching */
static pthread_mutex_t attached_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- checks -------------------------------------------------------------------------------------------------------------------- */

int td__leaf_check_place(const td__leaf *leaf)
{
    const td_tensor *x = leaf->value;
    char shape[128];
    if (x->offset == 0 && td__strides_contiguous(x->shape, x->stride) &&
        (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype) == x->storage->bytes)
        return 0;
    return td__fail(TD_ERR_STATE, "the parameter of shape %s is a view of a larger or differently ordered tensor and cannot be moved "
                    "into a flat; make it a tensor of its own (td_from, td_zeros, then td_assign)", td__shape_text(x->shape, shape));
}

static int check_leaf(const td__leaf *leaf, const td__leaf *first)
{
    const td_tensor *x = leaf->value;
    if (x->dtype != first->value->dtype)
        return td__fail(TD_ERR_DTYPE, "parameters of %s and %s cannot share one flat", td_dtype_name(first->value->dtype),
                        td_dtype_name(x->dtype));
    if (!td__device_equal(x->storage->device, first->value->storage->device))
        return td__fail(TD_ERR_DEVICE, "the parameters of one optimizer group or bucket lie on different devices");
    return td__leaf_check_place(leaf);
}

/* Tied parameters are one tensor and listed once. Two tensors over one storage would need their values in two places. Looked for only where
 * a storage has several holders. */
static bool storage_shared(td__leaf *const *leaf, int n, int i)
{
    const td_storage *s = leaf[i]->value->storage;
    for (int k = 0; s->refs > 1 && k < n; k++)
        if (k != i && leaf[k]->value->storage == s)
            return true;
    return false;
}

static int check_leaves(td__leaf *const *leaf, const int *cut, int flats, const td__group *owner)
{
    char shape[128];
    int n = 0;
    for (int f = 0; f < flats; f++)
        for (int i = 0; i < cut[f]; i++, n++) {
            int code = check_leaf(leaf[n], leaf[n - i]);
            if (code)
                return code;
            const td__group *g = leaf[n]->group;
            if (owner ? g != owner : g && !g->implicit)
                return td__fail(TD_ERR_STATE, "the parameter of shape %s belongs to %s", td__shape_text(leaf[n]->value->shape, shape),
                                owner ? "no or another optimizer or td_ddp" : "another optimizer or td_ddp already");
            leaf[n]->listed = false;
        }
    for (int i = 0; i < n; i++) {
        if (leaf[i]->listed || storage_shared(leaf, n, i))
            return td__fail(TD_ERR_ARGUMENT, "the parameter of shape %s is listed twice, or shares its memory with another one",
                            td__shape_text(leaf[i]->value->shape, shape));
        leaf[i]->listed = true;
    }
    return 0;
}

/* ---- making flats ---------------------------------------------------------------------------------------------------------------- */

static int zero_storage(td_storage *s, td_dtype dtype, int64_t n)
{
    td_tensor *all = td__tensor_on(s, TD_SHAPE(n), dtype, 0);
    int code = all->poisoned ? TD_ERR_MEMORY : n ? td__fill(all, 0) : 0;
    td__tensor_unref(all);
    return code;
}

static void flat_free(td__flat *flat)
{
    if (!flat)
        return;
    td__storage_unref(flat->value);
    td__storage_unref(flat->grad);
    td__free(flat->leaf);
    td__free(flat);
}

static void flats_free(td__flat **flat, int flats)
{
    for (int f = 0; flat && f < flats; f++)
        flat_free(flat[f]);
    td__free(flat);
}

static int64_t padded(int64_t n, td_dtype dtype)
{
    int64_t unit = ALIGN / (int64_t)td_dtype_size(dtype);
    return (n + unit - 1) / unit * unit;
}

static int grad_new(td__flat *flat, const td__flat_memory *memory, void *user)
{
    flat->grad = memory && memory->grad ? memory->grad(user, flat->value->bytes) : td__storage_new(flat->value->device, flat->value->bytes);
    td__storage_label(flat->grad, TD_MEMORY_GRADIENTS);
    return flat->grad && zero_storage(flat->grad, flat->dtype, flat->n) == 0 ? 0 : td__pending() ? td__pending() : TD_ERR_MEMORY;
}

/* For those that it has, or where ddp gives it. */
static bool wants_grads(const td__flat *flat, const td__flat_memory *memory)
{
    bool now = memory && memory->grad;
    for (int i = 0; i < flat->leaves; i++)
        now |= flat->leaf[i]->has_grad;
    return now;
}

/* Without gradients. */
static td__flat *flat_new(td__group *g, int index, td__leaf *const *leaf, int leaves, const td__flat_memory *memory, void *user)
{
    td__flat *flat = td__calloc(sizeof *flat);
    if (!flat)
        return NULL;
    flat->group = g;
    flat->index = index;
    flat->dtype = leaves ? leaf[0]->value->dtype : TD_F32;
    flat->leaves = leaves;
    flat->leaf = td__alloc((size_t)leaves * sizeof *flat->leaf);
    for (int i = 0; flat->leaf && i < leaves; i++) {
        flat->leaf[i] = leaf[i];
        flat->n += padded(td__shape_numel(leaf[i]->value->shape), flat->dtype);
    }
    if (memory->parts > 1) {
        int64_t part = padded((flat->n + memory->parts - 1) / memory->parts, flat->dtype);
        flat->n = part * memory->parts;
        flat->own_low = part * memory->mine;
        flat->own_high = flat->own_low + part;
    } else {
        flat->own_high = flat->n;
    }
    td_device device = leaves ? leaf[0]->value->storage->device : td_device_default();
    size_t bytes = (size_t)flat->n * td_dtype_size(flat->dtype);
    if (flat->leaf)
        flat->value = memory->value ? memory->value(user, bytes) : td__storage_new_as(device, bytes, TD_MEMORY_PARAMETERS);
    td__storage_label(flat->value, TD_MEMORY_PARAMETERS);
    if (!flat->value || zero_storage(flat->value, flat->dtype, flat->n)) {
        flat_free(flat);
        return NULL;
    }
    return flat;
}

/* Memory for the gradients of a flat that has none now. Only pads are cleared: a gradient is written before it is read. */
static int need_grads(td__flat *flat)
{
    if (flat->grad)
        return 0;
    td_storage *grad = td__storage_new_as(flat->value->device, flat->value->bytes, TD_MEMORY_GRADIENTS);
    if (!grad)
        return td__pending() ? td__pending() : TD_ERR_MEMORY;
    int code = 0;
    for (int i = 0; i < flat->leaves && !code; i++) {
        int64_t n = td__shape_numel(flat->leaf[i]->value->shape), pad = padded(n, flat->dtype) - n;
        if (!pad)
            continue;
        td_tensor *at = td__tensor_on(grad, TD_SHAPE(pad), flat->dtype, flat->leaf[i]->offset + n);
        code = at->poisoned ? TD_ERR_MEMORY : td__fill(at, 0);
        td__tensor_unref(at);
    }
    if (code)
        td__storage_unref(grad);
    else
        flat->grad = grad;
    return code;
}

int td__flat_lend(td__leaf *leaf)
{
    int code = need_grads(leaf->flat);
    if (code)
        return code;
    td_tensor *g = td__tensor_on(leaf->flat->grad, leaf->value->shape, leaf->flat->dtype, leaf->offset);
    if (g->poisoned)
        return td__pending() ? td__pending() : TD_ERR_MEMORY;
    leaf->grad = g;
    return 0;
}

static void drop_grad(td__leaf *leaf)
{
    td__tensor_unref(leaf->grad);
    leaf->grad = NULL;
}

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

static td__flat **flats_new(td__group *g, td__leaf *const *leaf, const int *cut, int flats, const td__flat_memory *memory, void *user)
{
    static const td__flat_memory standard;
    td__flat **flat = td__calloc((size_t)flats * sizeof *flat);
    for (int f = 0, at = 0; flat && f < flats; at += cut[f++]) {
        flat[f] = flat_new(g, f, leaf + at, cut[f], memory ? memory : &standard, user);
        if (!flat[f]) {
            flats_free(flat, flats);
            return NULL;
        }
    }
    return flat;
}

/* ---- moving into flats ------------------------------------------------------------------------------------------------------------ */

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
            offset += padded(td__shape_numel(leaf->value->shape), flat[f]->dtype);
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
            offset += padded(td__shape_numel(leaf->value->shape), g->flat[f]->dtype);
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
    if (check_leaves(leaf, cut, flats, NULL))
        return NULL;
    td__group *g = td__calloc(sizeof *g);
    if (!g)
        return NULL;
    g->user = user;
    give_back(leaf, cut, flats, memory, user);
    g->flat = flats_new(g, leaf, cut, flats, memory, user);
    int code = g->flat ? move_values(g->flat, flats) : TD_ERR_MEMORY;
    give_back(leaf, cut, flats, memory, user);
    for (int f = 0; f < flats && !code; f++)
        code = wants_grads(g->flat[f], memory) ? grad_new(g->flat[f], memory, user) : 0;
    if (code) {
        flats_free(g->flat, flats);
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
    int code = check_leaves(leaf, cut, flats, g);
    if (code)
        return code;
    give_back(leaf, cut, flats, memory, user);
    td__flat **flat = flats_new(g, leaf, cut, flats, memory, user);
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
        code = grad_new(flat[f], memory, user);
    if (code)
        td__group_forget(g);
    else
        code = join(g, true);
    flats_free(old, olds);
    give_back(leaf, cut, flats, memory, user);
    return code;
}

/* ---- the end of groups and of leaves ------------------------------------------------------------------------------------------------ */

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
    flats_free(g->flat, g->flats);
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
