/* comm/comm_impl.h: groups of ranks from inside. Internal; the MPI plug-in and ddp include it.
 *
 *   comm.c      the public functions: check, make a td_coll, run it in the caller or hand it to the communicator's thread, wait with a deadline
 *   thread.c    one sleeping thread per communicator that runs started collectives in order
 *   control.c   a page per rank in a memfd that all ranks of one host share: fingerprints, who is alive, abort
 *   comm_self.c comm_shm.c, plugins/mpi/…   backends: one table each
 */
#ifndef TD_COMM_IMPL_H
#define TD_COMM_IMPL_H
#include <autograd_impl.h>
#include <plugin_abi.h>
#include <tandem/comm.h>

typedef enum { TD_COLL_BARRIER, TD_COLL_BROADCAST, TD_COLL_ALL_REDUCE, TD_COLL_REDUCE_SCATTER, TD_COLL_ALL_GATHER } td_coll_kind;

/* One collective, raw. pre: each rank's own factor before the sum (ranks may differ), post: one factor after it (all ranks the same). */
typedef struct td_coll {
    td_coll_kind kind;
    td_dtype dtype;
    td_reduce op;                          /* MEAN has become SUM with post = 1/size                                           */
    int root;
    void *out; const void *in;             /* in place: in == out                                                             */
    int64_t count;                         /* elements of the part that every rank passes: all_gather and reduce_scatter: per rank */
    double pre, post;
    uint64_t seq;                          /* of this communicator                                                            */
    const void *site;                      /* caller; reported, never compared                                                */
    const char *label;                     /* "bucket 3" or NULL; reported, never compared                                     */
    double begun, ended;                   /* td__now when running began (all ranks had arrived) and ended: for ddp's figures     */
    double arrived, last_arrived; int last_rank;   /* this rank's arrival; the last rank's and who it was (0, -1: not known)     */
} td_coll;

typedef struct td_comm_backend {
    const char *name;
    bool on_thread;                        /* every collective runs on the communicator's thread (MPI)                         */
    /* world: as given to td_init_plugin, else NULL. 0 and *state, or a negative code after host->fail. */
    int  (*open)(const td_host *host, void *world, td_comm *comm, void **state);
    int  (*run)(void *state, td_coll *coll);   /* compares fingerprints, then moves data; blocks; negative after fail_background     */
    void *(*alloc)(void *state, size_t bytes); /* arena memory for tensors; NULL row: plain memory                             */
    void (*free)(void *state, void *block);
    void (*abort)(void *state);            /* wake whoever waits, on every rank that can be reached                            */
    void (*close)(void *state);
} td_comm_backend;

int  td__comm_open_world(const td_plugin *plugin, void *world);   /* job/: chooses the backend; sets td_world()               */
void td__comm_close_world(bool well);
/* started and blocking collectives with factors, for ddp. label is copied by reference. */
td_work *td__coll_start(td_comm *comm, const td_coll *coll);
int      td__coll_run(td_comm *comm, td_coll *coll);              /* blocking; figures come back in coll                      */
int      td__work_wait(td_work *work, td_coll *figures);          /* as td_wait; figures may be NULL                           */
td_storage *td__comm_storage(td_comm *comm, size_t bytes);        /* in the arena; zeroed                                     */
#endif
