/* data/loader.c: the user's end of the prefetching loader, and its life. The threads are in prefetch.c.
 *
 * Slots own their tensors and are used again and again: after the first round nothing is allocated. Tensor handles and versions
 * are touched by the user's thread only.
 */
#include "loader_impl.h"
#include <string.h>

void (*td__on_batch)(td_tensor *sample);

static td_loader poison;
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static td_loader *live;
static __thread const td_loader *announced;    /* whose sample numbers this thread uses now */

/* ---- the user's end ---------------------------------------------------------------------------------------------- */

/* Under the lock. A graph that saved the batch must notice that it changes from now on. */
static void give_back(td_loader *l)
{
    if (!l->held)
        return;
    for (size_t i = 0; i <= l->data->n_fields; i++)
        l->held->tensor[i]->storage->version++;
    if (l->stream)                             /* kernels that were started may still read it; if this fails, so does the next copy */
        l->ops->event_record(l->device.index, l->held->passed, NULL);
    l->held->state = TD__SLOT_FREE;
    l->held = NULL;
    pthread_cond_broadcast(&l->work);
}

/* Forgets what was read ahead; the next td_loader_next begins at `to` (so that a cleared error's batch is read again, not before). */
static void restart(td_loader *l, td__position to)
{
    pthread_mutex_lock(&l->lock);
    l->paused = true;
    while (l->busy > 0)
        pthread_cond_wait(&l->idle, &l->lock);
    give_back(l);
    for (int i = 0; i < l->n_slots; i++)
        l->slots[i].state = TD__SLOT_FREE;
    l->claim = l->take = to;
    if (to.k == l->batches)                    /* at an epoch's end the next to read is the next epoch's first */
        l->claim = (td__position){ .epoch = to.epoch + 1 };
    l->claim_slot = l->take_slot = 0;
    pthread_mutex_unlock(&l->lock);
}

static void announce(const td_loader *l, td_tensor *sample)
{
    if (!td__on_batch || (!sample && announced != l))
        return;
    td__on_batch(sample);
    announced = sample ? l : NULL;
}

static td__slot *next_slot(td_loader *l)
{
    pthread_mutex_lock(&l->lock);
    give_back(l);
    if (l->paused) {
        l->paused = false;
        pthread_cond_broadcast(&l->work);
    }
    td__slot *s = NULL;
    if (l->take.k == l->batches) {
        l->take = (td__position){ .epoch = l->take.epoch + 1 };
    } else {
        s = &l->slots[l->take_slot];
        if (s->state != TD__SLOT_READY && s->state != TD__SLOT_FAILED) {
            double since = td__now();
            while (s->state != TD__SLOT_READY && s->state != TD__SLOT_FAILED)
                pthread_cond_wait(&l->ready, &l->lock);
            l->waited += td__now() - since;
        }
        if (s->state == TD__SLOT_READY) {
            s->state = TD__SLOT_HELD;
            l->held = s;
            l->take_slot = (l->take_slot + 1) % l->n_slots;
            l->take.k++;
        }
    }
    pthread_mutex_unlock(&l->lock);
    return s;
}

/* The slot's handles with the batch's number of rows; a new handle only where that differs from the slot's last. */
static int shape_slot(td_loader *l, td__slot *s)
{
    for (size_t i = 0; i <= l->data->n_fields; i++) {
        td_tensor *old = s->tensor[i];
        if (old->shape.dim[0] != s->rows) {
            td_shape shape = old->shape;
            shape.dim[0] = s->rows;
            td_tensor *t = td__tensor_on(old->storage, shape, old->dtype, 0);
            if (t->poisoned)
                return TD_ERR_MEMORY;
            s->tensor[i] = t;
            td__tensor_unref(old);
        }
    }
    return l->stream ? l->ops->event_wait(l->device.index, s->copied, NULL) : 0;
}

bool td_loader_next(td_loader *l, td_batch *batch)
{
    TD_ENTER();
    if (td__recorded_here())
        td__record_refuse("td_loader_next is called by the step: a batch is an input of the step; take it before td_capture and td_replay");
    if (batch)
        *batch = (td_batch){ 0 };
    if (!l || !batch) {
        td__fail(TD_ERR_ARGUMENT, "td_loader_next: the %s is NULL", l ? "batch" : "loader");
        return false;
    }
    if (td__pending() || l == &poison)
        return false;
    if (l->started == 0 && l->batches > 0 && td__loader_start(l) != 0)
        return false;
    td__slot *s = next_slot(l);
    if (!s) {
        announce(l, NULL);
        return false;
    }
    if (s->state == TD__SLOT_FAILED) {
        int code = s->code;
        char why[sizeof s->why];
        strcpy(why, s->why);
        restart(l, l->take);                   /* once the error is cleared, the same batch is tried again */
        td__fail(code, "td_loader_next: %s", why);
        return false;
    }
    if (shape_slot(l, s) != 0)
        return false;
    size_t n = l->data->n_fields;
    *batch = (td_batch){ .x = s->tensor[0], .y = n > 1 ? s->tensor[1] : NULL, .field = s->tensor, .n_fields = n, .sample = s->tensor[n],
                         .rows = s->rows };
    announce(l, batch->sample);
    return true;
}

int64_t td_loader_batches(const td_loader *l)
{
    TD_ENTER();
    if (!l)
        td__fail(TD_ERR_ARGUMENT, "td_loader_batches: the loader is NULL");
    return l ? l->batches : 0;
}

int64_t td_loader_epoch(const td_loader *l)
{
    TD_ENTER();
    if (!l)
        td__fail(TD_ERR_ARGUMENT, "td_loader_epoch: the loader is NULL");
    return l ? l->take.epoch : 0;
}

void td_loader_set_epoch(td_loader *l, int64_t epoch)
{
    TD_ENTER();
    if (!l || epoch < 0) {
        td__fail(TD_ERR_ARGUMENT,
                 l ? "td_loader_set_epoch: the epoch is %lld, expected 0 or more" : "td_loader_set_epoch: the loader is NULL",
                 (long long)epoch);
        return;
    }
    if (l != &poison)
        restart(l, (td__position){ .epoch = epoch });
}

int64_t td_loader_position(const td_loader *l)
{
    TD_ENTER();
    if (!l)
        td__fail(TD_ERR_ARGUMENT, "td_loader_position: the loader is NULL");
    return l ? l->take.k : 0;
}

int td_loader_seek(td_loader *l, int64_t epoch, int64_t batch)
{
    TD_ENTER();
    if (!l)
        return td__fail(TD_ERR_ARGUMENT, "td_loader_seek: the loader is NULL");
    if (l == &poison)
        return td__pending() ? td__pending() : TD_ERR_ABORTED;
    if (epoch < 0 || epoch == INT64_MAX)
        return td__fail(TD_ERR_ARGUMENT, "td_loader_seek: the epoch is %lld, expected 0 or more, below 2^63 - 1", (long long)epoch);
    if (batch < 0 || batch > l->batches)
        return td__fail(TD_ERR_ARGUMENT, "td_loader_seek: the batch is %lld, expected 0 to %lld, the batches of an epoch", (long long)batch,
                        (long long)l->batches);
    restart(l, (td__position){ .epoch = epoch, .k = batch });
    return 0;
}

double td_loader_waited_ms(const td_loader *l)
{
    TD_ENTER();
    if (!l) {
        td__fail(TD_ERR_ARGUMENT, "td_loader_waited_ms: the loader is NULL");
        return 0;
    }
    double waited = l->waited;
    if (l != &poison)
        ((td_loader *)l)->waited = 0;          /* a clock that reading sets back: const to the user all the same */
    return 1000 * waited;
}

/* ---- its life ---------------------------------------------------------------------------------------------------- */

/* Copies that are under way know the slot's memory: they are waited for. */
static void free_slot(td_loader *l, td__slot *s)
{
    const int index = l->device.index;
    td__free(s->raw);
    if (s->copied)
        l->ops->event_synchronize(index, s->copied);
    for (size_t f = 0; f <= l->data->n_fields; f++) {
        if (s->tensor[f])
            td__tensor_unref(s->tensor[f]);
        if (l->stream && s->host[f])
            l->ops->host_free(index, s->host[f]);
    }
    if (l->stream) {
        td__free(s->ids);
        l->ops->event_free(index, s->copied);
        l->ops->event_free(index, s->passed);
    }
}

static void destroy(td_loader *l)
{
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->started; i++)
        pthread_join(l->thread[i], NULL);
    announce(l, NULL);
    for (int i = 0; l->slots && i < l->n_slots; i++)
        free_slot(l, &l->slots[i]);
    if (l->stream)
        l->ops->stream_free(l->device.index, l->stream);
    pthread_cond_destroy(&l->work);
    pthread_cond_destroy(&l->ready);
    pthread_cond_destroy(&l->idle);
    pthread_mutex_destroy(&l->lock);
    if (l->data->taken)
        td__dataset_destroy(l->data);
    td__augment_drop(&l->augment);
    td__free(l->order);
    td__free(l->slots);
    td__free(l->thread);
    td__free(l);
}

static void delist(td_loader *l)
{
    pthread_mutex_lock(&list_lock);
    *(l->prev ? &l->prev->next : &live) = l->next;
    if (l->next)
        l->next->prev = l->prev;
    pthread_mutex_unlock(&list_lock);
}

void td_loader_free(td_loader *l)
{
    TD_ENTER();
    if (!l || l == &poison)
        return;
    delist(l);
    destroy(l);
}

void td__data_free_all(void)
{
    while (live)
        td_loader_free(live);
    td__datasets_free_all();
}

static int make_tensor(td_loader *l, td__slot *s, size_t i, int64_t capacity)
{
    td_shape shape = { .ndim = 1, .dim = { capacity } };
    td_dtype dtype = TD_I64;
    if (i < l->data->n_fields) {
        td_shape one = l->data->field[i].shape;
        dtype = l->data->field[i].dtype;
        shape.ndim = one.ndim + 1;
        memcpy(shape.dim + 1, one.dim, (size_t)one.ndim * sizeof *one.dim);
    }
    if (td__shape_check("td_loader_new", shape) != 0)
        return TD_ERR_SHAPE;
    td_memory_category was = td__memory_now;
    td__memory_now = TD_MEMORY_DATA;
    td_tensor *t = td__tensor_new(shape, dtype, l->device);
    td__memory_now = was;
    if (t->poisoned)
        return TD_ERR_MEMORY;
    s->tensor[i] = t;
    s->host[i] = l->stream ? l->ops->host_alloc(l->device.index, (size_t)capacity * td__loader_field_bytes(l, i)) : t->storage->data;
    return s->host[i] ? 0 : TD_ERR_MEMORY;
}

static int make_slot(td_loader *l, td__slot *s, int64_t capacity)
{
    const int index = l->device.index;
    int rc = 0;
    for (size_t i = 0; i <= l->data->n_fields && rc == 0; i++)
        rc = make_tensor(l, s, i, capacity);
    if (rc != 0)
        return rc;
    s->ids = s->host[l->data->n_fields];
    if (l->stream) {
        s->ids = td__alloc((size_t)capacity * sizeof *s->ids);
        s->copied = l->ops->event_new(index);
        s->passed = l->ops->event_new(index);
        /* The memory may have been somebody else's until now, and still be in use by kernels that were started. */
        if (!s->ids || !s->copied || !s->passed || l->ops->event_record(index, s->passed, NULL) != 0)
            return TD_ERR_MEMORY;
    }
    s->raw = l->augments ? td__alloc(l->data->bytes[0]) : NULL;
    return l->augments && !s->raw ? TD_ERR_MEMORY : 0;
}

static int check(td_dataset *data, const td_loader_opts *o)
{
    if (!data)
        return td__fail(TD_ERR_ARGUMENT, "td_loader_new: the dataset is NULL");
    if (data->taken)
        return td__fail(TD_ERR_STATE, "td_loader_new: another loader has taken this dataset; open it once more");
    if (o->batch < 0)
        return td__fail(TD_ERR_ARGUMENT, "td_loader_new: batch is %lld, expected 1 or more (0 means 32)", (long long)o->batch);
    if (o->threads < 0 || o->threads > 256)
        return td__fail(TD_ERR_ARGUMENT, "td_loader_new: threads is %d, expected 1 to 256 (0 means 1)", o->threads);
    if (o->queue < 0 || o->queue > 65536)
        return td__fail(TD_ERR_ARGUMENT, "td_loader_new: queue is %d, expected 1 to 65536 (0 means 4)", o->queue);
    if (o->parts < 0 || o->part < 0 || (o->parts == 0 ? o->part != 0 : o->part >= o->parts))
        return td__fail(TD_ERR_ARGUMENT, "td_loader_new: part is %d of parts %d, expected 0 to parts - 1 (both 0: the world's)",
                        o->part, o->parts);
    return td__augment_check(data, &o->augment);
}

td_loader *td_loader_new(td_dataset *data, const td_loader_opts *opts)
{
    TD_ENTER();
    static const td_loader_opts standard;
    const td_loader_opts *o = opts ? opts : &standard;
    if (data == &td__dataset_poison || check(data, o) != 0)
        return &poison;
    td_loader *l = td__calloc(sizeof *l);
    if (!l)
        return &poison;
    const td__world *world = td__world_now();
    l->batch = o->batch ? o->batch : 32;
    l->parts = o->parts ? o->parts : world->size;
    l->part = o->parts ? o->part : world->rank;
    l->shuffle = o->shuffle;
    l->seed = o->seed ? o->seed : td_seed_get();
    l->threads = o->threads ? o->threads : 1;
    l->n_slots = (o->queue ? o->queue : 4) + 1;
    l->order_epoch = -1;
    l->data = data;
    l->augments = td__augment_wanted(&o->augment);
    l->device = td_device_default();
    l->ops = td__device_ops(l->device);
    int64_t global;
    if (__builtin_mul_overflow(l->batch, (int64_t)l->parts, &global)) {   /* all the same to a data set of any size */
        l->batch = INT64_MAX / l->parts;
        global = l->batch * l->parts;
    }
    l->batches = td__batches(data->rows, l->batch, l->parts, o->drop_last);
    int64_t capacity = data->rows >= global ? l->batch : (data->rows + l->parts - 1) / l->parts;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->work, NULL);
    pthread_cond_init(&l->ready, NULL);
    pthread_cond_init(&l->idle, NULL);
    l->thread = td__calloc((size_t)l->threads * sizeof *l->thread);
    l->slots = td__calloc((size_t)l->n_slots * sizeof *l->slots);
    l->order = l->shuffle ? td__alloc((size_t)data->rows * sizeof *l->order) : NULL;
    if (l->ops && !l->ops->host_memory)
        l->stream = l->ops->stream_new(l->device.index, false);
    bool made = (l->stream || (l->ops && l->ops->host_memory)) && td__augment_copy(&l->augment, &o->augment, data) && l->thread && l->slots && (l->order || !l->shuffle);
    for (int i = 0; made && i < l->n_slots; i++)
        made = make_slot(l, &l->slots[i], capacity) == 0;
    if (!made) {
        destroy(l);                            /* the data set is not taken yet: it stays the caller's */
        return &poison;
    }
    data->taken = true;
    pthread_mutex_lock(&list_lock);
    l->next = live;
    if (live)
        live->prev = l;
    live = l;
    pthread_mutex_unlock(&list_lock);
    return l;
}
