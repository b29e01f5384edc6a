/* train.c: trains a GPT-2 of any shape on bytes or token ids, on any number of ranks. README.md has commands and figures;
 * ./gpt --help lists the options.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "../captured.h"
#include "options.h"

typedef struct {
    options o;
    gpt *net;
    td_ddp *ddp;
    td_optim *opt;
    td_scaler *scaler;                         /* f16 only                                                              */
    td_loader *train, *valid;
    td_tensor *norm;                           /* of the last step's gradient, written by the step                         */
    captured micro[2];                         /* a micro-batch; the last one, and what follows it                         */
    double peak;                               /* all ranks' matrix products together, FLOP/s                           */
    FILE *log;
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The same sums on every rank. */
static void over_ranks(double *values, int n)
{
    TD_SCOPE();
    td_tensor *v = td_from(values, TD_SHAPE(n), TD_F64);
    td_all_reduce(td_world(), v, TD_SUM);
    td_copy_out(v, values, (size_t)n * sizeof *values);
}

/* What matrix products alone reach here, all ranks at once: the best of a few f32 products of 1024 x 1024. */
static double measure_peak(void)
{
    enum { SIZE = 1024, TIMES = 6 };
    TD_SCOPE();
    TD_NO_GRAD();
    double best = INFINITY;
    td_tensor *a = td_randn(TD_SHAPE(SIZE, SIZE), 1, 0), *b = td_randn(TD_SHAPE(SIZE, SIZE), 1, 1);
    td_barrier(td_world());
    for (int i = 0; i < TIMES; i++) {
        TD_SCOPE();
        double since = now();
        td_item(td_narrow(td_reshape(td_matmul(a, b), TD_SHAPE(-1)), 0, 0, 1));
        best = fmin(best, now() - since);
    }
    double peak = 2.0 * SIZE * SIZE * SIZE / best;
    over_ranks(&peak, 1);
    return peak;
}

/* Matrices and tables decay, vectors (biases, norms) do not. */
static td_optim *make_optimizer(const options *o, gpt *net)
{
    td_tensors all = td_parameters(&net->base);
    td_tensor **list = malloc(2 * all.n * sizeof *list), **vectors = list + all.n;
    size_t n = 0, n_vectors = 0;
    if (!list)
        exit(1);
    for (size_t i = 0; i < all.n; i++) {
        if (td_shape_of(all.list[i]).ndim >= 2)
            list[n++] = all.list[i];
        else
            vectors[n_vectors++] = all.list[i];
    }
    td_adamw_opts opts = { .lr = o->lr > 0 ? o->lr : TD_ZERO, .beta2 = o->beta2 > 0 ? o->beta2 : TD_ZERO,
                           .weight_decay = o->decay > 0 ? o->decay : TD_ZERO };
    td_optim *opt = td_adamw_new((td_tensors){ list, n }, &opts);
    opts.weight_decay = TD_ZERO;
    td_adamw_add_group(opt, (td_tensors){ vectors, n_vectors }, &opts);
    free(list);
    return opt;
}

static td_loader *open_data(const options *o, bool train)
{
    const char *path = train || !o->valid ? o->data : o->valid;
    td_tokens_opts part = { .context = o->shape.context, .vocab = o->shape.vocab, .kind = o->kind };
    if (!o->valid && train)
        part.to = 0.9;
    else if (!o->valid)
        part.from = 0.9;
    return td_loader_new(td_dataset_tokens(&path, 1, &part), &(td_loader_opts){ .batch = o->batch, .shuffle = train });
}

/* The mean loss of the first --valid-batches batches, over all ranks. */
static double validate(job *j)
{
    TD_SCOPE();
    TD_NO_GRAD();
    double sums[2] = { 0 };
    td_batch b;
    td_train(&j->net->base, false);
    td_loader_set_epoch(j->valid, 0);
    for (int64_t i = 0; i < j->o.valid_batches && td_loader_next(j->valid, &b); i++) {
        TD_SCOPE();
        if (b.rows == 0)
            continue;
        sums[0] += td_item(gpt_loss(j->net, b.x, b.y)) * (double)b.rows;
        sums[1] += (double)b.rows;
    }
    td_train(&j->net->base, true);
    over_ranks(sums, 2);
    return sums[0] / sums[1];
}

/* What --capture records: nothing here waits for a number. */
static td_tensor *micro_step(td_tensors in, void *user)
{
    job *j = user;
    TD_AUTOCAST(j->o.amp);
    td_tensor *loss = gpt_loss(j->net, in.list[0], in.list[1]);
    td_backward(j->scaler ? td_scaler_scale(j->scaler, loss) : loss);
    return loss;
}

/* The norm stays a tensor: who reports it reads it after the step. */
static td_tensor *last_step(td_tensors in, void *user)
{
    job *j = user;
    td_tensor *loss = micro_step(in, j);
    if (j->scaler)                             /* decides on the host whether to step: not to be captured                   */
        return loss;
    if (j->o.clip > 0)
        td_assign(j->norm, td_clip_grad_norm_async(j->opt, j->o.clip));
    td_optim_step(j->opt);
    return loss;
}

/* One optimizer step; returns the mean loss over its rows and all ranks, and adds the rows of all to *rows. */
static double train_step(job *j, int64_t step, double *rows, double *norm)
{
    const options *o = &j->o;
    double sums[2] = { 0 };
    td_batch b;
    td_optim_set_lr(j->opt, -1, o->lr * td_schedule_cosine(step, o->warmup, o->steps, 0.1));
    for (int64_t micro = 0; micro < o->accumulate; micro++) {
        while (!td_loader_next(j->train, &b))
            if (td_error_pending())
                return NAN;
        TD_SCOPE();
        const bool last = micro == o->accumulate - 1;
        td_ddp_no_sync(j->ddp, !last);
        td_tensor *loss = captured_step(&j->micro[last], (td_tensors){ (td_tensor *[]){ b.x, b.y }, 2 });
        if (b.rows > 0)
            sums[0] += td_item(loss) * (double)b.rows;
        sums[1] += (double)b.rows;
    }
    if (j->scaler) {
        td_scaler_unscale(j->scaler, j->opt);
        if (o->clip > 0)
            *norm = td_clip_grad_norm(j->opt, o->clip);
        td_scaler_step(j->scaler, j->opt);
        td_scaler_update(j->scaler);
    } else if (o->clip > 0) {
        *norm = td_item(j->norm);
    }
    over_ranks(sums, 2);
    *rows += sums[1];
    return sums[0] / sums[1];
}

static td_train_state state_of(job *j, int64_t step)
{
    return (td_train_state){ .model = &j->net->base, .optims = &j->opt, .n_optims = 1, .loader = j->train, .scaler = j->scaler, .ddp = j->ddp,
                             .step = step };
}

static void save_state(job *j, int64_t step)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.state", j->o.save);
    td_train_state state = state_of(j, step);
    td_train_state_save(&state, path);
}

static void say_what(job *j)
{
    const gpt_opts *s = &j->net->opts;
    td_log0("gpt: %lld layers, %lld heads, %lld wide, context %lld, vocab %lld: %.2f M parameters", (long long)s->layers, (long long)s->heads,
            (long long)s->width, (long long)s->context, (long long)s->vocab, 1e-6 * (double)gpt_parameters(j->net));
    td_log0("%lld steps of %lld rows on %d ranks; matrix products reach %.1f GFLOP/s", (long long)j->o.steps,
            (long long)(j->o.batch * j->o.accumulate * td_size(td_world())), td_size(td_world()), 1e-9 * j->peak);
}

static void train(job *j, int64_t step)
{
    const options *o = &j->o;
    const int64_t end = o->stop && o->stop < o->steps ? o->stop : o->steps;
    const double flops = gpt_flops_per_token(j->net, o->shape.context);
    double since = now(), rows = 0, norm = NAN;
    while (step < end && !td_error_pending()) {
        double loss = train_step(j, step++, &rows, &norm);
        if (j->log)
            fprintf(j->log, "%lld %.9g\n", (long long)step, loss), fflush(j->log);
        if (step % o->every == 0 || step == end) {
            double speed = rows * (double)o->shape.context / (now() - since);
            td_log0("step %lld: loss %.4f, gradient %.2f, %.0f tokens/s, %.0f %% of the matrix peak", (long long)step, loss, norm, speed,
                    100 * speed * flops / j->peak);
            since = now(), rows = 0;
        }
        bool last = step == end;
        if (last || (o->valid_every && step % o->valid_every == 0)) {
            td_log0("step %lld: validation loss %.4f", (long long)step, validate(j));
            since = now(), rows = 0;
        }
        if (o->save && (last || (o->save_every && step % o->save_every == 0)))
            save_state(j, step);
    }
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    job j = { .o = options_parse(argc, argv) };
    td_seed(j.o.seed);
    j.net = gpt_new(&j.o.shape);
    if (!j.net)
        return td_finish(), 2;
    if (j.o.load && gpt_load(j.net, j.o.load) != 0)
        return td_finish(), 2;
    j.peak = measure_peak();
    j.train = open_data(&j.o, true);
    j.valid = open_data(&j.o, false);
    j.ddp = td_ddp_new(&j.net->base, NULL);
    j.opt = make_optimizer(&j.o, j.net);
    j.scaler = j.o.amp == TD_F16 ? td_scaler_new(NULL) : NULL;
    j.norm = td_zeros(TD_SCALAR, TD_F64);
    j.micro[0] = (captured){ micro_step, &j, .on = j.o.capture };
    j.micro[1] = (captured){ last_step, &j, .on = j.o.capture };
    td_train_state state = state_of(&j, 0);
    if (j.o.resume && td_train_state_load(&state, j.o.resume) != 0)
        return td_finish();
    if (j.o.log && td_rank(td_world()) == 0 && !(j.log = fopen(j.o.log, state.step ? "a" : "w")))
        perror(j.o.log);
    say_what(&j);
    train(&j, state.step);
    captured_end(&j.micro[0]);
    captured_end(&j.micro[1]);
    if (j.o.save && td_rank(td_world()) == 0 && !td_error_pending())
        gpt_save(j.net, j.o.save);
    if (j.log)
        fclose(j.log);
    td_scaler_free(j.scaler);
    return td_finish();
}
