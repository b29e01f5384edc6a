/* base/store_server_impl.h: what the three files of the store server share. Internal to base/.
 *
 * store_server.c owns the thread, the poll set and the list of peers; store_peer.c knows what one peer may say next; store_meet.c knows
 * who meets whom.
 */
#ifndef TD_STORE_SERVER_IMPL_H
#define TD_STORE_SERVER_IMPL_H
#include "store_table.h"
#include "store_wire.h"
#include <poll.h>
#include <pthread.h>

typedef enum { TD__PEER_HELLO, TD__PEER_PROOF, TD__PEER_READY, TD__PEER_PARKED } td__store_peer_state;

typedef struct td__store_peer {
    struct td__store_peer *next;
    struct pollfd *polled;                     /* in this round; NULL: came after poll */
    int fd;
    td__store_peer_state state;
    bool lost;                                 /* to be freed at the end of the round */
    double deadline;                           /* of the proof or of the parked get; INFINITY: none */
    unsigned char nonces[2 * TD__STORE_NONCE]; /* the client's, ours */
    td__store_session session;
    unsigned char *in, *out;
    size_t in_room, in_used, out_room, out_used, out_sent;
    unsigned char key[TD__STORE_KEY_MAX];      /* that a parked client waits for */
    size_t key_size;
    struct td__store_room *meets;              /* … or the meeting */
} td__store_peer;

struct td__store_server {
    int listener, wake;
    bool local;                                /* a Unix socket */
    char address[300];
    unsigned char secret[32];
    pthread_t thread;
    pthread_mutex_t lock;                      /* of the table, for td__store_server_get, and of the listener */
    td__store_table table;
    int64_t (*heard)(void *user, const char *key, const void *value, size_t size);   /* NULL: nobody listens */
    void *user;
    td__store_peer *clients;
    size_t count;
    struct td__store_room *rooms;              /* meetings that have not taken place yet */
    struct td__store_member *members;
    _Atomic int here;                          /* members that have neither left nor been lost */
    double accept_after;
    struct pollfd *polled;
    size_t polled_room;
};

void td__store_peer_turn(td__store_server *server, td__store_peer *c);   /* after poll: reads, obeys, answers, or marks it lost */
bool td__store_peer_may_read(const td__store_peer *c);          /* its next bytes are wanted                              */
void td__store_peer_free(td__store_peer *c);
void td__store_answer(td__store_peer *c, td__store_op op, const unsigned char *value, size_t size);

/* ---- store_meet.c ---- */
void td__store_obey_meet(td__store_server *server, td__store_peer *c, const td__store_frame *f);
void td__store_obey_leave(td__store_server *server, td__store_peer *c, const td__store_frame *f);
void td__store_meet_late(td__store_peer *c);                    /* its deadline has passed                                 */
void td__store_meet_lost(td__store_server *server, td__store_peer *c);   /* its connection is gone                          */
void td__store_meet_clear(td__store_server *server);
#endif
