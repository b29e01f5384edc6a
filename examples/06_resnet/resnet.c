/* 06_resnet: a residual network learns Fashion-MNIST on any number of ranks, from pictures that the loader flips and crops.
 *
 *     tandem run -n 2 ./resnet --save resnet.safetensors      ResNet-20, 12 epochs
 *     ./resnet --depth 18 --width 16 --epochs 3               another one, alone
 *     ./resnet --help
 *
 * SGD with Nesterov's momentum, one cycle of the learning rate, weight decay on matrices and filters only.
 */
#include "../captured.h"
#include "../numbers.h"
#include "model.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *data, *log, *save, *resume;
    int depth, crop, threads;
    int64_t width, epochs, batch, steps, save_every;
    double lr, weight_decay, smoothing;
    bool no_flip, sync_bn, channels_last, capture;
    td_dtype autocast;
    uint64_t seed;
} options;

static const char help[] =
    "resnet: trains a residual network on Fashion-MNIST; alone, or with `tandem run -n N`\n"
    "  --data DIR          the four files of the data set (default /usr/share/datasets/fashion-mnist)\n"
    "  --depth N           20, 32, 44, … (6n + 2, three stages) or 18, 34, 50, 101, 152 (four); default 20\n"
    "  --width N           channels of the first stage; default 16 with three stages, 64 with four\n"
    "  --epochs N          default 12\n"
    "  --batch N           pictures per rank and step; default 64\n"
    "  --lr X              peak of the one-cycle schedule; default 0.1\n"
    "  --weight-decay X    default 5e-4\n"
    "  --smoothing X       label smoothing; default 0\n"
    "  --crop N            random crops after padding by N; default 2, 0: none\n"
    "  --no-flip           no random flips\n"
    "  --sync-bn           batch norm over all ranks' pictures, not each rank's own\n"
    "  --channels-last     pictures pixel by pixel in memory (td_to_memory_format): faster on a GPU, with --autocast\n"
    "  --autocast TYPE     convolutions and products in bf16; default f32\n"
    "  --capture           record the step once and replay it: the same bits\n"
    "  --threads N         loader threads; default 1\n"
    "  --steps N           stop after step N (the schedule stays that of all epochs)\n"
    "  --save FILE         at the end the weights and running statistics to FILE, as safetensors; the training state to\n"
    "                      FILE.state, after every epoch and at the end\n"
    "  --save-every N      the training state after every N steps, too\n"
    "  --resume FILE       go on from the training state FILE, also in the middle of an epoch\n"
    "  --log FILE          append the progress to FILE\n"
    "  --seed N            default 0\n";

static options parse(int argc, char **argv)
{
    options o = { .data = "/usr/share/datasets/fashion-mnist", .depth = 20, .crop = 2, .threads = 1, .epochs = 12, .batch = 64, .lr = 0.1,
                  .weight_decay = 5e-4 };
    static const struct option known[] = {
        { "data", required_argument, NULL, 'd' },    { "depth", required_argument, NULL, 'D' },     { "width", required_argument, NULL, 'W' },
        { "epochs", required_argument, NULL, 'e' },  { "batch", required_argument, NULL, 'b' },     { "lr", required_argument, NULL, 'r' },
        { "weight-decay", required_argument, NULL, 'w' }, { "smoothing", required_argument, NULL, 'm' }, { "crop", required_argument, NULL, 'c' },
        { "no-flip", no_argument, NULL, 'f' },       { "sync-bn", no_argument, NULL, 'y' },         { "threads", required_argument, NULL, 't' },
        { "steps", required_argument, NULL, 's' },   { "save", required_argument, NULL, 'S' },      { "save-every", required_argument, NULL, 'E' },
        { "resume", required_argument, NULL, 'R' },  { "log", required_argument, NULL, 'l' },       { "seed", required_argument, NULL, 'x' },
        { "channels-last", no_argument, NULL, 'l' + 256 }, { "autocast", required_argument, NULL, 'a' }, { "capture", no_argument, NULL, 'C' },
        { "help", no_argument, NULL, 'h' },          { NULL, 0, NULL, 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'd': o.data = optarg; break;
        case 'D': o.depth = (int)whole_number(optarg); break;
        case 'W': o.width = whole_number(optarg); break;
        case 'e': o.epochs = whole_number(optarg); break;
        case 'b': o.batch = whole_number(optarg); break;
        case 'r': o.lr = real_number(optarg); break;
        case 'w': o.weight_decay = real_number(optarg); break;
        case 'm': o.smoothing = real_number(optarg); break;
        case 'c': o.crop = (int)whole_number(optarg); break;
        case 'f': o.no_flip = true; break;
        case 'y': o.sync_bn = true; break;
        case 't': o.threads = (int)whole_number(optarg); break;
        case 's': o.steps = whole_number(optarg); break;
        case 'S': o.save = optarg; break;
        case 'E': o.save_every = whole_number(optarg); break;
        case 'R': o.resume = optarg; break;
        case 'l': o.log = optarg; break;
        case 'x': o.seed = (uint64_t)whole_number(optarg); break;
        case 'l' + 256: o.channels_last = true; break;
        case 'a': o.autocast = strcmp(optarg, "bf16") == 0 ? TD_BF16 : strcmp(optarg, "f32") == 0 ? TD_F32 : (fputs(help, stderr), exit(2), TD_F32); break;
        case 'C': o.capture = true; break;
        case 'h': fputs(help, stdout); exit(0);
        default: fputs(help, stderr); exit(2);
        }
    }
    return o;
}

static td_loader *open_data(const options *o, const char *which, bool train)
{
    char prefix[4096];
    snprintf(prefix, sizeof prefix, "%s/%s", o->data, which);
    td_augment augment = { .mean = (double[]){ 0.2860 }, .std = (double[]){ 0.3530 } };   /* of the training pictures */
    if (train) {
        augment.crop_padding = o->crop;
        augment.flip = !o->no_flip;
    }
    return td_loader_new(td_dataset_idx(prefix), &(td_loader_opts){ .batch = train ? o->batch : 250, .shuffle = train,
                                                                    .threads = o->threads, .augment = augment });
}

/* Weight decay pulls matrices and filters, not the norms' weights and the biases. */
static td_optim *open_optim(const options *o, td_module *net)
{
    td_tensors all = td_parameters(net);
    td_tensor **list = malloc(all.n * sizeof *list);
    size_t decayed = 0, rest = all.n;
    for (size_t i = 0; i < all.n; i++)
        list[td_shape_of(all.list[i]).ndim > 1 ? decayed++ : --rest] = all.list[i];
    td_sgd_opts opts = { .lr = o->lr, .momentum = 0.9, .weight_decay = o->weight_decay, .nesterov = true };
    td_optim *opt = td_sgd_new((td_tensors){ list, decayed }, &opts);
    opts.weight_decay = 0;
    td_sgd_add_group(opt, (td_tensors){ list + decayed, all.n - decayed }, &opts);
    free(list);
    return opt;
}

/* The network's answer to a batch of pictures, laid out and computed as the options say. */
static td_tensor *logits(const options *o, td_module *net, td_tensor *x)
{
    TD_AUTOCAST(o->autocast);
    return td_forward(net, o->channels_last ? td_to_memory_format(x, TD_CHANNELS_LAST) : x);
}

/* Every rank counts the hits of its share; the sums over all ranks are the accuracy. Without --sync-bn each rank's norms have seen its
 * own batches only: all evaluate with rank 0's running statistics, those that td_save writes. */
static double evaluate(const options *o, td_module *net, td_loader *data)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_tensors buffers = td_buffers(net);
    for (size_t i = 0; i < buffers.n; i++)
        td_broadcast(td_world(), buffers.list[i], 0);
    td_train(net, false);
    td_tensor *count = td_zeros(TD_SHAPE(2), TD_F64);
    td_batch b;
    while (td_loader_next(data, &b)) {
        TD_SCOPE();
        td_tensor *hits = td_sum(td_cast(td_eq(td_argmax(logits(o, net, b.x), 1), b.y), TD_F64), NULL, 0, false);
        td_tensor *both = td_from((double[]){ td_item(hits), (double)b.rows }, TD_SHAPE(2), TD_F64);
        td_assign(count, td_add(count, both));
    }
    td_train(net, true);
    td_all_reduce(td_world(), count, TD_SUM);
    return td_at(count, TD_SHAPE(0)) / td_at(count, TD_SHAPE(1));
}

typedef struct { const options *o; td_module *net; td_optim *opt; } training;

static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss;
    {
        TD_AUTOCAST(t->o->autocast);                   /* losses compute in f32 there */
        loss = td_cross_entropy(logits(t->o, t->net, in.list[0]), in.list[1], &(td_cross_entropy_opts){ .label_smoothing = t->o->smoothing });
    }
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

/* FILE.state, beside the weights of --save. */
static void save_state(const options *o, const td_train_state *state)
{
    char path[4096];
    if (!o->save)
        return;
    snprintf(path, sizeof path, "%s.state", o->save);
    td_train_state_save(state, path);
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    td_init(&argc, &argv);
    td_seed(o.seed);
    bool first = td_rank(td_world()) == 0;

    td_module *net = resnet_new(&(resnet_opts){ .depth = o.depth, .width = o.width, .channels = 1, .small_images = true });
    if (!net)
        return td_finish(), 2;
    if (o.sync_bn)
        td_ddp_sync_batch_norm(net, NULL);
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = open_optim(&o, net);
    td_loader *train = open_data(&o, "train", true), *test = open_data(&o, "t10k", false);
    if (first)
        td_summary(net);

    td_train_state state = { .model = net, .optims = &opt, .n_optims = 1, .loader = train, .ddp = ddp };
    if (o.resume)
        td_train_state_load(&state, o.resume);
    int64_t total = o.epochs * td_loader_batches(train), last = o.steps && o.steps < total ? o.steps : total;
    td_progress *progress = td_progress_new(&(td_progress_opts){ .title = "resnet", .steps = last - state.step, .log = o.log, .every_s = 10 });
    captured one = { train_step, &(training){ &o, net, opt }, .on = o.capture };
    td_batch b;
    while (state.step < last) {
        if (!td_loader_next(train, &b)) {   /* the end of an epoch, or an error */
            if (td_error_pending())
                break;
            td_log0("epoch %lld: test accuracy %.4f", (long long)td_loader_epoch(train), evaluate(&o, net, test));
            save_state(&o, &state);
            continue;
        }
        TD_SCOPE();
        td_optim_set_lr(opt, -1, o.lr * td_schedule_one_cycle(state.step++, total, 0.25, 25, 1e4));
        td_tensor *loss = captured_step(&one, (td_tensors){ (td_tensor *[]){ b.x, b.y }, 2 });
        td_progress_step(progress, b.rows, loss, ddp);
        if (o.save_every > 0 && state.step % o.save_every == 0)
            save_state(&o, &state);
    }
    captured_end(&one);
    double seconds = td_progress_end(progress), accuracy = evaluate(&o, net, test);
    td_log0("trained to step %lld on %d ranks in %.1f s", (long long)state.step, td_size(td_world()), seconds);
    td_log0("test accuracy %.4f", accuracy);
    save_state(&o, &state);
    if (o.save && first)
        td_save(net, o.save);
    return td_finish();
}
