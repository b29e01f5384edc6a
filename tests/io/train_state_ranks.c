/* tests/io/train_state_ranks.c: a resumed job goes on bit for bit. Started on 1, 2 or 3 ranks by tandem run.
 *
 * One run trains without a break and notes the weights. Another trains, saves in the middle of an epoch and throws everything away; a third begins with
 * other weights, another seed and other counters, loads and goes on: its weights, moments' effect and averages must equal the first one's in
 * every bit. With ddp in small buckets (rebuilt after the first step), dropout, a shuffled loader and accumulation, for three optimizers.
 * Every case runs on all ranks; each rank's verdict is summed. TAP on rank 0's standard output.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../expect.h"

#define EXPECT(condition) expect_((condition), #condition, NULL, __LINE__)

enum { ROWS = 54, WIDTH = 6, BATCH = 4 };
static char path[128];

static int read_row(void *user, int64_t row, void *const *into)
{
    float *x = into[0];
    for (int i = 0; i < WIDTH; i++)
        x[i] = (float)((row * 7 + i * 5) % 11) / 11 - 0.4f;
    *(int64_t *)into[1] = row * row % 3;
    return 0;
}

typedef enum { SGD, ADAMW, LAMB } rule;
typedef struct {
    td_module *net;
    td_optim *opt[2];
    td_loader *data;
    td_ema *ema;
    td_ddp *ddp;
    td_tensor *own;
    td_train_state state;
    td_named extra;
} job;

static td_optim *optimizer(rule r, td_tensors p)
{
    if (r == SGD)
        return td_sgd_new(p, &(td_sgd_opts){ .lr = 0.05, .momentum = 0.9, .nesterov = true });
    return r == ADAMW ? td_adamw_new(p, &(td_adamw_opts){ .lr = 0.01 }) : td_lamb_new(p, &(td_lamb_opts){ .lr = 0.02 });
}

/* Two optimizers over one ddp: the last layer has its own. */
static void begin(job *j, rule r, uint64_t seed)
{
    memset(j, 0, sizeof *j);
    td_seed(~seed);                            /* the initialisers' numbers begin anew only when the seed changes               */
    td_module_free(td_nn_linear(1, 1, NULL));
    td_seed(seed);
    td_step_set((int64_t)seed * 3);
    j->net = td_nn_sequential(td_nn_linear(WIDTH, 16, NULL), td_nn_batch_norm(16, NULL), td_nn_gelu(), td_nn_dropout(0.3), td_nn_linear(16, 9, NULL),
                              td_nn_relu(), td_nn_dropout(0.2), td_nn_linear(9, 3, NULL));
    j->ddp = td_ddp_new(j->net, &(td_ddp_opts){ .bucket_bytes = 512, .first_bucket_bytes = 64 });
    td_tensors all = td_parameters(j->net);
    j->opt[0] = optimizer(r, (td_tensors){ all.list, all.n - 2 });
    j->opt[1] = optimizer(r == SGD ? ADAMW : SGD, (td_tensors){ all.list + all.n - 2, 2 });
    td_dataset_source source = { .rows = ROWS, .read = read_row, .n_fields = 2,
                                 .field = (td_field[]){ { TD_SHAPE(WIDTH), TD_F32 }, { TD_SCALAR, TD_I64 } } };
    j->data = td_loader_new(td_dataset_new(&source, NULL), &(td_loader_opts){ .batch = BATCH, .shuffle = true, .seed = 5 });
    j->ema = td_ema_new(all, 0.75);
    j->own = td_keep(td_full(TD_SHAPE(2), TD_F64, (double)seed));
    j->extra = (td_named){ "mine/best", j->own };
    j->state = (td_train_state){ .model = j->net, .optims = j->opt, .n_optims = 2, .loader = j->data, .ema = j->ema, .ddp = j->ddp,
                                 .extra = &j->extra, .n_extra = 1 };
}

static void end(job *j)
{
    td_loader_free(j->data);
    td_ema_free(j->ema);
    td_ddp_free(j->ddp);
    td_optim_free(j->opt[0]);
    td_optim_free(j->opt[1]);
    td_module_free(j->net);
    td_release(j->own);
}

/* Steps of two accumulated batches each, through epochs; the learning rate changes with the step, the norm is clipped. */
static void train(job *j, int steps)
{
    for (int done = 0; done < steps && !td_error_pending();) {
        td_batch b;
        for (int micro = 0; micro < 2 && !td_error_pending();) {
            if (!td_loader_next(j->data, &b))
                continue;                      /* the next epoch */
            TD_SCOPE();
            td_ddp_no_sync(j->ddp, micro == 0);
            td_backward(td_cross_entropy(td_forward(j->net, b.x), b.y, NULL));
            micro++;
        }
        for (int k = 0; k < 2; k++)
            td_optim_set_lr(j->opt[k], -1, 0.02 / (1 + 0.1 * (double)j->state.step));
        td_clip_grad_norm(j->opt[0], 0.5);
        td_optim_step(j->opt[0]);
        td_optim_step(j->opt[1]);
        td_ema_update(j->ema);
        j->state.step++;
        done++;
    }
}

static size_t note(job *j, float *into, bool all)
{
    size_t n = 0;
    td_tensors lists[] = { td_parameters(j->net), td_buffers(j->net) };
    for (int swap = 0; swap < 2; swap++) {     /* weights, then averages; buffers are each rank's own                            */
        for (int k = 0; k < (all ? 2 : 1); k++)
            for (size_t i = 0; i < lists[k].n; i++) {
                size_t bytes = (size_t)td_numel(lists[k].list[i]) * sizeof(float);
                td_copy_out(lists[k].list[i], into + n, bytes);
                n += bytes / sizeof(float);
            }
        td_ema_swap(j->ema);
    }
    return n;
}

static bool same_on_all(const float *a, size_t n)
{
    TD_SCOPE();
    td_tensor *mine = td_from(a, TD_SHAPE((int64_t)n), TD_F32), *first = td_empty(TD_SHAPE((int64_t)n), TD_F32);
    td_assign(first, mine);
    td_broadcast(td_world(), first, 0);
    return memcmp(td_data(first), a, n * sizeof *a) == 0;
}

static void goes_on(rule r, int before, int after)
{
    static float whole[4096], resumed[4096];
    job a, b, c;
    begin(&a, r, 1);
    train(&a, before + after);
    size_t n = note(&a, whole, rank == 0);
    int64_t epoch = td_loader_epoch(a.data), position = td_loader_position(a.data);
    end(&a);

    begin(&b, r, 1);
    train(&b, before);
    td_fill(b.own, 42);
    EXPECT(td_train_state_save(&b.state, path) == 0);
    int buckets = before ? td_ddp_last_step(b.ddp).buckets : 0;
    end(&b);

    begin(&c, r, 2);
    EXPECT(td_train_state_load(&c.state, path) == 0);
    EXPECT(c.state.step == before && td_item(td_narrow(c.own, 0, 1, 1)) == 42 && td_seed_get() == 1);
    EXPECT(td_step_get() == 3 + 2 * before && td_optim_steps(c.opt[1]) == before);
    train(&c, after);
    EXPECT(td_ddp_last_step(c.ddp).buckets == buckets || before == 0);
    EXPECT(note(&c, resumed, rank == 0) == n && memcmp(whole, resumed, n * sizeof *whole) == 0);
    EXPECT(td_loader_epoch(c.data) == epoch && td_loader_position(c.data) == position);
    if (rank != 0)
        n = note(&c, resumed, false);
    end(&c);
    begin(&a, r, 9);                           /* another seed from the start: the comparison can fail                            */
    train(&a, before + after);
    n = note(&a, resumed, false);
    EXPECT(same_on_all(resumed, n) && memcmp(whole, resumed, n * sizeof *whole) != 0);
    end(&a);
}

/* Saved before the first step: the order of arrival is still to be measured. */
static void from_the_start(void)
{
    goes_on(ADAMW, 0, 3);
}

/* A training run that goes on where another number of ranks left off is equal up to rounding; here: it loads. */
static void another_number_of_ranks(void)
{
    job j;
    begin(&j, SGD, 1);
    EXPECT(td_train_state_save(&j.state, path) == 0);
    td_train_state more = j.state;
    more.loader = NULL;
    EXPECT(td_train_state_load(&more, path) == 0);
    end(&j);
}

static void an_error_on_one_rank_is_everybodys(void)
{
    job j;
    begin(&j, ADAMW, 1);
    EXPECT(td_train_state_save(&j.state, path) == 0);
    td_train_state other = j.state;
    if (rank == size - 1)
        other.n_extra = 0, other.n_optims = 1;
    EXPECT(td_train_state_load(&other, path) == TD_ERR_ARGUMENT && strstr(td_error_message(), "was saved with 2 optimizers, but this program has 1"));
    td_error_clear();
    char none[160];
    snprintf(none, sizeof none, "%s.none/x", path);
    EXPECT(td_train_state_save(&j.state, none) == TD_ERR_IO && strstr(td_error_message(), "td_train_state_save: "));   /* rank 0 alone tried */
    td_error_clear();
    EXPECT(td_train_state_load(&j.state, rank == size - 1 ? none : path) == TD_ERR_IO && strstr(td_error_message(), "cannot be opened"));
    td_error_clear();
    if (size > 1) {                            /* a copy of another time on one rank */
        snprintf(none, sizeof none, "%s.copy", path);
        td_fill(j.own, 3);
        EXPECT(td_train_state_save(&j.state, none) == 0);
        EXPECT(td_train_state_load(&j.state, rank == 0 ? path : none) == TD_ERR_MISMATCH && strstr(td_error_message(), "on rank 1 than on rank 0"));
        td_error_clear();
        if (rank == 0)
            unlink(none);
    }
    end(&j);
}

int main(int argc, char **argv)
{
    td_errors(TD_ERRORS_RETURN);
    td_init(&argc, &argv);
    rank = td_rank(td_world());
    size = td_size(td_world());
    long pid = (long)getpid();
    {
        TD_SCOPE();
        td_tensor *first = td_full(TD_SCALAR, TD_I64, (double)pid);
        td_broadcast(td_world(), first, 0);
        snprintf(path, sizeof path, "/tmp/tandem-state-%.0f", td_item(first));
    }
    goes_on(SGD, 5, 6);
    goes_on(ADAMW, 5, 6);
    goes_on(LAMB, 4, 7);
    from_the_start();
    another_number_of_ranks();
    an_error_on_one_rank_is_everybodys();
    td_barrier(td_world());
    if (rank == 0) {
        unlink(path);
        printf("1..%d\n", tests);
    }
    td_finish();                               /* its status tells of the errors that were asked for                           */
    return failures != 0;
}
