/* tests/autograd/ops_rows_arith.c: rows for add, sub, mul, div, neg, scale, shift, eq, cast.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

/* p[0]: which pair of shapes. view: what `apply` makes of the first input. */
enum { PLAIN, TRANSPOSED, NARROWED, EXPANDED };
static const struct { td_shape a, b; int view; } pair[] = {
    [0] = { { 2, { 7, 13 } }, { 2, { 7, 13 } }, PLAIN },        [1] = { { 2, { 7, 13 } }, { 1, { 13 } }, PLAIN },
    [2] = { { 2, { 7, 13 } }, { 0, { 0 } }, PLAIN },            [3] = { { 0, { 0 } }, { 2, { 5, 3 } }, PLAIN },
    [4] = { { 3, { 5, 1, 3 } }, { 2, { 4, 1 } }, PLAIN },       [5] = { { 2, { 0, 3 } }, { 1, { 3 } }, PLAIN },
    [6] = { { 1, { 1 } }, { 1, { 1 } }, PLAIN },                [7] = { { 2, { 3, 5 } }, { 2, { 5, 3 } }, TRANSPOSED },
    [8] = { { 2, { 7, 11 } }, { 2, { 7, 5 } }, NARROWED },      [9] = { { 4, { 2, 3, 5, 7 } }, { 3, { 3, 1, 1 } }, PLAIN },
    [10] = { { 1, { 67 } }, { 1, { 67 } }, PLAIN },             [11] = { { 2, { 211, 331 } }, { 1, { 331 } }, PLAIN },
    [12] = { { 2, { 1, 5 } }, { 2, { 4, 5 } }, EXPANDED },      [13] = { { 1, { 0 } }, { 1, { 1 } }, PLAIN },
    [14] = { { 1, { 40009 } }, { 1, { 1 } }, PLAIN },           [15] = { { 2, { 1, 6 } }, { 2, { 5, 1 } }, PLAIN },
};

static td_tensor *view_of(const ops_row *row, td_tensor *x)
{
    switch (pair[row->p[0]].view) {
    case TRANSPOSED: return td_transpose(x, 0, 1);
    case NARROWED: return td_narrow(x, 1, 2, 5);
    case EXPANDED: return td_expand(x, TD_SHAPE(4, 5));
    default: return x;
    }
}

/* the view's shape, and the element of the input behind element i of the view */
static td_shape view_shape(const ops_row *row, td_shape s)
{
    switch (pair[row->p[0]].view) {
    case TRANSPOSED: return TD_SHAPE(s.dim[1], s.dim[0]);
    case NARROWED: return TD_SHAPE(s.dim[0], 5);
    case EXPANDED: return TD_SHAPE(4, 5);
    default: return s;
    }
}
static int64_t view_index(const ops_row *row, td_shape s, int64_t i)
{
    switch (pair[row->p[0]].view) {
    case TRANSPOSED: return i % s.dim[0] * s.dim[1] + i / s.dim[0];
    case NARROWED: return i / 5 * s.dim[1] + i % 5 + 2;
    case EXPANDED: return i % 5;
    default: return i;
    }
}

static size_t two(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill(pair[row->p[0]].a, t, 1);
    in[1] = ops_fill(pair[row->p[0]].b, t, 2);
    return 2;
}
static size_t two_nonzero(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill(pair[row->p[0]].a, t, 1);
    in[1] = ops_fill_positive(pair[row->p[0]].b, t, 2);
    return 2;
}

#define BINARY(name, EXPR)                                                                                   \
    static td_tensor *apply_##name(td_tensor *const *in, size_t n, void *row)                                \
    {                                                                                                        \
        return td_##name(view_of(row, in[0]), in[1]);                                                        \
    }                                                                                                        \
    static void reference_##name(const ops_row *row, const ops_array *in, size_t n, ops_array *out)          \
    {                                                                                                        \
        td_shape a = view_shape(row, in[0].shape);                                                           \
        ops_out(out, ops_broadcast(a, in[1].shape));                                                         \
        for (int64_t i = 0; i < out->n; i++) {                                                               \
            double x = in[0].v[view_index(row, in[0].shape, ops_broadcast_index(a, out->shape, i))];         \
            double y = in[1].v[ops_broadcast_index(in[1].shape, out->shape, i)];                             \
            out->v[i] = EXPR;                                                                                \
        }                                                                                                    \
    }
BINARY(add, x + y)
BINARY(sub, x - y)
BINARY(mul, x * y)
BINARY(div, row->p[1] ? (y == 0 ? 0 : trunc(x / y)) : x / y)
BINARY(eq, x == y)

static td_tensor *apply_square(td_tensor *const *in, size_t n, void *row)
{
    return td_mul(in[0], in[0]);
}
static void reference_square(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    ops_out(out, in[0].shape);
    for (int64_t i = 0; i < out->n; i++)
        out->v[i] = in[0].v[i] * in[0].v[i];
}

/* scale and shift: p[1]/4 is the number (whole for integers: 4 divides it) */
#define UNARY(name, CALL, EXPR)                                                                              \
    static td_tensor *apply_##name(td_tensor *const *in, size_t n, void *user)                               \
    {                                                                                                        \
        const ops_row *row = user;                                                                           \
        td_tensor *x = view_of(row, in[0]);                                                                  \
        return CALL;                                                                                         \
    }                                                                                                        \
    static void reference_##name(const ops_row *row, const ops_array *in, size_t n, ops_array *out)          \
    {                                                                                                        \
        ops_out(out, view_shape(row, in[0].shape));                                                          \
        for (int64_t i = 0; i < out->n; i++) {                                                               \
            double x = in[0].v[view_index(row, in[0].shape, i)];                                             \
            out->v[i] = EXPR;                                                                                \
        }                                                                                                    \
    }
static size_t one(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill(pair[row->p[0]].a, t, 3);
    return 1;
}
UNARY(neg, td_neg(x), -x)
UNARY(scale, td_scale(x, row->p[1] / 4.0), x * (row->p[1] / 4.0))
UNARY(shift, td_shift(x, row->p[1] / 4.0), x + row->p[1] / 4.0)
UNARY(cast, td_cast(x, (td_dtype)row->p[1]), x)                /* values are exact in every dtype but those rounded below      */

#define R(label, types, make, k, g)                                                                           \
    { .op = &td__op_##label, .name = #label " pair " #k, .dtypes = types, .inputs = make, .apply = apply_##label, \
      .reference = reference_##label, .abs = 0, .rel = 1, .grad = g, .no_gradient = (g) == 0, .p = { k } }
#define PAIRS(label, types, make, g)                                                                          \
    R(label, types, make, 0, g), R(label, types, make, 1, g), R(label, types, make, 2, g), R(label, types, make, 3, g), \
    R(label, types, make, 4, g), R(label, types, make, 5, g), R(label, types, make, 6, g), R(label, types, make, 7, g), \
    R(label, types, make, 8, g), R(label, types, make, 9, g), R(label, types, make, 10, g), R(label, types, make, 11, 0), \
    R(label, types, make, 12, g), R(label, types, make, 13, g), R(label, types, make, 14, 0), R(label, types, make, 15, g)
#define INTS (1u << TD_I64 | 1u << TD_I32)
#define NUMBER(label, k, number, types, g)                                                                   \
    { .op = &td__op_##label, .name = #label " by " #number "/4, pair " #k, .dtypes = types, .inputs = one, .apply = apply_##label, \
      .reference = reference_##label, .abs = 1, .rel = 1, .grad = g, .p = { k, number } }
#define CAST(k, to, types, g)                                                                                \
    { .op = &td__op_cast, .name = "cast to " #to ", pair " #k, .dtypes = types, .inputs = one, .apply = apply_cast, .reference = reference_cast, \
      .grad = g, .p = { k, to } }

/* f64 to f32 and back: the function that td_gradcheck sees must return f64 */
static td_tensor *apply_there_and_back(td_tensor *const *in, size_t n, void *user)
{
    return td_cast(td_cast(view_of(user, in[0]), TD_F32), TD_F64);
}

const ops_row ops_rows_arith[] = {
    PAIRS(add, OPS_ARITH, two, 3),
    PAIRS(sub, OPS_ARITH, two, 3),
    PAIRS(mul, OPS_ARITH, two, 3),
    PAIRS(div, OPS_F, two_nonzero, 3),
    PAIRS(eq, OPS_ARITH, two, 0),
    { .op = &td__op_mul, .name = "x*x", .dtypes = OPS_ARITH, .inputs = one, .apply = apply_square, .reference = reference_square, .rel = 1,
      .grad = 1, .p = { 0 } },
    { .op = &td__op_div, .name = "div of integers, 0 among the divisors", .dtypes = INTS, .inputs = two, .apply = apply_div,
      .reference = reference_div, .p = { 0, 1 } },
    { .op = &td__op_div, .name = "div of integers, row", .dtypes = INTS, .inputs = two, .apply = apply_div, .reference = reference_div,
      .p = { 11, 1 } },
    NUMBER(neg, 0, 0, OPS_ARITH, 1), NUMBER(neg, 5, 0, OPS_ARITH, 1), NUMBER(neg, 7, 0, OPS_ARITH, 1), NUMBER(neg, 8, 0, OPS_ARITH, 1),
    NUMBER(scale, 0, -12, OPS_ARITH, 1), NUMBER(scale, 0, 5, OPS_F, 1), NUMBER(scale, 5, 8, OPS_ARITH, 1), NUMBER(scale, 3, 8, OPS_ARITH, 1),
    NUMBER(scale, 7, 5, OPS_F, 1), NUMBER(scale, 8, 5, OPS_F, 1), NUMBER(scale, 12, 5, OPS_F, 1), NUMBER(scale, 14, 8, OPS_ARITH, 0),
    NUMBER(shift, 0, -12, OPS_ARITH, 1), NUMBER(shift, 13, 4, OPS_ARITH, 1), NUMBER(shift, 7, 5, OPS_F, 1), NUMBER(shift, 8, 5, OPS_F, 1),
    NUMBER(shift, 14, 3, OPS_F, 0),
    CAST(0, TD_F64, OPS_ARITH, 1), CAST(7, TD_F32, OPS_ARITH, 0), CAST(8, TD_BF16, OPS_F, 0), CAST(0, TD_F16, OPS_F, 0),
    CAST(5, TD_F32, OPS_ARITH, 0), CAST(0, TD_I64, INTS, 0), CAST(7, TD_I32, INTS, 0),
    { .op = &td__op_cast, .name = "cast f64 to f32 to f64", .dtypes = OPS_F, .inputs = one, .apply = apply_there_and_back,
      .reference = reference_cast, .grad = 1, .p = { 7 }, .check = { .eps = 1.0 / 64 } },
    { 0 },
};
