/* What the table of operations cannot say of 16 bits: memory, versions, accumulation, in-place statistics, stamps, mixed dtypes, users' own
 * operations; and regions of TD_AUTOCAST: the list, nesting, the casts of weights that a region keeps.
 */
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <sentence.h>
#include "ops_list.h"
#include "tape.h"
#include <tandem.h>

static void none_live(void)
{
    td__scope_close_root();
    assert_int_equal(td__live_nodes(), 0);
    assert_int_equal(td_memory().live_tensors, 0);
    assert_int_equal(td_memory().live_bytes, 0);
}

static td_tensor *leaf(td_tensor *x)
{
    td_requires_grad((td_tensors){ &x, 1 }, true);
    return x;
}

static void refused(int code, const char *part)
{
    assert_int_equal(td_error_pending(), code);
    if (!strstr(td_error_message(), part))
        fail_msg("got \"%s\", expected \"%s\"", td_error_message(), part);
    td_error_clear();
}

/* ---- 16-bit arithmetic ------------------------------------------------------------------------------------------------------------------ */

/* A chain of activations keeps each result once, in 16 bits; a scope of its own, so that only the graph holds them. */
static size_t chain_bytes(td_dtype dtype)
{
    TD_SCOPE();
    enum { N = 1 << 16 };
    td_tensor *x = leaf(td_randn(TD_SHAPE(N), 3, 0)), *y;
    size_t before = td_memory().live_bytes;
    td_scope inner = td_scope_begin();
    y = td_cast(x, dtype);
    for (int i = 0; i < 8; i++)
        y = td_gelu(td_tanh(y));
    y = td_escape(td_sum(y, NULL, 0, false));
    td_scope_end(&inner);
    size_t kept = td_memory().live_bytes - before;
    td_backward_weighted(y, td_ones(TD_SCALAR, TD_F32));
    assert_non_null(td_grad(x));
    return kept;
}

static void memory_is_half(void **state)
{
    (void)state;
    size_t f32 = chain_bytes(TD_F32), bf16 = chain_bytes(TD_BF16), f16 = chain_bytes(TD_F16);
    assert_true(f32 > (size_t)8 * 4 << 16);
    assert_true(bf16 <= f32 / 2 + 16384);      /* 17 nodes of less than a kilobyte                                         */
    assert_int_equal(f16, bf16);
    none_live();
}

static void versions_are_checked(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *x = leaf(td_ones(TD_SHAPE(3), TD_F32)), *h = td_ones(TD_SHAPE(3), TD_BF16);
        td_tensor *y = td_sum(td_mul(td_cast(x, TD_BF16), h), NULL, 0, false);
        td_fill(h, 2);
        td_backward(y);
        refused(TD_ERR_STATE, "td_mul saved its input 1, shape (3), for the gradient, and it was changed in place since");
        td_tensor *t = td_tanh(td_cast(x, TD_F16));
        y = td_sum(t, NULL, 0, false);
        td_fill(td_detach(t), 0);
        td_backward(y);
        refused(TD_ERR_STATE, "td_tanh saved its output 0, shape (3), for the gradient, and it was changed in place since");
        assert_null(td_grad(x));
    }
    none_live();
}

/* x used three times: each contribution is added in f32 and rounded. 1 + 2^-9 + 2^-9 loses both halves in bf16 only if rounded each time. */
static void contributions_add(void **state)
{
    (void)state;
    for (int retain = 0; retain < 2; retain++) {
        TD_SCOPE();
        td_tensor *x = leaf(td_full(TD_SHAPE(5), TD_F32, 1.5)), *h = td_cast(x, TD_BF16), *u = td_add(h, h);   /* both to one place */
        td_tensor *y = td_sum(td_add(td_mul(u, h), td_scale(td_sub(h, u), 3)), NULL, 0, false);              /* 2h^2 - 3h      */
        assert_int_equal(td_dtype_of(y), TD_BF16);
        assert_true(fabs(td_item(y)) < 1e-9);
        assert_int_equal(td_backward_with(y, &(td_backward_opts){ .retain_graph = retain }), 0);
        if (retain)
            assert_int_equal(td_backward(y), 0);
        td_tensor *g = td_grad(x);
        assert_int_equal(td_dtype_of(g), TD_F32);
        for (int i = 0; i < 5; i++)
            assert_true(((const float *)td_data(g))[i] == 3);   /* 4h - 3; two backwards of weight 1 are their mean          */
    }
    none_live();
}

/* Adding is passed on without a copy, in 16 bits: x + x of one producer, sub, reshape between. */
static void gradients_pass(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *a = leaf(td_ones(TD_SHAPE(2, 3), TD_F32)), *b = leaf(td_ones(TD_SHAPE(3), TD_F32));
        td_tensor *ha = td_relu(td_cast(a, TD_F16)), *hb = td_relu(td_cast(b, TD_F16));
        td_tensor *y = td_add(td_add(ha, ha), td_sub(td_reshape(td_add(ha, hb), TD_SHAPE(2, 3)), td_expand(hb, TD_SHAPE(2, 3))));
        assert_int_equal(td_backward(td_sum(y, NULL, 0, false)), 0);
        for (int i = 0; i < 6; i++)
            assert_true(((const float *)td_data(td_grad(a)))[i] == 3);
        for (int i = 0; i < 3; i++)
            assert_true(((const float *)td_data(td_grad(b)))[i] == 0);
    }
    none_live();
}

static void running_statistics(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *x = td_randn(TD_SHAPE(16, 3), 4, 0), *mean[2], *var[2];
        for (int k = 0; k < 2; k++) {
            td_dtype t = k ? TD_BF16 : TD_F32;
            mean[k] = td_zeros(TD_SHAPE(3), t), var[k] = td_ones(TD_SHAPE(3), t);
            td_batch_norm(td_cast(td_cast(x, TD_BF16), t), NULL, NULL, mean[k], var[k], &(td_batch_norm_opts){ .train = true, .momentum = 0.5 });
        }
        assert_int_equal(td_error_pending(), 0);
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < 3; i++) {
                double want = td_item(td_narrow(k ? var[0] : mean[0], 0, i, 1)), got = td_item(td_narrow(k ? var[1] : mean[1], 0, i, 1));
                assert_true(want != 0 && want != 1);
                assert_true(fabs(got - want) <= 0x1p-8 * fabs(want));
            }
    }
    none_live();
}

/* A bf16 loss is stamped in f32; two micro-batches of 3 and 5 rows are their weighted mean. */
static void stamps(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *w = leaf(td_full(TD_SHAPE(8, 2), TD_F32, 0.5)), *target = td_zeros(TD_SHAPE(8), TD_I64);
        int64_t at = 0;
        for (int rows = 3; rows <= 5; rows += 2, at += 3) {
            td_tensor *part = td_cast(td_narrow(w, 0, at, rows), TD_BF16);
            td_tensor *loss = td_cross_entropy(part, td_narrow(target, 0, at, rows), NULL);
            assert_int_equal(td_dtype_of(loss), TD_BF16);
            assert_true(fabs(td_item(loss) - 0.6931471805599453) < 0x1p-9);
            assert_int_equal(loss->divisor->dtype, TD_F32);
            assert_int_equal(td_backward(td_scale(loss, 2)), 0);
        }
        const float *g = td_data(td_grad(w));
        for (int i = 0; i < 16; i++)
            assert_true(fabs(g[i] - (i % 2 ? 0.125 : -0.125)) < 0.125 * 0x1p-7);   /* 2 * (p - y) / 8                       */
    }
    none_live();
}

static void sentences(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *h = td_ones(TD_SHAPE(2, 2), TD_BF16), *f = td_ones(TD_SHAPE(2, 2), TD_F32), *d = td_ones(TD_SHAPE(2, 2), TD_F16);
        td_matmul(h, f);
        refused(TD_ERR_DTYPE, "td_matmul: dtypes bf16 and f32 differ (td_cast converts; inside TD_AUTOCAST f32, f16 and bf16 may meet)");
        td_add(f, h);
        refused(TD_ERR_DTYPE, "td_add: dtypes bf16 and f32 differ");
        td_add(d, h);
        refused(TD_ERR_DTYPE, "td_add: dtypes f16 and bf16 differ");
        td_concat((td_tensor *[]){ h, f }, 2, 0);
        refused(TD_ERR_DTYPE, "td_concat: dtypes bf16 and f32 differ");
        td_matmul(h, td_ones(TD_SHAPE(3, 2), TD_BF16));
        refused(TD_ERR_SHAPE, "td_matmul: shapes (2,2) and (3,2) do not fit");
        td_requires_grad((td_tensors){ (td_tensor *[]){ td_zeros(TD_SHAPE(2), TD_I32) }, 1 }, true);
        refused(TD_ERR_DTYPE, "td_requires_grad: tensor 0, shape (2), is i32; parameters are f32, f64, f16 or bf16");
        td_autocast a = td_autocast_begin(TD_F64);
        refused(TD_ERR_DTYPE, "td_autocast_begin: dtype is f64, expected bf16 or f16, or f32 (off)");
        assert_int_equal(td__autocast_now(), TD_F32);
        td_autocast_end(&a);
    }
    none_live();
}

/* An operation that a user wrote for f32 takes 16 bits; it sees f32 alone. */
static int cube_infer(td_call *c)
{
    if (td_dtype_of(td_call_input(c, 0)) != TD_F32)
        return td_call_error(c, TD_ERR_DTYPE, "only f32");
    return td_call_infer(c, 0, td_call_input_shape(c, 0), TD_F32);
}
static int cube_run(td_call *c)
{
    td_tensor *x = td_contiguous(td_call_input(c, 0));
    const float *from = td_data(x);
    float *to = td_data(td_call_output(c, 0));
    for (int64_t i = 0; i < td_numel(x); i++)
        to[i] = from[i] * from[i] * from[i];
    td_call_save(c, x);
    return 0;
}
static int cube_grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const float *x = td_data(td_call_saved(c, 0)), *from = td_data(g[0]);
    float *into = td_data(slot[0].into);
    for (int64_t i = 0; i < td_numel(g[0]); i++)
        into[i] = (slot[0].add ? into[i] : 0) + 3 * x[i] * x[i] * from[i];
    return 0;
}
static const td_op cube_op = { .name = "cube", .infer = cube_infer, .run = cube_run, .grad = cube_grad };

static void users_operation(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *x = leaf(td_full(TD_SHAPE(2, 3), TD_F32, 1.25)), *h = td_cast(x, TD_BF16), *y = td_transpose(h, 0, 1);
        y = td_apply(&cube_op, &y, 1, NULL);
        assert_int_equal(td_dtype_of(y), TD_BF16);
        assert_true(td_item(td_narrow(td_narrow(y, 0, 0, 1), 1, 0, 1)) == 1.953125);
        assert_int_equal(td_backward(td_add(td_sum(y, NULL, 0, false), td_sum(h, NULL, 0, false))), 0);
        assert_true(((const float *)td_data(td_grad(x)))[4] == 5.6875);       /* 3 * 1.25^2 + 1                               */
    }
    none_live();
}

/* ---- autocast ------------------------------------------------------------------------------------------------------------------------------ */

/* What comes out of each operation inside a region of bf16, from f32 inputs and from bf16 ones: PyTorch's lists for CUDA (torch 2.15,
 * testing/_internal/autocast_test_lists.py: torch_fp16, torch_fp32, nn_fp16, nn_fp32), to which mean and var are added: reductions as sum. */
typedef struct { const td_op *op; td_dtype from_f32, from_bf16; } listed;
#define LOW_(name) { &td__op_##name, TD_BF16, TD_BF16 }
#define HIGH_(name) { &td__op_##name, TD_F32, TD_F32 }
#define KEEP_(name) { &td__op_##name, TD_F32, TD_BF16 }
static const listed list[] = {
    LOW_(matmul), LOW_(linear), LOW_(affine), LOW_(linear_gelu), LOW_(mlp), LOW_(conv2d), LOW_(conv_transpose2d), LOW_(attention), LOW_(lstm_cell), LOW_(gru_cell),
    HIGH_(softmax), HIGH_(log_softmax), HIGH_(exp), HIGH_(ln), HIGH_(pow), HIGH_(sum), HIGH_(mean), HIGH_(var), HIGH_(cross_entropy), HIGH_(mse),
    HIGH_(nll), HIGH_(bce_with_logits), HIGH_(layer_norm), HIGH_(rms_norm), HIGH_(group_norm),
    KEEP_(add), KEEP_(sub), KEEP_(mul), KEEP_(div), KEEP_(neg), KEEP_(scale), KEEP_(shift), KEEP_(relu), KEEP_(gelu), KEEP_(gelu_tanh),
    KEEP_(sigmoid), KEEP_(tanh), KEEP_(silu), KEEP_(sqrt), KEEP_(abs), KEEP_(clamp), KEEP_(maximum), KEEP_(minimum), KEEP_(where), KEEP_(amax),
    KEEP_(amin), KEEP_(reshape), KEEP_(permute), KEEP_(expand), KEEP_(narrow), KEEP_(contiguous), KEEP_(detach), KEEP_(concat), KEEP_(pad),
    KEEP_(embedding), KEEP_(index_select), KEEP_(gather), KEEP_(dropout), KEEP_(max_pool2d), KEEP_(avg_pool2d), KEEP_(rotary), KEEP_(swiglu),
    KEEP_(batch_norm), KEEP_(batch_norm_relu), KEEP_(to_memory_format), KEEP_(adaptive_avg_pool2d), KEEP_(adaptive_max_pool2d), KEEP_(cast),
};

static uint32_t expected_flags(const listed *l)
{
    return l->from_f32 == TD_BF16 ? TD_OP_LOW : l->from_bf16 == TD_F32 ? TD_OP_HIGH : 0;
}

static void the_list(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if ((list[i].op->flags & (TD_OP_LOW | TD_OP_HIGH)) != expected_flags(&list[i]))
            fail_msg("td_%s has other flags", list[i].op->name);
    TD_SCOPE();
    td_tensor *f = td_ones(TD_SHAPE(2, 2), TD_F32), *h = td_ones(TD_SHAPE(2, 2), TD_BF16), *d = td_ones(TD_SHAPE(2, 2), TD_F64);
    TD_AUTOCAST(TD_BF16);
    assert_int_equal(td_dtype_of(td_matmul(f, f)), TD_BF16);
    assert_int_equal(td_dtype_of(td_linear(h, f, NULL)), TD_BF16);
    assert_int_equal(td_dtype_of(td_matmul(f, td_ones(TD_SHAPE(2), TD_F16))), TD_BF16);
    assert_int_equal(td_dtype_of(td_softmax(h, -1)), TD_F32);
    assert_int_equal(td_dtype_of(td_mse(h, f)), TD_F32);
    assert_int_equal(td_dtype_of(td_relu(h)), TD_BF16);
    assert_int_equal(td_dtype_of(td_relu(f)), TD_F32);
    assert_int_equal(td_dtype_of(td_add(f, h)), TD_F32);
    assert_int_equal(td_dtype_of(td_add(td_cast(h, TD_F16), h)), TD_F32);
    assert_int_equal(td_dtype_of(td_concat((td_tensor *[]){ h, f }, 2, 0)), TD_F32);
    assert_int_equal(td_dtype_of(td_matmul(d, d)), TD_F64);
    assert_int_equal(td_dtype_of(td_mul(h, h)), TD_BF16);
    assert_int_equal(td_dtype_of(td_eq(f, h)), TD_BOOL);
    assert_int_equal(td_error_pending(), 0);
    td_matmul(d, f);
    refused(TD_ERR_DTYPE, "td_matmul: dtypes bf16 and f64 differ");
}

static void regions_nest(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *f = td_ones(TD_SHAPE(2, 2), TD_F32);
        td_autocast a = td_autocast_begin(TD_BF16);
        {
            TD_AUTOCAST(TD_F32);
            assert_int_equal(td_dtype_of(td_matmul(f, f)), TD_F32);
            TD_AUTOCAST(TD_F16);
            assert_int_equal(td_dtype_of(td_matmul(f, f)), TD_F16);
        }
        assert_int_equal(td_dtype_of(td_matmul(f, f)), TD_BF16);
        td_autocast_end(&a);
        assert_int_equal(td_dtype_of(td_matmul(f, f)), TD_F32);
    }
    none_live();
}

/* The weight of `net` in two products: how many casts of it were made can be seen from the nodes. */
static td_tensor *two_products(td_tensor *x, td_tensor *w)
{
    return td_mean(td_matmul(td_tanh(td_matmul(x, w)), w), NULL, 0, false);
}

static void weights_are_cast_once(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *w = leaf(td_randn(TD_SHAPE(4, 4), 7, 0)), *x = td_randn(TD_SHAPE(3, 4), 8, 0);
        int nodes = td__live_nodes();
        td_autocast a = td_autocast_begin(TD_BF16);
        td_tensor *first = two_products(x, w);
        /* cast of w, two products, tanh, mean and its cast to f32 */
        assert_int_equal(td__live_nodes() - nodes, 6);
        td_tensor *second = two_products(td_neg(x), w);
        assert_int_equal(td__live_nodes() - nodes, 11);
        assert_int_equal(td_backward(first), 0);                /* the cast of w serves two graphs, and a third               */
        assert_int_equal(td_backward(second), 0);
        assert_int_equal(td_backward(two_products(x, w)), 0);
        {
            TD_NO_GRAD();
            td_scale(two_products(x, w), 2);
            td_assign(w, td_scale(w, 2));                       /* as a step does: a new version                             */
        }
        double was = td_item(two_products(x, w));
        td_autocast_end(&a);
        a = td_autocast_begin(TD_BF16);
        assert_true(td_item(two_products(x, w)) == was);
        td_autocast_end(&a);
    }
    none_live();
}

/* A region that begins without gradients must not hand its casts to a graph. */
static void casts_know_gradients(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *w = leaf(td_randn(TD_SHAPE(4, 4), 7, 0)), *x = td_randn(TD_SHAPE(3, 4), 8, 0);
        TD_AUTOCAST(TD_F16);
        {
            TD_NO_GRAD();
            two_products(x, w);
        }
        assert_int_equal(td_backward(two_products(x, w)), 0);
        assert_non_null(td_grad(w));
    }
    none_live();
}

/* f32 inputs, gradients in f32, near those without a region. */
static void gradients_reach_f32(void **state)
{
    (void)state;
    {
        TD_SCOPE();
        td_tensor *w = leaf(td_randn(TD_SHAPE(8, 8), 7, 0)), *x = td_randn(TD_SHAPE(5, 8), 8, 0);
        td_backward(two_products(x, w));
        td_tensor *want = td_scale(td_grad(w), 1);
        td_zero_grad((td_tensors){ &w, 1 });
        {
            TD_AUTOCAST(TD_BF16);
            td_backward(two_products(x, w));
        }
        td_tensor *got = td_grad(w), *top = td_amax(td_abs(want), NULL, 0, false);
        assert_int_equal(td_dtype_of(got), TD_F32);
        double off = td_item(td_amax(td_abs(td_sub(got, want)), NULL, 0, false));
        assert_true(off > 0 && off < 0.03 * td_item(top));
    }
    none_live();
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_half), cmocka_unit_test(versions_are_checked), cmocka_unit_test(contributions_add),
        cmocka_unit_test(gradients_pass), cmocka_unit_test(running_statistics), cmocka_unit_test(stamps), cmocka_unit_test(sentences),
        cmocka_unit_test(users_operation), cmocka_unit_test(the_list), cmocka_unit_test(regions_nest), cmocka_unit_test(weights_are_cast_once),
        cmocka_unit_test(casts_know_gradients), cmocka_unit_test(gradients_reach_f32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
