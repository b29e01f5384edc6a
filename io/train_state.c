/* io/train_state.c: td_train_state_save and td_train_state_load: who checks what when, and that all ranks come out alike.
 *
 * Every rank checks its own arguments, then they agree; one rank's error is everybody's sentence. A load is two passes over the file: the
 * first only compares, then the ranks agree, and only then the second changes anything. Before it come the steps that may still lack memory.
 */
#include <string.h>
#include <loader_impl.h>
#include "train_state.h"

/* ---- what the caller gave -------------------------------------------------------------------------------------------------- */

static int check_waiting(const char *who, const td__leaf *leaf)
{
    if (!leaf || !leaf->has_grad)
        return 0;
    const char *name = td__leaf_name(leaf->value);
    return td__fail(TD_ERR_STATE, "%s: the gradient of parameter \"%s\" waits for a step; save and load after td_optim_step, between two batches",
                    who, name);
}

static int check_optims(const char *who, const td_train_state *s)
{
    if (s->n_optims && !s->optims)
        return td__fail(TD_ERR_ARGUMENT, "%s: the list of %zu optimizers is NULL", who, s->n_optims);
    int rc = 0;
    for (size_t k = 0; k < s->n_optims && rc == 0; k++) {
        rc = td__optim_check(who, s->optims[k]);
        for (size_t j = 0; j < k && rc == 0; j++)
            if (s->optims[j] == s->optims[k])
                rc = td__fail(TD_ERR_ARGUMENT, "%s: optimizers %zu and %zu are one", who, j, k);
        for (size_t i = 0; rc == 0 && i < s->optims[k]->n; i++)
            rc = check_waiting(who, s->optims[k]->param[i].leaf);
    }
    return rc;
}

static int check_extra(const char *who, const td_train_state *s)
{
    if (s->n_extra && !s->extra)
        return td__fail(TD_ERR_ARGUMENT, "%s: the list of %zu extra tensors is NULL", who, s->n_extra);
    for (size_t i = 0; i < s->n_extra; i++) {
        int rc = td__tensor_check(who, s->extra[i].tensor);
        if (rc != 0)
            return rc;
        if (!s->extra[i].name || !*s->extra[i].name)
            return td__fail(TD_ERR_ARGUMENT, "%s: extra tensor %zu has no name", who, i);
        for (size_t j = 0; j < i; j++)
            if (strcmp(s->extra[i].name, s->extra[j].name) == 0)
                return td__fail(TD_ERR_ARGUMENT, "%s: two extra tensors have the name \"%.80s\"", who, s->extra[i].name);
    }
    return 0;
}

static int check(const char *who, const td_train_state *s, const char *path)
{
    int rc = td__pending();
    if (rc != 0)
        return rc;
    if (!s || !path || !*path)
        return td__fail(TD_ERR_ARGUMENT, "%s: the %s is %s", who, s ? "path" : "state", s && path ? "empty" : "NULL");
    td__ema_parts ema;
    rc = td__not_in_backward(who);
    if (rc == 0 && s->model)
        rc = td__module_check(who, s->model);
    if (rc == 0)
        rc = check_optims(who, s);
    if (rc == 0)
        rc = check_extra(who, s);
    if (rc == 0 && s->model) {
        td_tensors p = td_parameters(s->model);
        for (size_t i = 0; i < p.n && rc == 0; i++)
            rc = check_waiting(who, td__leaf_of(p.list[i]));
    }
    bool poisoned = rc == 0 && ((s->loader && !s->loader->data) || (s->ddp && td__ddp_is_poison(s->ddp)) || (s->ema && !td__ema_look(s->ema, &ema)) ||
                                (s->scaler && !(td_scaler_get(s->scaler) > 0)));
    return poisoned ? td__fail(TD_ERR_STATE, "%s: the loader, td_ddp, td_ema or td_scaler is the poisoned result of an earlier error", who) : rc;
}

static td_comm *comm_of(const td_train_state *s)
{
    return s && s->ddp && !td__ddp_is_poison(s->ddp) ? s->ddp->comm : td_world();
}

/* ---- saving ---------------------------------------------------------------------------------------------------------------- */

static int write_all(td__ts *t)
{
    t->text = json_object();
    int rc = td__ts_put_tensors(t);
    if (rc == 0)
        rc = td__ts_put_optims(t);
    if (rc == 0)
        rc = td__ts_put_ddp(t);
    if (rc == 0)
        rc = td__ts_put_counters(t);
    return rc ? rc : td__ts_write(t);
}

int td_train_state_save(const td_train_state *state, const char *path)
{
    TD_ENTER();
    static const char who[] = "td_train_state_save";
    td_comm *comm = comm_of(state);
    int rc = td__comm_agree(comm, check(who, state, path), who);
    if (rc != 0)
        return rc;
    const bool first = td_rank(comm) == 0, shared = td__ts_shared(state);
    td__ts t;
    if (first || shared)
        rc = td__ts_begin(&t, who, path, state);
    if (shared) {
        rc = td__comm_agree(comm, rc, who);
        rc = rc ? rc : td__ts_gather(&t, comm);
    }
    if (first && rc == 0)
        rc = write_all(&t);
    if (first || shared)
        td__ts_end(&t);
    return td__comm_agree(comm, rc, who);
}

/* ---- loading --------------------------------------------------------------------------------------------------------------- */

static int take_all(td__ts *t)
{
    int rc = td__ts_take_tensors(t);
    if (rc == 0)
        rc = td__ts_take_optims(t);
    if (rc == 0)
        rc = td__ts_take_counters(t);
    return rc;
}

static int compare(td__ts *t, unsigned char sum[static 32])
{
    int rc = td__ts_open(t, sum);
    if (rc == 0)
        rc = td__ts_take_ddp(t);
    if (rc == 0)
        rc = take_all(t);
    return rc ? rc : td__ts_nothing_else(t);
}

static int apply(td__ts *t)
{
    t->apply = true;
    int rc = td__ts_take_ddp(t);
    if (rc == 0)
        rc = td__ts_optims_room(t);
    return rc ? rc : take_all(t);
}

/* Copies of the file on several machines could be of different times. Every rank sees all sums and comes to the same sentence. */
static int compare_sums(td_comm *comm, const char *who, const char *path, const unsigned char mine[static 32])
{
    int size = td_size(comm);
    unsigned char *all = td__alloc((size_t)size * 32);
    if (!all)
        return TD_ERR_MEMORY;
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = TD_U8, .in = mine, .out = all, .count = 32, .pre = 1, .post = 1, .site = td__site,
                     .label = who };
    int rc = td__coll_run(comm, &coll);
    for (int r = 1; r < size && rc == 0; r++)
        if (memcmp(all, all + 32 * r, 32) != 0)
            rc = td__fail(TD_ERR_MISMATCH, "%s: %s: is another file on rank %d than on rank 0", who, path, r);
    td__free(all);
    return rc;
}

int td_train_state_load(td_train_state *state, const char *path)
{
    TD_ENTER();
    static const char who[] = "td_train_state_load";
    td_comm *comm = comm_of(state);
    unsigned char sum[32] = { 0 };
    int rc = td__comm_agree(comm, check(who, state, path), who);
    if (rc != 0)
        return rc;
    td__ts t;
    rc = td__ts_begin(&t, who, path, state);
    rc = td__comm_agree(comm, rc ? rc : compare(&t, sum), who);
    if (rc == 0)
        rc = compare_sums(comm, who, path, sum);
    if (rc == 0)
        rc = td__comm_agree(comm, apply(&t), who);
    td__ts_end(&t);
    return rc;
}
