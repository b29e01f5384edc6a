/* comm/point_wire.c: letters over the transport's wire (comm_impl.h), between hosts.
 *
 * Of each letter an envelope travels, with the data behind it in the same message when they are few. The receiver compares and answers; the sender
 * of a long message sends the data when it may. So a difference is told to both, and nobody sends what nobody takes. Of letters with the same
 * peer, direction and tag one begins when the one before it has posted its last message in that direction: the wire keeps their order then.
 */
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "point.h"

enum { WITH_ENVELOPE = 4096 };
enum { ENVELOPE, DATA, ANSWER, OF_EACH };      /* the wire's tags of a tag                                                     */

typedef struct td__parcel {
    td_wire_request envelope_request, data_request, answer_request;
    struct { td__envelope envelope; char data[WITH_ENVELOPE]; } out;
    struct { int32_t code, unused; char sentence[TD_SENTENCE]; } answer;
} parcel;

static int wire_tag(const td__letter *l, int which)
{
    return l->tag * OF_EACH + which;
}

/* A failure is recorded by the wire. */
static bool put(td__post *post, td__letter *l, int which, const void *data, size_t n, td_wire_request *r)
{
    return post->comm->backend->wire->send(post->comm->state, TD_WIRE_USERS, l->peer, wire_tag(l, which), data, n, r) == 0;
}

static bool get(td__post *post, td__letter *l, int which, void *data, size_t n, td_wire_request *r)
{
    return post->comm->backend->wire->recv(post->comm->state, TD_WIRE_USERS, l->peer, wire_tag(l, which), data, n, r) == 0;
}

static bool there(td__post *post, td_wire_request *r)
{
    return post->comm->backend->wire->test(post->comm->state, r) == 1;
}

static bool new_parcel(td__post *post, td__letter *l)
{
    if (!l->parcel)
        l->parcel = td__alloc(sizeof *l->parcel);
    if (l->parcel)
        return true;
    td__comm_fail(post->comm, TD_ERR_MEMORY, "rank %d has no memory for a message", td__comm_world_rank(post->comm, post->comm->rank));
    return false;
}

/* 0 new, 1 envelope under way, 2 it is gone, 3 answered and data under way */
static bool send_on(td__post *post, td__letter *l)
{
    const bool few = l->bytes <= WITH_ENVELOPE;
    parcel *p = l->parcel;
    const int before = l->step;
    if (l->step == 0) {
        if (l->before || !new_parcel(post, l))
            return false;
        p = l->parcel;
        td__envelope_of(l, &p->out.envelope);
        if (few && l->bytes)
            memcpy(p->out.data, l->data, l->bytes);
        if (!get(post, l, ANSWER, &p->answer, sizeof p->answer, &p->answer_request) ||
            !put(post, l, ENVELOPE, &p->out, sizeof p->out.envelope + (few ? l->bytes : 0), &p->envelope_request))
            return false;
        l->step = 1;
        if (few)
            td__letter_release(l);
    }
    if (l->step == 1 && there(post, &p->envelope_request))
        l->step = 2;
    if (l->step == 2 && there(post, &p->answer_request)) {
        if (p->answer.code) {
            p->answer.sentence[TD_SENTENCE - 1] = '\0';
            td__letter_failed(post, p->answer.code, p->answer.sentence);
            return false;
        }
        if (few) {
            l->done = true;
            return true;
        }
        if (!put(post, l, DATA, l->data, l->bytes, &p->data_request))
            return false;
        l->step = 3;
        td__letter_release(l);
    }
    if (l->step == 3 && there(post, &p->data_request))
        l->done = true;
    return l->done || l->step != before;
}

/* 0 new, 1 waits for the envelope, 2 answered: answer and data under way, 3 the data are there */
static bool receive_on(td__post *post, td__letter *l)
{
    const bool few = l->bytes <= WITH_ENVELOPE;
    parcel *p = l->parcel;
    const int before = l->step;
    if (l->step == 0) {
        if (l->before || !new_parcel(post, l))
            return false;
        p = l->parcel;
        if (!get(post, l, ENVELOPE, &p->out, sizeof p->out, &p->envelope_request))
            return false;
        l->step = 1;
    }
    if (l->step == 1 && there(post, &p->envelope_request)) {
        p->answer.code = td__letter_compare(post, l, &p->out.envelope, p->answer.sentence);
        const size_t n = p->answer.code ? sizeof p->answer : sizeof p->answer.code;
        bool well = true;
        if (!p->answer.code && few && l->bytes)
            memcpy(l->data, p->out.data, l->bytes);
        if (!p->answer.code && !few)
            well = get(post, l, DATA, l->data, l->bytes, &p->data_request);
        if (!well || !put(post, l, ANSWER, &p->answer, n, &p->answer_request))
            return false;
        for (double end = td__now() + 1; p->answer.code && !there(post, &p->answer_request) && td__now() < end;)
            usleep(1000);                      /* nobody moves it on when the communicator has failed                          */
        if (p->answer.code)
            return false;
        l->step = few ? 3 : 2;
        td__letter_release(l);
    }
    if (l->step == 2 && there(post, &p->data_request))
        l->step = 3;
    if (l->step == 3 && there(post, &p->answer_request))
        l->done = true;
    return l->done || l->step != before;
}

static bool wire_move(td__post *post, td__letter *l)
{
    return l->sends ? send_on(post, l) : receive_on(post, l);
}

/* The wire has no bell: give up the core at first, then sleep longer and longer. */
static void wire_sleep(td__post *post, uint32_t seen, int idle)
{
    (void)post, (void)seen;
    if (idle < 100)
        sched_yield();
    else
        usleep(idle < 300 ? 20 : idle < 1000 ? 100 : 1000);
}

/* What is under way goes on into memory that stays; what nobody has matched is taken back. */
static void wire_drop(td__post *post, td__letter *l)
{
    const td_wire *wire = post->comm->backend->wire;
    parcel *p = l->parcel;
    if (!p || l->step == 0)
        return;
    if (l->step == 1)
        wire->drop(post->comm->state, &p->envelope_request);
    if (l->sends ? l->step <= 2 : l->step >= 2)
        wire->drop(post->comm->state, &p->answer_request);
    if (l->sends ? l->step == 3 : l->step == 2)
        wire->drop(post->comm->state, &p->data_request);
    l->parcel = NULL;
}

static void wire_close(td__post *post, bool well)
{
    (void)well;
    for (td__letter *l = post->first; l; l = l->next)
        wire_drop(post, l);
}

const td__carrier td__carry_wire = { .move = wire_move, .drop = wire_drop, .sleep = wire_sleep, .close = wire_close };
