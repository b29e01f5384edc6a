/* 08_lstm: a character language model, LSTM or GRU, by truncated back-propagation through time, on any number of ranks.
 *
 *     tandem run -n 2 ./lstm --save lstm.safetensors                 the King James Bible
 *     ./lstm --load lstm.safetensors --epochs 0 --sample 400         more of the kind
 *     ./lstm --help
 *
 * The text is cut into streams, a batch is the next window of each, and the state that a window ends with, cut out of the graph, begins the next
 * one. Ranks have streams of their own: N ranks with B streams do what one does with N*B.
 */
#include "../captured.h"
#include "../numbers.h"
#include "model.h"
#include "text.h"
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *text, *load, *save, *resume, *log, *prompt;
    lstm_lm_opts model;
    int64_t epochs, batch, window, steps, save_every, sample;
    double lr, clip, validation, temperature;
    uint64_t seed;
    bool capture;
} options;

static const char help[] =
    "lstm: trains a character language model; alone, or with `tandem run -n N`\n"
    "  --text FILE         any bytes; default: what Debian's `bible` prints (package bible-kjv)\n"
    "  --gru               a GRU; default: an LSTM\n"
    "  --width N           of the embedding; default 64\n"
    "  --hidden N          default 256\n"
    "  --layers N          default 2\n"
    "  --dropout X         between layers and before the head; default 0\n"
    "  --epochs N          default 2; 0: only evaluate and sample\n"
    "  --batch N           streams per rank; default 32\n"
    "  --window N          characters per step and stream; default 64\n"
    "  --lr X              peak; a warm-up of 100 steps (a tenth of fewer than 1000), then a cosine down to a tenth; default 0.003\n"
    "  --clip X            the largest norm of the gradient; default 1\n"
    "  --validation X      the last part of the text, kept for validation; default 0.05\n"
    "  --steps N           stop after step N (the schedule stays that of all epochs)\n"
    "  --sample N          characters to sample at the end; default 200\n"
    "  --temperature X     of sampling; default 0.8, 0: always the likeliest\n"
    "  --prompt TEXT       what the sample goes on from; default \"And \"\n"
    "  --load FILE         begin with the weights of FILE\n"
    "  --save FILE         at the end the weights to FILE, as safetensors; the training state to FILE.state, after every\n"
    "                      epoch and at the end\n"
    "  --save-every N      the training state after every N steps, too\n"
    "  --resume FILE       go on from the training state FILE, also in the middle of an epoch\n"
    "  --log FILE          append the progress to FILE\n"
    "  --capture           record the step once and replay it: the same bits\n"
    "  --seed N            default 0\n";

static options parse(int argc, char **argv)
{
    options o = { .epochs = 2, .batch = 32, .window = 64, .lr = 3e-3, .clip = 1, .validation = 0.05, .sample = 200, .temperature = 0.8, .prompt = "And " };
    static const struct option known[] = {
        { "text", required_argument, NULL, 't' },    { "gru", no_argument, NULL, 'g' },           { "width", required_argument, NULL, 'W' },
        { "hidden", required_argument, NULL, 'H' },  { "layers", required_argument, NULL, 'L' },  { "dropout", required_argument, NULL, 'd' },
        { "epochs", required_argument, NULL, 'e' },  { "batch", required_argument, NULL, 'b' },   { "window", required_argument, NULL, 'w' },
        { "lr", required_argument, NULL, 'r' },      { "clip", required_argument, NULL, 'c' },    { "validation", required_argument, NULL, 'v' },
        { "steps", required_argument, NULL, 's' },   { "sample", required_argument, NULL, 'a' },  { "temperature", required_argument, NULL, 'T' },
        { "prompt", required_argument, NULL, 'p' },  { "load", required_argument, NULL, 'i' },    { "save", required_argument, NULL, 'S' },
        { "save-every", required_argument, NULL, 'E' }, { "resume", required_argument, NULL, 'R' }, { "log", required_argument, NULL, 'l' },
        { "seed", required_argument, NULL, 'x' },    { "help", no_argument, NULL, 'h' },          { "capture", no_argument, NULL, 'C' },
        { NULL, 0, NULL, 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 't': o.text = optarg; break;
        case 'g': o.model.gru = true; break;
        case 'W': o.model.width = whole_number(optarg); break;
        case 'H': o.model.hidden = whole_number(optarg); break;
        case 'L': o.model.layers = (int)whole_number(optarg); break;
        case 'd': o.model.dropout = real_number(optarg); break;
        case 'e': o.epochs = whole_number(optarg); break;
        case 'b': o.batch = whole_number(optarg); break;
        case 'w': o.window = whole_number(optarg); break;
        case 'r': o.lr = real_number(optarg); break;
        case 'c': o.clip = real_number(optarg); break;
        case 'v': o.validation = real_number(optarg); break;
        case 's': o.steps = whole_number(optarg); break;
        case 'a': o.sample = whole_number(optarg); break;
        case 'T': o.temperature = real_number(optarg); break;
        case 'p': o.prompt = optarg; break;
        case 'i': o.load = optarg; break;
        case 'S': o.save = optarg; break;
        case 'E': o.save_every = whole_number(optarg); break;
        case 'R': o.resume = optarg; break;
        case 'l': o.log = optarg; break;
        case 'x': o.seed = (uint64_t)whole_number(optarg); break;
        case 'C': o.capture = true; break;
        case 'h': fputs(help, stdout); exit(0);
        default: fputs(help, stderr); exit(2);
        }
    }
    if (o.model.width < 0 || o.model.hidden < 0 || o.model.layers < 0 || o.batch < 1 || o.window < 1 || o.epochs < 0 ||
        !(o.validation > 0 && o.validation < 1) || !(o.temperature >= 0) || !*o.prompt) {
        fputs("lstm: an option has a value that makes no sense\n", stderr);
        exit(2);
    }
    if (!o.model.hidden)
        o.model.hidden = 256;
    if (!o.model.layers)
        o.model.layers = 2;
    return o;
}

/* ---- the carried state ------------------------------------------------------------------------------------------------------- */

/* What the windows so far have left: this rank's h and c (layers,batch,hidden), and all ranks' as they are saved: (streams,layers,hidden), the streams
 * first, as the gathering wants it. */
typedef struct { td_tensor *state[2], *all[2]; int n; } carried;

static carried carried_new(const options *o)
{
    carried c = { .n = o->model.gru ? 1 : 2 };
    for (int i = 0; i < c.n; i++) {
        c.state[i] = td_keep(td_zeros(TD_SHAPE(o->model.layers, o->batch, o->model.hidden), TD_F32));
        c.all[i] = td_keep(td_zeros(TD_SHAPE(td_size(td_world()) * o->batch, o->model.layers, o->model.hidden), TD_F32));
    }
    return c;
}

static void carried_free(carried *c)
{
    for (int i = 0; i < c->n; i++) {
        td_release(c->state[i]);
        td_release(c->all[i]);
    }
}

static void carried_reset(carried *c)
{
    for (int i = 0; i < c->n; i++)
        td_fill(c->state[i], 0);
}

static void carried_gather(carried *c)
{
    TD_SCOPE();
    for (int i = 0; i < c->n; i++)
        td_all_gather(td_world(), c->all[i], td_contiguous(td_transpose(c->state[i], 0, 1)));
}

static void carried_take(carried *c)
{
    TD_SCOPE();
    for (int i = 0; i < c->n; i++) {
        const int64_t batch = td_dim(c->state[i], 1);
        td_assign(c->state[i], td_transpose(td_narrow(c->all[i], 0, td_rank(td_world()) * batch, batch), 0, 1));
    }
}

/* The loss of a batch from the carried state, which goes on to this window's end. */
static td_tensor *window_loss(td_module *net, td_tensor *x, td_tensor *y, carried *c, td_tensor *end[2])
{
    end[0] = c->state[0];
    end[1] = c->state[1];
    td_tensor *logits = lstm_lm_forward(net, x, &end[0], &end[1]);
    return td_cross_entropy(logits, td_reshape(y, TD_SHAPE(-1)), NULL);
}

/* The values alone, when the graph that has read the old ones is gone: here back-propagation is truncated. */
static void carried_go_on(carried *c, td_tensor *const end[2])
{
    for (int i = 0; i < c->n; i++)
        td_assign(c->state[i], td_detach(end[i]));
}

/* ---- evaluation and sampling -------------------------------------------------------------------------------------------------- */

/* Bits per character over the validation text, by all ranks, from a state of zeros. */
static double evaluate(const options *o, td_module *net, td_loader *data)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_train(net, false);
    carried c = carried_new(o);
    td_tensor *sum = td_zeros(TD_SHAPE(2), TD_F64), *end[2];
    td_batch b;
    while (td_loader_next(data, &b)) {
        TD_SCOPE();
        const double loss = td_item(window_loss(net, b.x, b.y, &c, end)), n = (double)td_numel(b.y);
        carried_go_on(&c, end);
        td_assign(sum, td_add(sum, td_from((double[]){ loss * n, n }, TD_SHAPE(2), TD_F64)));
    }
    td_train(net, true);
    carried_free(&c);
    td_all_reduce(td_world(), sum, TD_SUM);
    return td_at(sum, TD_SHAPE(0)) / td_at(sum, TD_SHAPE(1)) / log(2);
}

/* One of n by softmax(logits / temperature) and a uniform number u; the likeliest at temperature 0. */
static int64_t pick(const float *logits, int64_t n, double temperature, double u)
{
    int64_t best = 0;
    double sum = 0;
    for (int64_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    if (temperature == 0)
        return best;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)(logits[i] - logits[best]) / temperature);
    u *= sum;
    for (int64_t i = 0; i < n; i++)
        if ((u -= exp((double)(logits[i] - logits[best]) / temperature)) < 0)
            return i;
    return best;
}

static void sample(const options *o, td_module *net)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_train(net, false);
    td_tensor *end[2] = { NULL, NULL }, *u = td_rand(TD_SHAPE(o->sample), o->seed, 1);
    const size_t given = strlen(o->prompt);
    int64_t *ids = calloc(given, sizeof *ids), n = (int64_t)given;
    if (!ids)
        return;
    for (size_t i = 0; i < given; i++)
        ids[i] = (unsigned char)o->prompt[i];
    printf("---\n%s", o->prompt);
    for (int64_t i = 0; i < o->sample && !td_error_pending(); i++) {
        TD_SCOPE();                                            /* the state alone outlives the step                          */
        td_tensor *logits = lstm_lm_forward(net, td_from(ids, TD_SHAPE(1, n), TD_I64), &end[0], &end[1]);
        const float *last = (const float *)td_data(logits);
        if (!last)
            break;
        ids[0] = pick(last + (n - 1) * td_dim(logits, 1), td_dim(logits, 1), o->temperature, td_at(u, TD_SHAPE(i)));
        n = 1;
        putchar((int)ids[0]);
        td_escape(end[0]);
        if (!o->model.gru)
            td_escape(end[1]);
    }
    printf("\n---\n");
    free(ids);
    td_train(net, true);
}

/* ---- training --------------------------------------------------------------------------------------------------------------------- */

typedef struct { const options *o; td_module *net; td_optim *opt; carried *c; } training;

/* The carried state is written in place, so a replay goes on from it like a call. */
static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *end[2], *loss = window_loss(t->net, in.list[0], in.list[1], t->c, end);
    td_backward(loss);
    carried_go_on(t->c, end);
    if (t->o->clip > 0)
        td_clip_grad_norm(t->opt, t->o->clip);
    td_optim_step(t->opt);
    return loss;
}

/* FILE.state, beside the weights of --save: every rank's streams among them. */
static void save_state(const options *o, const td_train_state *state, carried *c)
{
    char path[4096];
    if (!o->save)
        return;
    carried_gather(c);
    snprintf(path, sizeof path, "%s.state", o->save);
    td_train_state_save(state, path);
}

static void report(const options *o, td_module *net, td_loader *data, const char *when)
{
    const double bits = evaluate(o, net, data);
    td_log0("%s: validation %.4f bits per character (perplexity %.3f)", when, bits, exp2(bits));
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    td_init(&argc, &argv);
    td_seed(o.seed);
    const bool first = td_rank(td_world()) == 0;
    const int64_t streams = o.batch * td_size(td_world());
    text t = text_read(o.text);
    const int64_t split = t.n - (int64_t)((double)t.n * o.validation);

    td_module *net = lstm_lm_new(&o.model);
    if (o.load)
        td_load(net, o.load, NULL);
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = o.lr });
    td_loader *train = td_loader_new(text_streams(&t, 0, split, streams, o.window), &(td_loader_opts){ .batch = o.batch });
    td_loader *rest = td_loader_new(text_streams(&t, split, t.n, streams, o.window), &(td_loader_opts){ .batch = o.batch });
    carried c = carried_new(&o);
    if (first)
        td_summary(net);

    const td_named extra[] = { { "h", c.all[0] }, { "c", c.all[1] } };
    td_train_state state = { .model = net, .optims = &opt, .n_optims = 1, .loader = train, .ddp = ddp, .extra = extra, .n_extra = (size_t)c.n };
    if (o.resume && td_train_state_load(&state, o.resume) == 0)
        carried_take(&c);
    const int64_t total = o.epochs * td_loader_batches(train), last = o.steps && o.steps < total ? o.steps : total;
    td_progress *progress = td_progress_new(&(td_progress_opts){ .title = o.model.gru ? "gru" : "lstm", .steps = last - state.step, .log = o.log,
                                                                 .every_s = 10 });
    captured one = { train_step, &(training){ &o, net, opt, &c }, .on = o.capture };
    td_batch b;
    while (state.step < last) {
        if (!td_loader_next(train, &b)) {   /* the end of an epoch, or an error */
            if (td_error_pending())
                break;
            char when[40];
            snprintf(when, sizeof when, "epoch %lld", (long long)td_loader_epoch(train));
            report(&o, net, rest, when);
            carried_reset(&c);              /* the streams begin anew */
            save_state(&o, &state, &c);
            continue;
        }
        TD_SCOPE();
        td_optim_set_lr(opt, -1, o.lr * td_schedule_cosine(state.step++, total < 1000 ? total / 10 : 100, total, 0.1));
        td_tensor *loss = captured_step(&one, (td_tensors){ (td_tensor *[]){ b.x, b.y }, 2 });
        td_progress_step(progress, b.rows * o.window, loss, ddp);
        if (o.save_every > 0 && state.step % o.save_every == 0)
            save_state(&o, &state, &c);
    }
    captured_end(&one);
    const double seconds = td_progress_end(progress);
    td_log0("trained to step %lld on %d ranks in %.1f s", (long long)state.step, td_size(td_world()), seconds);
    save_state(&o, &state, &c);
    if (o.save && first)
        td_save(net, o.save);
    report(&o, net, rest, "end");
    if (first && o.sample > 0)
        sample(&o, net);
    carried_free(&c);
    const int status = td_finish();
    free(t.byte);
    return status;
}
