/* base/store_server.c: the serving side of the meeting-point store: one thread, poll, and never a blocking call.
 *
 * A client is greeted, proves itself, and then sends one frame at a time; its next bytes are read only when its answer has
 * left. So a client that is slow, silent or hostile costs one bounded buffer: it is dropped when it is late with its proof,
 * when a byte is wrong, or when it is the oldest of too many unproven ones; it can delay nobody else. A get for a key that
 * nobody has set parks the client until the key is set or its deadline passes.
 */
#include "store_table.h"
#include "store_wire.h"
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { UNPROVEN_MAX = 256 };
static const double PROOF_TIME = 10;           /* seconds from accept to a right proof */
static const double ACCEPT_PAUSE = 0.1;        /* when the process has no descriptor left */

typedef enum { HELLO, PROOF, READY, PARKED } client_state;

typedef struct client {
    struct client *next;
    struct pollfd *polled;                     /* in this round; NULL: came after poll */
    int fd;
    client_state state;
    bool lost;                                 /* to be freed at the end of the round */
    double deadline;                           /* of the proof or of the parked get; INFINITY: none */
    unsigned char nonces[2 * TD__STORE_NONCE]; /* the client's, ours */
    td__store_session session;
    unsigned char *in, *out;
    size_t in_room, in_used, out_room, out_used, out_sent;
    unsigned char key[TD__STORE_KEY_MAX];      /* that a parked client waits for */
    size_t key_size;
} client;

struct td__store_server {
    int listener, wake;
    bool local;                                /* a Unix socket */
    char address[300];
    unsigned char secret[32];
    pthread_t thread;
    pthread_mutex_t lock;                      /* of the table, for td__store_server_get */
    td__store_table table;
    client *clients;
    size_t count;
    double accept_after;
    struct pollfd *polled;
    size_t polled_room;
};

/* ---- buffers ------------------------------------------------------------------------------------------------------------- */

static bool make_room(unsigned char **buffer, size_t *room, size_t used, size_t wanted)
{
    if (wanted <= *room)
        return true;
    unsigned char *grown = td__grow(*buffer, used, wanted);
    if (!grown)
        return false;
    *buffer = grown;
    *room = wanted;
    return true;
}

static void flush(client *c)
{
    while (!c->lost && c->out_sent < c->out_used) {
        ssize_t n = send(c->fd, c->out + c->out_sent, c->out_used - c->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0)
            c->out_sent += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return;
        else if (errno != EINTR)
            c->lost = true;
    }
    c->out_sent = c->out_used = 0;
}

static void answer(client *c, td__store_op op, const unsigned char *value, size_t size)
{
    td__store_frame frame = { .op = op, .value = value, .value_size = size };
    c->state = READY;
    c->deadline = INFINITY;
    if (!make_room(&c->out, &c->out_room, 0, TD__STORE_HEADER + size + TD__STORE_PROOF)) {
        c->lost = true;
        return;
    }
    c->out_used = td__store_pack(&c->session, &frame, c->out);
    c->out_sent = 0;
    flush(c);
}

/* ---- frames ---------------------------------------------------------------------------------------------------------------- */

static void wake_parked(td__store_server *server, const td__store_entry *entry)
{
    for (client *c = server->clients; c; c = c->next)
        if (c->state == PARKED && !c->lost && c->key_size == entry->key_size && memcmp(c->key, entry->key, c->key_size) == 0)
            answer(c, TD__STORE_DONE, entry->value, entry->value_size);
}

/* Stores a value, answers the client and then everybody who has waited for the key. */
static void store_value(td__store_server *server, client *c, const td__store_frame *f, const unsigned char *value, size_t size,
                        bool tell)
{
    pthread_mutex_lock(&server->lock);
    bool stored = td__store_put(&server->table, f->key, f->key_size, value, size);
    pthread_mutex_unlock(&server->lock);
    if (!stored) {
        answer(c, TD__STORE_FULL, NULL, 0);
        return;
    }
    const td__store_entry *entry = td__store_find(&server->table, f->key, f->key_size);
    answer(c, TD__STORE_DONE, tell ? value : NULL, tell ? size : 0);
    wake_parked(server, entry);
}

static void add(td__store_server *server, client *c, const td__store_frame *f)
{
    const td__store_entry *entry = td__store_find(&server->table, f->key, f->key_size);
    unsigned char sum[8];
    if (entry && entry->value_size != sizeof sum) {
        answer(c, TD__STORE_NO_COUNTER, NULL, 0);
        return;
    }
    int64_t now = entry ? td__store_get_i64(entry->value) : 0;
    td__store_put_i64(sum, (int64_t)((uint64_t)now + (uint64_t)td__store_get_i64(f->value)));
    store_value(server, c, f, sum, sizeof sum, true);
}

static void get(td__store_server *server, client *c, const td__store_frame *f)
{
    const td__store_entry *entry = td__store_find(&server->table, f->key, f->key_size);
    int64_t wait_ms = td__store_get_i64(f->value);
    if (entry) {
        answer(c, TD__STORE_DONE, entry->value, entry->value_size);
    } else if (wait_ms <= 0) {
        answer(c, TD__STORE_LATE, NULL, 0);
    } else {
        memcpy(c->key, f->key, f->key_size);
        c->key_size = f->key_size;
        c->deadline = td__now() + 1e-3 * (double)wait_ms;
        c->state = PARKED;
    }
}

static void obey(td__store_server *server, client *c)
{
    td__store_frame f;
    if (!td__store_unpack(&c->session, c->in, &f) || f.key_size == 0) {
        c->lost = true;
        return;
    }
    if (f.op == TD__STORE_SET)
        store_value(server, c, &f, f.value, f.value_size, false);
    else if (f.op == TD__STORE_ADD && f.value_size == 8)
        add(server, c, &f);
    else if (f.op == TD__STORE_GET && f.value_size == 8)
        get(server, c, &f);
    else
        c->lost = true;
}

/* ---- the greeting ------------------------------------------------------------------------------------------------------------ */

static void challenge(td__store_server *server, client *c)
{
    unsigned char *theirs = c->nonces, *ours = c->nonces + TD__STORE_NONCE;
    if (memcmp(c->in, TD__STORE_HELLO_TEXT, TD__STORE_MAGIC) != 0 || td__store_random(ours) != 0 ||
        !make_room(&c->out, &c->out_room, 0, TD__STORE_CHALLENGE)) {
        c->lost = true;
        return;
    }
    memcpy(theirs, c->in + TD__STORE_MAGIC, TD__STORE_NONCE);
    memcpy(c->out, ours, TD__STORE_NONCE);
    td__store_proof(server->secret, TD__STORE_SERVER, theirs, ours, c->out + TD__STORE_NONCE);
    c->out_used = TD__STORE_CHALLENGE;
    c->out_sent = 0;
    c->state = PROOF;
    flush(c);
}

static void check_proof(td__store_server *server, client *c)
{
    const unsigned char *theirs = c->nonces, *ours = c->nonces + TD__STORE_NONCE;
    unsigned char proof[TD__STORE_PROOF];
    td__store_proof(server->secret, TD__STORE_CLIENT, theirs, ours, proof);
    if (!td__store_proof_equal(proof, c->in)) {
        c->lost = true;
        return;
    }
    td__store_proof(server->secret, TD__STORE_KEY, theirs, ours, c->session.key);
    c->session.me = TD__STORE_SERVER;
    c->state = READY;
    c->deadline = INFINITY;
}

/* ---- one client's turn --------------------------------------------------------------------------------------------------------- */

/* How many bytes the next step needs; never more are read. 0: they can be no frame. */
static size_t needed(const client *c)
{
    if (c->state == HELLO)
        return TD__STORE_HELLO;
    if (c->state == PROOF)
        return TD__STORE_PROOF;
    return c->in_used < TD__STORE_HEADER ? TD__STORE_HEADER : td__store_frame_size(c->in);
}

static bool may_read(const client *c)
{
    return c->state != PARKED && c->out_used == 0;
}

static void read_some(td__store_server *server, client *c)
{
    while (!c->lost && may_read(c)) {
        size_t want = needed(c);
        if (want == 0 || !make_room(&c->in, &c->in_room, c->in_used, want)) {
            c->lost = true;
            return;
        }
        ssize_t n = recv(c->fd, c->in + c->in_used, want - c->in_used, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            c->lost = true;
            return;
        }
        c->in_used += (size_t)n;
        if (c->in_used < want || needed(c) > c->in_used)
            continue;                          /* a header is followed by its frame */
        size_t whole = needed(c);
        if (whole == 0)
            c->lost = true;
        else if (c->state == HELLO)
            challenge(server, c);
        else if (c->state == PROOF)
            check_proof(server, c);
        else
            obey(server, c);
        c->in_used = 0;
        if (c->state == READY)
            return;                            /* one frame a turn: fair to the others */
    }
}

static void serve_client(td__store_server *server, client *c)
{
    if (c->polled && c->polled->revents) {
        short seen = c->polled->revents;
        if (c->state == PARKED && (seen & (POLLRDHUP | POLLHUP | POLLERR)))
            c->lost = true;
        if (seen & POLLOUT)
            flush(c);
        if (may_read(c) && (seen & (POLLIN | POLLHUP | POLLERR)))
            read_some(server, c);
        if (!may_read(c) && (seen & (POLLERR | POLLNVAL)))
            c->lost = true;
    }
    if (!c->lost && td__now() >= c->deadline) {
        if (c->state == PARKED)
            answer(c, TD__STORE_LATE, NULL, 0);
        else
            c->lost = true;
    }
}

/* ---- clients come and go --------------------------------------------------------------------------------------------------------- */

static void free_client(client *c)
{
    close(c->fd);
    td__free(c->in);
    td__free(c->out);
    td__free(c);
}

static void remove_lost(td__store_server *server)
{
    for (client **p = &server->clients; *p;) {
        client *c = *p;
        if (!c->lost) {
            p = &c->next;
            continue;
        }
        *p = c->next;
        server->count--;
        free_client(c);
    }
}

/* Whoever has not proved itself for longest makes place for a newcomer. */
static bool drop_oldest_unproven(td__store_server *server, size_t allowed)
{
    client *oldest = NULL;
    size_t unproven = 0;
    for (client *c = server->clients; c; c = c->next) {
        if (c->lost || c->state > PROOF)
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
        client *c = td__calloc(sizeof *c);
        if (!c) {
            close(fd);
            return;
        }
        if (!server->local)
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
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
    for (client *c = server->clients; c; c = c->next) {
        short events = may_read(c) ? POLLIN : c->out_used ? POLLOUT : POLLRDHUP;
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
        for (client *c = server->clients; c; c = c->next)
            if (!c->lost)
                serve_client(server, c);
        if (server->polled[1].revents)
            accept_some(server);
        remove_lost(server);
    }
    for (client *c = server->clients; c; c = c->next)
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

static int listen_at(td__store_server *server, const char *where)
{
    char why[300];
    td__store_place place;
    int code = td__store_resolve(where, &place, why, sizeof why);
    if (code)
        return td__fail(code, "store %s", why);
    server->local = place.family == AF_UNIX;
    server->listener = socket(place.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    server->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (server->listener < 0 || server->wake < 0 || bind(server->listener, (struct sockaddr *)&place.address, place.size) != 0 ||
        listen(server->listener, SOMAXCONN) != 0 || format_address(server, where) != 0)
        return td__fail(TD_ERR_IO, "store %s: cannot listen: %s", where, strerror(errno));
    return 0;
}

static void free_server(td__store_server *server)
{
    if (server->listener >= 0)
        close(server->listener);
    if (server->wake >= 0)
        close(server->wake);
    td__store_clear(&server->table);
    td__free(server->polled);
    pthread_mutex_destroy(&server->lock);
    explicit_bzero(server->secret, sizeof server->secret);
    td__free(server);
}

td__store_server *td__store_serve(const char *where, const unsigned char secret[32])
{
    td__store_server *server = td__calloc(sizeof *server);
    if (!server)
        return NULL;
    server->listener = server->wake = -1;
    memcpy(server->secret, secret, sizeof server->secret);
    pthread_mutex_init(&server->lock, NULL);
    if (listen_at(server, where) != 0) {
        free_server(server);
        return NULL;
    }
    int error = pthread_create(&server->thread, NULL, serve, server);
    if (error) {
        td__fail(TD_ERR_MEMORY, "store %s: cannot start its thread: %s", where, strerror(error));
        free_server(server);
        return NULL;
    }
    return server;
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
