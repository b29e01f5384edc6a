/* data/loader.c: prefetching threads with a bounded queue, and the user's end of it.
 *
 * Batches have places in one endless sequence (epoch 0's, epoch 1's, …); batch number s is read into slot s mod n, where n is the
 * queue's length plus the one slot whose batch the user holds. A thread claims the next number as soon as its slot is free, so
 * order is kept by construction whatever the number of threads, and the queue is bounded by the slots. Slots own their
 * tensors and are used again and again: after the first round nothing is allocated.
 *
 * One mutex guards all positions and states; reading happens outside it. A slot's contents belong to the thread that claimed it
 * until it is READY, then to the user's thread until it is FREE. Tensor handles and versions are touched by the user's thread only.
 */
#include "data_impl.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

void (*td__on_batch)(td_tensor *sample);

typedef enum { FREE, CLAIMED, READY, FAILED, HELD } slot_state;

typedef struct {
    slot_state  state;
    int64_t     rows;
    td_tensor  *tensor[TD__MAX_FIELDS + 1];    /* the fields', then the sample numbers; capacity is the storage's */
    void       *host[TD__MAX_FIELDS + 1];      /* where threads write: the storage itself when the CPU can reach it */
    int         code;                          /* FAILED: why */
    char        why[1024];
} slot;

typedef struct { int64_t epoch, k; } position;

struct td_loader {
    td_dataset *data;
    int64_t   batch, batches;
    int       part, parts;
    bool      shuffle;
    uint64_t  seed;
    td_device device;
    const td_device_ops *ops;

    pthread_mutex_t lock;
    pthread_cond_t  work, ready, idle;         /* a slot became free; a batch became ready; a thread finished reading */
    pthread_t *thread;
    int       threads, started;
    bool      stop, paused;
    int       busy;                            /* threads that are reading now */
    slot     *slots;
    int       n_slots, claim_slot, take_slot;
    position  claim, take;                     /* the next batch to be read, to be handed out */
    slot     *held;
    int64_t  *order, order_epoch;              /* of the epoch that is being claimed; NULL without shuffle */
    double    waited;

    td_loader *next, *prev;
};

static td_loader poison;
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static td_loader *live;
static __thread const td_loader *announced;    /* whose sample numbers this thread uses now */

/* ---- the threads --------------------------------------------------------------------------------------------------------- */

static size_t field_bytes(const td_loader *l, size_t i)
{
    return i < l->data->n_fields ? l->data->bytes[i] : sizeof(int64_t);
}

/* Under the lock: the rows of the next batch, written as its sample numbers. */
static slot *claim(td_loader *l)
{
    slot *s = &l->slots[l->claim_slot];
    if (l->order && l->order_epoch != l->claim.epoch) {
        td__epoch_order(l->seed, l->claim.epoch, l->data->rows, l->order);
        l->order_epoch = l->claim.epoch;
    }
    td__share share = td__shard(l->claim.k, l->part, l->parts, l->batch, l->data->rows);
    int64_t *ids = s->host[l->data->n_fields];
    for (int64_t i = 0; i < share.rows; i++)
        ids[i] = l->order ? l->order[share.first + i] : share.first + i;
    s->rows = share.rows;
    s->state = CLAIMED;
    l->claim_slot = (l->claim_slot + 1) % l->n_slots;
    if (++l->claim.k == l->batches)
        l->claim = (position){ .epoch = l->claim.epoch + 1 };
    return s;
}

static void explain(slot *s, int64_t row, int rc)
{
    const char *name = td_error_name(rc);
    bool listed = rc < 0 && strcmp(name, "TD_ERR_?") != 0;
    if (td_error_pending()) {                  /* read itself has said more, in this thread */
        s->code = td_error_pending();
        snprintf(s->why, sizeof s->why, "row %lld of the data set could not be read: %s", (long long)row, td_error_message());
        td_error_clear();
        return;
    }
    s->code = listed ? rc : TD_ERR_IO;
    snprintf(s->why, sizeof s->why, "row %lld of the data set could not be read: its read function returned %d%s%s%s", (long long)row, rc,
             listed ? " (" : "", listed ? name : "", listed ? ")" : "");
}

/* Without the lock. */
static slot_state fill(td_loader *l, slot *s)
{
    const td_dataset *data = l->data;
    const int64_t *ids = s->host[data->n_fields];
    for (int64_t i = 0; i < s->rows; i++) {
        void *into[TD__MAX_FIELDS];
        for (size_t f = 0; f < data->n_fields; f++)
            into[f] = (char *)s->host[f] + (size_t)i * data->bytes[f];
        int rc = data->read(data->user, ids[i], into);
        if (rc != 0 || td_error_pending()) {
            explain(s, ids[i], rc);
            return FAILED;
        }
    }
    return READY;
}

static void *read_ahead(void *pointer)
{
    td_loader *l = pointer;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && (l->paused || l->slots[l->claim_slot].state != FREE))
            pthread_cond_wait(&l->work, &l->lock);
        if (l->stop)
            break;
        slot *s = claim(l);
        l->busy++;
        pthread_mutex_unlock(&l->lock);
        slot_state now = fill(l, s);
        pthread_mutex_lock(&l->lock);
        s->state = now;
        l->busy--;
        pthread_cond_signal(&l->ready);
        if (l->paused)
            pthread_cond_signal(&l->idle);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* At the first batch, not at construction: until then a program may fork, seek or think. The user's signals stay the user's threads'. */
static int start_threads(td_loader *l)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = 0;
    while (l->started < l->threads && rc == 0) {
        rc = pthread_create(&l->thread[l->started], NULL, read_ahead, l);
        l->started += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0 && l->started == 0)            /* with some of the threads it only runs slower */
        return td__fail(TD_ERR_MEMORY, "td_loader_next: a prefetching thread could not be started: %s", strerror(rc));
    l->threads = l->started;
    return 0;
}

/* ---- the user's end ---------------------------------------------------------------------------------------------------------- */

/* Under the lock. A graph that saved the batch must notice that it changes from now on. */
static void give_back(td_loader *l)
{
    if (!l->held)
        return;
    for (size_t i = 0; i <= l->data->n_fields; i++)
        l->held->tensor[i]->storage->version++;
    l->held->state = FREE;
    l->held = NULL;
    pthread_cond_broadcast(&l->work);
}

/* Forgets what was read ahead; the next td_loader_next begins at `to` (so that a cleared error's batch is read again, not before). */
static void restart(td_loader *l, position to)
{
    pthread_mutex_lock(&l->lock);
    l->paused = true;
    while (l->busy > 0)
        pthread_cond_wait(&l->idle, &l->lock);
    give_back(l);
    for (int i = 0; i < l->n_slots; i++)
        l->slots[i].state = FREE;
    l->claim = l->take = to;
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

static slot *next_slot(td_loader *l)
{
    pthread_mutex_lock(&l->lock);
    give_back(l);
    if (l->paused) {
        l->paused = false;
        pthread_cond_broadcast(&l->work);
    }
    slot *s = NULL;
    if (l->take.k == l->batches) {
        l->take = (position){ .epoch = l->take.epoch + 1 };
    } else {
        s = &l->slots[l->take_slot];
        if (s->state != READY && s->state != FAILED) {
            double since = td__now();
            while (s->state != READY && s->state != FAILED)
                pthread_cond_wait(&l->ready, &l->lock);
            l->waited += td__now() - since;
        }
        if (s->state == READY) {
            s->state = HELD;
            l->held = s;
            l->take_slot = (l->take_slot + 1) % l->n_slots;
            l->take.k++;
        }
    }
    pthread_mutex_unlock(&l->lock);
    return s;
}

/* The slot's handles with the batch's number of rows; a new handle only where that differs from the slot's last. */
static int shape_slot(td_loader *l, slot *s)
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
        size_t bytes = (size_t)s->rows * field_bytes(l, i);
        if (!l->ops->host_memory && bytes > 0) {
            int rc = l->ops->copy(l->device.index, s->tensor[i]->storage->data, false, s->host[i], true, bytes);
            if (rc != 0)
                return rc;
        }
    }
    return 0;
}

bool td_loader_next(td_loader *l, td_batch *batch)
{
    TD_ENTER();
    if (batch)
        *batch = (td_batch){ 0 };
    if (!l || !batch) {
        td__fail(TD_ERR_ARGUMENT, "td_loader_next: the %s is NULL", l ? "batch" : "loader");
        return false;
    }
    if (td__pending() || l == &poison)
        return false;
    if (l->started == 0 && l->batches > 0 && start_threads(l) != 0)
        return false;
    slot *s = next_slot(l);
    if (!s) {
        announce(l, NULL);
        return false;
    }
    if (s->state == FAILED) {
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
        td__fail(TD_ERR_ARGUMENT, l ? "td_loader_set_epoch: the epoch is %lld, expected 0 or more" : "td_loader_set_epoch: the loader is NULL",
                 (long long)epoch);
        return;
    }
    if (l != &poison)
        restart(l, (position){ .epoch = epoch });
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

/* ---- its life ------------------------------------------------------------------------------------------------------------------- */

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
        for (size_t f = 0; f <= l->data->n_fields; f++) {
            if (l->slots[i].tensor[f])
                td__tensor_unref(l->slots[i].tensor[f]);
            if (!l->ops->host_memory)
                td__free(l->slots[i].host[f]);
        }
    pthread_cond_destroy(&l->work);
    pthread_cond_destroy(&l->ready);
    pthread_cond_destroy(&l->idle);
    pthread_mutex_destroy(&l->lock);
    if (l->data->taken)
        td__dataset_destroy(l->data);
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

static int make_slot(td_loader *l, slot *s, int64_t capacity)
{
    for (size_t i = 0; i <= l->data->n_fields; i++) {
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
        td_tensor *t = td__tensor_new(shape, dtype, l->device);
        if (t->poisoned)
            return TD_ERR_MEMORY;
        s->tensor[i] = t;
        s->host[i] = l->ops->host_memory ? t->storage->data : td__alloc((size_t)capacity * field_bytes(l, i));
        if (!l->ops->host_memory && !s->host[i])
            return TD_ERR_MEMORY;
    }
    return 0;
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
        return td__fail(TD_ERR_ARGUMENT, "td_loader_new: part is %d of parts %d, expected 0 to parts - 1 (both 0: the world's)", o->part, o->parts);
    return 0;
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
    bool made = l->ops && l->thread && l->slots && (l->order || !l->shuffle);
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
