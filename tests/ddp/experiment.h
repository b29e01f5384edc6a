/* tests/ddp/experiment.h: a training run of rules.h's model, and what a program may do around its steps. Two runs that differ only in how the ranks step
 * (in one pass or two, sharded or not) are compared. Also the main of programs made of such cases.
 */
#ifndef TD_TEST_EXPERIMENT_H
#define TD_TEST_EXPERIMENT_H
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
    CLIP = 1, SCALER = 2, EMA = 4, NARROW = 8, DOUBLE = 16, SHARD = 32, TWO = 64, READ = 128, READ_ONE = 256, AGAIN = 512, ASYNC = 1024, CAPTURE = 2048,
    BAD = 4096, TALK = 8192, LETTER = 16384, ZERO = 32768, HOOK = 65536, POWER = 131072
} flags;

/* seen: the sum of all numbers that the program read between backward and step; ones: steps in one pass */
typedef struct { net *m; td_ddp *ddp; td_optim *opt[2]; td_ema *ema; td_scaler *scaler; flags f; double seen; int ones; } job;

static char path[128];                                 /* a file of all ranks of this run                                      */

/* ---- a job --------------------------------------------------------------------------------------------------------------------- */

/* way: MEASURE leaves what the environment says; comm NULL: the world */
static inline void new_ddp(job *j, td__way way, td_comm *comm)
{
    j->ddp = td_ddp_new(&j->m->base, &(td_ddp_opts){ .bucket_bytes = 2500, .first_bucket_bytes = 300, .comm = comm, .shard_optimizer = j->f & SHARD,
                                                     .gradient_dtype = j->f & NARROW ? TD_BF16 : TD_F32 });
    if (way != TD__WAY_MEASURE) {
        j->ddp->which.way = way;
        j->ddp->which.forced = true;
    }
}

static inline int no_start(td_ddp_hook_bucket *b, void *user)
{
    (void)b, (void)user;
    return 0;
}

static inline int sum_finish(td_ddp_hook_bucket *b, void *user)
{
    (void)user;
    return td_all_reduce(b->comm, b->gradient, TD_SUM);
}

static inline void begin_on(job *j, rule r, flags f, td__way way, uint64_t seed, td_comm *comm)
{
    *j = (job){ .f = f };
    td_seed(~seed);
    td_seed(seed);
    td_step_set(0);
    j->m = net_new(f & DOUBLE ? TD_F64 : TD_F32);
    td_tensors p = td_parameters(&j->m->base);
    for (size_t i = 0; i < p.n; i++) {
        TD_SCOPE();
        td_assign(p.list[i], td_cast(td_scale(td_randn(td_shape_of(p.list[i]), seed, i), 0.3), td_dtype_of(p.list[i])));
    }
    const size_t half = p.n / 2;
    if (seed % 2)                                      /* the optimizer comes before or after the ddp                              */
        new_ddp(j, way, comm);
    if (f & TWO) {
        j->opt[0] = optimizer(r, (td_tensors){ p.list, 2 }, (td_tensors){ p.list + 2, half - 2 });
        j->opt[1] = optimizer(r == ADAMW ? SGD : ADAMW, (td_tensors){ p.list + half, 3 }, (td_tensors){ p.list + half + 3, p.n - half - 3 });
    } else {
        j->opt[0] = optimizer(r, (td_tensors){ p.list, half }, (td_tensors){ p.list + half, p.n - half });
    }
    if (seed % 2 == 0)
        new_ddp(j, way, comm);
    if (f & HOOK)
        td_ddp_set_hook(j->ddp, &(td_ddp_hook){ .name = "sum", .start = no_start, .finish = sum_finish }, NULL);
    if (f & POWER)
        td_ddp_power_sgd_hook(j->ddp, &(td_power_sgd_opts){ .rank = 2 });
    j->ema = f & EMA ? td_ema_new(p, 0.7) : NULL;
    j->scaler = f & SCALER ? td_scaler_new(&(td_scaler_opts){ .init_scale = 1024, .growth_interval = 2 }) : NULL;
}

static inline void begin(job *j, rule r, flags f, td__way way, uint64_t seed)
{
    begin_on(j, r, f, way, seed, NULL);
}

static inline void end(job *j)
{
    td_ema_free(j->ema);
    td_scaler_free(j->scaler);
    td_ddp_free(j->ddp);
    td_optim_free(j->opt[0]);
    td_optim_free(j->opt[1]);
    td_module_free(&j->m->base);
}

static inline double sum_of_gradients(net *m)
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

static inline void add(job *j, double x)
{
    j->seen += isfinite(x) ? x : 1;
}

/* What a program may do between backward and step. */
static inline void between(job *j)
{
    td_tensor *number = td_full(TD_SCALAR, TD_F64, rank + 1);
    if (j->f & (READ | READ_ONE) && (j->f & READ || rank == size - 1))
        add(j, sum_of_gradients(j->m));
    if (j->f & TALK) {                                 /* a collective, which one rank enters after it has read                        */
        if (rank == 0)
            add(j, sum_of_gradients(j->m));
        td_all_reduce(td_world(), number, TD_SUM);
        add(j, td_item(number));
    }
    if (j->f & LETTER && rank < 2) {                   /* rank 0 reads, then writes; rank 1 waits for the letter before its step       */
        if (rank == 0)
            add(j, sum_of_gradients(j->m));
        rank == 0 ? td_send(td_world(), number, 1, 3) : td_recv(td_world(), number, 0, 3);
        add(j, td_item(number));
    }
    for (int k = 0; k < 2 && j->opt[k]; k++) {
        if (j->f & SCALER && j->f & CLIP)
            td_scaler_unscale(j->scaler, j->opt[k]);
        if (j->f & CLIP)
            add(j, td_clip_grad_norm(j->opt[k], 0.3));
        if (j->f & ASYNC)
            add(j, td_item(td_clip_grad_norm_async(j->opt[k], 0.3)));
        if (j->f & READ && j->f & CLIP)
            add(j, sum_of_gradients(j->m));
    }
}

static inline td_tensor *step(td_tensors in, void *user)
{
    job *j = user;
    td_tensor *loss = NULL;
    for (size_t i = 0; i < 2; i++) {                   /* accumulated here, or reduced twice                                  */
        td_ddp_no_sync(j->ddp, i == 0 && !(j->f & AGAIN));
        loss = td_mse(forward(j->m, in.list[i]), in.list[2]);
        td_backward(j->f & SCALER ? td_scaler_scale(j->scaler, loss) : loss);
        if (j->f & ZERO && i == 0)                     /* thrown away                                                         */
            td_zero_grad(td_parameters(&j->m->base));
    }
    between(j);
    for (int k = 0; k < 2 && j->opt[k]; k++)
        j->f & SCALER ? td_scaler_step(j->scaler, j->opt[k]) : td_optim_step(j->opt[k]);
    if (j->f & SCALER)
        td_scaler_update(j->scaler);
    if (j->f & EMA)
        td_ema_update(j->ema);
    return loss;
}

static inline void train(job *j, int from, int to)
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
        j->ones += j->ddp && td_ddp_last_step(j->ddp).one_pass;
    }
    td_graph_free(graph);
}

static inline size_t note(job *j, float *into)
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

static inline int64_t state_bytes(const job *j)
{
    return td_optim_bytes(j->opt[0]) + (j->opt[1] ? td_optim_bytes(j->opt[1]) : 0);
}

/* Every rank has these numbers. */
static inline bool same_everywhere(const float *a, size_t n)
{
    static float first[ROOM];
    memcpy(first, a, n * sizeof *a);
    td_raw_broadcast(td_world(), first, (int64_t)(n * sizeof *a), TD_U8, 0);
    return !memcmp(first, a, n * sizeof *a);
}

static inline td_train_state state_of(job *j)
{
    return (td_train_state){ .model = &j->m->base, .optims = j->opt, .n_optims = j->opt[1] ? 2 : 1, .ema = j->ema, .ddp = j->ddp };
}

/* ---- a program of cases ------------------------------------------------------------------------------------------------------------ */

static inline void start(int *argc, char ***argv)
{
    td_init(argc, argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    TD_SCOPE();
    td_tensor *first = td_full(TD_SCALAR, TD_I64, (double)getpid());
    td_broadcast(td_world(), first, 0);
    snprintf(path, sizeof path, "/tmp/tandem-ddp-%.0f", td_item(first));
}

static inline int run_cases(void (*const cases[])(void), size_t n)
{
    for (size_t i = 0; i < n; i++) {
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
        return fprintf(stderr, "%lld bytes of the pool are left\n", (long long)td_memory().live_bytes), 1;
    return failures != 0;
}

#endif
