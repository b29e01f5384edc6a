/* plugins/mpi/mpi_impl.h: the files of the plug-in.
 *
 *   plugin.c       what it offers; MPI's own life
 *   collectives.c  fingerprints, and which file carries a collective out
 *   sums.c moves.c collectives as blocking calls
 *   wire.c         messages from rank to rank
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
    MPI_Op   min, max, byte_sum, byte_product; /* of f32 and f64; of u8                                                     */
    MPI_Comm channel[2];                       /* the wire's                                                                */
    int      rank, size;
    bool     one_host, world;
    mpi_ticket *tickets;                       /* of all ranks                                                              */
} mpi_state;

extern const td_wire mpi_wire;
int  wire_open(mpi_state *s);                  /* duplicates s->mpi, collective: 0 or negative after the base's fail          */
void wire_close(mpi_state *s);

int  mpi_check(mpi_state *s, const td_coll *coll, const char *call, int rc);   /* 0, or negative after host->fail              */
static inline int mpi_next(int64_t left) { return left < TD_MPI_MOST ? (int)left : TD_MPI_MOST; }
int  sums_open(mpi_state *s);
void sums_close(mpi_state *s);
int  mpi_reduce(mpi_state *s, td_coll *coll);  /* also all_reduce                                                            */
int  mpi_reduce_scatter(mpi_state *s, td_coll *coll);
int  mpi_broadcast(mpi_state *s, td_coll *coll);
int  mpi_all_gather(mpi_state *s, td_coll *coll);
int  mpi_gather(mpi_state *s, td_coll *coll);
int  mpi_scatter(mpi_state *s, td_coll *coll);
int  mpi_all_to_all(mpi_state *s, td_coll *coll);

void mpi_text(int rc, char *into, size_t size);
void mpi_ended(bool well);
int  mpi_open(const td_comm_host *host, void *world, td_comm *comm, void **state);
int  mpi_run(void *state, td_coll *coll);
int  mpi_split(void *parent, td_coll *coll, td_comm *group, int color, int key, void **state);
void mpi_abort(void *state);
void mpi_close(void *state, bool well);
#endif
