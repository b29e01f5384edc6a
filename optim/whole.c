/* optim/whole.c: moments of which each rank has a part become whole on every rank, before their group is freed: then the optimizer goes on alone, or in
 * other buckets. All room is made first, so that a rank without memory can say so while nobody waits for its parts.
 */
#include "optim_impl.h"

static bool concerns(const td__param *p, const td__group *g)
{
    return p->leaf->group == g && p->steps > 0;
}

static bool has_state(const td_optim *opt, const td__param *p, int m)
{
    return m == TD__MASTER ? td__is_half(p->value->dtype) : m < opt->rule->moments(&opt->options[p->options]);
}

bool td__optim_has_parts(const td_optim *opt, const td__group *g)
{
    for (size_t i = 0; i < opt->n; i++)
        for (int m = 0; m < TD__STATES && concerns(&opt->param[i], g); m++)
            if (has_state(opt, &opt->param[i], m))
                return true;
    return false;
}

static int make(td_storage **into, const td_tensor *like, int64_t n)
{
    const td_dtype dtype = td__state_dtype(like->dtype);
    const td_loop all = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 } } };
    int rc = *into ? 0 : td__need("td_ddp_free", like, fill);
    if (rc != 0 || *into)
        return rc;
    *into = td__storage_new_as(like->storage->device, (size_t)n * td_dtype_size(dtype), TD_MEMORY_OPTIMIZER);
    if (!*into)
        return TD_ERR_MEMORY;
    td__kernels(like)->fill(&all, dtype, (*into)->data, 0);
    return 0;
}

int td__optim_whole_drop(td__whole *w)
{
    for (int s = 0; w->span && s < w->opt->spans; s++)
        for (int m = 0; m < TD__STATES; m++)
            td__storage_unref(w->span[s].moment[m]);
    td__storage_unref(w->all);
    td__free(w->span);
    return 0;
}

int td__optim_whole_room(td_optim *opt, const td__group *g, td__whole *w)
{
    *w = (td__whole){ .opt = opt };
    int rc = td__optim_lay_out(opt);
    w->span = rc == 0 ? td__calloc((size_t)opt->spans * sizeof *w->span) : NULL;
    if (!w->span)
        return rc ? rc : TD_ERR_MEMORY;
    int64_t most = 0;
    for (size_t i = 0; i < opt->n; i++) {              /* walk goes by offset: the last of a span's parameters ends it            */
        const td__param *p = opt->walk[i];
        td__span *s = &w->span[p->span];
        s->low = i > 0 && opt->walk[i - 1]->span == p->span ? s->low : p->offset;
        s->high = p->offset + td__shape_numel(p->value->shape);
        const int64_t bytes = concerns(p, g) ? p->flat->n * (int64_t)td_dtype_size(td__state_dtype(p->value->dtype)) : 0;
        most = bytes > most ? bytes : most;
    }
    for (size_t i = 0; i < opt->n && rc == 0; i++)
        for (int m = 0; m < TD__STATES && rc == 0; m++) {
            const td__param *p = opt->walk[i];
            td__span *s = &w->span[p->span];
            if (concerns(p, g) && has_state(opt, p, m) && s->high > s->low)
                rc = make(&s->moment[m], p->value, s->high - s->low);
        }
    w->all = rc == 0 ? td__storage_new(opt->param[0].value->storage->device, (size_t)most) : NULL;
    return rc ? rc : w->all ? 0 : TD_ERR_MEMORY;
}

static void copy(const td_tensor *like, void *to, const void *from, int64_t n)
{
    const td_dtype dtype = td__state_dtype(like->dtype);
    const td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 } } };
    if (n > 0)
        td__kernels(like)->copy(&l, dtype, to, dtype, from, false);
}

/* Moment m of the parameters walk[from] … walk[to-1], which lie in one flat. */
static int fill(td__whole *w, td__group *g, size_t from, size_t to, int m)
{
    td_optim *opt = w->opt;
    td__flat *flat = opt->walk[from]->flat;
    const size_t size = td_dtype_size(td__state_dtype(flat->dtype));
    char *all = w->all->data;
    bool any = false;
    for (size_t i = from; i < to; i++) {
        const td__param *p = opt->walk[i];
        const td__span *s = &opt->span[p->span];
        int64_t low, high;
        if (!concerns(p, g) || !w->span[p->span].moment[m])
            continue;
        any = true;
        if (td__own(p, &low, &high) > 0 && s->moment[m])
            copy(p->value, all + (size_t)low * size, (char *)s->moment[m]->data + (size_t)(low - s->low) * size, high - low);
    }
    int rc = any ? g->ops->gather(flat, all, td__state_dtype(flat->dtype)) : 0;
    for (size_t i = from; i < to && rc == 0; i++) {
        const td__param *p = opt->walk[i];
        td__span *s = &w->span[p->span];
        if (concerns(p, g) && s->moment[m])
            copy(p->value, (char *)s->moment[m]->data + (size_t)(p->offset - s->low) * size, all + (size_t)p->offset * size,
                 td__shape_numel(p->value->shape));
    }
    return rc;
}

int td__optim_whole_fill(td__whole *w, td__group *g)
{
    td_optim *opt = w->opt;
    int rc = td__need("td_ddp_free", opt->param[0].value, copy);
    for (size_t i = 0, end; i < opt->n && rc == 0; i = end) {
        for (end = i + 1; end < opt->n && opt->walk[end]->flat == opt->walk[i]->flat && opt->walk[end]->group == opt->walk[i]->group;)
            end++;
        for (int m = 0; m < TD__STATES && rc == 0 && opt->walk[i]->group == g; m++)
            rc = fill(w, g, i, end, m);
    }
    for (int s = 0; s < opt->spans && rc == 0; s++) {
        bool whole = false;
        for (int m = 0; m < TD__STATES; m++)
            whole |= w->span[s].moment[m] != NULL;
        if (!whole)
            continue;
        const td__span parts = opt->span[s];
        opt->span[s] = w->span[s];
        w->span[s] = parts;
    }
    td__optim_whole_drop(w);
    return rc;
}
