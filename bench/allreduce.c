/* bench/allreduce.c: all-reduce of f32 sums in place, ours beside MPI_Allreduce and beside plain copying, interleaved in one run.
 *
 *     mpirun -np N allreduce [rounds]
 *
 * The same processes do everything in turn: a round is each way at each size. Tandem's world is opened anew for each way (td_init_mpi; TANDEM_COMM decides
 * what carries the data). Every call begins at a barrier of MPI's; a call's time is the slowest rank's; the table shows medians over all
 * calls of all rounds, and the buffer's bytes divided by them. `fastest`: the best of Open MPI's own algorithms at this size, each forced in turn
 * (needs OMPI_MCA_coll_tuned_use_dynamic_rules=1, which bench/run sets; without it, its own choice). `floor`: memory that all ranks share, each rank sums its part
 * of all replicas and stores it in all of them, in plain loops, without a meeting: what the arena's way must move at least. `copy`: all ranks at
 * once memcpy one buffer to another. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include <tandem/mpi.h>
#include "common.h"

enum { ARENA, PRIVATE, OVER_MPI, PLAIN, FLOOR, COPY, FORCED, WAYS = FORCED + 6, COLUMNS = FORCED, MOST = 4000 };
static const char *const title[] = { "shm, arena", "shm, private", "ours over MPI", "MPI_Allreduce", "floor", "copy" };
static MPI_Comm forced[WAYS - FORCED];         /* communicators whose all-reduce is Open MPI's algorithm number 1, 2, …; none: null        */
static const size_t size_of[] = { 4 << 10, 64 << 10, 1 << 20, 25 << 20, 100 << 20 };
static const int calls_of[] = { 200, 100, 30, 7, 3 };
enum { SIZES = sizeof size_of / sizeof *size_of };

static double *taken[WAYS][SIZES];
static int count[WAYS][SIZES];

/* This rank's part of n replicas at `all`, each of `floats`. */
static void sum_part(float *all, size_t floats, int rank, int n)
{
    const size_t low = floats * (size_t)rank / (size_t)n, high = floats * (size_t)(rank + 1) / (size_t)n;
    if (n == 2) {
        float *a = all, *b = all + floats;
#pragma omp simd
        for (size_t i = low; i < high; i++)
            a[i] = b[i] = a[i] + b[i];
        return;
    }
    enum { BLOCK = 2048 };
    float sum[BLOCK];
    for (size_t at = low; at < high; at += BLOCK) {
        const size_t m = high - at < BLOCK ? high - at : BLOCK;
        memcpy(sum, all + at, m * sizeof *sum);
        for (int r = 1; r < n; r++)
            for (size_t i = 0; i < m; i++)
                sum[i] += all[(size_t)r * floats + at + i];
        for (int r = 0; r < n; r++)
            memcpy(all + (size_t)r * floats + at, sum, m * sizeof *sum);
    }
}

static void one(int way, int s, td_tensor *x, float *a, float *b)
{
    int me, n;
    MPI_Comm_rank(MPI_COMM_WORLD, &me);
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    size_t bytes = size_of[s];
    for (int i = 0; i < calls_of[s] + 1; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double begun = MPI_Wtime();
        if (x)
            td_all_reduce(td_world(), x, TD_SUM);
        else if (way == PLAIN || way >= FORCED)
            MPI_Allreduce(MPI_IN_PLACE, a, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, way == PLAIN ? MPI_COMM_WORLD : forced[way - FORCED]);
        else if (way == FLOOR)
            sum_part(a, bytes / 4, me, n);
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

/* Every rank's replica in one piece of memory, one after the other. */
static void floor_way(void)
{
    int me;
    MPI_Comm_rank(MPI_COMM_WORLD, &me);
    for (int s = 0; s < SIZES; s++) {
        MPI_Win win;
        MPI_Aint bytes;
        int unit;
        float *mine, *all;
        MPI_Win_allocate_shared((MPI_Aint)size_of[s], 1, MPI_INFO_NULL, MPI_COMM_WORLD, &mine, &win);
        memset(mine, 0, size_of[s]);
        MPI_Win_shared_query(win, 0, &bytes, &unit, &all);
        MPI_Barrier(MPI_COMM_WORLD);
        one(FLOOR, s, NULL, all, NULL);
        MPI_Win_free(&win);
    }
}

/* Communicators made while Open MPI is told to use algorithm 1, 2, … for all-reduces. */
static void make_forced(void)
{
    int provided, variable, elements;
    MPI_T_cvar_handle handle;
    for (int i = 0; i < WAYS - FORCED; i++)
        forced[i] = MPI_COMM_NULL;
    const char *rules = getenv("OMPI_MCA_coll_tuned_use_dynamic_rules");
    if (!rules || strcmp(rules, "1") || MPI_T_init_thread(MPI_THREAD_MULTIPLE, &provided))    /* Open MPI takes this level for the whole process's */
        return;
    if (MPI_T_cvar_get_index("coll_tuned_allreduce_algorithm", &variable) == MPI_SUCCESS &&
        MPI_T_cvar_handle_alloc(variable, NULL, &handle, &elements) == MPI_SUCCESS) {
        for (int i = 0; i < WAYS - FORCED; i++) {
            int number = i + 1;
            if (MPI_T_cvar_write(handle, &number) == MPI_SUCCESS)
                MPI_Comm_dup(MPI_COMM_WORLD, &forced[i]);
        }
        MPI_T_cvar_write(handle, &(int){ 0 });
        MPI_T_cvar_handle_free(&handle);
    }
    MPI_T_finalize();
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
    for (int way = 0; way < COLUMNS; way++)
        printf(" %s |", title[way]);
    printf(" its fastest | arena over floor | arena is faster than the fastest by | private by |\n|---|");
    for (int way = 0; way < COLUMNS + 4; way++)
        printf("---|");
    printf("\n");
    for (int s = 0; s < SIZES; s++) {
        double m[COLUMNS], fastest;
        if (size_of[s] < 1 << 20)
            printf("| %zu KB |", size_of[s] >> 10);
        else
            printf("| %zu MB |", size_of[s] >> 20);
        for (int way = 0; way < COLUMNS; way++)
            show(m[way] = median(taken[way][s], count[way][s]), size_of[s]);
        fastest = m[PLAIN];
        for (int way = FORCED; way < WAYS; way++)
            if (count[way][s] && median(taken[way][s], count[way][s]) < fastest)
                fastest = median(taken[way][s], count[way][s]);
        show(fastest, size_of[s]);
        printf(" %.2f | %.1fx | %.1fx |\n", m[ARENA] / m[FLOOR], fastest / m[ARENA], fastest / m[PRIVATE]);
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
    make_forced();
    for (int round = 0; round < rounds; round++)
        for (int way = 0; way < WAYS; way++) {
            if (way < PLAIN)
                tandem_way(way);
            else if (way == FLOOR)
                floor_way();
            else if (way < FORCED || forced[way - FORCED] != MPI_COMM_NULL)
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
