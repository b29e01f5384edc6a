/* comm/watch.c: the thread that looks after collectives of device memory, since nobody waits for them.
 *
 * It sleeps while none is under way. Else it looks every 20 ms: has the oldest passed; has a rank of this host called something else at the same
 * turn; is a peer gone or stopped; does the library report an error; is the oldest too old? The library's own error often is the echo of a
 * peer's death, so it counts only when nobody on this host is found guilty within a second. Then the library is told to abort, so that the device
 * comes to an end of what it was given and a host that waits for it wakes; the user's next call returns the sentence.
 *
 * Fingerprints are compared beside the data, through the control page of the host: between hosts only the library's errors and the deadline tell.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include "comm_room.h"

#define TICK 0.02
#define ECHO 1.0

/* A wait that the compute stream has not come to when the collective has passed costs it nothing. */
static void measure(td__device_side *dev, const td__flight *f)
{
    const int index = dev->device.index;
    if (!f->mark.end || f->coll.kind == TD_COLL_REPLAY)
        return;
    double ms = dev->table->elapsed(index, f->mark.begin, f->mark.end);
    double exposed = f->waited && dev->ops->event_done(index, f->mark.waited) == 1 ? dev->table->elapsed(index, f->mark.waited, f->mark.end) : 0;
    dev->comm_ms += ms > 0 ? ms : 0;
    dev->exposed_ms += exposed > 0 ? exposed : 0;
}

void td__watch_passed(td__device_side *dev, td_comm *comm)
{
    uint64_t before = dev->passed;
    while (dev->passed < dev->started && !atomic_load(&comm->code)) {
        td__flight *oldest = &dev->flight[(dev->passed + 1) % dev->room];
        int done = !oldest->enqueued ? 0 : oldest->mark.end ? dev->ops->event_done(dev->device.index, oldest->mark.end) : 1;
        if (done < 0)
            td__comm_fail(comm, TD_ERR_DEVICE, "rank %d: the device failed before or in the %llu. collective of its memory", td__comm_world_rank(comm, comm->rank),
                          (unsigned long long)oldest->coll.turn);
        if (done <= 0)
            break;
        measure(dev, oldest);
        td__device_put_back(dev, &oldest->mark);
        dev->passed++;
    }
    if (dev->passed == before)
        return;
    dev->progress = td__now();
    if (comm->control)
        atomic_store_explicit(&comm->control->mine->device_passed, dev->passed, memory_order_release);
}

int td__watch_compare(td_comm *comm)
{
    td__device_side *dev = comm->dev;
    td__control *c = comm->control;
    for (uint64_t t = dev->compared + 1; c && t <= dev->started; t++) {
        const td_fingerprint mine = c->mine->device[t % TD_DEVICE_CALLS].print;
        bool all = true, known = dev->started - t < TD_DEVICE_CALLS;
        for (int i = 0; i < c->n && known; i++) {
            td__slot *slot = &c->slot[i];
            if (atomic_load_explicit(&slot->device_calls, memory_order_acquire) < t) {
                all = false;
                continue;
            }
            td_fingerprint theirs = slot->device[t % TD_DEVICE_CALLS].print;
            atomic_thread_fence(memory_order_acquire);
            if (atomic_load(&slot->device_calls) - t < TD_DEVICE_CALLS - 1 && !td__fingerprint_equal(&mine, &theirs))
                return td__verdict_turn(c, t);
        }
        if (all && t == dev->compared + 1)
            dev->compared = t;
    }
    return 0;
}

int td__watch_look(td_comm *comm, const td_coll *coll, double since)
{
    td__device_side *dev = comm->dev;
    int code = atomic_load(&comm->code);
    if (code)
        return code;
    if (dev->view.head)
        return td__control_check(&dev->view, coll, since);
    if (td__now() - since <= comm->timeout || comm->size > 1)
        return 0;
    char call[TD_CALL_TEXT];
    td__coll_call_text(coll, call);
    return td__comm_fail(comm, TD_ERR_TIMEOUT, "rank %d waited %g s (TANDEM_TIMEOUT) in %s and it did not end", td__comm_world_rank(comm, comm->rank), comm->timeout, call);
}

static int library_error(td_comm *comm, const td_coll *oldest)
{
    td__device_side *dev = comm->dev;
    char error[400] = "", call[TD_CALL_TEXT], text[TD_SENTENCE];
    int code = dev->table->check(dev->state, error, sizeof error);
    double now = td__now();
    if (!code) {
        dev->troubled = 0;
        return 0;
    }
    if (!dev->troubled)
        dev->troubled = now;
    if (now - dev->troubled < ECHO)
        return 0;
    td__coll_call_text(oldest, call);
    snprintf(text, sizeof text, "%s on rank %d (pid %d) in %s", error, td__comm_world_rank(comm, comm->rank), comm->control ? comm->control->mine->pid : 0, call);
    return comm->control ? td__verdict(comm->control, code, text) : td__comm_fail(comm, code, "%s", text);
}

/* One look. Under the lock, which is given up while other processes are looked at. */
static int look(td_comm *comm)
{
    td__device_side *dev = comm->dev;
    td__watch_passed(dev, comm);
    int code = atomic_load(&comm->code);
    if (!code && comm->control)
        code = td__watch_compare(comm);
    if (code || dev->passed == dev->started)
        return code;
    td__flight oldest = dev->flight[(dev->passed + 1) % dev->room];
    double since = dev->progress > oldest.started ? dev->progress : oldest.started;
    pthread_mutex_unlock(&dev->lock);
    code = td__watch_look(comm, &oldest.coll, since);
    if (!code)
        code = library_error(comm, &oldest.coll);
    pthread_mutex_lock(&dev->lock);
    return code;
}

static void *watch(void *of)
{
    td_comm *comm = of;
    td__device_side *dev = comm->dev;
    int code = 0;
    td__library_thread();
    pthread_mutex_lock(&dev->lock);
    while (!dev->stop && !code) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        int64_t ns = t.tv_nsec + (int64_t)(TICK * 1e9);
        t.tv_sec += ns / 1000000000, t.tv_nsec = ns % 1000000000;
        if (dev->passed == dev->started)
            pthread_cond_wait(&dev->news, &dev->lock);
        else
            pthread_cond_timedwait(&dev->news, &dev->lock, &t);
        if (!dev->stop)
            code = look(comm);
    }
    pthread_mutex_unlock(&dev->lock);
    if (code) {
        dev->table->abort(dev->state);
        td_error_clear();
        pthread_mutex_lock(&comm->lock);
        if (!atomic_load(&comm->told))
            td__fail_verbatim(code, comm->sentence);   /* in the mailbox: for the user's next call, told once                  */
        pthread_mutex_unlock(&comm->lock);
    }
    return NULL;
}

int td__watch_start(td_comm *comm)
{
    td__device_side *dev = comm->dev;
    sigset_t all, before;
    sigfillset(&all);                          /* signals are for the user's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&dev->thread, NULL, watch, comm);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return td__fail(TD_ERR_MEMORY, "the thread that watches collectives of the device cannot be made (%s)", strerror(error));
    pthread_setname_np(dev->thread, "tandem-watch");
    dev->thread_up = true;
    return 0;
}

void td__watch_stop(td_comm *comm)
{
    td__device_side *dev = comm->dev;
    if (!dev->thread_up)
        return;
    pthread_mutex_lock(&dev->lock);
    dev->stop = true;
    pthread_cond_signal(&dev->news);
    pthread_mutex_unlock(&dev->lock);
    pthread_join(dev->thread, NULL);
    dev->thread_up = false;
}
