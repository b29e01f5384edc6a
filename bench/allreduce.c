/* bench/allreduce.c: all-reduce of f32 sums in place, ours beside MPI_Allreduce and beside plain copying, interleaved in one run.
 *
 *     mpirun -np N allreduce [rounds]
 *
 * The same processes do everything in turn: a round is each way at each size. Tandem's world is opened anew for each way (td_init_mpi; TANDEM_COMM decides
 * what carries the data). Every call begins at a barrier of MPI's; a call's time is the slowest rank's; the table shows medians over all
 * calls of all rounds, and the buffer's bytes divided by them. `copy`: all ranks at once memcpy one buffer to another, once:
 * an all-reduce that touched every byte once could be no faster. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include <tandem/mpi.h>

enum { ARENA, PRIVATE, OVER_MPI, PLAIN, COPY, WAYS, MOST = 4000 };
static const char *const title[] = { "shm, arena", "shm, private", "ours over MPI", "MPI_Allreduce", "copy" };
static const size_t size_of[] = { 4 << 10, 64 << 10, 1 << 20, 25 << 20, 100 << 20 };
static const int calls_of[] = { 200, 100, 30, 7, 3 };
enum { SIZES = sizeof size_of / sizeof *size_of };

static double *taken[WAYS][SIZES];
static int count[WAYS][SIZES];

static void one(int way, int s, td_tensor *x, float *a, float *b)
{
    size_t bytes = size_of[s];
    for (int i = 0; i < calls_of[s] + 1; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double begun = MPI_Wtime();
        if (x)
            td_all_reduce(td_world(), x, TD_SUM);
        else if (way == PLAIN)
            MPI_Allreduce(MPI_IN_PLACE, a, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        else
            memcpy(a, b, bytes);
        double mine = MPI_Wtime() - begun, slowest;
        MPI_Allreduce(&mine, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        if (i > 0 && count[way][s] < MOST)     /* the first one touches the memory */
            taken[way][s][count[way][s]++] = slowest;
    }
}

static void tandem_way(int way)
{
    if (way == OVER_MPI)
        setenv("TANDEM_COMM", "mpi", 1);
    else
        unsetenv("TANDEM_COMM");
    td_init_mpi(MPI_COMM_WORLD);
    for (int s = 0; s < SIZES; s++) {
        TD_SCOPE();
        td_shape shape = TD_SHAPE((int64_t)size_of[s] / 4);
        td_tensor *x = way == ARENA ? td_zeros_shared(td_world(), shape, TD_F32) : td_zeros(shape, TD_F32);
        td_fill(x, 0);
        one(way, s, x, NULL, NULL);
    }
    td_finish();
}

static void plain_way(int way)
{
    for (int s = 0; s < SIZES; s++) {
        float *a = aligned_alloc(4096, size_of[s]), *b = aligned_alloc(4096, size_of[s]);
        if (!a || !b)
            MPI_Abort(MPI_COMM_WORLD, 1);
        memset(a, 0, size_of[s]);
        memset(b, 0, size_of[s]);
        one(way, s, NULL, a, b);
        free(a);
        free(b);
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(int way, int s)
{
    qsort(taken[way][s], (size_t)count[way][s], sizeof(double), ascending);
    return taken[way][s][count[way][s] / 2];
}

static void show(double seconds, size_t bytes)
{
    if (seconds < 1e-3)
        printf(" %.1f us (%.1f) |", seconds * 1e6, (double)bytes / seconds * 1e-9);
    else
        printf(" %.2f ms (%.1f) |", seconds * 1e3, (double)bytes / seconds * 1e-9);
}

static void table(void)
{
    printf("| buffer |");
    for (int way = 0; way < WAYS; way++)
        printf(" %s |", title[way]);
    printf(" arena is faster than MPI_Allreduce by | private by |\n|---|");
    for (int way = 0; way < WAYS + 2; way++)
        printf("---|");
    printf("\n");
    for (int s = 0; s < SIZES; s++) {
        double m[WAYS];
        if (size_of[s] < 1 << 20)
            printf("| %zu KB |", size_of[s] >> 10);
        else
            printf("| %zu MB |", size_of[s] >> 20);
        for (int way = 0; way < WAYS; way++)
            show(m[way] = median(way, s), size_of[s]);
        printf(" %.1fx | %.1fx |\n", m[PLAIN] / m[ARENA], m[PLAIN] / m[PRIVATE]);
    }
}

int main(int argc, char **argv)
{
    int provided, rank;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    int rounds = argc > 1 ? atoi(argv[1]) : 5;
    for (int way = 0; way < WAYS; way++)
        for (int s = 0; s < SIZES; s++)
            taken[way][s] = malloc(MOST * sizeof(double));
    for (int round = 0; round < rounds; round++)
        for (int way = 0; way < WAYS; way++) {
            if (way < PLAIN)
                tandem_way(way);
            else
                plain_way(way);
        }
    if (rank == 0)
        table();
    for (int way = 0; way < WAYS; way++)
        for (int s = 0; s < SIZES; s++)
            free(taken[way][s]);
    MPI_Finalize();
    return 0;
}
