/* tests/autograd/ops_rows_index.c: rows for embedding, index_select, gather, concat (and stack), pad; split is spelled with narrow, and looked at in
 * test_ops_index.c. Each reference says, for an element of the result, which element of which input it is.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <stdlib.h>
#include <string.h>

static td_tensor *integers(td_shape shape, td_dtype t, int64_t below, uint64_t seed)
{
    int64_t n = ops_count(shape), *v = calloc((size_t)n + 1, sizeof *v);
    for (int64_t i = 0; i < n; i++)
        v[i] = below > 0 ? (int64_t)(td__philox(seed, 79, (uint64_t)i).v[0] % (uint32_t)below) : 0;
    td_tensor *x = td_from(v, shape, TD_I64);
    free(v);
    return td_cast(x, t);
}

/* ---- embedding: p = V D, ids' shape a b (b 0: one dimension; -1: none), i32, table transposed, ids transposed ----------------------------- */

static td_shape id_shape(const int *p)
{
    return p[3] < 0 ? TD_SCALAR : p[3] == 0 ? TD_SHAPE(p[2]) : TD_SHAPE(p[2], p[3]);
}

static size_t embedding_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill(p[5] ? TD_SHAPE(p[1], p[0]) : TD_SHAPE(p[0], p[1]), t, 41);
    in[1] = integers(p[6] ? TD_SHAPE(p[3], p[2]) : id_shape(p), p[4] ? TD_I32 : TD_I64, p[0], 42);
    return 2;
}

static td_tensor *embedding_apply(td_tensor *const *in, size_t n, void *user)
{
    const int *p = ((const ops_row *)user)->p;
    return td_embedding(p[5] ? td_transpose(in[0], 0, 1) : in[0], p[6] ? td_transpose(in[1], 0, 1) : in[1], NULL);
}

static void embedding_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int *p = row->p;
    td_shape s = id_shape(p);
    s.dim[s.ndim++] = p[1];
    ops_out(out, s);
    for (int64_t i = 0; i < out->n; i++) {
        int64_t k = i / p[1], j = i % p[1], id = (int64_t)in[1].v[p[6] ? k % p[3] * p[2] + k / p[3] : k];
        out->v[i] = in[0].v[p[5] ? j * p[0] + id : id * p[1] + j];
    }
}

/* ---- index_select: p = a b c, axis, count, i32, transposed; gather: the same, the index as large as x but for the axis ---------------------- */

static size_t select_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill(p[6] ? TD_SHAPE(p[1], p[0], p[2]) : TD_SHAPE(p[0], p[1], p[2]), t, 43);
    td_shape s = TD_SHAPE(p[4]);
    if (row->op == &td__op_gather) {
        s = TD_SHAPE(p[0], p[1], p[2]);
        s.dim[p[3]] = p[4];
    }
    in[1] = integers(s, p[5] ? TD_I32 : TD_I64, p[p[3]], 44);
    return 2;
}

static td_tensor *select_apply(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    td_tensor *x = row->p[6] ? td_transpose(in[0], 0, 1) : in[0];
    return row->op == &td__op_gather ? td_gather(x, row->p[3] - 3, in[1]) : td_index_select(x, row->p[3] - 3, in[1]);
}

static void select_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int *p = row->p;
    td_shape s = TD_SHAPE(p[0], p[1], p[2]);
    s.dim[p[3]] = p[4];
    ops_out(out, s);
    for (int64_t i = 0; i < out->n; i++) {
        int64_t at[3] = { i / s.dim[2] / s.dim[1], i / s.dim[2] % s.dim[1], i % s.dim[2] };
        at[p[3]] = (int64_t)in[1].v[row->op == &td__op_gather ? i : at[p[3]]];
        out->v[i] = in[0].v[p[6] ? (at[1] * p[0] + at[0]) * p[2] + at[2] : (at[0] * p[1] + at[1]) * p[2] + at[2]];
    }
}

/* ---- concat: p = pieces, axis, a b c (along the axis piece i has size + i), stack, first transposed -------------------------------------- */

static td_shape piece_shape(const int *p, int i)
{
    td_shape s = TD_SHAPE(p[2], p[3], p[4]);
    if (!p[5])
        s.dim[p[1]] += i;
    return s;
}

static size_t concat_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    for (int i = 0; i < p[0]; i++)
        in[i] = ops_fill(piece_shape(p, i), t, 45 + (uint64_t)i);
    if (p[6])
        in[0] = ops_fill(TD_SHAPE(p[3], p[2], p[4]), t, 45);
    return (size_t)p[0];
}

static td_tensor *concat_apply(td_tensor *const *in, size_t n, void *user)
{
    const int *p = ((const ops_row *)user)->p;
    td_tensor *list[OPS_MAX];
    memcpy(list, in, n * sizeof *in);
    if (p[6])
        list[0] = td_transpose(in[0], 0, 1);
    return p[5] ? td_stack(list, n, p[1]) : td_concat(list, n, p[1] - 3);
}

static void concat_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int *p = row->p;
    td_shape whole = piece_shape(p, 0);
    int64_t outer = 1, inner = 1, sum = 0, begin = 0;
    for (int i = 0; i < p[0]; i++)
        sum += p[5] ? 1 : piece_shape(p, i).dim[p[1]];
    for (int d = 0; d < 3; d++)
        *(d < p[1] ? &outer : &inner) *= d == p[1] && !p[5] ? 1 : whole.dim[d];
    if (p[5]) {
        whole.ndim = 4;
        for (int d = 3; d > p[1]; d--)
            whole.dim[d] = whole.dim[d - 1];
    }
    whole.dim[p[1]] = sum;
    ops_out(out, whole);
    for (int i = 0; i < p[0]; i++) {
        int64_t size = p[5] ? 1 : piece_shape(p, i).dim[p[1]];
        for (int64_t k = 0; k < outer * size * inner; k++) {
            int64_t from = k, c = p[4];
            if (p[6] && i == 0)
                from = (k / c % p[3] * p[2] + k / c / p[3]) * c + k % c;
            out->v[(k / (size * inner) * sum + begin) * inner + k % (size * inner)] = in[i].v[from];
        }
        begin += size;
    }
}

/* ---- pad: p = a b, before 0 1, after 0 1, value, transposed ------------------------------------------------------------------------------ */

static size_t pad_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill(row->p[7] ? TD_SHAPE(row->p[1], row->p[0]) : TD_SHAPE(row->p[0], row->p[1]), t, 51);
    return 1;
}

static td_tensor *pad_apply(td_tensor *const *in, size_t n, void *user)
{
    const int *p = ((const ops_row *)user)->p;
    return td_pad(p[7] ? td_transpose(in[0], 0, 1) : in[0], (int64_t[]){ p[2], p[3] }, (int64_t[]){ p[4], p[5] }, 2, p[6]);
}

static void pad_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int *p = row->p;
    ops_out(out, TD_SHAPE(p[0] + p[2] + p[4], p[1] + p[3] + p[5]));
    for (int64_t i = 0; i < out->n; i++) {
        int64_t a = i / out->shape.dim[1] - p[2], b = i % out->shape.dim[1] - p[3];
        bool inside = a >= 0 && a < p[0] && b >= 0 && b < p[1];
        out->v[i] = inside ? in[0].v[p[7] ? b * p[0] + a : a * p[1] + b] : p[6];
    }
}

#define ANY (OPS_ARITH | 1u << TD_F16 | 1u << TD_BF16 | 1u << TD_U8 | 1u << TD_BOOL)
#define R(label, kind, types, g, ...)                                                                        \
    { .op = &td__op_##label, .name = #label " {" #__VA_ARGS__ "}", .dtypes = types, .inputs = kind##_inputs, .apply = kind##_apply, \
      .reference = kind##_reference, .grad = g, .p = { __VA_ARGS__ } }
const ops_row ops_rows_index[] = {
    R(embedding, embedding, OPS_F, 1, 7, 5, 4, 3), R(embedding, embedding, OPS_F, 1, 3, 2, 11, 0),
    R(embedding, embedding, OPS_F, 1, 7, 1, 4, 0, 1),
    R(embedding, embedding, OPS_F, 1, 7, 5, 1, -1), R(embedding, embedding, OPS_F, 1, 7, 5, 4, 3, 0, 1),
    R(embedding, embedding, OPS_F, 1, 7, 5, 4, 3, 1, 0, 1),
    R(embedding, embedding, OPS_F, 1, 7, 5, 0, 0), R(embedding, embedding, OPS_F, 1, 0, 5, 0, 0), R(embedding, embedding, OPS_F, 1, 7, 0, 3, 0),
    R(embedding, embedding, OPS_F, 0, 101, 67, 31, 41),
    R(index_select, select, ANY, 1, 3, 4, 5, 0, 7), R(index_select, select, ANY, 1, 3, 4, 5, 1, 2),
    R(index_select, select, OPS_ARITH, 1, 3, 4, 5, 2, 9, 1),
    R(index_select, select, OPS_ARITH, 1, 3, 4, 5, 0, 4, 0, 1), R(index_select, select, OPS_ARITH, 1, 3, 4, 5, 1, 0),
    R(index_select, select, OPS_ARITH, 1, 0, 4, 5, 1, 2),
    R(index_select, select, OPS_F, 0, 31, 37, 41, 1, 50),
    R(gather, select, ANY, 1, 3, 4, 5, 0, 7), R(gather, select, ANY, 1, 3, 4, 5, 1, 2), R(gather, select, OPS_ARITH, 1, 3, 4, 5, 2, 9, 1),
    R(gather, select, OPS_ARITH, 1, 3, 4, 5, 2, 1), R(gather, select, OPS_ARITH, 1, 3, 4, 5, 1, 4, 0, 1),
    R(gather, select, OPS_ARITH, 1, 3, 4, 5, 1, 0),
    R(gather, select, OPS_ARITH, 1, 0, 4, 5, 1, 2), R(gather, select, OPS_F, 0, 3, 37, 411, 0, 1),
    R(concat, concat, ANY, 7, 3, 0, 2, 3, 4), R(concat, concat, ANY, 7, 3, 1, 2, 3, 4), R(concat, concat, ANY, 7, 3, 2, 2, 3, 4),
    R(concat, concat, OPS_ARITH, 1, 1, 1, 2, 3, 4), R(concat, concat, OPS_ARITH, 255, 8, 2, 2, 1, 1),
    R(concat, concat, OPS_ARITH, 5, 3, 0, 2, 3, 4, 0, 1),
    R(concat, concat, OPS_ARITH, 7, 3, 0, 0, 3, 4), R(concat, concat, OPS_ARITH, 3, 2, 1, 0, 3, 4),
    R(concat, concat, OPS_ARITH, 7, 3, 0, 2, 3, 4, 1),
    R(concat, concat, OPS_ARITH, 7, 3, 2, 2, 3, 4, 1), R(concat, concat, OPS_ARITH, 7, 3, 3, 2, 3, 4, 1, 1),
    R(concat, concat, OPS_F, 0, 3, 1, 31, 37, 41),
    R(pad, pad, OPS_ARITH, 1, 3, 4, 1, 2, 0, 3, 0), R(pad, pad, OPS_ARITH, 1, 3, 4, 0, 2, 1, 0, -7),
    R(pad, pad, OPS_ARITH, 1, 3, 4, 0, 0, 0, 0, 5),
    R(pad, pad, OPS_ARITH, 1, 3, 4, 2, 1, 1, 1, 2, 1), R(pad, pad, OPS_ARITH, 1, 0, 4, 2, 1, 1, 1, 2),
    R(pad, pad, OPS_ARITH, 1, 3, 0, 0, 0, 1, 0, 3),
    R(pad, pad, 1u << TD_F16 | 1u << TD_BF16 | 1u << TD_U8, 0, 3, 4, 1, 2, 0, 3, 1),
    { 0 },
};
