/* comm/comm_room.h: a communicator and its works. Internal to comm/.
 */
#ifndef TD_COMM_ROOM_H
#define TD_COMM_ROOM_H
#include <pthread.h>
#include "control.h"

typedef enum { TD_WORK_FREE, TD_WORK_QUEUED, TD_WORK_RUNNING, TD_WORK_DONE } td__work_state;

/* Events of a device: before a collective, behind it, and where the compute stream began to wait for it. */
typedef struct { void *begin, *end, *waited; } td__marks;

struct td_work {
    td_coll  coll;
    td_comm *comm;
    td_work *next;                         /* in the queue, or among the spare ones                                           */
    td_work *all;                          /* every work of the communicator                                                  */
    _Atomic int state;
    int      code;
    char     sentence[TD_SENTENCE];        /* of an error of this work alone                                                  */
    int64_t *counts; int counts_room;      /* the copy of coll's counts                                                       */
    td_tensor *hold[2];                    /* live until the work has been waited for                                         */
    bool     abandoned;                    /* waited for in vain: the thread still has it and its tensors                     */
    bool     on_device;                    /* device.c started it                                                             */
    struct td__letter *letter;             /* a message's; NULL: a collective                                                  */
    void    *noted;                        /* its start in the list of a captured step                                         */
    td__marks captured;                    /* … into a graph: the events that its wait needs                                   */
    double   checked;                      /* td_test: when peers were last looked at                                         */
};

/* Memory of the ranks of this host as it is mapped here, by their slot in the control page. The arena is this rank's own. The world's is unmapped
 * when it closes; groups have a choice of it. Empty: nobody else is on this host. */
typedef struct { td__arena *arena; int n; void **base; size_t *bytes; } td__reach;
enum { TD_COMM_NAME = 48 };

typedef struct td__device_side td__device_side;
struct td_comm {
    int rank, size;
    char name[TD_COMM_NAME];               /* "group 2 of world"; empty: the world                                              */
    int *world_rank;                       /* of each rank; NULL: the world itself                                               */
    int  groups;                           /* split off so far                                                                   */
    td_comm *next;                         /* group.c's list of all that are open                                                */
    const td_comm_backend *backend;
    void *state;
    td__reach reach;
    struct td__post *post;                 /* messages: opened by the first (point.c)                                           */
    td__control *control, page;            /* &page; NULL: self                                                               */
    bool page_elsewhere;                   /* the page lies in some rank's arena                                                */
    void *block;                           /* … in this rank's: group.c gives it back                                           */
    td__device_side *dev;                  /* opened by the first collective of device memory                                  */
    double timeout;
    uint64_t seq, turn;                    /* collectives issued; those of host memory                                        */
    int64_t *uneven;                       /* of the thread that executes: numbers that uneven.c compares                       */

    pthread_mutex_t lock;                  /* of everything below                                                             */
    pthread_cond_t  more, done;
    pthread_t thread;
    bool      thread_up, thread_busy, thread_ended, stop;
    double    progress;                    /* when the thread last ended a work                                              */
    td_work  *head, *tail, *spare, *all;
    _Atomic int pending;                   /* started and not yet run                                                         */
    _Atomic int code;                      /* the communicator has failed                                                     */
    _Atomic bool told;                     /* … and a user's thread knows                                                     */
    char      sentence[TD_SENTENCE];
};

/* ---- make.c, tensors.c, raw.c: a public call, before anything has been checked ---- */
typedef struct {
    td_coll_kind kind;
    td_comm   *comm;
    td_tensor *out, *in;                   /* the same where there is one tensor                                              */
    td_reduce  op;
    int        root;
    bool       uneven;
    const int64_t *rows, *in_rows;         /* uneven: rows of tensors, elements of plain memory                               */
    bool       raw;                        /* plain memory of the host                                                        */
    const void *raw_in; void *raw_out;
    int64_t    count;
    td_dtype   dtype;
    int64_t   *made[2];                    /* counts of elements, until td__call_end                                          */
} td__call;
int  td__call_make(td__call *call, td_coll *coll);                /* 0 or negative after td__fail                              */
void td__call_end(td__call *call);
int  td__call_now(td__call call);                                 /* made, run, noted                                          */
td_work *td__call_start(td__call call);

/* ---- uneven.c ---- */
uint32_t td__uneven_hash(const td_coll *coll);
int  td__uneven_keep(td_work *work);                              /* copies the counts of work->coll                            */
int  td__uneven_agree(td_comm *comm, td_coll *coll);              /* all_to_all: fills from and most; takes the two turns before coll's */
int  td__uneven_agree_by_host(td_comm *comm, td_coll *coll);      /* for a device: with collectives of the host, at once         */
/* elements of a collective of one rank */
static inline int64_t td__coll_alone(const td_coll *coll) { return coll->in_counts ? coll->counts[0] : coll->count; }
static inline uint64_t td__coll_turns(const td_coll *coll) { return coll->in_counts ? 3 : 1; }

extern const td_comm_backend td__comm_self, td__comm_store;
extern const td_comm_host td__comm_host;

/* "group 2 of world", or NULL for the world. */
static inline const char *td__comm_group(const td_comm *comm)
{
    return comm->name[0] ? comm->name : NULL;
}
/* Of this communicator's rank in the world: what sentences name. */
static inline int td__comm_world_rank(const td_comm *comm, int rank)
{
    return comm->world_rank ? comm->world_rank[rank] : rank;
}

/* ---- box.c ---- */
void td__comm_box_enter(const td_coll *coll);
void td__comm_box_leave(const td_coll *coll, bool well);

/* ---- comm.c ---- */
int  td__comm_fail(td_comm *comm, int code, const char *format, ...) TD_PRINTF(3, 4);
int  td__comm_execute(td_comm *comm, td_coll *coll);              /* in the caller or the thread                              */
int  td__comm_take_turn(td_comm *comm, td_coll *coll);            /* one turn of it                                            */
int  td__comm_report(td_comm *comm, int code);                    /* the communicator's failure as the calling thread's error   */
td_work *td__work_failed(td_comm *comm, int code);                /* done already; takes the calling thread's error message    */
td_work *td__coll_start_holding(td_comm *comm, const td_coll *coll, td_tensor *a, td_tensor *b);
void td__comm_init(td_comm *comm);                                /* lock and conditions                                       */
void td__comm_trim(td_comm *comm);                                /* frees the works, also those that nobody waited for          */
void td__comm_destroy(td_comm *comm);

/* ---- thread.c ---- */
int  td__comm_thread_start(td_comm *comm);
bool td__comm_thread_stop(td_comm *comm);                         /* false: it hangs in the transport and stays              */
int  td__comm_enqueue(td_comm *comm, td_work *work);
int  td__comm_await(td_comm *comm, td_work *work);                /* until it is done: 0, or negative: given up               */
td_work *td__work_new(td_comm *comm);
void td__work_recycle(td_comm *comm, td_work *work);
void td__work_let_go(td_work *work);                              /* of its tensors                                             */

/* ---- device.c, watch.c ---- */
/* A collective of device memory that was started and is not known to have passed. */
typedef struct {
    td_coll coll;
    td__marks mark;                        /* NULL: recorded into a graph, nothing to wait for                                 */
    bool    enqueued, waited;              /* are begin and end recorded? And waited?                                         */
    double  started;
} td__flight;

struct td__device_side {
    const td_device_comm *table;
    const td_device_ops *ops;
    td_device device;
    void     *state;
    td__flight *flight;                    /* turn t at t % room; `passed` < t <= `started`                                    */
    uint64_t  room, started, passed, compared;
    td__marks *spare;
    uint64_t  spares;
    double    comm_ms, exposed_ms;         /* since somebody asked                                                            */
    double    progress, troubled;          /* when one passed last; since when the library reports an error                     */
    td__control view;                      /* the control page with a memory of its own: two threads look                       */
    pthread_mutex_t lock;                  /* of all above                                                                     */
    pthread_cond_t  news;
    pthread_t thread;
    bool      thread_up, stop;
};

bool td__on_device(const td_coll *coll);
int  td__device_start(td_comm *comm, td_work *work);              /* of work->coll; 0 or negative after td__comm_fail          */
int  td__device_wait(td_comm *comm, td_work *work);               /* the compute stream does; 0 or negative                     */
bool td__device_test(td_comm *comm, td_work *work);
int  td__device_drain(td_comm *comm);                             /* the host waits for all; 0 or negative                      */
void td__device_close(td_comm *comm, bool well);
td_storage *td__device_storage(td_comm *comm, td_device device, size_t bytes);
int  td__watch_start(td_comm *comm);
void td__watch_stop(td_comm *comm);
void td__device_put_back(td__device_side *dev, td__marks *mark);  /* under the lock                                              */
void td__watch_passed(td__device_side *dev, td_comm *comm);       /* under its lock: takes note of what has passed               */
int  td__watch_look(td_comm *comm, const td_coll *coll, double since);   /* is anything wrong? 0 or negative, recorded           */
int  td__watch_compare(td_comm *comm);                            /* fingerprints of this host's ranks; the same                */

/* ---- record.c: around each public collective (td__record_end ends what begin and wait begin) ---- */
void *td__note_begin(const td__call *call, bool started);
void  td__note_started(void *note, td_work *work);
void  td__note_wait(td_work *work);

/* ---- open.c ---- */
extern const td_comm_backend td__comm_shm;
void td__comm_close_parts(td_comm *comm, bool well);
int  td__comm_drain_one(td_comm *comm);                           /* 0 or negative after td__fail                             */
bool td__comm_asked_for(const char *transport);                   /* by TANDEM_COMM                                            */

/* ---- point.c ---- */
void td__letter_call_text(const struct td__letter *letter, char into[TD_CALL_TEXT]);
int  td__post_drain(td_comm *comm);                               /* all letters are done: 0 or negative after td__fail         */
void td__post_close(td_comm *comm, bool well);                    /* well: no other rank touches this one's letters             */

/* ---- group.c ---- */
void td__group_orphan(struct td__arena *arena, void *block);      /* given back at td_finish, since others may look into it      */
void td__group_enlist(td_comm *comm);                             /* the world, too                                            */
void td__group_delist(td_comm *comm);
void td__groups_each(void (*fn)(td_comm *comm, void *arg), void *arg);   /* oldest first; under the list's lock               */
int  td__groups_drain(void);
void td__groups_close(bool well);                                 /* all groups of this process, at its end: nobody waits     */
int  td__group_split_run(td_comm *parent, td_coll *coll);         /* where the parent's collectives run                       */
#endif
