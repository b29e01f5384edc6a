/* base/store_wire.h: what travels between a store and its clients. Internal to base/.
 *
 *     client                                         server
 *     "TDSTORE1" nonce(32)                      ->
 *                                               <-   nonce(32) proof(32)
 *     proof(32)                                 ->
 *     frame                                     ->   (one at a time)
 *                                               <-   frame
 *
 * A proof is an HMAC with the job's secret over a role and both nonces; a third role gives the session's key. A frame is
 * op(1) key size(1) zero(2) value size(4, little-endian), key, value, and an HMAC with the session's key over direction,
 * sequence number and all of that: nothing of it is looked at but the sizes, which are bounded, before the HMAC is checked.
 */
#ifndef TD_STORE_WIRE_H
#define TD_STORE_WIRE_H
#include "store.h"
#include <sys/socket.h>

enum {
    TD__STORE_NONCE = 32,
    TD__STORE_PROOF = 32,
    TD__STORE_MAGIC = 8,
    TD__STORE_HELLO = TD__STORE_MAGIC + TD__STORE_NONCE,
    TD__STORE_CHALLENGE = TD__STORE_NONCE + TD__STORE_PROOF,
    TD__STORE_HEADER = 8,
    TD__STORE_KEY_MAX = 255,
    TD__STORE_VALUE_MAX = 65536,
    TD__STORE_FRAME_MAX = TD__STORE_HEADER + TD__STORE_KEY_MAX + TD__STORE_VALUE_MAX + TD__STORE_PROOF
};
#define TD__STORE_HELLO_TEXT "TDSTORE1"

typedef enum {
    TD__STORE_SET = 1,                         /* key, value                          -> DONE                              */
    TD__STORE_GET,                             /* key, milliseconds to wait (8 bytes) -> DONE value, or LATE               */
    TD__STORE_ADD,                             /* key, delta (8 bytes)                -> DONE now (8 bytes), or NO_COUNTER */
    TD__STORE_DONE,
    TD__STORE_LATE,                            /* to MEET: how many have not come, and the first of them (4 bytes each)      */
    TD__STORE_NO_COUNTER,
    TD__STORE_FULL,
    TD__STORE_MEET,                            /* key; rank, ranks (4 bytes each), milliseconds (8), data -> DONE all data, LATE or ABSENT */
    TD__STORE_LEAVE,                           /* scope; rank, has it failed (4 bytes each), sentence     -> DONE              */
    TD__STORE_ABSENT,                          /* rank, why (4 bytes each), sentence                                        */
    TD__STORE_TELL,                            /* key, value                          -> DONE answer (8 bytes), or NO_EAR  */
    TD__STORE_NO_EAR,
    TD__STORE_LAST = TD__STORE_NO_EAR
} td__store_op;

typedef enum { TD__STORE_SERVER = 's', TD__STORE_CLIENT = 'c', TD__STORE_KEY = 'k' } td__store_role;
void td__store_proof(const unsigned char *secret, td__store_role role, const unsigned char *client_nonce,
                     const unsigned char *server_nonce, unsigned char proof[TD__STORE_PROOF]);
bool td__store_proof_equal(const unsigned char *a, const unsigned char *b);
int  td__store_random(unsigned char nonce[TD__STORE_NONCE]);   /* negative when the system gives no random numbers */

typedef struct {
    unsigned char key[32];
    uint64_t sent, received;
    td__store_role me;
} td__store_session;

typedef struct {
    td__store_op op;
    const unsigned char *key, *value;
    size_t key_size, value_size;
} td__store_frame;
/* The whole frame's size from its first 8 bytes; 0 when they cannot be a frame's. */
size_t td__store_frame_size(const unsigned char *header);
/* `into` has room for TD__STORE_HEADER + key + value + TD__STORE_PROOF bytes; returns that number. */
size_t td__store_pack(td__store_session *s, const td__store_frame *frame, unsigned char *into);
/* Points into `bytes`; false when the HMAC is wrong. */
bool   td__store_unpack(td__store_session *s, const unsigned char *bytes, td__store_frame *frame);
void    td__store_put_i64(unsigned char into[8], int64_t value);
int64_t td__store_get_i64(const unsigned char from[8]);
void    td__store_put_i32(unsigned char into[4], int32_t value);
int32_t td__store_get_i32(const unsigned char from[4]);
enum { TD__STORE_MEET_HEAD = 16, TD__STORE_LEAVE_HEAD = 8, TD__STORE_LATE_NAMED = 32 };

/* "unix:@NAME" or "tcp:HOST:PORT" ("tcp:[::1]:PORT"). 0, or a negative code with the sentence in `why`. */
typedef struct {
    int family;
    socklen_t size;
    struct sockaddr_storage address;
} td__store_place;
int  td__store_resolve(const char *where, td__store_place *place, char *why, size_t why_size);
bool td__store_same_user(int fd);              /* the Unix socket's peer runs under our user id */
/* One question and its answer, which `use` sees while the connection is locked. 0, or how the connection failed; no td__fail. */
int  td__store_ask(td__store *store, const td__store_frame *question, double wait_s, const td__store_patience *patience,
                   void (*use)(const td__store_frame *answer, void *of), void *of);
/* A TCP connection that sends at once, and whose end notices within seconds that the other cannot be reached any more. */
void td__store_tune(int fd);
#endif
