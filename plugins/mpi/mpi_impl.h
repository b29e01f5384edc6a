/* plugins/mpi/mpi_impl.h: the three files of the plug-in.
 */
#ifndef TD_MPI_IMPL_H
#define TD_MPI_IMPL_H
#include <mpi.h>
#include <comm_impl.h>
#include <tandem/mpi.h>

#ifndef TD_MPI_MOST
#define TD_MPI_MOST (1 << 30)                  /* elements or bytes per call: counts are int                                  */
#endif

typedef struct { td_fingerprint print; double arrived; } mpi_ticket;

typedef struct {
    const td_comm_host *host;
    td_comm *comm;
    MPI_Comm mpi;
    MPI_Comm channel[2];                       /* the wire's                                                                */
    int      rank, size;
    bool     one_host, world;
    mpi_ticket *tickets;                       /* of all ranks                                                              */
} mpi_state;

extern const td_wire mpi_wire;
int  wire_open(mpi_state *s);                  /* duplicates s->mpi, collective: 0 or negative after the base's fail          */
void wire_close(mpi_state *s);

void mpi_text(int rc, char *into, size_t size);
void mpi_ended(bool well);
int  mpi_open(const td_comm_host *host, void *world, td_comm *comm, void **state);
int  mpi_run(void *state, td_coll *coll);
int  mpi_split(void *parent, td_coll *coll, td_comm *group, int color, int key, void **state);
void mpi_abort(void *state);
void mpi_close(void *state, bool well);
#endif
