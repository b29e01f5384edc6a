/* comm/comm.c: a collective's way: numbered, run in the caller or by the communicator's thread, waited for.
 *
 * Collectives of a communicator run in the order of the calls. A blocking call runs in the caller when nothing started is
 * pending (and the transport allows it), else it takes its turn in the queue. What goes wrong in a transport belongs to the
 * communicator: its first reason stays, every later call returns it, and the user's thread that waits makes it its error.
 */
#include <stdio.h>
#include "point.h"

/* ---- failing ---------------------------------------------------------------------------------------------------------------- */

int td__comm_fail(td_comm *comm, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    pthread_mutex_lock(&comm->lock);
    if (!atomic_load(&comm->code)) {
        vsnprintf(comm->sentence, sizeof comm->sentence, format, args);
        atomic_store(&comm->code, code < 0 ? code : TD_ERR_INTERNAL);
    }
    pthread_mutex_unlock(&comm->lock);
    va_end(args);
    return atomic_load(&comm->code);
}

int td__comm_report(td_comm *comm, int code)
{
    int first = atomic_load(&comm->code);
    if (!first)
        return code;
    pthread_mutex_lock(&comm->lock);           /* the watching thread has left it for us by now, or will not                     */
    atomic_store(&comm->told, true);
    pthread_mutex_unlock(&comm->lock);
    return td__pending() ? first : td__fail_verbatim(first, comm->sentence);
}

/* ---- running ------------------------------------------------------------------------------------------------------------------- */

int td__comm_take_turn(td_comm *comm, td_coll *coll)
{
    td__control_enter(comm->control, coll);
    return coll->kind == TD_COLL_SPLIT ? td__group_split_run(comm, coll) : comm->backend->run(comm->state, coll);
}

int td__comm_execute(td_comm *comm, td_coll *coll)
{
    coll->last_rank = -1;
    coll->last_arrived = 0;
    if (!comm->control) {
        coll->arrived = coll->begun = coll->ended = 0;
        return comm->backend->run(comm->state, coll);
    }
    int code = td__verdict_take(comm->control);
    if (!code)
        code = atomic_load(&comm->code);
    if (code)
        return code;
    coll->arrived = coll->begun = td__now();
    td__comm_box_enter(coll);
    if (comm->backend->on_thread)
        atomic_fetch_add(&comm->control->mine->step, 1);
    code = coll->in_counts ? td__uneven_agree(comm, coll) : 0;
    code = code ? code : td__comm_take_turn(comm, coll);
    coll->ended = td__now();
    if (!code)
        td__control_leave(comm->control);
    td__comm_box_leave(coll, !code);
    return code;
}

static bool in_caller(td_comm *comm)
{
    return !comm->control || (!comm->backend->on_thread && atomic_load_explicit(&comm->pending, memory_order_acquire) == 0);
}

int td__coll_run(td_comm *comm, td_coll *coll)
{
    td__comm_settle();
    int code = atomic_load(&comm->code);
    if (code)
        return td__comm_report(comm, code);
    if (td__on_device(coll))
        return td__work_wait(td__coll_start(comm, coll), coll);
    coll->group = td__comm_group(comm);
    coll->seq = ++comm->seq;
    coll->turn = comm->turn += td__coll_turns(coll);
    if (in_caller(comm))
        return (code = td__comm_execute(comm, coll)) ? td__comm_report(comm, code) : 0;
    td_work *work = td__work_new(comm);
    if (!work)
        return td__pending();
    work->coll = *coll;
    code = td__uneven_keep(work);
    code = code ? code : td__comm_enqueue(comm, work);
    return code ? code : td__work_wait(work, coll);
}

/* ---- started ------------------------------------------------------------------------------------------------------------------- */

/* One that td_wait finds done, with the error that this thread has just recorded, or the communicator's. */
td_work *td__work_failed(td_comm *comm, int code)
{
    static td_work no_memory = { .state = TD_WORK_DONE, .code = TD_ERR_MEMORY };
    td_work *work = comm ? td__work_new(comm) : NULL;
    if (!work)
        return &no_memory;
    work->code = code;
    snprintf(work->sentence, sizeof work->sentence, "%s", td_error_message());
    atomic_store(&work->state, TD_WORK_DONE);
    return work;
}

td_work *td__coll_start_holding(td_comm *comm, const td_coll *coll, td_tensor *a, td_tensor *b)
{
    td__comm_settle();
    td_work *work = td__work_new(comm);
    if (!work)
        return td__work_failed(NULL, 0);
    work->coll = *coll;
    work->coll.group = td__comm_group(comm);
    work->code = atomic_load(&comm->code);
    if (work->code) {
        atomic_store(&work->state, TD_WORK_DONE);
        return work;
    }
    work->hold[0] = a, work->hold[1] = b;
    for (int i = 0; i < 2; i++)
        if (work->hold[i])
            td__tensor_ref(work->hold[i]);
    if (td__on_device(coll)) {
        work->on_device = true;
        work->code = td__device_start(comm, work);
        if (work->code && !atomic_load(&comm->code))
            snprintf(work->sentence, sizeof work->sentence, "%s", td_error_message());
        if (work->code)
            atomic_store(&work->state, TD_WORK_DONE);
        return work;
    }
    work->coll.seq = ++comm->seq;
    work->coll.turn = comm->turn += td__coll_turns(coll);
    if (!comm->control) {                      /* alone: there is nobody to wait for */
        work->code = td__comm_execute(comm, &work->coll);
        atomic_store(&work->state, TD_WORK_DONE);
        return work;
    }
    int code = td__uneven_keep(work);
    code = code ? code : td__comm_enqueue(comm, work);
    if (code) {
        work->code = code;
        snprintf(work->sentence, sizeof work->sentence, "%s", td_error_message());
        atomic_store(&work->state, TD_WORK_DONE);
    }
    return work;
}

td_work *td__coll_start(td_comm *comm, const td_coll *coll)
{
    return td__coll_start_holding(comm, coll, NULL, NULL);
}

int td__work_wait(td_work *work, td_coll *figures)
{
    if (!work)
        return td__fail(TD_ERR_ARGUMENT, "td_wait: the work is NULL");
    if (!work->comm)
        return td__fail(work->code, "td_wait: no memory for a started collective");
    int state = atomic_load(&work->state);
    if (state == TD_WORK_FREE)
        return td__fail(TD_ERR_STATE, "td_wait: this work has been waited for already");
    td_comm *comm = work->comm;
    if (work->letter && state != TD_WORK_DONE) {
        int done = td__letter_wait(work->letter);
        td__work_recycle(comm, work);
        return done;
    }
    int code = state == TD_WORK_DONE ? 0 : work->on_device ? td__device_wait(comm, work) : td__comm_await(comm, work);
    if (code && work->on_device)
        td__work_recycle(comm, work);
    if (code)                                  /* the transport hangs with it: work and tensors are its own now */
        return td__comm_report(comm, code);
    code = work->code;
    if (figures)
        *figures = work->coll;
    char sentence[TD_SENTENCE];
    memcpy(sentence, work->sentence, sizeof sentence);
    td__work_recycle(comm, work);
    if (code && *sentence)
        return td__fail_verbatim(code, sentence);
    return code ? td__comm_report(comm, code) : 0;
}

int td_wait(td_work *work)
{
    TD_ENTER();
    td__note_wait(work);
    int code = td__work_wait(work, NULL);
    td__record_end();
    return code;
}

bool td_test(td_work *work)
{
    TD_ENTER();
    if (td__recorded_here())
        td__record_refuse("td_test is called by the step: every replay would go on as this call did");
    if (!work || !work->comm)
        return true;
    if (atomic_load(&work->state) == TD_WORK_DONE)
        return true;
    td_comm *comm = work->comm;
    if (work->letter && atomic_load(&work->state) != TD_WORK_FREE)
        return td__letter_test(work->letter);
    double now = td__now();
    if (!work->checked)
        work->checked = now;
    if (atomic_load(&work->state) == TD_WORK_FREE || atomic_load(&comm->code))
        return true;                           /* td_wait says why */
    if (work->on_device)
        return td__device_test(comm, work);
    if (comm->backend->on_thread && now - work->checked > 0.05) {
        work->checked = now;
        return td__control_check(comm->control, &work->coll, now) != 0;
    }
    return false;
}

void td_abort(td_comm *comm, const char *why)
{
    TD_ENTER();
    if (!comm)
        return;
    char text[TD_SENTENCE];
    snprintf(text, sizeof text, "rank %d gave up %s: %.800s", td__comm_world_rank(comm, comm->rank), comm->name[0] ? comm->name : "its communicator",
             why ? why : "td_abort was called");
    if (!comm->control)
        return;
    td__verdict(comm->control, TD_ERR_ABORTED, text);
    if (!comm->control->whole && comm->backend->abort)
        comm->backend->abort(comm->state);
}

/* ---- small things ----------------------------------------------------------------------------------------------------------------- */

int td_rank(const td_comm *comm)
{
    return comm ? comm->rank : 0;
}

int td_size(const td_comm *comm)
{
    return comm ? comm->size : 1;
}

const char *td_comm_backend_name(const td_comm *comm)
{
    return comm ? comm->backend->name : "";
}

void td__comm_init(td_comm *comm)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&comm->lock, NULL);
    pthread_cond_init(&comm->more, &monotonic);
    pthread_cond_init(&comm->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void td__comm_trim(td_comm *comm)
{
    while (comm->all) {
        td_work *next = comm->all->all;
        td__work_let_go(comm->all);
        td__free(comm->all->counts);
        td__free(comm->all);
        comm->all = next;
    }
    comm->spare = NULL;
    td__free(comm->uneven);
    comm->uneven = NULL;
}

void td__comm_destroy(td_comm *comm)
{
    td__comm_trim(comm);
    pthread_mutex_destroy(&comm->lock);
    pthread_cond_destroy(&comm->more);
    pthread_cond_destroy(&comm->done);
}
