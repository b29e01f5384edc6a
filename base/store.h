/* base/store.h: the meeting-point store: a small authenticated key-value service. One process serves, others set and wait for keys.
 * Unix socket (abstract name) on one machine, TCP beyond. Both ends prove that they know the job's secret before anything else is
 * read (challenge and response, HMAC by libsodium); a Unix peer's user id is checked too. Keys up to 255 bytes, values up to 64 KiB.
 */
#ifndef TD_STORE_H
#define TD_STORE_H
#include "base.h"

typedef struct td__store_server td__store_server;
typedef struct td__store td__store;
/* where: "unix:@NAME", or "tcp:HOST:0" (bound to HOST alone; the port is chosen). One thread serves. NULL after td__fail. */
td__store_server *td__store_serve(const char *where, const unsigned char secret[32]);
const char *td__store_address(const td__store_server *server);          /* with the port, to hand to clients               */
void td__store_stop(td__store_server *server);
/* What clients tell (td__store_tell) goes to `heard` and is kept nowhere: a stream of messages beside the table. It runs on the
 * server's thread, one message after another, and must not wait; what it returns is the teller's answer. Before any client comes. */
void td__store_listen(td__store_server *server, int64_t (*heard)(void *user, const char *key, const void *value, size_t size), void *user);
/* without waiting, and no td__fail: TD_ERR_STATE when nobody has set it yet */
int  td__store_server_get(td__store_server *server, const char *key, void *into, size_t *size);

td__store *td__store_connect(const char *address, const unsigned char secret[32], double timeout_s);  /* NULL after td__fail */
void td__store_close(td__store *store);
int  td__store_set(td__store *store, const char *key, const void *value, size_t size);
/* waits until the key is set or the deadline passes; *size: room in, bytes out */
int  td__store_get(td__store *store, const char *key, void *into, size_t *size, double timeout_s);
int  td__store_tell(td__store *store, const char *key, const void *value, size_t size, int64_t *answer);  /* to td__store_listen */
/* How long the server may take for what it does at once before it counts as lost: 30 seconds unless said otherwise here. */
void td__store_answer_within(td__store *store, double seconds);
const char *td__store_where(const td__store *store);         /* "tcp:10.0.0.7:21234", as it was connected to                 */
const char *td__store_own_address(td__store *store, char *into, size_t size);   /* of this end: "10.0.0.7"; "" for a Unix socket */
int  td__store_add(td__store *store, const char *key, int64_t delta, int64_t *now);               /* counters from 0         */

/* ---- without td__fail: `why` gets the sentence ------------------------------------------------------------------------------
 * As td__store_serve; with the port said, *code is TD_ERR_STATE when another program has it. */
td__store_server *td__store_try_serve(const char *where, const unsigned char secret[32], int *code, char *why, size_t size);
/* One attempt. *code: TD_ERR_IO nobody is there, TD_ERR_TIMEOUT it does not answer, TD_ERR_PEER it is no store, TD_ERR_MISMATCH it does not
 * know this secret. */
td__store *td__store_try(const char *address, const unsigned char secret[32], double timeout_s, int *code, char *why, size_t size);

/* ---- meetings: every rank brings some bytes and takes everybody's ------------------------------------------------------------
 * A key is SCOPE/ANYTHING, used once. A rank belongs to the scopes in which it has met: when its connection breaks, or it leaves, those who
 * wait for it there are told at once. The server forgets a meeting that has taken place. */
enum { TD__STORE_MEET_BYTES = 65536 - 64 };    /* over all ranks                                                           */
typedef enum { TD__ABSENT_NONE, TD__ABSENT_LATE, TD__ABSENT_LEFT, TD__ABSENT_FAILED, TD__ABSENT_LOST, TD__ABSENT_TWICE, TD__ABSENT_SIZE,
               TD__ABSENT_SERVER } td__store_absence;
typedef struct {
    td__store_absence why;                     /* LATE: `rank` has the ranks that have not come; FAILED: text is its sentence; TWICE: another process is
                                                  this rank; SIZE: it believes in another number of ranks; SERVER: the store itself is gone */
    int count, rank[32];                       /* count may be more than 32                                                */
    char text[1024];
} td__store_absent;
/* A wait asks this about 20 times a second whether to go on: 0, or another code: give up (the connection is then of no more use). */
typedef struct { int (*ask)(void *of); void *of; } td__store_patience;
/* 0 and *got bytes, the ranks' one after the other; or negative with *absent told: TD_ERR_TIMEOUT, TD_ERR_PEER, what `patience` said. */
int  td__store_meet(td__store *store, const char *key, int rank, int ranks, const void *mine, size_t bytes, void *all, size_t room, size_t *got,
                    double timeout_s, const td__store_patience *patience, td__store_absent *absent);
/* The same number of bytes from every rank, however many: in as many meetings as it takes, of which *turn counts the number. */
int  td__store_gather(td__store *store, const char *scope, uint64_t *turn, int rank, int ranks, const void *mine, size_t bytes, void *all,
                      double timeout_s, const td__store_patience *patience, td__store_absent *absent);
/* This rank comes to no more meetings of the scope. sentence NULL: all went well. Negative when nobody could be told. */
int  td__store_leave(td__store *store, const char *scope, int rank, const char *sentence);
int  td__store_has(td__store *store, const char *key);       /* 1, 0, or negative when nobody could be asked                */
int64_t td__store_count(td__store *store, const char *key);  /* one more; the same                                          */
/* How many clients are connected that have met somewhere and not left it. */
int  td__store_server_members(td__store_server *server);
#endif
