/* comm/comm_hier.h: the backend "hier" from inside: comm_hier.c and its parts. Internal to comm/.
 */
#ifndef TD_COMM_HIER_H
#define TD_COMM_HIER_H
#include "comm_room.h"
#include "schedule.h"

enum {
    TD_HIER_RECORDS = 32 * 1024,               /* bytes of a small collective over all ranks, at most                            */
    TD_HIER_HEAD = 128,                        /* bytes of what comes before them in a letter                                    */
    TD_HIER_SLOTS = 8,                         /* messages of a schedule on their way to this rank                               */
    TD_HIER_SLICE = 60 * 1024,                 /* bytes of one, at most: below MPI's limit (64 KB over TCP) it goes at once; above, a question
                                                * first goes and comes back, behind everything that fills a slow link             */
    TD_HIER_LEAST = 8 * 1024,                  /* bytes of one, if there are as many                                             */
    TD_HIER_NAME = 64,
    TD_HIER_SIZES = 4,                         /* sizes at which algorithms are compared                                         */
};
#define TD_ALGORITHM_MPI TD_ALGORITHMS         /* not ours: what MPI does                                                        */

/* What the hosts have agreed on at the beginning of a collective. */
typedef struct {
    int32_t equal;                             /* all ranks of all hosts have called the same                                    */
    int32_t shared;                            /* memory of all ranks that share a host lies in their arenas                     */
    double  post;                              /* rank 0's                                                                       */
} td__terms;

/* Where the first rank of a host leaves for the others what came from elsewhere: in its room for staged messages in the control page. Records: of each
 * rank, in the order of layout.member. */
typedef struct {
    td__terms terms;
    _Alignas(64) char record[TD_HIER_RECORDS];
} td__board;

typedef struct td__hier {
    td_comm *comm;
    const td_comm_host *host;
    const td_comm_backend *plug;               /* what the rest is handed to, and its wire                                       */
    void   *plug_state;
    const td_kernels *kernels;
    td__control view;                          /* the control page with a memory of its own: the user's thread looks, too        */
    td__arena *arena;                          /* the communicator's, like the next two                                          */
    void  **base;                              /* every arena of the host as mapped here                                         */
    size_t *bytes;
    int     n, me;                             /* ranks of this host; this rank's number among them                              */
    td__layout layout;
    int     here;                              /* this host's number                                                             */
    char  (*name)[TD_HIER_NAME];               /* of every host                                                                  */
    td__board *board;                          /* of the host                                                                    */
    char   *letter[2];                         /* agree: what is sent and what comes                                             */

    td__schedule list;                         /* of the collective under way                                                    */
    td_wire_request *request;                  /* per step                                                                       */
    int     room;                              /* of them                                                                        */
    char   *slot;
    int     slots;
    const void **in; void **out; double *pre;  /* for kernels: n + 1, n, n + 1                                                   */
    double  looked;                            /* when peers were last looked at                                                 */

    int     forced;                            /* -1, or TANDEM_ALGORITHM                                                        */
    int     best[TD_HIER_SIZES];               /* by size, from the measurement                                                  */
} td__hier;

/* What open.c hands over; on success the plug-in's state is the backend's. */
typedef struct { const td_comm_backend *plug; void *plug_state; } td__hier_parts;

extern const td_comm_backend td__comm_hier;

/* ---- comm_hier.c ---- */
int  td__hier_run(void *state, td_coll *coll);

/* ---- comm_hier_wait.c ---- */
/* Until the message has come or gone, while watching peers, verdicts and the clock; with rank `peer`. 0 or negative. */
int  td__hier_await(td__hier *h, const td_coll *coll, td_wire_request *request, int peer);

/* ---- comm_hier_agree.c ---- */
size_t td__hier_record(const td__hier *h, const td_coll *coll);    /* bytes of a rank's record, when the collective is small; else 0 */
/* record: what td__hier_record says, or 0 when only calls are compared. 0 (also when they differ) or negative */
int  td__hier_agree(td__hier *h, td_coll *coll, size_t record, td__terms *terms);
void td__hier_finish_small(td__hier *h, const td_coll *coll, const td__terms *terms);
size_t td__hier_in_bytes(const td__hier *h, const td_coll *coll);
double td__hier_post(const td__hier *h, const td_coll *coll, const td__terms *terms);
td_combine td__hier_op(td_reduce op);

/* ---- comm_hier_run.c ---- */
int  td__hier_schedule(td__hier *h, td_coll *coll, const td__terms *terms, td__algorithm algorithm);
void td__hier_run_free(td__hier *h, bool well);

/* ---- comm_hier_choose.c ---- */
int  td__hier_choose(td__hier *h);             /* at opening, collective: the environment's, or by measurement; 0 or negative     */
int  td__hier_algorithm(const td__hier *h, const td_coll *coll, bool shared);   /* td__algorithm or TD_ALGORITHM_MPI              */
#endif
