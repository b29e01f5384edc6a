/* launcher/across.h: jobs across hosts, from inside.
 *
 *     tandem run (the head)  --engine-->  an agent for each rank, on every host  --fork-->  the rank
 *
 * The engine (mpirun, srun, or a user on every node) only starts agents. Everything else goes over the head's meeting-point store, which
 * both ends authenticate: an agent reads its orders, says hello, is told to go, tells what its rank does and writes, and waits for
 * commands. It tells something every BEAT; who has heard nothing for LOST takes the other for lost.
 *
 *   head*.c     the life of such a job            engine.c, engine_*.c   the command that starts agents
 *   inbox.c     what agents tell, in order        address.c              the one address of ours that the hosts reach
 *   map.c       who is where                      hand.c                 nodes that are started by hand
 *   agent*.c    one rank's guardian               link.c                 its two connections to the head
 *   still.c     ranks that are stopped or have left
 */
#ifndef TD_ACROSS_H
#define TD_ACROSS_H
#include "launcher.h"

#define TD_BEAT_S 0.5                          /* an agent tells something at least so often                              */
#define TD_PATIENCE_S 2.5                      /* and waits so long for the answer: it knows within BEAT + PATIENCE        */
#define TD_LOST_S 3.0                          /* the head takes an agent for lost that has told nothing for so long        */

/* ---- what is told and commanded; both ends are the same program ------------------------------------------------------------ */

/* Keys: "orders" and "go" are set by the head; commands are "down/1", "down/2", …; agents tell "agent/RANK". */
typedef struct {
    char magic[8];                             /* TD_ORDERS_MAGIC                                                         */
    int32_t bytes;                             /* of this struct                                                          */
    int32_t size, threads, columns;
    bool no_binding, own_output;               /* own_output: the rank writes to the agent's stdout and stderr              */
    double kill_after_s;
    char job[64], log_dir[TD_LOG_DIR_MAX], tee[TD_STREAMS_TEXT], redirects[TD_STREAMS_TEXT], filter[TD_STREAMS_TEXT];
} td__orders;
#define TD_ORDERS_MAGIC "TDORD01"

typedef struct {
    int32_t hosts, master_port;
    char master_addr[64];
    int32_t node_rank[TD_RANKS_MAX];           /* `size` of them travel                                                   */
} td__go;

typedef enum { TD_DO_SIGNAL = 1, TD_DO_LOOK, TD_DO_END, TD_DO_KILL } td__command_kind;
typedef struct {
    int32_t kind, number;                      /* number: of the signal                                                   */
} td__order;

typedef enum {
    TD_TELL_BEAT = '.', TD_TELL_HELLO = 'h', TD_TELL_STARTED = 's', TD_TELL_OUT = 'o', TD_TELL_ERR = 'e', TD_TELL_LOOK = 'l',
    TD_TELL_ENDED = 'x', TD_TELL_REFUSED = 'r', TD_TELL_SAYS = 'w', TD_TELL_GONE = 'z'
} td__tell_kind;
enum { TD_TELL_BYTES = 60000 };                /* of one message                                                          */

typedef struct {
    int32_t size, local_rank, local_size, port;   /* port: free on the agent's host, for MASTER_PORT                     */
    char host[64], address[64], binding[300];
} td__hello;

/* LOOK (while it runs) and ENDED: the rank and its box. Ages instead of times: clocks of hosts differ. */
typedef struct {
    int32_t pid, status;
    bool ended, asked_to_end, has_box, kept, finished;   /* finished: the box has been removed; `box` is what it held      */
    int64_t ended_age_ns, error_age_ns;
    char place[320], box_path[600];
    td__box box;
} td__report;

typedef struct {
    int32_t status;                            /* that `tandem run` exits with                                            */
    char sentence[1000];
} td__refusal;

/* ---- link.c: the agent's end -------------------------------------------------------------------------------------------------- */
typedef struct td__link td__link;
typedef struct {
    void (*go)(void *user, const td__go *go);
    void (*command)(void *user, const td__order *order);
    void (*lost)(void *user, bool silent, const char *why);   /* silent: no answer; else the connection was closed          */
    void (*room)(void *user);                  /* less than the limit of output is unread again                            */
} td__link_events;
/* Connects, reads the orders. NULL after td__fail. */
td__link *td__link_open(const char *store, const unsigned char secret[32], int rank, td__orders *orders);
const char *td__link_address(td__link *l, char *into, size_t size);   /* of this host, as the head sees it                    */
/* From here on events are called on the loop. 0 or a libuv error. */
int  td__link_start(td__link *l, uv_loop_t *loop, const td__link_events *events, void *user);
void td__link_tell(td__link *l, td__tell_kind kind, const void *bytes, size_t n);
bool td__link_full(td__link *l);               /* so much output is unread that no more should be told                     */
/* Waits until all is told, not longer than `seconds`, and closes. */
void td__link_close(td__link *l, double seconds);

/* ---- still.c: stopped ranks, and ranks that have left while others wait for them -------------------------------------------------- */
typedef struct {
    double stopped_since, still_since, last_look, told;
    uint64_t collectives;
    bool stop_told;
} td__still;
typedef enum { TD_MOVES, TD_STOPPED, TD_WAITS } td__stillness;
enum { TD_STILL_MS = 150, TD_FIRST_MS = 20, TD_FIRST_LOOKS = 3000 };   /* how often an agent looks; until there is a box      */
/* The agent: STOPPED once, WAITS now and then while it lasts. finished: the rank has removed its box; `box` is empty, or as it was then. */
td__stillness td__still_look(td__still *s, pid_t pid, const td__box *box, bool finished);
/* The head, when rank `waiting` has been told to wait: has one left for which it waits? Then the sentence. */
bool td__still_left(const td__job *job, int waiting, int64_t now_ns, char *sentence, size_t size);

/* ---- inbox.c: the head's end --------------------------------------------------------------------------------------------------- */
typedef struct td__inbox td__inbox;
typedef struct {
    int rank;
    td__tell_kind kind;
    size_t size;
    char bytes[];
} td__told;
td__inbox *td__inbox_new(uv_loop_t *loop, int size, void (*told)(void *user, const td__told *message), void *user);
int64_t td__inbox_hear(void *inbox, const char *key, const void *value, size_t size);   /* for td__store_listen                */
double td__inbox_silence(td__inbox *inbox, int rank);   /* seconds since the agent's last word; negative: it never spoke      */
void td__inbox_close(td__inbox *inbox);        /* its handle; no message afterwards                                       */
void td__inbox_free(td__inbox *inbox);         /* after the store has stopped                                             */

/* ---- address.c ---------------------------------------------------------------------------------------------------------------------- */
/* The one address of ours that all hosts reach. 0, or an exit status after one sentence. */
int td__address_for(const td__run_options *o, char *into, size_t size);

/* ---- map.c -------------------------------------------------------------------------------------------------------------------------- */
/* Numbers the hosts in the order of their first ranks; hello[rank]. Returns how many there are. */
int  td__map_hosts(const td__hello *hello, int size, int32_t *node_rank);
void td__map_say(const td__hello *hello, const int32_t *node_rank, int size, int hosts);

/* ---- engine.c, engine_mpirun.c, engine_srun.c ------------------------------------------------------------------------------------- */
typedef struct {
    char **word;
    int n;
} td__words;
void td__words_add(td__words *w, const char *format, ...) TD_PRINTF(2, 3);
void td__words_append(td__words *w, const char *format, ...) TD_PRINTF(2, 3);   /* to the last word                           */
void td__words_free(td__words *w);
/* The engine's command up to the agent's own. 0, or an exit status after one sentence. */
int  td__engine_mpirun(const td__run_options *o, td__words *w);
int  td__engine_srun(const td__run_options *o, td__words *w);
int  td__engine_words(const td__run_options *o, td__words *w);    /* the whole command                                      */
void td__agent_words(const td__run_options *o, td__words *w);     /* … agent ENGINE -- PROGRAM ARGS                          */
const char *td__engine_name(const td__run_options *o);
bool td__in_path(const char *program);

/* ---- hand.c ------------------------------------------------------------------------------------------------------------------------- */
typedef struct {
    int first, size;                           /* this node's first rank; ranks of the job                                */
    int local_first, local_size;               /* the same among the ranks of this machine: two nodes may share one           */
    char job[64];
} td__hand_place;
/* Node 0: the store where the nodes meet, and its secret. NULL after one sentence. */
td__store_server *td__hand_serve(const td__run_options *o, unsigned char secret[32]);
/* All nodes say how many ranks they have; node 0 brings the job's name. 0 or an exit status after one sentence. */
int  td__hand_meet(const td__run_options *o, td__store *store, const char *job, td__hand_place *place);
/* Starts this node's agents; their output goes through td__lines. pid: one for each, or NULL. 0, or a negative errno. */
int  td__hand_start(const td__run_options *o, const td__hand_place *place, pid_t *pid);
/* Node 0, at the end: what `tandem run` exits with on every node. Waits so long until they know. */
void td__hand_farewell(const td__run_options *o, td__store *store, int status, double seconds);
int  td__hand_node(const td__run_options *o);  /* the other nodes: returns the exit status                                */
#endif
