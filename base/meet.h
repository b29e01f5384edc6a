/* base/meet.h: how the ranks of a world on several hosts meet when no MPI carries it: one rank, or our launcher, serves a store (store.h) over TCP,
 * at a place and with a secret that all find by themselves. docs/design/ranks.md has the rule.
 */
#ifndef TD_MEET_H
#define TD_MEET_H
#include "nodelist.h"
#include "store.h"

/* ---- key.c: the user's own key -----------------------------------------------------------------------------------------------
 * TANDEM_KEY_FILE, else $HOME/.tandem/key: 64 hexadecimal digits, readable by its owner alone, the same on all hosts. */
int  td__key_path(char *into, size_t size, char *error, size_t error_size);
int  td__key_make(char *path, size_t size, char *error, size_t error_size);     /* never overwrites                        */
/* The secret of a job: HMAC of `job` under TANDEM_SECRET, else under the key file. 0, or negative with the sentence; no td__fail. */
int  td__key_secret(const char *job, unsigned char secret[32], char *error, size_t error_size);

/* ---- ports.c: a place that needs no fixed port --------------------------------------------------------------------------------
 * port 0: 20000 + hash(job) mod 20000 and the 16 after it are tried; each is confirmed by the store's handshake, so that a foreign program there, and
 * another job's store, are passed over. No td__fail: 0, or negative with the sentence in `error`. */
enum { TD__MEET_PORTS = 17 };
int  td__meet_port(const char *job);
/* Bound to an address of `host` that this machine has, and to no other; loopback: one that only this machine sees is good enough. */
td__store_server *td__meet_serve(const char *host, int port, const char *job, const unsigned char secret[32], bool loopback, int *code, char *error,
                                 size_t error_size);
td__store *td__meet_connect(const char *host, int port, const char *job, const unsigned char secret[32], bool loopback, double timeout_s, int *code,
                            char *error, size_t error_size);

/* ---- meet.c: the meeting of a world -------------------------------------------------------------------------------------------- */
typedef struct {
    bool serve;                                /* this rank serves the store                                             */
    bool launcher;                             /* our launcher does: `address` is the place, the world's secret is its secret  */
    bool one_host;                             /* no port: an abstract Unix socket                                       */
    char address[300];                         /* launcher, one_host: the whole address                                  */
    char host[TD_NODE_NAME];                   /* else: whose; and the port, 0: by the job's name                        */
    int  port;
    char from[24];                             /* the variable that has said so                                          */
    td__nodes nodes;                           /* of the Slurm step, where there is one                                  */
    char node[TD_NODE_NAME];                   /* this rank's among them                                                 */
} td__meet_plan;
/* From a table of variables, as td__world_find. 0 (td__nodelist_free(&out->nodes)), or negative with the sentence. */
int  td__meet_find(const char *(*get)(const char *name), const td__world *w, td__meet_plan *out, char *error, size_t error_size);
/* Must the world meet at a store before anything is known about hosts, or to be carried by it? By TANDEM_COMM, too. */
bool td__meet_wanted(const td__world *w);
/* Meets all other ranks of the world until TANDEM_TIMEOUT; fills local_rank and local_size where the launcher has not. 0 or negative after td__fail. */
int  td__meet(td__world *w);
void td__meet_end(bool well);                  /* all of this process; fine without a meeting. Serving, it waits a little for the others to leave */

/* After td__meet; NULL: the world is on one host, or MPI carries it. */
td__store *td__meeting_store(void);
const char *td__meeting_address(void);
const unsigned char *td__meeting_secret(void);
unsigned td__meeting_number(void);             /* the how many-th of this process: part of every scope's name              */
typedef struct {
    char host[56];
    int32_t pid;
    uint32_t number;
    uint64_t machine;                          /* equal: the same host                                                    */
} td__meeting_rank;
const td__meeting_rank *td__meeting_peer(int rank);   /* NULL without a meeting                                            */
#endif
