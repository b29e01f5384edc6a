/* io/train_state_shards.c: of a training state: optimizers that ranks share (td_ddp_opts.shard_optimizer). Their moments are gathered on all
 * ranks, a flat and a moment at a time, and kept on rank 0, which writes; so the file is the one that a plain run writes. Rank 0 needs host
 * memory for the whole state meanwhile, the others room for one flat's moment.
 */
#include <string.h>
#include "train_state.h"

static bool gathers(const td__leaf *leaf)
{
    return leaf->flat && leaf->group->ops && leaf->group->ops->gather;
}

bool td__ts_optim_shared(const td_optim *opt)
{
    for (size_t i = 0; i < opt->n; i++)
        if (gathers(opt->param[i].leaf))
            return true;
    return false;
}

bool td__ts_shared(const td_train_state *s)
{
    for (size_t k = 0; k < s->n_optims; k++)
        if (td__ts_optim_shared(s->optims[k]))
            return true;
    return false;
}

td_storage *td__ts_whole_of(const td__ts *t, const td_optim *opt, const td__param *p, int m)
{
    for (size_t i = 0; i < t->n_whole; i++)
        if (t->whole[i].opt == opt && t->whole[i].flat == p->flat && t->whole[i].m == m)
            return t->whole[i].all;
    return NULL;
}

static bool stepped(const td_optim *opt, const td__param *p, int m)
{
    return p->steps > 0 && (m == TD__MASTER ? td__is_half(p->value->dtype) : m < opt->rule->moments(&opt->options[p->options]));
}

/* This rank's part of moment m, of the parameters walk[from] … walk[to-1] of one flat. */
static td_storage *own_part(const td_optim *opt, size_t from, size_t to, int m)
{
    const td__flat *flat = opt->walk[from]->flat;
    const td_tensor *like = opt->walk[from]->value;
    const td_dtype dtype = td__state_dtype(flat->dtype);
    const size_t size = td_dtype_size(dtype);
    td_storage *all = td__storage_new(flat->value->device, (size_t)flat->n * size);
    if (!all || td__need("td_train_state_save", like, fill) || td__need("td_train_state_save", like, copy)) {
        td__storage_unref(all);
        return NULL;
    }
    const td_loop whole = { .ndim = 1, .dim = { flat->n }, .stride = { { 1 }, { 1 } } };
    td__kernels(like)->fill(&whole, dtype, all->data, 0);
    for (size_t i = from; i < to; i++) {
        const td__param *p = opt->walk[i];
        int64_t low, high;
        if (!stepped(opt, p, m) || td__own(p, &low, &high) == 0)
            continue;
        const td__span *s = &opt->span[p->span];
        const td_loop l = { .ndim = 1, .dim = { high - low }, .stride = { { 1 }, { 1 } } };
        td__kernels(like)->copy(&l, dtype, (char *)all->data + (size_t)low * size, dtype, (char *)s->moment[m]->data + (size_t)(low - s->low) * size, false);
    }
    return all;
}

static td_storage *to_host(td_storage *all)
{
    if (all->ops->host_memory)
        return all;
    td_storage *host = td__storage_new((td_device){ TD_CPU, 0 }, all->bytes);
    if (host && all->ops->copy(all->device.index, host->data, true, all->data, false, all->bytes) != 0) {
        td__storage_unref(host);
        host = NULL;
    }
    td__storage_unref(all);
    return host;
}

static int keep(td__ts *t, const td_optim *opt, const td__flat *flat, int m, td_storage *all)
{
    td__ts_whole *grown = td__grow(t->whole, t->n_whole * sizeof *grown, (t->n_whole + 1) * sizeof *grown);
    if (grown)
        t->whole = grown;
    all = grown ? to_host(all) : all;
    if (!grown || !all) {
        td__storage_unref(all);
        return td__pending() ? td__pending() : TD_ERR_MEMORY;
    }
    t->whole[t->n_whole++] = (td__ts_whole){ opt, flat, m, all };
    return 0;
}

static int gather_flat(td__ts *t, td_comm *comm, const td_optim *opt, size_t from, size_t to)
{
    td__flat *flat = opt->walk[from]->flat;
    int rc = 0;
    for (int m = 0; m < TD__STATES && rc == 0; m++) {
        bool any = false;
        for (size_t i = from; i < to; i++)
            any |= stepped(opt, opt->walk[i], m);
        if (!any)
            continue;
        td_storage *all = own_part(opt, from, to, m);
        rc = td__comm_agree(comm, all ? 0 : td__pending(), t->who);        /* nobody waits for a rank without memory               */
        if (rc == 0)
            rc = flat->group->ops->gather(flat, all->data, td__state_dtype(flat->dtype));
        if (rc == 0 && td_rank(comm) == 0)
            rc = keep(t, opt, flat, m, all);
        else
            td__storage_unref(all);
        rc = td__comm_agree(comm, rc, t->who);
    }
    return rc;
}

int td__ts_gather(td__ts *t, td_comm *comm)
{
    int rc = 0;
    for (size_t k = 0; k < t->state->n_optims && rc == 0; k++) {
        td_optim *opt = t->state->optims[k];
        if (!td__ts_optim_shared(opt))
            continue;
        rc = td__comm_agree(comm, td__optim_lay_out(opt), t->who);
        for (size_t i = 0, end; i < opt->n && rc == 0; i = end) {
            for (end = i + 1; end < opt->n && opt->walk[end]->flat == opt->walk[i]->flat;)
                end++;
            if (gathers(opt->walk[i]->leaf))
                rc = gather_flat(t, comm, opt, i, end);
        }
    }
    return rc;
}

void td__ts_gathered_free(td__ts *t)
{
    for (size_t i = 0; i < t->n_whole; i++)
        td__storage_unref(t->whole[i].all);
    td__free(t->whole);
}
