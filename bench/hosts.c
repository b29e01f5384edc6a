/* bench/hosts.c: what crosses between hosts: sums beside MPI_Allreduce in the same processes, and how much of a training step's a backward hides.
 *
 *     mpirun … hosts sum BYTES ROUNDS          medians of ROUNDS calls in turns, seconds of the slowest rank: "ours S mpi S backend B"
 *     mpirun … hosts train STEPS ROWS          an MLP of 17 layers of 768 (38 MB of gradients), SGD: "step_ms X backward_ms X comm_ms X exposed_ms X bytes N"
 *
 * Tandem's world is opened by td_init_mpi. Which algorithms MPI takes is up to its own parameters; tests/cluster/case_link.sh compares.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include <tandem/mpi.h>
#include "common.h"

enum { MOST = 1000, LAYERS = 17, WIDE = 768 };

static double slowest(double seconds)
{
    double all;
    MPI_Allreduce(&seconds, &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return all;
}

static int sums(int64_t bytes, int rounds)
{
    static double ours[MOST], theirs[MOST];
    td_tensor *x = td_zeros_shared(td_world(), TD_SHAPE(bytes / 4), TD_F32);
    float *a = calloc((size_t)bytes, 1);
    if (!a)
        return 1;
    for (int i = -1; i < rounds; i++) {        /* the first one opens connections                                            */
        MPI_Barrier(MPI_COMM_WORLD);
        double begun = MPI_Wtime();
        td_all_reduce(td_world(), x, TD_SUM);
        double took = slowest(MPI_Wtime() - begun);
        MPI_Barrier(MPI_COMM_WORLD);
        begun = MPI_Wtime();
        MPI_Allreduce(MPI_IN_PLACE, a, (int)(bytes / 4), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        double other = slowest(MPI_Wtime() - begun);
        if (i >= 0)
            ours[i] = took, theirs[i] = other;
    }
    free(a);
    if (td_rank(td_world()) == 0)
        printf("ours %.4f mpi %.4f backend %s\n", median(ours, rounds), median(theirs, rounds), td_comm_backend_name(td_world()));
    return 0;
}

static int train(int steps, int rows)
{
    static double step[MOST], backward[MOST], comm[MOST], exposed[MOST];
    td_module *layer[2 * LAYERS];
    for (int i = 0; i < LAYERS; i++)
        layer[2 * i] = td_nn_linear(WIDE, i < LAYERS - 1 ? WIDE : 10, NULL), layer[2 * i + 1] = td_nn_relu();
    td_module *net = td_nn_sequential_n(layer, 2 * LAYERS - 1);
    td_ddp *ddp = td_ddp_new(net, &(td_ddp_opts){ .bucket_bytes = 2 << 20 });
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.001f });
    td_tensor *x = td_randn(TD_SHAPE(rows, WIDE), 1, (uint64_t)td_rank(td_world())), *y = td_zeros(TD_SHAPE(rows), TD_I64);
    td_ddp_stats last = { 0 };
    for (int i = -2; i < steps; i++) {
        TD_SCOPE();
        td_backward(td_cross_entropy(td_forward(net, x), y, NULL));
        td_optim_step(opt);
        last = td_ddp_last_step(ddp);
        if (i >= 0)
            step[i] = last.step_ms, backward[i] = last.backward_ms, comm[i] = last.comm_ms, exposed[i] = last.exposed_ms;
    }
    if (td_rank(td_world()) == 0)
        printf("step_ms %.1f backward_ms %.1f comm_ms %.1f exposed_ms %.1f bytes %lld\n", median(step, steps), median(backward, steps), median(comm, steps),
               median(exposed, steps), (long long)last.bytes);
    return 0;
}

int main(int argc, char **argv)
{
    int provided;
    int64_t first = argc == 4 ? atoll(argv[2]) : 0;
    int second = argc == 4 ? atoi(argv[3]) : 0;
    bool adds = argc == 4 && !strcmp(argv[1], "sum"), trains = argc == 4 && !strcmp(argv[1], "train");
    if ((!adds && !trains) || first < 4 || first > 1 << 30 || second < 1 || (adds ? second : first) > MOST) {
        fprintf(stderr, "hosts: usage: hosts sum BYTES ROUNDS | train STEPS ROWS\n");
        return 2;
    }
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
    td_init_mpi(MPI_COMM_WORLD);
    int code = adds ? sums(first, second) : train((int)first, second);
    code |= td_finish();
    MPI_Finalize();
    return code;
}
