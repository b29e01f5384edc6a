/* bench/scaling/plan.c: the communication plan of a training step, measured on this machine: which bucket is ready when.
 *
 *     plan gpt2 [--rows 1] [--steps 5]         GPT-2 124M, sequences of 256 tokens
 *     plan resnet50 [--rows 4] [--steps 5]     ResNet-50, images of 224x224
 *
 * One rank, made-up data. Prints lines that trace.c reads:
 *
 *     model NAME
 *     step FORWARD_MS BACKWARD_MS OPTIMIZER_MS    medians over the steps behind the first two
 *     bucket BYTES READY                          in order of launching; READY: of the backward's time, 0 to 1
 *
 * READY stands for any machine on which a layer's share of the backward is what it is here; the milliseconds are this machine's alone.
 */
#include "../common.h"
#include "../../examples/05_gpt/model.h"
#include "../../examples/06_resnet/model.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STEPS = 100, MAX_BUCKETS = 256, WARM = 2 };

typedef struct { bool words; gpt *language; td_module *images; td_tensor *x, *y; } subject;

static td_tensor *loss_of(const subject *s)
{
    return s->words ? gpt_loss(s->language, s->x, s->y) : td_cross_entropy(td_forward(s->images, s->x), s->y, NULL);
}

static void make_batch(subject *s, int64_t rows)
{
    enum { TOKENS = 256, CLASSES = 1000 };
    int64_t n = s->words ? rows * TOKENS : rows, *ids = calloc((size_t)n, sizeof *ids);
    for (int64_t i = 0; ids && i < n; i++)
        ids[i] = (i * 7919 + 13) % (s->words ? 50257 : CLASSES);
    td_shape shape = s->words ? TD_SHAPE(rows, TOKENS) : TD_SHAPE(rows);
    s->y = td_keep(td_from(ids, shape, TD_I64));
    s->x = s->words ? s->y : td_keep(td_randn(TD_SHAPE(rows, 3, 224, 224), 1, 1));
    free(ids);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    subject s = { .words = !strcmp(name, "gpt2") };
    int64_t rows = s.words ? 1 : 4;
    int steps = 5;
    bool good = s.words || !strcmp(name, "resnet50");
    for (int i = 2; i + 1 < argc && good; i += 2) {
        good = !strcmp(argv[i], "--rows") || !strcmp(argv[i], "--steps");
        *(!strcmp(argv[i], "--rows") ? &rows : &(int64_t){ 0 }) = atoll(argv[i + 1]);
        steps = !strcmp(argv[i], "--steps") ? atoi(argv[i + 1]) : steps;
    }
    if (!good || rows < 1 || steps < 1 || steps > MAX_STEPS) {
        fprintf(stderr, "plan: usage: plan gpt2|resnet50 [--rows N] [--steps 1..%d]\n", MAX_STEPS);
        return 2;
    }
    td_init(&argc, &argv);
    td_seed(1);
    td_module *net;
    if (s.words) {
        gpt_opts opts = { 0 };
        gpt_preset("124M", &opts);
        net = &(s.language = gpt_new(&opts))->base;
    } else {
        net = s.images = resnet_new(&(resnet_opts){ .depth = 50, .classes = 1000 });
    }
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = s.words ? td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 1e-4f })
                            : td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.1f, .momentum = 0.9f });
    make_batch(&s, rows);

    static double part[3][MAX_STEPS], ready[MAX_BUCKETS][MAX_STEPS];
    int buckets = 0;
    for (int i = -WARM; i < steps && !td_error_pending(); i++) {
        TD_SCOPE();
        double t0 = now();
        td_tensor *loss = loss_of(&s);
        double t1 = now();
        td_backward(loss);
        double t2 = now();
        td_optim_step(opt);
        double t3 = now();
        if (i < 0)
            continue;
        part[0][i] = 1e3 * (t1 - t0), part[1][i] = 1e3 * (t2 - t1), part[2][i] = 1e3 * (t3 - t2);
        buckets = td_ddp_last_step(ddp).buckets;
        for (int b = 0; b < buckets && b < MAX_BUCKETS; b++)
            ready[b][i] = td_ddp_last_bucket(ddp, b).ready_ms / part[1][i];
    }
    if (!td_error_pending() && buckets <= MAX_BUCKETS) {
        printf("model %s\n", name);
        printf("step %.3f %.3f %.3f\n", median(part[0], steps), median(part[1], steps), median(part[2], steps));
        for (int b = 0; b < buckets; b++)
            printf("bucket %lld %.5f\n", (long long)td_ddp_last_bucket(ddp, b).bytes, median(ready[b], steps));
    }
    td_release(s.x);
    if (s.y != s.x)
        td_release(s.y);
    return td_finish();
}
