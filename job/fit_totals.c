/* job/fit_totals.c: what an epoch adds up: loss times weight, weights, metrics times rows, rows. Adding stays on the device; the sums are
 * read, over all ranks, once an epoch. f64, so that the order of batches hardly shows.
 */
#include <tensor_impl.h>
#include <math.h>
#include "fit_impl.h"

int td__fit_totals_begin(td__fit_totals *t, int n_metrics)
{
    t->n = 3 + n_metrics;
    t->sums = td_keep(td_zeros(TD_SHAPE(t->n), TD_F64));
    return td_is_poisoned(t->sums) ? td_error_pending() : 0;
}

void td__fit_totals_end(td__fit_totals *t)
{
    if (t->sums)
        td_release(t->sums);
    t->sums = NULL;
}

/* Weight 0 (no rows, all ignored) adds exactly zero, whatever the loss was. */
int td__fit_totals_add(td__fit_totals *t, td_tensor *loss, td_tensor *output, const td_batch *batch, const td_fit_opts *o)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_tensor *rows = td_full(TD_SCALAR, TD_F64, (double)batch->rows), *zero = td_zeros(TD_SCALAR, TD_F64), *part[3 + TD_FIT_MAX_METRICS];
    td_tensor *weight = loss->divisor ? td_cast(td_detach(loss->divisor), TD_F64) : rows;
    weight = td_reshape(weight, TD_SCALAR);
    td_tensor *value = td_reshape(td_cast(td_detach(loss), TD_F64), TD_SCALAR);
    part[0] = td_where(td_cast(weight, TD_BOOL), td_mul(value, weight), zero);
    part[1] = weight;
    part[2] = rows;
    for (int i = 0; i < o->n_metrics; i++) {
        part[3 + i] = zero;
        if (batch->rows > 0) {
            td_tensor *m = o->metrics[i].fn(td_detach(output), batch, o->user);
            if (td_numel(m) != 1 && !td_is_poisoned(m))
                return td__fail(TD_ERR_SHAPE, "td_fit: the metric \"%s\" returned %lld elements, expected one", o->metrics[i].name,
                                (long long)td_numel(m));
            part[3 + i] = td_mul(td_reshape(td_cast(m, TD_F64), TD_SCALAR), rows);
        }
    }
    td_assign(t->sums, td_add(t->sums, td_stack(part, (size_t)t->n, 0)));
    return td_error_pending();
}

/* Over all ranks: loss, and metrics. NaN where nothing counted. */
int td__fit_totals_read(td__fit_totals *t, double *loss, double *metrics)
{
    double v[3 + TD_FIT_MAX_METRICS];
    TD_SCOPE();
    td_tensor *all = td_zeros(TD_SHAPE(t->n), TD_F64);
    td_assign(all, t->sums);
    int code = td_all_reduce(td_world(), all, TD_SUM);
    if (!code)
        code = td_copy_out(all, v, (size_t)t->n * sizeof *v);
    if (code)
        return code;
    *loss = v[1] > 0 ? v[0] / v[1] : NAN;
    for (int i = 3; i < t->n; i++)
        metrics[i - 3] = v[2] > 0 ? v[i] / v[2] : NAN;
    return 0;
}

td_tensor *td_metric_accuracy(td_tensor *output, const td_batch *batch, void *user)
{
    TD_ENTER();
    (void)user;
    return td_mean(td_cast(td_eq(td_argmax(output, 1), batch->y), TD_F64), NULL, 0, false);
}
