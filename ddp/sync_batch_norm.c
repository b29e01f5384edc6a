/* ddp/sync_batch_norm.c: batch norm whose statistics are those of all ranks' rows.
 *
 * Forward: every rank's count, mean and sum of squared deviations are gathered in f64 and merged in rank order (Chan, Golub and LeVeque
 * 1983), so each rank holds the same bits, however uneven the shares; an empty share takes part with a count of 0. Backward: the two
 * sums that the gradient of x needs are gathered likewise. Gradients are counted in units that ranks choose for themselves
 * (autograd_impl.h); what is added over ranks is unit * gradient, so that uneven weights come out as in one process.
 *
 * Collectives of backward meet with the buckets'. A bucket becomes full at a time that depends on the rank's own graph, these sums
 * do not. So on a communicator with such layers buckets are launched only here and at the end, and here only as many as every
 * rank has full: that number travels with the sums. The sequence of collectives is then the same everywhere.
 */
#include <math.h>
#include "ddp_impl.h"

typedef struct { td_comm *comm; double momentum, eps; } sync_attr;
typedef struct { int64_t n, c, inner; } extent;

static extent extent_of(const td_call *call)
{
    td_shape s = td_call_input_shape(call, 0);
    extent e = { s.dim[0], s.dim[1], 1 };
    for (int i = 2; i < s.ndim; i++)
        e.inner *= s.dim[i];
    return e;
}

static int infer(td_call *call)
{
    td_tensor *x = td_call_input(call, 0), *mean = td_call_input(call, 3);
    char xt[128];
    if (x->shape.ndim < 2 || x->shape.dim[1] != mean->shape.dim[0])
        return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, expected (N,%lld,…)", td__shape_text(x->shape, xt), (long long)mean->shape.dim[0]);
    if (!td__is_float(x->dtype) || x->dtype != mean->dtype)
        return td_call_error(call, TD_ERR_DTYPE, "x is %s, expected %s as the module's statistics", td_dtype_name(x->dtype), td_dtype_name(mean->dtype));
    return td_call_infer(call, 0, x->shape, x->dtype);
}

/* mine (n numbers) of every rank in rank order. Memory of the caller's to free, or NULL after td__fail. */
static double *gather(td_comm *comm, const double *mine, int64_t n)
{
    if (td__ddp_headers_finish(comm))              /* in a backward: an error of some rank stops all of them here          */
        return NULL;
    double *all = td__alloc((size_t)(n * td_size(comm)) * sizeof *all);
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = TD_F64, .in = mine, .out = all, .count = n, .pre = 1, .post = 1, .site = td__site,
                     .label = "synchronised batch norm" };
    if (all && td__coll_run(comm, &coll)) {
        td__free(all);
        return NULL;
    }
    return all;
}

/* from: of each rank the count, c means, c sums of squares. mean and m2 of all of them; returns their count. */
static double merge(const double *from, int ranks, int64_t c, double *mean, double *m2)
{
    double count = 0;
    memset(mean, 0, (size_t)c * sizeof *mean);
    memset(m2, 0, (size_t)c * sizeof *m2);
    for (int r = 0; r < ranks; r++) {
        const double *one = from + r * (2 * c + 1), *its_mean = one + 1, *its_m2 = its_mean + c;
        double both = count + one[0];
        for (int64_t k = 0; k < c && one[0] > 0; k++) {
            double d = its_mean[k] - mean[k];
            m2[k] += its_m2[k] + d * d * (count * one[0] / both);
            mean[k] += d * (one[0] / both);
        }
        count = both;
    }
    return count;
}

static void put(td_tensor *x, int64_t i, double value)
{
    td__element_put(x->dtype, (char *)td__ptr(x) + (size_t)i * td_dtype_size(x->dtype), value);
}

static double get(const td_tensor *x, int64_t i, double standard)
{
    return x ? td__element_get(x->dtype, (char *)td__ptr(x) + (size_t)(i * x->stride[0]) * td_dtype_size(x->dtype)) : standard;
}

static void learn(td_tensor *running_mean, td_tensor *running_var, double momentum, int64_t c, double count, const double *mean, const double *m2)
{
    for (int64_t k = 0; k < c; k++) {
        put(running_mean, k, (1 - momentum) * get(running_mean, k, 0) + momentum * mean[k]);
        put(running_var, k, (1 - momentum) * get(running_var, k, 0) + momentum * m2[k] / (count - 1));
    }
    running_mean->storage->version++;
    running_var->storage->version++;
}

/* y = w (x - mean) rstd + b; save: count, means, rstds for the gradient */
static void normalise(td_call *call, td_tensor *x, double count, double *mean, double *m2, double *save)
{
    const sync_attr *a = td_call_attr(call);
    extent e = extent_of(call);
    td_tensor *w = td_call_input(call, 1), *b = td_call_input(call, 2);
    save[0] = count;
    if (!td_recomputing())
        learn(td_call_input(call, 3), td_call_input(call, 4), a->momentum, e.c, count, mean, m2);
    for (int64_t k = 0; k < e.c; k++) {
        double rstd = 1 / sqrt(m2[k] / count + a->eps);
        save[1 + k] = mean[k];
        save[1 + e.c + k] = rstd;
        m2[k] = get(w, k, 1) * rstd;                /* from here on: factor and term                                       */
        mean[k] = get(b, k, 0) - mean[k] * m2[k];
    }
    td__kernels(x)->batch_norm_affine(x->dtype, e.n, e.c, e.inner, td__ptr(td_call_output(call, 0)), td__ptr(x), NULL, m2, NULL, mean, false);
}

/* mine: count, means, sums of squares, then as much room for those of all. */
static int run_on(td_call *call, td_tensor *x, double *mine, double *save)
{
    const sync_attr *a = td_call_attr(call);
    extent e = extent_of(call);
    mine[0] = (double)(e.n * e.inner);
    if (mine[0] > 0)
        td__kernels(x)->batch_norm_pair(x->dtype, e.n, e.c, e.inner, td__ptr(x), NULL, NULL, mine + 1, mine + 1 + e.c);
    double *all = gather(a->comm, mine, 2 * e.c + 1);
    if (!all)
        return td__pending();
    double *mean = mine + 2 * e.c + 1, *m2 = mean + e.c, count = merge(all, td_size(a->comm), e.c, mean, m2);
    td__free(all);
    if (count == 1)
        return td_call_error(call, TD_ERR_SHAPE, "all ranks together have one value per channel: training needs more than one for a variance");
    if (count > 0)
        normalise(call, x, count, mean, m2, save);
    return 0;
}

static int run(td_call *call)
{
    const int64_t c = extent_of(call).c;
    int code = td__need("td_sync_batch_norm", td_call_input(call, 0), batch_norm_pair);
    if (code)
        return code;
    td_tensor *x = td_contiguous(td_call_input(call, 0)), *kept = td__tensor_new(TD_SHAPE(2 * c + 1), TD_F64, (td_device){ TD_CPU, 0 });
    double *mine = td__calloc((size_t)(4 * c + 1) * sizeof *mine);
    if (x->poisoned || kept->poisoned || !mine) {
        td__tensor_unref(kept);
        td__free(mine);
        return td__pending();
    }
    memset(td__ptr(kept), 0, (size_t)(2 * c + 1) * sizeof(double));
    code = run_on(call, x, mine, td__ptr(kept));
    td__free(mine);
    td_call_save(call, kept);
    td_call_save(call, x);
    if (td_call_input(call, 1))
        td_call_save(call, td_call_input(call, 1));
    return code;
}

/* The sums of all ranks, in this rank's unit, over its own; and as many buckets are launched as every rank has full. */
static int add_over_ranks(td_comm *comm, double *mine, int64_t c)
{
    double unit = td__backward_unit(), full = INFINITY;
    int64_t n = 2 * c + 1;
    if (td__ddp_headers_finish(comm))
        return td__pending();
    mine[0] = (double)td__ddp_full(comm);
    for (int64_t i = 1; i < n; i++)
        mine[i] = mine[i] == 0 ? 0 : mine[i] * unit;    /* weight 0 has no unit, and adds nothing                              */
    double *all = gather(comm, mine, n);
    if (!all)
        return td__pending();
    memset(mine, 0, (size_t)n * sizeof *mine);
    for (int r = 0; r < td_size(comm); r++) {
        full = fmin(full, all[r * n]);
        for (int64_t i = 1; i < n; i++)
            mine[i] += all[r * n + i];
    }
    for (int64_t i = 1; i < n; i++)
        mine[i] /= unit;
    td__free(all);
    return td__ddp_launch(comm, (int64_t)full);
}

static void own_gradients(extent e, td_grad_slot *in, const double *sum, const double *rstd)
{
    for (int64_t k = 0; k < e.c; k++) {
        if (in[1].into)
            put(in[1].into, k, (in[1].add ? get(in[1].into, k, 0) : 0) + sum[e.c + k] * rstd[k]);
        if (in[2].into)
            put(in[2].into, k, (in[2].add ? get(in[2].into, k, 0) : 0) + sum[k]);
    }
}

static int grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    const sync_attr *a = td_call_attr(call);
    extent e = extent_of(call);
    td_tensor *g = grad_out[0], *w = td_call_input(call, 1), *x = td_call_saved(call, 1);
    const double *save = td__ptr(td_call_saved(call, 0)), *mean = save + 1, *rstd = mean + e.c;
    const bool rows = g && e.n * e.inner > 0;
    double *work = td__calloc((size_t)(5 * e.c + 1) * sizeof *work), *sum = work + 1;
    if (!work)
        return td__pending();
    if (rows)
        td__kernels(g)->batch_norm_pair(g->dtype, e.n, e.c, e.inner, td__ptr(x), td__ptr(g), mean, sum, sum + e.c);
    own_gradients(e, in, sum, rstd);
    int code = add_over_ranks(a->comm, work, e.c);
    if (!code && rows && in[0].into) {
        double *f = sum + 2 * e.c, *slope = f + e.c, *term = sum;
        for (int64_t k = 0; k < e.c; k++) {
            f[k] = get(w, k, 1) * rstd[k];
            slope[k] = -f[k] * rstd[k] * rstd[k] * sum[e.c + k] / save[0];
            term[k] = -f[k] * sum[k] / save[0] - slope[k] * mean[k];
        }
        td__kernels(g)->batch_norm_affine(g->dtype, e.n, e.c, e.inner, td__ptr(in[0].into), td__ptr(g), td__ptr(x), f, slope, term, in[0].add);
    }
    td__free(work);
    return code;
}

static const td_op sync_batch_norm = { .name = "sync_batch_norm", .infer = infer, .run = run, .grad = grad, .attr_size = sizeof(sync_attr),
                                       .optional = 1u << 1 | 1u << 2, .flags = TD_OP_MIXED | TD__OP_COLLECTIVE };

static td_tensor *forward(const td__norm_call *n, void *comm)
{
    sync_attr a = { comm, n->momentum, n->eps };
    td_tensor *in[] = { n->x, n->weight, n->bias, n->running_mean, n->running_var };
    return td_apply(&sync_batch_norm, in, 5, &a);
}

/* ---- conversion --------------------------------------------------------------------------------------------------------------------------- */

/* Communicators whose buckets wait for these layers. */
static struct { td_comm **comm; size_t n, room; } paced;

bool td__ddp_paced(const td_comm *comm)
{
    for (size_t i = 0; i < paced.n; i++)
        if (paced.comm[i] == comm)
            return true;
    return false;
}

void td__ddp_pace_forget(void)
{
    td__free(paced.comm);
    memset(&paced, 0, sizeof paced);
}

static int pace(td_comm *comm)
{
    if (td__ddp_paced(comm))
        return 0;
    if (paced.n == paced.room) {
        size_t room = paced.room ? 2 * paced.room : 4;
        td_comm **grown = td__grow(paced.comm, paced.room * sizeof *grown, room * sizeof *grown);
        if (!grown)
            return td__pending();
        paced.comm = grown;
        paced.room = room;
    }
    paced.comm[paced.n++] = comm;
    return 0;
}

static int convert(td_module *m, td_comm *comm)
{
    td__tree *t = td__tree_of(m);
    int n = td__batch_norm_divert(m, forward, comm);
    for (int i = 0; i < t->n; i++)
        if (t->entry[i]->child)
            n += convert(t->entry[i]->child, comm);
    return n;
}

int td_ddp_sync_batch_norm(td_module *model, td_comm *comm)
{
    TD_ENTER();
    comm = comm ? comm : td_world();
    int code = td__pending();
    code = code ? code : td__module_check("td_ddp_sync_batch_norm", model);
    code = td__comm_agree(comm, code ? code : pace(comm), "td_ddp_sync_batch_norm");
    return code ? code : convert(model, comm);
}
