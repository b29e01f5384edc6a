/* optim/numbers.c: single f64 numbers of a step that live where the parameters do: the sum of squares of all gradients, what the step multiplies by.
 *
 * Kernels write and read them, so a step on a GPU needs no host. Squares are summed per parameter, in f64 in blocks of fixed size, and the parameters'
 * sums in the order in which the optimizer lists them: buckets, threads and ranks change nothing. Of flats that ranks share each rank sums its own
 * parts, in the order in which they lie, and the group adds these over the ranks: once for all of it.
 */
#include "optim_impl.h"
#include <math.h>

static const td_loop one = { .ndim = 1, .dim = { 1 }, .stride = { { 1 }, { 1 }, { 1 } } };

int td__optim_need_numbers(const char *who, td_optim *opt)
{
    const td_storage *where = opt->param[0].value->storage;
    char a[24], b[24];
    for (size_t i = 1; i < opt->n; i++)
        if (!td__device_equal(opt->param[i].value->storage->device, where->device))
            return td__fail(TD_ERR_DEVICE, "%s: the optimizer's parameters are on %s and %s; norms need them on one device", who,
                            td__device_text(where->device, a), td__device_text(opt->param[i].value->storage->device, b));
    if (!opt->numbers)
        opt->numbers = td__storage_new_as(where->device, TD__NUMBERS * sizeof(double), TD_MEMORY_OPTIMIZER);
    return opt->numbers ? 0 : TD_ERR_MEMORY;
}

int td__optim_number_set(td_optim *opt, int which, double value)
{
    int rc = td__need("td_optim_step", opt->param[0].value, fill);
    if (rc == 0)
        td__kernels(opt->param[0].value)->fill(&one, TD_F64, td__optim_number(opt, which), value);
    return rc;
}

double td__optim_number_read(const td_optim *opt, int which)
{
    double value;
    const td_storage *s = opt->numbers;
    if (s->ops->host_memory)
        return *td__optim_number(opt, which);
    return s->ops->copy(s->device.index, &value, true, td__optim_number(opt, which), false, sizeof value) == 0 ? value : (double)NAN;
}

uint64_t td__optim_walks(const td_optim *opt)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < opt->n; i++)
        sum = sum * 31 + (opt->param[i].leaf->group ? opt->param[i].leaf->group->walk : 0);
    return sum;
}

/* ---- squares -------------------------------------------------------------------------------------------------------------------------------- */

typedef struct { td_dtype dtype; int count; int64_t n[128]; const void *x[128]; } batch;

static void flush(td_optim *opt, batch *b, int into, bool add)
{
    td__kernels(opt->param[0].value)->sumsq(b->dtype, b->count, b->n, b->x, td__optim_number(opt, into), add);
    b->count = 0;
}

static void put(td_optim *opt, batch *b, const td__param *p, int64_t n, const void *x, int into)
{
    if (b->count > 0 && (b->count == (int)TD_COUNT(b->n) || b->dtype != p->value->dtype))
        flush(opt, b, into, true);
    b->dtype = p->value->dtype;
    b->n[b->count] = n;
    b->x[b->count++] = x;
}

/* Groups whose ranks share their flats, one after the other: this rank's sum first, then the others'. */
static int add_shared(td_optim *opt, batch *b)
{
    double *part = td__optim_number(opt, TD__PART), *sum = td__optim_number(opt, TD__SQUARES);
    int rc = td__optim_number_set(opt, TD__PART, 0);
    for (size_t i = 0; i < opt->n && rc == 0; i++) {
        const td__param *p = opt->walk[i];
        int64_t low, high;
        if (!td__grad_is_part(p))
            continue;
        if (td__param_steps(p) && td__own(p, &low, &high) > 0)
            put(opt, b, p, high - low, td__own_grad(p, low), TD__PART);
        if (i + 1 < opt->n && opt->walk[i + 1]->group == p->group)
            continue;
        if (b->count > 0)
            flush(opt, b, TD__PART, true);
        rc = p->group->ops->sum(p->flat, part, 1);
        if (rc == 0)
            td__kernels(p->value)->add(&one, TD_F64, sum, sum, part, false);
        if (rc == 0)
            rc = td__optim_number_set(opt, TD__PART, 0);
    }
    return rc;
}

int td__optim_squares(const char *who, td_optim *opt)
{
    int rc = td__optim_need_numbers(who, opt);
    if (rc == 0)
        rc = td__need(who, opt->param[0].value, sumsq);
    if (rc == 0)
        rc = td__need(who, opt->param[0].value, add);
    if (rc == 0)
        rc = td__optim_number_set(opt, TD__SQUARES, 0);
    batch b = { .count = 0 };
    bool shared = false;
    for (size_t i = 0; i < opt->n && rc == 0; i++) {
        const td__param *p = &opt->param[i];
        shared |= td__grad_is_part(p);
        if (td__param_steps(p) && !td__grad_is_part(p))
            put(opt, &b, p, td__shape_numel(p->value->shape), td__ptr(p->leaf->grad), TD__SQUARES);
    }
    if (rc == 0 && b.count > 0)
        flush(opt, &b, TD__SQUARES, true);
    return rc == 0 && shared ? add_shared(opt, &b) : rc;
}
