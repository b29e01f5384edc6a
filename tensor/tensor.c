/* tensor/tensor.c: the handle: made, viewed, counted, owned, freed.
 *
 * A handle lives while someone holds a reference: a scope (one), td_keep (one each), graph nodes and modules. The poisoned
 * tensor is one static record that every reference operation leaves alone. Freeing a chain is iterative: storages loop here, graph
 * nodes in autograd (td__tensor_graph_free).
 */
#include "tensor_impl.h"
#include <string.h>

void (*td__tensor_graph_free)(td_tensor *x);
int (*td__tensor_inplace_check)(td_tensor *x);

static void drop(td__scoped *object)
{
    td__tensor_unref((td_tensor *)object);
}

static td_tensor poison = { .scoped = { .drop = drop }, .refs = 1, .dtype = TD_F32, .poisoned = true };

td_tensor *td__poison(void)
{
    return &poison;
}

int td__tensor_check(const char *who, const td_tensor *x)
{
    if (__builtin_expect(x && !x->poisoned, 1))
        return 0;
    if (!x)
        return td__fail(TD_ERR_ARGUMENT, "%s: the tensor is NULL", who);
    return td__fail(TD_ERR_STATE, "%s: the tensor is the poisoned result of an earlier error", who);
}

int td__kernel_missing(const char *who, const td_tensor *x, const char *row)
{
    char device[24];
    return td__fail(TD_ERR_UNSUPPORTED, "%s: the kernel \"%s\" does not exist on %s", who, row,
                    td__device_text(x->storage->device, device));
}

/* Takes over the caller's reference to s, also on failure. */
static td_tensor *tensor_make(td_storage *s, td_shape shape, td_dtype dtype, int64_t offset)
{
    td_tensor *x = td__alloc(sizeof *x);
    if (!x) {
        td__storage_unref(s);
        return &poison;
    }
    x->scoped = (td__scoped){ .drop = drop };
    atomic_init(&x->refs, 1);
    x->kept = 0;
    x->dtype = dtype;
    x->shape = shape;
    x->offset = offset;
    x->storage = s;
    x->graph = NULL;
    x->divisor = NULL;
    x->poisoned = false;
    x->number_known = false;                   /* the handle may have been another tensor's                                     */
    x->owner = NULL;
    td__count_tensor(1);
    return x;
}

td_tensor *td__tensor_new(td_shape shape, td_dtype dtype, td_device device)
{
    td_storage *s = td__storage_new(device, (size_t)td__shape_numel(shape) * td_dtype_size(dtype));
    if (!s)
        return &poison;
    td_tensor *x = tensor_make(s, shape, dtype, 0);
    if (!x->poisoned)
        td__shape_strides(shape, x->stride);
    return x;
}

td_tensor *td__tensor_view(td_tensor *x, td_shape shape, const int64_t *stride, int64_t offset)
{
    if (x->poisoned)
        return &poison;
    td__storage_ref(x->storage);
    td_tensor *v = tensor_make(x->storage, shape, x->dtype, offset);
    if (!v->poisoned)
        memcpy(v->stride, stride, (size_t)shape.ndim * sizeof *stride);
    return v;
}

td_tensor *td__tensor_on(td_storage *s, td_shape shape, td_dtype dtype, int64_t offset)
{
    td__storage_ref(s);
    td_tensor *x = tensor_make(s, shape, dtype, offset);
    if (!x->poisoned)
        td__shape_strides(shape, x->stride);
    return x;
}

void td__tensor_ref(td_tensor *x)
{
    if (x && !x->poisoned)
        atomic_fetch_add_explicit(&x->refs, 1, memory_order_relaxed);
}

void td__tensor_unref(td_tensor *x)
{
    while (x && !x->poisoned && atomic_fetch_sub_explicit(&x->refs, 1, memory_order_acq_rel) == 1) {
        td_tensor *divisor = x->divisor;
        if (x->graph && td__tensor_graph_free)
            td__tensor_graph_free(x);
        td__storage_unref(x->storage);
        td__free(x);
        td__count_tensor(-1);
        x = divisor;
    }
}

/* A tensor that a scope already owns (a function that returned its argument) only loses the extra reference. */
td_tensor *td__scoped_tensor(td_tensor *x)
{
    if (x->poisoned)
        return x;
    if (x->scoped.stack)
        td__tensor_unref(x);
    else
        td__scope_add(&x->scoped);
    return x;
}

/* ---- the user's vocabulary ---------------------------------------------------------------------------------------------- */
td_tensor *td_keep(td_tensor *x)
{
    TD_ENTER();
    if (!x) {
        td__fail(TD_ERR_ARGUMENT, "td_keep: the tensor is NULL");
        return &poison;
    }
    if (x->poisoned)
        return x;
    if (!td__scope_remove(&x->scoped))         /* the scope's reference becomes the keeper's; without scope, a new one */
        td__tensor_ref(x);
    x->kept++;
    return x;
}

void td_release(td_tensor *x)
{
    TD_ENTER();
    if (!x || x->poisoned)
        return;
    if (x->kept == 0) {
        char text[128];
        td__fail(TD_ERR_STATE, "td_release: the tensor of shape %s is not kept (td_keep comes first)", td__shape_text(x->shape, text));
        return;
    }
    x->kept--;
    td__tensor_unref(x);
}

td_tensor *td_escape(td_tensor *x)
{
    TD_ENTER();
    if (!x) {
        td__fail(TD_ERR_ARGUMENT, "td_escape: the tensor is NULL");
        return &poison;
    }
    if (!x->poisoned)
        td__scope_escape(&x->scoped);
    return x;
}
