/* comm/record.c: the public collectives in the list of a captured step: called once more, with the same tensors. A wait names its start.
 *
 * Those of device memory are in a graph where the device has one: a launch is watched as one collective more behind each of them. Those of host
 * memory are the host's part of the graph then.
 */
#include <capture.h>
#include "comm_room.h"

typedef struct {
    td__call call;                             /* rows and in_rows: its own                                                       */
    bool started;
    td_work *work;                             /* of this turn                                                                    */
} noted;
typedef struct { noted *of; } waited;

static int again(void *state)
{
    noted *n = state;
    n->call.made[0] = n->call.made[1] = NULL;
    if (!n->started)
        return td__call_now(n->call);
    n->work = td__call_start(n->call);
    return n->work ? 0 : td__pending();
}

static int launched(void *state)
{
    noted *n = state;
    const td_tensor *x = n->call.in ? n->call.in : n->call.out;
    return td__comm_replayed(n->call.comm, x->storage->device, 1, NULL);
}

static int watch_launch(void *state)
{
    return td__graph_after_launch(launched, state);
}

static void drop(void *state)
{
    noted *n = state;
    if (n->call.out)
        td__tensor_unref(n->call.out);
    if (n->call.in && n->call.in != n->call.out)
        td__tensor_unref(n->call.in);
    td__free((void *)(uintptr_t)n->call.rows);
    td__free((void *)(uintptr_t)n->call.in_rows);
}

static void visit(void *state, td__visitor *v)
{
    noted *n = state;
    if (n->call.out)
        v->storage(v, n->call.out->storage, "the result of a collective");
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

static const int64_t *kept_rows(const int64_t *rows, int n)
{
    int64_t *kept = rows ? td__alloc((size_t)n * sizeof *kept) : NULL;
    if (kept)
        memcpy(kept, rows, (size_t)n * sizeof *kept);
    else if (rows)
        td__record_refuse("there is no memory to note the numbers of rows of a collective");
    return kept;
}

void *td__note_begin(const td__call *call, bool started)
{
    static const td__record_kind host = { "a collective", sizeof(noted), again, again, drop, visit };
    static const td__record_kind device = { "a collective on a device", sizeof(noted), again, watch_launch, drop, visit };
    if (!td__recording_now)
        return NULL;
    const td_tensor *x = call->in ? call->in : call->out;
    bool on_device = x && usable(x) && x->storage->device.kind == TD_CUDA, good = usable(call->out) && usable(call->in) && !call->raw && call->comm;
    noted *n = good ? td__record_begin(on_device ? &device : &host) : (td__recording_now->depth++, NULL);
    if (!n)
        return NULL;
    *n = (noted){ *call, started, NULL };
    n->call.rows = kept_rows(call->rows, call->comm->size);
    n->call.in_rows = kept_rows(call->in_rows, call->comm->size);
    if (call->out)
        td__tensor_ref(call->out);
    if (call->in && call->in != call->out)
        td__tensor_ref(call->in);
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
