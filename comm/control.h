/* comm/control.h: what the ranks of one host share besides data. Internal to comm/.
 *
 * One memfd, mapped by every rank of the host: a head, a slot per rank, and per rank some memory for small and for staged messages.
 * A rank writes only its own slot. Arrivals of all ranks are counted in one word of the head; that word is also the futex that
 * waiting ranks sleep on. Steps are the points where all ranks of the host meet (shm), or collectives entered (MPI).
 */
#ifndef TD_CONTROL_H
#define TD_CONTROL_H
#include <sched.h>
#include <string.h>
#include "comm_impl.h"

enum {
    TD_INLINE = 8192,                      /* bytes of a message that travels with its fingerprint                            */
    TD_STAGE = 256 * 1024,                 /* bytes of a piece of a staged message                                            */
    TD_SENTENCE = 1024,
    TD_LABEL = 24,
    TD_DEVICE_CALLS = 128,                 /* as many fingerprints of device collectives a rank may be ahead and still be compared */
};

/* One rank's part of one collective. Two of them alternate: a rank cannot be two collectives ahead of another. */
typedef struct {
    td_fingerprint print;
    double   pre, post, arrived;
    int64_t  in, out;                      /* offsets in the rank's arena; -1: private memory                                  */
    uint64_t word;                         /* of a meeting                                                                    */
    uint64_t site;
    char     label[TD_LABEL];
} td__entry;

/* One collective of device memory. */
typedef struct {
    td_fingerprint print;
    uint64_t site;
    char     label[TD_LABEL];
} td__device_entry;

enum { TD_SLOT_ABSENT, TD_SLOT_RUNNING, TD_SLOT_FINISHED, TD_SLOT_FAILED, TD_SLOT_EXITED };

typedef struct {
    _Alignas(64) _Atomic uint64_t step;    /* steps entered                                                                   */
    _Atomic uint64_t calls;                /* collectives entered; entry[calls & 1] is the latest                             */
    _Atomic int32_t  inside;               /* is it still in it?                                                              */
    _Atomic int32_t  state;
    _Alignas(64) td__entry entry[2];
    _Atomic uint64_t device_calls, device_passed;             /* turns started; known to have passed                          */
    _Atomic uint64_t post;                 /* point_shm.c: its box's place in its arena + 1; 0: none yet                       */
    td__device_entry device[TD_DEVICE_CALLS];                 /* turn t at t % TD_DEVICE_CALLS                                */
    int32_t  rank, pid;
    uint64_t started;                      /* the process's start time: pids are used again                                   */
    uint64_t exe_base, exe_size, exe_id;   /* where the program lies, so that another rank of the same program can name a call site */
    cpu_set_t cpus;
    _Atomic uint64_t text_of;              /* text is that of the collective with this turn                                    */
    char     text[TD_CALL_TEXT];
    char     error[TD_SENTENCE];           /* when finished after an error                                                    */
} td__slot;

typedef struct {
    _Alignas(64) _Atomic uint32_t arrivals;   /* over all ranks, at all meeting points                                        */
    _Alignas(64) _Atomic uint32_t sleepers;
    _Atomic int32_t verdict;               /* 0 none, 1 being written, 2 there                                                */
    _Atomic uint32_t left;                 /* ranks that touch this memory no more                                             */
    int32_t  verdict_code, verdict_slot;
    int32_t  blind;                        /* ranks live in different pid namespaces: only the deadline can tell              */
    char     verdict_text[TD_SENTENCE];
} td__head;

typedef struct td__control {
    td__head *head;
    td__slot *slot;                        /* of local_size ranks, by local rank                                              */
    char     *data;                        /* local_size times TD_INLINE * 2 + TD_STAGE * 2                                   */
    td__slot *mine;
    size_t    bytes;
    int       me, n;
    bool      whole;                       /* are these all ranks of the world?                                               */
    uint32_t  target;                      /* what arrivals must reach for the present meeting point                          */
    int64_t   spin_ns;                     /* 0: more ranks than cores                                                        */
    double    timeout;
    int       next_check;                  /* ranks are looked at in turn                                                     */
    double    last_check, last_tick;
    double   *stopped_since;               /* per rank: seen stopped since; 0: not                                            */
    td_comm  *comm;
    const char *opening;                   /* what ranks do before their first collective: "td_init"                           */
    td__head *above;                       /* a group: the world's, since td_abort of the world reaches all; else NULL           */
    struct td__control *next;              /* of this process, for the word at its end                                         */
} td__control;

/* ---- control.c ---- */
size_t td__control_bytes(int n);
void td__control_view(td__control *c, void *memory, int n);       /* where things lie in it                                     */
/* Takes the memory; fills this rank's slot and meets the others, who are in `opening`, too. rank: in the world. */
int  td__control_attach(td__control *c, td_comm *comm, void *memory, int me, int n, int rank, const char *opening, td__head *above);
void td__control_detach(td__control *c, bool well);
/* The same page for another thread's looking, with counters of its own and without a place in meetings. Only what stays as it was attached is read: a
 * collective may be under way. `stopped_since` is the caller's to make. */
static inline td__control td__control_look(const td__control *c)
{
    return (td__control){ .head = c->head, .slot = c->slot, .data = c->data, .mine = c->mine, .bytes = c->bytes, .me = c->me, .n = c->n, .whole = c->whole,
                          .spin_ns = c->spin_ns, .timeout = c->timeout, .comm = c->comm, .opening = c->opening, .above = c->above };
}
static inline char *td__control_inline(td__control *c, int i, uint64_t turn)
{
    return c->data + (size_t)i * (2 * TD_INLINE + 2 * TD_STAGE) + (turn & 1) * TD_INLINE;
}
static inline char *td__control_stage(td__control *c, int i, uint64_t turn)
{
    return c->data + (size_t)i * (2 * TD_INLINE + 2 * TD_STAGE) + 2 * TD_INLINE + (turn & 1) * TD_STAGE;
}
static inline td__entry *td__control_entry(td__control *c, int i, uint64_t turn)
{
    return &c->slot[i].entry[turn & 1];
}
void td__control_enter(td__control *c, const td_coll *coll);     /* writes fingerprint, site, label into this rank's entry      */
void td__control_leave(td__control *c);
void td__control_started(td__control *c, const td_coll *coll);   /* a collective of device memory: writes its fingerprint        */
int  td__control_meet(td__control *c, const td_coll *coll);      /* all ranks of the host; 0 or negative with the verdict        */
/* Is anything wrong with a peer? `since`: when the wait began. For waits that cannot look themselves; 0 or the verdict's code. */
int  td__control_check(td__control *c, const td_coll *coll, double since);
int  td__control_check_peer(td__control *c, int i, const td_coll *waiting);   /* one that a message is waited for                */
void td__process_identity(int pid, uint64_t *started);

/* ---- verdict.c ---- */
typedef enum { TD_PEER_DIED, TD_PEER_EXITED, TD_PEER_STOPPED, TD_PEER_FINISHED, TD_PEER_LATE } td__peer_fault;
/* The first rank of the host to find something writes the sentence; all take it over. Returns the code. */
int  td__verdict(td__control *c, int code, const char *sentence);
int  td__verdict_take(td__control *c);     /* somebody's verdict, when there is one: recorded; its code; else 0                 */
int  td__verdict_peer(td__control *c, int peer, td__peer_fault fault, const td_coll *waiting);
int  td__verdict_turn(td__control *c, uint64_t turn);            /* fingerprints of this turn of the device differ               */
int  td__verdict_mismatch(td__control *c, const td_coll *coll);  /* after a meeting where fingerprints differed                 */
void td__coll_text(const td_fingerprint *p, const char *label, const char *group, char into[TD_CALL_TEXT]);   /* without the caller's line; fast */
void td__coll_call_text(const td_coll *coll, char into[TD_CALL_TEXT]);
void td__mismatch_sentence(int n, const int *rank, const td_fingerprint *prints, const char (*texts)[TD_CALL_TEXT], char *into, size_t size);
bool td__fingerprint_equal(const td_fingerprint *a, const td_fingerprint *b);
void td__coll_fingerprint(const td_coll *coll, td_fingerprint *into);

/* ---- bootstrap.c ---- */
typedef struct {
    int  control;                          /* the control memory, n * … bytes                                                 */
    int *arena;                            /* n memfds, by local rank; -1 where there is none                                 */
} td__meeting;
/* Meets the n - 1 other ranks of this host. mine: this rank's arena or -1. 0 and descriptors that the caller closes, or negative with the
 * sentence in error. */
int  td__bootstrap(const td__world *world, double timeout, size_t control_bytes, int mine, td__meeting *out, char *error, size_t error_size);

/* ---- arena.c ---- */
typedef struct td__arena td__arena;
int   td__arena_open(td__arena **out, int ranks, char *error, size_t size);
int   td__arena_fd(const td__arena *a);
void *td__arena_base(const td__arena *a, size_t *bytes);
void *td__arena_alloc(td__arena *a, size_t bytes, char *error, size_t size);  /* zeroed, 64-byte aligned; NULL with the sentence */
void  td__arena_free(td__arena *a, void *block);
/* For a backend's table: NULL after td__fail; any arena's. */
void *td__arena_block(td__arena *a, size_t bytes);
void  td__arena_free_block(void *arena, void *memory);
void  td__arena_trim(td__arena *a);         /* what is free in large pieces goes back to the system                            */
void  td__arena_close(td__arena *a);       /* the memory goes with its last block                                             */
bool  td__arena_set_limit(td__arena *a, size_t bytes);           /* tests: as if no more could be had                          */
#endif
