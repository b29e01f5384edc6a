/* bench/ops_rows_products.c: the rows that multiply. Matrix products are measured against OpenBLAS's sgemm on the same shapes, called alone;
 * convolutions and attention against multiply-adds in registers (every multiply-add that the definition has: an algorithm that needs fewer may
 * pass 100 %).
 */
#include "ops.h"

static void product(ops_case *c, int pass, bool ta, bool tb, int64_t m, int64_t n, int64_t k, int64_t count)
{
    ops_work *w = &c->work[pass];
    w->product[w->products++] = (ops_product){ ta, tb, (int)m, (int)n, (int)k, (int)count };
}

/* y (m,n) = a (m,k) b (k,n); ga = gy b^T, gb = a^T gy */
static void make_matmul(ops_case *c, int size)
{
    const int64_t n = (int64_t[]){ 64, 512, 2048 }[size];
    ops_input(c, TD_SHAPE(n, n), UNIT, true);
    ops_input(c, TD_SHAPE(n, n), UNIT, true);
    product(c, FORWARD, false, false, n, n, n, 1);
    product(c, GRADIENT, false, true, n, n, n, 1);
    product(c, GRADIENT, true, false, n, n, n, 1);
}

/* heads of attention: (B,T,64) (B,64,T) */
static void make_batched(ops_case *c, int size)
{
    const int64_t b = (int64_t[]){ 8, 48, 96 }[size], t = (int64_t[]){ 32, 128, 512 }[size], d = 64;
    ops_input(c, TD_SHAPE(b, t, d), UNIT, true);
    ops_input(c, TD_SHAPE(b, d, t), UNIT, true);
    product(c, FORWARD, false, false, t, t, d, b);
    product(c, GRADIENT, false, true, t, d, t, b);
    product(c, GRADIENT, true, false, d, t, t, b);
}

/* The second matrix lies transposed, as keys do: a^T in memory is (T,64). */
static void make_batched_transposed(ops_case *c, int size)
{
    const int64_t b = (int64_t[]){ 8, 48, 96 }[size], t = (int64_t[]){ 32, 128, 512 }[size], d = 64;
    ops_input(c, TD_SHAPE(b, t, d), UNIT, true);
    ops_input(c, TD_SHAPE(b, t, d), UNIT, true);
    product(c, FORWARD, false, true, t, t, d, b);
    product(c, GRADIENT, false, false, t, d, t, b);
    product(c, GRADIENT, true, false, t, d, t, b);
}

static const int64_t rows_of[SIZES] = { 64, 64, 1024 }, in_of[SIZES] = { 128, 1024, 1024 }, out_of[SIZES] = { 128, 1024, 4096 };

static void make_layer(ops_case *c, int size, bool in_out)
{
    const int64_t n = rows_of[size], i = in_of[size], o = out_of[size];
    ops_input(c, TD_SHAPE(n, i), UNIT, true);
    ops_input(c, in_out ? TD_SHAPE(i, o) : TD_SHAPE(o, i), UNIT, true);
    ops_input(c, TD_SHAPE(o), UNIT, true);
    product(c, FORWARD, false, !in_out, n, o, i, 1);
    product(c, GRADIENT, false, in_out, n, i, o, 1);
    product(c, GRADIENT, true, false, in_out ? i : o, in_out ? o : i, n, 1);
}

static void make_linear(ops_case *c, int size)
{
    make_layer(c, size, false);
}

static void make_affine(ops_case *c, int size)
{
    make_layer(c, size, true);
}

static void make_linear_gelu(ops_case *c, int size)
{
    make_layer(c, size, false);
    const double elements = (double)(rows_of[size] * out_of[size]);
    for (int pass = 0; pass < PASSES; pass++)
        c->work[pass].calls[EXP] = c->work[pass].calls[DIVIDE] = elements;
}

static void make_mlp(ops_case *c, int size)
{
    const int64_t n = rows_of[size], d = in_of[size], h = out_of[size];
    make_linear_gelu(c, size);
    ops_input(c, TD_SHAPE(d, h), UNIT, true);
    ops_input(c, TD_SHAPE(d), UNIT, true);
    product(c, FORWARD, false, true, n, d, h, 1);
    product(c, GRADIENT, false, false, n, h, d, 1);
    product(c, GRADIENT, true, false, d, h, n, 1);
}

/* 3x3, same size, as many channels out as in */
static void make_conv(ops_case *c, int size)
{
    const int64_t n = (int64_t[]){ 1, 16, 64 }[size], ch = (int64_t[]){ 16, 64, 64 }[size], px = 32;
    ops_input(c, TD_SHAPE(n, ch, px, px), UNIT, true);
    ops_input(c, TD_SHAPE(ch, ch, 3, 3), UNIT, true);
    ops_input(c, TD_SHAPE(ch), UNIT, true);
    c->work[FORWARD].flops = 2.0 * (double)(n * px * px * ch * ch * 9);
    c->work[GRADIENT].flops = 2 * c->work[FORWARD].flops;
}

/* self-attention of T rows, not causal: forward 2 products, gradient 5 of which the first is made again */
static void make_attention(ops_case *c, int size)
{
    const int64_t h = (int64_t[]){ 2, 6, 12 }[size], t = (int64_t[]){ 64, 256, 1024 }[size], d = 64;
    for (int i = 0; i < 3; i++)
        ops_input(c, TD_SHAPE(1, h, t, d), UNIT, true);
    c->work[FORWARD].flops = 4.0 * (double)(h * t * t * d);
    c->work[FORWARD].calls[EXP] = c->work[GRADIENT].calls[EXP] = (double)(h * t * t);
    c->work[GRADIENT].flops = 2.5 * c->work[FORWARD].flops;
}

#define ROWS(X)                                                                                              \
    X(matmul, "matmul", "matmul", make_matmul, td_matmul(x[0], x[1]))                                        \
    X(batched, "matmul", "matmul, batched", make_batched, td_matmul(x[0], x[1]))                             \
    X(transposed, "matmul", "matmul, batched, second transposed", make_batched_transposed,                   \
      td_matmul(x[0], td_transpose(x[1], 1, 2)))                                                             \
    X(linear, "linear", "linear", make_linear, td_linear(x[0], x[1], x[2]))                                  \
    X(affine, "affine", "affine", make_affine, td_affine(x[0], x[1], x[2]))                                  \
    X(linear_gelu, "linear_gelu", "linear_gelu", make_linear_gelu, td_linear_gelu(x[0], x[1], x[2], NULL))   \
    X(mlp, "mlp", "mlp", make_mlp, td_mlp(x[0], x[1], x[2], x[3], x[4], NULL))                               \
    X(conv2d, "conv2d", "conv2d, 3x3", make_conv, td_conv2d(x[0], x[1], x[2], &(td_conv2d_opts){ .padding = 1 })) \
    X(conv_transpose2d, "conv_transpose2d", "conv_transpose2d, 3x3", make_conv,                              \
      td_conv_transpose2d(x[0], x[1], x[2], &(td_conv_transpose2d_opts){ .padding = 1 }))                    \
    X(attention, "attention", "attention", make_attention, td_attention(x[0], x[1], x[2], NULL))

#define FUNCTION(id, OP, NAME, MAKE, expression)                                                             \
    static td_tensor *call_##id(ops_case *c, td_tensor **second)                                             \
    {                                                                                                        \
        td_tensor **x = c->in;                                                                               \
        (void)second;                                                                                        \
        return expression;                                                                                   \
    }
ROWS(FUNCTION)

#define ROW(id, OP, NAME, MAKE, expression) { .op = OP, .name = NAME, .make = MAKE, .call = call_##id, .counted = true },
const ops_row ops_rows_products[] = { ROWS(ROW) { 0 } };
