/* comm/comm_shm.h: the files of the shared-memory transport. Internal to them.
 *
 *   comm_shm.c   what ranks publish, which way they take, small messages, the table
 *   shm_sums.c   all_reduce, reduce, reduce_scatter of more than a few KB
 *   shm_moves.c  broadcast, all_gather, gather, scatter, all_to_all: who takes what from whom
 */
#ifndef TD_COMM_SHM_H
#define TD_COMM_SHM_H
#include "comm_room.h"

/* What rank i has for this one in a collective that moves data, in elements: how many, where in its `in`, and where in this one's `out`. */
typedef struct { int64_t count, at, to; } td__taken;

typedef struct {
    td__control *c;
    td__arena *arena;
    void  **base;                              /* every rank's arena as mapped here; base and bytes are the communicator's    */
    size_t *bytes;
    int     n, me;
    uint64_t turn;                             /* pieces staged so far, the same on every rank                                */
    const void **in; void **out; double *pre;  /* n each, for kernels                                                         */
    td__taken *taken;                          /* n                                                                           */
    const td_kernels *kernels;
} td__shm;

/* comm_shm.c */
void td__shm_combine(td__shm *s, const td_coll *coll, int64_t n, int outs);   /* of s->in to s->out                             */
/* Where rank i's in or out lies here; it is in an arena. */
static inline char *td__shm_peer(const td__shm *s, const td_coll *coll, int i, bool out)
{
    const td__entry *e = td__control_entry(s->c, i, coll->turn);
    return (char *)s->base[i] + (out ? e->out : e->in);
}
static inline bool td__shm_in_arena(const td__shm *s, const td_coll *coll, int i, bool out)
{
    const td__entry *e = td__control_entry(s->c, i, coll->turn);
    return (out ? e->out : e->in) >= 0;
}
bool td__shm_all_in_arena(const td__shm *s, const td_coll *coll, bool out);
/* shm_sums.c */
int  td__shm_reduce(td__shm *s, const td_coll *coll);
void td__shm_stage_first(td__shm *s, const td_coll *coll);
/* shm_moves.c */
void td__shm_take(td__shm *s, const td_coll *coll);                /* fills s->taken                                           */
int64_t td__shm_largest(const td__shm *s, const td_coll *coll);    /* elements of the largest part that anybody takes           */
int  td__shm_move(td__shm *s, const td_coll *coll);
#endif
