/* tests/optim/optim_test.h: a small job with known gradients, run by the library and, beside it, by plain loops in double.
 *
 * Loss: half the sum of a*(p-b)^2 over the parameters that take part, so that the gradient is a*(p-b). */
#ifndef OPTIM_TEST_H
#define OPTIM_TEST_H
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <nn_impl.h>
#include <nothing_left.h>
#include <sentence.h>
#include <optim_impl.h>

enum { PARAMS = 7, MOST = 1100 };
static const int64_t size_of[PARAMS] = { 1, 7, 33, 1030, 16, 0, 5 };      /* primes, one block and more, none, an exact 64 bytes */

typedef struct {
    td_dtype dtype;
    td_tensor *p[PARAMS], *a[PARAMS], *b[PARAMS];
    double w[PARAMS][MOST], m[PARAMS][MOST], v[PARAMS][MOST], u[PARAMS][MOST];   /* the reference: weights and moments */
    double ra[PARAMS][MOST], rb[PARAMS][MOST];
    int64_t steps[PARAMS];
} job;

static inline td_tensor *numbers(td_dtype t, int64_t n, uint64_t stream, double low, double high)
{
    return td_keep(td_shift(td_scale(td_cast(td_rand(TD_SHAPE(n), 11, stream), t), high - low), low));
}

static inline void read_out(td_tensor *x, double *into)
{
    TD_SCOPE();
    assert_int_equal(td_copy_out(td_cast(td_detach(x), TD_F64), into, (size_t)td_numel(x) * sizeof *into), 0);
}

/* Targets that 100 small steps do not reach: there AdamW divides rounding errors by each other, which is no property of ours. */
static inline void keep_away(td_tensor *b)
{
    for (int64_t k = 0; k < td_numel(b); k++) {
        double v = td_at(b, TD_SHAPE(k));
        v += v < 0 ? -2 : 2;
        if (td_dtype_of(b) == TD_F64)
            ((double *)td_data(b))[k] = v;
        else
            ((float *)td_data(b))[k] = (float)v;
    }
}

static inline void begin_job(job *j, td_dtype dtype)
{
    TD_SCOPE();
    memset(j, 0, sizeof *j);
    j->dtype = dtype;
    for (int i = 0; i < PARAMS; i++) {
        j->p[i] = numbers(dtype, size_of[i], 3 * (uint64_t)i, -1, 1);
        j->a[i] = numbers(dtype, size_of[i], 3 * (uint64_t)i + 1, 0.1, 2);
        j->b[i] = numbers(dtype, size_of[i], 3 * (uint64_t)i + 2, -1, 1);
        keep_away(j->b[i]);
        read_out(j->p[i], j->w[i]);
        read_out(j->a[i], j->ra[i]);
        read_out(j->b[i], j->rb[i]);
        td_requires_grad((td_tensors){ &j->p[i], 1 }, true);
    }
}

static inline void end_job(job *j)
{
    for (int i = 0; i < PARAMS; i++) {
        td_release(j->p[i]);
        td_release(j->a[i]);
        td_release(j->b[i]);
    }
}

/* One backward; bit i of `use`: parameter i takes part. */
static inline void backward(job *j, unsigned use)
{
    TD_SCOPE();
    td_tensor *loss = td_zeros(TD_SCALAR, j->dtype);
    for (int i = 0; i < PARAMS; i++)
        if (use >> i & 1) {
            td_tensor *d = td_sub(j->p[i], j->b[i]);
            loss = td_add(loss, td_scale(td_sum(td_mul(j->a[i], td_mul(d, d)), NULL, 0, false), 0.5));
        }
    assert_int_equal(td_backward(loss), 0);
}

static inline double gradient(const job *j, int i, int64_t k)
{
    return j->ra[i][k] * (j->w[i][k] - j->rb[i][k]);
}

/* PyTorch's documented SGD, one step of parameter i with gradients times `factor`. */
static inline void reference_sgd(job *j, int i, const td_sgd_opts *o, double lr, double factor)
{
    for (int64_t k = 0; k < size_of[i]; k++) {
        double g = factor * gradient(j, i, k) + (double)o->weight_decay * j->w[i][k];
        if (o->momentum != 0) {
            j->v[i][k] = j->steps[i] == 0 ? g : (double)o->momentum * j->v[i][k] + (1 - (double)o->dampening) * g;
            g = o->nesterov ? g + (double)o->momentum * j->v[i][k] : j->v[i][k];
        }
        j->w[i][k] -= lr * g;
    }
    j->steps[i]++;
}

/* PyTorch's documented AdamW. */
static inline void reference_adamw(job *j, int i, double lr, double beta1, double beta2, double eps, double decay, double factor)
{
    j->steps[i]++;
    for (int64_t k = 0; k < size_of[i]; k++) {
        double g = factor * gradient(j, i, k);
        j->w[i][k] -= lr * decay * j->w[i][k];
        j->m[i][k] = beta1 * j->m[i][k] + (1 - beta1) * g;
        j->v[i][k] = beta2 * j->v[i][k] + (1 - beta2) * g * g;
        double mean = j->m[i][k] / (1 - pow(beta1, (double)j->steps[i])), square = j->v[i][k] / (1 - pow(beta2, (double)j->steps[i]));
        j->w[i][k] -= lr * mean / (sqrt(square) + eps);
    }
}

/* The largest difference, relative to the parameter's largest weight. */
static inline double distance(const job *j, int i)
{
    double got[MOST], most = 0, worst = 0;
    read_out(j->p[i], got);
    for (int64_t k = 0; k < size_of[i]; k++) {
        most = fmax(most, fabs(j->w[i][k]));
        worst = fmax(worst, fabs(got[k] - j->w[i][k]));
    }
    return most > 0 ? worst / most : worst;
}

static inline void compare(const job *j, double tolerance)
{
    for (int i = 0; i < PARAMS; i++)
        if (!(distance(j, i) <= tolerance))
            fail_msg("parameter %d is off by %g, allowed %g", i, distance(j, i), tolerance);
}

static inline double tolerance_of(td_dtype t)
{
    return t == TD_F64 ? 1e-12 : 2e-5;         /* f32: a hundred roundings of 6e-8, some amplified by momentum and 1/sqrt(v) */
}

static inline td_tensors all_of(job *j)
{
    return (td_tensors){ j->p, PARAMS };
}

static inline int begin_test(void **state)
{
    td_errors(TD_ERRORS_RETURN);
    td_error_clear();
    td_step_set(0);
    return 0;
}

static inline int nothing_left(void **state)
{
    assert_null(td__optims());
    expect_nothing_left();
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin_test, nothing_left)
#endif
