/* optim/optim.c: the life of an optimizer: its parameters, groups of options, learning rates.
 *
 * An optimizer holds a reference to each parameter, so that moments never outlive what they belong to. All that live are in one list:
 * td_finish frees what was left. Each leaf counts the optimizers that list it, so that a step knows whether another one still waits for
 * gradients of the same group without looking at optimizers of other threads.
 */
#include "optim_impl.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

td_optim td__optim_poison;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static td_optim *live;

td_optim *td__optims(void)
{
    return live;
}

int td__optim_check(const char *who, const td_optim *opt)
{
    if (!opt)
        return td__fail(TD_ERR_ARGUMENT, "%s: the optimizer is NULL", who);
    if (opt == &td__optim_poison)
        return td__pending() ? td__pending() : TD_ERR_ARGUMENT;
    return 0;
}

double td__option(double given, double standard)
{
    return given == 0 ? standard : given == TD_ZERO ? 0 : given;
}

/* ---- parameters ------------------------------------------------------------------------------------------------------------------- */

static int by_address(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)(*(td_tensor *const *)a), y = (uintptr_t)(*(td_tensor *const *)b);
    return (x > y) - (x < y);
}

static int check_twice(const char *who, const td_optim *opt, td_tensors list)
{
    size_t n = opt->n + list.n;
    td_tensor **all = td__alloc(n * sizeof *all);
    if (!all)
        return TD_ERR_MEMORY;
    for (size_t i = 0; i < n; i++)
        all[i] = i < opt->n ? opt->param[i].value : list.list[i - opt->n];
    qsort(all, n, sizeof *all, by_address);
    const td_tensor *twice = NULL;
    for (size_t i = 1; i < n && !twice; i++)
        twice = all[i] == all[i - 1] ? all[i] : NULL;
    td__free(all);
    if (!twice)
        return 0;
    char shape[128];
    const char *name = td__leaf_name(twice);
    return td__fail(TD_ERR_ARGUMENT, "%s: parameter %s%s%s%s is listed twice", who, *name ? "\"" : "", name, *name ? "\" " : "",
                    td__shape_text(twice->shape, shape));
}

static int check_list(const char *who, const td_optim *opt, td_tensors list)
{
    if (list.n == 0 || !list.list)
        return td__pending() ? td__pending() : td__fail(TD_ERR_ARGUMENT, "%s: the list of parameters is empty", who);
    char shape[128];
    for (size_t i = 0; i < list.n; i++) {
        const td_tensor *x = list.list[i];
        int rc = td__tensor_check(who, x);
        if (rc != 0)
            return rc;
        if (!td__leaf_of(x))
            return td__fail(TD_ERR_ARGUMENT, "%s: parameter %zu of %zu, %s %s, is not a leaf that collects gradients; see td_requires_grad", who, i,
                            list.n, td__shape_text(x->shape, shape), td_dtype_name(x->dtype));
        rc = td__leaf_check_place(td__leaf_of(x));
        if (rc != 0)
            return rc;
    }
    return check_twice(who, opt, list);
}

/* Lets go of all but the first `keep`. */
static void drop_parameters(td_optim *opt, size_t keep)
{
    while (opt->n > keep) {
        const td__param *p = &opt->param[--opt->n];
        p->leaf->optims--;
        td__tensor_unref(p->value);
    }
}

int td__optim_add(const char *who, td_optim *opt, const td__rule *rule, td_tensors list, const td__options *o)
{
    int rc = td__optim_check(who, opt);
    if (rc == 0)
        rc = td__not_in_backward(who);
    if (rc != 0)
        return rc;
    if (opt->rule != rule)
        return td__fail(TD_ERR_ARGUMENT, "%s: the optimizer is %s, expected %s", who, opt->rule->name, rule->name);
    rc = check_list(who, opt, list);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < opt->n; i++)
        if (opt->param[i].leaf->has_grad)
            return td__fail(TD_ERR_STATE, "%s: gradients wait for a step; add groups before td_backward or after td_optim_step", who);
    td__options *options = td__grow(opt->options, (size_t)opt->n_options * sizeof *options, (size_t)(opt->n_options + 1) * sizeof *options);
    if (!options)
        return TD_ERR_MEMORY;
    opt->options = options;
    td__param *param = td__grow(opt->param, opt->n * sizeof *param, (opt->n + list.n) * sizeof *param);
    if (!param)
        return TD_ERR_MEMORY;
    opt->param = param;
    opt->laid_out = false;                     /* the walk points into param */
    td__param **walk = td__alloc((opt->n + list.n) * sizeof *walk);
    if (!walk)
        return TD_ERR_MEMORY;
    td__free(opt->walk);
    opt->walk = walk;
    for (size_t i = 0; i < list.n; i++) {
        td__tensor_ref(list.list[i]);
        opt->param[opt->n + i] = (td__param){ .value = list.list[i], .leaf = td__leaf_of(list.list[i]), .options = opt->n_options, .span = -1 };
        opt->param[opt->n + i].leaf->optims++;
    }
    opt->n += list.n;
    opt->options[opt->n_options++] = *o;
    rc = td__optim_regroup(opt);
    if (rc != 0) {                             /* nothing was added */
        opt->n_options--;
        drop_parameters(opt, opt->n - list.n);
    }
    return rc;
}

td_optim *td__optim_new(const char *who, const td__rule *rule, td_tensors list, const td__options *o)
{
    td_optim *opt = td__calloc(sizeof *opt);
    if (!opt)
        return &td__optim_poison;
    opt->rule = rule;
    pthread_mutex_lock(&lock);
    opt->next = live;
    if (live)
        live->prev = opt;
    live = opt;
    pthread_mutex_unlock(&lock);
    if (td__optim_add(who, opt, rule, list, o) == 0)
        return opt;
    td_optim_free(opt);
    return &td__optim_poison;
}

void td_optim_free(td_optim *opt)
{
    TD_ENTER();
    if (!opt || opt == &td__optim_poison || td__not_in_backward("td_optim_free") != 0)
        return;
    pthread_mutex_lock(&lock);
    *(opt->prev ? &opt->prev->next : &live) = opt->next;
    if (opt->next)
        opt->next->prev = opt->prev;
    pthread_mutex_unlock(&lock);
    td__optim_ungroup(opt);
    td__optim_free_spans(opt);
    if (opt->numbers)
        td__storage_unref(opt->numbers);
    drop_parameters(opt, 0);
    td__free(opt->options);
    td__free(opt->param);
    td__free(opt->walk);
    td__free(opt);
}

void td__optim_free_all(void)
{
    while (live)
        td_optim_free(live);
    td__scaler_free_all();
    td__ema_free_all();
}

/* ---- learning rates ------------------------------------------------------------------------------------------------------------------ */

void td_optim_set_lr(td_optim *opt, int group, double lr)
{
    TD_ENTER();
    td__note_rate("td_optim_set_lr");
    if (td__optim_check("td_optim_set_lr", opt) != 0)
        return;
    if (group < -1 || group >= opt->n_options) {
        td__fail(TD_ERR_ARGUMENT, "td_optim_set_lr: group is %d, expected 0 to %d, or -1 for all", group, opt->n_options - 1);
        return;
    }
    if (!(lr >= 0) || !isfinite(lr)) {
        td__fail(TD_ERR_ARGUMENT, "td_optim_set_lr: the learning rate is %g, expected 0 or more", lr);
        return;
    }
    for (int i = 0; i < opt->n_options; i++)
        if (group < 0 || group == i)
            opt->options[i].lr = lr;
}

double td_optim_get_lr(const td_optim *opt, int group)
{
    TD_ENTER();
    td__note_rate("td_optim_get_lr");
    if (td__optim_check("td_optim_get_lr", opt) != 0)
        return NAN;
    if (group < 0 || group >= opt->n_options) {
        td__fail(TD_ERR_ARGUMENT, "td_optim_get_lr: group is %d, expected 0 to %d", group, opt->n_options - 1);
        return NAN;
    }
    return opt->options[group].lr;
}

int64_t td_optim_steps(const td_optim *opt)
{
    TD_ENTER();
    return td__optim_check("td_optim_steps", opt) == 0 ? opt->steps : 0;
}

int64_t td_optim_bytes(const td_optim *opt)
{
    TD_ENTER();
    if (td__optim_check("td_optim_bytes", opt) != 0)
        return 0;
    int64_t bytes = 0;
    for (int s = 0; s < opt->spans; s++)
        for (int m = 0; m < TD__STATES; m++)
            bytes += opt->span[s].moment[m] ? (int64_t)opt->span[s].moment[m]->bytes : 0;
    return bytes;
}
