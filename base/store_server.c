/* base/store_server.c: the serving side of the meeting-point store: one thread, poll, and never a blocking call.
 *
 * A client that is slow, silent or hostile costs one bounded buffer (store_peer.c): it is dropped when it is late with its
 * proof, when a byte is wrong, or when it is the oldest of too many unproven ones; it can delay nobody else. A get for a
 * key that nobody has set parks the client until the key is set or its deadline passes.
 */
#include "store_server_impl.h"
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { UNPROVEN_MAX = 256 };
static const double PROOF_TIME = 10;           /* seconds from accept to a right proof */
static const double ACCEPT_PAUSE = 0.1;        /* when the process has no descriptor left */

/* ---- clients come and go --------------------------------------------------------------------------------------------------------- */

static void remove_lost(td__store_server *server)
{
    for (td__store_peer **p = &server->clients; *p;) {
        td__store_peer *c = *p;
        if (!c->lost) {
            p = &c->next;
            continue;
        }
        *p = c->next;
        server->count--;
        td__store_meet_lost(server, c);
        td__store_peer_free(c);
    }
}

/* Whoever has not proved itself for longest makes place for a newcomer. */
static bool drop_oldest_unproven(td__store_server *server, size_t allowed)
{
    td__store_peer *oldest = NULL;
    size_t unproven = 0;
    for (td__store_peer *c = server->clients; c; c = c->next) {
        if (c->lost || c->state > TD__PEER_PROOF)
            continue;
        unproven++;
        if (!oldest || c->deadline < oldest->deadline)
            oldest = c;
    }
    if (unproven < allowed || !oldest)
        return false;
    oldest->lost = true;
    return true;
}

static void accept_some(td__store_server *server)
{
    for (int i = 0; i < 64; i++) {
        int fd = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            bool full = errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
            if (full && !drop_oldest_unproven(server, 1))
                server->accept_after = td__now() + ACCEPT_PAUSE;
            return;
        }
        if (server->local && !td__store_same_user(fd)) {
            close(fd);
            continue;
        }
        drop_oldest_unproven(server, UNPROVEN_MAX);
        td__store_peer *c = td__calloc(sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        if (!server->local)
            td__store_tune(fd);
        c->fd = fd;
        c->deadline = td__now() + PROOF_TIME;
        c->next = server->clients;
        server->clients = c;
        server->count++;
    }
}

/* ---- the thread -------------------------------------------------------------------------------------------------------------------- */

static int milliseconds_until(double when, double now)
{
    return when <= now ? 0 : (int)fmin(ceil((when - now) * 1000), 60000);
}

static size_t prepare(td__store_server *server, int *timeout)
{
    size_t wanted = server->count + 2;
    if (wanted > server->polled_room) {
        struct pollfd *grown = td__alloc(2 * wanted * sizeof *grown);
        if (!grown)
            return 0;
        td__free(server->polled);
        server->polled = grown;
        server->polled_room = 2 * wanted;
    }
    double now = td__now(), next = now + 60;
    bool accepting = now >= server->accept_after;
    if (!accepting)
        next = server->accept_after;
    server->polled[0] = (struct pollfd){ .fd = server->wake, .events = POLLIN };
    server->polled[1] = (struct pollfd){ .fd = accepting ? server->listener : -1, .events = POLLIN };
    size_t n = 2;
    for (td__store_peer *c = server->clients; c; c = c->next) {
        short events = td__store_peer_may_read(c) ? POLLIN : c->out_used ? POLLOUT : POLLRDHUP;
        c->polled = &server->polled[n];
        server->polled[n++] = (struct pollfd){ .fd = c->fd, .events = events };
        next = fmin(next, c->deadline);
    }
    *timeout = milliseconds_until(next, now);
    return n;
}

static void *serve(void *argument)
{
    td__store_server *server = argument;
    td__library_thread();
    for (;;) {
        int timeout = 0;
        size_t n = prepare(server, &timeout);
        if (n == 0)
            break;                             /* no memory: recorded; clients see the connection close */
        if (poll(server->polled, n, timeout) < 0 && errno != EINTR)
            break;
        if (server->polled[0].revents)
            break;
        for (td__store_peer *c = server->clients; c; c = c->next)
            if (!c->lost)
                td__store_peer_turn(server, c);
        if (server->polled[1].revents)
            accept_some(server);
        remove_lost(server);
    }
    for (td__store_peer *c = server->clients; c; c = c->next)
        c->lost = true;
    remove_lost(server);
    return NULL;
}

/* ---- start and stop ------------------------------------------------------------------------------------------------------------------ */

/* The address that clients need: for TCP with the port that the system chose. */
static int format_address(td__store_server *server, const char *where)
{
    if (server->local) {
        snprintf(server->address, sizeof server->address, "%s", where);
        return 0;
    }
    struct sockaddr_storage a;
    socklen_t size = sizeof a;
    if (getsockname(server->listener, (struct sockaddr *)&a, &size) != 0)
        return -1;
    unsigned port = a.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)&a)->sin6_port) : ntohs(((struct sockaddr_in *)&a)->sin_port);
    snprintf(server->address, sizeof server->address, "%.*s:%u", (int)(strrchr(where, ':') - where), where, port);
    return 0;
}

static int listen_at(td__store_server *server, const char *where, char *why, size_t size)
{
    char what[260];
    td__store_place place;
    int code = td__store_resolve(where, &place, what, sizeof what);
    if (code) {
        snprintf(why, size, "store %s", what);
        return code;
    }
    server->local = place.family == AF_UNIX;
    server->listener = socket(place.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    server->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!server->local && server->listener >= 0)   /* what is left of connections of a job before this one does not hold a port */
        setsockopt(server->listener, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
    if (server->listener >= 0 && server->wake >= 0 && bind(server->listener, (struct sockaddr *)&place.address, place.size) == 0 &&
        listen(server->listener, SOMAXCONN) == 0 && format_address(server, where) == 0)
        return 0;
    int error = errno;
    snprintf(why, size, "store %s: cannot listen: %s", where, strerror(error));
    return error == EADDRINUSE ? TD_ERR_STATE : TD_ERR_IO;
}

static void free_server(td__store_server *server)
{
    if (server->listener >= 0)
        close(server->listener);
    if (server->wake >= 0)
        close(server->wake);
    td__store_meet_clear(server);
    td__store_clear(&server->table);
    td__free(server->polled);
    pthread_mutex_destroy(&server->lock);
    explicit_bzero(server->secret, sizeof server->secret);
    td__free(server);
}

/* Signals are for the user's threads. */
static int start_thread(td__store_server *server)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&server->thread, NULL, serve, server);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

td__store_server *td__store_try_serve(const char *where, const unsigned char secret[32], int *code, char *why, size_t size)
{
    td__store_server *server = td__calloc(sizeof *server);
    if (!server) {
        *code = TD_ERR_MEMORY;
        snprintf(why, size, "store %s: no memory", where);
        return NULL;
    }
    server->listener = server->wake = -1;
    memcpy(server->secret, secret, sizeof server->secret);
    pthread_mutex_init(&server->lock, NULL);
    *code = listen_at(server, where, why, size);
    int error = *code ? 0 : start_thread(server);
    if (error) {
        *code = TD_ERR_MEMORY;
        snprintf(why, size, "store %s: cannot start its thread: %s", where, strerror(error));
    }
    if (!*code)
        return server;
    free_server(server);
    return NULL;
}

td__store_server *td__store_serve(const char *where, const unsigned char secret[32])
{
    char why[400] = "";
    int code = 0;
    td__store_server *server = td__store_try_serve(where, secret, &code, why, sizeof why);
    if (!server && !td__pending_here())
        td__fail(code == TD_ERR_STATE ? TD_ERR_IO : code, "%s", why);
    return server;
}

int td__store_server_members(td__store_server *server)
{
    return atomic_load(&server->here);
}

const char *td__store_address(const td__store_server *server)
{
    return server->address;
}

void td__store_stop(td__store_server *server)
{
    if (!server)
        return;
    uint64_t one = 1;
    while (write(server->wake, &one, sizeof one) < 0 && errno == EINTR)
        ;
    pthread_join(server->thread, NULL);
    free_server(server);
}

void td__store_listen(td__store_server *server, int64_t (*heard)(void *, const char *, const void *, size_t), void *user)
{
    pthread_mutex_lock(&server->lock);
    server->heard = heard;
    server->user = user;
    pthread_mutex_unlock(&server->lock);
}

int td__store_server_get(td__store_server *server, const char *key, void *into, size_t *size)
{
    pthread_mutex_lock(&server->lock);
    const td__store_entry *entry = td__store_find(&server->table, (const unsigned char *)key, strlen(key));
    int code = !entry ? TD_ERR_STATE : entry->value_size > *size ? TD_ERR_ARGUMENT : 0;
    if (code == 0 && entry->value_size)
        memcpy(into, entry->value, entry->value_size);
    if (entry)
        *size = entry->value_size;
    pthread_mutex_unlock(&server->lock);
    return code;
}
