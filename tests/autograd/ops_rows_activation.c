/* tests/autograd/ops_rows_activation.c: rows for relu, gelu, gelu_tanh, sigmoid, tanh, softmax.
 *
 * Tolerances: libmvec promises 4 units in the last place; gelu adds 1 + erf, whose error is absolute, times |x|/2 <= 4.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

/* p: ndim and three sizes, transposed (first two dimensions), axis (softmax) */
static size_t inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    td_shape s = { row->p[0], { row->p[1], row->p[2], row->p[3] } };
    in[0] = row->op == &td__op_relu ? ops_fill_distinct(s, t, 12) : td_scale(ops_fill(s, t, 12), 4);
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

#define ACTIVATION(name, EXPR)                                                                               \
    static td_tensor *apply_##name(td_tensor *const *in, size_t n, void *user)                               \
    {                                                                                                        \
        const ops_row *row = user;                                                                           \
        return td_##name(row->p[4] ? td_transpose(in[0], 0, 1) : in[0]);                                     \
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
ACTIVATION(relu, x > 0 ? x : 0)
ACTIVATION(gelu, 0.5 * x * erfc(-x / sqrt(2.0)))
ACTIVATION(gelu_tanh, 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))))
ACTIVATION(sigmoid, 1 / (1 + exp(-x)))
ACTIVATION(tanh, tanh(x))

static td_tensor *apply_softmax(td_tensor *const *in, size_t n, void *user)
{
    const ops_row *row = user;
    return td_softmax(row->p[4] ? td_transpose(in[0], 0, 1) : in[0], row->p[5]);
}
static void reference_softmax(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    int64_t from, inner = 1;
    td_shape s = seen(row, in[0].shape, 0, &from);
    ops_out(out, s);
    int axis = row->p[5] < 0 ? row->p[5] + s.ndim : row->p[5];
    for (int d = axis + 1; d < s.ndim; d++)
        inner *= s.dim[d];
    for (int64_t i = 0; i < out->n; i++) {
        int64_t size = s.dim[axis], first = i - i / inner % size * inner;
        double sum = 0, most = -INFINITY;
        for (int pass = 0; pass < 2; pass++)
            for (int64_t k = 0; k < size; k++) {
                seen(row, in[0].shape, first + k * inner, &from);
                if (pass == 0)
                    most = fmax(most, in[0].v[from]);
                else
                    sum += exp(in[0].v[from] - most);
            }
        seen(row, in[0].shape, i, &from);
        out->v[i] = exp(in[0].v[from] - most) / sum;
    }
}

#define R(label, g, ...)                                                                                     \
    { .op = &td__op_##label, .name = #label " {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = inputs, .apply = apply_##label, \
      .reference = reference_##label, .abs = 8, .rel = 8, .grad = g, .p = { __VA_ARGS__ } }
#define SHAPES(label)                                                                                        \
    R(label, 1, 1, 67), R(label, 1, 0), R(label, 1, 1, 1), R(label, 1, 2, 0, 3), R(label, 1, 2, 3, 5, 0, 1), R(label, 1, 3, 2, 3, 7, 0), \
        R(label, 1, 3, 2, 3, 7, 1), R(label, 0, 1, 40009), R(label, 0, 2, 307, 211, 0, 1)
const ops_row ops_rows_activation[] = {
    SHAPES(relu),
    SHAPES(gelu),
    SHAPES(gelu_tanh),
    SHAPES(sigmoid),
    SHAPES(tanh),
    R(softmax, 1, 2, 5, 7, 0, 0, 1), R(softmax, 1, 2, 5, 7, 0, 0, 0), R(softmax, 1, 1, 13, 0, 0, 0, -1), R(softmax, 1, 2, 5, 7, 0, 1, -1),
    R(softmax, 1, 2, 5, 7, 0, 1, 0), R(softmax, 1, 3, 2, 3, 5, 0, 1), R(softmax, 1, 3, 2, 3, 5, 1, 2), R(softmax, 1, 2, 0, 3, 0, 0, 1),
    R(softmax, 1, 2, 3, 0, 0, 0, 1), R(softmax, 1, 1, 1, 0, 0, 0, 0), R(softmax, 0, 2, 67, 1009, 0, 0, 1), R(softmax, 0, 2, 1009, 67, 0, 0, 0),
    { 0 },
};
