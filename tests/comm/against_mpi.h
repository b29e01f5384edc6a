/* tests/comm/against_mpi.h: a collective of random kind, dtype and size on random data. Internal to the files of against_mpi. */
#ifndef TD_TEST_AGAINST_MPI_H
#define TD_TEST_AGAINST_MPI_H
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include <tandem/mpi.h>

enum { BROADCAST, ALL_REDUCE, REDUCE, REDUCE_SCATTER, ALL_GATHER, GATHER, SCATTER, ALL_TO_ALL, ALL_GATHER_UNEVEN, ALL_TO_ALL_UNEVEN, BARRIER, KINDS };
enum { FLIGHT = 8, RANKS = 8, GUARD = 16 };

extern int rank, size;
extern td_comm *tested;                        /* the world or a group …                                                      */
extern MPI_Comm plain;                         /* … and MPI's of the same ranks                                              */

typedef struct {
    int kind, root, number;
    td_dtype t;
    td_reduce op;
    int64_t count;                             /* of a part; rows times width                                                 */
    bool in_place, raw, started, arena;
    int64_t width, counts[RANKS], in_counts[RANKS];    /* uneven, elements: that this rank receives, sends                     */
    int64_t in_n, out_n, out_at, in_at;        /* elements of in and out; in place: where they lie in the one buffer           */
    char *in, *out, *in_before, *out_before;
    td_tensor *in_x, *out_x;
    td_work *work;
} job;

void     fail_with(const job *j, const char *what, int64_t i);          /* says which case, and ends all ranks                    */
/* against_mpi_case.c: random numbers; those of a case are the same on all ranks, those of its data are not. */
uint64_t next(uint64_t *s);
int64_t  below(uint64_t *s, int64_t n);
void     choose(job *j, uint64_t *s);
void     prepare(job *j, uint64_t seed);
/* against_mpi_check.c: the same by MPI; ends all ranks where that is something else. */
void     check(job *j);
#endif
