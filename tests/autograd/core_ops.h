/* tests/autograd/core_ops.h: small operations made through op.h, so that the core is tested without the library's own. They compute in f64, on
 * contiguous tensors, with plain loops.
 */
#ifndef TD_TEST_CORE_OPS_H
#define TD_TEST_CORE_OPS_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <autograd_impl.h>

#define V(x) ((double *)td__ptr(x))

static inline int64_t count(const td_tensor *x) { return td__shape_numel(x->shape); }

static inline td_tensor *vec(int64_t n, const double *v) { return td_from(v, TD_SHAPE(n), TD_F64); }
#define VEC(...) vec((int64_t)(sizeof((double[]){ __VA_ARGS__ }) / sizeof(double)), (double[]){ __VA_ARGS__ })
static inline td_tensor *leaf_of(td_tensor *x)
{
    td_requires_grad((td_tensors){ &x, 1 }, true);
    return x;
}
#define LEAF(...) leaf_of(VEC(__VA_ARGS__))

static inline void put(td_grad_slot *s, int64_t i, double v)
{
    V(s->into)[i] = s->add ? V(s->into)[i] + v : v;
}

static inline int same_as_input(td_call *c)
{
    return td_call_infer(c, 0, td_call_input_shape(c, 0), TD_F64);
}

/* ---- mul: saves its inputs ---- */
static inline int mul_infer(td_call *c)
{
    if (!td__shape_equal(td_call_input_shape(c, 0), td_call_input_shape(c, 1)))
        return td_call_error(c, TD_ERR_SHAPE, "shapes differ");
    return same_as_input(c);
}
static inline int mul_run(td_call *c)
{
    td_tensor *a = td_call_input(c, 0), *b = td_call_input(c, 1), *y = td_call_output(c, 0);
    for (int64_t i = 0; i < count(y); i++)
        V(y)[i] = V(a)[i] * V(b)[i];
    if (td_call_needs_grad(c, 1))
        td_call_save(c, a);
    if (td_call_needs_grad(c, 0))
        td_call_save(c, b);
    return 0;
}
static inline int mul_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; s[k].into && i < count(s[k].into); i++)
            put(&s[k], i, V(g[0])[i] * V(td_call_input(c, 1 - k))[i]);
    return 0;
}
static const td_op op_mul = { .name = "t_mul", .infer = mul_infer, .run = mul_run, .grad = mul_grad };
static inline td_tensor *t_mul(td_tensor *a, td_tensor *b) { return td_apply(&op_mul, (td_tensor *[]){ a, b }, 2, NULL); }

/* ---- exp: saves its output ---- */
static inline int exp_run(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *y = td_call_output(c, 0);
    for (int64_t i = 0; i < count(y); i++)
        V(y)[i] = exp(V(x)[i]);
    td_call_save(c, y);
    return 0;
}
static inline int exp_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    for (int64_t i = 0; i < count(g[0]); i++)
        put(&s[0], i, V(g[0])[i] * V(td_call_saved(c, 0))[i]);
    return 0;
}
static const td_op op_exp = { .name = "t_exp", .infer = same_as_input, .run = exp_run, .grad = exp_grad };
static inline td_tensor *t_exp(td_tensor *x) { return td_apply(&op_exp, &x, 1, NULL); }

/* ---- times: by an attribute; keeps stamps; saves nothing; grad is also made in a version that cannot add ---- */
static inline int times_run(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *y = td_call_output(c, 0);
    double f = *(const double *)td_call_attr(c);
    for (int64_t i = 0; i < count(y); i++)
        V(y)[i] = V(x)[i] * f;
    return 0;
}
static inline int times_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    double f = *(const double *)td_call_attr(c);
    for (int64_t i = 0; i < count(g[0]); i++)
        put(&s[0], i, V(g[0])[i] * f);
    return 0;
}
static inline int times_grad_no_add(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    assert_false(s[0].add);
    return times_grad(c, g, s);
}
static const td_op op_times = { .name = "t_times", .infer = same_as_input, .run = times_run, .grad = times_grad, .attr_size = sizeof(double),
                                .flags = TD_OP_KEEPS_DIVISOR };
static const td_op op_times_no_add = { .name = "t_times_no_add", .infer = same_as_input, .run = times_run, .grad = times_grad_no_add,
                                       .attr_size = sizeof(double), .flags = TD_OP_NO_ADD };
static inline td_tensor *t_times(td_tensor *x, double f) { return td_apply(&op_times, &x, 1, &f); }
static inline td_tensor *t_times_no_add(td_tensor *x, double f) { return td_apply(&op_times_no_add, &x, 1, &f); }

/* ---- add: passes its gradient on; keeps stamps ---- */
static inline int add_run(td_call *c)
{
    td_tensor *a = td_call_input(c, 0), *b = td_call_input(c, 1), *y = td_call_output(c, 0);
    for (int64_t i = 0; i < count(y); i++)
        V(y)[i] = V(a)[i] + V(b)[i];
    return 0;
}
static inline int add_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    (void)s;
    int code = td_call_pass(c, 0, g[0]);
    return code ? code : td_call_pass(c, 1, g[0]);
}
static const td_op op_add = { .name = "t_add", .infer = mul_infer, .run = add_run, .grad = add_grad, .flags = TD_OP_KEEPS_DIVISOR };
static inline td_tensor *t_add(td_tensor *a, td_tensor *b) { return td_apply(&op_add, (td_tensor *[]){ a, b }, 2, NULL); }

/* ---- two: outputs 2x and 3x ---- */
static inline int two_infer(td_call *c)
{
    int code = same_as_input(c);
    return code ? code : td_call_infer(c, 1, td_call_input_shape(c, 0), TD_F64);
}
static inline int two_run(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    for (int64_t i = 0; i < count(x); i++) {
        V(td_call_output(c, 0))[i] = 2 * V(x)[i];
        V(td_call_output(c, 1))[i] = 3 * V(x)[i];
    }
    return 0;
}
static inline int two_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    (void)c;
    for (int64_t i = 0; i < count(s[0].into); i++)
        put(&s[0], i, (g[0] ? 2 * V(g[0])[i] : 0) + (g[1] ? 3 * V(g[1])[i] : 0));
    return 0;
}
static const td_op op_two = { .name = "t_two", .infer = two_infer, .run = two_run, .grad = two_grad, .n_outputs = 2 };
static inline void t_two(td_tensor *x, td_tensor **out) { td_apply_n(&op_two, &x, 1, NULL, out); }

/* ---- row: a view of x (R,C) ---- */
static inline int row_infer(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    int64_t row = *(const int64_t *)td_call_attr(c);
    return td_call_view(c, TD_SHAPE(x->shape.dim[1]), &x->stride[1], row * x->stride[0]);
}
static inline int row_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    int64_t row = *(const int64_t *)td_call_attr(c), n = count(g[0]);
    if (!s[0].add)
        memset(V(s[0].into), 0, (size_t)count(s[0].into) * sizeof(double));
    for (int64_t i = 0; i < n; i++)
        V(s[0].into)[row * n + i] += V(g[0])[i];
    return 0;
}
static const td_op op_row = { .name = "t_row", .infer = row_infer, .grad = row_grad, .attr_size = sizeof(int64_t), .flags = TD_OP_VIEW };
static inline td_tensor *t_row(td_tensor *x, int64_t row) { return td_apply(&op_row, &x, 1, &row); }

/* ---- sum to a scalar; loss: the same over n, stamped with n (f64 scalar made in run) ---- */
static inline int scalar_infer(td_call *c) { return td_call_infer(c, 0, TD_SCALAR, TD_F64); }
static inline int sum_run(td_call *c)
{
    td_tensor *x = td_call_input(c, 0);
    double sum = 0;
    for (int64_t i = 0; i < count(x); i++)
        sum += V(x)[i];
    V(td_call_output(c, 0))[0] = sum;
    return 0;
}
static inline int sum_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    (void)c;
    for (int64_t i = 0; i < count(s[0].into); i++)
        put(&s[0], i, V(g[0])[0]);
    return 0;
}
static inline int loss_run(td_call *c)
{
    double n = *(const double *)td_call_attr(c);
    sum_run(c);
    V(td_call_output(c, 0))[0] /= n;
    td_tensor *divisor = td__tensor_new(TD_SCALAR, TD_F64, td_device_default());
    V(divisor)[0] = n;
    td_call_save(c, divisor);
    td_call_stamp(c, divisor);
    return 0;
}
static inline int loss_grad(td_call *c, td_tensor *const *g, td_grad_slot *s)
{
    for (int64_t i = 0; i < count(s[0].into); i++)
        put(&s[0], i, V(g[0])[0] / V(td_call_saved(c, 0))[0]);
    return 0;
}
static const td_op op_sum = { .name = "t_sum", .infer = scalar_infer, .run = sum_run, .grad = sum_grad };
static const td_op op_loss = { .name = "t_loss", .infer = scalar_infer, .run = loss_run, .grad = loss_grad, .attr_size = sizeof(double) };
static inline td_tensor *t_sum(td_tensor *x) { return td_apply(&op_sum, &x, 1, NULL); }
static inline td_tensor *t_loss(td_tensor *x, double n) { return td_apply(&op_loss, &x, 1, &n); }

/* ---- what tests share ---- */
static inline int backward(td_tensor *loss) { return td_backward(loss); }
static inline void zero_grad(td_tensor *x) { td_zero_grad((td_tensors){ &x, 1 }); }

static inline void expect_values(td_tensor *x, int64_t n, const double *v)
{
    assert_non_null(x);
    assert_int_equal(count(x), n);
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(V(x)[i] - v[i]) <= 1e-12 * (1 + fabs(v[i]))))
            fail_msg("element %lld: %.17g, expected %.17g", (long long)i, V(x)[i], v[i]);
}
#define EXPECT(x, ...) expect_values(x, (int64_t)(sizeof((double[]){ __VA_ARGS__ }) / sizeof(double)), (double[]){ __VA_ARGS__ })

static inline void expect_error(int code, const char *part)
{
    assert_int_equal(td_error_pending(), code);
    if (!strstr(td_error_message(), part))
        fail_msg("\"%s\" does not contain \"%s\"", td_error_message(), part);
    td_error_clear();
}

/* Every test: errors are returned; at its end nothing lives. */
static int setup(void **state)
{
    (void)state;
    td_errors(TD_ERRORS_RETURN);
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    td_samples(NULL);
    td__scope_close_root();
    td_memory_stats m = td_memory();
    int bad = m.live_tensors != 0 || m.live_bytes != 0 || td__live_nodes() != 0 || td_error_pending() != 0;
    if (bad)
        print_error("left: %lld tensors, %lld bytes, %d nodes, error \"%s\"\n", (long long)m.live_tensors, (long long)m.live_bytes,
                    td__live_nodes(), td_error_message());
    td_error_clear();
    return bad;
}
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
