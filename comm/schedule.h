/* comm/schedule.h: a collective between hosts as lists of steps, one list for each rank. Pure: made from numbers alone, so that the executor
 * (comm_hier.c), tests that play many ranks in one process and simulations all use the same lists.
 *
 * How to read a list. Steps are carried out in order. SEND starts a message and goes on. RECV waits for one; it may have been started
 * earlier, in the order of the list, as soon as step `after` is done (of a SEND: when it and all SENDs before it have left their
 * memory). Messages between two ranks arrive in the order in which they were sent. A rank that carries out its list with
 * at least `slots` receives under way waits for no rank that waits for it, however little the transport buffers.
 *
 * Memory is named in elements: IN and OUT are the caller's tensors (`of`: whose, by local rank; OUT of the rank itself where `of` is -1),
 * EVERY_OUT the OUT of all ranks of the host at once, SLOT a buffer of one slice. With TD_ALGORITHM_RING every rank is a host of its own
 * (its one member has local rank 0) and needs no memory of others; with the other two, ranks of a host read and write each other's.
 *
 * Lanes: the ranks of a host that send. As many as the smallest host has ranks; lane l is local rank l of every host and cares for the l-th part of
 * the elements (of the host's ranks, where each rank has a part). The others wait at the MEET which ends every list of a host with several ranks.
 */
#ifndef TD_SCHEDULE_H
#define TD_SCHEDULE_H
#include <stdbool.h>
#include <stdint.h>

typedef enum {
    TD_ALGORITHM_RING,                         /* one ring over all ranks                                                        */
    TD_ALGORITHM_HIER,                         /* a ring over the hosts in each lane; within a host through shared memory         */
    TD_ALGORITHM_HALVING,                      /* recursive halving and doubling over the hosts in each lane; all_reduce alone    */
    TD_ALGORITHMS
} td__algorithm;
extern const char *const td__algorithm_names[TD_ALGORITHMS];                                  /* "ring", "hier", "halving"   */

typedef enum { TD_PLAN_ALL_REDUCE, TD_PLAN_REDUCE_SCATTER, TD_PLAN_ALL_GATHER, TD_PLAN_BROADCAST } td__plan_kind;

/* Who lives where. Hosts are numbered in the order of their first ranks. */
typedef struct {
    int  ranks, hosts;
    int *host, *local;                         /* of each rank: its host, its number there                                       */
    int *first, *member;                       /* the ranks of host h: member[first[h]] to member[first[h + 1] - 1]              */
} td__layout;

typedef struct {
    td__plan_kind kind;
    td__algorithm algorithm;
    int     root;                              /* broadcast                                                                      */
    int64_t count;                             /* elements: of the whole; all_gather and reduce_scatter: of one rank's part      */
    int64_t slice;                             /* most elements of a message                                                     */
    int64_t line;                              /* parts are cut at multiples of so many elements (those of a cache line)          */
    int     slots;                             /* receives to have under way; at least 1                                         */
} td__plan;

typedef enum {
    TD_STEP_SEND,                              /* from -> peer                                                                   */
    TD_STEP_RECV,                              /* peer -> to                                                                     */
    TD_STEP_COMBINE,                           /* slot (if there is one) + from -> to. from: IN: that of every rank of the host, in their order; OUT: own */
    TD_STEP_COPY,                              /* from -> every OUT of the host                                                  */
    TD_STEP_MEET,                              /* all ranks of the host                                                          */
} td__step_kind;

typedef enum { TD_SPACE_NONE, TD_SPACE_IN, TD_SPACE_OUT, TD_SPACE_EVERY_OUT, TD_SPACE_SLOT } td__space;

typedef struct { int32_t space, of; int64_t at; } td__place;                                  /* of: a local rank, -1 or a slot */

typedef struct {
    int32_t   kind, peer, tag;                 /* peer: a rank of the world. tag: the round, the same on both sides                */
    int32_t   slot;                            /* COMBINE: -1 or what was received                                               */
    int32_t   after;                           /* RECV, COMBINE: may write once this step is done; -1                            */
    int32_t   last;                            /* COMBINE: this is the result                                                    */
    int64_t   n;
    td__place from, to;
} td__step;

typedef struct { td__step *step; int count, room, slots; } td__schedule;                      /* zero to begin with; used again  */

/* host_of[r]: any number that ranks of the same host share. 0, or negative after td__fail. */
int  td__layout_make(td__layout *layout, int ranks, const int *host_of);
void td__layout_free(td__layout *layout);
/* The list of `rank`. schedule->slots: how many slots it uses. 0, or negative after td__fail. */
int  td__schedule_make(td__schedule *schedule, const td__layout *layout, const td__plan *plan, int rank);
void td__schedule_free(td__schedule *schedule);
#endif
