/* io/train_state_optim.c: of a training state: optimizers. Moments and steps of each parameter stand under its name, so they fit whatever flats
 * the parameters lie in now, and whatever part of them this rank keeps.
 */
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "train_state.h"

/* All that td__options holds. lr is set by the file; the rest must be equal. */
static const struct { const char *name; size_t at; bool flag; } field[] = {
#define NUMBER(name) { #name, offsetof(td__options, name), false }
#define FLAG(name) { #name, offsetof(td__options, name), true }
    NUMBER(lr), NUMBER(weight_decay), NUMBER(momentum), NUMBER(dampening), FLAG(nesterov), NUMBER(beta1), NUMBER(beta2), NUMBER(eps),
    NUMBER(alpha), FLAG(centered), NUMBER(lr_decay), NUMBER(initial), NUMBER(trust), FLAG(no_trust),
};
_Static_assert(sizeof(td__options) == 14 * 8, "an option that is not in this list would not be compared");

static double get(const td__options *o, size_t i)
{
    const char *at = (const char *)o + field[i].at;
    return field[i].flag ? *(const bool *)at : *(const double *)at;
}

static int put_group(td__ts *t, json_t *groups, const td__options *o)
{
    json_t *group = json_object();
    int rc = json_array_append_new(groups, group) == 0 ? 0 : td__fail(TD_ERR_MEMORY, "%s: no memory for the options", t->who);
    for (size_t i = 0; i < TD_COUNT(field) && rc == 0; i++)
        rc = td__ts_set(t, group, field[i].name, field[i].flag ? json_boolean(get(o, i) != 0) : json_real(get(o, i)));
    return rc;
}

/* Has this parameter such state? A rule's moments, and the master of 16 bits. */
static bool has(const td_optim *opt, const td__param *p, int m)
{
    return m == TD__MASTER ? td__is_half(p->value->dtype) : m < opt->rule->moments(&opt->options[p->options]);
}

static const char *const state_name[TD__STATES] = { "moment0", "moment1", "moment2", "master" };

/* One moment of a parameter, or its master; one reference, in no scope; NULL: there is none. */
static td_tensor *moment(const td__ts *t, const td_optim *opt, const td__param *p, int m)
{
    const td_dtype dtype = td__state_dtype(p->value->dtype);
    const td_device cpu = { TD_CPU, 0 };
    if (td__shape_numel(p->value->shape) == 0)
        return td__tensor_new(p->value->shape, dtype, cpu);
    if (td__is_shared(p)) {
        td_storage *all = td__ts_whole_of(t, opt, p, m);
        return all ? td__tensor_on(all, p->value->shape, dtype, p->offset) : NULL;
    }
    const td__span *s = p->span >= 0 ? &opt->span[p->span] : NULL;
    return s && s->moment[m] ? td__tensor_on(s->moment[m], p->value->shape, dtype, p->offset - s->low) : NULL;
}

/* What this rank keeps of it, where it lies: elements from *first on; NULL: nothing. */
static td_tensor *own_moment(const td_optim *opt, const td__param *p, int m, int64_t *first)
{
    const td__span *s = &opt->span[p->span];
    int64_t low, high, n = td__own(p, &low, &high);
    *first = low - p->offset;
    return n > 0 && s->moment[m] ? td__tensor_on(s->moment[m], TD_SHAPE(n), td__state_dtype(p->value->dtype), low - s->low) : NULL;
}

static int put_param(td__ts *t, size_t k, size_t i)
{
    const td_optim *opt = t->state->optims[k];
    const td__param *p = &opt->param[i];
    char place[32];
    const char *name = td__ts_name(t, p->value, i, place);
    int64_t numbers[] = { p->steps, p->options };
    int rc = td__ts_put_numbers(t, numbers, 2, "optim/%zu/%s/steps_and_group", k, name);
    for (int m = 0; m < TD__STATES && p->steps > 0 && rc == 0; m++) {
        if (!has(opt, p, m))
            continue;
        td_tensor *x = moment(t, opt, p, m);
        if (!x)
            return td__fail(TD_ERR_INTERNAL, "%s: parameter \"%s\" has taken steps but has no moments", t->who, name);
        rc = x->poisoned ? TD_ERR_MEMORY : td__ts_put(t, x, "optim/%zu/%s/%s", k, name, state_name[m]);
        td__tensor_unref(x);
    }
    return rc;
}

static int put_optim(td__ts *t, json_t *optims, size_t k)
{
    const td_optim *opt = t->state->optims[k];
    json_t *one = json_object(), *groups = json_array();
    int rc = json_array_append_new(optims, one) == 0 ? 0 : td__fail(TD_ERR_MEMORY, "%s: no memory for the options", t->who);
    if (rc == 0)
        rc = td__ts_set(t, one, "rule", json_string(opt->rule->name));
    if (rc == 0)
        rc = td__ts_set(t, one, "steps", json_integer(opt->steps));
    if (rc == 0)
        rc = td__ts_set(t, one, "groups", json_incref(groups));
    for (int g = 0; g < opt->n_options && rc == 0; g++)
        rc = put_group(t, groups, &opt->options[g]);
    json_decref(groups);
    for (size_t i = 0; i < opt->n && rc == 0; i++)
        rc = put_param(t, k, i);
    return rc;
}

int td__ts_put_optims(td__ts *t)
{
    json_t *optims = json_array();
    int rc = td__ts_set(t, t->text, "optims", json_incref(optims));
    for (size_t k = 0; k < t->state->n_optims && rc == 0; k++)
        rc = put_optim(t, optims, k);
    json_decref(optims);
    return rc;
}

/* ---- taking ----------------------------------------------------------------------------------------------------------------- */

static int take_group(td__ts *t, size_t k, int g, const json_t *from, td__options *here)
{
    char in[64];
    snprintf(in, sizeof in, "group %d of optimizer %zu", g, k);
    for (size_t i = 0; i < TD_COUNT(field); i++) {
        double there = 0;
        bool flag = false;
        int rc = field[i].flag ? td__ts_flag(t, from, in, field[i].name, &flag) : td__ts_number(t, from, in, field[i].name, &there);
        if (rc != 0)
            return rc;
        there = field[i].flag ? flag : there;
        if (i == 0 && !(there >= 0))
            return td__ts_bad(t, TD_ERR_FORMAT, "the learning rate of %s is %g", in, there);
        if (i > 0 && there != get(here, i))
            return td__ts_bad(t, TD_ERR_ARGUMENT, "\"%s\" of %s is %g in the file, but %g in this program", field[i].name, in, there, get(here, i));
        if (i == 0 && t->apply)
            here->lr = there;
    }
    return 0;
}

static int take_param(td__ts *t, size_t k, size_t i)
{
    td_optim *opt = t->state->optims[k];
    td__param *p = &opt->param[i];
    char place[32];
    const char *name = td__ts_name(t, p->value, i, place);
    int64_t numbers[2];
    int rc = td__ts_take_numbers(t, numbers, 2, "optim/%zu/%s/steps_and_group", k, name);
    if (rc != 0)
        return rc;
    if (numbers[0] < 0 || numbers[0] > INT64_MAX / 2)
        return td__ts_bad(t, TD_ERR_FORMAT, "parameter \"%.80s\" of optimizer %zu has taken %lld steps", name, k, (long long)numbers[0]);
    if (numbers[1] != p->options)
        return td__ts_bad(t, TD_ERR_ARGUMENT, "parameter \"%.80s\" of optimizer %zu is in group %lld in the file, but %d in this program", name, k,
                          (long long)numbers[1], p->options);
    for (int m = 0; m < TD__STATES && rc == 0; m++) {
        if (!has(opt, p, m))
            continue;
        int64_t first = 0;
        td_tensor *into = t->apply ? own_moment(opt, p, m, &first) : NULL;
        if (into && into->poisoned)
            return TD_ERR_MEMORY;
        if (numbers[0] > 0)
            rc = td__ts_take_part(t, into, first, td__state_dtype(p->value->dtype), p->value->shape, "optim/%zu/%s/%s", k, name, state_name[m]);
        else if (into)
            rc = td__fill(into, 0);
        td__tensor_unref(into);
    }
    if (rc == 0 && t->apply)
        p->steps = numbers[0];
    return rc;
}

static int take_optim(td__ts *t, size_t k, const json_t *from)
{
    td_optim *opt = t->state->optims[k];
    const char *rule = json_string_value(json_object_get(from, "rule"));
    const json_t *groups = json_object_get(from, "groups");
    int64_t steps;
    int rc = td__ts_integer(t, from, "an optimizer", "steps", 0, &steps);
    if (rc == 0 && (!rule || strcmp(rule, opt->rule->name) != 0))
        rc = td__ts_bad(t, TD_ERR_ARGUMENT, "optimizer %zu is \"%.32s\" in the file, but \"%s\" in this program", k, rule ? rule : "", opt->rule->name);
    if (rc == 0 && json_array_size(groups) != (size_t)opt->n_options)
        rc = td__ts_bad(t, TD_ERR_ARGUMENT, "optimizer %zu has %zu groups in the file, but %d in this program", k, json_array_size(groups),
                        opt->n_options);
    for (int g = 0; g < opt->n_options && rc == 0; g++)
        rc = take_group(t, k, g, json_array_get(groups, (size_t)g), &opt->options[g]);
    for (size_t i = 0; i < opt->n && rc == 0; i++)
        rc = take_param(t, k, i);
    if (rc == 0 && t->apply)
        opt->steps = steps;
    return rc;
}

int td__ts_optims_room(td__ts *t)
{
    int rc = 0;
    for (size_t k = 0; k < t->state->n_optims && rc == 0; k++) {
        td_optim *opt = t->state->optims[k];
        if (td__ts_optim_shared(opt))
            td__optim_forget(opt);             /* parts cannot follow their parameters; the file has all of them                */
        rc = td__optim_lay_out(opt);
        for (size_t i = 0; i < opt->n && rc == 0; i++) {
            const td__param *p = &opt->param[i];
            char place[32];
            int64_t numbers[2];
            rc = td__ts_take_numbers(t, numbers, 2, "optim/%zu/%s/steps_and_group", k, td__ts_name(t, p->value, i, place));
            if (rc == 0 && numbers[0] > 0)
                rc = td__optim_need_moments(opt, p, opt->rule->moments(&opt->options[p->options]));
        }
    }
    return rc;
}

int td__ts_take_optims(td__ts *t)
{
    const json_t *optims = json_object_get(t->text, "optims");
    if (t->state->n_optims == 0)
        return 0;
    if (json_array_size(optims) != t->state->n_optims)
        return td__ts_bad(t, TD_ERR_ARGUMENT, "was saved with %zu optimizers, but this program has %zu", json_array_size(optims), t->state->n_optims);
    int rc = 0;
    for (size_t k = 0; k < t->state->n_optims && rc == 0; k++)
        rc = take_optim(t, k, json_array_get(optims, k));
    return rc;
}
