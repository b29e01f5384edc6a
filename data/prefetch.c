/* data/prefetch.c: the threads that read ahead, and the order in which they claim batches.
 *
 * Batches have places in one endless sequence (epoch 0's, epoch 1's, …); batch number s is read into slot s mod n, where n is the
 * queue's length plus the one slot whose batch the user holds. A thread claims the next number as soon as its slot is free, so
 * order is kept by construction whatever the number of threads, and the queue is bounded by the slots. Reading happens outside the
 * lock: a slot's contents belong to the thread that claimed it until it is READY or FAILED.
 */
#include "loader_impl.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* Under the lock: the rows of the next batch, written as its sample numbers. */
static td__slot *claim(td_loader *l)
{
    td__slot *s = &l->slots[l->claim_slot];
    if (l->order && l->order_epoch != l->claim.epoch) {
        td__epoch_order(l->seed, l->claim.epoch, l->data->rows, l->order);
        l->order_epoch = l->claim.epoch;
    }
    td__share share = td__shard(l->claim.k, l->part, l->parts, l->batch, l->data->rows);
    for (int64_t i = 0; i < share.rows; i++)
        s->ids[i] = l->order ? l->order[share.first + i] : share.first + i;
    s->rows = share.rows;
    s->epoch = l->claim.epoch;
    s->state = TD__SLOT_CLAIMED;
    l->claim_slot = (l->claim_slot + 1) % l->n_slots;
    if (++l->claim.k == l->batches)
        l->claim = (td__position){ .epoch = l->claim.epoch + 1 };
    return s;
}

/* This thread's own error as the slot's; false: there is none. */
static bool own_error(td__slot *s, const char *what)
{
    if (!td__pending_here())
        return false;
    s->code = td__pending_here();
    snprintf(s->why, sizeof s->why, "%s: %s", what, td_error_message());
    td_error_clear();
    return true;
}

static void explain(td__slot *s, int64_t row, int rc)
{
    const char *name = td_error_name(rc);
    bool listed = rc < 0 && strcmp(name, "TD_ERR_?") != 0;
    char what[80];
    snprintf(what, sizeof what, "row %lld of the data set could not be read", (long long)row);
    if (own_error(s, what))                    /* read itself has said more */
        return;
    s->code = listed ? rc : TD_ERR_IO;
    snprintf(s->why, sizeof s->why, "%s: its read function returned %d%s%s%s", what, rc, listed ? " (" : "", listed ? name : "", listed ? ")" : "");
}

/* The slot's host memory to its tensors, on the loader's stream. */
static int send(td_loader *l, td__slot *s)
{
    const int index = l->device.index;
    int rc = l->ops->event_wait(index, s->passed, l->stream);
    for (size_t f = 0; f <= l->data->n_fields && rc == 0; f++)
        rc = l->ops->copy_async(index, s->tensor[f]->storage->data, s->host[f], (size_t)s->rows * td__loader_field_bytes(l, f), false, l->stream);
    return rc ? rc : l->ops->event_record(index, s->copied, l->stream);
}

/* Without the lock. */
static td__slot_state fill(td_loader *l, td__slot *s)
{
    const td_dataset *data = l->data;
    const int64_t *ids = s->ids;
    if (l->stream) {
        if (l->ops->event_synchronize(l->device.index, s->copied) != 0) {
            own_error(s, "the loader's last copy to the device failed");
            return TD__SLOT_FAILED;
        }
        memcpy(s->host[data->n_fields], ids, (size_t)s->rows * sizeof *ids);
    }
    for (int64_t i = 0; i < s->rows; i++) {
        void *into[TD__MAX_FIELDS];
        for (size_t f = 0; f < data->n_fields; f++)
            into[f] = (char *)s->host[f] + (size_t)i * data->bytes[f];
        float *picture = into[0];
        if (l->augments)
            into[0] = s->raw;
        int rc = data->read(data->user, ids[i], into);
        if (rc != 0 || td__pending_here()) {
            explain(s, ids[i], rc);
            return TD__SLOT_FAILED;
        }
        if (l->augments) {
            const int64_t *dim = data->field[0].shape.dim;
            td__view view = td__augment_view(&l->augment, l->seed, s->epoch, ids[i]);
            td__augment_apply(&l->augment, view, dim[0], dim[1], dim[2], s->raw, picture);
        }
    }
    if (l->stream && send(l, s) != 0) {
        own_error(s, "the batch could not be copied to the device");
        return TD__SLOT_FAILED;
    }
    return TD__SLOT_READY;
}

static void *read_ahead(void *pointer)
{
    td_loader *l = pointer;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && (l->paused || l->slots[l->claim_slot].state != TD__SLOT_FREE))
            pthread_cond_wait(&l->work, &l->lock);
        if (l->stop)
            break;
        td__slot *s = claim(l);
        l->busy++;
        pthread_mutex_unlock(&l->lock);
        td__slot_state now = fill(l, s);
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
int td__loader_start(td_loader *l)
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
