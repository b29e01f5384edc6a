/* tests/autograd/ops_rows_pointwise.c: rows for silu, exp, ln, sqrt, abs, pow, clamp, log_softmax.
 *
 * Tolerances: libmvec promises 4 units in the last place; silu divides and multiplies once more. abs and clamp are exact.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

/* p: ndim and three sizes, transposed (first two dimensions), pow: four times the exponent, log_softmax: the axis */
static size_t wide(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = td_scale(ops_fill((td_shape){ row->p[0], { row->p[1], row->p[2], row->p[3] } }, t, 31), 4);
    return 1;
}
static size_t positive(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill_positive((td_shape){ row->p[0], { row->p[1], row->p[2], row->p[3] } }, t, 32);
    return 1;
}
static size_t distinct(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill_distinct((td_shape){ row->p[0], { row->p[1], row->p[2], row->p[3] } }, t, 33);
    return 1;
}
static size_t base(const ops_row *row, td_dtype t, td_tensor **in)         /* negative ones only where the exponent is whole and not below 0 */
{
    td_shape s = { row->p[0], { row->p[1], row->p[2], row->p[3] } };
    in[0] = row->p[5] >= 0 && row->p[5] % 4 == 0 ? ops_fill(s, t, 34) : ops_fill_positive(s, t, 34);
    return 1;
}

static td_shape seen(const ops_row *row, td_shape s, int64_t i, int64_t *from)
{
    *from = i;
    if (!row->p[4])
        return s;
    int64_t a = s.dim[0], b = s.dim[1], c = s.ndim > 2 ? s.dim[2] : 1;
    *from = (i / c % a * b + i / c / a) * c + i % c;
    s.dim[0] = b, s.dim[1] = a;
    return s;
}

#define POINTWISE(name, CALL, EXPR)                                                                          \
    static td_tensor *apply_##name(td_tensor *const *in, size_t n, void *user)                               \
    {                                                                                                        \
        const ops_row *row = user;                                                                           \
        td_tensor *x = row->p[4] ? td_transpose(in[0], 0, 1) : in[0];                                        \
        return CALL;                                                                                         \
    }                                                                                                        \
    static void reference_##name(const ops_row *row, const ops_array *in, size_t n, ops_array *out)          \
    {                                                                                                        \
        int64_t from;                                                                                        \
        ops_out(out, seen(row, in[0].shape, 0, &from));                                                      \
        for (int64_t i = 0; i < out->n; i++) {                                                               \
            seen(row, in[0].shape, i, &from);                                                                \
            double x = in[0].v[from];                                                                        \
            out->v[i] = EXPR;                                                                                \
        }                                                                                                    \
    }
POINTWISE(silu, td_silu(x), x / (1 + exp(-x)))
POINTWISE(exp, td_exp(x), exp(x))
POINTWISE(ln, td_ln(x), log(x))
POINTWISE(sqrt, td_sqrt(x), sqrt(x))
POINTWISE(abs, td_abs(x), fabs(x))
POINTWISE(pow, td_pow(x, row->p[5] / 4.0), pow(x, row->p[5] / 4.0))
POINTWISE(clamp, td_clamp(x, -0.5, 0.25), fmin(fmax(x, -0.5), 0.25))
POINTWISE(clamp_below, td_clamp(x, 0.125, INFINITY), fmax(x, 0.125))

static td_tensor *apply_log_softmax(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    return td_log_softmax(row->p[4] ? td_transpose(in[0], 0, 1) : in[0], row->p[5]);
}
static void reference_log_softmax(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    int64_t from, inner = 1;
    td_shape s = seen(row, in[0].shape, 0, &from);
    ops_out(out, s);
    int axis = row->p[5] < 0 ? row->p[5] + s.ndim : row->p[5];
    for (int d = axis + 1; d < s.ndim; d++)
        inner *= s.dim[d];
    for (int64_t i = 0; i < out->n; i++) {
        int64_t size = s.dim[axis], first = i - i / inner % size * inner;
        long double sum = 0;                                    /* so that the reference's own rounding does not count     */
        for (int64_t k = 0; k < size; k++) {
            seen(row, in[0].shape, first + k * inner, &from);
            sum += expl((long double)in[0].v[from]);
        }
        seen(row, in[0].shape, i, &from);
        out->v[i] = (double)((long double)in[0].v[from] - logl(sum));
    }
}

#define R(label, applied, types, make, e, g, ...)                                                            \
    { .op = &td__op_##label, .name = #applied " {" #__VA_ARGS__ "}", .dtypes = types, .inputs = make, .apply = apply_##applied, \
      .reference = reference_##applied, .abs = e, .rel = e, .grad = g, .p = { __VA_ARGS__ } }
#define SHAPES(label, applied, types, make, e)                                                               \
    R(label, applied, types, make, e, 1, 1, 67), R(label, applied, types, make, e, 1, 1, 0), R(label, applied, types, make, e, 1, 1, 1), \
        R(label, applied, types, make, e, 1, 2, 0, 3), R(label, applied, types, make, e, 1, 2, 3, 5, 0, 1),  \
        R(label, applied, types, make, e, 1, 3, 2, 3, 7, 0), R(label, applied, types, make, e, 1, 3, 2, 3, 7, 1), \
        R(label, applied, types, make, e, 0, 1, 40009), R(label, applied, types, make, e, 0, 2, 307, 211, 0, 1)
/* exponents times four */
#define POWER(e)                                                                                             \
    R(pow, pow, OPS_F, base, 8, 1, 1, 67, 0, 0, 0, e), R(pow, pow, OPS_F, base, 8, 1, 2, 3, 5, 0, 1, e),     \
        R(pow, pow, OPS_F, base, 8, 0, 1, 40009, 0, 0, 0, e)
#define LOG_SOFTMAX(g, ...) R(log_softmax, log_softmax, OPS_F, wide, 8, g, __VA_ARGS__)
const ops_row ops_rows_pointwise[] = {
    SHAPES(silu, silu, OPS_F, wide, 8),
    SHAPES(exp, exp, OPS_F, wide, 8),
    SHAPES(ln, ln, OPS_F, positive, 8),
    SHAPES(sqrt, sqrt, OPS_F, positive, 1),
    SHAPES(abs, abs, OPS_ARITH, distinct, 0),
    SHAPES(clamp, clamp, OPS_F, distinct, 0),
    SHAPES(clamp, clamp_below, OPS_F, distinct, 0),
    POWER(0), POWER(4), POWER(8), POWER(12), POWER(28), POWER(2), POWER(-2), POWER(-4), POWER(-8), POWER(11), POWER(-5), POWER(-12),
    R(pow, pow, OPS_F, base, 8, 1, 2, 0, 3, 0, 0, 8),
    LOG_SOFTMAX(1, 2, 5, 7, 0, 0, 1), LOG_SOFTMAX(1, 2, 5, 7, 0, 0, 0), LOG_SOFTMAX(1, 1, 13, 0, 0, 0, -1), LOG_SOFTMAX(1, 2, 5, 7, 0, 1, -1),
    LOG_SOFTMAX(1, 2, 5, 7, 0, 1, 0), LOG_SOFTMAX(1, 3, 2, 3, 5, 0, 1), LOG_SOFTMAX(1, 3, 2, 3, 5, 1, 2), LOG_SOFTMAX(1, 2, 0, 3, 0, 0, 1),
    LOG_SOFTMAX(1, 2, 3, 0, 0, 0, 1), LOG_SOFTMAX(1, 1, 1, 0, 0, 0, 0), LOG_SOFTMAX(0, 2, 67, 1009, 0, 0, 1), LOG_SOFTMAX(0, 2, 1009, 67, 0, 0, 0),
    { 0 },
};
