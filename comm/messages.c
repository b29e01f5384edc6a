/* comm/messages.c: messages between two ranks, for users: what may be passed, and what becomes of it.
 */
#include "point.h"
#include <tandem/comm_raw.h>

/* ---- checks --------------------------------------------------------------------------------------------------------------------------- */

static int check_peer(const char *who, const td_comm *comm, int peer, int tag)
{
    if (!comm)
        return td__fail(TD_ERR_ARGUMENT, "%s: the communicator is NULL", who);
    if (td__recorded_here())
        td__record_refuse("a message to one rank is sent or received by the step: only collectives can be replayed");
    if (peer < 0 || peer >= comm->size)
        return td__fail(TD_ERR_ARGUMENT, "%s: rank %d is none of the ranks 0 to %d", who, peer, comm->size - 1);
    if (tag < 0 || tag >= TD_TAGS)
        return td__fail(TD_ERR_ARGUMENT, "%s: tag %d is none of 0 to %d", who, tag, TD_TAGS - 1);
    return 0;
}

typedef struct { void *data; td_dtype dtype; int64_t count; td_tensor *x; } contents;   /* x NULL: plain memory                  */

static int of_memory(const char *who, const void *data, int64_t count, td_dtype dtype, contents *c)
{
    int code = td__dtype_check(who, dtype);
    if (code)
        return code;
    if (count < 0)
        return td__fail(TD_ERR_ARGUMENT, "%s: a count of %lld is negative", who, (long long)count);
    if (!data && count)
        return td__fail(TD_ERR_ARGUMENT, "%s: the pointer is NULL", who);
    *c = (contents){ (void *)data, dtype, count, NULL };
    return 0;
}

static int of_tensor(const char *who, td_tensor *x, bool received, contents *c)
{
    char shape[128], device[24];
    int code = td__tensor_check(who, x);
    if (code)
        return code;
    if (!td_is_contiguous(x))
        return td__fail(TD_ERR_SHAPE, "%s: x %s is not contiguous; pass td_contiguous of it", who, td__shape_text(x->shape, shape));
    if (x->storage->device.kind != TD_CPU)
        return td__fail(TD_ERR_UNSUPPORTED, "%s: x lies on %s; messages carry host memory: pass td_to of it, or use a collective of a group of two", who,
                        td__device_text(x->storage->device, device));
    if (received && td__tensor_inplace_check)
        code = td__tensor_inplace_check(x);
    if (!code && received)
        x->storage->version++;
    *c = (contents){ td__ptr(x), x->dtype, td_numel(x), x };
    return code;
}

static int ready(td_comm *comm)
{
    int code = atomic_load(&comm->code);
    return code ? td__comm_report(comm, code) : td__post_open(comm);
}

/* ---- blocking ---------------------------------------------------------------------------------------------------------------------------- */

static td__letter *letter(td_comm *comm, bool sends, bool started, int peer, int tag, const contents *c)
{
    return td__letter_new(comm, sends, started, peer, tag, c->data, c->dtype, c->count, c->x);
}

/* `code`: of taking the contents. */
static int one(const char *who, td_comm *comm, bool sends, int peer, int tag, const contents *c, int code)
{
    code = code ? code : check_peer(who, comm, peer, tag);
    code = code ? code : ready(comm);
    if (code)
        return code;
    td__letter *l = letter(comm, sends, false, peer, tag, c);
    return l ? td__letter_wait(l) : td__pending();
}

static int both(const char *who, td_comm *comm, int to, const contents *sent, int from, const contents *received, int tag)
{
    const char *a = sent->data, *b = received->data;
    const size_t na = (size_t)sent->count * td_dtype_size(sent->dtype), nb = (size_t)received->count * td_dtype_size(received->dtype);
    int code = check_peer(who, comm, to, tag);
    code = code ? code : check_peer(who, comm, from, tag);
    if (!code && na && nb && a < b + nb && b < a + na)
        code = td__fail(TD_ERR_ARGUMENT, "%s: what is sent and what is received share memory", who);
    code = code ? code : ready(comm);
    if (code)
        return code;
    td__letter *in = letter(comm, false, false, from, tag, received), *out = in ? letter(comm, true, false, to, tag, sent) : NULL;
    int first = in ? td__letter_wait(in) : td__pending(), second = out ? td__letter_wait(out) : td__pending();
    return first ? first : second;
}

int td_send(td_comm *comm, td_tensor *x, int to, int tag)
{
    TD_ENTER();
    contents c = { 0 };
    int code = of_tensor("td_send", x, false, &c);
    return one("td_send", comm, true, to, tag, &c, code);
}

int td_recv(td_comm *comm, td_tensor *x, int from, int tag)
{
    TD_ENTER();
    contents c = { 0 };
    int code = of_tensor("td_recv", x, true, &c);
    return one("td_recv", comm, false, from, tag, &c, code);
}

int td_sendrecv(td_comm *comm, td_tensor *sent, int to, td_tensor *received, int from, int tag)
{
    TD_ENTER();
    const char *who = "td_sendrecv";
    contents out = { 0 }, in = { 0 };
    int code = of_tensor(who, sent, false, &out);
    code = code ? code : of_tensor(who, received, true, &in);
    return code ? code : both(who, comm, to, &out, from, &in, tag);
}

int td_raw_send(td_comm *comm, const void *data, int64_t count, td_dtype dtype, int to, int tag)
{
    TD_ENTER();
    contents c = { 0 };
    int code = of_memory("td_raw_send", data, count, dtype, &c);
    return one("td_raw_send", comm, true, to, tag, &c, code);
}

int td_raw_recv(td_comm *comm, void *data, int64_t count, td_dtype dtype, int from, int tag)
{
    TD_ENTER();
    contents c = { 0 };
    int code = of_memory("td_raw_recv", data, count, dtype, &c);
    return one("td_raw_recv", comm, false, from, tag, &c, code);
}

int td_raw_sendrecv(td_comm *comm, const void *sent, int64_t sent_count, int to, void *received, int64_t received_count, int from, td_dtype dtype, int tag)
{
    TD_ENTER();
    const char *who = "td_raw_sendrecv";
    contents out = { 0 }, in = { 0 };
    int code = of_memory(who, sent, sent_count, dtype, &out);
    code = code ? code : of_memory(who, received, received_count, dtype, &in);
    return code ? code : both(who, comm, to, &out, from, &in, tag);
}

/* ---- started ------------------------------------------------------------------------------------------------------------------------------- */

static td_work *start(const char *who, td_comm *comm, bool sends, int peer, int tag, const contents *c, int code)
{
    code = code ? code : check_peer(who, comm, peer, tag);
    code = code ? code : ready(comm);
    td_work *work = code ? NULL : td__work_new(comm);
    if (!work)
        return td__work_failed(comm, code ? code : td__pending());
    work->letter = letter(comm, sends, true, peer, tag, c);
    if (work->letter)
        return work;
    td__work_recycle(comm, work);
    return td__work_failed(comm, td__pending());
}

td_work *td_send_start(td_comm *comm, td_tensor *x, int to, int tag)
{
    TD_ENTER();
    contents c = { 0 };
    int code = of_tensor("td_send_start", x, false, &c);
    return start("td_send_start", comm, true, to, tag, &c, code);
}

td_work *td_recv_start(td_comm *comm, td_tensor *x, int from, int tag)
{
    TD_ENTER();
    contents c = { 0 };
    int code = of_tensor("td_recv_start", x, true, &c);
    return start("td_recv_start", comm, false, from, tag, &c, code);
}

td_work *td_raw_send_start(td_comm *comm, const void *data, int64_t count, td_dtype dtype, int to, int tag)
{
    TD_ENTER();
    contents c = { 0 };
    int code = of_memory("td_raw_send_start", data, count, dtype, &c);
    return start("td_raw_send_start", comm, true, to, tag, &c, code);
}

td_work *td_raw_recv_start(td_comm *comm, void *data, int64_t count, td_dtype dtype, int from, int tag)
{
    TD_ENTER();
    contents c = { 0 };
    int code = of_memory("td_raw_recv_start", data, count, dtype, &c);
    return start("td_raw_recv_start", comm, false, from, tag, &c, code);
}
