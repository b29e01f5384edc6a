/* autograd/flat.c: flats: one piece of memory for the values of many parameters, another for their gradients.
 *
 * Leaves begin on 64 bytes, pads are zero and stay so (kernels that scale or sum a whole flat may run over them). Nothing moves here: group.c takes
 * leaves into flats. Gradients in memory that ddp gave stay. Others exist from the first one that a backward brings until the step that consumes
 * them, so that a forward, which has no gradients, has their memory for its activations.
 */
#include "flat.h"

enum { ALIGN = 64 };

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

int td__leaves_check(td__leaf *const *leaf, const int *cut, int flats, const td__group *owner)
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

void td__flats_free(td__flat **flat, int flats)
{
    for (int f = 0; flat && f < flats; f++)
        flat_free(flat[f]);
    td__free(flat);
}

int64_t td__flat_padded(int64_t n, td_dtype dtype)
{
    int64_t unit = ALIGN / (int64_t)td_dtype_size(dtype);
    return (n + unit - 1) / unit * unit;
}

int td__flat_grads_new(td__flat *flat, const td__flat_memory *memory, void *user)
{
    flat->grad = memory && memory->grad ? memory->grad(user, flat->value->bytes) : td__storage_new(flat->value->device, flat->value->bytes);
    td__storage_label(flat->grad, TD_MEMORY_GRADIENTS);
    return flat->grad && zero_storage(flat->grad, flat->dtype, flat->n) == 0 ? 0 : td__pending() ? td__pending() : TD_ERR_MEMORY;
}

/* For those that it has, or where ddp gives it. */
bool td__flat_wants_grads(const td__flat *flat, const td__flat_memory *memory)
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
        flat->n += td__flat_padded(td__shape_numel(leaf[i]->value->shape), flat->dtype);
    }
    if (memory->parts > 1) {
        int64_t part = td__flat_padded((flat->n + memory->parts - 1) / memory->parts, flat->dtype);
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
        int64_t n = td__shape_numel(flat->leaf[i]->value->shape), pad = td__flat_padded(n, flat->dtype) - n;
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

td__flat **td__flats_new(td__group *g, td__leaf *const *leaf, const int *cut, int flats, const td__flat_memory *memory, void *user)
{
    static const td__flat_memory standard;
    td__flat **flat = td__calloc((size_t)flats * sizeof *flat);
    for (int f = 0, at = 0; flat && f < flats; at += cut[f++]) {
        flat[f] = flat_new(g, f, leaf + at, cut[f], memory ? memory : &standard, user);
        if (!flat[f]) {
            td__flats_free(flat, flats);
            return NULL;
        }
    }
    return flat;
}
