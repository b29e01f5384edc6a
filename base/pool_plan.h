/* base/pool_plan.h: requests of a thread that repeats itself. Internal.
 *
 * Who does the same again and again asks the pool for the same blocks in the same order. A log notes them once, with the events between which
 * each one lives. A plan gives each its place in one stretch of memory; from then on the k-th request of a *moment* (a part of the
 * repetition that its owner announces) finds its place, without lock, list or count.
 *
 * A request that the plan does not know, or whose place is not free since another block lives longer than it did, is served by the pool as ever.
 * So a plan can be wrong without harm, and no two live blocks ever share a byte.
 */
#ifndef TD_POOL_PLAN_H
#define TD_POOL_PLAN_H
#include "base.h"
#include <stddef.h>

enum { TD__POOL_HEADER = 64 };                 /* bytes in front of each block, also of a planned one                        */
#define TD__POOL_NEVER UINT32_MAX

/* ---- noting ----------------------------------------------------------------------------------------------------------------- */
typedef struct {
    size_t   bytes, taken;                     /* requested; what the pool took for it, its header included                     */
    uint32_t moment;
    uint32_t born, died;                       /* numbers of events; died TD__POOL_NEVER: it outlived the log                   */
    bool     elsewhere;                        /* another thread freed it: at what event is chance                              */
    void    *block;                            /* while it lives                                                            */
} td__pool_noted;
enum { TD__POOL_PART = 1024 };
typedef struct td__pool_log {
    td__pool_noted *part[TD__POOL_PART]; size_t n;             /* in parts, which never move: other threads note ends in them     */
    uint32_t *began, moments;                  /* the event at which each moment began; TD__POOL_NEVER: it did not            */
    _Atomic uint32_t events;
    uint32_t  moment;
    bool      failed;                          /* not all could be noted: the log is worth nothing                             */
    const void *owner;                         /* the thread                                                                */
} td__pool_log;
/* From now on this thread's requests are noted, until end. 0, or a negative code after td__fail. */
int  td__pool_log_begin(td__pool_log *log, uint32_t moments);
void td__pool_log_end(td__pool_log *log);      /* what was noted stays to be read, until …                                    */
void td__pool_log_free(td__pool_log *log);
static inline td__pool_noted *td__pool_noted_at(const td__pool_log *log, size_t i)
{
    return &log->part[i / TD__POOL_PART][i % TD__POOL_PART];
}

/* ---- places ------------------------------------------------------------------------------------------------------------------ */
typedef struct {
    size_t   bytes;                            /* of the request                                                            */
    size_t   at;                               /* of its header in the memory; SIZE_MAX: left to the pool                       */
    uint32_t before;                           /* how many of the orders must be over when it begins                            */
    uint32_t order;                            /* which one it is, in the order in which blocks end; NEVER: the place is its own for ever */
} td__pool_place;
/* Bytes of the memory that the plan's owner uses himself, from the beginning of one moment to the end of another. */
typedef struct { size_t at, bytes; uint32_t first, last, before; } td__pool_stretch;
typedef struct td__pool_plan {
    _Atomic int32_t refs;                      /* its owner's, and one for each block that lives in it                          */
    _Atomic int32_t residents;                 /* blocks that live in places of their own                                      */
    char    *memory; size_t bytes;
    td__pool_place *place; uint32_t places;    /* in the order of requests                                                    */
    _Atomic uint8_t *state;                    /* of each place                                                             */
    uint32_t *by_order, orders;                /* places                                                                    */
    uint32_t *first, moments;                  /* the first place of each moment; one more at the end                           */
    td__pool_stretch *stretch; uint32_t stretches;             /* in the order of their first moments                           */
    uint32_t next, end, over, begun;           /* in this turn: places left to this moment; orders that are over; stretches begun      */
    int64_t  fell;                             /* requests of this turn that the pool served: unknown, or the place was not free      */
    int64_t  left;                             /* those that the plan itself leaves to the pool                                 */
} td__pool_plan;
/* The arrays of a plan, zeroed, and its memory; NULL after td__fail. Then the owner fills in place, by_order, first and stretch. */
td__pool_plan *td__pool_plan_new(uint32_t places, uint32_t orders, uint32_t moments, uint32_t stretches, size_t bytes);
void td__pool_plan_drop(td__pool_plan *plan);  /* its memory goes with the last block                                         */
bool td__pool_plan_busy(td__pool_plan *plan);  /* do blocks of the last turn still live that should not?                        */

/* ---- turns --------------------------------------------------------------------------------------------------------------------- */
/* What this thread does now: NULL, NULL outside. */
typedef struct { td__pool_log *log; td__pool_plan *plan; } td__pool_turn;
extern TD_HIDDEN __thread td__pool_turn td__pool_now;
void td__pool_turn_begin(td__pool_plan *plan); /* which is not busy                                                          */
void td__pool_turn_end(void);
/* The next part begins. false: a stretch that begins now is not free, as a block lives longer than planned. */
bool td__pool_moment(uint32_t moment);
extern TD_HIDDEN __thread uint32_t td__pool_moment_now;
static inline void td__pool_next_moment(void)
{
    if (td__pool_now.log || td__pool_now.plan)
        td__pool_moment(td__pool_moment_now + 1);
}

/* ---- between pool.c and pool_plan.c ------------------------------------------------------------------------------------------------ */
typedef struct td__block {
    uint64_t magic;
    uint32_t class;                            /* small ones                                                                */
    td_memory_category category;
    size_t bytes;                              /* as requested; of a free one of the heap: how much of it the process holds       */
    struct td__block *next;                    /* in the free list                                                          */
    union { td__pool_log *log; td__pool_plan *plan; struct td__block *previous; };   /* that knows it, NULL: none; free: in the list     */
    uint32_t index;                            /* there                                                                     */
    uint32_t state;                            /* in the heap                                                               */
    size_t room;                               /* there, header included; small ones: 0                                       */
    struct td__block *before;                  /* there: the neighbour in front                                              */
} td__block;
_Static_assert(sizeof(td__block) <= TD__POOL_HEADER, "the header must leave the payload 64-byte aligned");
#define TD__BLOCK_PLANNED 0x6e6e616c50646b42u
void *td__pool_planned(size_t bytes);          /* the place of this request; NULL: the pool must serve it                       */
void  td__pool_planned_free(td__block *b);
/* pool_heap.c, under the lock. cached: bytes that the process holds in free blocks; calls: how often something was touched that was not before. */
typedef struct { int64_t cached, calls; } td__heap_stats;
td__block *td__heap_get(td__heap_stats *s, size_t bytes, bool *zeroed);    /* its room is set; NULL: there is no memory              */
void  td__heap_put(td__heap_stats *s, td__block *b);
void  td__heap_trim(td__heap_stats *s);
int   td__pool_log_room(void);                 /* for one more; not under the pool's lock                                      */
void  td__pool_note(td__block *b, size_t taken);   /* under the lock                                                          */
void  td__pool_note_freed(td__block *b);       /* under the lock                                                            */
void  td__pool_forget(td__pool_log *log);      /* pool.c: blocks that still live forget the log                                 */

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define TD__POISON(p, n) __asan_poison_memory_region(p, n)
#define TD__UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define TD__POISON(p, n) ((void)(p), (void)(n))
#define TD__UNPOISON(p, n) ((void)(p), (void)(n))
#endif
#endif
