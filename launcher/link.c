/* launcher/link.c: an agent's two connections to the head's store, each with a thread that may wait.
 *
 * One tells: what is queued, and a beat when nothing has been told for a while. The other waits for "go" and then for one command after
 * another. A beat that is not answered in time, or a connection that closes, means that the head is lost; it is said once. Events run
 * on the agent's loop.
 */
#include "across.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { UNREAD_MAX = 1 << 20 };                 /* bytes of output that the head has not written yet */
static const double CONNECT_S = 60, STARVED_S = 0.02, COMMAND_S = 1;

typedef struct item {
    struct item *next;
    size_t size;
    char bytes[];                              /* the kind, then the message */
} item;

struct td__link {
    td__store *up, *down;
    char key[32];
    pthread_t teller, listener;
    pthread_mutex_t lock;
    pthread_cond_t more;
    item *first, **end;
    bool ending, lost, was_silent, starved, wake_room;
    int64_t told, written;                     /* bytes of output */
    char why[300];
    struct heard {
        struct heard *next;
        bool go;
        union {
            td__go go;
            td__order order;
        } what;
    } *heard, **heard_end;
    uv_async_t wake;
    td__link_events events;
    void *user;
    bool said_lost;
};

static td__store *connect_for(const char *store, const unsigned char secret[32])
{
    td__store *s = td__store_connect(store, secret, CONNECT_S);
    if (s)
        td__store_answer_within(s, TD_PATIENCE_S);
    return s;
}

td__link *td__link_open(const char *store, const unsigned char secret[32], int rank, td__orders *orders)
{
    td__link *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    size_t size = sizeof *orders;
    l->end = &l->first;
    l->heard_end = &l->heard;
    snprintf(l->key, sizeof l->key, "agent/%d", rank);
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->more, &monotonic);
    pthread_condattr_destroy(&monotonic);
    if ((l->up = connect_for(store, secret)) && (l->down = connect_for(store, secret)) &&
        td__store_get(l->up, "orders", orders, &size, CONNECT_S) == 0) {
        if (size == sizeof *orders && orders->bytes == (int32_t)size && memcmp(orders->magic, TD_ORDERS_MAGIC, sizeof orders->magic) == 0)
            return l;
        td__fail(TD_ERR_FORMAT, "the tandem that runs here is another version than the one that started the job");
    }
    td__store_close(l->up);
    td__store_close(l->down);
    free(l);
    return NULL;
}

const char *td__link_address(td__link *l, char *into, size_t size)
{
    return td__store_own_address(l->up, into, size);
}

/* ---- the threads ------------------------------------------------------------------------------------------------------------------ */

static void lose(td__link *l)
{
    bool silent = td_error_pending() == TD_ERR_TIMEOUT || td_error_pending() == TD_ERR_STATE;
    pthread_mutex_lock(&l->lock);
    if (!l->lost && !l->ending) {
        l->lost = true;
        l->was_silent = silent;
        snprintf(l->why, sizeof l->why, "%s", td_error_message());
        uv_async_send(&l->wake);
    }
    l->lost = true;
    pthread_cond_broadcast(&l->more);
    pthread_mutex_unlock(&l->lock);
    td_error_clear();
}

static struct timespec after(double seconds)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += (long)(seconds * 1e9);
    t.tv_sec += t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return t;
}

/* The next message, or NULL when it is time for a beat. false: the end. */
static bool next_item(td__link *l, item **next)
{
    pthread_mutex_lock(&l->lock);
    struct timespec until = after(l->starved ? STARVED_S : TD_BEAT_S);
    while (!l->first && !l->ending && !l->lost && pthread_cond_timedwait(&l->more, &l->lock, &until) == 0)
        ;
    *next = l->first;
    if (l->first && !(l->first = l->first->next))
        l->end = &l->first;
    bool on = !l->lost && (*next || !l->ending);
    pthread_mutex_unlock(&l->lock);
    return on;
}

static void *tell_all(void *argument)
{
    td__link *l = argument;
    static const char beat = TD_TELL_BEAT;
    td__library_thread();
    for (item *next; next_item(l, &next);) {
        int64_t written = 0;
        td_error_clear();
        int code = td__store_tell(l->up, l->key, next ? next->bytes : &beat, next ? next->size : 1, &written);
        free(next);
        if (code) {
            lose(l);
            break;
        }
        pthread_mutex_lock(&l->lock);
        l->written = written;
        if (l->starved && l->told - l->written < UNREAD_MAX / 2) {
            l->starved = false;
            l->wake_room = true;
            uv_async_send(&l->wake);
        }
        pthread_mutex_unlock(&l->lock);
    }
    return NULL;
}

static bool ended(td__link *l)
{
    pthread_mutex_lock(&l->lock);
    bool end = l->ending || l->lost;
    pthread_mutex_unlock(&l->lock);
    return end;
}

static void *hear_all(void *argument)
{
    td__link *l = argument;
    td__library_thread();
    for (int64_t next = 0; !ended(l);) {
        char key[32] = "go";
        size_t size = sizeof(td__go);
        struct heard *h = calloc(1, sizeof *h);
        if (next > 0)
            snprintf(key, sizeof key, "down/%lld", (long long)next);
        td_error_clear();
        int code = h ? td__store_get(l->down, key, &h->what, &size, COMMAND_S) : TD_ERR_MEMORY;
        if (code == 0) {
            h->go = next++ == 0;
            pthread_mutex_lock(&l->lock);
            *l->heard_end = h;
            l->heard_end = &h->next;
            if (!l->ending)
                uv_async_send(&l->wake);
            pthread_mutex_unlock(&l->lock);
            continue;
        }
        free(h);
        if (code == TD_ERR_TIMEOUT)            /* no command yet; or no answer, and then the next question finds the link broken */
            continue;
        lose(l);
        break;
    }
    td_error_clear();
    return NULL;
}

/* ---- the loop's side ---------------------------------------------------------------------------------------------------------------- */

static void on_wake(uv_async_t *wake)
{
    td__link *l = wake->data;
    pthread_mutex_lock(&l->lock);
    struct heard *heard = l->heard;
    l->heard = NULL;
    l->heard_end = &l->heard;
    bool lost = l->lost && l->why[0] && !l->said_lost, room = l->wake_room, silent = l->was_silent;
    l->said_lost |= lost;
    l->wake_room = false;
    pthread_mutex_unlock(&l->lock);
    for (struct heard *h = heard, *next; h; h = next) {
        next = h->next;
        if (h->go)
            l->events.go(l->user, &h->what.go);
        else
            l->events.command(l->user, &h->what.order);
        free(h);
    }
    if (room)
        l->events.room(l->user);
    if (lost)
        l->events.lost(l->user, silent, l->why);
}

int td__link_start(td__link *l, uv_loop_t *loop, const td__link_events *events, void *user)
{
    l->events = *events;
    l->user = user;
    l->wake.data = l;
    int error = uv_async_init(loop, &l->wake, on_wake);
    if (error)
        return error;
    if (pthread_create(&l->teller, NULL, tell_all, l) != 0 || pthread_create(&l->listener, NULL, hear_all, l) != 0) {
        fprintf(stderr, "tandem agent: a thread cannot be started\n");
        exit(1);                               /* nothing has been started yet: the engine ends the job */
    }
    pthread_detach(l->listener);               /* nobody waits for it: see td__link_close */
    return 0;
}

void td__link_tell(td__link *l, td__tell_kind kind, const void *bytes, size_t n)
{
    item *i = malloc(sizeof *i + n + 1);
    if (!i)
        return;
    *i = (item){ .size = n + 1 };
    i->bytes[0] = (char)kind;
    if (n)
        memcpy(i->bytes + 1, bytes, n);
    pthread_mutex_lock(&l->lock);
    *l->end = i;
    l->end = &i->next;
    if (kind == TD_TELL_OUT || kind == TD_TELL_ERR)
        l->told += (int64_t)n;
    pthread_cond_signal(&l->more);
    pthread_mutex_unlock(&l->lock);
}

bool td__link_full(td__link *l)
{
    pthread_mutex_lock(&l->lock);
    bool full = l->told - l->written >= UNREAD_MAX && !l->lost;
    l->starved |= full;
    pthread_mutex_unlock(&l->lock);
    return full;
}

/* The listener may be in its wait: it ends within COMMAND_S, so it is not waited for, and the process ends with it. */
void td__link_close(td__link *l, double seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)seconds + 1;
    pthread_mutex_lock(&l->lock);
    l->ending = true;
    pthread_cond_broadcast(&l->more);
    pthread_mutex_unlock(&l->lock);
    pthread_timedjoin_np(l->teller, NULL, &until);
}
