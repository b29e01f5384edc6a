/* tests/ddp/ddp_memory.c: what attaching a model and laying out its buckets anew cost at their most, and what is left: each rank its weights and gradients
 * once, nothing of what they lay in before, and of the other replica what a step touches. Started on 2 ranks by tandem run; TAP on rank 0's standard
 * output.
 *
 * Measured by the kernel: VmHWM from a moment on (clear_refs), and the pages of each kind that are mapped now.
 */
#include <stdlib.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition) expect_((condition), #condition, NULL, __LINE__)

enum { MB = 1000000, WIDTH = 1500, LAYERS = 8, BATCH = 4 };
static const double MODEL = 4.0 * WIDTH * WIDTH * LAYERS / MB;       /* 72 MB, in 72 MB / 25 MB buckets                       */

static double mb(const char *name)
{
    char line[256];
    double kb = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name)))
            kb = atof(line + strlen(name));
    if (f)
        fclose(f);
    return kb * 1024 / MB;
}

/* From now on VmHWM counts anew; what is held now. */
static double mark(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");
    const bool done = f && fputs("5\n", f) >= 0 && fclose(f) == 0;
    EXPECT(done);
    return mb("VmRSS:");
}

/* Between a rank's mark and its look the other one changes nothing of it. */
static double most_since(double before)
{
    return mb("VmHWM:") - before;
}

static td_module *model(void)
{
    td_module *layer[LAYERS];
    for (int i = 0; i < LAYERS; i++)
        layer[i] = td_nn_linear(WIDTH, WIDTH, &(td_nn_linear_opts){ .no_bias = true });
    return td_nn_sequential_n(layer, LAYERS);
}

/* What a step's activations leave in the pool. */
static void use_pool(double mbytes)
{
    TD_SCOPE();
    td_fill(td_empty(TD_SHAPE((int64_t)(mbytes * MB / 4)), TD_F32), 1);
}

static double backward(td_module *net)
{
    TD_SCOPE();
    td_tensor *x = td_randn(TD_SHAPE(BATCH, WIDTH), 3, (uint64_t)rank);
    td_tensor *loss = td_mean(td_mul(td_forward(net, x), td_forward(net, x)), NULL, 0, false);
    td_backward(loss);
    return td_item(loss);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    rank = td_rank(td_world()), size = td_size(td_world());
    td_seed(1);
    td_module *net = model();
    use_pool(2 * MODEL);
    double before = mark();
    /* In the process: the pool's leftovers (2) and the private weights (1). At the most: weights twice, then weights and gradients in the arena, and on
     * rank 1 rank 0's weights, read as they are broadcast. */
    td_ddp *ddp = td_ddp_new(net, NULL);
    double most = most_since(before), now = mb("VmRSS:") - before;
    EXPECT(most < 0.5 * MODEL);
    EXPECT(now < (rank ? 0.25 : -0.75) * MODEL);
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 1e-3 });
    backward(net);
    use_pool(2 * MODEL);
    EXPECT(td_barrier(td_world()) == 0);
    before = mark();
    /* Twice the weights or twice the gradients, while the activations' 2 have gone. */
    td_optim_step(opt);
    most = most_since(before);
    EXPECT(most < 0.25 * MODEL);
    EXPECT(td_barrier(td_world()) == 0);
    /* Weights, gradients, and half of the other's of what this step has touched. */
    now = mb("RssShmem:");
    EXPECT(now > 2.4 * MODEL && now < 3.25 * MODEL);
    if (failures && rank == 0)
        fprintf(stderr, "model %.0f MB; step's most %.0f, shared now %.0f\n", MODEL, most, now);
    for (int i = 0; i < 3; i++) {
        backward(net);
        td_optim_step(opt);
    }
    now = mb("RssShmem:");
    EXPECT(now < 3.25 * MODEL);
    EXPECT(!td_error_pending());
    (void)ddp;
    td_optim_free(opt);
    if (rank == 0)
        printf("1..%d\n", tests);
    int code = td_finish();
    return code ? code : failures != 0;
}
