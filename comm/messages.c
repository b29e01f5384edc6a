/* comm/messages.c: messages between two ranks, for users: what may be passed, and what becomes of it.
 */
#include "point.h"

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

static int check_tensor(const char *who, td_tensor *x, bool received)
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
    return code;
}

static int ready(td_comm *comm)
{
    int code = atomic_load(&comm->code);
    return code ? td__comm_report(comm, code) : td__post_open(comm);
}

/* ---- blocking ---------------------------------------------------------------------------------------------------------------------------- */

static int one(const char *who, td_comm *comm, bool sends, td_tensor *x, int peer, int tag)
{
    int code = check_peer(who, comm, peer, tag);
    code = code ? code : check_tensor(who, x, !sends);
    code = code ? code : ready(comm);
    if (code)
        return code;
    td__letter *l = td__letter_new(comm, sends, false, peer, tag, td__ptr(x), x->dtype, td_numel(x), x);
    return l ? td__letter_wait(l) : td__pending();
}

int td_send(td_comm *comm, td_tensor *x, int to, int tag)
{
    TD_ENTER();
    return one("td_send", comm, true, x, to, tag);
}

int td_recv(td_comm *comm, td_tensor *x, int from, int tag)
{
    TD_ENTER();
    return one("td_recv", comm, false, x, from, tag);
}

int td_sendrecv(td_comm *comm, td_tensor *sent, int to, td_tensor *received, int from, int tag)
{
    TD_ENTER();
    const char *who = "td_sendrecv";
    int code = check_peer(who, comm, to, tag);
    code = code ? code : check_peer(who, comm, from, tag);
    code = code ? code : check_tensor(who, sent, false);
    code = code ? code : check_tensor(who, received, true);
    if (!code && td__overlaps(sent, received) && td_numel(sent) && td_numel(received))
        code = td__fail(TD_ERR_ARGUMENT, "%s: what is sent and what is received share memory", who);
    code = code ? code : ready(comm);
    if (code)
        return code;
    td__letter *in = td__letter_new(comm, false, false, from, tag, td__ptr(received), received->dtype, td_numel(received), received);
    td__letter *out = in ? td__letter_new(comm, true, false, to, tag, td__ptr(sent), sent->dtype, td_numel(sent), sent) : NULL;
    int first = in ? td__letter_wait(in) : td__pending(), second = out ? td__letter_wait(out) : td__pending();
    return first ? first : second;
}

/* ---- started ------------------------------------------------------------------------------------------------------------------------------- */

static td_work *start(const char *who, td_comm *comm, bool sends, td_tensor *x, int peer, int tag)
{
    int code = check_peer(who, comm, peer, tag);
    code = code ? code : check_tensor(who, x, !sends);
    code = code ? code : ready(comm);
    td_work *work = code ? NULL : td__work_new(comm);
    if (!work)
        return td__work_failed(comm, code ? code : td__pending());
    work->letter = td__letter_new(comm, sends, true, peer, tag, td__ptr(x), x->dtype, td_numel(x), x);
    if (work->letter)
        return work;
    td__work_recycle(comm, work);
    return td__work_failed(comm, td__pending());
}

td_work *td_send_start(td_comm *comm, td_tensor *x, int to, int tag)
{
    TD_ENTER();
    return start("td_send_start", comm, true, x, to, tag);
}

td_work *td_recv_start(td_comm *comm, td_tensor *x, int from, int tag)
{
    TD_ENTER();
    return start("td_recv_start", comm, false, x, from, tag);
}
