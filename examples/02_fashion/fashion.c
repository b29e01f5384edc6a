/* 02_fashion: a small convolutional network learns Fashion-MNIST (60,000 + 10,000 images of clothes) on any number of ranks.
 *
 *     tandem run -n 2 ./fashion                      5 epochs, about 90 % on the test images
 *     ./fashion --epochs 1 --batch 128 --lr 0.002    alone
 *     ./fashion --capture                            the same numbers: the step is recorded once and replayed
 *
 * Options: --data DIR, --epochs N, --batch N (per rank), --lr X, --steps N (stop early), --log FILE, --seed N, --capture,
 * --save FILE (the weights).
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include "../captured.h"
#include "../numbers.h"

typedef struct {
    const char *data, *log, *save;
    int epochs;
    int64_t batch, steps;
    double lr;
    uint64_t seed;
    bool capture;
} options;

static options parse(int argc, char **argv)
{
    options o = { .data = "/usr/share/datasets/fashion-mnist", .epochs = 5, .batch = 64, .lr = 2e-3 };
    static const struct option known[] = {
        { "data", required_argument, NULL, 'd' },  { "epochs", required_argument, NULL, 'e' }, { "batch", required_argument, NULL, 'b' },
        { "lr", required_argument, NULL, 'r' },    { "steps", required_argument, NULL, 's' },  { "log", required_argument, NULL, 'l' },
        { "seed", required_argument, NULL, 'x' },  { "capture", no_argument, NULL, 'c' },
        { "save", required_argument, NULL, 'S' },  { NULL, 0, NULL, 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'd': o.data = optarg; break;
        case 'e': o.epochs = (int)whole_number(optarg); break;
        case 'b': o.batch = whole_number(optarg); break;
        case 'r': o.lr = real_number(optarg); break;
        case 's': o.steps = whole_number(optarg); break;
        case 'l': o.log = optarg; break;
        case 'x': o.seed = (uint64_t)whole_number(optarg); break;
        case 'c': o.capture = true; break;
        case 'S': o.save = optarg; break;
        default: exit(2);
        }
    }
    return o;
}

static td_loader *open_data(const options *o, const char *which, bool train)
{
    char prefix[4096];
    snprintf(prefix, sizeof prefix, "%s/%s", o->data, which);
    return td_loader_new(td_dataset_idx(prefix), &(td_loader_opts){ .batch = train ? o->batch : 250, .shuffle = train });
}

/* Every rank counts the hits of its share; the sums over all ranks are the accuracy. */
static double evaluate(td_module *net, td_loader *data)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_train(net, false);
    td_tensor *count = td_zeros(TD_SHAPE(2), TD_F64);
    td_batch b;
    while (td_loader_next(data, &b)) {
        TD_SCOPE();
        td_tensor *hits = td_sum(td_cast(td_eq(td_argmax(td_forward(net, b.x), 1), b.y), TD_F64), NULL, 0, false);
        td_tensor *both = td_from((double[]){ td_item(hits), (double)b.rows }, TD_SHAPE(2), TD_F64);
        td_assign(count, td_add(count, both));
    }
    td_train(net, true);
    td_all_reduce(td_world(), count, TD_SUM);
    return td_at(count, TD_SHAPE(0)) / td_at(count, TD_SHAPE(1));
}

typedef struct { td_module *net; td_optim *opt; } training;

static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss = td_cross_entropy(td_forward(t->net, in.list[0]), in.list[1], NULL);
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    options o = parse(argc, argv);
    td_seed(o.seed);

    td_module *net = td_nn_sequential(
        td_nn_conv2d(1, 16, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),    /* 16 x 14 x 14 */
        td_nn_conv2d(16, 32, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),   /* 32 x 7 x 7   */
        td_nn_flatten(), td_nn_linear(32 * 7 * 7, 128, NULL), td_nn_relu(), td_nn_dropout(0.25), td_nn_linear(128, 10, NULL));
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = o.lr });
    td_loader *train = open_data(&o, "train", true), *test = open_data(&o, "t10k", false);
    if (td_rank(td_world()) == 0)
        td_summary(net);

    int64_t total = o.epochs * td_loader_batches(train), step = 0;
    if (o.steps && o.steps < total)
        total = o.steps;
    td_progress *progress = td_progress_new(&(td_progress_opts){ .title = "fashion", .steps = total, .log = o.log });
    captured one = { train_step, &(training){ net, opt }, .on = o.capture };
    td_batch b;
    while (step < total) {
        if (!td_loader_next(train, &b)) {   /* the end of an epoch, or an error */
            if (td_error_pending())
                break;
            continue;
        }
        TD_SCOPE();
        td_optim_set_lr(opt, -1, o.lr * td_schedule_cosine(step++, 50, total, 0.02));
        td_tensor *loss = captured_step(&one, (td_tensors){ (td_tensor *[]){ b.x, b.y }, 2 });
        td_progress_step(progress, b.rows, loss, ddp);
    }
    captured_end(&one);
    if (o.save && td_rank(td_world()) == 0)
        td_save(net, o.save);
    double seconds = td_progress_end(progress), accuracy = evaluate(net, test);
    if (td_rank(td_world()) == 0)
        printf("trained %lld steps on %d ranks in %.1f s\ntest accuracy %.4f\n", (long long)step, td_size(td_world()), seconds, accuracy);
    return td_finish();
}
