/* base/store_wire.c: proofs, frames and addresses of the meeting-point store, the same on both ends. See store_wire.h.
 */
#include "store_wire.h"
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

_Static_assert(crypto_auth_hmacsha512256_BYTES == TD__STORE_PROOF, "proofs are HMAC-SHA-512-256");
_Static_assert(crypto_auth_hmacsha512256_KEYBYTES == 32, "secrets have 32 bytes");

/* ---- proofs -------------------------------------------------------------------------------------------------------------- */

int td__store_random(unsigned char nonce[TD__STORE_NONCE])
{
    if (sodium_init() < 0)
        return TD_ERR_INTERNAL;
    randombytes_buf(nonce, TD__STORE_NONCE);
    return 0;
}

void td__store_proof(const unsigned char *secret, td__store_role role, const unsigned char *client_nonce,
                     const unsigned char *server_nonce, unsigned char proof[TD__STORE_PROOF])
{
    unsigned char label = (unsigned char)role; /* the roles differ, so no proof can be sent back to the one who made it */
    crypto_auth_hmacsha512256_state state;
    crypto_auth_hmacsha512256_init(&state, secret, 32);
    crypto_auth_hmacsha512256_update(&state, &label, 1);
    crypto_auth_hmacsha512256_update(&state, client_nonce, TD__STORE_NONCE);
    crypto_auth_hmacsha512256_update(&state, server_nonce, TD__STORE_NONCE);
    crypto_auth_hmacsha512256_final(&state, proof);
}

bool td__store_proof_equal(const unsigned char *a, const unsigned char *b)
{
    return sodium_memcmp(a, b, TD__STORE_PROOF) == 0;
}

/* ---- frames -------------------------------------------------------------------------------------------------------------- */

void td__store_put_i64(unsigned char into[8], int64_t value)
{
    for (int i = 0; i < 8; i++)
        into[i] = (unsigned char)((uint64_t)value >> 8 * i);
}

int64_t td__store_get_i64(const unsigned char from[8])
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value |= (uint64_t)from[i] << 8 * i;
    return (int64_t)value;
}

void td__store_put_i32(unsigned char into[4], int32_t value)
{
    for (int i = 0; i < 4; i++)
        into[i] = (unsigned char)((uint32_t)value >> 8 * i);
}

int32_t td__store_get_i32(const unsigned char from[4])
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++)
        value |= (uint32_t)from[i] << 8 * i;
    return (int32_t)value;
}

static size_t value_size(const unsigned char *header)
{
    return (size_t)header[4] | (size_t)header[5] << 8 | (size_t)header[6] << 16 | (size_t)header[7] << 24;
}

size_t td__store_frame_size(const unsigned char *header)
{
    if (header[0] < TD__STORE_SET || header[0] > TD__STORE_LAST || header[2] || header[3] ||
        value_size(header) > TD__STORE_VALUE_MAX)
        return 0;
    return TD__STORE_HEADER + header[1] + value_size(header) + TD__STORE_PROOF;
}

static void frame_mac(const td__store_session *s, td__store_role from, uint64_t sequence, const unsigned char *bytes,
                      size_t size, unsigned char mac[TD__STORE_PROOF])
{
    unsigned char head[9] = { (unsigned char)from };
    td__store_put_i64(head + 1, (int64_t)sequence);
    crypto_auth_hmacsha512256_state state;
    crypto_auth_hmacsha512256_init(&state, s->key, sizeof s->key);
    crypto_auth_hmacsha512256_update(&state, head, sizeof head);
    crypto_auth_hmacsha512256_update(&state, bytes, size);
    crypto_auth_hmacsha512256_final(&state, mac);
}

size_t td__store_pack(td__store_session *s, const td__store_frame *frame, unsigned char *into)
{
    const size_t n = frame->value_size;
    const unsigned char header[TD__STORE_HEADER] = {
        (unsigned char)frame->op, (unsigned char)frame->key_size, 0, 0,
        (unsigned char)n, (unsigned char)(n >> 8), (unsigned char)(n >> 16), (unsigned char)(n >> 24),
    };
    memcpy(into, header, sizeof header);
    if (frame->key_size)
        memcpy(into + sizeof header, frame->key, frame->key_size);
    if (n)
        memcpy(into + sizeof header + frame->key_size, frame->value, n);
    size_t size = sizeof header + frame->key_size + n;
    frame_mac(s, s->me, s->sent++, into, size, into + size);
    return size + TD__STORE_PROOF;
}

bool td__store_unpack(td__store_session *s, const unsigned char *bytes, td__store_frame *frame)
{
    size_t size = td__store_frame_size(bytes) - TD__STORE_PROOF;
    unsigned char mac[TD__STORE_PROOF];
    td__store_role from = s->me == TD__STORE_SERVER ? TD__STORE_CLIENT : TD__STORE_SERVER;
    frame_mac(s, from, s->received++, bytes, size, mac);
    if (!td__store_proof_equal(mac, bytes + size))
        return false;
    *frame = (td__store_frame){
        .op = bytes[0],
        .key = bytes + TD__STORE_HEADER,
        .key_size = bytes[1],
        .value = bytes + TD__STORE_HEADER + bytes[1],
        .value_size = value_size(bytes),
    };
    return true;
}

/* ---- addresses ------------------------------------------------------------------------------------------------------------ */

static int resolve_unix(const char *where, const char *name, td__store_place *place, char *why, size_t why_size)
{
    struct sockaddr_un *a = (struct sockaddr_un *)&place->address;
    size_t length = strlen(name);
    if (length == 0 || length > sizeof a->sun_path - 1) {
        snprintf(why, why_size, "\"%.120s\": the name has %zu characters, expected 1 to %zu", where, length, sizeof a->sun_path - 1);
        return TD_ERR_ARGUMENT;
    }
    a->sun_family = AF_UNIX;
    memcpy(a->sun_path + 1, name, length);     /* the leading zero makes it abstract: nothing to unlink */
    place->family = AF_UNIX;
    place->size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    return 0;
}

static int resolve_tcp(const char *where, const char *rest, td__store_place *place, char *why, size_t why_size)
{
    char host[256];
    const char *colon = strrchr(rest, ':');
    size_t length = colon ? (size_t)(colon - rest) : 0;
    if (length > 2 && rest[0] == '[' && rest[length - 1] == ']')
        rest++, length -= 2;
    if (!colon || length == 0 || length >= sizeof host || colon[1] == '\0') {
        snprintf(why, why_size, "\"%.120s\": expected tcp:HOST:PORT", where);
        return TD_ERR_ARGUMENT;
    }
    memcpy(host, rest, length);
    host[length] = '\0';
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV }, *found = NULL;
    int error = getaddrinfo(host, colon + 1, &hints, &found);
    if (error || !found) {
        snprintf(why, why_size, "\"%.120s\": %s", where, error ? gai_strerror(error) : "no address");
        return TD_ERR_IO;
    }
    memcpy(&place->address, found->ai_addr, found->ai_addrlen);
    place->size = found->ai_addrlen;
    place->family = found->ai_family;
    freeaddrinfo(found);
    return 0;
}

int td__store_resolve(const char *where, td__store_place *place, char *why, size_t why_size)
{
    memset(place, 0, sizeof *place);
    if (where && strncmp(where, "unix:@", 6) == 0)
        return resolve_unix(where, where + 6, place, why, why_size);
    if (where && strncmp(where, "tcp:", 4) == 0)
        return resolve_tcp(where, where + 4, place, why, why_size);
    snprintf(why, why_size, "\"%.120s\": expected unix:@NAME or tcp:HOST:PORT", where ? where : "");
    return TD_ERR_ARGUMENT;
}

bool td__store_same_user(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

/* The kernel answers these probes, so a process that is stopped or busy is no lost one: only its host or the way to it can be. */
void td__store_tune(int fd)
{
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &(int){ 1 }, sizeof(int));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &(int){ 2 }, sizeof(int));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &(int){ 1 }, sizeof(int));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &(int){ 2 }, sizeof(int));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &(unsigned){ 4000 }, sizeof(unsigned));
}
