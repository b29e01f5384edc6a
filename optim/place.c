/* optim/place.c: where parameters lie now, and moments that lie as they do.
 *
 * Leaves move: ddp puts them into buckets and rebuilds those once. So an optimizer remembers no flat for its own sake; before each step it
 * compares where every leaf is with where it was, and only when something differs lays out anew: the walk (parameters by group, flat
 * and offset) and the spans (parameters beside one another), moving each parameter's moments to its new place.
 *
 * The group that an optimizer makes may have been freed meanwhile (ddp takes the leaves over), so its address alone proves nothing: it is
 * still ours only while a leaf of ours names it and it has no ops.
 */
#include "optim_impl.h"
#include <stdlib.h>

enum { FLAT_BYTES = 256 << 10 };

/* ---- groups ------------------------------------------------------------------------------------------------------------------------- */

static bool in_own(const td_optim *opt, const td__leaf *leaf)
{
    return opt->own && leaf->group == opt->own && !leaf->group->implicit && !leaf->group->ops;
}

void td__optim_ungroup(td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++)
        if (in_own(opt, opt->param[i].leaf)) {
            td__group_free(opt->own);
            break;
        }
    opt->own = NULL;
}

/* One group, so that all parameters of an optimizer share one weighted mean, as under ddp. Flats have one dtype and, unless one parameter is
 * larger, at most FLAT_BYTES: a flat's gradients exist from the first one on that backward brings. Leaves with gradients stay as they are
 * until those are consumed: means of different groups do not mix. */
int td__optim_regroup(td_optim *opt)
{
    size_t alone = 0, own = 0;
    for (size_t i = 0; i < opt->n; i++) {
        const td__leaf *leaf = opt->param[i].leaf;
        bool ours = in_own(opt, leaf), free = leaf->requires && (!leaf->group || leaf->group->implicit);
        if ((ours || free) && leaf->has_grad)
            return 0;
        own += ours;
        alone += free;
    }
    if (alone == 0)
        return 0;
    if (own > 0)
        td__optim_ungroup(opt);
    td__leaf **leaf = td__alloc(opt->n * sizeof *leaf);
    if (!leaf)
        return TD_ERR_MEMORY;
    static const td_dtype dtype[] = { TD_F32, TD_F64, TD_F16, TD_BF16 };
    int *cut = td__calloc((opt->n + TD_COUNT(dtype)) * sizeof *cut), flats = 0, n = 0;
    for (size_t d = 0; d < TD_COUNT(dtype) && cut; d++) {
        size_t bytes = 0;
        for (size_t i = 0; i < opt->n; i++) {
            td__leaf *l = opt->param[i].leaf;
            if (!l->requires || (l->group && !l->group->implicit) || l->value->dtype != dtype[d])
                continue;
            size_t more = (size_t)td__shape_numel(l->value->shape) * td_dtype_size(l->value->dtype);
            if (cut[flats] > 0 && bytes + more > FLAT_BYTES) {
                flats++;
                bytes = 0;
            }
            bytes += more;
            leaf[n++] = l;
            cut[flats]++;
        }
        flats += cut[flats] > 0;
    }
    opt->own = n > 0 ? td__group_new(leaf, cut, flats, NULL, NULL) : NULL;
    td__free(leaf);
    td__free(cut);
    if (!cut)
        return TD_ERR_MEMORY;
    return n > 0 && !opt->own ? td__pending() : 0;
}

/* ---- the walk ------------------------------------------------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
    const td__param *x = *(td__param *const *)a, *y = *(td__param *const *)b;
    if (x->rank != y->rank)
        return x->rank - y->rank;
    if (x->flat && y->flat && x->flat != y->flat)
        return x->flat->index - y->flat->index;
    return x->offset != y->offset ? (x->offset > y->offset) - (x->offset < y->offset) : (x > y) - (x < y);
}

bool td__beside(const td__param *a, const td__param *b)
{
    int64_t gap = b->offset - a->offset - td__shape_numel(a->value->shape);
    return a->flat && a->flat == b->flat && gap >= 0 && gap < 64 / (int64_t)td_dtype_size(a->value->dtype);
}

static bool moved(const td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++) {
        const td__param *p = &opt->param[i];
        if (p->group != p->leaf->group || p->flat != p->leaf->flat || p->offset != (p->flat ? p->leaf->offset : 0) ||
            (p->group && p->layout != p->group->layout))
            return true;
    }
    return false;
}

/* Groups in the order of their first parameter: the same on every rank. */
static void number_groups(td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++) {
        td__param *p = &opt->param[i];
        p->rank = (int)i;
        if (!p->group || p->group->implicit)
            continue;
        for (size_t j = 0; j < i; j++)
            if (opt->param[j].group == p->group) {
                p->rank = opt->param[j].rank;
                break;
            }
    }
}

/* ---- moments ------------------------------------------------------------------------------------------------------------------------- */

static td_loop flat_loop(int64_t n)
{
    return (td_loop){ .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 } } };
}

/* Room for state m of a span, zeroed. A master of zeros is as good as a copy: a step takes the parameter wherever the master does not round to
 * it, so new weights need nobody who tells the optimizer either. */
static int need_state(td__span *s, const td_tensor *like, int m)
{
    if (s->moment[m])
        return 0;
    int64_t count = s->high - s->low;
    td_dtype dtype = td__state_dtype(like->dtype);
    if (count == 0)
        return 0;
    s->moment[m] = td__storage_new_as(like->storage->device, (size_t)count * td_dtype_size(dtype), TD_MEMORY_OPTIMIZER);
    if (!s->moment[m])
        return TD_ERR_MEMORY;
    if (td__need("td_optim_step", like, fill) != 0)
        return TD_ERR_UNSUPPORTED;
    td_loop loop = flat_loop(count);
    td__kernels(like)->fill(&loop, dtype, s->moment[m]->data, 0);
    return 0;
}

int td__optim_need_moments(td_optim *opt, const td__param *p, int n)
{
    td__span *s = &opt->span[p->span];
    int rc = td__is_half(p->value->dtype) ? need_state(s, p->value, TD__MASTER) : 0;
    for (int m = 0; m < n && rc == 0; m++)
        rc = need_state(s, p->value, m);
    return rc;
}

static void free_spans(td__span *span, int n)
{
    for (int i = 0; i < n; i++)
        for (int m = 0; m < TD__STATES; m++)
            if (span[i].moment[m])
                td__storage_unref(span[i].moment[m]);
    td__free(span);
}

void td__optim_forget(td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++) {
        opt->param[i].span = -1;
        opt->param[i].steps = 0;
    }
    td__optim_free_spans(opt);
    opt->laid_out = false;
}

void td__optim_free_spans(td_optim *opt)
{
    free_spans(opt->span, opt->spans);
    opt->span = NULL;
    opt->spans = 0;
}

/* What of p's moments a span holds that p lies in from `offset` on: elements [*low, *high) of p. */
static void held(const td__param *p, const td__span *s, int64_t offset, int64_t *low, int64_t *high)
{
    const int64_t n = td__shape_numel(p->value->shape);
    *low = s->low > offset ? s->low - offset : 0;
    *high = s->high < offset + n ? s->high - offset : n;
    if (*high < *low)
        *high = *low;
}

/* Moments of which ranks have parts cannot follow to other parts. */
static int check_parts(const td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++) {
        const td__param *p = &opt->param[i];
        const bool some = td__is_half(p->value->dtype) || opt->rule->moments(&opt->options[p->options]) > 0;
        if (p->span < 0 || p->steps == 0 || !some)
            continue;
        int64_t was_low, was_high, low, high;
        held(p, &opt->span[p->span], p->offset, &was_low, &was_high);
        td__param now = *p;
        now.flat = p->leaf->flat;
        now.offset = now.flat ? p->leaf->offset : 0;
        if (td__own(&now, &low, &high) == 0)
            continue;
        if (low - now.offset < was_low || high - now.offset > was_high)
            return td__fail(TD_ERR_STATE, "parameter \"%s\" has left the td_ddp that sharded its optimizer, and this rank has only a part of its "
                            "moments; save a training state before and load it after", td__leaf_name(p->value));
    }
    return 0;
}

static int move_moments(const td__param *p, const td__span *from, int64_t old_offset, td__span *to)
{
    td_dtype dtype = td__state_dtype(p->value->dtype);
    size_t size = td_dtype_size(dtype);
    int64_t low, high, to_low, to_high;
    held(p, from, old_offset, &low, &high);
    held(p, to, p->offset, &to_low, &to_high);
    low = low > to_low ? low : to_low;
    high = high < to_high ? high : to_high;
    for (int m = 0; m < TD__STATES && low < high; m++) {
        if (!from->moment[m])
            continue;
        int rc = need_state(to, p->value, m);
        if (rc == 0)
            rc = td__need("td_optim_step", p->value, copy);
        if (rc != 0)
            return rc;
        td_loop loop = flat_loop(high - low);
        td__kernels(p->value)->copy(&loop, dtype, (char *)to->moment[m]->data + (size_t)(p->offset + low - to->low) * size, dtype,
                                    (const char *)from->moment[m]->data + (size_t)(old_offset + low - from->low) * size, false);
    }
    return 0;
}

int td__optim_lay_out(td_optim *opt)
{
    if (opt->laid_out && !moved(opt))
        return 0;
    int rc = check_parts(opt);
    if (rc != 0)
        return rc;
    opt->laid_out = false;
    struct was { int64_t offset; int span; } *was = td__alloc(opt->n * sizeof *was);
    td__span *span = td__calloc(opt->n * sizeof *span);
    if (!was || !span) {
        td__free(was);
        td__free(span);
        return TD_ERR_MEMORY;
    }
    for (size_t i = 0; i < opt->n; i++) {
        td__param *p = &opt->param[i];
        was[i] = (struct was){ p->offset, p->span };
        p->group = p->leaf->group;
        p->flat = p->leaf->flat;
        p->offset = p->flat ? p->leaf->offset : 0;
        p->layout = p->group ? p->group->layout : 0;
        opt->walk[i] = p;
    }
    number_groups(opt);
    qsort(opt->walk, opt->n, sizeof *opt->walk, by_place);
    int spans = 0;
    for (size_t i = 0; i < opt->n; i++) {
        td__param *p = opt->walk[i];
        if (i == 0 || !td__beside(opt->walk[i - 1], p))
            span[spans++].low = p->offset;
        span[spans - 1].high = p->offset + td__shape_numel(p->value->shape);
        p->span = spans - 1;
    }
    for (size_t i = 0; i < opt->n; i++)        /* again for each of a span's parameters, which changes nothing                  */
        td__own_range(opt->walk[i]->flat, &span[opt->walk[i]->span].low, &span[opt->walk[i]->span].high);
    for (size_t i = 0; i < opt->n && rc == 0; i++)
        if (was[i].span >= 0)
            rc = move_moments(&opt->param[i], &opt->span[was[i].span], was[i].offset, &span[opt->param[i].span]);
    td__free(was);
    td__optim_free_spans(opt);
    opt->span = span;
    opt->spans = spans;
    opt->laid_out = rc == 0;
    return rc;
}
