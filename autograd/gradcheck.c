/* autograd/gradcheck.c: the gradients of a function against central finite differences, in f64.
 *
 * The function's result is weighted by fixed random numbers r, so that one backward gives the gradient of sum(r*out). For each element of each
 * input the same sum is taken of out(x+eps) - out(x-eps), difference first, where rounding is smallest. Random operations draw the same
 * numbers in every evaluation, since each is a forward of its own.
 */
#include "tape.h"
#include <math.h>
#include <stdio.h>

typedef td_tensor *gradcheck_fn(td_tensor *const *inputs, size_t n, void *user);

typedef struct {
    gradcheck_fn *fn;
    void *user;
    td_tensor *const *in;
    size_t n;
    double eps, atol, rtol;
    int64_t n_out;
    double *weight, *plus, *minus;             /* n_out each, in one block */
    int differ;
    double worst;                              /* how far beyond its tolerance, as a ratio */
    char worst_text[256];
} check;

static int check_input(size_t i, td_tensor *x)
{
    char shape[128];
    int code = td__tensor_check("td_gradcheck", x);
    if (code)
        return code;
    td__shape_text(x->shape, shape);
    if (x->dtype != TD_F64)
        return td__fail(TD_ERR_DTYPE, "td_gradcheck: input %zu, shape %s, must be f64, got %s", i, shape, td_dtype_name(x->dtype));
    if (x->graph && !td__leaf_of(x))
        return td__fail(TD_ERR_STATE, "td_gradcheck: input %zu, shape %s, is the result of an operation and no leaf", i, shape);
    for (int d = 0; d < x->shape.ndim; d++)
        if (x->stride[d] == 0 && x->shape.dim[d] > 1)
            return td__fail(TD_ERR_SHAPE, "td_gradcheck: input %zu, shape %s, repeats its elements along dimension %d, so none can be moved "
                            "alone", i, shape, d);
    return 0;
}

/* Reads (and with set, writes) element `flat` of x, wherever its device is. */
static double element(td_tensor *x, int64_t flat, const double *set)
{
    int64_t at = x->offset;
    for (int d = x->shape.ndim - 1; d >= 0; d--) {
        at += flat % x->shape.dim[d] * x->stride[d];
        flat /= x->shape.dim[d];
    }
    td_storage *s = x->storage;
    double *place = (double *)s->data + at, value = 0;
    bool host = s->ops->host_memory;
    if (set) {
        s->ops->copy(s->device.index, place, host, set, true, sizeof value);
        s->version++;
        return *set;
    }
    s->ops->copy(s->device.index, &value, true, place, host, sizeof value);
    s->ops->synchronize(s->device.index);
    return value;
}

static td_tensor *call(check *c)
{
    td__random_restart();
    td_tensor *out = c->fn(c->in, c->n, c->user);
    char shape[128];
    if (td__tensor_check("td_gradcheck", out))
        return NULL;
    if (out->dtype != TD_F64) {
        td__fail(TD_ERR_DTYPE, "td_gradcheck: the function must return f64, got %s of shape %s", td_dtype_name(out->dtype),
                 td__shape_text(out->shape, shape));
        return NULL;
    }
    if (c->weight && td__shape_numel(out->shape) != c->n_out) {
        td__fail(TD_ERR_SHAPE, "td_gradcheck: the function returned %lld elements, then shape %s: it must return the same shape each time",
                 (long long)c->n_out, td__shape_text(out->shape, shape));
        return NULL;
    }
    return out;
}

/* Uniform in [1/2, 3/2), with alternating signs: no weight near 0 hides an element. */
static double weight_of(int64_t i)
{
    td_philox p = td__philox(0x7ad9a9d, 0, (uint64_t)i);
    double w = 0.5 + p.v[0] * 0x1p-32;
    return p.v[1] & 1 ? -w : w;
}

/* The gradients that backward finds. */
static int analytic(check *c)
{
    TD_SCOPE();
    td_tensor *out = call(c);
    if (!out)
        return td__pending();
    c->n_out = td__shape_numel(out->shape);
    c->weight = td__alloc(3 * (size_t)c->n_out * sizeof *c->weight);
    if (!c->weight)
        return TD_ERR_MEMORY;
    c->plus = c->weight + c->n_out;
    c->minus = c->plus + c->n_out;
    for (int64_t i = 0; i < c->n_out; i++)
        c->weight[i] = weight_of(i);
    if (!td_needs_grad(out))
        return 0;
    td_tensor *seed = td__tensor_new(out->shape, TD_F64, out->storage->device);
    int code = seed->poisoned ? TD_ERR_MEMORY : td_copy_in(seed, c->weight, (size_t)c->n_out * sizeof *c->weight);
    code = code ? code : td__backward_seeded(out, seed);
    td__tensor_unref(seed);
    return code;
}

static int evaluate(check *c, double *into)
{
    TD_SCOPE();
    td_tensor *out = call(c);
    return out ? td_copy_out(out, into, (size_t)c->n_out * sizeof *into) : td__pending();
}

static int numeric(check *c, td_tensor *x, int64_t i, double *derivative)
{
    double was = element(x, i, NULL), up = was + c->eps, down = was - c->eps;
    element(x, i, &up);
    int code = evaluate(c, c->plus);
    element(x, i, &down);
    code = code ? code : evaluate(c, c->minus);
    element(x, i, &was);
    double sum = 0;
    for (int64_t k = 0; k < c->n_out && !code; k++)
        sum += c->weight[k] * (c->plus[k] - c->minus[k]);
    *derivative = sum / (up - down);
    return code;
}

static void compare(check *c, size_t input, int64_t i, double got, double expected)
{
    double off = fabs(got - expected), allowed = c->atol + c->rtol * fabs(expected);
    if (off <= allowed)
        return;
    c->differ++;
    double ratio = isfinite(off) ? off / allowed : INFINITY;
    if (ratio <= c->worst)
        return;
    c->worst = ratio;
    snprintf(c->worst_text, sizeof c->worst_text, "input %zu, element %lld: gradient %.12g, finite differences %.12g", input, (long long)i, got,
             expected);
}

static int compare_input(check *c, size_t input)
{
    td_tensor *x = c->in[input];
    td__leaf *leaf = td__leaf_of(x);
    int64_t n = td__shape_numel(x->shape);
    int code = 0;
    for (int64_t i = 0; i < n && !code; i++) {
        double expected, got = leaf->has_grad ? element(leaf->grad, i, NULL) : 0;
        code = numeric(c, x, i, &expected);
        if (!code)
            compare(c, input, i, got, expected);
    }
    return code;
}

int td_gradcheck(td_tensor *(*fn)(td_tensor *const *inputs, size_t n, void *user), void *user, td_tensor *const *inputs, size_t n,
                 const td_gradcheck_opts *opts)
{
    TD_ENTER();
    int code = td__pending();
    if (!code && (!fn || (n && !inputs)))
        code = td__fail(TD_ERR_ARGUMENT, "td_gradcheck: the %s NULL", fn ? "list of inputs is" : "function is");
    for (size_t i = 0; i < n && !code; i++)
        code = check_input(i, inputs[i]);
    if (code)
        return code;
    check c = { .fn = fn, .user = user, .in = inputs, .n = n,
                .eps = opts && opts->eps ? opts->eps : 1e-6,
                .atol = opts && opts->atol ? opts->atol : 1e-7,
                .rtol = opts && opts->rtol ? opts->rtol : 1e-5 };
    td_tensors all = { inputs, n };
    td_requires_grad(all, true);
    td_zero_grad(all);
    bool off = td__tape_now.grad_off;
    td__tape_now.grad_off = false;
    code = td__pending();
    code = code ? code : analytic(&c);
    td__tape_now.grad_off = true;
    for (size_t i = 0; i < n && !code; i++)
        code = compare_input(&c, i);
    td__tape_now.grad_off = off;
    td__free(c.weight);
    td_zero_grad(all);
    if (!code && c.differ)
        td_log("td_gradcheck: %d elements differ, the worst: %s", c.differ, c.worst_text);
    return code ? code : c.differ;
}
