/* 04_mpi_program: an MPI program that trains inside itself, on a sub-communicator, while its other ranks compute something else.
 *
 *     mpirun -n 4 ./mpi_program        ranks 0 and 1 train, ranks 2 and 3 estimate pi; both results meet in MPI at the end
 *     mpirun -n 4 ./mpi_program 300 --capture --save FILE      the training step recorded once and replayed; the weights go to FILE
 *
 * The program owns MPI: it initialises and finalises it, and hands Tandem the communicator of the training ranks.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <mpi.h>
#include <tandem/mpi.h>
#include "../captured.h"

enum { IN = 6, ROWS = 32 };

typedef struct { td_module *net; td_optim *opt; } training;

static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss = td_mse(td_forward(t->net, in.list[0]), in.list[1]);
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

/* Fit y = sin(sum of x) with a small network; the last loss. */
static double train(MPI_Comm ranks, int steps, bool capture, const char *save)
{
    td_init_mpi(ranks);
    int rank = td_rank(td_world()), size = td_size(td_world());
    td_module *net = td_nn_sequential(td_nn_linear(IN, 64, NULL), td_nn_tanh(), td_nn_linear(64, 1, NULL));
    td_ddp_new(net, NULL);
    td_optim *opt = td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 1e-2f });
    double last = 0;
    captured one = { train_step, &(training){ net, opt }, .on = capture };
    for (int step = 0; step < steps; step++) {
        TD_SCOPE();
        int64_t from = ROWS * rank / size, rows = ROWS * (rank + 1) / size - from;
        td_tensor *x = td_narrow(td_scale(td_randn(TD_SHAPE(ROWS, IN), 3, (uint64_t)step), 0.3), 0, from, rows);
        td_tensor *y = td_tanh(td_sum(x, (int[]){ 1 }, 1, true));
        last = td_item(captured_step(&one, (td_tensors){ (td_tensor *[]){ x, y }, 2 }));
    }
    captured_end(&one);
    if (save && rank == 0)
        td_save(net, save);
    if (rank == 0)
        printf("training: %d ranks over %s, loss %.5f after %d steps\n", size, td_comm_backend_name(td_world()), last, steps);
    return td_finish() == 0 ? last : NAN;
}

/* The other ranks' own work, with their own collectives. */
static double estimate_pi(MPI_Comm ranks, long darts)
{
    int rank, size;
    MPI_Comm_rank(ranks, &rank);
    MPI_Comm_size(ranks, &size);
    unsigned short state[3] = { 1, 2, (unsigned short)rank };
    long hits = 0, all = 0;
    for (long i = 0; i < darts; i++) {
        double x = erand48(state), y = erand48(state);
        hits += x * x + y * y < 1;
    }
    MPI_Allreduce(&hits, &all, 1, MPI_LONG, MPI_SUM, ranks);
    return 4.0 * (double)all / (double)(darts * size);
}

int main(int argc, char **argv)
{
    int level, rank, size;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int steps = argc > 1 && argv[1][0] != '-' ? atoi(argv[1]) : 300, trainers = (size + 1) / 2;
    bool capture = false;
    const char *save = NULL;
    for (int i = 1; i < argc; i++) {
        capture |= !strcmp(argv[i], "--capture");
        if (!strcmp(argv[i], "--save") && i + 1 < argc)
            save = argv[++i];
    }

    MPI_Comm mine;
    MPI_Comm_split(MPI_COMM_WORLD, rank < trainers, rank, &mine);
    double result = rank < trainers ? train(mine, steps, capture, save) : estimate_pi(mine, 2000000);

    double both[2] = { result, result };   /* rank 0 has the loss; the first of the others has pi */
    MPI_Bcast(&both[0], 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    if (size > trainers)
        MPI_Bcast(&both[1], 1, MPI_DOUBLE, trainers, MPI_COMM_WORLD);
    if (rank == 0)
        printf("loss %.5f, pi about %.3f\n", both[0], size > trainers ? both[1] : NAN);
    MPI_Comm_free(&mine);
    MPI_Finalize();
    return both[0] < 0.05 && (size == trainers || fabs(both[1] - 3.14159) < 0.02) ? 0 : 1;
}
