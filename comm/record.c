/* comm/record.c: the public collectives in the list of a captured step: called once more, with the same tensors. A wait names its start.
 *
 * Those of device memory are in a graph where the device has one; those of host memory are the host's part of it then.
 */
#include "comm_room.h"

typedef struct {
    td__note note;
    td_comm *comm;
    td_tensor *a, *b;
    int number;                                /* reduction or root                                                               */
    bool started;
    td_work *work;                             /* of this turn                                                                    */
} noted;
typedef struct { noted *of; } waited;

static int again(void *state)
{
    noted *n = state;
    if (n->started) {
        n->work = n->note == TD_NOTE_ALL_REDUCE ? td_all_reduce_start(n->comm, n->a, (td_reduce)n->number)
                : n->note == TD_NOTE_BROADCAST ? td_broadcast_start(n->comm, n->a, n->number)
                : n->note == TD_NOTE_REDUCE_SCATTER ? td_reduce_scatter_start(n->comm, n->a, n->b, (td_reduce)n->number)
                                                    : td_all_gather_start(n->comm, n->a, n->b);
        return n->work ? 0 : td__pending();
    }
    switch (n->note) {
    case TD_NOTE_ALL_REDUCE: return td_all_reduce(n->comm, n->a, (td_reduce)n->number);
    case TD_NOTE_BROADCAST: return td_broadcast(n->comm, n->a, n->number);
    case TD_NOTE_REDUCE_SCATTER: return td_reduce_scatter(n->comm, n->a, n->b, (td_reduce)n->number);
    case TD_NOTE_ALL_GATHER: return td_all_gather(n->comm, n->a, n->b);
    default: return td_barrier(n->comm);
    }
}

static void drop(void *state)
{
    noted *n = state;
    if (n->a)
        td__tensor_unref(n->a);
    if (n->b)
        td__tensor_unref(n->b);
}

static void visit(void *state, td__visitor *v)
{
    noted *n = state;
    if (n->a)
        v->storage(v, n->a->storage, "the result of a collective");
}

static int wait_again(void *state)
{
    noted *n = ((waited *)state)->of;
    td_work *work = n->work;
    n->work = NULL;
    return td_wait(work);
}

static bool usable(const td_tensor *x)
{
    return !x || !x->poisoned;
}

void *td__note_begin(td__note what, bool started, td_comm *comm, td_tensor *a, td_tensor *b, int number)
{
    static const td__record_kind host = { "a collective", sizeof(noted), again, again, drop, visit };
    static const td__record_kind device = { "a collective on a device", sizeof(noted), again, NULL, drop, visit };
    if (!td__recording_now)
        return NULL;
    bool on_device = a && usable(a) && a->storage->device.kind == TD_CUDA;
    noted *n = usable(a) && usable(b) ? td__record_begin(on_device ? &device : &host) : (td__recording_now->depth++, NULL);
    if (!n)
        return NULL;
    *n = (noted){ what, comm, a, b, number, started, NULL };
    if (a)
        td__tensor_ref(a);
    if (b)
        td__tensor_ref(b);
    return n;
}

void td__note_started(void *note, td_work *work)
{
    noted *n = note;
    if (!n || !work->comm)
        return;
    n->work = work;
    work->noted = n;
}

void td__note_wait(td_work *work)
{
    static const td__record_kind host = { "td_wait", sizeof(waited), wait_again, wait_again, NULL, NULL };
    static const td__record_kind device = { "td_wait on a device", sizeof(waited), wait_again, NULL, NULL, NULL };
    if (!td__recording_now)
        return;
    if (td__recorded_here() && work && !work->noted)
        td__record_refuse("td_wait waits for a collective that was started before the step");
    waited *w = work && work->noted ? td__record_begin(work->on_device ? &device : &host) : (td__recording_now->depth++, NULL);
    if (w)
        w->of = work->noted;
}
