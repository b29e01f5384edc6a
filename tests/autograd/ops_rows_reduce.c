/* tests/autograd/ops_rows_reduce.c: rows for sum, mean, amax, amin, argmax.
 *
 * p: dimensions of the input (0 to 4, then the sizes), mask of axes (0: all, by n_axes 0), keep, transposed (the first two), distinct.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

enum { NDIM, D0, MASK = 5, KEEP, FLIP, DISTINCT };

static size_t inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    td_shape s = { row->p[NDIM], { row->p[D0], row->p[D0 + 1], row->p[D0 + 2], row->p[D0 + 3] } };
    in[0] = row->p[DISTINCT] ? ops_fill_distinct(s, t, 5) : ops_fill(s, t, 5);
    return 1;
}

static int axes_of(const ops_row *row, int ndim, int *axis)
{
    int n = 0;
    for (int d = 0; d < ndim; d++)
        if (row->p[MASK] >> d & 1)
            axis[n++] = d % 2 ? d - ndim : d;                  /* negative ones, too                                      */
    return n;
}

#define APPLY(name)                                                                                          \
    static td_tensor *apply_##name(td_tensor *const *in, size_t n, void *user)                               \
    {                                                                                                        \
        const ops_row *row = user;                                                                           \
        int axis[8];                                                                                         \
        td_tensor *x = row->p[FLIP] ? td_transpose(in[0], 0, 1) : in[0];                                     \
        return td_##name(x, axis, axes_of(row, row->p[NDIM], axis), row->p[KEEP]);                           \
    }
APPLY(sum)
APPLY(mean)
APPLY(amax)
APPLY(amin)

static td_tensor *apply_argmax(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    int axis[8];
    axes_of(row, row->p[NDIM], axis);
    return td_argmax(row->p[FLIP] ? td_transpose(in[0], 0, 1) : in[0], axis[0]);
}

/* Element by element: where does it go, and as which one along the reduced axes? */
static void reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    td_shape s = in[0].shape, o = { 0 };
    if (row->p[FLIP])
        s.dim[0] = in[0].shape.dim[1], s.dim[1] = in[0].shape.dim[0];
    const int mask = row->p[MASK] ? row->p[MASK] : (1 << s.ndim) - 1;
    int64_t count = 1;
    for (int d = 0; d < s.ndim; d++) {
        if (!(mask >> d & 1))
            o.dim[o.ndim++] = s.dim[d];
        else if (row->p[KEEP])
            o.dim[o.ndim++] = 1;
        count *= mask >> d & 1 ? s.dim[d] : 1;
    }
    ops_out(out, o);
    double best[4096];
    int64_t seen[4096] = { 0 };
    for (int64_t i = 0; i < in[0].n; i++) {
        int64_t rest = i, at = 0, step = 1, from = 0;
        for (int d = s.ndim - 1; d >= 0; d--) {
            int64_t index = rest % s.dim[d];
            rest /= s.dim[d];
            if (!(mask >> d & 1))
                at += index * step, step *= s.dim[d];
            int64_t stride = 1;
            int k = row->p[FLIP] && d < 2 ? 1 - d : d;
            for (int e = k + 1; e < s.ndim; e++)
                stride *= in[0].shape.dim[e];
            from += index * stride;
        }
        double x = in[0].v[from];
        if (row->op == &td__op_sum)
            out->v[at] += x;
        else if (row->op == &td__op_mean)
            out->v[at] += x / (double)count;
        else if (seen[at] == 0 || (row->op == &td__op_amin ? x < best[at] : x > best[at])) {
            best[at] = x;
            out->v[at] = row->op == &td__op_argmax ? (double)seen[at] : x;
        }
        if (row->op != &td__op_sum && row->op != &td__op_mean)
            seen[at]++;
    }
    if (row->op == &td__op_mean && count == 0)
        for (int64_t i = 0; i < out->n; i++)
            out->v[i] = (double)NAN;
}

#define R(label, types, g, ...)                                                                              \
    { .op = &td__op_##label, .name = #label " {ndim, sizes, axes, keep, flip, distinct} = {" #__VA_ARGS__ "}", .dtypes = types, \
      .inputs = inputs, .apply = apply_##label, .reference = reference, .abs = 1, .rel = 2, .grad = g, .p = { __VA_ARGS__ } }
/* sums: small ones with gradients, large ones for every path of the kernel (threads, slices, columns, runs, strides) */
#define SUMS(label, types)                                                                                   \
    R(label, types, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0), R(label, types, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0),            \
    R(label, types, 1, 2, 5, 7, 0, 0, 0, 0, 0, 0), R(label, types, 1, 2, 5, 7, 0, 0, 1, 0, 0, 0),            \
    R(label, types, 1, 2, 5, 7, 0, 0, 2, 1, 0, 0), R(label, types, 1, 2, 5, 7, 0, 0, 2, 0, 1, 0),            \
    R(label, types, 1, 2, 5, 7, 0, 0, 1, 1, 1, 0), R(label, types, 1, 2, 5, 7, 0, 0, 0, 1, 1, 0),            \
    R(label, types, 1, 3, 2, 3, 5, 0, 2, 0, 0, 0), R(label, types, 1, 3, 2, 3, 5, 0, 5, 0, 0, 0),            \
    R(label, types, 1, 4, 2, 3, 2, 3, 13, 0, 0, 0), R(label, types, 1, 4, 2, 3, 2, 3, 10, 1, 1, 0),          \
    R(label, types, 1, 2, 0, 3, 0, 0, 1, 0, 0, 0), R(label, types, 1, 2, 0, 3, 0, 0, 2, 0, 0, 0),            \
    R(label, types, 1, 2, 3, 0, 0, 0, 2, 1, 0, 0), R(label, types, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0),            \
    R(label, types, 0, 1, 70001, 0, 0, 0, 0, 0, 0, 0), R(label, types, 0, 2, 1009, 67, 0, 0, 1, 0, 0, 0),    \
    R(label, types, 0, 2, 67, 1009, 0, 0, 2, 0, 0, 0), R(label, types, 0, 2, 331, 211, 0, 0, 0, 0, 1, 0),    \
    R(label, types, 0, 2, 307, 211, 0, 0, 1, 0, 1, 0), R(label, types, 0, 3, 5, 4001, 3, 0, 2, 0, 0, 0),     \
    R(label, types, 0, 4, 3, 5, 31, 97, 13, 0, 0, 0), R(label, types, 0, 2, 40009, 2, 0, 0, 1, 0, 0, 0)
#define EXTREMES(label)                                                                                      \
    R(label, OPS_ARITH, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1), R(label, OPS_ARITH, 1, 2, 5, 7, 0, 0, 0, 0, 0, 1),    \
    R(label, OPS_ARITH, 1, 2, 5, 7, 0, 0, 1, 1, 0, 1), R(label, OPS_ARITH, 1, 2, 5, 7, 0, 0, 2, 0, 1, 1),    \
    R(label, OPS_ARITH, 1, 3, 2, 3, 5, 0, 5, 0, 0, 1), R(label, OPS_ARITH, 1, 2, 0, 3, 0, 0, 2, 0, 0, 1),    \
    R(label, OPS_ARITH, 0, 2, 307, 211, 0, 0, 1, 0, 0, 0), R(label, OPS_ARITH, 0, 2, 307, 211, 0, 0, 2, 0, 0, 0), \
    R(label, OPS_ARITH, 0, 1, 40009, 0, 0, 0, 0, 0, 0, 0), R(label, OPS_ARITH, 0, 2, 307, 211, 0, 0, 1, 0, 1, 0)
#define FIRST(...)                                                                                           \
    { .op = &td__op_argmax, .name = "argmax {ndim, sizes, axes, keep, flip} = {" #__VA_ARGS__ "}", .dtypes = OPS_ARITH, .inputs = inputs, \
      .apply = apply_argmax, .reference = reference, .no_gradient = true, .p = { __VA_ARGS__ } }

const ops_row ops_rows_reduce[] = {
    SUMS(sum, OPS_ARITH),
    SUMS(mean, OPS_F),
    EXTREMES(amax),
    EXTREMES(amin),
    FIRST(1, 1, 0, 0, 0, 1), FIRST(2, 5, 7, 0, 0, 1), FIRST(2, 5, 7, 0, 0, 2), FIRST(2, 5, 7, 0, 0, 2, 0, 1), FIRST(3, 2, 37, 5, 0, 2),
    FIRST(2, 0, 3, 0, 0, 2), FIRST(2, 1009, 67, 0, 0, 1), FIRST(2, 1009, 67, 0, 0, 2),
    { 0 },
};
