/* plugins/mpi/mpi_impl.h: the two files of the plug-in.
 */
#ifndef TD_MPI_IMPL_H
#define TD_MPI_IMPL_H
#include <mpi.h>
#include <comm_impl.h>
#include <tandem/mpi.h>

void mpi_text(int rc, char *into, size_t size);
void mpi_ended(bool well);
int  mpi_open(const td_comm_host *host, void *world, td_comm *comm, void **state);
int  mpi_run(void *state, td_coll *coll);
void mpi_abort(void *state);
void mpi_close(void *state, bool well);
#endif
