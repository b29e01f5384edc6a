/* tests/ddp/ddp_one_pass.c: on one host, one pass over gradients and weights at the step gives the bits of two (buckets in backward, then the step), whoever
 * reads, saves, fails or switches in between; and state belongs to slices either way. Started on 2, 3 and 4 ranks by tandem run; TAP on rank 0's
 * standard output.
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
    CLIP = 1, SCALER = 2, EMA = 4, NARROW = 8, DOUBLE = 16, TWO = 64, READ = 128, READ_ONE = 256, AGAIN = 512, ASYNC = 1024, CAPTURE = 2048,
    BAD = 4096, TALK = 8192, LETTER = 16384, ZERO = 32768, HOOK = 65536
} flags;
enum { EARLY = CLIP | SCALER | READ | READ_ONE | ASYNC | TALK | LETTER | TWO | NARROW | HOOK };   /* gradients are wanted before, or by parts */

static char path[128];

/* ---- a job --------------------------------------------------------------------------------------------------------------------- */

typedef struct { net *m; td_ddp *ddp; td_optim *opt[2]; td_ema *ema; td_scaler *scaler; flags f; double seen; int ones; } job;

static void new_ddp(job *j, td__way way)
{
    j->ddp = td_ddp_new(&j->m->base, &(td_ddp_opts){ .bucket_bytes = 2500, .first_bucket_bytes = 300,
                                                     .gradient_dtype = j->f & NARROW ? TD_BF16 : TD_F32 });
    j->ddp->which.way = way;
    j->ddp->which.forced = way != TD__WAY_MEASURE;
}

static int bf16_start(td_ddp_hook_bucket *b, void *user)
{
    (void)b, (void)user;
    return 0;
}

static int bf16_finish(td_ddp_hook_bucket *b, void *user)
{
    (void)user;
    return td_all_reduce(b->comm, b->gradient, TD_SUM);
}

static void begin(job *j, rule r, flags f, td__way way, uint64_t seed)
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
        new_ddp(j, way);
    if (f & TWO) {
        j->opt[0] = optimizer(r, (td_tensors){ p.list, 2 }, (td_tensors){ p.list + 2, half - 2 });
        j->opt[1] = optimizer(r == ADAMW ? SGD : ADAMW, (td_tensors){ p.list + half, 3 }, (td_tensors){ p.list + half + 3, p.n - half - 3 });
    } else {
        j->opt[0] = optimizer(r, (td_tensors){ p.list, half }, (td_tensors){ p.list + half, p.n - half });
    }
    if (seed % 2 == 0)
        new_ddp(j, way);
    if (f & HOOK)
        td_ddp_set_hook(j->ddp, &(td_ddp_hook){ .name = "sum", .start = bf16_start, .finish = bf16_finish }, NULL);
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

static void add(job *j, double x)
{
    j->seen += isfinite(x) ? x : 1;
}

/* What a program may do between backward and step. */
static void between(job *j)
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
    }
}

static td_tensor *step(td_tensors in, void *user)
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
        j->ones += j->ddp && td_ddp_last_step(j->ddp).one_pass;
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

/* Every rank has these numbers. */
static bool same_everywhere(const float *a, size_t n)
{
    static float first[ROOM];
    memcpy(first, a, n * sizeof *a);
    td_raw_broadcast(td_world(), first, (int64_t)(n * sizeof *a), TD_U8, 0);
    return !memcmp(first, a, n * sizeof *a);
}

static void equal(rule r, flags f)
{
    static float two[ROOM], one[ROOM], start[ROOM];
    job a, b;
    begin(&a, r, f, TD__WAY_TWO, 7 + (unsigned)r);
    const size_t n = note(&a, start);
    train(&a, 0, STEPS);
    EXPECT(note(&a, two) == n && n < ROOM && memcmp(start, two, n * sizeof *two) != 0 && a.ones == 0);
    for (td__way way = TD__WAY_ONE; way <= TD__WAY_IN_TURN; way++) {
        if (way == TD__WAY_TWO)
            continue;
        begin(&b, r, f, way, 7 + (unsigned)r);
        train(&b, 0, STEPS);
        EXPECT(note(&b, one) == n && !td_error_pending());
        if (memcmp(two, one, n * sizeof *two))
            fprintf(stderr, "rank %d: rule %d, flags %d, way %d: weights differ\n", rank, (int)r, (int)f, (int)way);
        EXPECT(!memcmp(two, one, n * sizeof *two) && same_everywhere(one, n));
        EXPECT(a.seen == b.seen && !(f & (CLIP | READ | ASYNC | TALK) && a.seen == 0));
        /* the first step is before the buckets are where they stay */
        const bool early = f & EARLY || r >= LAMB;
        EXPECT(early ? b.ones == 0 : way == TD__WAY_ONE ? b.ones == STEPS - 1 : f & CAPTURE || (b.ones > 0 && b.ones < STEPS - 1));
        EXPECT(state_bytes(&a) == state_bytes(&b));
        end(&b);
    }
    end(&a);
}

/* ---- cases ------------------------------------------------------------------------------------------------------------------------- */

static void each_rule(void)
{
    for (rule r = SGD; r <= LARS; r++)
        equal(r, 0);
}

static void in_two_dtypes(void)
{
    equal(ADAMW, DOUBLE);
    equal(SGD, DOUBLE | EMA);
    equal(LION, DOUBLE | AGAIN);
}

static void whoever_reads_before(void)
{
    equal(ADAM, READ);
    equal(ADAMW, READ_ONE);
    equal(SGD, TALK);
    equal(ADAMW, LETTER);
    equal(ADAMW, READ_ONE | AGAIN | TWO);
    equal(SGD, CLIP);
    equal(ADAMW, ASYNC);
    equal(SGD, SCALER | BAD);
    equal(ADAMW, SCALER | CLIP | BAD | TWO);
}

static void with_other_things(void)
{
    equal(ADAMW, EMA);
    equal(SGD, AGAIN);
    equal(ADAMW, AGAIN | ZERO);
    equal(RMSPROP, TWO);
    equal(ADAMW, NARROW);
    equal(ADAMW, HOOK);
    equal(ADAMW, CAPTURE);
    equal(RMSPROP, CAPTURE | EMA);
    equal(SGD, CAPTURE | TWO);
}

/* Two models in one backward, an optimizer of both, or one each in either order; the last rank may read one model's gradients. */
static void two_models(void)
{
    float got[6][2 * (17 * 17 + 17)];
    for (int kind = 0; kind < 6; kind++) {
        TD_SCOPE();
        td_seed(4);
        td_module *m[2] = { td_nn_linear(17, 17, NULL), td_nn_linear(17, 17, NULL) }, *both = td_nn_sequential(td_nn_linear(1, 1, NULL));
        td_module_free(both);
        td_ddp *d[2];
        for (int i = 0; i < 2; i++) {
            for (size_t k = 0; k < 2; k++)
                td_assign(td_parameters(m[i]).list[k], td_randn(td_shape_of(td_parameters(m[i]).list[k]), 9, (uint64_t)(2 * i) + k));
            d[i] = td_ddp_new(m[i], NULL);
            d[i]->which.way = kind % 2 ? TD__WAY_ONE : TD__WAY_TWO;
            d[i]->which.forced = true;
        }
        td_tensor *all[4];
        for (size_t k = 0; k < 4; k++)
            all[k] = td_parameters(m[k / 2]).list[k % 2];
        td_optim *opt[2] = { td_adamw_new((td_tensors){ all, kind < 2 ? 4 : 2 }, NULL), kind < 2 ? NULL : td_adamw_new((td_tensors){ all + 2, 2 }, NULL) };
        int ones[2] = { 0, 0 };
        bool read = true;
        for (int s = 0; s < STEPS; s++) {
            TD_SCOPE();
            td_tensor *x = td_randn(TD_SHAPE(3, 17), 5, (uint64_t)(10 * s + rank));
            td_backward(td_mean(td_forward(m[1], td_gelu(td_forward(m[0], x))), NULL, 0, false));
            read &= s != 3 || rank != size - 1 || td_grad(all[0]) != NULL;
            if (kind >= 4)
                td_optim_step(opt[1]);
            td_optim_step(opt[0]);
            if (kind == 2 || kind == 3)
                td_optim_step(opt[1]);
            for (int i = 0; i < 2; i++)
                ones[i] += td_ddp_last_step(d[i]).one_pass;
        }
        /* with an optimizer each, the model attached last comes first: stepped last, its gradients are wanted before, and so are then all */
        const int expected = kind % 2 == 0 || kind == 3 ? 0 : STEPS - 2;
        EXPECT(ones[0] == expected && ones[1] == expected);
        size_t n = 0;
        for (size_t k = 0; k < 4; k++) {
            td_copy_out(all[k], got[kind] + n, (size_t)td_numel(all[k]) * sizeof(float));
            n += (size_t)td_numel(all[k]);
        }
        EXPECT(read && !memcmp(got[kind], got[0], sizeof got[0]) && !td_error_pending());
        for (int i = 0; i < 2; i++) {
            td_ddp_free(d[i]);
            td_optim_free(opt[i]);
        }
        for (int i = 0; i < 2; i++)
            td_module_free(m[i]);
    }
}

static size_t file_bytes(const char *name, char **into)
{
    FILE *f = fopen(name, "rb");
    long n = -1;
    *into = NULL;
    if (f && fseek(f, 0, SEEK_END) == 0 && (n = ftell(f)) > 0 && (*into = malloc((size_t)n))) {
        rewind(f);
        n = fread(*into, 1, (size_t)n, f) == (size_t)n ? n : -1;
    }
    if (f)
        fclose(f);
    return n > 0 ? (size_t)n : 0;
}

/* Half the run one way, saved; the other half another way, from the file. The file is the same whichever way, and whole: one rank alone that loads and
 * saves it writes it again. */
static void states(void)
{
    static float whole[ROOM], resumed[ROOM];
    static const struct { rule r; flags f; } kind[] = { { ADAMW, EMA }, { SGD, TWO }, { RMSPROP, DOUBLE } };
    td_comm *alone = td_comm_split(td_world(), rank, 0);
    for (size_t k = 0; k < 3; k++) {
        char *file[2] = { NULL, NULL };
        size_t bytes[2] = { 0, 0 };
        for (int way = 0; way < 4; way++) {
            const rule r = kind[k].r;
            const td__way first = way & 1 ? TD__WAY_ONE : TD__WAY_TWO, second = way & 2 ? TD__WAY_IN_TURN : TD__WAY_TWO;
            job a, b, c;
            begin(&a, r, kind[k].f, TD__WAY_TWO, 3);
            train(&a, 0, STEPS);
            const size_t n = note(&a, whole);
            end(&a);
            begin(&b, r, kind[k].f, first, 3);
            train(&b, 0, STEPS / 2);
            td_train_state s = { .model = &b.m->base, .optims = b.opt, .n_optims = b.opt[1] ? 2 : 1, .ema = b.ema, .ddp = b.ddp };
            EXPECT(td_train_state_save(&s, path) == 0);
            end(&b);
            if (way < 2 && rank == 0)
                bytes[way] = file_bytes(path, &file[way]);
            begin(&c, r, kind[k].f, second, 5);
            train(&c, 0, 2);                           /* it had moments of its own, in slices of another layout                       */
            s = (td_train_state){ .model = &c.m->base, .optims = c.opt, .n_optims = c.opt[1] ? 2 : 1, .ema = c.ema, .ddp = c.ddp };
            EXPECT(td_train_state_load(&s, path) == 0);
            train(&c, STEPS / 2, STEPS);
            EXPECT(note(&c, resumed) == n && !memcmp(whole, resumed, n * sizeof *whole));
            end(&c);
        }
        EXPECT(rank != 0 || (bytes[0] > 0 && bytes[0] == bytes[1] && !memcmp(file[0], file[1], bytes[0])));

        /* one rank, no slices */
        job d;
        d = (job){ .f = kind[k].f };
        td_seed(1);
        d.m = net_new(kind[k].f & DOUBLE ? TD_F64 : TD_F32);
        td_tensors p = td_parameters(&d.m->base);
        const size_t half = p.n / 2;
        d.ddp = td_ddp_new(&d.m->base, &(td_ddp_opts){ .bucket_bytes = 2500, .first_bucket_bytes = 300, .comm = alone });
        EXPECT(!d.ddp->sliced);
        if (kind[k].f & TWO) {
            d.opt[0] = optimizer(kind[k].r, (td_tensors){ p.list, 2 }, (td_tensors){ p.list + 2, half - 2 });
            d.opt[1] = optimizer(ADAMW, (td_tensors){ p.list + half, 3 }, (td_tensors){ p.list + half + 3, p.n - half - 3 });
        } else {
            d.opt[0] = optimizer(kind[k].r, (td_tensors){ p.list, half }, (td_tensors){ p.list + half, p.n - half });
        }
        d.ema = kind[k].f & EMA ? td_ema_new(p, 0.7) : NULL;
        td_train_state s = { .model = &d.m->base, .optims = d.opt, .n_optims = d.opt[1] ? 2 : 1, .ema = d.ema, .ddp = d.ddp };
        EXPECT(td_train_state_load(&s, path) == 0);
        char mine[160], *again = NULL;
        snprintf(mine, sizeof mine, "%s-%d", path, rank);
        EXPECT(td_train_state_save(&s, mine) == 0);
        const size_t count = rank == 0 ? file_bytes(mine, &again) : 0;
        EXPECT(rank != 0 || (count == bytes[0] && !memcmp(again, file[0], count)));
        unlink(mine);
        end(&d);
        free(again);
        free(file[0]);
        free(file[1]);
    }
    td_comm_free(alone);
}

/* td_ddp_free gives each rank all of the state: the optimizer goes on, in new buckets or alone, as if it had always had it. */
static void state_outlives_the_ddp(void)
{
    static float whole[ROOM], parts[ROOM];
    static const struct { rule r; flags f; } kind[] = { { ADAMW, 0 }, { RMSPROP, TWO }, { SGD, DOUBLE } };
    for (size_t k = 0; k < 3; k++) {
        job a, b;
        begin(&a, kind[k].r, kind[k].f, TD__WAY_TWO, 3);
        train(&a, 0, STEPS);
        const size_t n = note(&a, whole);
        const int64_t bytes = state_bytes(&a);
        end(&a);
        begin(&b, kind[k].r, kind[k].f, TD__WAY_ONE, 3);
        train(&b, 0, STEPS / 2);
        td_ddp_free(b.ddp);
        const int64_t all = state_bytes(&b);
        EXPECT(all > bytes && !td_error_pending());
        new_ddp(&b, TD__WAY_IN_TURN);
        train(&b, STEPS / 2, STEPS);
        EXPECT(note(&b, parts) == n && !memcmp(whole, parts, n * sizeof *whole));
        EXPECT(state_bytes(&b) < all);
        td_ddp_free(b.ddp);
        b.ddp = NULL;
        {
            TD_SCOPE();
            td_tensor *x = td_randn(TD_SHAPE(ROWS, WIDTH), 8, 8);
            td_backward(td_mse(td_forward(b.m->first, x), td_zeros(TD_SHAPE(ROWS, WIDTH), TD_F32)));
            for (int i = 0; i < 2 && b.opt[i]; i++)
                td_optim_step(b.opt[i]);
            EXPECT(note(&b, parts) == n && !td_error_pending() && memcmp(whole, parts, n * sizeof *whole) && same_everywhere(parts, n));
        }
        end(&b);
    }
}

static bool refused(int code, const char *part)
{
    const bool yes = td_error_pending() == code && strstr(td_error_message(), part);
    if (!yes)
        fprintf(stderr, "rank %d: pending %d \"%s\", expected \"%s\"\n", rank, td_error_pending(), td_error_message(), part);
    td_error_clear();
    return yes;
}

/* A rank that cannot step: none does, all say why, and the gradients are still there for the next try. */
static void refused_on_one_rank(void)
{
    static float calm[ROOM], disturbed[ROOM], before[ROOM], after[ROOM];
    for (int way = TD__WAY_ONE; way <= TD__WAY_TWO; way++)
        for (int reads = 0; reads < 2; reads++) {
            job a, b;
            size_t n = 0;
            begin(&a, ADAMW, 0, (td__way)way, 3);
            begin(&b, ADAMW, 0, (td__way)way, 3);
            for (int s = 0; s < 4; s++) {
                TD_SCOPE();
                td_tensor *x = td_randn(TD_SHAPE(ROWS, WIDTH), 1, (uint64_t)(100 * s + rank)), *t = td_zeros(TD_SHAPE(ROWS, WIDTH), TD_F32);
                td_backward(td_mse(forward(a.m, x), t));
                td_optim_step(a.opt[0]);
                td_backward(td_mse(forward(b.m, x), t));
                n = note(&b, before);
                if (reads && rank == 0)
                    b.seen += sum_of_gradients(b.m);
                if (s > 1 && rank == size - 1)
                    td_add(td_zeros(TD_SHAPE(3), TD_F64), td_zeros(TD_SHAPE(4), TD_F64));
                bool good = true;
                if (s > 1)
                    good = td_optim_step(b.opt[0]) == TD_ERR_SHAPE && refused(TD_ERR_SHAPE, "td_add") && note(&b, after) == n &&
                           !memcmp(before, after, n * sizeof *after);
                good &= td_optim_step(b.opt[0]) == 0;
                EXPECT(good && td_ddp_last_step(b.ddp).one_pass == (way == TD__WAY_ONE && !reads && s > 0));
            }
            EXPECT(note(&a, calm) == n && note(&b, disturbed) == n && !memcmp(calm, disturbed, n * sizeof *calm));
            end(&a);
            end(&b);
        }
}

/* Each by itself; and measured, or read so often that buckets had better go early. */
static void chosen(void)
{
    static float two[ROOM], one[ROOM];
    static const struct { flags f; td__way way; } kind[] = { { 0, TD__WAY_MEASURE }, { READ, TD__WAY_MEASURE }, { READ_ONE, TD__WAY_MEASURE } };
    for (size_t k = 0; k < 3; k++) {
        job a, b;
        begin(&a, ADAMW, kind[k].f, TD__WAY_TWO, 3);
        train(&a, 0, 20);
        const size_t n = note(&a, two);
        begin(&b, ADAMW, kind[k].f, TD__WAY_MEASURE, 3);
        train(&b, 0, 20);
        EXPECT(note(&b, one) == n && !memcmp(one, two, n * sizeof *one));
        const td__way way = b.ddp->which.way;
        EXPECT(rank != 0 || (kind[k].f ? way == TD__WAY_TWO && b.ones == 0 : way != TD__WAY_MEASURE && b.ones >= TD__WAY_TRIALS));
        end(&a);
        end(&b);
    }
    setenv("TANDEM_ONE_PASS", "perhaps", 1);
    td_module *m = td_nn_linear(3, 3, NULL);
    td_ddp *d = td_ddp_new(m, NULL);
    EXPECT(refused(TD_ERR_ARGUMENT, "TANDEM_ONE_PASS is \"perhaps\"; expected auto, 0 or 1"));
    setenv("TANDEM_ONE_PASS", "1", 1);
    d = td_ddp_new(m, NULL);
    EXPECT(d->which.way == TD__WAY_ONE && d->sliced);
    td_ddp_free(d);
    unsetenv("TANDEM_ONE_PASS");
    td_module_free(m);
}

static void figures(void)
{
    job a;
    begin(&a, ADAMW, 0, TD__WAY_ONE, 3);
    train(&a, 0, 3);
    const td_ddp_stats s = td_ddp_last_step(a.ddp);
    double comm = 0;
    int64_t bytes = 0;
    for (int b = 0; b < s.buckets; b++) {
        comm += td_ddp_last_bucket(a.ddp, b).comm_ms;
        bytes += td_ddp_last_bucket(a.ddp, b).bytes;
    }
    EXPECT(s.one_pass && s.comm_ms > 0 && s.exposed_ms >= s.comm_ms && s.overlap == 0 && s.bytes > 0 && bytes == s.bytes);
    EXPECT(fabs(comm - s.comm_ms) < 1e-9 * comm && s.step_ms > s.comm_ms && s.backward_ms > 0);
    end(&a);
}

/* Over a group of ranks; and ranks whose slices hold nothing but padding. */
static void small_and_in_groups(void)
{
    td_comm *g = td_comm_split(td_world(), rank < 2 ? 0 : 1, rank);
    float got[2] = { 0, 0 };
    for (int way = 0; way < 2; way++) {
        TD_SCOPE();
        td_module *m = td_nn_linear(1, 1, NULL);
        td_fill(td_parameter_get(m, "weight"), 2);
        td_fill(td_parameter_get(m, "bias"), 1);
        td_ddp *d = td_ddp_new(m, &(td_ddp_opts){ .comm = g, .bucket_bytes = 4, .first_bucket_bytes = 4 });
        EXPECT(d->sliced == (td_size(g) > 1));
        d->which.way = way ? TD__WAY_ONE : TD__WAY_TWO;
        td_optim *opt = td_adam_new(td_parameters(m), &(td_adam_opts){ .lr = 0.1 });
        int ones = 0;
        for (int s = 0; s < 5; s++) {
            TD_SCOPE();
            td_backward(td_mse(td_forward(m, td_full(TD_SHAPE(3, 1), TD_F32, rank + 1)), td_zeros(TD_SHAPE(3, 1), TD_F32)));
            td_optim_step(opt);
            ones += td_ddp_last_step(d).one_pass;
        }
        EXPECT(ones == (way && td_size(g) > 1 ? 4 : 0));
        got[way] = (float)td_item(td_parameter_get(m, "weight"));
        EXPECT(td_optim_bytes(opt) == (td_rank(g) == 0 ? 2 * 2 * 4 : 0));
        td_ddp_free(d);
        td_optim_free(opt);
        td_module_free(m);
    }
    EXPECT(got[0] == got[1] && got[0] != 2);
    td_comm_free(g);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    {
        TD_SCOPE();
        td_tensor *first = td_full(TD_SCALAR, TD_I64, (double)getpid());
        td_broadcast(td_world(), first, 0);
        snprintf(path, sizeof path, "/tmp/tandem-one-pass-%.0f", td_item(first));
    }
    static void (*const cases[])(void) = { each_rule, in_two_dtypes, whoever_reads_before, with_other_things, two_models, states, state_outlives_the_ddp,
                                           refused_on_one_rank, chosen, figures, small_and_in_groups };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
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
        return fprintf(stderr, "ddp_one_pass: %lld bytes of the pool are left\n", (long long)td_memory().live_bytes), 1;
    return failures != 0;
}
