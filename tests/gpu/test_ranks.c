/* tests/gpu/test_ranks.c: 2 and 4 real ranks over the real NCCL, all on ONE card: each has a NCCL_HOSTID of its own and speaks by sockets over
 * loopback, or NCCL would refuse two ranks of a host on one GPU (2.30 and newer are told to allow it). That shows that results,
 * streams, faults and sentences are right. It says nothing about bandwidth: the ranks take turns on the card and never use its links.
 *
 * The process that forks never touches the GPU, since CUDA does not survive a fork.
 */
#include "../cuda/gpu_ranks.h"
#include <tandem/ddp.h>
#include <tandem/nn.h>
#include <tandem/ops.h>
#include <tandem/optim.h>
#include "gpu.h"

static void prepare_rank(int rank, int compute_us, int communication_us)
{
    static const char *const fixed[][2] = {
        { "NCCL_NET", "Socket" }, { "NCCL_SOCKET_IFNAME", "lo" }, { "NCCL_IB_DISABLE", "1" }, { "NCCL_P2P_DISABLE", "1" }, { "NCCL_SHM_DISABLE", "1" },
        { "NCCL_NVLS_ENABLE", "0" }, { "NCCL_MNNVL_ENABLE", "0" }, { "NCCL_CUMEM_ENABLE", "0" }, { "NCCL_RAS_ENABLE", "0" },
        { "NCCL_MULTI_RANK_GPU_ENABLE", "1" },
    };
    char host[32];
    (void)compute_us, (void)communication_us;          /* the card has delays of its own                                          */
    snprintf(host, sizeof host, "tandem-%d", rank);
    setenv("NCCL_HOSTID", host, 1);
    for (size_t i = 0; i < TD_COUNT(fixed); i++)
        setenv(fixed[i][0], fixed[i][1], 1);
    setenv("TANDEM_DEVICE", "cuda:0", 1);
    dev = td__device_ops(gpu);
    EXPECT(dev);
}

static bool gpu_there(void)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        need_gpu();
        char error[400];
        const td_device_ops *ops = td__device_ops(gpu);
        if (ops && ops->comm && ops->comm->load(error, sizeof error) == 0)
            exit(0);
        printf("%s\n", ops && ops->comm ? error : "no collectives");
        exit(77);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void well_within(rank_body *body, int size)
{
    all_well(size, on_gpu, &(plan){ body, 0, 0, NULL }, 120);
}

/* In one world: opening NCCL takes seconds. */
static int collectives(int rank, int size, void *arg)
{
    int code = everything(rank, size, arg);
    code = code ? code : factors(rank, size, arg);
    return code ? code : in_flight(rank, size, arg);
}

static void two(void **state) { (void)state; well_within(collectives, 2); }
static void four(void **state) { (void)state; well_within(collectives, 4); }

/* ---- training: N ranks, each with its share of the batch, against one process with the whole of it ---------------------------------------------- */
enum { ROWS = 12, WIDE = 33, STEPS = 6 };

static void train(int rank, int size, bool together, float *weights)
{
    TD_SCOPE();
    float x[ROWS * WIDE], y[ROWS];
    td_module *net = td_nn_sequential(td_nn_linear(WIDE, 64, NULL), td_nn_gelu(), td_nn_linear(64, 1, NULL));
    td_tensors p = td_parameters(net);
    for (size_t i = 0; i < p.n; i++)
        td_assign(p.list[i], td_scale(td_randn(p.list[i]->shape, 11, (uint64_t)i), 0.2));
    td_ddp *ddp = together ? td_ddp_new(net, NULL) : NULL;
    td_optim *opt = td_sgd_new(p, &(td_sgd_opts){ .lr = 0.1f, .momentum = 0.9f });
    const int from = together ? ROWS * rank / size : 0, rows = together ? ROWS * (rank + 1) / size - from : ROWS;
    for (int step = 0; step < STEPS; step++) {
        TD_SCOPE();
        for (int i = 0; i < ROWS * WIDE; i++)
            x[i] = (float)value(step, i, 2) / 16;
        for (int i = 0; i < ROWS; i++)
            y[i] = (float)value(step, i, 3) / 16;
        td_tensor *in = td_from(x + from * WIDE, TD_SHAPE(rows, WIDE), TD_F32), *out = td_from(y + from, TD_SHAPE(rows, 1), TD_F32);
        EXPECT(td_device_of(in).kind == TD_CUDA);
        EXPECT(td_backward(td_mse(td_forward(net, in), out)) == 0);
        EXPECT(td_optim_step(opt) == 0);
    }
    EXPECT(td_copy_out(td_parameter_get(net, "0.weight"), weights, 64 * WIDE * sizeof *weights) == 0);
    td_optim_free(opt);
    td_ddp_free(ddp);
    td_module_free(net);
}

static int truth(int rank, int size, void *arg)
{
    (void)arg;
    static float one[64 * WIDE], many[64 * WIDE];
    td__device_set_default(gpu);
    train(rank, size, true, many);
    train(rank, size, false, one);
    for (int i = 0; i < 64 * WIDE; i++)
        EXPECT(fabsf(one[i] - many[i]) <= 2e-5f * (1 + fabsf(one[i])));
    shared->rank[rank].hash = hash_bytes(0, many, sizeof many);
    return 0;
}

static void training(void **state)
{
    (void)state;
    for (int size = 2; size <= 4; size += 2) {
        well_within(truth, size);
        for (int r = 1; r < size; r++)
            assert_true(shared->rank[r].hash == shared->rank[0].hash);
    }
}

/* ---- faults: seconds are more here, since aborting NCCL's kernels takes its time --------------------------------------------------------------------- */
static void gone(void **state)
{
    (void)state;
    try("kill", 2, false, TD_ERR_PEER, 15, PARTS("rank 1 (pid ", "was killed or died", "waited in all_reduce(f32, 1000, cuda) #", "gpu_ranks.h:"));
    try("kill", 4, false, TD_ERR_PEER, 15, PARTS("rank 1 (pid ", "was killed or died"));
    try("stop", 2, false, TD_ERR_PEER, 15, PARTS("rank 1 (pid ", "is stopped by a signal"));
}

static void different(void **state)
{
    (void)state;
    try("count", 4, true, TD_ERR_MISMATCH, 15, PARTS("rank 1 called all_reduce(f32, 1001, cuda) #", "ranks 0, 2, 3 called all_reduce(f32, 1000, cuda) #"));
    try("kind", 2, true, TD_ERR_MISMATCH, 15, PARTS("rank 1 called broadcast(f32, 1000, root 0, cuda)", "called all_reduce(f32, 1000, cuda)"));
}

/* A rank that computes on for longer than the deadline: the others end. */
static void hang(void **state)
{
    (void)state;
    setenv("TANDEM_TIMEOUT", "12", 1);
    try("late", 2, false, TD_ERR_TIMEOUT, 40, PARTS("rank 1 (pid ", "did not come to all_reduce(f32, 1000, cuda)", "within 12 s (TANDEM_TIMEOUT)"));
    unsetenv("TANDEM_TIMEOUT");
}

int main(void)
{
    if (!gpu_there())
        return 77;
    late_us = 15000000;
    fault_seconds = 40;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two), cmocka_unit_test(four), cmocka_unit_test(training), cmocka_unit_test(gone), cmocka_unit_test(different), cmocka_unit_test(hang),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("ranks shared one card over loopback: this shows correctness, never bandwidth\n");
    return failed;
}
