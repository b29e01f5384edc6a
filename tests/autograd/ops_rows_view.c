/* tests/autograd/ops_rows_view.c: rows for reshape, permute, expand, narrow, contiguous, detach (flatten and transpose are spelled with them).
 *
 * Each row says, for an index of its result, which element of the input that is.
 */
#include "ops_list.h"
#include "ops_table.h"

static size_t inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill((td_shape){ row->p[0], { row->p[1], row->p[2], row->p[3] } }, t, 6);
    return 1;
}

/* the input's dimensions 0 and 1 exchanged: index i of the flipped (b,a,c) in (a,b,c) */
static int64_t flipped(const ops_array *x, int64_t i)
{
    int64_t a = x->shape.dim[0], b = x->shape.dim[1], c = x->shape.ndim > 2 ? x->shape.dim[2] : 1;
    int64_t k = i % c, ai = i / c % a, bi = i / c / a;
    return (ai * b + bi) * c + k;
}

#define VIEW(name, CALL, SHAPE, FROM)                                                                        \
    static td_tensor *apply_##name(td_tensor *const *in, size_t n, void *row)                                \
    {                                                                                                        \
        td_tensor *x = in[0];                                                                                \
        return CALL;                                                                                         \
    }                                                                                                        \
    static void reference_##name(const ops_row *row, const ops_array *in, size_t n, ops_array *out)          \
    {                                                                                                        \
        const ops_array *x = &in[0];                                                                         \
        ops_out(out, SHAPE);                                                                                 \
        for (int64_t i = 0; i < out->n; i++)                                                                 \
            out->v[i] = x->v[FROM];                                                                          \
    }
#define S(k) (x->shape.dim[k])
VIEW(reshape, td_reshape(x, TD_SHAPE(5, 2, 3)), TD_SHAPE(5, 2, 3), i)
VIEW(reshape_rest, td_reshape(x, TD_SHAPE(3, -1)), TD_SHAPE(3, 10), i)
VIEW(reshape_scalar, td_reshape(x, TD_SCALAR), TD_SCALAR, i)
VIEW(reshape_empty, td_reshape(x, TD_SHAPE(7, -1)), TD_SHAPE(7, 0), i)
VIEW(reshape_copy, td_reshape(td_transpose(x, 0, 1), TD_SHAPE(30)), TD_SHAPE(30), flipped(x, i))
VIEW(reshape_strided, td_reshape(td_narrow(x, 2, 1, 1), TD_SHAPE(2, 1, 3)), TD_SHAPE(2, 1, 3), i * 5 + 1)
VIEW(reshape_part, td_reshape(td_transpose(x, 0, 1), TD_SHAPE(3, 2, 5, 1)), TD_SHAPE(3, 2, 5, 1), flipped(x, i))
VIEW(reshape_merge, td_reshape(td_permute(x, (int[]){ 2, 0, 1 }, 3), TD_SHAPE(5, 6)), TD_SHAPE(5, 6), i % 6 * 5 + i / 6)
VIEW(reshape_split, td_reshape(td_transpose(x, 0, 1), TD_SHAPE(5, 2, 3)), TD_SHAPE(5, 2, 3), i % 6 * 5 + i / 6)
VIEW(flatten, td_flatten(td_contiguous(x), 1), TD_SHAPE(2, 15), i)
VIEW(flatten_copy, td_flatten(td_transpose(x, 0, 1), -2), TD_SHAPE(3, 10), flipped(x, i))
VIEW(flatten_rows, td_flatten(x, 1), TD_SHAPE(0, 15), i)
VIEW(permute, td_permute(x, (int[]){ 2, 0, -2 }, 3), TD_SHAPE(5, 2, 3), (i / 3 % 2 * 3 + i % 3) * 5 + i / 6)
VIEW(permute_none, td_permute(x, NULL, 0), TD_SCALAR, i)
VIEW(transpose, td_transpose(x, -1, 0), TD_SHAPE(5, 3, 2), (i % 2 * 3 + i / 2 % 3) * 5 + i / 6)
VIEW(permute_empty, td_permute(x, (int[]){ 1, 2, 0 }, 3), TD_SHAPE(3, 5, 0), i)
VIEW(expand, td_expand(x, TD_SHAPE(4, 3, 5)), TD_SHAPE(4, 3, 5), i / 5 % 3)
VIEW(expand_same, td_expand(x, TD_SHAPE(2, 3, 5)), TD_SHAPE(2, 3, 5), i)
VIEW(expand_scalar, td_expand(x, TD_SHAPE(2, 3)), TD_SHAPE(2, 3), 0 * i)
VIEW(expand_empty, td_expand(x, TD_SHAPE(0, 3, 5)), TD_SHAPE(0, 3, 5), i)
VIEW(narrow, td_narrow(x, 1, 1, 2), TD_SHAPE(2, 2, 5), i / 10 * 15 + 5 + i % 10)
VIEW(narrow_last, td_narrow(x, -1, 2, 3), TD_SHAPE(2, 3, 3), i / 3 * 5 + 2 + i % 3)
VIEW(narrow_none, td_narrow(x, 0, 2, 0), TD_SHAPE(0, 3, 5), i)
VIEW(narrow_empty, td_narrow(x, 1, 0, 2), TD_SHAPE(0, 2, 5), i)
VIEW(narrow_flipped, td_narrow(td_transpose(x, 0, 1), 0, 1, 2), TD_SHAPE(2, 2, 5), flipped(x, i + 10))
VIEW(contiguous, td_contiguous(td_transpose(x, 0, 1)), TD_SHAPE(S(1), S(0), S(2)), flipped(x, i))
VIEW(to_memory_format, td_to_memory_format(td_to_memory_format(x, TD_CHANNELS_LAST), TD_CHANNELS_LAST), TD_SHAPE(S(0), S(1), S(2), S(3)), i)
VIEW(contiguous_rows, td_contiguous(td_narrow(td_transpose(x, 0, 1), 0, 0, 0)), TD_SHAPE(0, S(0), S(2)), i)
VIEW(contiguous_large, td_contiguous(td_transpose(x, 0, 1)), TD_SHAPE(S(1), S(0)), flipped(x, i))
VIEW(detach, td_detach(x), TD_SHAPE(S(0), S(1), S(2)), i)

#define R(label, fn, g, ...)                                                                                 \
    { .op = &td__op_##label, .name = #fn, .dtypes = OPS_ARITH, .inputs = inputs, .apply = apply_##fn, .reference = reference_##fn, .grad = g, \
      .no_gradient = (g) == 0, .p = { __VA_ARGS__ } }
const ops_row ops_rows_view[] = {
    R(reshape, reshape, 1, 3, 2, 3, 5), R(reshape, reshape_rest, 1, 3, 2, 3, 5), R(reshape, reshape_scalar, 1, 3, 1, 1, 1),
    R(reshape, reshape_empty, 1, 2, 0, 7), R(reshape, reshape_copy, 1, 3, 2, 3, 5), R(reshape, reshape_strided, 1, 3, 2, 3, 5),
    R(reshape, reshape_part, 1, 3, 2, 3, 5), R(reshape, reshape_merge, 1, 3, 2, 3, 5), R(reshape, reshape_split, 1, 2, 6, 5),
    R(reshape, flatten, 1, 3, 2, 3, 5), R(reshape, flatten_copy, 1, 3, 2, 3, 5), R(reshape, flatten_rows, 1, 3, 0, 3, 5),
    R(permute, permute, 1, 3, 2, 3, 5), R(permute, permute_none, 1, 0), R(permute, transpose, 1, 3, 2, 3, 5),
    R(permute, permute_empty, 1, 3, 0, 3, 5),
    R(expand, expand, 1, 2, 3, 1), R(expand, expand_same, 1, 3, 2, 3, 5), R(expand, expand_scalar, 1, 0), R(expand, expand_empty, 1, 2, 3, 1),
    R(expand, expand_empty, 1, 3, 0, 3, 5),
    R(narrow, narrow, 1, 3, 2, 3, 5), R(narrow, narrow_last, 1, 3, 2, 3, 5), R(narrow, narrow_none, 1, 3, 2, 3, 5),
    R(narrow, narrow_empty, 1, 3, 0, 3, 5), R(narrow, narrow_flipped, 1, 3, 2, 3, 5),
    R(to_memory_format, to_memory_format, 1, 4, 2, 3, 5, 4), R(to_memory_format, to_memory_format, 1, 4, 0, 3, 5, 4),
    R(to_memory_format, to_memory_format, 1, 4, 3, 1, 2, 5),
    R(contiguous, contiguous, 1, 3, 2, 3, 5), R(contiguous, contiguous, 1, 3, 0, 3, 5), R(contiguous, contiguous_rows, 1, 3, 2, 3, 5),
    R(contiguous, contiguous_large, 0, 2, 211, 307),
    R(detach, detach, 0, 3, 2, 3, 5), R(detach, detach, 0, 3, 0, 3, 5),
    { 0 },
};
