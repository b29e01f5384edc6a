/* bench/gpu/gpt2.c: a training step of GPT-2: bf16 by autocast, AdamW, gradients clipped to norm 1. Driven by run.py (worker.h).
 *
 *     gpt2 [--size 124M] [--batch 16] [--context 1024] [--vocab 50304] [--lr 3e-4] [--save FILE] [--data FILE] [--ddp] [--capture] [--f32]
 *
 * --save: the initial weights, for a peer to start from. --data: an .npy file of token ids, i64 (steps, batch, context+1), one item a step, from
 * the beginning again when it ends; else one made-up batch, which stays on the device. --ddp: through td_ddp_new. --capture: the first step is recorded, the others are
 * replayed. The vocabulary is 50257
 * rounded up, as trainers do, for products of aligned rows.
 */
#include "../../examples/05_gpt/model.h"
#include "worker.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    gpt *net;
    td_optim *opt;
    td_dtype dtype;
    td_tensor *x, *y;                                  /* one batch; NULL: the next of data                                        */
    td_tensor *data;
    int64_t next, batch, context;
    bool capture;
    td_graph *graph;                                   /* from the first step on, with --capture                                   */
} job;

static td_tensor *train(td_tensors in, void *user)
{
    job *j = user;
    td_tensor *loss;
    {
        TD_AUTOCAST(j->dtype);
        loss = gpt_loss(j->net, in.list[0], in.list[1]);
    }
    td_backward(loss);
    td_clip_grad_norm_async(j->opt, 1);
    td_optim_step(j->opt);
    return loss;
}

static td_tensor *step(void *user)
{
    job *j = user;
    td_tensor *xy[2] = { j->x, j->y };
    td_tensors in = { xy, 2 };
    if (j->data) {
        int64_t i = j->next++ % td_dim(j->data, 0);
        td_tensor *ids = td_reshape(td_narrow(j->data, 0, i, 1), TD_SHAPE(j->batch, j->context + 1));
        xy[0] = td_contiguous(td_narrow(ids, 1, 0, j->context));
        xy[1] = td_contiguous(td_narrow(ids, 1, 1, j->context));
    }
    if (!j->capture)
        return train(in, j);
    if (j->graph)
        return td_replay(j->graph, in);
    j->graph = td_capture(train, j, in, NULL);
    return td_graph_result(j->graph);
}

/* Matrices and tables decay, vectors do not. */
static td_optim *optimizer(gpt *net, double lr)
{
    td_tensors all = td_parameters(&net->base);
    td_tensor **list = malloc(all.n * sizeof *list);
    size_t decayed = 0, rest = all.n;
    for (size_t i = 0; list && i < all.n; i++)
        list[td_shape_of(all.list[i]).ndim > 1 ? decayed++ : --rest] = all.list[i];
    td_adamw_opts opts = { .lr = lr, .beta2 = 0.95, .weight_decay = 0.1 };
    td_optim *opt = td_adamw_new((td_tensors){ list, decayed }, &opts);
    opts.weight_decay = TD_ZERO;
    td_adamw_add_group(opt, (td_tensors){ list + decayed, all.n - decayed }, &opts);
    free(list);
    return opt;
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        { "size", required_argument, NULL, 's' }, { "batch", required_argument, NULL, 'b' }, { "context", required_argument, NULL, 't' },
        { "vocab", required_argument, NULL, 'v' }, { "lr", required_argument, NULL, 'l' },   { "save", required_argument, NULL, 'S' },
        { "data", required_argument, NULL, 'd' },  { "ddp", no_argument, NULL, 'D' },        { "f32", no_argument, NULL, 'f' },
        { "capture", no_argument, NULL, 'c' },     { NULL, 0, NULL, 0 },
    };
    const char *size = "124M", *save = NULL, *data = NULL;
    int64_t context = 0, vocab = 50304;
    double lr = 3e-4;
    bool ddp = false;
    job j = { .batch = 16, .dtype = TD_BF16 };
    td_init(&argc, &argv);
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 's': size = optarg; break;
        case 'b': j.batch = atoll(optarg); break;
        case 't': context = atoll(optarg); break;
        case 'v': vocab = atoll(optarg); break;
        case 'l': lr = atof(optarg); break;
        case 'S': save = optarg; break;
        case 'd': data = optarg; break;
        case 'D': ddp = true; break;
        case 'f': j.dtype = TD_F32; break;
        case 'c': j.capture = true; break;
        default: return 2;
        }
    }
    gpt_opts shape = { 0 };
    if (!gpt_preset(size, &shape)) {
        fprintf(stderr, "gpt2: --size %s is none that is known\n", size);
        return 2;
    }
    shape.vocab = vocab;
    shape.context = context ? context : shape.context;
    td_seed(1);
    j.context = shape.context;
    j.net = gpt_new(&shape);
    if (!j.net || (save && gpt_save(j.net, save)))
        return 1;
    if (ddp)
        td_ddp_new(&j.net->base, NULL);
    j.opt = optimizer(j.net, lr);
    if (data) {
        j.data = td_keep(td_npy_load(data));
        td_shape s = td_shape_of(j.data);
        if (s.ndim != 3 || s.dim[1] != j.batch || s.dim[2] != j.context + 1) {
            fprintf(stderr, "gpt2: %s does not hold (steps,%lld,%lld) token ids\n", data, (long long)j.batch, (long long)j.context + 1);
            return 2;
        }
    } else {
        td_tensor *ids = td_randint(0, vocab, TD_SHAPE(j.batch, j.context + 1), 2, 0);
        j.x = td_keep(td_contiguous(td_narrow(ids, 1, 0, j.context)));
        j.y = td_keep(td_contiguous(td_narrow(ids, 1, 1, j.context)));
    }
    int status = worker_serve(step, &j);
    td_graph_free(j.graph);
    return td_finish() || status;
}
