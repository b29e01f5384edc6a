/* base/store_meet.c: meetings at the store server: every rank of a scope brings some bytes, the last one to come sends all of them home.
 *
 * A meeting is a room with a place per rank, opened by the first who comes and freed when the last has come. A member is a rank that
 * has met in a scope. Its state outlives its connection, so whoever comes to wait for it later is told at once, too. Everything here runs
 * on the server's thread.
 */
#include "store_server_impl.h"
#include <stdio.h>
#include <string.h>

enum { RANKS_MAX = 65000, SENTENCE = 1024 };

typedef struct { unsigned char *data; size_t size; bool here; } place;

typedef struct td__store_room {
    struct td__store_room *next;
    unsigned char key[TD__STORE_KEY_MAX];
    size_t key_size, bytes;
    int ranks, came;
    place place[];
} room;

typedef struct td__store_member {
    struct td__store_member *next;
    td__store_peer *peer;                      /* NULL: gone */
    int32_t rank;
    td__store_absence absent;                  /* TD__ABSENT_NONE: here */
    char *sentence;
    size_t scope_size;
    unsigned char scope[TD__STORE_KEY_MAX];
} member;

/* ---- answers ------------------------------------------------------------------------------------------------------------- */

static void tell_absent(td__store_peer *c, int32_t rank, td__store_absence why, const char *sentence)
{
    unsigned char value[8 + SENTENCE];
    size_t n = sentence ? strnlen(sentence, SENTENCE) : 0;
    td__store_put_i32(value, rank);
    td__store_put_i32(value + 4, (int32_t)why);
    if (n)
        memcpy(value + 8, sentence, n);
    td__store_answer(c, TD__STORE_ABSENT, value, 8 + n);
}

void td__store_meet_late(td__store_peer *c)
{
    const room *r = c->meets;
    unsigned char value[4 * (1 + TD__STORE_LATE_NAMED)];
    int32_t count = 0;
    for (int i = 0; i < r->ranks; i++)
        if (!r->place[i].here && count++ < TD__STORE_LATE_NAMED)
            td__store_put_i32(value + 4 * count, i);
    td__store_put_i32(value, count);
    td__store_answer(c, TD__STORE_LATE, value, 4 * (size_t)(1 + (count < TD__STORE_LATE_NAMED ? count : TD__STORE_LATE_NAMED)));
}

/* ---- members --------------------------------------------------------------------------------------------------------------- */

static size_t scope_of(const unsigned char *key, size_t size)
{
    const unsigned char *slash = memrchr(key, '/', size);
    return slash ? (size_t)(slash - key) : size;
}

static member *find_member(td__store_server *server, const unsigned char *scope, size_t size, int32_t rank)
{
    for (member *m = server->members; m; m = m->next)
        if (m->rank == rank && m->scope_size == size && memcmp(m->scope, scope, size) == 0)
            return m;
    return NULL;
}

static member *join(td__store_server *server, td__store_peer *c, const unsigned char *scope, size_t size, int32_t rank)
{
    member *m = find_member(server, scope, size, rank);
    if (m)
        return m;                              /* has it left, it does not come back: scopes are used once, too */
    m = td__calloc(sizeof *m);
    if (!m)
        return NULL;
    *m = (member){ .next = server->members, .peer = c, .rank = rank, .scope_size = size };
    memcpy(m->scope, scope, size);
    server->members = m;
    atomic_fetch_add(&server->here, 1);
    return m;
}

static bool in_scope(const room *r, const member *m)
{
    return r->key_size > m->scope_size && r->key[m->scope_size] == '/' && memcmp(r->key, m->scope, m->scope_size) == 0;
}

/* Everybody who waits for it in vain is told. */
static void gone(td__store_server *server, member *m, td__store_absence why, const char *sentence)
{
    m->peer = NULL;
    if (m->absent)
        return;                                /* it has said so before its connection ended */
    m->absent = why;
    m->sentence = sentence ? td__strdup(sentence) : NULL;
    atomic_fetch_sub(&server->here, 1);
    for (td__store_peer *c = server->clients; c; c = c->next)
        if (c->meets && !c->lost && in_scope(c->meets, m) && m->rank < c->meets->ranks && !c->meets->place[m->rank].here)
            tell_absent(c, m->rank, why, sentence);
}

void td__store_meet_lost(td__store_server *server, td__store_peer *c)
{
    for (member *m = server->members; m; m = m->next)
        if (m->peer == c)
            gone(server, m, TD__ABSENT_LOST, NULL);
}

void td__store_obey_leave(td__store_server *server, td__store_peer *c, const td__store_frame *f)
{
    char sentence[SENTENCE + 1];
    size_t n = f->value_size - TD__STORE_LEAVE_HEAD;
    bool failed = td__store_get_i32(f->value + 4) != 0;
    n = n > SENTENCE ? SENTENCE : n;
    memcpy(sentence, f->value + TD__STORE_LEAVE_HEAD, n);
    sentence[n] = '\0';
    member *m = find_member(server, f->key, f->key_size, td__store_get_i32(f->value));
    if (m)
        gone(server, m, failed ? TD__ABSENT_FAILED : TD__ABSENT_LEFT, failed ? sentence : NULL);
    td__store_answer(c, TD__STORE_DONE, NULL, 0);
}

/* ---- rooms ------------------------------------------------------------------------------------------------------------------- */

static void free_room(room *r)
{
    for (int i = 0; i < r->ranks; i++)
        td__free(r->place[i].data);
    td__free(r);
}

static room *find_room(td__store_server *server, const td__store_frame *f)
{
    for (room *r = server->rooms; r; r = r->next)
        if (r->key_size == f->key_size && memcmp(r->key, f->key, f->key_size) == 0)
            return r;
    return NULL;
}

static room *open_room(td__store_server *server, const td__store_frame *f, int32_t ranks)
{
    room *r = td__calloc(sizeof *r + (size_t)ranks * sizeof r->place[0]);
    if (!r)
        return NULL;
    r->ranks = ranks;
    r->key_size = f->key_size;
    memcpy(r->key, f->key, f->key_size);
    r->next = server->rooms;
    server->rooms = r;
    return r;
}

/* The last one has come: everybody gets everything. */
static void take_place(td__store_server *server, room *r)
{
    unsigned char *all = td__alloc(r->bytes);
    size_t at = 0;
    for (int i = 0; all && i < r->ranks; at += r->place[i++].size)
        if (r->place[i].size)
            memcpy(all + at, r->place[i].data, r->place[i].size);
    for (td__store_peer *c = server->clients; c; c = c->next)
        if (c->meets == r && !c->lost)
            td__store_answer(c, all ? TD__STORE_DONE : TD__STORE_FULL, all, all ? at : 0);
    td__free(all);
    for (room **p = &server->rooms; *p; p = &(*p)->next)
        if (*p == r) {
            *p = r->next;
            break;
        }
    free_room(r);
}

/* Somebody without whom the meeting cannot take place any more? */
static const member *find_absent(td__store_server *server, const room *r)
{
    for (const member *m = server->members; m; m = m->next)
        if (m->absent && in_scope(r, m) && m->rank < r->ranks && !r->place[m->rank].here)
            return m;
    return NULL;
}

void td__store_obey_meet(td__store_server *server, td__store_peer *c, const td__store_frame *f)
{
    int32_t rank = td__store_get_i32(f->value), ranks = td__store_get_i32(f->value + 4);
    int64_t wait_ms = td__store_get_i64(f->value + 8);
    size_t size = f->value_size - TD__STORE_MEET_HEAD, scope = scope_of(f->key, f->key_size);
    if (ranks < 1 || ranks > RANKS_MAX || rank < 0 || rank >= ranks) {
        c->lost = true;
        return;
    }
    room *r = find_room(server, f);
    r = r ? r : open_room(server, f, ranks);
    member *m = r ? join(server, c, f->key, scope, rank) : NULL;
    place *mine = m && r->ranks == ranks ? &r->place[rank] : NULL;
    if (!m) {
        td__store_answer(c, TD__STORE_FULL, NULL, 0);
    } else if (!mine) {
        tell_absent(c, rank, TD__ABSENT_SIZE, NULL);
    } else if (m->peer != c || mine->here) {
        tell_absent(c, rank, TD__ABSENT_TWICE, NULL);
    } else if (r->bytes + size > TD__STORE_MEET_BYTES || (size && !(mine->data = td__alloc(size)))) {
        td__store_answer(c, TD__STORE_FULL, NULL, 0);
    } else {
        if (size)
            memcpy(mine->data, f->value + TD__STORE_MEET_HEAD, size);
        mine->size = size;
        mine->here = true;
        r->bytes += size;
        r->came++;
        c->meets = r;
        c->deadline = td__now() + 1e-3 * (double)(wait_ms > 0 ? wait_ms : 0);
        c->state = TD__PEER_PARKED;
        const member *absent = r->came < r->ranks ? find_absent(server, r) : NULL;
        if (absent)
            tell_absent(c, absent->rank, absent->absent, absent->sentence);
        else if (r->came == r->ranks)
            take_place(server, r);
    }
}

void td__store_meet_clear(td__store_server *server)
{
    while (server->rooms) {
        room *next = server->rooms->next;
        free_room(server->rooms);
        server->rooms = next;
    }
    while (server->members) {
        member *next = server->members->next;
        td__free(server->members->sentence);
        td__free(server->members);
        server->members = next;
    }
}
