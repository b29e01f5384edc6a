/* bench/gpu/resnet.c: a training step of ResNet-50 on made-up pictures, channels last: bf16 by autocast, SGD with momentum. Driven by run.py (worker.h).
 *
 *     resnet [--depth 50] [--batch 256] [--size 224] [--f32]
 */
#include "../../examples/06_resnet/model.h"
#include "worker.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct { td_module *net; td_optim *opt; td_tensor *x, *y; td_dtype dtype; } job;

static td_tensor *step(void *user)
{
    job *j = user;
    td_tensor *loss;
    {
        TD_AUTOCAST(j->dtype);
        loss = td_cross_entropy(td_forward(j->net, j->x), j->y, NULL);
    }
    td_backward(loss);
    td_optim_step(j->opt);
    return loss;
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        { "depth", required_argument, NULL, 'd' }, { "batch", required_argument, NULL, 'b' }, { "size", required_argument, NULL, 's' },
        { "f32", no_argument, NULL, 'f' },         { NULL, 0, NULL, 0 },
    };
    int64_t batch = 256, size = 224;
    resnet_opts shape = { .depth = 50, .classes = 1000 };
    job j = { .dtype = TD_BF16 };
    td_init(&argc, &argv);
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'd': shape.depth = atoi(optarg); break;
        case 'b': batch = atoll(optarg); break;
        case 's': size = atoll(optarg); break;
        case 'f': j.dtype = TD_F32; break;
        default: return 2;
        }
    }
    td_seed(1);
    j.net = resnet_new(&shape);
    if (!j.net)
        return 2;
    td_train(j.net, true);
    j.opt = td_sgd_new(td_parameters(j.net), &(td_sgd_opts){ .lr = 0.1, .momentum = 0.9, .weight_decay = 1e-4 });
    j.x = td_keep(td_to_memory_format(td_randn(TD_SHAPE(batch, 3, size, size), 2, 0), TD_CHANNELS_LAST));
    j.y = td_keep(td_randint(0, shape.classes, TD_SHAPE(batch), 2, 1));
    int status = worker_serve(step, &j);
    return td_finish() || status;
}
