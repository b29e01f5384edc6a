/* 10_own_algorithm: local SGD in two levels, written with the public communicator alone. No td_ddp: every rank trains a replica of its own for some steps, and now
 * and then weights, not gradients, cross.
 *
 *     mpirun -n 8 -H a:4,b:4 ./local_sgd --inner 4 --outer 32       averaged within each host every 4 steps, over all every 32
 *     tandem run -n 2 ./local_sgd --outer 16 --delay 4              the average is started, 4 steps later it arrives
 *
 * Stich 2019 (local SGD), Lin et al. 2020 (its hierarchical form), Zhou et al. 2020 (delayed averaging). With --outer 1 and --momentum 0 it is plain data-parallel
 * SGD. Options: --data DIR, --epochs N, --steps N, --batch N (per rank), --lr X, --momentum X, --inner N, --outer N, --delay N,
 * --capture (each rank's own step is recorded once and replayed; averages go on from where weights lie), --save FILE (the weights).
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "../captured.h"
#include "../numbers.h"

typedef struct {
    const char *data, *save;
    bool capture;
    int epochs;
    int64_t batch, steps, inner, outer, delay;
    double lr, momentum;
} options;

static options parse(int argc, char **argv)
{
    options o = { .data = "/usr/share/datasets/fashion-mnist", .epochs = 3, .batch = 64, .outer = 16, .lr = 0.05, .momentum = 0.9 };
    static const struct option known[] = {
        { "data", required_argument, NULL, 'd' },  { "epochs", required_argument, NULL, 'e' }, { "batch", required_argument, NULL, 'b' },
        { "steps", required_argument, NULL, 's' }, { "lr", required_argument, NULL, 'r' },     { "momentum", required_argument, NULL, 'm' },
        { "inner", required_argument, NULL, 'i' }, { "outer", required_argument, NULL, 'o' },  { "delay", required_argument, NULL, 'y' },
        { "capture", no_argument, NULL, 'c' },     { "save", required_argument, NULL, 'S' },   { 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'd': o.data = optarg; break;
        case 'e': o.epochs = (int)whole_number(optarg); break;
        case 'b': o.batch = whole_number(optarg); break;
        case 's': o.steps = whole_number(optarg); break;
        case 'r': o.lr = real_number(optarg); break;
        case 'm': o.momentum = real_number(optarg); break;
        case 'i': o.inner = whole_number(optarg); break;
        case 'o': o.outer = whole_number(optarg); break;
        case 'y': o.delay = whole_number(optarg); break;
        case 'c': o.capture = true; break;
        case 'S': o.save = optarg; break;
        default: exit(2);
        }
    }
    if (o.outer < 1 || o.delay >= o.outer) {
        fprintf(stderr, "local_sgd: --outer must be 1 or more, and --delay less than it\n");
        exit(2);
    }
    return o;
}

/* ---- averaging --------------------------------------------------------------------------------------------------------------------------------------- */

/* All weights one behind the other, in memory that collectives stage nothing of, so that an average is one collective. */
typedef struct {
    td_comm   *comm;
    td_tensors weights;
    td_tensor *flat, *sent;            /* sent: what was given to the collective                                             */
    td_work   *work;
    bool       late;                   /* averages arrive some steps after their start                                       */
    int64_t    averages;
} averager;

static void averager_open(averager *a, td_comm *comm, td_module *net, bool late)
{
    *a = (averager){ .comm = comm, .weights = td_parameters(net), .late = late };
    int64_t n = 0;
    for (size_t i = 0; i < a->weights.n; i++)
        n += td_numel(a->weights.list[i]);
    a->flat = td_keep(td_zeros_shared(comm, TD_SHAPE(n), TD_F32));
    a->sent = td_keep(td_zeros(TD_SHAPE(late ? n : 0), TD_F32));
}

static td_tensor *place(const averager *a, td_tensor *flat, size_t i, int64_t *at)
{
    td_tensor *w = a->weights.list[i], *here = td_reshape(td_narrow(flat, 0, *at, td_numel(w)), td_shape_of(w));
    *at += td_numel(w);
    return here;
}

static void average_start(averager *a)
{
    TD_SCOPE();
    TD_NO_GRAD();
    int64_t at = 0;
    for (size_t i = 0; i < a->weights.n; i++)
        td_assign(place(a, a->flat, i, &at), a->weights.list[i]);
    if (a->late)
        td_assign(a->sent, a->flat);
    a->work = td_all_reduce_start(a->comm, a->flat, TD_MEAN);
    a->averages++;
}

/* At once: the average becomes the weights. Late: what the rank has learnt meanwhile stays, w += average - what was sent. */
static void average_finish(averager *a)
{
    TD_SCOPE();
    TD_NO_GRAD();
    if (!a->work || td_wait(a->work))
        return;
    a->work = NULL;
    int64_t at = 0, same = 0;
    for (size_t i = 0; i < a->weights.n; i++) {
        td_tensor *w = a->weights.list[i], *mean = place(a, a->flat, i, &at);
        td_assign(w, a->late ? td_add(w, td_sub(mean, place(a, a->sent, i, &same))) : mean);
    }
}

static void averager_close(averager *a)
{
    average_finish(a);
    td_release(a->flat);
    td_release(a->sent);
}

/* The ranks of this host: their color is a number made of its name. */
static td_comm *host_of(td_comm *world)
{
    char name[256] = "";
    unsigned color = 5381;
    gethostname(name, sizeof name - 1);
    for (const char *c = name; *c; c++)
        color = color * 33 + (unsigned char)*c;
    return td_comm_split(world, (int)(color & 0x7fffffff), td_rank(world));
}

/* ---- training ------------------------------------------------------------------------------------------------------------------------------------------- */

static td_loader *open_data(const options *o, const char *which, bool train)
{
    char prefix[4096];
    snprintf(prefix, sizeof prefix, "%s/%s", o->data, which);
    return td_loader_new(td_dataset_idx(prefix), &(td_loader_opts){ .batch = train ? o->batch : 250, .shuffle = train });
}

static double evaluate(td_module *net, td_loader *data)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_tensor *count = td_zeros(TD_SHAPE(2), TD_F64);
    td_batch b;
    while (td_loader_next(data, &b)) {
        TD_SCOPE();
        td_tensor *hits = td_sum(td_cast(td_eq(td_argmax(td_forward(net, b.x), 1), b.y), TD_F64), NULL, 0, false);
        td_assign(count, td_add(count, td_from((double[]){ td_item(hits), (double)b.rows }, TD_SHAPE(2), TD_F64)));
    }
    td_all_reduce(td_world(), count, TD_SUM);
    return td_at(count, TD_SHAPE(0)) / td_at(count, TD_SHAPE(1));
}

static double norm_of(td_tensors weights)
{
    TD_SCOPE();
    TD_NO_GRAD();
    double sum = 0;
    for (size_t i = 0; i < weights.n; i++) {
        td_tensor *w = td_cast(weights.list[i], TD_F64);
        sum += td_item(td_sum(td_mul(w, w), NULL, 0, false));
    }
    return sum;
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
    td_comm *world = td_world(), *host = host_of(world);
    td_module *net = td_nn_sequential(
        td_nn_conv2d(1, 16, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),
        td_nn_conv2d(16, 32, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),
        td_nn_flatten(), td_nn_linear(32 * 7 * 7, 128, NULL), td_nn_relu(), td_nn_linear(128, 10, NULL));
    td_tensors weights = td_parameters(net);
    for (size_t i = 0; i < weights.n; i++)             /* all begin where rank 0 does */
        td_broadcast(world, weights.list[i], 0);
    td_optim *opt = td_sgd_new(weights, &(td_sgd_opts){ .lr = o.lr, .momentum = o.momentum });
    td_loader *train = open_data(&o, "train", true), *test = open_data(&o, "t10k", false);
    averager inside, over;
    averager_open(&inside, host, net, false);
    averager_open(&over, world, net, o.delay > 0);

    int64_t total = o.epochs * td_loader_batches(train), step = 0;
    if (o.steps && o.steps < total)
        total = o.steps;
    td_progress *progress = td_progress_new(&(td_progress_opts){ .title = "local_sgd", .steps = total });
    captured one = { train_step, &(training){ net, opt }, .on = o.capture };
    td_batch b;
    while (step < total && !td_error_pending()) {
        if (!td_loader_next(train, &b))
            continue;
        TD_SCOPE();
        td_optim_set_lr(opt, -1, o.lr * td_schedule_cosine(step++, 50, total, 0.02));
        td_tensor *loss = captured_step(&one, (td_tensors){ (td_tensor *[]){ b.x, b.y }, 2 });
        if (step % o.outer == o.delay % o.outer && over.work)
            average_finish(&over);
        if (step % o.outer == 0) {
            average_start(&over);
            if (o.delay == 0)
                average_finish(&over);
        } else if (o.inner && step % o.inner == 0) {
            average_start(&inside);
            average_finish(&inside);
        }
        td_progress_step(progress, b.rows, loss, NULL);
    }
    captured_end(&one);
    average_finish(&over);                             /* in the end all agree */
    over.late = false;
    average_start(&over);
    average_finish(&over);
    double seconds = td_progress_end(progress), accuracy = evaluate(net, test), norm = norm_of(weights);
    if (td_rank(world) == 0)
        printf("trained %lld steps on %d ranks in %.1f s: %lld averages over all, %lld within this host of %d\n"
               "bytes over all per step %.0f, an all-reduce in each step %lld\nweights squared %.9f\ntest accuracy %.4f\n",
               (long long)step, td_size(world), seconds, (long long)over.averages, (long long)inside.averages, td_size(host),
               4.0 * (double)(td_numel(over.flat) * over.averages) / (double)(step ? step : 1), (long long)(4 * td_numel(over.flat)), norm, accuracy);
    if (o.save && td_rank(world) == 0)
        td_save(net, o.save);
    averager_close(&inside);
    averager_close(&over);
    td_comm_free(host);
    return td_finish();
}
