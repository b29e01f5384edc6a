/* tests/ddp/ddp_sharded.c: shard_optimizer (ZeRO-1) gives the weights of the plain optimizer on as many ranks, bit for bit, with 1/ranks of its state.
 * Started on 2, 3 and 4 ranks by tandem run, and on 2 and 3 by mpirun over MPI, where more than two ranks' sums may come in another order:
 * there the difference is bounded. TAP on rank 0's standard output.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <ddp_impl.h>
#include "rules.h"

#define EXPECT(condition) expect_((condition), #condition, NULL, __LINE__)

enum { STEPS = 6, ROOM = 1 << 15 };
typedef enum {
    CLIP = 1, SCALER = 2, EMA = 4, NARROW = 8, DOUBLE = 16, TWO = 32, READ = 64, AGAIN = 128, ASYNC = 256, STATE = 512, LOAD = 1024, CAPTURE = 2048,
    BAD = 4096, POWER = 8192
} flags;

static bool exact;                                     /* sums in rank order: shared memory, or two ranks                     */
static bool shm;                                       /* there the plain optimizer's state is sliced, too                      */
static char path[128];

/* ---- a job --------------------------------------------------------------------------------------------------------------------- */

typedef struct { net *m; td_ddp *ddp; td_optim *opt[2]; td_ema *ema; td_scaler *scaler; flags f; double norms; } job;

static void begin(job *j, rule r, flags f, bool shard, uint64_t seed)
{
    *j = (job){ .f = f };
    td_seed(~seed);
    td_seed(seed);
    td_step_set(0);
    j->m = net_new(f & DOUBLE ? TD_F64 : TD_F32);
    for (size_t i = 0; i < td_parameters(&j->m->base).n; i++) {
        TD_SCOPE();
        td_tensor *p = td_parameters(&j->m->base).list[i];
        td_assign(p, td_cast(td_scale(td_randn(td_shape_of(p), seed, i), 0.3), td_dtype_of(p)));
    }
    td_tensors p = td_parameters(&j->m->base);
    const size_t half = p.n / 2;
    td_ddp_opts o = { .bucket_bytes = 2500, .first_bucket_bytes = 300, .shard_optimizer = shard, .gradient_dtype = f & NARROW ? TD_BF16 : TD_F32 };
    const bool later = seed % 2;                       /* the optimizer comes before or after the ddp                              */
    if (later)
        j->ddp = td_ddp_new(&j->m->base, &o);
    if (f & TWO) {
        j->opt[0] = optimizer(r, (td_tensors){ p.list, 2 }, (td_tensors){ p.list + 2, half - 2 });
        j->opt[1] = optimizer(r == ADAMW ? SGD : ADAMW, (td_tensors){ p.list + half, 3 }, (td_tensors){ p.list + half + 3, p.n - half - 3 });
    } else {
        j->opt[0] = optimizer(r, (td_tensors){ p.list, half }, (td_tensors){ p.list + half, p.n - half });
    }
    if (!later)
        j->ddp = td_ddp_new(&j->m->base, &o);
    if (f & POWER)
        td_ddp_power_sgd_hook(j->ddp, &(td_power_sgd_opts){ .rank = 2 });
    j->ema = f & EMA ? td_ema_new(p, 0.7) : NULL;
    j->scaler = f & SCALER ? td_scaler_new(&(td_scaler_opts){ .init_scale = 1024, .growth_interval = 2 }) : NULL;
}

static void end(job *j)
{
    td_ema_free(j->ema);
    td_scaler_free(j->scaler);
    td_ddp_free(j->ddp);
    td_optim_free(j->opt[0]);
    td_optim_free(j->opt[1]);
    td_module_free(&j->m->base);
}

static double sum_of_gradients(net *m)
{
    double sum = 0;
    td_tensors p = td_parameters(&m->base);
    for (size_t i = 0; i < p.n; i++) {
        TD_SCOPE();
        td_tensor *g = td_grad(p.list[i]);
        sum += g ? td_item(td_sum(td_mul(td_cast(g, TD_F64), td_cast(g, TD_F64)), NULL, 0, false)) : 0;
    }
    return sum;
}

static td_tensor *loss_of(job *j, const td_tensors in, size_t i)
{
    td_tensor *x = in.list[i];
    td_tensor *y = forward(j->m, x);
    td_tensor *loss = td_mse(y, in.list[2]);
    return j->f & SCALER ? td_scaler_scale(j->scaler, loss) : loss;
}

static void add_norm(job *j, double norm)
{
    j->norms += isfinite(norm) ? norm : 1;
}

static td_tensor *step(td_tensors in, void *user)
{
    job *j = user;
    td_tensor *loss = NULL;
    for (size_t i = 0; i < 2; i++) {                   /* accumulated here, or reduced twice                                  */
        td_ddp_no_sync(j->ddp, i == 0 && !(j->f & AGAIN));
        loss = loss_of(j, in, i);
        td_backward(loss);
    }
    if (j->f & READ)
        j->norms += sum_of_gradients(j->m);
    for (int k = 0; k < 2 && j->opt[k]; k++) {
        if (j->f & SCALER && j->f & CLIP)
            td_scaler_unscale(j->scaler, j->opt[k]);
        if (j->f & CLIP)
            add_norm(j, td_clip_grad_norm(j->opt[k], 0.3));
        if (j->f & ASYNC)
            add_norm(j, td_item(td_clip_grad_norm_async(j->opt[k], 0.3)));
        if (j->f & READ && j->f & CLIP)
            j->norms += sum_of_gradients(j->m);
    }
    for (int k = 0; k < 2 && j->opt[k]; k++)
        j->f & SCALER ? td_scaler_step(j->scaler, j->opt[k]) : td_optim_step(j->opt[k]);
    if (j->f & SCALER)
        td_scaler_update(j->scaler);
    if (j->f & EMA)
        td_ema_update(j->ema);
    return loss;
}

static void train(job *j, int from, int to)
{
    td_graph *graph = NULL;
    for (int s = from; s < to; s++) {
        TD_SCOPE();
        td_tensor *in[3];
        for (int i = 0; i < 3; i++)
            in[i] = td_randn(TD_SHAPE(ROWS, WIDTH), (uint64_t)(3 + i), (uint64_t)(100 * s + rank));
        if (j->f & BAD && s == 2)
            td_fill(in[1], rank == size - 1 ? INFINITY : 1);
        td_tensors list = { in, 3 };
        if (!(j->f & CAPTURE))
            step(list, j);
        else if (!graph)
            graph = td_capture(step, j, list, &(td_capture_opts){ .verify = 2 });
        else
            EXPECT(!td_is_poisoned(td_replay(graph, list)));
    }
    td_graph_free(graph);
}

static size_t note(job *j, float *into)
{
    TD_SCOPE();
    size_t n = 0;
    td_tensors p = td_parameters(&j->m->base);
    for (int swap = 0; swap < (j->ema ? 2 : 1); swap++) {
        for (size_t i = 0; i < p.n; i++) {
            const size_t count = (size_t)td_numel(p.list[i]);
            td_copy_out(td_cast(p.list[i], TD_F32), into + n, count * sizeof *into);
            n += count;
        }
        if (j->ema)
            td_ema_swap(j->ema);
    }
    return n;
}

static int64_t state_bytes(const job *j)
{
    return td_optim_bytes(j->opt[0]) + (j->opt[1] ? td_optim_bytes(j->opt[1]) : 0);
}

static double largest(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)a[i] - b[i]));
    return most;
}

/* bits: must the weights be those of the plain optimizer in every bit (where sums over ranks are)? Else within `bound`. */
static void equal(rule r, flags f, bool bits, double bound)
{
    static float plain[ROOM], shard[ROOM], start[ROOM];
    job a, b;
    begin(&a, r, f, false, 7 + (unsigned)r);
    const size_t n = note(&a, start);
    train(&a, 0, STEPS);
    EXPECT(note(&a, plain) == n && n < ROOM && memcmp(start, plain, n * sizeof *plain) != 0);
    begin(&b, r, f, true, 7 + (unsigned)r);
    train(&b, 0, STEPS);
    EXPECT(note(&b, shard) == n && !td_error_pending());
    const double off = largest(plain, shard, n);
    if (!(bits && exact ? memcmp(plain, shard, n * sizeof *plain) == 0 : off <= bound))
        fprintf(stderr, "rank %d: rule %d, flags %d: weights are off by %g\n", rank, (int)r, (int)f, off);
    EXPECT(bits && exact ? memcmp(plain, shard, n * sizeof *plain) == 0 : off <= bound);
    EXPECT(fabs(a.norms - b.norms) <= (exact ? 1e-6 : 1e-4) * fabs(a.norms) && !(f & (CLIP | READ | ASYNC) && a.norms == 0));
    /* every flat is padded to whole cache lines of each rank: at most 64 bytes a rank, flat and moment more */
    const int64_t all = state_bytes(&a), mine = state_bytes(&b), slack = 3 * 64 * (b.ddp->buckets + 1);
    EXPECT(shm ? mine == all : mine <= all / size + slack && (all == 0 || mine < all));
    end(&a);
    end(&b);
}

/* ---- cases ------------------------------------------------------------------------------------------------------------------------- */

static void each_rule(void)
{
    for (rule r = SGD; r <= LION; r++)
        equal(r, 0, true, r == LION ? 0.05 : 1e-3);
}

static void with_other_things(void)
{
    equal(ADAMW, EMA | TWO, true, 1e-3);
    equal(SGD, AGAIN, true, 1e-4);
    equal(ADAM, READ, true, 1e-3);
    equal(ADAMW, NARROW, true, 2e-2);
    equal(ADAMW, DOUBLE, true, 2e-2);
    equal(ADAMW, DOUBLE | NARROW | TWO, true, 2e-2);
    equal(SGD, SCALER | BAD, true, 1e-4);
    equal(SGD, SCALER | BAD | TWO | AGAIN, true, 1e-4);
    equal(ADAM, POWER | AGAIN, true, 1e-2);
    equal(ADAM, POWER | READ, true, 1e-2);
    equal(ADAMW, CAPTURE, true, 1e-3);
    equal(RMSPROP, CAPTURE | TWO | EMA, true, 1e-3);
}

/* Norms are sums over slices: equal up to rounding in f64, which a weight shows in its last bit at most. */
static void norms(void)
{
    equal(SGD, CLIP, false, 1e-6);
    equal(ADAMW, CLIP | READ | TWO, false, 1e-5);
    equal(SGD, CLIP | SCALER | BAD, false, 1e-5);
    equal(SGD, ASYNC, false, 1e-6);
    equal(LAMB, 0, false, 1e-5);
    equal(LARS, 0, false, 1e-5);
    equal(LAMB, CLIP | EMA, false, 1e-5);
}

static bool refused(int code, const char *part)
{
    const bool yes = td_error_pending() == code && strstr(td_error_message(), part);
    if (!yes)
        fprintf(stderr, "rank %d: pending %d \"%s\", expected \"%s\"\n", rank, td_error_pending(), td_error_message(), part);
    td_error_clear();
    return yes;
}

static bool late(td_module *m, const char *name)
{
    return td_parameter_get(m, name)->storage->late != NULL;
}

/* The gathers of the first layers' buckets do not wait for the last ones', and an operation waits for its own bucket alone. */
static void a_module_waits_for_its_own(void)
{
    td_module *m = td_nn_sequential(td_nn_linear(32, 64, NULL), td_nn_linear(64, 64, NULL), td_nn_linear(64, 32, NULL));
    td_ddp *d = td_ddp_new(m, &(td_ddp_opts){ .bucket_bytes = 4096, .first_bucket_bytes = 4096, .shard_optimizer = true });
    td_optim *opt = td_adamw_new(td_parameters(m), NULL);
    td_tensor *x = td_randn(TD_SHAPE(4, 32), 1, (uint64_t)rank);
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    td_optim_step(opt);
    EXPECT(late(m, "0.weight") && late(m, "1.weight") && late(m, "2.weight"));
    td_tensor *w = td_permute(td_parameter_get(m, "1.weight"), (int[]){ 1, 0 }, 2);           /* a view shares its memory */
    td_tensor *y = td_add(td_matmul(x, td_permute(td_parameter_get(m, "0.weight"), (int[]){ 1, 0 }, 2)), td_parameter_get(m, "0.bias"));
    EXPECT(!late(m, "0.weight") && late(m, "1.weight") && late(m, "2.weight"));
    td_matmul(y, w);
    EXPECT(!late(m, "1.weight") && late(m, "2.weight"));
    td_item(td_narrow(td_narrow(td_parameter_get(m, "2.weight"), 0, 0, 1), 1, 0, 1));
    EXPECT(!late(m, "2.weight"));
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    td_optim_step(opt);
    EXPECT(late(m, "0.weight") && late(m, "2.weight"));
    td_assign(td_parameter_get(m, "0.weight"), td_zeros(TD_SHAPE(64, 32), TD_F32));       /* written to, not overtaken */
    EXPECT(!late(m, "0.weight") && td_at(td_parameter_get(m, "0.weight"), TD_SHAPE(5, 5)) == 0);
    td_ddp_free(d);                                    /* while gathers are under way                                          */
    EXPECT(!late(m, "2.weight"));
    td_optim_free(opt);
    td_module_free(m);
}

/* Flats smaller than the ranks: some own nothing but padding. */
static void smaller_than_the_ranks(void)
{
    float weight[2] = { 0, 0 };
    for (int shard = 0; shard < 2; shard++) {
        TD_SCOPE();
        td_module *m = td_nn_linear(1, 1, NULL);
        td_fill(td_parameter_get(m, "weight"), 2);
        td_fill(td_parameter_get(m, "bias"), 1);
        td_ddp *d = td_ddp_new(m, &(td_ddp_opts){ .shard_optimizer = shard, .bucket_bytes = 4, .first_bucket_bytes = 4 });
        td_optim *opt = td_adam_new(td_parameters(m), &(td_adam_opts){ .lr = 0.1 });
        for (int s = 0; s < 4; s++) {
            TD_SCOPE();
            td_backward(td_mse(td_forward(m, td_full(TD_SHAPE(3, 1), TD_F32, rank + 1)), td_zeros(TD_SHAPE(3, 1), TD_F32)));
            td_optim_step(opt);
        }
        weight[shard] = (float)td_item(td_parameter_get(m, "weight"));
        EXPECT(td_optim_bytes(opt) == ((!shard && !shm) || rank == 0 ? 2 * 2 * 4 : 0));
        td_ddp_free(d);
        td_optim_free(opt);
        td_module_free(m);
    }
    EXPECT(exact ? weight[0] == weight[1] : fabsf(weight[0] - weight[1]) < 1e-5f);
}

/* Half the run plain or sharded, saved; the other half the other way, from the file. */
static void states_cross(void)
{
    static float whole[ROOM], resumed[ROOM];
    static const struct { rule r; flags f; } kind[] = { { ADAMW, EMA }, { SGD, TWO }, { RMSPROP, DOUBLE } };
    for (size_t k = 0; k < 3; k++)
        for (int way = 0; way < 4; way++) {
            const rule r = kind[k].r;
            job a, b, c;
            begin(&a, r, kind[k].f, false, 3);
            train(&a, 0, STEPS);
            const size_t n = note(&a, whole);
            end(&a);
            begin(&b, r, kind[k].f, way & 1, 3);
            train(&b, 0, STEPS / 2);
            td_train_state s = { .model = &b.m->base, .optims = b.opt, .n_optims = b.opt[1] ? 2 : 1, .ema = b.ema, .ddp = b.ddp };
            EXPECT(td_train_state_save(&s, path) == 0);
            if (way & 1) {                             /* the same file from both, too                                         */
                train(&b, STEPS / 2, STEPS);
                EXPECT(note(&b, resumed) == n && (!exact || !memcmp(whole, resumed, n * sizeof *whole)));
            }
            end(&b);
            begin(&c, r, kind[k].f, way & 2, 5);
            train(&c, 0, 2);                           /* it had moments of its own, in slices of another layout                       */
            s = (td_train_state){ .model = &c.m->base, .optims = c.opt, .n_optims = c.opt[1] ? 2 : 1, .ema = c.ema, .ddp = c.ddp };
            EXPECT(td_train_state_load(&s, path) == 0);
            train(&c, STEPS / 2, STEPS);
            EXPECT(note(&c, resumed) == n && (exact ? !memcmp(whole, resumed, n * sizeof *whole) : largest(whole, resumed, n) < 1e-3));
            end(&c);
        }
}

static void sentences(void)
{
    td_module *m = td_nn_linear(40, 40, NULL);
    td_ddp *d = td_ddp_new(m, &(td_ddp_opts){ .shard_optimizer = true });
    td_optim *opt = td_adam_new(td_parameters(m), NULL);
    td_tensor *x = td_randn(TD_SHAPE(4, 40), 1, (uint64_t)rank);
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    td_ddp_no_sync(d, true);
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    EXPECT(refused(TD_ERR_STATE, "a backward under td_ddp_no_sync cannot add to them"));
    td_ddp_no_sync(d, false);
    EXPECT(td_optim_step(opt) == 0);
    td_ddp_no_sync(d, true);
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    td_clip_grad_norm(opt, 1);
    EXPECT(refused(TD_ERR_STATE, "clip and unscale after the synchronised backward"));
    td_ddp_no_sync(d, false);
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    EXPECT(td_optim_step(opt) == 0);

    /* an error of one rank before its step: the others step, and the next backward tells all */
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    if (rank == size - 1)
        td_add(td_zeros(TD_SHAPE(3), TD_F64), td_zeros(TD_SHAPE(4), TD_F64));
    const int code = td_optim_step(opt);
    EXPECT(rank == size - 1 ? code == TD_ERR_SHAPE : code == 0);
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    EXPECT(refused(TD_ERR_SHAPE, "td_add"));
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    EXPECT(td_optim_step(opt) == 0 && !td_error_pending());

    td_ddp_free(d);                                    /* parts of moments are of no more use                                     */
    td_backward(td_mean(td_forward(m, x), NULL, 0, false));
    td_optim_step(opt);
    EXPECT(refused(TD_ERR_STATE, "has left the td_ddp that sharded its optimizer"));
    td_optim_free(opt);
    td_module_free(m);
}

/* 1/ranks of a model whose flats are large beside their padding, by the pool's own count. */
static void memory(void)
{
    int64_t bytes[2];
    for (int shard = 0; shard < 2; shard++) {
        TD_SCOPE();
        td_module *m = td_nn_sequential(td_nn_linear(300, 400, NULL), td_nn_linear(400, 300, NULL));
        td_ddp *d = td_ddp_new(m, &(td_ddp_opts){ .shard_optimizer = shard });
        td_optim *opt = td_adamw_new(td_parameters(m), NULL);
        const int64_t before = td_memory().part[TD_MEMORY_OPTIMIZER].live_bytes;
        td_backward(td_mean(td_forward(m, td_randn(TD_SHAPE(4, 300), 1, (uint64_t)rank)), NULL, 0, false));
        td_optim_step(opt);
        bytes[shard] = td_memory().part[TD_MEMORY_OPTIMIZER].live_bytes - before;
        EXPECT(td_optim_bytes(opt) <= bytes[shard] && td_optim_bytes(opt) > bytes[shard] * 9 / 10);
        td_ddp_free(d);
        td_optim_free(opt);
        td_module_free(m);
    }
    const double whole = 2 * 4 * (300 * 400 * 2 + 700);
    EXPECT(shm ? bytes[0] == bytes[1] : (double)bytes[0] >= whole);
    EXPECT((double)bytes[1] * size < 1.02 * whole + 4096 && (double)bytes[1] * size > 0.9 * whole);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    shm = !strcmp(td_comm_backend_name(td_world()), "shm");
    exact = size == 2 || shm;
    {
        TD_SCOPE();
        td_tensor *first = td_full(TD_SCALAR, TD_I64, (double)getpid());
        td_broadcast(td_world(), first, 0);
        snprintf(path, sizeof path, "/tmp/tandem-sharded-%.0f", td_item(first));
    }
    static void (*const cases[])(void) = { each_rule, with_other_things, norms, a_module_waits_for_its_own, smaller_than_the_ranks, states_cross,
                                           memory, sentences };
    /* after an error MPI is not finalised, which mpirun takes amiss: sentences are provoked over shared memory */
    for (size_t i = 0; i < sizeof cases / sizeof *cases - !shm; i++) {
        TD_SCOPE();
        cases[i]();
    }
    EXPECT(td_memory().live_tensors == 0);
    td_barrier(td_world());
    if (rank == 0) {
        unlink(path);
        printf("1..%d\n", tests);
    }
    td_finish();                                       /* errors were provoked: its status is 1                                */
    if (td_memory().live_bytes != 0)
        return fprintf(stderr, "ddp_sharded: %lld bytes of the pool are left\n", (long long)td_memory().live_bytes), 1;
    return failures != 0;
}
