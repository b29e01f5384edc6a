/* optim/step.c: the step: over the flats in the order of their groups, one kernel call for each run of parameters beside one
 * another that have the same options and the same number of steps behind them; rules that need each parameter's norms get one at a time.
 *
 * A flat is waited for just before it is stepped, so the first ones are updated while the last are still being reduced. The
 * weighted mean is never written: a group's scale is one factor in the kernel. Then the gradients are consumed.
 *
 * Of a flat that ranks share (ddp's sharded optimizer; replicas on one host) each rank steps its own part. A run is cut to that part, counts its steps on
 * every rank, and calls no kernel where nothing of it is left, but a rule's norms are summed over all ranks first. Then the group is told, and the
 * others' parts come. A rank that fails tells it, too: the others would wait for its part, and the next backward's header has the error.
 *
 * Where ranks reach each other's memory they meet before values change (td__group_ops.meet), and a run is stepped in blocks that stay in cache: the
 * block's gradients are made or found, stepped, and its values stored to all ranks, before the next one's.
 *
 * Two optimizers may share a group (both step parameters of one ddp). The first to step takes its own parameters' gradients and leaves the
 * group's weights standing for the other; who steps last consumes the group.
 */
#include "optim_impl.h"
#include <math.h>

enum { BLOCK = 4096 };

static bool listed_earlier(const td_optim *opt, size_t i)
{
    return i > 0 && opt->walk[i - 1]->group == opt->walk[i]->group;
}

static int begin_groups(td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++) {
        td__group *g = opt->walk[i]->group;
        if (!g || listed_earlier(opt, i) || !g->ops || !g->ops->step_begin)
            continue;
        int rc = g->ops->step_begin(g);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* From walk[i] on: the run that one kernel call can do. Returns how many parameters. */
static size_t run_length(const td_optim *opt, size_t i)
{
    size_t n = 1;
    const td__param *first = opt->walk[i];
    for (; i + n < opt->n && !opt->rule->each; n++) {
        const td__param *p = opt->walk[i + n];
        if (!td__beside(opt->walk[i + n - 1], p) || p->options != first->options || p->steps != first->steps || !td__param_steps(p))
            break;
    }
    return n;
}

int td__run_sum(const td__run *r, int n)
{
    const td__group_ops *ops = r->flat ? r->flat->group->ops : NULL;
    return ops && ops->sum ? ops->sum(r->flat, r->squares, n) : 0;
}

/* What changes from step to step without anybody computing it on the device; asked for in this order by every step. */
static void rates(const td_optim *opt, const td__param *first, td_number *lr, td_number *bias1, td_number *bias2)
{
    const td__options *o = &opt->options[first->options];
    const double step = (double)(first->steps + 1);
    *lr = td__graph_number(o->lr / (1 + (step - 1) * o->lr_decay));
    *bias1 = td__graph_number(1 - pow(o->beta1, step));
    *bias2 = td__graph_number(1 - pow(o->beta2, step));
}

/* A run that a graph of the device has made: its numbers, and its count. */
void td__step_host(td_optim *opt, size_t i, size_t count)
{
    td_number unused[3];
    rates(opt, opt->walk[i], &unused[0], &unused[1], &unused[2]);
    for (size_t k = i; k < i + count; k++)
        opt->walk[k]->steps++;
}

/* One run on behalf of all ranks, in blocks: gradients of a few ranks, values and state of one fit into a core's second-level cache. Rules go element by
 * element, so blocks and threads change no bit; a rule that needs a parameter's norms is not cut. */
static int step_for_all(const td_optim *opt, const td__param *first, const td__run *r, int moments, int64_t low)
{
    const td__group_ops *ops = first->group->ops;
    const size_t size = td_dtype_size(r->dtype), state = td_dtype_size(td__state_dtype(r->dtype));
    const int64_t most = opt->rule->each ? r->n : BLOCK;
    int failed = 0;
#pragma omp parallel for schedule(static) if (r->n >= 8 * most)
    for (int64_t at = 0; at < r->n; at += most) {
        _Alignas(64) char room[BLOCK * sizeof(double)];
        td__run b = *r;
        b.n = r->n - at < most ? r->n - at : most;
        b.s.p = (char *)r->s.p + (size_t)at * size;
        b.s.g = ops->block(first->flat, low + at, b.n, room);
        for (int m = 0; m < moments; m++)
            b.moment[m] = (char *)r->moment[m] + (size_t)at * state;
        if (r->s.master)
            b.s.master = (char *)r->s.master + (size_t)at * state;
        int rc = opt->rule->run(first->value, &b, &opt->options[first->options]);
        if (rc != 0) {
#pragma omp atomic write
            failed = rc;
        }
        ops->store(first->flat, low + at, b.n);
    }
    return failed;
}

static int step_run(td_optim *opt, size_t i, size_t count)
{
    const td__param *first = opt->walk[i], *last = opt->walk[i + count - 1];
    const td__options *o = &opt->options[first->options];
    int moments = opt->rule->moments(o);
    int rc = td__optim_need_moments(opt, first, moments);
    if (rc == 0 && opt->rule->each)
        rc = td__optim_need_numbers("td_optim_step", opt);
    if (rc != 0)
        return rc;
    const td__span *s = &opt->span[first->span];
    td_dtype dtype = first->value->dtype;
    int64_t low = first->offset, high = last->offset + td__shape_numel(last->value->shape);
    td__own_range(first->flat, &low, &high);
    const size_t skipped = (size_t)(low - first->offset) * td_dtype_size(dtype);
    td__run r = { .dtype = dtype, .n = high - low, .step = first->steps + 1, .flat = first->flat,
                  .s = { .p = (char *)td__ptr(first->value) + skipped, .g = (char *)td__ptr(first->leaf->grad) + skipped,
                         .gscale = { td__group_scale(first->group), opt->factored ? td__optim_number(opt, TD__FACTOR) : NULL },
                         .stop = first->group->stop },
                  .squares = opt->rule->each ? td__optim_number(opt, TD__RULE) : NULL };
    rates(opt, first, &r.s.lr, &r.bias1, &r.bias2);
    td__note_run(opt, i, count);
    const size_t at = (size_t)(low - s->low) * td_dtype_size(td__state_dtype(dtype));
    for (int m = 0; m < moments && r.n > 0; m++)
        r.moment[m] = (char *)s->moment[m]->data + at;
    if (td__is_half(dtype) && r.n > 0)
        r.s.master = (char *)s->moment[TD__MASTER]->data + at;
    const bool norms = opt->rule->each && td__is_shared(first) && td__shape_numel(first->value->shape) > 0;
    if (r.n > 0 && first->group->ops && first->group->ops->meet)
        rc = step_for_all(opt, first, &r, moments, low);
    else if (r.n > 0 || norms)
        rc = opt->rule->run(first->value, &r, o);
    for (size_t k = i; k < i + count && rc == 0; k++)
        opt->walk[k]->steps++;
    return rc;
}

static int step_all(td_optim *opt)
{
    const td__flat *waited = NULL;
    for (size_t i = 0; i < opt->n;) {
        td__param *p = opt->walk[i];
        td__flat *f = p->flat;
        if (f && f != waited && p->group->ops && p->group->ops->wait) {
            int rc = p->group->ops->wait(f);
            if (rc != 0)
                return rc;
        }
        waited = f;
        if (!p->group || !td__param_steps(p)) {
            i++;
            continue;
        }
        size_t n = run_length(opt, i);
        int rc = step_run(opt, i, n);
        if (rc != 0)
            return rc;
        i += n;
    }
    return 0;
}

/* ---- flats that ranks share ------------------------------------------------------------------------------------------------------------- */

/* Which will have new values? By what the headers have told every rank, so the same everywhere, whatever happens to this rank until then. */
static void mark(td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++) {
        const td__leaf *leaf = opt->param[i].leaf;
        if (leaf->flat && td__leaf_steps(leaf))
            leaf->flat->stepped = true;
    }
}

static bool marked(const td__group *g)
{
    bool some = false;
    for (int f = 0; f < g->flats; f++)
        some |= g->flat[f]->stepped;
    return some;
}

static int spread(td_optim *opt, bool failed)
{
    int rc = 0;
    for (size_t i = 0; i < opt->n; i++) {
        td__group *g = opt->param[i].leaf->group;
        int code = g && g->ops && g->ops->stepped && marked(g) ? g->ops->stepped(g, failed) : 0;   /* which takes the marks off */
        rc = rc ? rc : code;
    }
    return rc;
}

/* Does this step take every gradient of g that somebody steps, element by element? Then nobody needs the others' mean in memory. */
static bool takes_all(const td_optim *opt, size_t i)
{
    const td__group *g = opt->walk[i]->group;
    int wanted = 0, taken = 0;
    for (int f = 0; f < g->flats; f++)
        for (int k = 0; k < g->flat[f]->leaves; k++) {
            const td__leaf *leaf = g->flat[f]->leaf[k];
            if (!td__leaf_steps(leaf) || leaf->optims == 0)
                continue;
            wanted++;
            if (leaf->optims > 1)
                return false;
        }
    for (; i < opt->n && opt->walk[i]->group == g; i++)
        taken += td__param_steps(opt->walk[i]);
    return wanted == taken && !opt->rule->each && !opt->factored;
}

/* All groups say how they will be stepped before the first one meets: ranks meet in an order of ddp's. */
static int meet_groups(td_optim *opt)
{
    int rc = 0;
    for (size_t i = 0; i < opt->n; i++) {
        td__group *g = opt->walk[i]->group;
        if (g && !listed_earlier(opt, i) && g->ops && g->ops->meet && marked(g))
            g->by_blocks = takes_all(opt, i);
    }
    for (size_t i = 0; i < opt->n && rc == 0; i++) {
        td__group *g = opt->walk[i]->group;
        if (g && !listed_earlier(opt, i) && g->ops && g->ops->meet && marked(g))
            rc = g->ops->meet(g);
    }
    return rc;
}

/* ---- consuming ---------------------------------------------------------------------------------------------------------------------- */

/* The i-th leaf of g, or NULL: `flat` and `i` walk from 0, 0. Implicit groups have one leaf and no flat. */
static td__leaf *next_leaf(const td__group *g, int *flat, int *i)
{
    if (g->implicit)
        return (*i)++ == 0 ? g->only : NULL;
    for (; *flat < g->flats; ++*flat, *i = 0)
        if (*i < g->flat[*flat]->leaves)
            return g->flat[*flat]->leaf[(*i)++];
    return NULL;
}

/* Own gradients have been taken already: what still waits for a step is another optimizer's. */
static bool wanted_by_others(const td__group *g)
{
    int flat = 0, i = 0;
    for (const td__leaf *leaf; (leaf = next_leaf(g, &flat, &i));)
        if (leaf->optims > 0 && td__leaf_steps(leaf))
            return true;
    return false;
}

static void consume(td_optim *opt)
{
    for (size_t i = 0, end; i < opt->n; i = end) {
        td__group *g = opt->walk[i]->group;
        for (end = i; end < opt->n && opt->walk[end]->group == g; end++) {
            td__leaf *leaf = opt->walk[end]->leaf;
            if (g && td__param_steps(opt->walk[end])) {
                leaf->value->storage->version++;
                leaf->used = leaf->has_grad = false;
            }
        }
        if (!g)
            continue;
        bool left = wanted_by_others(g);
        for (size_t k = i; left && k < end; k++) {
            opt->walk[k]->leaf->left_unit = g->unit;
            opt->walk[k]->leaf->left_weight = g->weight;
        }
        if (!left)
            td__group_consume(g);
    }
}

/* Gradients that another optimizer never took would count in this one's mean as well: better a sentence than a wrong mean. */
static int check_left(const td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++) {
        const td__param *p = &opt->param[i];
        const td__group *g = p->leaf->group;
        if (p->leaf->left_weight != 0 && g && td__param_steps(p) && g->unit == p->leaf->left_unit && g->weight > p->leaf->left_weight)
            return td__fail(TD_ERR_STATE, "td_optim_step: parameter \"%s\" shares a ddp with another optimizer that has not stepped since this one's "
                            "last step; step both between backwards", td__leaf_name(p->value));
    }
    return 0;
}

/* Clipping that waits for the step is of the gradients as they were. */
static int check_factor(const td_optim *opt)
{
    if (!opt->factored || opt->factored_walks == td__optim_walks(opt))
        return 0;
    return td__fail(TD_ERR_STATE, "td_optim_step: a backward came after td_clip_grad_norm_async, which measured the gradients before it; clip after the "
                    "last backward");
}

/* A bad index of gradients that were reduced stops the kernels of all ranks, whose hosts may not know yet. So this host does not ask now: else it would
 * refuse the step alone. The next backward tells all ranks. */
static bool stopped_together(const td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++)
        if (opt->param[i].leaf->group && opt->param[i].leaf->group->stop)
            return true;
    return false;
}

/* Told of since the backward, by a copy to the host, say: refused here, while the other ranks' step writes nothing but counts. It counts here, too, or bias
 * corrections and random numbers would part. */
static bool count_lost(td_optim *opt)
{
    bool lost = false;
    for (size_t i = 0; i < opt->n; i++) {
        td__param *p = &opt->param[i];
        const td__group *g = p->leaf->group;
        if (!g || !g->stop || g->traps == td__traps || !td__param_steps(p))
            continue;
        p->steps++;
        lost = true;
    }
    for (size_t i = 0; i < opt->n && lost; i++)
        if (opt->param[i].leaf->group)
            td__group_untrap(opt->param[i].leaf->group);
    return lost;
}

static int prepare(td_optim *opt, bool step)
{
    int rc = 0;
    if (!stopped_together(opt))
        rc = td__trap_look(false);
    if (rc == 0)
        rc = td__pending();                    /* never update weights from garbage */
    if (step && count_lost(opt) && rc != 0) {
        opt->steps++;
        td_step_set(td_step_get() + 1);
    }
    for (size_t i = 0; rc == 0 && i < opt->n; i++)
        if (opt->param[i].leaf->group)
            td__group_untrap(opt->param[i].leaf->group);
    if (rc == 0)
        rc = td__ema_check_step(opt);
    if (rc == 0)
        rc = check_left(opt);
    if (rc == 0)
        rc = check_factor(opt);
    if (rc == 0)
        rc = td__optim_lay_out(opt);
    if (rc == 0)
        rc = begin_groups(opt);
    if (rc == 0)
        rc = td__optim_lay_out(opt);           /* beginning may have moved leaves */
    return rc;
}

/* The gradients are taken: by a step, or by nobody. Either way random operations go on to new numbers. */
static int take(td_optim *opt, bool step)
{
    int rc = td__optim_check("td_optim_step", opt);
    if (rc == 0)
        rc = td__not_in_backward("td_optim_step");
    if (rc != 0)
        return rc;
    if (step)
        mark(opt);
    rc = prepare(opt, step);
    if (rc == 0 && step) {
        mark(opt);                             /* flats may be others now                                                      */
        rc = meet_groups(opt);
        rc = rc ? rc : step_all(opt);
    }
    int code = step ? spread(opt, rc != 0) : 0;
    rc = rc ? rc : code;
    if (rc != 0)
        return rc;
    consume(opt);
    opt->factored = false;
    opt->steps += step;
    td_step_set(td_step_get() + 1);
    return td__optim_regroup(opt);
}

int td_optim_step(td_optim *opt)
{
    TD_ENTER();
    td__note_step(opt);
    int rc = take(opt, true);
    td__record_end();
    return rc;
}

int td__optim_skip(td_optim *opt)
{
    return take(opt, false);
}
