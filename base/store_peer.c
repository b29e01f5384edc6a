/* base/store_peer.c: one client as the store server sees it: its greeting, its frames, its buffers.
 *
 * A peer proves itself, then sends one frame at a time; its next bytes are read only when its answer has left, and never
 * more than the next step needs. Nothing here blocks. A wrong byte marks the peer lost; the server frees it later.
 */
#include "store_server_impl.h"
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

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

static void flush(td__store_peer *c)
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

void td__store_answer(td__store_peer *c, td__store_op op, const unsigned char *value, size_t size)
{
    td__store_frame frame = { .op = op, .value = value, .value_size = size };
    c->state = TD__PEER_READY;
    c->deadline = INFINITY;
    c->meets = NULL;
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
    for (td__store_peer *c = server->clients; c; c = c->next)
        if (c->state == TD__PEER_PARKED && !c->lost && !c->meets && c->key_size == entry->key_size && memcmp(c->key, entry->key, c->key_size) == 0)
            td__store_answer(c, TD__STORE_DONE, entry->value, entry->value_size);
}

/* Stores a value, answers the client and then everybody who has waited for the key. */
static void store_value(td__store_server *server, td__store_peer *c, const td__store_frame *f, const unsigned char *value, size_t size,
                        bool tell)
{
    pthread_mutex_lock(&server->lock);
    bool stored = td__store_put(&server->table, f->key, f->key_size, value, size);
    pthread_mutex_unlock(&server->lock);
    if (!stored) {
        td__store_answer(c, TD__STORE_FULL, NULL, 0);
        return;
    }
    const td__store_entry *entry = td__store_find(&server->table, f->key, f->key_size);
    td__store_answer(c, TD__STORE_DONE, tell ? value : NULL, tell ? size : 0);
    wake_parked(server, entry);
}

static void add(td__store_server *server, td__store_peer *c, const td__store_frame *f)
{
    const td__store_entry *entry = td__store_find(&server->table, f->key, f->key_size);
    unsigned char sum[8];
    if (entry && entry->value_size != sizeof sum) {
        td__store_answer(c, TD__STORE_NO_COUNTER, NULL, 0);
        return;
    }
    int64_t now = entry ? td__store_get_i64(entry->value) : 0;
    td__store_put_i64(sum, (int64_t)((uint64_t)now + (uint64_t)td__store_get_i64(f->value)));
    store_value(server, c, f, sum, sizeof sum, true);
}

static void tell(td__store_server *server, td__store_peer *c, const td__store_frame *f)
{
    char key[TD__STORE_KEY_MAX + 1];
    unsigned char bytes[8];
    pthread_mutex_lock(&server->lock);
    int64_t (*heard)(void *, const char *, const void *, size_t) = server->heard;
    void *user = server->user;
    pthread_mutex_unlock(&server->lock);
    if (!heard) {
        td__store_answer(c, TD__STORE_NO_EAR, NULL, 0);
        return;
    }
    memcpy(key, f->key, f->key_size);
    key[f->key_size] = '\0';
    td__store_put_i64(bytes, heard(user, key, f->value, f->value_size));
    td__store_answer(c, TD__STORE_DONE, bytes, sizeof bytes);
}

static void get(td__store_server *server, td__store_peer *c, const td__store_frame *f)
{
    const td__store_entry *entry = td__store_find(&server->table, f->key, f->key_size);
    int64_t wait_ms = td__store_get_i64(f->value);
    if (entry) {
        td__store_answer(c, TD__STORE_DONE, entry->value, entry->value_size);
    } else if (wait_ms <= 0) {
        td__store_answer(c, TD__STORE_LATE, NULL, 0);
    } else {
        memcpy(c->key, f->key, f->key_size);
        c->key_size = f->key_size;
        c->deadline = td__now() + 1e-3 * (double)wait_ms;
        c->state = TD__PEER_PARKED;
    }
}

static void obey(td__store_server *server, td__store_peer *c)
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
    else if (f.op == TD__STORE_TELL)
        tell(server, c, &f);
    else if (f.op == TD__STORE_GET && f.value_size == 8)
        get(server, c, &f);
    else if (f.op == TD__STORE_MEET && f.value_size >= TD__STORE_MEET_HEAD)
        td__store_obey_meet(server, c, &f);
    else if (f.op == TD__STORE_LEAVE && f.value_size >= TD__STORE_LEAVE_HEAD)
        td__store_obey_leave(server, c, &f);
    else
        c->lost = true;
}

/* ---- the greeting ------------------------------------------------------------------------------------------------------------ */

static void challenge(td__store_server *server, td__store_peer *c)
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
    c->state = TD__PEER_PROOF;
    flush(c);
}

static void check_proof(td__store_server *server, td__store_peer *c)
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
    c->state = TD__PEER_READY;
    c->deadline = INFINITY;
}

/* ---- one client's turn --------------------------------------------------------------------------------------------------------- */

/* How many bytes the next step needs; never more are read. 0: they can be no frame. */
static size_t needed(const td__store_peer *c)
{
    if (c->state == TD__PEER_HELLO)
        return TD__STORE_HELLO;
    if (c->state == TD__PEER_PROOF)
        return TD__STORE_PROOF;
    return c->in_used < TD__STORE_HEADER ? TD__STORE_HEADER : td__store_frame_size(c->in);
}

bool td__store_peer_may_read(const td__store_peer *c)
{
    return c->state != TD__PEER_PARKED && c->out_used == 0;
}

static void read_some(td__store_server *server, td__store_peer *c)
{
    while (!c->lost && td__store_peer_may_read(c)) {
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
        else if (c->state == TD__PEER_HELLO)
            challenge(server, c);
        else if (c->state == TD__PEER_PROOF)
            check_proof(server, c);
        else
            obey(server, c);
        c->in_used = 0;
        if (c->state == TD__PEER_READY)
            return;                            /* one frame a turn: fair to the others */
    }
}

void td__store_peer_turn(td__store_server *server, td__store_peer *c)
{
    if (c->polled && c->polled->revents) {
        short seen = c->polled->revents;
        if (c->state == TD__PEER_PARKED && (seen & (POLLRDHUP | POLLHUP | POLLERR)))
            c->lost = true;
        if (seen & POLLOUT)
            flush(c);
        if (td__store_peer_may_read(c) && (seen & (POLLIN | POLLHUP | POLLERR)))
            read_some(server, c);
        if (!td__store_peer_may_read(c) && (seen & (POLLERR | POLLNVAL)))
            c->lost = true;
    }
    if (!c->lost && td__now() >= c->deadline) {
        if (c->meets)
            td__store_meet_late(c);
        else if (c->state == TD__PEER_PARKED)
            td__store_answer(c, TD__STORE_LATE, NULL, 0);
        else
            c->lost = true;
    }
}

void td__store_peer_free(td__store_peer *c)
{
    close(c->fd);
    td__free(c->in);
    td__free(c->out);
    td__free(c);
}
