/* comm/comm_impl.h: groups of ranks from inside. Internal; the MPI plug-in, ddp and job include it.
 *
 *   comm.c      the raw functions: number a td_coll, run it in the caller or hand it to the communicator's thread, wait with a deadline
 *   tensors.c   the public functions on tensors; raw.c: on plain memory
 *   make.c      what may be passed to them, and the td_coll that becomes of it
 *   box.c       what the black box is told of them
 *   thread.c    one sleeping thread per communicator that runs started collectives in order
 *   control.c   a page that all ranks of one host share: fingerprints, arrivals, who is alive, the verdict
 *   verdict.c   the sentences that name the guilty rank
 *   agree.c     one rank's error becomes everybody's
 *   bootstrap.c how the ranks of a host find each other and exchange memory
 *   arena.c     memory that every rank of the host can reach
 *   one_host.c  memory of the ranks of one host for who moves bytes itself, and meetings around that
 *   uneven.c    all_to_all of uneven parts: what is sent to each other is compared first
 *   comm_self.c comm_shm*.c, plugins/mpi/…   backends: one table each
 *   device.c    collectives of a device's memory: numbered, started on its streams by its library (plugins/cuda/nccl*.c), waited for
 *   watch.c     the thread that looks after them: done, different, failed, too late
 *   open.c      which backend, and the life of the world
 */
#ifndef TD_COMM_IMPL_H
#define TD_COMM_IMPL_H
#include <stdatomic.h>
#include <autograd_impl.h>
#include <plugin_abi.h>
#include <tandem/comm.h>

typedef enum { TD_COLL_BARRIER, TD_COLL_BROADCAST, TD_COLL_ALL_REDUCE, TD_COLL_REDUCE_SCATTER, TD_COLL_ALL_GATHER,
               TD_COLL_REDUCE, TD_COLL_GATHER, TD_COLL_SCATTER, TD_COLL_ALL_TO_ALL,
               TD_COLL_REPLAY /* device.c alone: those of a captured step */, TD_COLL_SPLIT /* group.c alone */,
               TD_COLL_MEET /* one_host.c alone */ } td_coll_kind;

/* One collective, raw. pre: each rank's own factor before the sum (ranks may differ), post: one factor after it (all ranks the same).
 * MEAN is a sum with post / size. MIN and MAX ignore the factors. */
typedef struct td_coll {
    td_coll_kind kind;
    td_dtype dtype;
    td_device device;                      /* where in and out lie; zero: host memory                                          */
    td_reduce op;
    int root;
    void *out; const void *in;             /* in place: in == out (all_gather, gather, scatter: the rank's own part; reduce_scatter: either).
                                            * reduce and gather: out is the root's alone, else NULL; scatter: so is in          */
    int64_t count;                         /* elements of the part that every rank passes; where there is a part per rank, of one part. Uneven:
                                            * all_gather: of all parts; all_to_all: 0                                           */
    /* Uneven, NULL: even; `size` each. all_gather: elements of every rank's part, the same on all. all_to_all: counts: elements that come from
     * every rank, in_counts: that go to it. They live as long as tensors do; a started one has a copy (comm.c).                */
    const int64_t *counts, *in_counts;
    int parts;                             /* how many counts                                                                 */
    uint32_t uneven;                       /* 0: even; else a hash of what all must know of the counts                           */
    /* all_to_all with counts, made by uneven.c for the backend when ranks have compared them. from: `size` pairs: the elements that rank i sends here,
     * and where in its `in` they begin. most: the largest of all counts of all ranks. */
    const int64_t *from; int64_t most;
    const struct td_coll *whole;           /* this is a part of that (the ranks' exchange of counts): the fingerprint is that one's */
    double pre, post;
    bool plain;                            /* pre and post are 1 on every rank: a device's library need not multiply              */
    uint64_t seq;                          /* of this communicator, from 1                                                    */
    uint64_t turn;                         /* the same, of those that take the same way (host, device)                            */
    const void *site;                      /* caller; reported, never compared                                                */
    const char *label;                     /* "bucket 3" or NULL; reported, never compared                                     */
    const char *group;                     /* the communicator's name; NULL: the world                                         */
    const struct td__letter *letter;       /* in sentences alone: a message that is waited for                                 */
    uint64_t word, *words; double *pres;   /* MEET: what this rank says besides pre; where what all said goes, by rank; else unused  */
    double begun, ended;                   /* td__now when running began (all ranks had arrived) and ended: for ddp's figures     */
    double arrived, last_arrived; int last_rank;   /* this rank's arrival; the last rank's and who it was (0, -1: not known)     */
} td_coll;

/* What is compared before data is touched. */
typedef struct {
    uint64_t seq;
    int64_t  count;
    int32_t  kind, dtype, op, root, device;   /* device: td_device_kind                                                           */
    uint32_t uneven;                       /* no padding: it is compared as bytes                                              */
} td_fingerprint;
enum { TD_CALL_TEXT = 256 };               /* "all_reduce(f32, 10) #4 at a.c:9"                                               */

/* What the library offers to a backend in a plug-in, besides td_rank and td_size. */
typedef struct td_comm_host {
    const td_host *base;
    /* Records why the communicator is of no more use (the first reason stays) and returns `code`. From any thread; the user's thread
     * reports it when it waits. */
    int  (*fail)(td_comm *comm, int code, const char *format, ...);
    void (*fingerprint)(const td_coll *coll, td_fingerprint *into);
    void (*call_text)(const td_coll *coll, char into[TD_CALL_TEXT]);       /* with the caller's line: slow                    */
    /* the same sentence on every rank from everybody's fingerprint and text; records it; returns TD_ERR_MISMATCH */
    int  (*mismatch)(td_comm *comm, const td_fingerprint *prints, const char (*texts)[TD_CALL_TEXT]);
    /* kernels->combine of the CPU */
    void (*combine)(td_dtype t, int op, int64_t n, int k, const void *const *in, const double *pre, double post, void *const *out, int outs);
} td_comm_host;

/* Plain memory between two ranks of the communicator, from any thread; nothing here blocks. Messages of one channel, sender, receiver and tag arrive in
 * order; a receive may be larger than what comes (one of more than 1 GiB must not be). send and recv: 0, or negative after host->fail. */
typedef struct { void *of[4]; } td_wire_request;                       /* the caller's memory, which must not move               */
enum { TD_WIRE_SCHEDULES, TD_WIRE_USERS };                             /* channels: the library's schedules; td_send and td_recv */
typedef struct td_wire {
    int  (*send)(void *state, int channel, int peer, int tag, const void *data, size_t n, td_wire_request *r);
    int  (*recv)(void *state, int channel, int peer, int tag, void *data, size_t n, td_wire_request *r);
    int  (*test)(void *state, td_wire_request *r);                     /* 1 done, 0 not yet, negative after host->fail           */
    void (*drop)(void *state, td_wire_request *r);                     /* given up: after a failure; its memory must stay        */
} td_wire;

typedef struct td_comm_backend {
    const char *name;
    bool on_thread;                        /* every collective runs on the communicator's thread, and cannot see a peer die: MPI */
    double grace;                          /* on_thread, but its waits look at peers and clock: seconds that the waiting caller leaves it beyond the deadline */
    /* Who am I among whom, by this transport. world: as given to td_init_plugin, else NULL. 0, or negative with the sentence. */
    int  (*find)(const td_host *host, void *world, td__world *out, char *error, size_t error_size);
    /* 0 and *state, or a negative code after host->fail */
    int  (*open)(const td_comm_host *host, void *world, td_comm *comm, void **state);
    int  (*run)(void *state, td_coll *coll);   /* compares fingerprints, then moves data; blocks; negative after host->fail      */
    const td_wire *wire;                   /* point to point; NULL: none                                                      */
    void *(*alloc)(void *state, size_t bytes); /* arena memory for tensors, zeroed; NULL row: plain memory                      */
    void (*free)(void *arena, void *block);    /* also after close                                                              */
    void *(*arena)(void *state);               /* what free wants                                                               */
    /* The state of a group of the parent's ranks, ordered by key, where the parent's collectives run, on all its ranks. group NULL: this rank is
     * in none. What only the group's host shares (control page, memory) stands already. NULL row: one sentence. */
    int  (*split)(void *parent, td_coll *coll, td_comm *group, int color, int key, void **state);
    void (*abort)(void *state);            /* ends ranks of other hosts, when this process is about to end                      */
    void (*close)(void *state, bool well);
} td_comm_backend;

/* While a device's library is busy on the host it asks now and then whether to go on: 0, or negative (the reason is recorded): give up. */
typedef struct { int (*ask)(void *of); void *of; } td_patience;

/* Collectives of a device's memory, on a stream of their own: what td_device_ops.comm points to. Functions that can fail return 0 or a
 * negative code with one sentence in `error`. A process has one state for each communicator that is used there. */
enum { TD_COMM_ID = 128 };
typedef struct td_device_comm {
    const char *name;
    int   (*load)(char *error, size_t size);                          /* the library; local                                  */
    int   (*make_id)(char id[TD_COMM_ID], char *error, size_t size);  /* on one rank, for all                                */
    int   (*open)(int index, const char id[TD_COMM_ID], int rank, int ranks, const td_patience *patience, void **state, char *error, size_t size);
    /* Behind everything that the compute stream was given so far; `begin` is recorded before it, `end` behind it. 0; 1: recorded into a graph,
     * not run. */
    int   (*start)(void *state, const td_coll *coll, void *begin, void *end, const td_patience *patience, char *error, size_t size);
    int   (*check)(void *state, char *error, size_t size);            /* any thread: 0, or what has failed by itself          */
    void  (*abort)(void *state);                                      /* any thread: what was started ends, with any contents   */
    int   (*close)(void *state, bool well, const td_patience *patience, char *error, size_t size);  /* frees the state        */
    void *(*alloc)(int index, size_t bytes);                          /* zeroed; NULL after fail                              */
    void  (*free)(int index, void *block);
    void *(*timer_new)(int index);                                    /* an event of the device that knows its time; NULL after fail */
    double (*elapsed)(int index, void *from, void *to);               /* ms between two that have passed                      */
} td_device_comm;

int  td__comm_open_world(const td_plugin *plugin, void *world);   /* job/: chooses the backend; sets td_world()               */
/* Started work is waited for (its errors are dropped when the communicator has failed already). 0 or negative after td__fail. */
int  td__comm_drain(void);
void td__comm_close_world(bool well);      /* well: false tells ranks that still wait that this one had an error               */
/* started and blocking collectives with factors, for ddp. label and site must outlive the call */
td_work *td__coll_start(td_comm *comm, const td_coll *coll);
int      td__coll_run(td_comm *comm, td_coll *coll);              /* blocking; figures come back in coll                      */
int      td__work_wait(td_work *work, td_coll *figures);          /* as td_wait; figures may be NULL                           */
/* agree.c, collective. 0 when every rank passes 0; else the lowest failing rank's code on all, and its sentence where
 * there is none yet. `label` must outlive the call. */
int      td__comm_agree(td_comm *comm, int code, const char *label);
/* All ranks know already that rank `guilty` has an error `code`: its sentence becomes everybody's. Returns code, or what failed. */
int      td__comm_share_error(td_comm *comm, int guilty, int code, const char *label);
int      td__comm_bytes(td_comm *comm, void *data, size_t n, int root, const char *label);     /* broadcast of plain memory         */
/* Zeroed memory for collectives: in the arena; on a device: what its library likes best. Not collective. */
/* A captured step that holds `calls` collectives of device memory has been launched again, on the compute stream: it is watched like one
 * collective. 0 or negative. */
int      td__comm_replayed(td_comm *comm, td_device device, int64_t calls, const char *label);
/* What collectives of device memory took since this was asked last, by the device's own clock, as far as they are known to have passed: their time, and
 * how much of it the compute stream stood waiting. */
void     td__comm_device_times(td_comm *comm, double *comm_ms, double *exposed_ms);
td_storage *td__comm_storage(td_comm *comm, td_device device, size_t bytes);

/* ---- one_host.c: for who moves bytes between ranks itself (ddp's one pass) ---- */
bool     td__comm_one_host(const td_comm *comm);                 /* several ranks, and each reaches the arenas of all             */
int64_t  td__comm_place(const td_comm *comm, const void *data);   /* of this rank's arena memory, for the others; -1: elsewhere     */
void    *td__comm_reach(const td_comm *comm, int rank, int64_t place);   /* memory of that rank as it is mapped here                */
/* Blocking: every rank says a word and its factor, and knows all of them when all have come. What was written before it can be read behind it.
 * count: compared. coll: kind, words, pres are filled in here; label, site, count, word, pre, words and pres (size each) by the caller. */
int      td__comm_meet(td_comm *comm, td_coll *coll);
void     td__comm_give_back(td_comm *comm);                      /* arena memory that is free goes back to the system             */
/* What threads have put off until another rank needs it. A thread that owes something and calls a collective or sends a message pays first: else it
 * might wait there for a rank that waits for what it owes. pay looks whether it is this thread. */
extern _Atomic int td__comm_owed;
extern void (*td__comm_pay)(void);
static inline void td__comm_settle(void)
{
    if (atomic_load_explicit(&td__comm_owed, memory_order_relaxed))
        td__comm_pay();
}
#endif
