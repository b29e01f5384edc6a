/* ddp/sync_batch_norm.c: batch norm whose statistics are those of all ranks' rows.
 *
 * Forward: every rank's count, mean and sum of squared deviations are gathered in f64 and merged in rank order (sync_norm of kernels.h; on a GPU
 * they never leave it), so each rank holds the same bits, however uneven the shares; an empty share takes part with a count of 0. Backward: the two
 * sums that the gradient of x needs are gathered likewise. Gradients are counted in units that ranks choose for themselves
 * (autograd_impl.h); what is added over ranks is unit * gradient, so that uneven weights come out as in one process.
 *
 * Collectives of backward meet with the buckets'. A bucket becomes full at a time that depends on the rank's own graph, these sums
 * do not. So on a communicator with such layers buckets are launched only here and at the end, and here only as many as every
 * rank has full: that number is exchanged beside the sums, from host to host. The sequence of collectives is then the same everywhere.
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

/* mine (n numbers, of the device) of every rank in rank order. 0, or negative after td__fail. */
static int gather(td_comm *comm, td_device device, const double *mine, double *all, int64_t n)
{
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = TD_F64, .device = device, .in = mine, .out = all, .count = n, .pre = 1, .post = 1,
                     .plain = true, .site = td__site, .label = "synchronised batch norm" };
    return td__ddp_headers_finish(comm) ? td__pending() : td__coll_run(comm, &coll);   /* in a backward: an error of some rank stops all of them here */
}

/* Room for n numbers where x lies, all 0. */
static td_storage *numbers(const td_tensor *x, int64_t n)
{
    td_storage *s = td__storage_new(x->storage->device, (size_t)n * sizeof(double));
    td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 } } };
    if (s)
        td__kernels(x)->fill(&l, TD_F64, s->data, 0);
    return s;
}

static int needs(const td_tensor *x)
{
    static const char who[] = "td_sync_batch_norm";
    int code = td__need(who, x, batch_norm_pair);
    code = code ? code : td__need(who, x, batch_norm_affine);
    code = code ? code : td__need(who, x, sync_norm);
    code = code ? code : td__need(who, x, sync_norm_own);
    code = code ? code : td__need(who, x, sync_norm_grad);
    return code ? code : td__need(who, x, fill);
}

static void *data(td_tensor *x)
{
    return x ? td__ptr(x) : NULL;
}

/* work: count, means, sums of squares of this rank, then of all of them, then factors and terms */
static int run_on(td_call *call, td_tensor *x, double *work, double *save)
{
    const sync_attr *a = td_call_attr(call);
    extent e = extent_of(call);
    const int64_t n = 2 * e.c + 1;
    const td_kernels *k = td__kernels(x);
    td_tensor *w = td_call_input(call, 1), *b = td_call_input(call, 2), *mean = td_call_input(call, 3), *var = td_call_input(call, 4);
    const bool learn = !td_recomputing();
    double *all = work + n, *factor = all + n * td_size(a->comm), *term = factor + e.c;
    if (e.n * e.inner > 0) {
        td_loop one = { .ndim = 1, .dim = { 1 }, .stride = { { 1 } } };
        k->fill(&one, TD_F64, work, (double)(e.n * e.inner));
        k->batch_norm_pair(x->dtype, e.n, e.c, e.inner, td__ptr(x), NULL, NULL, work + 1, work + 1 + e.c);
    }
    int code = gather(a->comm, x->storage->device, work, all, n);
    if (code)
        return code;
    double count = 0;                              /* only where the host may look: a GPU's variance of one value is NaN           */
    for (int r = 0; r < td_size(a->comm) && x->storage->ops->host_memory; r++)
        count += all[r * n];
    if (count == 1)
        return td_call_error(call, TD_ERR_SHAPE, "all ranks together have one value per channel: training needs more than one for a variance");
    w = w ? td_contiguous(w) : NULL;
    b = b ? td_contiguous(b) : NULL;
    k->sync_norm(x->dtype, td_size(a->comm), e.c, all, data(w), data(b), learn ? td__ptr(mean) : NULL, learn ? td__ptr(var) : NULL, a->momentum,
                 a->eps, save, factor, term);
    if (learn) {
        mean->storage->version++;
        var->storage->version++;
    }
    if (e.n * e.inner > 0)
        k->batch_norm_affine(x->dtype, e.n, e.c, e.inner, td__ptr(td_call_output(call, 0)), td__ptr(x), NULL, factor, NULL, term, false);
    return 0;
}

static int run(td_call *call)
{
    const int64_t c = extent_of(call).c;
    const sync_attr *a = td_call_attr(call);
    int code = needs(td_call_input(call, 0));
    if (code)
        return code;
    td_tensor *x = td_contiguous(td_call_input(call, 0)), *kept = td__tensor_new(TD_SHAPE(2 * c + 1), TD_F64, x->storage->device);
    td_storage *work = x->poisoned || kept->poisoned ? NULL : numbers(x, (2 * c + 1) * (1 + td_size(a->comm)) + 2 * c);
    if (!work) {
        td__tensor_unref(kept);
        return td__pending();
    }
    code = run_on(call, x, work->data, td__ptr(kept));
    td__storage_unref(work);
    td_call_save(call, kept);
    td_call_save(call, x);
    if (td_call_input(call, 1))
        td_call_save(call, td_call_input(call, 1));
    return code;
}

/* As many buckets are launched as every rank has full. */
static int launch_together(td_comm *comm)
{
    double mine, full = INFINITY, *all = td__alloc((size_t)td_size(comm) * sizeof *all);
    if (!all)
        return td__pending();
    int code = td__ddp_headers_finish(comm);
    mine = (double)td__ddp_full(comm);
    code = code ? code : gather(comm, (td_device){ TD_CPU, 0 }, &mine, all, 1);
    for (int r = 0; r < td_size(comm) && !code; r++)
        full = fmin(full, all[r]);
    td__free(all);
    return code ? td__pending() : td__ddp_launch(comm, (int64_t)full);
}

/* work: this rank's sums and products, the same in its unit, those of all, then factors, slopes and terms */
static int grad_on(td_call *call, td_tensor *g, td_grad_slot *in, double *work)
{
    const sync_attr *a = td_call_attr(call);
    extent e = extent_of(call);
    td_tensor *w = td_call_input(call, 1), *x = td_call_saved(call, 1);
    const td_kernels *k = td__kernels(x);
    const double *save = td__ptr(td_call_saved(call, 0)), unit = td__backward_unit();
    double *send = work + 2 * e.c, *all = send + 2 * e.c, *factor = all + 2 * e.c * td_size(a->comm), *slope = factor + e.c, *term = slope + e.c;
    const bool rows = g && e.n * e.inner > 0;
    if (rows)
        k->batch_norm_pair(x->dtype, e.n, e.c, e.inner, td__ptr(x), td__ptr(g), save + 1, work, work + e.c);
    k->sync_norm_own(x->dtype, e.c, work, save, unit, data(in[1].into), data(in[2].into), in[1].add, in[2].add, send);
    int code = gather(a->comm, x->storage->device, send, all, 2 * e.c);
    code = code ? code : launch_together(a->comm);
    if (code || !rows || !in[0].into)
        return code;
    w = w ? td_contiguous(w) : NULL;
    k->sync_norm_grad(x->dtype, td_size(a->comm), e.c, all, save, unit, data(w), factor, slope, term);
    k->batch_norm_affine(x->dtype, e.n, e.c, e.inner, td__ptr(in[0].into), td__ptr(g), td__ptr(x), factor, slope, term, in[0].add);
    return 0;
}

static int grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    const sync_attr *a = td_call_attr(call);
    const int64_t c = extent_of(call).c;
    td_storage *work = numbers(td_call_saved(call, 1), 2 * c * (2 + td_size(a->comm)) + 3 * c);
    int code = work ? grad_on(call, grad_out[0], in, work->data) : td__pending();
    if (work)
        td__storage_unref(work);
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
