/* tensor/storage.c: reference-counted memory of a device.
 *
 * A storage's data is one of three: a block of its device's allocator, foreign memory that `release` gives back, or a stretch of
 * another storage (`base`), which it keeps alive. Tensors reach their elements through the storage, so that relocating
 * it moves every view at once. A storage that others lie in is never relocated itself.
 */
#include "tensor_impl.h"

static td_storage *storage_make(td_device device, const td_device_ops *ops, void *data, size_t bytes)
{
    td_storage *s = td__alloc(sizeof *s);
    if (!s)
        return NULL;
    *s = (td_storage){ .data = data, .bytes = bytes, .device = device, .ops = ops };
    atomic_init(&s->refs, 1);
    return s;
}

td_storage *td__storage_new(td_device device, size_t bytes)
{
    const td_device_ops *ops = td__device_ops(device);
    if (!ops)
        return NULL;
    if (device.kind == TD_DEFAULT)
        device = td_device_default();
    void *data = ops->alloc(device.index, bytes);
    if (!data)
        return NULL;
    td_storage *s = storage_make(device, ops, data, bytes);
    if (!s)
        ops->free(device.index, data);
    return s;
}

td_storage *td__storage_new_as(td_device device, size_t bytes, td_memory_category category)
{
    td_memory_category was = td__memory_now;
    td__memory_now = category;
    td_storage *s = td__storage_new(device, bytes);
    td__memory_now = was;
    return s;
}

void td__storage_label(td_storage *s, td_memory_category category)
{
    if (s && !s->base && !s->release && s->ops->label)
        s->ops->label(s->device.index, s->data, category);
}

int td__storage_record(td_storage *s, void *stream)
{
    while (s->base)
        s = s->base;
    return !s->release && s->ops->record ? s->ops->record(s->device.index, s->data, stream) : 0;
}

td_storage *td__storage_foreign(td_device device, void *data, size_t bytes, void (*release)(void *, void *), void *owner)
{
    const td_device_ops *ops = td__device_ops(device);
    if (!ops)
        return NULL;
    if (device.kind == TD_DEFAULT)
        device = td_device_default();
    td_storage *s = storage_make(device, ops, data, bytes);
    if (!s)
        return NULL;
    s->release = release ? release : td__storage_borrowed;
    s->owner = owner;
    return s;
}

void td__storage_borrowed(void *owner, void *data)
{
    (void)owner, (void)data;
}

void td__storage_ref(td_storage *s)
{
    if (s)
        atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
}

/* Gives the memory back, not the record. Returns the base whose reference is now the caller's to drop. */
static td_storage *storage_let_go(td_storage *s)
{
    td_storage *base = s->base;
    if (!base) {
        if (s->release)
            s->release(s->owner, s->data);
        else
            s->ops->free(s->device.index, s->data);
    }
    s->base = NULL;
    s->release = NULL;
    s->owner = NULL;
    return base;
}

void td__storage_empty(td_storage *s)
{
    td__storage_unref(storage_let_go(s));
    s->data = NULL;
}

void td__storage_put(td_storage *s, void *data)
{
    td__storage_empty(s);
    s->data = data;
    s->release = td__storage_borrowed;
}

int td__storage_refill(td_storage *s)
{
    void *data = s->ops->alloc(s->device.index, s->bytes);
    if (!data)
        return td__pending() ? td__pending() : TD_ERR_MEMORY;
    td__storage_empty(s);
    s->data = data;
    return 0;
}

void td__storage_unref(td_storage *s)
{
    while (s && atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) == 1) {
        td_storage *base = storage_let_go(s);
        td__free(s);
        s = base;
    }
}

int td__storage_relocate(td_storage *s, td_storage *base, size_t offset)
{
    if (s == base || s->device.kind != base->device.kind || s->device.index != base->device.index)
        return td__fail(TD_ERR_INTERNAL, "a storage cannot be moved into itself or onto another device");
    if (offset > base->bytes || s->bytes > base->bytes - offset)
        return td__fail(TD_ERR_INTERNAL, "a storage of %zu bytes does not fit at %zu in one of %zu bytes", s->bytes, offset, base->bytes);
    td__settle(s);
    void *to = (char *)base->data + offset;
    int code = s->ops->copy(s->device.index, to, false, s->data, false, s->bytes);
    if (code)
        return code;
    td__storage_ref(base);
    td_storage *old = storage_let_go(s);
    s->data = to;
    s->base = base;
    td__storage_unref(old);
    return 0;
}
