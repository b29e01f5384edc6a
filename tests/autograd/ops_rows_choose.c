/* tests/autograd/ops_rows_choose.c: rows for maximum, minimum, where, var.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>
#include <stdlib.h>

/* p[0]: which shapes (mask, a, b), p[1]: a transposed */
static const struct { td_shape mask, a, b; } shapes[] = {
    [0] = { { 2, { 7, 13 } }, { 2, { 7, 13 } }, { 2, { 7, 13 } } },   [1] = { { 2, { 7, 1 } }, { 2, { 7, 13 } }, { 1, { 13 } } },
    [2] = { { 0, { 0 } }, { 2, { 5, 3 } }, { 0, { 0 } } },            [3] = { { 3, { 5, 1, 3 } }, { 2, { 4, 1 } }, { 3, { 5, 1, 3 } } },
    [4] = { { 1, { 3 } }, { 2, { 0, 3 } }, { 1, { 3 } } },            [5] = { { 1, { 1 } }, { 1, { 1 } }, { 1, { 1 } } },
    [6] = { { 2, { 5, 3 } }, { 2, { 3, 5 } }, { 2, { 5, 3 } } },      [7] = { { 1, { 67 } }, { 1, { 67 } }, { 1, { 67 } } },
    [8] = { { 2, { 211, 331 } }, { 2, { 211, 331 } }, { 1, { 331 } } }, [9] = { { 2, { 331, 211 } }, { 2, { 211, 331 } }, { 2, { 331, 1 } } },
};

static td_tensor *flipped(const ops_row *row, td_tensor *x)
{
    return row->p[1] ? td_transpose(x, 0, 1) : x;
}
static double element(const ops_row *row, const ops_array *x, td_shape to, int64_t i)
{
    td_shape s = x->shape;
    if (!row->p[1])
        return x->v[ops_broadcast_index(s, to, i)];
    int64_t at = ops_broadcast_index(TD_SHAPE(s.dim[1], s.dim[0]), to, i);
    return x->v[at % s.dim[0] * s.dim[1] + at / s.dim[0]];
}
static td_shape flipped_shape(const ops_row *row, td_shape s)
{
    return row->p[1] ? TD_SHAPE(s.dim[1], s.dim[0]) : s;
}

/* odd multiples of 1/64 and even ones: none equal, so that differences are taken on one side */
static size_t two(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill_distinct(shapes[row->p[0]].a, t, 41);
    in[1] = td_shift(ops_fill_distinct(shapes[row->p[0]].b, t, 42), td__is_float(t) ? 1.0 / 64 : 1);
    return 2;
}
#define EXTREME(name, EXPR)                                                                                  \
    static td_tensor *apply_##name(td_tensor *const *in, size_t n, void *row)                                \
    {                                                                                                        \
        return td_##name(flipped(row, in[0]), in[1]);                                                        \
    }                                                                                                        \
    static void reference_##name(const ops_row *row, const ops_array *in, size_t n, ops_array *out)          \
    {                                                                                                        \
        ops_out(out, ops_broadcast(flipped_shape(row, in[0].shape), in[1].shape));                           \
        for (int64_t i = 0; i < out->n; i++) {                                                               \
            double x = element(row, &in[0], out->shape, i), y = in[1].v[ops_broadcast_index(in[1].shape, out->shape, i)]; \
            out->v[i] = EXPR;                                                                                \
        }                                                                                                    \
    }
EXTREME(maximum, x > y ? x : y)
EXTREME(minimum, x < y ? x : y)

/* p[2]: the mask is u8, and what is true is not always 1 */
static size_t three(const ops_row *row, td_dtype t, td_tensor **in)
{
    uint8_t mask[1 << 17];
    int64_t n = ops_count(shapes[row->p[0]].mask);
    for (int64_t i = 0; i < n; i++)
        mask[i] = i * 7 % 5 < 2 ? 0 : row->p[2] ? (uint8_t)(1 + i % 200) : 1;
    in[0] = td_from(mask, shapes[row->p[0]].mask, row->p[2] ? TD_U8 : TD_BOOL);
    in[1] = ops_fill(shapes[row->p[0]].a, t, 43);
    in[2] = ops_fill(shapes[row->p[0]].b, t, 44);
    return 3;
}
static td_tensor *apply_where(td_tensor *const *in, size_t n, void *row)
{
    return td_where(in[0], flipped(row, in[1]), in[2]);
}
static void reference_where(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    ops_out(out, ops_broadcast(in[0].shape, ops_broadcast(flipped_shape(row, in[1].shape), in[2].shape)));
    for (int64_t i = 0; i < out->n; i++)
        out->v[i] = in[0].v[ops_broadcast_index(in[0].shape, out->shape, i)] != 0 ? element(row, &in[1], out->shape, i)
                                                                                : in[2].v[ops_broadcast_index(in[2].shape, out->shape, i)];
}

/* var: p = ndim, three sizes, mask of axes (0: all), keep, correction, transposed */
static size_t values(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = td_shift(ops_fill((td_shape){ row->p[0], { row->p[1], row->p[2], row->p[3] } }, t, 45), 3);
    return 1;
}
static td_tensor *apply_var(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    int axis[3], axes = 0;
    for (int i = 0; i < 3; i++)
        if (row->p[4] >> i & 1)
            axis[axes++] = i == 2 ? -1 : i;
    return td_var(row->p[7] ? td_transpose(in[0], 0, 1) : in[0], axes ? axis : NULL, axes, row->p[5], row->p[6]);
}
static void reference_var(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    td_shape s = in[0].shape, kept = { 0 };
    if (row->p[7])
        s.dim[0] = in[0].shape.dim[1], s.dim[1] = in[0].shape.dim[0];
    const int mask = row->p[4] ? row->p[4] : 7;
    int64_t count = 1;
    td_shape aligned = s;                                       /* reduced dimensions are 1                               */
    for (int i = 0; i < s.ndim; i++) {
        bool gone = mask >> i & 1;
        count *= gone ? s.dim[i] : 1;
        aligned.dim[i] = gone ? 1 : s.dim[i];
        if (!gone || row->p[5])
            kept.dim[kept.ndim++] = aligned.dim[i];
    }
    ops_out(out, kept);
    /* so that the reference's own rounding does not count */
    long double *mean = calloc((size_t)out->n + 1, sizeof *mean), *sum = calloc((size_t)out->n + 1, sizeof *sum);
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < in[0].n; i++) {
            int64_t c = s.ndim > 2 ? s.dim[2] : 1, from = i;
            if (row->p[7])
                from = (i / c % s.dim[1] * s.dim[0] + i / c / s.dim[1]) * c + i % c;
            int64_t at = ops_broadcast_index(aligned, s, i);
            double x = in[0].v[from];
            if (pass == 0)
                mean[at] += (long double)x / (long double)count;
            else
                sum[at] += (x - mean[at]) * (x - mean[at]);
        }
    for (int64_t i = 0; i < out->n; i++)
        out->v[i] = (double)(sum[i] / (count > row->p[6] ? count - row->p[6] : 0));
    free(mean);
    free(sum);
}

#define R(label, types, make, g, ...)                                                                        \
    { .op = &td__op_##label, .name = #label " {" #__VA_ARGS__ "}", .dtypes = types, .inputs = make, .apply = apply_##label, \
      .reference = reference_##label, .grad = g, .p = { __VA_ARGS__ } }
#define CHOICES(label, make, g)                                                                              \
    R(label, OPS_ARITH, make, g, 0), R(label, OPS_ARITH, make, g, 1), R(label, OPS_ARITH, make, g, 2), R(label, OPS_ARITH, make, g, 3), \
        R(label, OPS_ARITH, make, g, 4), R(label, OPS_ARITH, make, g, 5), R(label, OPS_ARITH, make, g, 6, 1), \
        R(label, OPS_ARITH, make, g, 7), R(label, OPS_ARITH, make, 0, 8), R(label, OPS_ARITH, make, 0, 9, 1)
#define VAR(g, ...)                                                                                          \
    { .op = &td__op_var, .name = "var {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = values, .apply = apply_var, .reference = reference_var, \
      .abs = 8, .rel = 8, .grad = g, .p = { __VA_ARGS__ } }
const ops_row ops_rows_choose[] = {
    CHOICES(maximum, two, 3),
    CHOICES(minimum, two, 3),
    CHOICES(where, three, 6),
    R(where, OPS_ARITH, three, 6, 0, 0, 1), R(where, OPS_F, three, 2, 1, 0, 1), R(where, OPS_F, three, 4, 1),
    VAR(1, 2, 5, 7, 0, 0, 0, 1), VAR(1, 2, 5, 7, 0, 1, 0, 1), VAR(1, 2, 5, 7, 0, 2, 1, 0), VAR(1, 2, 5, 7, 0, 2, 0, 1, 1),
    VAR(1, 3, 2, 3, 5, 5, 1, 1), VAR(1, 3, 2, 3, 5, 4, 0, 2, 1), VAR(1, 1, 13, 0, 0, 0, 1, 0), VAR(1, 2, 0, 3, 0, 2, 0, 1),
    VAR(0, 2, 0, 3, 0, 1, 0, 1), VAR(0, 1, 1, 0, 0, 0, 0, 1), VAR(1, 1, 1, 0, 0, 0, 0, 0), VAR(0, 1, 40009, 0, 0, 0, 0, 1),
    VAR(0, 2, 307, 211, 0, 1, 0, 1), VAR(0, 2, 307, 211, 0, 2, 0, 0, 1),
    { 0 },
};
