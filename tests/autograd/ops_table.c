/* tests/autograd/ops_table.c: the runner of the table: inputs, comparison with references, gradient checks.
 */
#include "ops_table.h"
#include <tape.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const ops_row *const tables[] = { ops_rows_norms, ops_rows_index, ops_rows_arith, ops_rows_reduce, ops_rows_view, ops_rows_matmul, ops_rows_activation, ops_rows_loss,
                                         ops_rows_images, ops_rows_attention, ops_rows_rnn,
                                         ops_rows_pointwise, ops_rows_choose, ops_rows_nll, NULL };

const ops_row *const *ops_tables(void)
{
    return tables;
}

/* ---- inputs ------------------------------------------------------------------------------------------------------------------ */

int64_t ops_count(td_shape shape)
{
    return td__shape_numel(shape);
}

static td_tensor *from_integers(td_shape shape, td_dtype t, const int64_t *number, double unit)
{
    int64_t n = ops_count(shape);
    size_t size = td_dtype_size(t);
    char *data = calloc((size_t)n + 1, size);
    for (int64_t i = 0; i < n; i++)
        td__element_put(t, data + (size_t)i * size, (double)number[i] * unit);
    td_tensor *x = td_from(data, shape, t);
    free(data);
    return x;
}

static td_tensor *fill_between(td_shape shape, td_dtype t, uint64_t seed, int64_t low, int64_t high, double unit)
{
    int64_t n = ops_count(shape), *number = calloc((size_t)n + 1, sizeof *number);
    for (int64_t i = 0; i < n; i++)
        number[i] = low + (int64_t)(td__philox(seed, 77, (uint64_t)i).v[0] % (uint32_t)(high - low + 1));
    td_tensor *x = from_integers(shape, t, number, unit);
    free(number);
    return x;
}

td_tensor *ops_fill(td_shape shape, td_dtype t, uint64_t seed)
{
    return td__is_real(t) ? fill_between(shape, t, seed, -128, 128, 1.0 / 64) : fill_between(shape, t, seed, -9, 9, 1);
}

td_tensor *ops_fill_positive(td_shape shape, td_dtype t, uint64_t seed)
{
    return td__is_real(t) ? fill_between(shape, t, seed, 16, 128, 1.0 / 64) : fill_between(shape, t, seed, 1, 9, 1);
}

td_tensor *ops_fill_distinct(td_shape shape, td_dtype t, uint64_t seed)
{
    int64_t n = ops_count(shape), *number = calloc((size_t)n + 1, sizeof *number);
    for (int64_t i = 0; i < n; i++) {                           /* shuffled as they come: all odd, so none is 0           */
        int64_t j = td__philox(seed, 78, (uint64_t)i).v[0] % (uint32_t)(i + 1);
        number[i] = number[j];
        number[j] = 2 * i - n + (n % 2 == 0 ? 1 : 2);
    }
    td_tensor *x = from_integers(shape, t, number, td__is_real(t) ? 1.0 / 64 : 1);
    free(number);
    return x;
}

/* ---- references ---------------------------------------------------------------------------------------------------------------- */

void ops_out(ops_array *out, td_shape shape)
{
    out->shape = shape;
    out->n = ops_count(shape);
    out->v = calloc((size_t)out->n + 1, sizeof *out->v);
}

td_shape ops_broadcast(td_shape a, td_shape b)
{
    td_shape r = { a.ndim > b.ndim ? a.ndim : b.ndim, { 0 } };
    for (int i = 1; i <= r.ndim; i++) {
        int64_t da = i <= a.ndim ? a.dim[a.ndim - i] : 1, db = i <= b.ndim ? b.dim[b.ndim - i] : 1;
        r.dim[r.ndim - i] = da == 1 ? db : da;
    }
    return r;
}

int64_t ops_broadcast_index(td_shape a, td_shape to, int64_t i)
{
    int64_t at = 0, step = 1;
    for (int d = 1; d <= to.ndim; d++) {
        int64_t index = i % to.dim[to.ndim - d];
        i /= to.dim[to.ndim - d];
        if (d > a.ndim)
            continue;
        if (a.dim[a.ndim - d] != 1)
            at += index * step;
        step *= a.dim[a.ndim - d];
    }
    return at;
}

void ops_array_of(td_tensor *x, ops_array *out)
{
    ops_out(out, td_shape_of(x));
    size_t size = td_dtype_size(x->dtype);
    char *raw = calloc((size_t)out->n + 1, size);
    td_copy_out(x, raw, (size_t)out->n * size);
    for (int64_t i = 0; i < out->n; i++)
        out->v[i] = td__element_get(x->dtype, raw + (size_t)i * size);
    free(raw);
}

/* ---- the two modes -------------------------------------------------------------------------------------------------------------- */

static bool close_enough(const ops_row *row, td_dtype t, double got, double want)
{
    if (isnan(want) || isnan(got))
        return isnan(want) && isnan(got);
    if (got == want)
        return true;
    if (!td__is_float(t))
        return false;
    double eps = t == TD_F32 ? (double)FLT_EPSILON : DBL_EPSILON;
    return fabs(got - want) <= eps * (row->abs + row->rel * fabs(want));
}

int ops_check_result(const ops_row *row, td_dtype t)
{
    TD_SCOPE();
    td_tensor *in[OPS_MAX] = { 0 };
    ops_array array[OPS_MAX] = { 0 }, want = { 0 }, got = { 0 };
    int bad = 0;
    size_t n = row->inputs(row, t, in);
    for (size_t i = 0; i < n; i++)
        if (in[i])
            ops_array_of(in[i], &array[i]);
    td_tensor *out = row->apply(in, n, (void *)(uintptr_t)row);
    if (td_error_pending()) {
        printf("%s [%s] %s: %s\n", row->name, td_dtype_name(t), td__cpu_kernels()->name, td_error_message());
        td_error_clear();
        bad = 1;
    } else {
        row->reference(row, array, n, &want);
        ops_array_of(out, &got);
        if (!td__shape_equal(got.shape, want.shape)) {
            char a[128], b[128];
            printf("%s [%s]: shape %s, expected %s\n", row->name, td_dtype_name(t), td__shape_text(got.shape, a), td__shape_text(want.shape, b));
            bad = 1;
        }
        int wrong = 0;
        for (int64_t i = 0; !bad && i < want.n; i++)
            if (!close_enough(row, out->dtype, got.v[i], want.v[i]) && wrong++ < 3)
                printf("%s [%s] %s: element %lld is %.17g, expected %.17g (difference %.3g)\n", row->name, td_dtype_name(t),
                       td__cpu_kernels()->name, (long long)i, got.v[i], want.v[i], got.v[i] - want.v[i]);
        bad |= wrong > 0;
    }
    for (size_t i = 0; i < n; i++)
        free(array[i].v);
    free(want.v);
    free(got.v);
    return bad;
}

/* Only the inputs of the mask are leaves; the rest is taken along. `twice`: applied two times, so that gradients are added, too. */
typedef struct { const ops_row *row; td_tensor *all[OPS_MAX]; size_t n; bool twice; } gradient_case;

static td_tensor *apply_case(td_tensor *const *leaf, size_t n, void *user)
{
    gradient_case *g = user;
    td_tensor *in[OPS_MAX] = { 0 };
    for (size_t i = 0, k = 0; i < g->n; i++)
        in[i] = g->row->grad >> i & 1 ? leaf[k++] : g->all[i];
    td_tensor *out = g->row->apply(in, g->n, (void *)(uintptr_t)g->row);
    if (!g->twice)
        return out;
    /* stamps off: the two losses of a batch may not be what this is about */
    return td_add(td_scale(out, 0.5), g->row->apply(in, g->n, (void *)(uintptr_t)g->row));
}

/* The row's inputs in f64; which of them are leaves. Returns how many those are. */
static size_t make_case(const ops_row *row, bool twice, gradient_case *g, td_tensor **leaf)
{
    size_t leaves = 0;
    *g = (gradient_case){ .row = row, .twice = twice };
    g->n = row->inputs(row, TD_F64, g->all);
    for (size_t i = 0; i < g->n; i++)
        if (row->grad >> i & 1)
            leaf[leaves++] = g->all[i];
    return leaves;
}

/* One backward on a device, of the sum of the result's elements times fixed weights. gradient: of each leaf; returns how many. */
static size_t gradients_on(const ops_row *row, td_device device, bool twice, ops_array *gradient)
{
    const td_device before = td_device_default();
    TD_SCOPE();
    td__device_set_default(device);
    gradient_case g;
    td_tensor *leaf[OPS_MAX];
    const size_t leaves = make_case(row, twice, &g, leaf);
    td_requires_grad((td_tensors){ leaf, leaves }, true);
    td__random_restart();
    td_tensor *out = apply_case(leaf, leaves, &g);
    td_tensor *weight = ops_fill_distinct(td_shape_of(out), TD_F64, 77);
    if (!td_error_pending() && td_needs_grad(out))
        td__backward_seeded(out, weight);
    for (size_t i = 0; i < leaves && !td_error_pending(); i++)
        if (td_grad(leaf[i]))
            ops_array_of(td_grad(leaf[i]), &gradient[i]);
    td__device_set_default(before);
    return leaves;
}

int ops_check_gradient_beside_cpu(const ops_row *row)
{
    int bad = 0;
    for (int twice = 0; twice < 2; twice++) {
        ops_array got[OPS_MAX] = { 0 }, want[OPS_MAX] = { 0 };
        size_t n = gradients_on(row, td_device_default(), twice, got);
        gradients_on(row, (td_device){ TD_CPU, 0 }, twice, want);
        if (td_error_pending()) {
            printf("%s: gradient%s: %s\n", row->name, twice ? ", added to" : "", td_error_message());
            td_error_clear();
            bad++;
        }
        for (size_t i = 0; i < n; i++) {
            double most = 0;
            int wrong = !want[i].v || got[i].n != want[i].n;
            for (int64_t k = 0; k < want[i].n; k++)
                most = fmax(most, fabs(want[i].v[k]));
            for (int64_t k = 0; !wrong && k < want[i].n; k++)
                if (!(fabs(got[i].v[k] - want[i].v[k]) <= 1e-12 * fmax(most, 1)) && wrong++ < 3)
                    printf("%s: gradient%s of leaf %zu, element %lld is %.17g, on the CPU %.17g\n", row->name, twice ? ", added to" : "", i, (long long)k,
                           got[i].v[k], want[i].v[k]);
            if (!want[i].v || got[i].n != want[i].n)
                printf("%s: leaf %zu has a gradient of %lld elements, on the CPU of %lld\n", row->name, i, (long long)got[i].n, (long long)want[i].n);
            bad += wrong > 0;
            free(got[i].v);
            free(want[i].v);
        }
    }
    return bad;
}

int ops_check_gradient(const ops_row *row)
{
    int bad = 0;
    for (int twice = 0; twice < 2; twice++) {
        TD_SCOPE();
        gradient_case g;
        td_tensor *leaf[OPS_MAX];
        const size_t leaves = make_case(row, twice, &g, leaf);
        int differ = td_gradcheck(apply_case, &g, leaf, leaves, &row->check);
        if (differ) {
            printf("%s: gradient%s: %d differ %s\n", row->name, twice ? ", added to" : "", differ, td_error_message());
            td_error_clear();
            bad++;
        }
    }
    return bad;
}
