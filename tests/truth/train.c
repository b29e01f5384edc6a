/* tests/truth/train.c: one case on all ranks, then the same in one process.
 */
#include "truth.h"

/* Who takes the branch: on N ranks by rank and step; one process runs the ranks' sub-batches in turn and decides alike. */
static bool takes_branch(truth_case kase, int part, int step)
{
    return kase != BRANCH || (part + step) % 2 == 1;
}

static td_optim *optimizer(const truth_row *row, td_module *net)
{
    double lr = row->model >= RESNET || row->model == BERT ? 0.005 : 0.05;   /* norms magnify every difference */
    if (row->optim == SGD)
        return td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = lr, .momentum = 0.9f, .weight_decay = 1e-3f });
    /* the keys' biases of attention have no influence: their gradients are rounding alone, which AdamW divides by eps */
    if (row->model == GPT || row->model == BERT)
        return td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 5e-4, .eps = 1e-6 });
    return td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 5e-3f });
}

static td_loader *loader(const truth_row *row, int ranks, int part, bool alone)
{
    int micro = row->kase == ACCUMULATE && alone && !truth_by_shares(row->model) ? 3 : 1;   /* one process takes the three at once */
    int64_t full = (int64_t)BATCH * ranks, rows = 6 * full;
    if (row->kase == UNEVEN)   /* the last batch: one rank empty (mlp), or shares that differ by a row */
        rows = 3 * full + (row->model == MLP ? ranks - 1 : row->model >= RESNET ? 3 * ranks + 1 : ranks + 1);
    td_loader_opts opts = { .batch = BATCH * (alone ? ranks : 1) * micro, .shuffle = true, .seed = 3, .part = part,
                            .parts = alone ? 1 : ranks };
    return td_loader_new(truth_data(row->model, rows, row->dtype), &opts);
}

static void next(td_loader *data, td_batch *b)
{
    if (!td_loader_next(data, b) && !td_error_pending())
        td_loader_next(data, b);   /* the next epoch */
}

static void zero_gradient(td_tensor *grad, void *user)
{
    (void)user;
    td_fill(grad, 0);
}

static void leave_out(td_module *net)
{
    td_tensors p = td_parameters(net);
    for (size_t i = 0; i < p.n; i++)
        td_hook(p.list[i], zero_gradient, NULL);
}

/* One step of one model on this rank's share. */
static void step_on_ranks(const truth_row *row, td_module *net, td_ddp *ddp, td_optim *opt, td_loader *data, int step)
{
    int micro = row->kase == ACCUMULATE ? 3 : 1;
    for (int m = 0; m < micro; m++) {
        TD_SCOPE();
        td_batch b;
        next(data, &b);
        td_ddp_no_sync(ddp, m < micro - 1);
        td_backward(truth_loss(net, b.x, b.y, takes_branch(row->kase, td_rank(td_world()), step)));
    }
    td_optim_step(opt);
}

/* The ranks' shares of a batch in turn: the first of them have a row more where the rows do not divide evenly. */
static void backward_by_shares(const truth_row *row, td_module *net, const td_batch *b, int step, int ranks)
{
    for (int r = 0; r < ranks; r++) {
        int64_t even = b->rows / ranks, more = b->rows % ranks, from = r * even + (r < more ? r : more), n = even + (r < more);
        td_samples(td_narrow(b->sample, 0, from, n));
        td_backward(truth_loss(net, td_narrow(b->x, 0, from, n), td_narrow(b->y, 0, from, n), takes_branch(row->kase, r, step)));
    }
}

/* The same step in one process: the whole batch at once; with a branch, or norms over the batch, the ranks' shares in turn. */
static void step_alone(const truth_row *row, td_module *net, td_optim *opt, td_loader *data, int step, int ranks)
{
    bool shares = truth_by_shares(row->model);
    for (int m = 0; m < (row->kase == ACCUMULATE && shares ? 3 : 1); m++) {
        TD_SCOPE();
        td_batch b;
        next(data, &b);
        if (row->kase == BRANCH || shares)
            backward_by_shares(row, net, &b, step, ranks);
        else
            td_backward(truth_loss(net, b.x, b.y, true));
    }
    td_optim_step(opt);
}

static td_tensor *copy_of(td_tensor *x)
{
    td_tensor *copy = td_empty(td_shape_of(x), td_dtype_of(x));
    td_assign(copy, x);
    return copy;
}

/* Are all parameters the same bits as rank 0's? The same answer on every rank. */
static bool same_bits(td_module *net)
{
    TD_SCOPE();
    td_tensors p = td_parameters(net);
    double different = 0;
    for (size_t i = 0; i < p.n; i++) {
        td_tensor *theirs = copy_of(p.list[i]);
        td_broadcast(td_world(), theirs, 0);
        size_t bytes = (size_t)td_numel(theirs) * td_dtype_size(td_dtype_of(theirs));
        different += memcmp(td_data(theirs), td_data(p.list[i]), bytes) != 0;
    }
    td_tensor *sum = td_full(TD_SCALAR, TD_F64, different);
    td_all_reduce(td_world(), sum, TD_SUM);
    return td_item(sum) == 0;
}

static td_tensor **save(td_module *net)   /* free the array; the scope has the tensors */
{
    td_tensors p = td_parameters(net);
    td_tensor **copy = malloc(p.n * sizeof *copy);
    for (size_t i = 0; i < p.n; i++)
        copy[i] = copy_of(p.list[i]);
    return copy;
}

static double distance(td_tensor *a, td_tensor *b)   /* ||a - b|| / ||b|| in f64 */
{
    td_tensor *x = td_cast(a, TD_F64), *y = td_cast(b, TD_F64), *d = td_sub(x, y);
    double norm = sqrt(td_item(td_sum(td_mul(y, y), NULL, 0, false)));
    double apart = sqrt(td_item(td_sum(td_mul(d, d), NULL, 0, false))) / norm;
    return isnan(apart) ? INFINITY : apart;                /* fmax passes over NaN */
}

int truth_run(const truth_row *row, double *worst, bool *identical)
{
    TD_SCOPE();
    int ranks = td_size(td_world()), rank = td_rank(td_world()), models = row->kase == PAIR ? 2 : 1;
    td_module *net[2];
    td_ddp *ddp[2];
    td_optim *opt[2];
    td_tensor **first[2], **after[2];
    for (int m = 0; m < models; m++) {
        td_seed((uint64_t)(11 + m + 100 * rank));          /* ranks begin with different weights: rank 0's must win */
        net[m] = truth_net_new(row->model);
        td_module_to(net[m], row->dtype);
        if (row->model == RESNET_SYNC)
            td_ddp_sync_batch_norm(net[m], NULL);
        ddp[m] = td_ddp_new(net[m], &(td_ddp_opts){ .first_bucket_bytes = 200, .bucket_bytes = 1500 });
        first[m] = save(net[m]);
        opt[m] = optimizer(row, net[m]);
        if (row->leave_out && rank == ranks - 1)
            leave_out(net[m]);
    }
    td_seed(11);
    td_step_set(0);
    td_loader *data = loader(row, ranks, rank, false);
    *identical = true;
    for (int s = 0; s < STEPS && !td_error_pending(); s++) {
        for (int m = 0; m < models; m++) {
            step_on_ranks(row, net[m], ddp[m], opt[m], data, s);
            *identical &= same_bits(net[m]);
        }
    }
    td_loader_free(data);
    for (int m = 0; m < models; m++) {
        after[m] = save(net[m]);
        td_ddp_free(ddp[m]);
        td_optim_free(opt[m]);
        td_module_free(net[m]);
    }

    *worst = 0;
    if (rank == 0 && !td_error_pending()) {
        for (int m = 0; m < models; m++) {
            net[m] = truth_net_new(row->model);
            td_module_to(net[m], row->dtype);
            td_tensors p = td_parameters(net[m]);
            for (size_t i = 0; i < p.n; i++)
                td_assign(p.list[i], first[m][i]);
            opt[m] = optimizer(row, net[m]);
        }
        td_step_set(0);
        data = loader(row, ranks, 0, true);
        for (int s = 0; s < STEPS; s++)
            for (int m = 0; m < models; m++)
                step_alone(row, net[m], opt[m], data, s, ranks);
        td_loader_free(data);
        for (int m = 0; m < models; m++) {
            td_tensors p = td_parameters(net[m]);
            for (size_t i = 0; i < p.n; i++)
                *worst = fmax(*worst, distance(after[m][i], p.list[i]));
            td_optim_free(opt[m]);
            td_module_free(net[m]);
        }
    }
    for (int m = 0; m < models; m++) {
        free(first[m]);
        free(after[m]);
    }
    td_samples(NULL);
    return td_error_pending();
}
