/* autograd/capture_blocks.c: a chain of element-wise operations, block by block: on each block all operations one after the other, so that what one
 * writes the next reads from the cache.
 *
 * The operations' own `run` does it, on tensors that are windows of one block: the kernels are those of the step, and a value's bits do not depend
 * on where it stands (tensor/cpu/span.h). 16 bits are widened, computed in f32 and rounded after each operation, as half.c does it with whole
 * tensors. What only the chain reads has no memory but a block of scratch for each thread. `run` saves nothing here: what gradients need
 * is saved afterwards, once, with the whole tensors.
 */
#include "capture_fuse.h"
#include <omp.h>
#include <string.h>

/* One thread's windows: of each member its call, and its operands as they are and widened. */
typedef struct {
    td_call    call;
    td_tensor  in[TD__CHAIN_INPUTS], wide[TD__CHAIN_INPUTS], out, wide_out;
    td_tensor *list[TD__CHAIN_INPUTS];
    int64_t    from[TD__CHAIN_INPUTS], to;             /* elements before the chain's first, of inputs and output                 */
} window;
struct td__lane {
    td_storage *scratch;
    window w[];
};

/* Slots behind the chain's own: operands in f32 while one member computes. */
static int slots_of(const td__chain *c)
{
    return c->slots + TD__CHAIN_INPUTS + 1;
}

/* Elements of a block at most, of a chain of long rows, too. */
static int64_t most(const td__chain *c)
{
    return c->row > TD__CHAIN_BLOCK ? c->row : TD__CHAIN_BLOCK;
}

/* ---- lanes ------------------------------------------------------------------------------------------------------------------------------ */

static void in_scratch(const td__chain *c, td_tensor *x, td_storage *scratch, int slot, td_dtype dtype)
{
    x->storage = scratch;
    x->dtype = dtype;
    x->offset = slot * most(c) * (int64_t)(sizeof(double) / td_dtype_size(dtype));
}

static td__lane *lane_new(const td__chain *c)
{
    td__lane *lane = td__calloc(sizeof *lane + (size_t)c->n * sizeof *lane->w);
    if (!lane)
        return NULL;
    lane->scratch = td__storage_new((td_device){ TD_CPU, 0 }, (size_t)(slots_of(c) * most(c)) * sizeof(double));
    if (!lane->scratch) {
        td__free(lane);
        return NULL;
    }
    for (int k = 0; k < c->n; k++) {
        const td__member *m = &c->member[k];
        window *w = &lane->w[k];
        w->call.op = m->f->call->op;
        w->call.attr = m->f->call->attr;
        w->call.device = lane->scratch->device;
        w->call.n_in = m->f->n_in;
        w->call.n_out = 1;
        w->call.saved = w->call.saved_here;
        w->call.room_saved = SAVED_HERE;
        w->call.in = w->list;
        w->call.out[0] = m->wide && td__is_half(m->out.dtype) ? &w->wide_out : &w->out;
        in_scratch(c, &w->wide_out, lane->scratch, c->slots + TD__CHAIN_INPUTS, TD_F32);
        in_scratch(c, &w->out, lane->scratch, m->out.slot, m->out.dtype);
        for (int i = 0; i < m->f->n_in; i++) {
            in_scratch(c, &w->wide[i], lane->scratch, c->slots + i, TD_F32);
            in_scratch(c, &w->in[i], lane->scratch, m->in[i].slot, m->in[i].dtype);
            w->list[i] = m->wide && td__is_half(m->in[i].dtype) ? &w->wide[i] : &w->in[i];
        }
    }
    return lane;
}

static void lane_free(td__lane *lane)
{
    td__storage_unref(lane->scratch);
    td__free(lane);
}

int td__chain_threads(const td__chain *c)
{
    return c->numel > TD__CHAIN_PARALLEL ? omp_get_max_threads() : 1;
}

int td__chain_lanes(td__chain *c, int threads)
{
    if (threads <= c->lanes)
        return 0;
    td__lane **more = td__grow(c->lane, (size_t)c->lanes * sizeof *more, (size_t)threads * sizeof *more);
    if (!more)
        return TD_ERR_MEMORY;
    for (c->lane = more; c->lanes < threads; c->lanes++)
        if (!(c->lane[c->lanes] = lane_new(c)))
            return TD_ERR_MEMORY;
    return 0;
}

void td__chain_lanes_free(td__chain *c)
{
    for (int i = 0; i < c->lanes; i++)
        lane_free(c->lane[i]);
    td__free(c->lane);
}

/* ---- one block ---------------------------------------------------------------------------------------------------------------------------- */

/* Memory may have another place in each replay. */
static void bind(const td__chain *c, td__lane *lane)
{
    for (int k = 0; k < c->n; k++) {
        const td__member *m = &c->member[k];
        window *w = &lane->w[k];
        for (int i = 0; i < m->f->n_in; i++)
            if (m->in[i].x) {
                w->in[i].storage = m->in[i].x->storage;
                w->from[i] = m->in[i].x->offset;
            }
        if (m->out.x) {
            w->out.storage = m->out.x->storage;
            w->to = m->out.x->offset;
        }
    }
}

static void shape_to(const td__chain *c, td_tensor *x, td__reach reach, int64_t n)
{
    x->shape = reach == TD__ONE ? TD_SCALAR : reach == TD__ROW ? (td_shape){ 1, { c->row } } : c->row ? (td_shape){ 2, { n / c->row, c->row } } :
                                                                                            (td_shape){ 1, { n } };
    td__shape_strides(x->shape, x->stride);
}

static int member_run(const td__chain *c, int k, window *w, int64_t low, int64_t n)
{
    const td__member *m = &c->member[k];
    int code = 0;
    for (int i = 0; i < m->f->n_in; i++) {
        const td__operand *o = &m->in[i];
        shape_to(c, &w->in[i], o->reach, n);
        if (o->x)
            w->in[i].offset = w->from[i] + (o->reach == TD__EACH ? low : 0);
        if (w->list[i] == &w->in[i])
            continue;
        shape_to(c, &w->wide[i], o->reach, n);
        code = code ? code : td__copy(&w->wide[i], &w->in[i], false);
    }
    shape_to(c, &w->out, TD__EACH, n);
    if (m->out.x)
        w->out.offset = w->to + low;
    td_tensor *into = w->call.out[0];
    if (into != &w->out)
        shape_to(c, into, TD__EACH, n);
    if (!code && m->drop)
        td__dropout_part(&m->drawn, into, w->list[0], low, n);
    else if (!code)
        code = w->call.op->run(&w->call);
    return code || into == &w->out ? code : td__copy(&w->out, into, false);
}

/* ---- all of them ---------------------------------------------------------------------------------------------------------------------------- */

/* The chain's elements as `spans` equal spans, each cut into blocks: one span, or the samples of a dropout too large for a block, since it counts
 * elements within each sample. */
typedef struct { int64_t spans, span, block, per; } cut;

static cut cut_of(const td__chain *c)
{
    int64_t unit = c->row ? c->row : 1, sample = 0;
    for (int k = 0; k < c->n; k++)
        if (c->member[k].drop)
            sample = c->member[k].drawn.size;
    cut all = { 1, c->numel, TD__CHAIN_BLOCK / unit * unit, 0 };
    all.block = all.block ? all.block : unit;
    if (sample > all.block)
        all.spans = c->numel / sample, all.span = sample;
    else if (sample)
        all.block -= all.block % sample;
    all.per = (all.span + all.block - 1) / all.block;
    return all;
}

static int run_blocks(td__chain *c, int threads)
{
    const cut all = cut_of(c);
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        td__lane *lane = c->lane[omp_get_thread_num()];
        bind(c, lane);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < all.spans * all.per; b++) {
            const int64_t at = b % all.per * all.block, low = b / all.per * all.span + at;
            const int64_t n = all.span - at < all.block ? all.span - at : all.block;
            int code = 0;
            for (int k = 0; k < c->n && !code; k++)
                code = member_run(c, k, &lane->w[k], low, n);
            if (code)
#pragma omp atomic write
                failed = code;
        }
    }
    return failed;
}

/* What td__call_again does before `run`. Threads take memory without waiting for what still writes to it: that is done here. */
static int before(td__member *m)
{
    td_call *call = m->f->call;
    td__site = m->record->site;
    td__saved_drop(call);
    call->freed = false;
    call->error = 0;
    for (int i = 0; i < m->f->n_in; i++)
        if (m->in[i].x)
            td__settle(m->in[i].x->storage);
    if (!m->drop)
        return 0;
    call->in = m->f->in;
    int code = td__dropout_draw(call, m->shape, &m->drawn);
    call->in = NULL;
    return code;
}

/* And behind it. */
static int after(td__member *m, int code)
{
    td_call *call = m->f->call;
    if (call->recording && !code && !m->drop) {
        call->in = m->f->in;
        call->out[0] = m->f->out[0];
        for (int s = 0; s < m->f->n_saved; s++)
            td_call_save(call, m->f->saved[s] < 0 ? m->f->out[~m->f->saved[s]] : m->f->in[m->f->saved[s]]);
        call->in = NULL;
        call->out[0] = NULL;
        code = call->error;
    }
    if (!call->recording || code)
        td__saved_drop(call);
    return code;
}

int td__chain_run(td__chain *c)
{
    const int threads = td__chain_threads(c);
    const void *site = td__site;
    int code = td__chain_lanes(c, threads);
    for (int k = 0; k < c->n && !code; k++)
        code = before(&c->member[k]);
    td__site = site;
    if (!code && (code = run_blocks(c, threads)))
        td__fail(TD_ERR_INTERNAL, "td_replay: a chain of %d operations that begins with td_%s failed with code %d", c->n, c->member[0].f->call->op->name, code);
    for (int k = 0; k < c->n; k++) {
        int kept = after(&c->member[k], code);
        code = code ? code : kept;
    }
    return code;
}
