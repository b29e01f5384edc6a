/* comm/thread.c: the communicator's thread and its queue.
 *
 * Made at the first started collective (at once for transports that must always run on it), asleep when there is nothing to do.
 * Works are recycled, so a started collective allocates nothing once there have been as many at a time before. A work changes hands
 * under the lock: queue, thread, done; the thread touches it no more after `done`, unless it was abandoned meanwhile.
 */
#include <errno.h>
#include <signal.h>
#include <time.h>
#include "comm_room.h"

td_work *td__work_new(td_comm *comm)
{
    pthread_mutex_lock(&comm->lock);
    td_work *work = comm->spare;
    if (work)
        comm->spare = work->next;
    pthread_mutex_unlock(&comm->lock);
    if (!work) {
        work = td__calloc(sizeof *work);
        if (!work)
            return NULL;
        pthread_mutex_lock(&comm->lock);
        work->all = comm->all;
        comm->all = work;
        pthread_mutex_unlock(&comm->lock);
    }
    work->comm = comm;
    work->next = NULL;
    work->code = 0;
    work->sentence[0] = '\0';
    work->hold[0] = work->hold[1] = NULL;
    work->abandoned = work->on_device = false;
    work->letter = NULL;
    work->noted = NULL;
    work->captured = (td__marks){ 0 };
    work->checked = 0;
    atomic_store(&work->state, TD_WORK_QUEUED);
    return work;
}

void td__work_let_go(td_work *work)
{
    for (int i = 0; i < 2; i++)
        if (work->hold[i])
            td__tensor_unref(work->hold[i]);
    work->hold[0] = work->hold[1] = NULL;
}

void td__work_recycle(td_comm *comm, td_work *work)
{
    td__work_let_go(work);
    atomic_store(&work->state, TD_WORK_FREE);
    pthread_mutex_lock(&comm->lock);
    work->next = comm->spare;
    comm->spare = work;
    pthread_mutex_unlock(&comm->lock);
}

static void *run_works(void *of)
{
    td_comm *comm = of;
    td__library_thread();
    pthread_mutex_lock(&comm->lock);
    for (;;) {
        while (!comm->head && !comm->stop)
            pthread_cond_wait(&comm->more, &comm->lock);
        td_work *work = comm->head;
        if (!work)
            break;
        comm->head = work->next;
        comm->thread_busy = true;
        atomic_store(&work->state, TD_WORK_RUNNING);
        pthread_mutex_unlock(&comm->lock);
        int code = td__comm_execute(comm, &work->coll);
        pthread_mutex_lock(&comm->lock);
        work->code = code;
        comm->thread_busy = false;
        comm->progress = td__now();
        atomic_fetch_sub_explicit(&comm->pending, 1, memory_order_release);
        atomic_store(&work->state, TD_WORK_DONE);
        pthread_cond_broadcast(&comm->done);
        if (work->abandoned) {
            pthread_mutex_unlock(&comm->lock);
            td__work_recycle(comm, work);
            pthread_mutex_lock(&comm->lock);
        }
    }
    comm->thread_ended = true;
    pthread_cond_broadcast(&comm->done);
    pthread_mutex_unlock(&comm->lock);
    return NULL;
}

int td__comm_thread_start(td_comm *comm)
{
    sigset_t all, before;
    sigfillset(&all);                          /* signals are for the user's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&comm->thread, NULL, run_works, comm);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return td__fail(TD_ERR_MEMORY, "the communicator's thread cannot be made (%s)", strerror(error));
    pthread_setname_np(comm->thread, "tandem-comm");
    comm->thread_up = true;
    return 0;
}

int td__comm_enqueue(td_comm *comm, td_work *work)
{
    if (!comm->thread_up) {
        int code = td__comm_thread_start(comm);
        if (code)
            return code;
    }
    pthread_mutex_lock(&comm->lock);
    if (comm->head)
        comm->tail->next = work;
    else
        comm->head = work;
    comm->tail = work;
    atomic_fetch_add(&comm->pending, 1);
    pthread_cond_signal(&comm->more);
    pthread_mutex_unlock(&comm->lock);
    return 0;
}

static void sleep_a_little(pthread_cond_t *condition, pthread_mutex_t *lock, double seconds)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t ns = t.tv_nsec + (int64_t)(seconds * 1e9);
    t.tv_sec += ns / 1000000000, t.tv_nsec = ns % 1000000000;
    pthread_cond_timedwait(condition, lock, &t);
}

/* A transport that runs on the thread may hang in a call that knows nothing of dead peers: so they are watched from here, and
 * in the end the work is left to it. Other transports watch for themselves; should one not, there is a deadline here too. */
int td__comm_await(td_comm *comm, td_work *work)
{
    double since = td__now();
    int code = 0;
    pthread_mutex_lock(&comm->lock);
    while (atomic_load(&work->state) != TD_WORK_DONE && !code) {
        sleep_a_little(&comm->done, &comm->lock, 0.05);
        if (atomic_load(&work->state) == TD_WORK_DONE)
            break;
        double from = comm->progress > since ? comm->progress : since;
        pthread_mutex_unlock(&comm->lock);
        if (comm->backend->on_thread)
            code = td__control_check(comm->control, &work->coll, from + comm->backend->grace);
        else if (td__now() - from > comm->timeout + 10)
            code = td__comm_fail(comm, TD_ERR_TIMEOUT, "rank %d waited %g s for the communicator's own thread", td__comm_world_rank(comm, comm->rank), comm->timeout + 10);
        pthread_mutex_lock(&comm->lock);
    }
    if (atomic_load(&work->state) == TD_WORK_DONE)
        code = 0;
    else
        work->abandoned = true;
    pthread_mutex_unlock(&comm->lock);
    return code;
}

/* What is still queued runs first, or fails at once when the communicator has failed. */
bool td__comm_thread_stop(td_comm *comm)
{
    if (!comm->thread_up)
        return true;
    pthread_mutex_lock(&comm->lock);
    comm->stop = true;
    pthread_cond_signal(&comm->more);
    double end = td__now() + (atomic_load(&comm->code) ? 1 : comm->timeout + 10);
    while (!comm->thread_ended && td__now() < end)
        sleep_a_little(&comm->done, &comm->lock, 0.05);
    bool ended = comm->thread_ended;
    pthread_mutex_unlock(&comm->lock);
    if (ended)
        pthread_join(comm->thread, NULL);
    else
        pthread_detach(comm->thread);
    comm->thread_up = false;
    return ended;
}
