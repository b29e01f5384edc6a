/* A program that owns its MPI: td_init_mpi on a sub-communicator, while the last rank does something else.
 *
 *     own_mpi BACKEND     or     own_mpi single: MPI without threads is refused with one sentence */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include <tandem/mpi.h>

#define EXPECT(what)                                                                                       \
    do {                                                                                                   \
        if (!(what)) {                                                                                     \
            fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #what, td_error_message());    \
            MPI_Abort(MPI_COMM_WORLD, 99);                                                                 \
        }                                                                                                  \
    } while (0)

int main(int argc, char **argv)
{
    int provided, rank, size;
    EXPECT(argc == 2);
    td_errors(TD_ERRORS_RETURN);
    EXPECT(td_init_mpi(MPI_COMM_WORLD) == TD_ERR_STATE && strstr(td_error_message(), "MPI is not initialised"));
    td_error_clear();
    bool single = !strcmp(argv[1], "single");
    MPI_Init_thread(&argc, &argv, single ? MPI_THREAD_SINGLE : MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (single) {
        EXPECT(td_init_mpi(MPI_COMM_WORLD) == TD_ERR_STATE && strstr(td_error_message(), "MPI_THREAD_MULTIPLE is needed"));
        td_error_clear();
        MPI_Finalize();
        return 0;
    }
    bool trains = rank < size - 1;
    MPI_Comm part;
    MPI_Comm_split(MPI_COMM_WORLD, trains, -rank, &part);      /* reversed: ranks of the part are others than the world's */
    if (trains) {
        for (int round = 0; round < 2; round++) {
            TD_SCOPE();
            EXPECT(td_init_mpi(part) == 0);
            EXPECT(!strcmp(td_comm_backend_name(td_world()), argv[1]));
            EXPECT(td_size(td_world()) == size - 1 && td_rank(td_world()) == size - 2 - rank);
            td_tensor *x = td_full(TD_SHAPE(3000), TD_F64, td_rank(td_world()) + 1);
            int n = size - 1;
            for (int i = 0; i < 20; i++) {
                td_fill(x, td_rank(td_world()) + 1);
                EXPECT(td_all_reduce(td_world(), x, TD_SUM) == 0 && td_at(x, TD_SHAPE(2999)) == n * (n + 1) / 2);
            }
            td_finish();                       /* 1, as there was an error above that has been cleared */
            EXPECT(td_size(td_world()) == 1);
        }
    } else {
        double x = 1;
        for (int i = 0; i < 1000000; i++)
            x = x * 0.999 + 1;
        EXPECT(x > 0);
    }
    MPI_Comm_free(&part);
    int sum = 0, one = 1;
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);   /* the program's MPI is as it was */
    EXPECT(sum == size);
    if (rank == 0)
        printf("%s: all well\n", argv[1]);
    MPI_Finalize();
    return 0;
}
