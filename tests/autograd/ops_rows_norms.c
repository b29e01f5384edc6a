/* tests/autograd/ops_rows_norms.c: rows for layer_norm, rms_norm and group_norm. References are the definitions, row by row, in long double.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

/* p = a b c (x's shape; c negative: two dimensions), normalised dimensions, w, b, transposed input, groups */
enum { A, B, C, DIMS, W, BIAS, FLIP, GROUPS };
#define EPS 0.125

static td_shape shape_of(const int *p)
{
    return p[C] < 0 ? TD_SHAPE(p[A], p[B]) : TD_SHAPE(p[A], p[B], p[C]);
}

static td_shape affine_shape(const ops_row *row)
{
    const int *p = row->p;
    td_shape x = shape_of(p), s = { 1, { p[B] } };
    if (row->op == &td__op_group_norm)
        return s;
    s.ndim = p[DIMS];
    for (int i = 0; i < s.ndim; i++)
        s.dim[i] = x.dim[x.ndim - s.ndim + i];
    return s;
}

static size_t inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill(p[FLIP] ? TD_SHAPE(p[B], p[A], p[C]) : shape_of(p), t, 31);
    in[1] = ops_fill(affine_shape(row), t, 32);
    in[2] = ops_fill(affine_shape(row), t, 33);
    return 3;
}

static td_tensor *apply(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    const int *p = row->p;
    td_tensor *x = p[FLIP] ? td_transpose(in[0], 0, 1) : in[0], *w = p[W] ? in[1] : NULL, *b = p[BIAS] ? in[2] : NULL;
    if (row->op == &td__op_layer_norm)
        return td_layer_norm(x, w, b, p[DIMS], EPS);
    return row->op == &td__op_rms_norm ? td_rms_norm(x, w, EPS) : td_group_norm(x, p[GROUPS], w, b, EPS);
}

static void reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int *p = row->p;
    const bool group = row->op == &td__op_group_norm, centre = row->op != &td__op_rms_norm;
    const int64_t inner = p[C] < 0 ? 1 : p[C];
    ops_out(out, shape_of(p));
    int64_t size = ops_count(affine_shape(row));
    if (group)
        size = p[B] / p[GROUPS] * inner;
    for (int64_t begin = 0; begin < out->n; begin += size) {
        long double mean = 0, square = 0;
#define X(i) in[0].v[p[FLIP] ? (((i) / inner % p[B]) * p[A] + (i) / inner / p[B]) * inner + (i) % inner : (i)]
        for (int64_t i = begin; centre && i < begin + size; i++)
            mean += (long double)X(i) / size;
        for (int64_t i = begin; i < begin + size; i++)
            square += (X(i) - mean) * (X(i) - mean) / size;
        for (int64_t i = begin; i < begin + size; i++) {
            int64_t at = group ? i / inner % p[B] : i - begin;
            out->v[i] = (double)((X(i) - mean) / sqrtl(square + EPS) * (p[W] ? in[1].v[at] : 1) + (p[BIAS] ? in[2].v[at] : 0));
        }
    }
}

/* (x-mean)*rstd*w + b: five roundings of numbers below 16 */
#define R(label, g, ...)                                                                                     \
    { .op = &td__op_##label, .name = #label " {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = inputs, .apply = apply, .reference = reference, \
      .abs = 24, .rel = 2, .grad = g, .p = { __VA_ARGS__ } }
const ops_row ops_rows_norms[] = {
    R(layer_norm, 7, 3, 7, -1, 1, 1, 1), R(layer_norm, 7, 2, 3, 19, 1, 1, 1), R(layer_norm, 7, 2, 3, 5, 2, 1, 1), R(layer_norm, 1, 2, 3, 5, 3),
    R(layer_norm, 3, 5, 33, -1, 1, 1), R(layer_norm, 5, 5, 17, -1, 1, 0, 1), R(layer_norm, 4, 5, 17, -1, 1, 0, 1),
    R(layer_norm, 2, 5, 17, -1, 1, 1),
    R(layer_norm, 7, 3, 4, 6, 1, 1, 1, 1), R(layer_norm, 7, 4, 1, -1, 1, 1, 1), R(layer_norm, 7, 0, 7, -1, 1, 1, 1),
    R(layer_norm, 7, 3, 0, -1, 1, 1, 1),
    R(layer_norm, 0, 301, 131, -1, 1, 1, 1), R(layer_norm, 7, 37, 3, -1, 1, 1, 1),
    R(rms_norm, 3, 3, 7, -1, 1, 1), R(rms_norm, 3, 2, 3, 19, 1, 1), R(rms_norm, 1, 5, 33, -1, 1), R(rms_norm, 3, 3, 4, 6, 1, 1, 0, 1),
    R(rms_norm, 2, 4, 1, -1, 1, 1), R(rms_norm, 3, 0, 7, -1, 1, 1), R(rms_norm, 3, 3, 0, -1, 1, 1), R(rms_norm, 0, 301, 131, -1, 1, 1),
    R(group_norm, 7, 2, 6, 5, 0, 1, 1, 0, 3), R(group_norm, 7, 2, 4, 19, 0, 1, 1, 0, 1), R(group_norm, 7, 2, 3, 7, 0, 1, 1, 0, 3),
    R(group_norm, 7, 3, 6, -1, 0, 1, 1, 0, 2), R(group_norm, 1, 2, 4, 3, 0, 0, 0, 0, 2), R(group_norm, 5, 2, 4, 3, 0, 0, 1, 0, 2),
    R(group_norm, 3, 2, 4, 3, 0, 1, 0, 0, 2), R(group_norm, 4, 2, 4, 3, 0, 1, 1, 0, 2), R(group_norm, 7, 4, 6, 3, 0, 1, 1, 1, 2),
    R(group_norm, 7, 0, 4, 3, 0, 1, 1, 0, 2), R(group_norm, 7, 2, 4, 0, 0, 1, 1, 0, 2), R(group_norm, 0, 17, 12, 211, 0, 1, 1, 0, 4),
    { 0 },
};
