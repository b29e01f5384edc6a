/* Every float row of the table in f16 and bf16: results against the row's double-precision reference of the same (rounded) inputs, gradients
 * against those of f64, which test_ops_gradient compares with finite differences.
 *
 * Tolerances come from the dtype. u is half a unit in the last place of 1 (2^-8, 2^-11). A result is what f32 gives, rounded once: u times
 * its magnitude, half the smallest subnormal of f16, and what the row allows f32. A gradient is rounded once, too, and sums
 * of rounded contributions are off by the same part of the largest one: u times itself and twice the largest gradient of the tensor. Where it is
 * made of an output that was saved in 16 bits, and so is off by u (1 - y*y of tanh, y*(1 - y) of sigmoid, y*(g - sum(g*y)) of softmax, sum(g*y)
 * of attention, the gates of recurrent cells), the difference may cancel: there twice the largest incoming gradient counts, if that is more. Large rows (they are about
 * threads) are left to the other tests.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static double unit(td_dtype t)
{
    return t == TD_BF16 ? 0x1p-8 : 0x1p-11;
}

enum { LARGE = 20000 };

static bool float_row(const ops_row *row)
{
    return (row->dtypes & OPS_F) == OPS_F;
}

static bool large_row(const ops_row *row)
{
    TD_SCOPE();
    td_tensor *in[OPS_MAX] = { 0 };
    int64_t elements = 0;
    for (size_t i = row->inputs(row, TD_F32, in); i-- > 0;)
        elements += in[i] ? td_numel(in[i]) : 0;
    return elements > LARGE;
}

static int failed(const ops_row *row, td_dtype t, const char *what)
{
    printf("%s [%s] %s: %s\n", row->name, td_dtype_name(t), what, td_error_message());
    td_error_clear();
    return 1;
}

/* ---- results ------------------------------------------------------------------------------------------------------------------------ */

static bool close_enough(const ops_row *row, td_dtype given, td_dtype got_dtype, double got, double want)
{
    if (isnan(want) || isnan(got))
        return isnan(want) && isnan(got);
    if (got == want)
        return true;
    if (!td__is_real(got_dtype))
        return false;                          /* places, truths: exact                                                    */
    if (given == TD_F16 && fabs(want) > 65504 * (1 - 0x1p-12))
        return fabs(got) >= 65504 * (1 - 0x1p-10) && signbit(got) == signbit(want);
    /* rotary's cosines are rounded, too, its inputs are below 2; so is what goes into gelu, up to 30; of an mlp, times 8 weights up to 2 */
    double table = unit(given) * (row->op == &td__op_rotary ? 4 : row->op == &td__op_linear_gelu ? 34 : row->op == &td__op_mlp ? 16 * 64 : 0);
    return fabs(got - want) <= unit(given) * fabs(want) + table + 0x1p-25 + (double)FLT_EPSILON * (row->abs + row->rel * fabs(want)) * 1.01;
}

static int check_result(const ops_row *row, td_dtype t)
{
    TD_SCOPE();
    td_tensor *in[OPS_MAX] = { 0 };
    ops_array array[OPS_MAX] = { 0 }, want = { 0 }, got = { 0 };
    size_t n = row->inputs(row, t, in);
    for (size_t i = 0; i < n; i++)
        if (in[i])
            ops_array_of(in[i], &array[i]);
    td_tensor *out = row->apply(in, n, (void *)(uintptr_t)row);
    int bad = td_error_pending() ? failed(row, t, "result") : 0;
    if (!bad) {
        row->reference(row, array, n, &want);
        ops_array_of(out, &got);
        bad = !td__shape_equal(got.shape, want.shape);
        if (td__is_float(out->dtype) && row->op != &td__op_cast)
            bad = printf("%s [%s]: the result is %s\n", row->name, td_dtype_name(t), td_dtype_name(out->dtype)) > 0;
        for (int64_t i = 0; i < want.n && !bad; i++)
            if (!close_enough(row, t, out->dtype, got.v[i], want.v[i]))
                bad = printf("%s [%s]: element %lld is %.9g, expected %.9g\n", row->name, td_dtype_name(t), (long long)i, got.v[i], want.v[i]) > 0;
    }
    for (size_t i = 0; i < n; i++)
        free(array[i].v);
    free(want.v);
    free(got.v);
    return bad;
}

/* ---- gradients ------------------------------------------------------------------------------------------------------------------------ */

static bool made_of_its_output(const td_op *op)
{
    return op == &td__op_tanh || op == &td__op_sigmoid || op == &td__op_softmax || op == &td__op_attention || op == &td__op_lstm_cell || op == &td__op_gru_cell;
}

/* The gradients of sum(weights * f(inputs)) for the inputs of the row's mask. `in` are in 16 bits; t says in which dtype f is computed. The
 * leaves are f64, or f32 with a cast. *incoming: the largest weight. 0, or what went wrong. */
static int gradients(const ops_row *row, td_dtype t, td_tensor *const *in, size_t n, ops_array *into, double *incoming)
{
    td_tensor *leaf[OPS_MAX] = { 0 }, *given[OPS_MAX] = { 0 };
    const td_dtype wide = t == TD_F64 ? TD_F64 : TD_F32;
    for (size_t i = 0; i < n; i++) {
        if (!in[i])
            continue;
        given[i] = td__is_half(in[i]->dtype) ? td_cast(in[i], t) : in[i];
        if (!(row->grad >> i & 1))
            continue;
        leaf[i] = td_cast(in[i], wide);
        td_requires_grad((td_tensors){ &leaf[i], 1 }, true);
        given[i] = td_cast(leaf[i], t);
    }
    td_step_set(5);                            /* the same random numbers in both                                          */
    td_tensor *out = td_cast(row->apply(given, n, (void *)(uintptr_t)row), wide);
    td_tensor *weights = ops_fill(td_shape_of(out), wide, 91);
    *incoming = td_numel(weights) > 0 ? td_item(td_amax(td_abs(weights), NULL, 0, false)) : 0;
    td_backward_weighted(td_sum(td_mul(out, weights), NULL, 0, false), td_full(TD_SCALAR, TD_F32, 1));
    if (td_error_pending())
        return failed(row, t, "gradient");
    for (size_t i = 0; i < n; i++)
        if (leaf[i]) {
            td_tensor *g = td_grad(leaf[i]);
            ops_array_of(g ? g : td_zeros(td_shape_of(leaf[i]), wide), &into[i]);
        }
    return 0;
}

static int compare(const ops_row *row, td_dtype t, size_t input, const ops_array *got, const ops_array *want, double incoming)
{
    double most = made_of_its_output(row->op) ? incoming : 0;
    for (int64_t i = 0; i < want->n; i++)
        if (isfinite(want->v[i]))
            most = fmax(most, fabs(want->v[i]));
    for (int64_t i = 0; i < want->n; i++) {
        double d = fabs(got->v[i] - want->v[i]);
        bool same = got->v[i] == want->v[i] || (isnan(got->v[i]) && isnan(want->v[i]));
        bool over = t == TD_F16 && fabs(want->v[i]) > 65504 * (1 - 0x1p-10) && fabs(got->v[i]) > 65504 * (1 - 0x1p-9);
        if (!same && !over && !(d <= unit(t) * (fabs(want->v[i]) + 2 * most) + 0x1p-25))
            return printf("%s [%s]: gradient of input %zu, element %lld is %.9g, expected %.9g (scale %.4g)\n", row->name, td_dtype_name(t),
                          input, (long long)i, got->v[i], want->v[i], most) > 0;
    }
    return 0;
}

static int64_t not_zero;                       /* elements of gradients, of all rows: what could have been wrong          */

static int check_gradient(const ops_row *row, td_dtype t)
{
    TD_SCOPE();
    td_tensor *in[OPS_MAX] = { 0 };
    ops_array got[OPS_MAX] = { 0 }, want[OPS_MAX] = { 0 };
    size_t n = row->inputs(row, t, in);
    double incoming;
    int bad = gradients(row, t, in, n, got, &incoming);
    bad = bad ? bad : gradients(row, TD_F64, in, n, want, &incoming);
    for (size_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < want[i].n && row->grad >> i & 1; k++)
            not_zero += want[i].v[k] != 0;
        if (!bad && row->grad >> i & 1)
            bad = compare(row, t, i, &got[i], &want[i], incoming);
        free(got[i].v);
        free(want[i].v);
    }
    return bad;
}

/* ---- all rows ------------------------------------------------------------------------------------------------------------------------- */

static void run_all(int (*check)(const ops_row *, td_dtype), bool gradients_only, int least)
{
    int rows = 0, bad = 0;
    for (const ops_row *const *table = ops_tables(); *table; table++)
        for (const ops_row *row = *table; row->op; row++) {
            if (!float_row(row) || (gradients_only && !row->grad) || large_row(row))
                continue;
            rows += 2;
            bad += check(row, TD_BF16) + check(row, TD_F16);
        }
    print_message("%d comparisons\n", rows);
    assert_true(rows > least);
    assert_int_equal(bad, 0);
    td__scope_close_root();
    assert_int_equal(td__live_nodes(), 0);
    assert_int_equal(td_memory().live_tensors, 0);
    assert_int_equal(td_memory().live_bytes, 0);
}

static void results(void **state)
{
    (void)state;
    run_all(check_result, false, 500);
}

static void all_gradients(void **state)
{
    (void)state;
    run_all(check_gradient, true, 300);
    assert_true(not_zero > 40000);
}

/* No float operation of the registry without a row that runs here. */
static void complete(void **state)
{
    int missing = 0;
    (void)state;
    for (const td_op *const *op = td_op_registry(); *op; op++) {
        bool seen = false;
        for (const ops_row *const *table = ops_tables(); *table; table++)
            for (const ops_row *row = *table; row->op; row++)
                seen |= row->op == *op && float_row(row) && (row->grad || row->no_gradient);
        if (!seen)
            printf("%s: no row with f32 and f64\n", (*op)->name);
        missing += !seen;
    }
    assert_int_equal(missing, 0);
}

/* or-skip: only on a CUDA device; without one this ends with 77. */
int main(int argc, char **argv)
{
    td_errors(TD_ERRORS_RETURN);
    if (argc > 1 && strcmp(argv[1], "or-skip") == 0 && td_device_default().kind != TD_CUDA)
        return 77;
    const struct CMUnitTest tests[] = { cmocka_unit_test(results), cmocka_unit_test(all_gradients), cmocka_unit_test(complete) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
