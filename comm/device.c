/* comm/device.c: collectives of a device's own memory, which the device's library carries out on a stream of its own.
 *
 * Started from the user's thread: the library's stream waits for what the compute stream was given so far, and runs the collective behind it;
 * waiting for one makes the compute stream wait. The host waits for nothing but the library's opening. What was started stands in a ring until
 * it is known to have passed; watch.c looks after it. Turns of the device are counted apart from those of host memory.
 *
 * The library is opened by the first collective of device memory. All ranks call that at the same place in their sequence, so what they say to
 * each other meanwhile goes through the host's transport.
 */
#include <stdio.h>
#include <unistd.h>
#include "comm_room.h"

bool td__on_device(const td_coll *coll)
{
    return coll->device.kind == TD_CUDA;
}

/* ---- alone: a sum over one rank is its own part ------------------------------------------------------------------------------------ */

static bool forced(void)
{
    const char *wanted = td__env(TD_ENV_COMM);
    return wanted && !strcmp(wanted, "nccl");
}

static int alone(const td_coll *coll)
{
    const td_device_ops *ops = td__device_ops(coll->device);
    bool reduces = coll->kind == TD_COLL_ALL_REDUCE || coll->kind == TD_COLL_REDUCE_SCATTER || coll->kind == TD_COLL_REDUCE;
    const int64_t n = td__coll_alone(coll);
    if (!ops)
        return td__pending();
    if (coll->kind == TD_COLL_BARRIER || coll->kind == TD_COLL_REPLAY || n == 0)
        return 0;
    if (reduces && (coll->op == TD_SUM || coll->op == TD_MEAN) && (coll->pre != 1 || coll->post != 1)) {
        ops->kernels->combine(coll->dtype, TD_COMBINE_SUM, n, 1, &coll->in, &coll->pre, coll->post, &coll->out, 1);
        return td__pending();
    }
    size_t bytes = (size_t)n * td_dtype_size(coll->dtype);
    return coll->in == coll->out ? 0 : ops->copy(coll->device.index, coll->out, false, coll->in, false, bytes);
}

/* ---- opening ------------------------------------------------------------------------------------------------------------------------ */

typedef struct { td_comm *comm; td_coll coll; double since; } waiting;

static int ask(void *of)
{
    waiting *w = of;
    return td__watch_look(w->comm, &w->coll, w->since);
}

/* One rank's failure is everybody's sentence. */
static int agreed(td_comm *comm, int code, const char *error)
{
    if (code && !td__pending())
        td__fail(code, "%s", error);
    return td__comm_agree(comm, code ? code : td__pending(), "opening NCCL");
}

static int open_library(td_comm *comm, td__device_side *dev)
{
    char id[TD_COMM_ID] = "", error[400] = "";
    waiting w = { comm, { .kind = TD_COLL_BARRIER, .device = dev->device, .seq = comm->seq + 1, .label = "opening NCCL", .site = td__site }, td__now() };
    int code = agreed(comm, dev->table->load(error, sizeof error), error);
    if (!code)
        code = agreed(comm, comm->rank == 0 ? dev->table->make_id(id, error, sizeof error) : 0, error);
    if (!code)
        code = td__comm_bytes(comm, id, sizeof id, 0, "opening NCCL");
    if (code)
        return code;
    w.since = td__now();
    code = dev->table->open(dev->device.index, id, comm->rank, comm->size, &(td_patience){ ask, &w }, &dev->state, error, sizeof error);
    if (atomic_load(&comm->code))
        return td__comm_report(comm, code);
    return agreed(comm, code, error);
}

static void free_marks(td__device_side *dev, td__marks *mark)
{
    void *const event[] = { mark->begin, mark->end, mark->waited };
    for (int i = 0; i < 3; i++)
        if (event[i])
            dev->ops->event_free(dev->device.index, event[i]);
    *mark = (td__marks){ 0 };
}

void td__device_put_back(td__device_side *dev, td__marks *mark)
{
    if (mark->end && dev->spares < dev->room)
        dev->spare[dev->spares++] = *mark;
    else
        free_marks(dev, mark);
    *mark = (td__marks){ 0 };
}

static void free_side(td__device_side *dev)
{
    for (uint64_t i = 0; i < dev->spares; i++)
        free_marks(dev, &dev->spare[i]);
    for (uint64_t t = dev->passed + 1; t <= dev->started; t++)
        free_marks(dev, &dev->flight[t % dev->room].mark);
    pthread_mutex_destroy(&dev->lock);
    pthread_cond_destroy(&dev->news);
    td__free(dev->view.stopped_since);
    td__free(dev->flight);
    td__free(dev->spare);
    td__free(dev);
}

static td__device_side *new_side(td_comm *comm, td_device device, const td_device_ops *ops)
{
    td__device_side *dev = td__calloc(sizeof *dev);
    if (!dev)
        return NULL;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&dev->lock, NULL);
    pthread_cond_init(&dev->news, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *dev = (td__device_side){ .table = ops->comm, .ops = ops, .device = device, .room = 64, .lock = dev->lock, .news = dev->news };
    dev->flight = td__calloc(dev->room * sizeof *dev->flight);
    dev->spare = td__calloc(dev->room * sizeof *dev->spare);
    if (comm->control) {
        dev->view = td__control_look(comm->control);
        dev->view.stopped_since = td__calloc((size_t)comm->control->n * sizeof *dev->view.stopped_since);
    }
    if (dev->flight && dev->spare && (!comm->control || dev->view.stopped_since))
        return dev;
    free_side(dev);
    return NULL;
}

static int open_side(td_comm *comm, td_device device)
{
    char text[24];
    const td_device_ops *ops = td__device_ops(device);
    if (!ops)
        return td__pending();
    if (comm->dev && td__device_equal(comm->dev->device, device))
        return 0;
    if (comm->dev)
        return td__fail(TD_ERR_DEVICE, "a communicator serves one device of a process, %s already, and not %s too",
                        td__device_text(comm->dev->device, text), td__device_text(device, (char[24]){ 0 }));
    if (!ops->comm)
        return td__fail(TD_ERR_UNSUPPORTED, "collectives of tensors on %s: this device brings none; move them to the CPU",
                        td__device_text(device, text));
    comm->dev = new_side(comm, device, ops);
    int code = comm->dev ? open_library(comm, comm->dev) : td__pending();
    code = code ? code : td__watch_start(comm);
    if (code && comm->dev) {
        if (comm->dev->state)
            comm->dev->table->abort(comm->dev->state);
        td__device_close(comm, false);
    }
    return code;
}

/* ---- the ring ------------------------------------------------------------------------------------------------------------------------ */

/* Under the lock: room for one more, and events for it. */
static int make_room(td__device_side *dev, td__marks *mark)
{
    if (dev->started - dev->passed == dev->room) {
        uint64_t room = 2 * dev->room;
        td__flight *flight = td__calloc(room * sizeof *flight);
        td__marks *spare = td__calloc(room * sizeof *spare);
        if (!flight || !spare) {
            td__free(flight);
            td__free(spare);
            return td__pending();
        }
        for (uint64_t t = dev->passed + 1; t <= dev->started; t++)
            flight[t % room] = dev->flight[t % dev->room];
        memcpy(spare, dev->spare, dev->spares * sizeof *spare);
        td__free(dev->flight);
        td__free(dev->spare);
        dev->flight = flight, dev->spare = spare, dev->room = room;
    }
    const int index = dev->device.index;
    if (dev->spares)
        *mark = dev->spare[--dev->spares];
    else
        *mark = (td__marks){ dev->table->timer_new(index), dev->table->timer_new(index), dev->table->timer_new(index) };
    if (mark->begin && mark->end && mark->waited)
        return 0;
    free_marks(dev, mark);
    return td__pending();
}

/* Numbers it, tells the other ranks of the host, compares with theirs, and puts it into the ring. */
static int enter(td_comm *comm, td_coll *coll, td__marks *mark)
{
    td__device_side *dev = comm->dev;
    int code;
    pthread_mutex_lock(&dev->lock);
    td__watch_passed(dev, comm);
    code = make_room(dev, mark);
    if (!code) {
        coll->seq = ++comm->seq;
        coll->turn = ++dev->started;
        coll->arrived = td__now();
        td__flight *flight = &dev->flight[coll->turn % dev->room];
        *flight = (td__flight){ .coll = *coll, .mark = *mark, .started = coll->arrived };
        flight->coll.counts = flight->coll.in_counts = NULL;   /* the caller's: it is told of longer than they live             */
        if (comm->control) {
            td__control_started(comm->control, coll);
            code = td__watch_compare(comm);
        }
        if (dev->started == dev->passed + 1)   /* it sleeps; else it looks often enough                                       */
            pthread_cond_signal(&dev->news);
    }
    pthread_mutex_unlock(&dev->lock);
    return code;
}

static void note_in_box(const td_coll *coll)
{
    char text[TD_CALL_TEXT];
    td_fingerprint p;
    td__coll_fingerprint(coll, &p);
    td__coll_text(&p, coll->label, coll->group, text);
    td__box *box = td__box_get();
    memcpy(box->last, text, sizeof box->last - 1);
    atomic_fetch_add_explicit(&box->collectives, 1, memory_order_relaxed);
}

/* What goes wrong here goes wrong for all: they wait for this rank. */
static int give_up(td_comm *comm, int code, const td_coll *coll, const char *error)
{
    char text[TD_SENTENCE], call[TD_CALL_TEXT];
    int known = atomic_load(&comm->code);
    for (double end = td__now() + 1; !known && td__now() < end; known = atomic_load(&comm->code))
        usleep(2000);                          /* often the echo of a peer's death, which watch.c is about to find                */
    if (known)
        return known;
    td__coll_call_text(coll, call);
    snprintf(text, sizeof text, "rank %d could not start %s: %s", td__comm_world_rank(comm, comm->rank), call, error);
    return comm->control ? td__verdict(comm->control, code, text) : td__comm_fail(comm, code, "%s", text);
}

static int failed_already(void *of)
{
    td_comm *comm = of;
    return atomic_load(&comm->code);           /* watch.c looks after the rest                                                  */
}

int td__device_start(td_comm *comm, td_work *work)
{
    td_coll *coll = &work->coll;
    td__marks mark = { 0 };
    char error[400] = "";
    if (comm->size == 1 && !comm->dev && !forced()) {
        coll->seq = ++comm->seq;
        int code = alone(coll);
        atomic_store(&work->state, TD_WORK_DONE);
        return code;
    }
    int code = coll->in_counts ? td__uneven_agree_by_host(comm, coll) : 0;
    code = code ? code : open_side(comm, coll->device);
    if (!code && comm->control)
        code = td__verdict_take(comm->control);
    code = code ? code : enter(comm, coll, &mark);
    if (code)
        return code;
    td__device_side *dev = comm->dev;
    note_in_box(coll);
    if (coll->kind == TD_COLL_REPLAY)
        code = dev->ops->event_record(dev->device.index, mark.end, NULL);
    else
        code = dev->table->start(dev->state, coll, mark.begin, mark.end, &(td_patience){ failed_already, comm }, error, sizeof error);
    if (code < 0)
        return give_up(comm, code, coll, *error ? error : td_error_message());
    pthread_mutex_lock(&dev->lock);
    td__flight *flight = &dev->flight[coll->turn % dev->room];
    flight->enqueued = true;
    if (code == 1) {                           /* recorded, not run: the event may be asked nothing, but waited for once            */
        work->captured = flight->mark;
        flight->mark = (td__marks){ 0 };
    }
    pthread_mutex_unlock(&dev->lock);
    atomic_store(&work->state, TD_WORK_RUNNING);
    return 0;
}

int td__device_wait(td_comm *comm, td_work *work)
{
    td__device_side *dev = comm->dev;
    int code = atomic_load(&comm->code);
    if (code || !dev)
        return code ? code : td__fail(TD_ERR_STATE, "td_wait: the communicator has been closed");
    pthread_mutex_lock(&dev->lock);
    const int index = dev->device.index;
    td__flight *flight = work->captured.end || work->coll.turn <= dev->passed ? NULL : &dev->flight[work->coll.turn % dev->room];
    if (work->captured.end)
        code = dev->ops->event_wait(index, work->captured.end, NULL);
    td__device_put_back(dev, &work->captured);
    if (flight) {
        code = flight->waited ? 0 : dev->ops->event_record(index, flight->mark.waited, NULL);
        flight->waited = true;
        code = code ? code : dev->ops->event_wait(index, flight->mark.end, NULL);
    }
    pthread_mutex_unlock(&dev->lock);
    return code;
}

bool td__device_test(td_comm *comm, td_work *work)
{
    td__device_side *dev = comm->dev;
    if (work->captured.end || !dev)
        return true;
    pthread_mutex_lock(&dev->lock);
    td__watch_passed(dev, comm);
    bool done = work->coll.turn <= dev->passed;
    pthread_mutex_unlock(&dev->lock);
    return done;
}

void td__comm_device_times(td_comm *comm, double *comm_ms, double *exposed_ms)
{
    td__device_side *dev = comm->dev;
    *comm_ms = *exposed_ms = 0;
    if (!dev)
        return;
    pthread_mutex_lock(&dev->lock);
    td__watch_passed(dev, comm);
    *comm_ms = dev->comm_ms, *exposed_ms = dev->exposed_ms;
    dev->comm_ms = dev->exposed_ms = 0;
    pthread_mutex_unlock(&dev->lock);
}

int td__comm_replayed(td_comm *comm, td_device device, int64_t calls, const char *label)
{
    td_coll coll = { .kind = TD_COLL_REPLAY, .device = device, .count = calls, .pre = 1, .post = 1, .site = td__site, .label = label };
    return calls > 0 ? td__coll_run(comm, &coll) : 0;
}

/* ---- the end -------------------------------------------------------------------------------------------------------------------------- */

int td__device_drain(td_comm *comm)
{
    td__device_side *dev = comm->dev;
    bool done = !dev;
    while (!done && !atomic_load(&comm->code)) {
        pthread_mutex_lock(&dev->lock);
        td__watch_passed(dev, comm);
        done = dev->passed == dev->started;
        pthread_mutex_unlock(&dev->lock);
        if (!done)
            usleep(200);
    }
    int code = atomic_load(&comm->code);
    return code ? td__comm_report(comm, code) : 0;
}

void td__device_close(td_comm *comm, bool well)
{
    td__device_side *dev = comm->dev;
    char error[400];
    if (!dev)
        return;
    td__watch_stop(comm);
    if (dev->state) {
        waiting w = { comm, { .kind = TD_COLL_BARRIER, .device = dev->device, .seq = comm->seq, .turn = dev->started, .label = "closing NCCL" }, td__now() };
        well = well && !atomic_load(&comm->code);
        int code = dev->table->close(dev->state, well, &(td_patience){ ask, &w }, error, sizeof error);
        if (code && well)
            td__say("NCCL could not be closed: %s", error);
        if (!code && well && comm->control)    /* closing it has waited for all: who still looks must find this rank done with them     */
            atomic_store_explicit(&comm->control->mine->device_passed, dev->started, memory_order_release);
    }
    comm->dev = NULL;
    free_side(dev);
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------------ */

typedef struct { const td_device_comm *table; int index; } memory_owner;

static void release(void *owner, void *data)
{
    memory_owner *o = owner;
    o->table->free(o->index, data);
    td__free(o);
}

td_storage *td__device_storage(td_comm *comm, td_device device, size_t bytes)
{
    const td_device_ops *ops = td__device_ops(device);
    if (!ops)
        return NULL;
    if (ops->comm && bytes && (comm->size > 1 || forced())) {
        memory_owner *owner = td__alloc(sizeof *owner);
        void *memory = owner ? ops->comm->alloc(device.index, bytes) : NULL;
        if (memory) {
            *owner = (memory_owner){ ops->comm, device.index };
            td_storage *s = td__storage_foreign(device, memory, bytes, release, owner);
            if (s)
                return s;
            ops->comm->free(device.index, memory);
        }
        td__free(owner);
        return NULL;
    }
    td_storage *s = td__storage_new(device, bytes);
    if (!s)
        return NULL;
    td_tensor *x = td__tensor_on(s, TD_SHAPE((int64_t)bytes), TD_U8, 0);
    int code = td__tensor_check("td_zeros_shared", x);
    code = code ? code : td__fill(x, 0);
    td__tensor_unref(x);
    if (!code)
        return s;
    td__storage_unref(s);
    return NULL;
}
