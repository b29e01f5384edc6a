/* 07_bert: a BERT encoder learns which part of a collection a text is from, on any number of ranks.
 *
 *     ./prepare.sh data                                                     the King James Bible, eight parts
 *     tandem run -n 2 ./bert --masked-lm --epochs 5 --export base           first: name hidden tokens
 *     tandem run -n 2 ./bert --model base --lr 2e-4 --export fine           then: fine-tune the whole
 *     tandem run -n 2 ./bert --model base --freeze --lr 2e-3                or only what stands behind the encoder
 *     ./bert --help
 *
 * AdamW, no decay of biases and norms; linear warm-up and decline; clipping. --model takes any Hugging Face BERT folder.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "../captured.h"
#include "model.h"
#include "options.h"
#include "texts.h"

typedef struct { texts *train, *valid; wordpiece *pieces; bert *net; int64_t mask, words; } parts;

static void stop(const char *why)
{
    fprintf(stderr, "bert: %s\n", why);
    exit(1);
}

static const char *in(const char *folder, const char *name)
{
    static char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        stop("a path is too long");
    return path;
}

/* ---- opening ------------------------------------------------------------------------------------------------------------- */

static void open_model(parts *p, const options *o)
{
    char why[1024] = "";
    bert_opts opts = { .layers = o->layers, .hidden = o->width, .heads = o->heads, .positions = o->length, .dropout = 0.1 };
    if (o->model && !bert_config_read(in(o->model, "config.json"), &opts, why, sizeof why))
        stop(why);
    if (o->dropout >= 0)
        opts.dropout = o->dropout;
    if (!o->model)
        opts.vocab = wordpiece_count(p->pieces);
    if (opts.vocab < wordpiece_count(p->pieces))
        stop("vocab.txt has more pieces than config.json says");
    if (opts.positions < o->length)
        stop("--length is more than the model has positions");
    opts.masked_lm = opts.no_pooler = o->masked;
    opts.classes = o->masked ? 0 : texts_classes(p->train);
    p->net = bert_new(&opts);
    if (o->model && !bert_load(p->net, in(o->model, "model.safetensors"), why, sizeof why))
        stop(why);
    if (*why)
        td_log0("not in %s, so drawn at random: %s", o->model, why);
    if (o->freeze)
        bert_freeze(p->net);
}

static parts open_parts(const options *o)
{
    parts p = { 0 };
    char why[1024];
    size_t length;
    p.train = texts_read(in(o->data, "train.tsv"), NULL, why, sizeof why);
    if (p.train)
        p.valid = texts_read(in(o->data, "valid.tsv"), p.train, why, sizeof why);
    if (!p.valid)
        stop(why);
    const char *all = texts_all(p.train, &length);
    p.pieces = o->model ? wordpiece_read(in(o->model, "vocab.txt"), why, sizeof why) : wordpiece_build(all, length, o->vocab, why, sizeof why);
    if (!p.pieces)
        stop(why);
    p.mask = wordpiece_id(p.pieces, "[MASK]");
    p.words = wordpiece_count(p.pieces);
    open_model(&p, o);
    return p;
}

/* Weight decay pulls matrices, not biases and norms; frozen parameters are in no group. */
static td_optim *open_optim(const options *o, td_module *net)
{
    td_tensors all = td_parameters(net);
    td_tensor **list = malloc(all.n * sizeof *list);
    if (!list)
        stop("memory cannot be had");
    size_t decayed = 0, rest = all.n;
    for (size_t i = 0; i < all.n; i++)
        if (td_needs_grad(all.list[i]))
            list[td_shape_of(all.list[i]).ndim > 1 ? decayed++ : --rest] = all.list[i];
    td_adamw_opts opts = { .lr = o->lr, .weight_decay = o->decay > 0 ? o->decay : TD_ZERO };
    td_optim *opt = td_adamw_new((td_tensors){ list, decayed }, &opts);
    opts.weight_decay = TD_ZERO;
    td_adamw_add_group(opt, (td_tensors){ list + rest, all.n - rest }, &opts);
    free(list);
    return opt;
}

/* ---- one batch ----------------------------------------------------------------------------------------------------------- */

/* What the host makes of a batch: numbers of pieces, which of them are real; of hidden ones the places and what stood there, else the labels. */
typedef struct { td_tensor *x, *real, *at, *target; } question;

enum { NOBODY = -100 };            /* a target that does not count */

static uint64_t mix(uint64_t x)   /* splitmix64's finaliser */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* BERT's game: of each text 15 % of the tokens are to be named; of these 80 % show [MASK], 10 % some other piece, 10 % themselves. Which ones
 * depends on (seed, step, sample, place) alone. Writes numbers row*tokens + place and what stood there, `room` at most; returns how many. */
static int64_t hide(const parts *p, const td_batch *b, int64_t tokens, uint64_t key, int64_t room, int64_t *ids, int64_t *at, int64_t *target)
{
    const int64_t *sample = td_data(b->sample), *length = td_data(b->field[2]);
    int64_t n = 0;
    for (int64_t r = 0; r < b->rows; r++)
        for (int64_t t = 1; t < length[r] - 1; t++) {
            uint64_t draw = mix(mix(key ^ mix((uint64_t)sample[r])) ^ (uint64_t)t);
            int64_t i = r * tokens + t;
            if (draw % 100 >= 15 || n == room)
                continue;
            at[n] = i;
            target[n++] = ids[i];
            uint64_t how = (draw >> 8) % 10;
            ids[i] = how < 8 ? p->mask : how == 8 ? (int64_t)(mix(draw) % (uint64_t)p->words) : ids[i];
        }
    return n;
}

/* As many columns as the longest text of the batch needs: the rest is padding for all. */
static int64_t longest(const td_batch *b)
{
    const int64_t *length = td_data(b->field[2]);
    int64_t most = 2;
    for (int64_t r = 0; r < b->rows; r++)
        most = length[r] > most ? length[r] : most;
    return most;
}

static question prepare(const parts *p, const options *o, const td_batch *b, uint64_t key)
{
    int64_t tokens = o->pad ? td_dim(b->x, 1) : longest(b), all = b->rows * tokens, width = td_dim(b->x, 1);
    const int64_t *from = td_data(b->x), *length = td_data(b->field[2]);
    int64_t *ids = malloc((size_t)(3 * all + 1) * sizeof *ids), n = 0, room = o->pad ? (all + 3) / 4 : all;
    bool *real = malloc((size_t)all + 1);
    if (!ids || !real)
        stop("memory cannot be had");
    int64_t *at = ids + all, *target = at + all;
    for (int64_t i = 0; i < all; i++) {
        ids[i] = from[i / tokens * width + i % tokens];
        real[i] = i % tokens < length[i / tokens];
    }
    if (o->masked)
        n = hide(p, b, tokens, key, room, ids, at, target);
    for (; o->masked && o->pad && n < room; n++)               /* places that do not count */
        at[n] = 0, target[n] = NOBODY;
    question q = { td_from(ids, TD_SHAPE(b->rows, tokens), TD_I64), td_from(real, TD_SHAPE(b->rows, tokens), TD_BOOL), NULL, b->y };
    if (o->masked) {
        q.at = td_from(at, TD_SHAPE(n), TD_I64);
        q.target = td_from(target, TD_SHAPE(n), TD_I64);
    }
    free(ids);
    free(real);
    return q;
}

static td_tensor *answer(const parts *p, const question *q)
{
    td_tensor *pooled;
    if (q->at)
        return bert_name_tokens(p->net, bert_forward(p->net, q->x, NULL, q->real, NULL), q->at);
    bert_forward(p->net, q->x, NULL, q->real, &pooled);
    return bert_classify(p->net, pooled);
}

static td_tensor *loss_of(td_tensor *logits, const question *q)
{
    return td_cross_entropy(logits, q->target, &(td_cross_entropy_opts){ .has_ignore_index = true, .ignore_index = NOBODY });
}

/* Share of right answers on the texts held out; *loss: their mean cross entropy. Sums over all ranks. */
static double evaluate(const parts *p, const options *o, td_loader *data, double *loss)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_train(&p->net->base, false);
    double sum[3] = { 0 };
    td_batch b;
    while (td_loader_next(data, &b)) {
        TD_SCOPE();
        question q = prepare(p, o, &b, 0);
        int64_t n = 0;
        const int64_t *target = td_data(q.target);
        for (int64_t i = 0; i < td_dim(q.target, 0); i++)
            n += target[i] != NOBODY;
        if (n == 0)
            continue;
        td_tensor *logits = answer(p, &q);
        sum[0] += td_item(td_sum(td_cast(td_eq(td_argmax(logits, 1), q.target), TD_F64), NULL, 0, false));
        sum[1] += td_item(loss_of(logits, &q)) * (double)n;
        sum[2] += (double)n;
    }
    td_train(&p->net->base, true);
    td_tensor *all = td_from(sum, TD_SHAPE(3), TD_F64);
    td_all_reduce(td_world(), all, TD_SUM);
    *loss = td_at(all, TD_SHAPE(1)) / td_at(all, TD_SHAPE(2));
    return td_at(all, TD_SHAPE(0)) / td_at(all, TD_SHAPE(2));
}

/* ---- saving --------------------------------------------------------------------------------------------------------------- */

static void save(const options *o, const td_train_state *state)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.state", o->save);
    td_train_state_save(state, path);
    if (td_rank(td_world()) == 0)
        td_save(state->model, o->save);
}

static void export(const parts *p, const char *folder)
{
    char why[1024];
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        stop(strerror(errno));
    if (!bert_config_write(in(folder, "config.json"), p->net, why, sizeof why))
        stop(why);
    if (!wordpiece_write(p->pieces, in(folder, "vocab.txt")))
        stop(strerror(errno));
    td_save(&p->net->base, in(folder, "model.safetensors"));
}

/* ---- the job -------------------------------------------------------------------------------------------------------------- */

/* Up to 1 in `warmup` steps, then straight down to 0 at `total`. */
static double share_of_rate(int64_t step, int64_t warmup, int64_t total)
{
    return td_schedule_warmup(step, warmup) * (total > warmup ? td_schedule_linear(step - warmup, 1, 0, total - warmup) : 1);
}

typedef struct { const parts *p; const options *o; td_optim *opt; } training;

/* The host's part, prepare(), is over: its numbers are inputs. */
static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    const question q = { in.list[0], in.list[1], in.n > 3 ? in.list[3] : NULL, in.list[2] };
    td_tensor *loss = loss_of(answer(t->p, &q), &q);
    td_backward(loss);
    if (t->o->clip > 0)
        td_clip_grad_norm(t->opt, t->o->clip);
    td_optim_step(t->opt);
    return loss;
}

static void train(const parts *p, const options *o, td_loader *data, td_ddp *ddp, td_optim *opt, td_train_state *state)
{
    int64_t total = o->epochs * td_loader_batches(data), last = o->steps && o->steps < total ? o->steps : total;
    int64_t warmup = o->warmup >= 0 ? o->warmup : total / 10;
    td_progress *progress =
        td_progress_new(&(td_progress_opts){ .title = o->masked ? "masked-lm" : "classify", .steps = last - state->step, .log = o->log });
    captured one = { train_step, &(training){ p, o, opt }, .on = o->capture };
    td_batch b;
    int64_t first = state->step;
    while (state->step < last) {
        if (!td_loader_next(data, &b)) {
            if (td_error_pending())
                break;
            continue;
        }
        TD_SCOPE();
        td_optim_set_lr(opt, -1, o->lr * share_of_rate(state->step, warmup, total));
        question q = prepare(p, o, &b, mix(o->seed + 1) ^ mix((uint64_t)state->step));
        td_tensor *loss = captured_step(&one, (td_tensors){ (td_tensor *[]){ q.x, q.real, q.target, q.at }, q.at ? 4 : 3 });
        state->step++;
        td_progress_step(progress, b.rows, loss, ddp);
    }
    captured_end(&one);
    double seconds = td_progress_end(progress);
    td_log0("trained steps %lld to %lld on %d ranks in %.1f s", (long long)first, (long long)state->step, td_size(td_world()), seconds);
}

int main(int argc, char **argv)
{
    options o = options_parse(argc, argv);
    td_init(&argc, &argv);
    td_seed(o.seed);
    parts p = open_parts(&o);
    td_ddp *ddp = td_ddp_new(&p.net->base, NULL);
    td_optim *opt = open_optim(&o, &p.net->base);
    td_loader *data = td_loader_new(texts_dataset(p.train, p.pieces, o.length), &(td_loader_opts){ .batch = o.batch, .shuffle = true });
    td_loader *valid = td_loader_new(texts_dataset(p.valid, p.pieces, o.length), &(td_loader_opts){ .batch = 64 });
    td_log0("%lld training texts, %lld held out, %lld labels, %lld pieces", (long long)texts_rows(p.train), (long long)texts_rows(p.valid),
            (long long)texts_classes(p.train), (long long)p.words);
    td_train_state state = { .model = &p.net->base, .optims = &opt, .n_optims = 1, .loader = data, .ddp = ddp };
    if (o.resume)
        td_train_state_load(&state, o.resume);
    train(&p, &o, data, ddp, opt, &state);
    if (o.save)
        save(&o, &state);

    double loss, share = evaluate(&p, &o, valid, &loss);
    if (o.masked)
        td_log0("held-out texts: %.4f of the hidden tokens named, loss %.4f", share, loss);
    else
        td_log0("held-out texts: accuracy %.4f, loss %.4f (the commonest label: %.4f)", share, loss, texts_majority(p.valid, p.train));
    if (o.export && td_rank(td_world()) == 0)
        export(&p, o.export);
    wordpiece_free(p.pieces);
    texts_free(p.train);
    texts_free(p.valid);
    return td_finish();
}
