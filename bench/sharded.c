/* bench/sharded.c: what td_ddp_opts.shard_optimizer saves: bytes per rank of a GPT-2 under AdamW, plain and sharded.
 *
 *     tandem run -n 4 bench/sharded [124M|355M|small|tiny]        default 124M
 *
 * Parameters and gradients are whole on every rank; the optimizer's state is what td_optim_bytes counts after two steps, the largest of all ranks.
 * The loss behind the steps is the same one in both rows, to the last digit. step: of one row of 32 tokens a rank, the second one.
 */
#include <stdio.h>
#include <tandem.h>
#include "../examples/05_gpt/model.h"

static double largest(double mine)
{
    TD_SCOPE();
    td_tensor *x = td_full(TD_SCALAR, TD_F64, mine);
    td_all_reduce(td_world(), x, TD_MAX);
    return td_item(x);
}

static void row(const gpt_opts *opts, bool shard)
{
    TD_SCOPE();
    td_seed(1);                                        /* the initialisers' numbers begin anew when the seed has changed          */
    td_module_free(td_nn_linear(1, 1, NULL));
    td_seed(3);
    td_step_set(0);
    gpt *net = gpt_new(opts);
    if (!net)
        return;
    td_ddp *ddp = td_ddp_new(&net->base, &(td_ddp_opts){ .shard_optimizer = shard });
    td_optim *opt = td_adamw_new(td_parameters(&net->base), &(td_adamw_opts){ .lr = 6e-4 });
    double loss = 0;
    for (int s = 0; s < 3; s++) {
        TD_SCOPE();
        td_tensor *ids = td_randint(0, 256, TD_SHAPE(1, 33), 5, (uint64_t)(100 * s + td_rank(td_world())));
        td_tensor *l = gpt_loss(net, td_narrow(ids, 1, 0, 32), td_narrow(ids, 1, 1, 32));
        if (s < 2) {
            td_backward(l);
            td_optim_step(opt);
        }
        loss = td_item(l);
    }
    const double mb = 1e-6, parameters = 4 * mb * (double)gpt_parameters(net), state = largest(mb * (double)td_optim_bytes(opt)),
                 ms = largest(td_ddp_last_step(ddp).step_ms);
    if (td_rank(td_world()) == 0)
        printf("%-8s %5d %12.1f %12.1f %12.1f %12.1f %9.0f   %.17g\n", shard ? "sharded" : "plain", td_size(td_world()), parameters, parameters, state,
               2 * parameters + state, ms, loss);
    td_ddp_free(ddp);
    td_optim_free(opt);
    td_module_free(&net->base);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    gpt_opts opts = { 0 };
    const char *name = argc > 1 ? argv[1] : "124M";
    if (!gpt_preset(name, &opts)) {
        fprintf(stderr, "sharded: there is no size \"%s\"\n", name);
        return 1;
    }
    if (td_rank(td_world()) == 0)
        printf("optimizer ranks   parameters    gradients    optimizer     together   step ms   loss of rank 0 behind two steps   (MB per rank, %s)\n", name);
    row(&opts, false);
    row(&opts, true);
    return td_finish();
}
