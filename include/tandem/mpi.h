/* tandem/mpi.h: for programs that own their MPI. Link libtandem-mpi.so besides libtandem.so.
 */
#ifndef TANDEM_MPI_H
#define TANDEM_MPI_H
#include <mpi.h>
#include <tandem/job.h>
#ifdef __cplusplus
extern "C" {
#endif

/* The ranks of comm become Tandem's world (a duplicate is used; comm stays yours). Collective over comm. MPI must have been
 * initialised with MPI_THREAD_MULTIPLE. All ranks on one host: shared memory carries the data (TANDEM_COMM=mpi forces MPI).
 * td_finish frees the duplicate and leaves MPI running. */
TD_API int td_init_mpi(MPI_Comm comm);

#ifdef __cplusplus
}
#endif
#endif
