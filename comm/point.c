/* comm/point.c: a communicator's post: letters that are under way, and whoever moves them on.
 *
 * Letters stand in the order of the calls. A look at all of them (`pass`) moves each as far as it goes. The thread that waits for one passes, spins
 * for a moment, then sleeps on the post's bell, which peers of the same host ring; every 20 ms it looks whether the one it waits for still lives,
 * and at the clock. Two letters of one rank to itself meet here, whatever carries the others.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "point.h"

#define TICK 0.02

/* ---- text ------------------------------------------------------------------------------------------------------------------------------ */

static void letter_text(const td_comm *comm, bool sends, int peer, const td__envelope *e, const void *site, char into[TD_CALL_TEXT])
{
    char place[160];
    const char *group = td__comm_group(comm);
    int used = snprintf(into, TD_CALL_TEXT, "%s(%s, %lld, %s %d, tag %d) #%llu%s%s", sends ? "send" : "recv", td_dtype_name((td_dtype)e->dtype),
                        (long long)e->count, sends ? "to" : "from", td__comm_world_rank(comm, peer), e->tag, (unsigned long long)e->seq,
                        group ? " of " : "", group ? group : "");
    if (site && used < TD_CALL_TEXT && *td__site_text(site, place, sizeof place))
        snprintf(into + used, TD_CALL_TEXT - (size_t)used, " at %s", place);
}

void td__envelope_of(const td__letter *l, td__envelope *e)
{
    const td__control *c = l->comm->control;
    memset(e, 0, sizeof *e);
    e->count = l->count, e->seq = l->seq, e->dtype = (int32_t)l->dtype, e->tag = l->tag;
    e->exe_id = c ? c->mine->exe_id : 0;
    uint64_t offset = c ? (uint64_t)(uintptr_t)l->site - c->mine->exe_base : 0;
    e->site = c && offset < c->mine->exe_size ? offset : 0;
}

void td__letter_call_text(const td__letter *l, char into[TD_CALL_TEXT])
{
    td__envelope e;
    td__envelope_of(l, &e);
    letter_text(l->comm, l->sends, l->peer, &e, l->site, into);
}

/* ---- what goes wrong ------------------------------------------------------------------------------------------------------------------- */

void td__letter_failed(td__post *post, int code, const char *sentence)
{
    if (post->comm->control)
        td__verdict(&post->view, code, sentence);
    else
        td__comm_fail(post->comm, code, "%s", sentence);
}

int td__letter_compare(td__post *post, td__letter *l, const td__envelope *theirs, char sentence[TD_SENTENCE])
{
    if (theirs->dtype == (int32_t)l->dtype && theirs->count == l->count)
        return 0;
    const td_comm *comm = post->comm;
    const td__slot *me = comm->control->mine;
    char sent[TD_CALL_TEXT], mine[TD_CALL_TEXT];
    const bool known = theirs->site && theirs->exe_id && theirs->exe_id == me->exe_id;   /* the same program                    */
    letter_text(comm, true, comm->rank, theirs, known ? (const void *)(uintptr_t)(me->exe_base + theirs->site) : NULL, sent);
    td__letter_call_text(l, mine);
    snprintf(sentence, TD_SENTENCE, "rank %d called %s while rank %d called %s", td__comm_world_rank(comm, l->peer), sent,
             td__comm_world_rank(comm, comm->rank), mine);
    td__letter_failed(post, TD_ERR_MISMATCH, sentence);
    return TD_ERR_MISMATCH;
}

static int slot_of(const td__post *post, int peer)
{
    for (int i = 0; i < post->view.n; i++)
        if (post->view.slot[i].rank == td__comm_world_rank(post->comm, peer))
            return i;
    return -1;
}

/* ---- moving on ------------------------------------------------------------------------------------------------------------------------------ */

static void ring_own(td__post *post)
{
    atomic_fetch_add(post->bell, 1);
    td__futex_wake_all(post->bell);
}

/* To itself: the first send with its tag. */
static bool meet_self(td__post *post, td__letter *l)
{
    char sentence[TD_SENTENCE];
    td__envelope e;
    if (l->sends)
        return false;                          /* its receiver does it                                                       */
    td__letter *s = post->first;
    while (s && !(s->sends && s->peer == l->peer && s->tag == l->tag && !s->done))
        s = s->next;
    if (!s)
        return false;
    td__envelope_of(s, &e);
    if (s->dtype != l->dtype || s->count != l->count) {
        if (post->comm->control) {
            td__letter_compare(post, l, &e, sentence);
        } else {
            char sent[TD_CALL_TEXT], mine[TD_CALL_TEXT];
            td__letter_call_text(s, sent);
            td__letter_call_text(l, mine);
            td__comm_fail(post->comm, TD_ERR_MISMATCH, "rank %d called %s and %s", td__comm_world_rank(post->comm, post->comm->rank), sent, mine);
        }
        return false;
    }
    memmove(l->data, s->data, l->bytes);
    s->done = l->done = true;
    return true;
}

void td__letter_release(td__letter *l)
{
    l->released = true;
    if (l->after)
        l->after->before = NULL;
    l->after = NULL;
}

/* Under the lock. Letters that are done leave the list; who waits for them has their address. */
static bool pass(td__post *post)
{
    bool moved = false, others = false;
    if (post->carrier->begin)
        post->carrier->begin(post);
    for (td__letter *l = post->first; l && !atomic_load(&post->comm->code); l = l->next)
        if (!l->done && (l->peer == post->comm->rank ? meet_self(post, l) : post->carrier->move(post, l))) {
            l->since = td__now();
            moved = true;
        }
    td__letter **at = &post->first;
    post->last = NULL;
    while (*at) {
        td__letter *l = *at;
        if (l->done) {
            *at = l->next;
            td__letter_release(l);
            post->started -= l->started;
            others |= l->started;
        } else {
            post->last = l;
            at = &l->next;
        }
    }
    if (others)
        ring_own(post);
    return moved;
}

/* Of a letter that somebody waits for; under the lock. 0, or negative: the communicator has failed. */
static int look(td__post *post, td__letter *l)
{
    td_comm *comm = post->comm;
    int code = atomic_load(&comm->code);
    if (code || !comm->control)
        return code;
    code = td__verdict_take(&post->view);
    if (code || l->peer == comm->rank)
        return code;
    td_coll waiting = { .kind = TD_COLL_BARRIER, .seq = 1, .letter = l };
    const int i = slot_of(post, l->peer);
    if (i >= 0) {
        const int state = atomic_load(&post->view.slot[i].state);
        if (state == TD_SLOT_FINISHED || state == TD_SLOT_FAILED || state == TD_SLOT_EXITED) {
            pass(post);                        /* what it did before it went is done                                          */
            return l->done ? 0 : td__verdict_peer(&post->view, i, state == TD_SLOT_EXITED ? TD_PEER_EXITED : TD_PEER_FINISHED, &waiting);
        }
        code = td__control_check_peer(&post->view, i, &waiting);
    }
    if (!code && td__now() - l->since > comm->timeout)
        code = td__verdict_peer(&post->view, i, TD_PEER_LATE, &waiting);
    return code;
}

/* ---- the thread ------------------------------------------------------------------------------------------------------------------------------ */

static void *carry(void *of)
{
    td__post *post = of;
    td__library_thread();
    pthread_mutex_lock(&post->lock);
    for (int idle = 0; !post->stop;) {
        if (!post->started || atomic_load(&post->comm->code)) {
            pthread_cond_wait(&post->work, &post->lock);
            continue;
        }
        uint32_t seen = atomic_load(post->bell);
        idle = pass(post) ? 0 : idle + 1;
        if (!idle || !post->started)
            continue;
        pthread_mutex_unlock(&post->lock);
        post->carrier->sleep(post, seen, idle);
        pthread_mutex_lock(&post->lock);
    }
    pthread_mutex_unlock(&post->lock);
    return NULL;
}

static int start_thread(td__post *post)
{
    sigset_t all, before;
    sigfillset(&all);                          /* signals are for the user's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&post->thread, NULL, carry, post);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error)
        return td__fail(TD_ERR_MEMORY, "the thread for messages cannot be made (%s)", strerror(error));
    pthread_setname_np(post->thread, "tandem-post");
    post->thread_up = true;
    return 0;
}

/* ---- letters ---------------------------------------------------------------------------------------------------------------------------------- */

td__letter *td__letter_new(td_comm *comm, bool sends, bool started, int peer, int tag, void *data, td_dtype dtype, int64_t count, td_tensor *hold)
{
    td__post *post = comm->post;
    td__comm_settle();
    if (started && !post->thread_up && comm->control && start_thread(post))
        return NULL;
    pthread_mutex_lock(&post->lock);
    td__letter *l = post->spare;
    if (l)
        post->spare = l->next;
    else if ((l = td__calloc(sizeof *l)) != NULL)
        l->all = post->every, post->every = l;
    if (l) {
        *l = (td__letter){ .all = l->all, .parcel = l->parcel, .comm = comm, .sends = sends, .started = started, .peer = peer, .tag = tag,
                           .dtype = dtype, .count = count, .bytes = (size_t)count * td_dtype_size(dtype), .data = data, .seq = ++post->seq,
                           .site = td__site, .hold = hold, .since = td__now() };
        if (hold)
            td__tensor_ref(hold);
        td__letter *before = NULL;
        for (td__letter *o = post->first; o; o = o->next)
            if (o->peer == peer && o->sends == sends && o->tag == tag)
                before = o;
        if (before && !before->released)
            before->after = l, l->before = before;
        if (post->last)
            post->last->next = l;
        else
            post->first = l;
        post->last = l;
        post->started += started;
        pass(post);
        if (started && !l->done)
            pthread_cond_signal(&post->work);
    }
    pthread_mutex_unlock(&post->lock);
    return l;
}

/* Under the lock. What failed keeps its memory: the transport may still use it. */
static void put_away(td__post *post, td__letter *l)
{
    if (l->hold)
        td__tensor_unref(l->hold);
    l->hold = NULL;
    l->next = post->spare;
    post->spare = l;
}

static int stranded(td__letter *l)
{
    char text[TD_CALL_TEXT];
    td__letter_call_text(l, text);
    return td__fail(TD_ERR_STATE, "%s is to itself, and its counterpart was not started", text);
}

/* Under the lock: out of the list without being done. */
static void take_out(td__post *post, td__letter *l)
{
    td__letter **at = &post->first, *last = NULL;
    for (; *at && *at != l; at = &(*at)->next)
        last = *at;
    if (*at != l)
        return;
    *at = l->next;
    if (post->last == l)
        post->last = last;
    post->started -= l->started;
    if (l->after)
        l->after->before = l->before;
    if (l->before)
        l->before->after = l->after;
}

int td__letter_wait(td__letter *l)
{
    td_comm *comm = l->comm;
    td__post *post = comm->post;
    const int64_t begun = td__now_ns(), spin = comm->control ? comm->control->spin_ns : 0;
    double looked = td__now();
    int code = 0, idle = 0;
    pthread_mutex_lock(&post->lock);
    while (!l->done && !code) {
        uint32_t seen = atomic_load(post->bell);
        bool moved = pass(post);
        code = l->done ? 0 : atomic_load(&comm->code);
        if (l->done || code)
            break;
        if (l->peer == comm->rank) {           /* one thread uses a communicator: nobody else would start the other            */
            take_out(post, l);
            code = stranded(l);
            put_away(post, l);
            pthread_mutex_unlock(&post->lock);
            return code;
        }
        idle = moved ? 0 : idle + 1;
        const double now = td__now();
        if (now - looked >= 0.9 * TICK) {
            looked = now;
            code = look(post, l);
        } else if (!moved) {
            pthread_mutex_unlock(&post->lock);
            if (td__now_ns() - begun < spin)
                sched_yield();
            else
                post->carrier->sleep(post, seen, idle);
            pthread_mutex_lock(&post->lock);
        }
    }
    if (code) {
        take_out(post, l);
        if (post->carrier->drop)
            post->carrier->drop(post, l);      /* the letter and its tensor stay until the communicator closes                 */
    } else {
        put_away(post, l);
    }
    pthread_mutex_unlock(&post->lock);
    return code ? td__comm_report(comm, code) : 0;
}

bool td__letter_test(td__letter *l)
{
    td__post *post = l->comm->post;
    pthread_mutex_lock(&post->lock);
    if (!l->done)
        pass(post);
    bool done = l->done || atomic_load(&l->comm->code);
    const double now = td__now();
    if (!done && now - post->view.last_check > TICK) {
        post->view.last_check = now;
        done = look(post, l) != 0 || l->done;
    }
    pthread_mutex_unlock(&post->lock);
    return done;
}

/* ---- the post's life ---------------------------------------------------------------------------------------------------------------------------- */

static void sleep_alone(td__post *post, uint32_t seen, int idle)
{
    (void)post, (void)seen, (void)idle;
    usleep(1000);
}

static bool move_nothing(td__post *post, td__letter *l)
{
    (void)post, (void)l;
    return false;
}

const td__carrier td__carry_self = { .move = move_nothing, .sleep = sleep_alone };

int td__post_open(td_comm *comm)
{
    if (comm->post)
        return 0;
    const bool one_host = comm->control && comm->reach.n == comm->size && comm->backend == &td__comm_shm;
    const td__carrier *carrier = comm->size == 1 ? &td__carry_self : comm->backend->wire ? &td__carry_wire : one_host ? &td__carry_shm : NULL;
    if (!carrier)
        return td__fail(TD_ERR_UNSUPPORTED, "messages between ranks of several hosts need MPI, which carries the world then; %s carries it here",
                        comm->backend->name);
    td__post *post = td__calloc(sizeof *post);
    if (!post)
        return td__pending();
    post->comm = comm;
    post->carrier = carrier;
    post->bell = &post->own_bell;
    if (comm->control) {
        post->view = td__control_look(comm->control);
        post->view.stopped_since = td__calloc((size_t)comm->control->n * sizeof *post->view.stopped_since);
    }
    pthread_mutex_init(&post->lock, NULL);
    pthread_cond_init(&post->work, NULL);
    int code = comm->control && !post->view.stopped_since ? td__pending() : carrier->open ? carrier->open(post) : 0;
    comm->post = post;
    if (code)
        td__post_close(comm, true);
    return code;
}

int td__post_drain(td_comm *comm)
{
    td__post *post = comm->post;
    int code = 0;
    if (!post)
        return 0;
    pthread_mutex_lock(&post->lock);
    for (int idle = 0; post->first && !code;) {
        uint32_t seen = atomic_load(post->bell);
        idle = pass(post) ? 0 : idle + 1;
        td__letter *l = post->first;
        while (l && l->peer == comm->rank)
            l = l->next;
        if (!l) {                              /* nobody will come for what is left                                            */
            code = post->first ? stranded(post->first) : 0;
            break;
        }
        code = look(post, l);
        pthread_mutex_unlock(&post->lock);
        if (idle)
            post->carrier->sleep(post, seen, idle);
        pthread_mutex_lock(&post->lock);
    }
    pthread_mutex_unlock(&post->lock);
    return atomic_load(&comm->code) ? td__comm_report(comm, atomic_load(&comm->code)) : code;
}

void td__post_close(td_comm *comm, bool well)
{
    td__post *post = comm->post;
    if (!post)
        return;
    if (post->thread_up) {
        pthread_mutex_lock(&post->lock);
        post->stop = true;
        pthread_cond_signal(&post->work);
        ring_own(post);
        pthread_mutex_unlock(&post->lock);
        pthread_join(post->thread, NULL);
    }
    if (post->carrier->close)
        post->carrier->close(post, well);
    while (post->every) {
        td__letter *next = post->every->all;
        if (post->every->hold)
            td__tensor_unref(post->every->hold);
        td__free(post->every->parcel);
        td__free(post->every);
        post->every = next;
    }
    td__free(post->view.stopped_since);
    pthread_mutex_destroy(&post->lock);
    pthread_cond_destroy(&post->work);
    comm->post = NULL;
    td__free(post);
}
