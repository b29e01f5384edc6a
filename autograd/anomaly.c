/* autograd/anomaly.c: TANDEM_ANOMALY=1: the first operation that makes NaN or Inf out of finite numbers is an error that names it.
 *
 * The door asks after each run, backward after each gradient function. An operation is at fault when all that it was given was finite:
 * inputs, and numbers among its attributes (a border of -Inf is a wish); in backward the gradients that came in, and what lay already
 * where it adds. So a mask of -Inf is nobody's fault, and neither is a NaN that merely passes through. Empty batches, whose
 * mean is NaN and weighs nothing, are left alone. The sentence gets module path, the forward call's line and rank as every error does.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "tape.h"

int td__anomaly = -1;                          /* the environment has not been asked                                       */

bool td__anomaly_wanted(void)
{
    if (td__anomaly < 0)
        td__anomaly = td__env_number(TD_ENV_ANOMALY, 0, 0, 1) != 0;
    return td__anomaly > 0;
}

/* How many elements are not finite; *first: which comes first, counted in C order. 0 for integers, and where memory is gone. */
static int64_t not_finite(td_tensor *x, int64_t *first)
{
    *first = -1;
    if (!x || !td__is_real(x->dtype) || td__shape_numel(x->shape) == 0 || !td__kernels(x)->not_finite)
        return 0;
    td_tensor *dense = x;
    if (!td__strides_contiguous(x->shape, x->stride)) {
        dense = td__tensor_new(x->shape, x->dtype, x->storage->device);
        if (dense->poisoned || td__copy(dense, x, false)) {
            td__tensor_unref(dense);
            return 0;
        }
    }
    double count = 0;
    struct { double count; int64_t first; } *answer = NULL, here = { 0, -1 };
    td_storage *room = td__storage_new(x->storage->device, sizeof here);
    if (room) {
        answer = room->data;
        td__kernels(x)->not_finite(x->dtype, td__shape_numel(x->shape), td__ptr(dense), &answer->count, false, &answer->first);
        if (x->storage->ops->copy(x->storage->device.index, &here, true, answer, x->storage->ops->host_memory, sizeof here) == 0)
            count = here.count, *first = here.first;
        td__storage_unref(room);
    }
    if (dense != x)
        td__tensor_unref(dense);
    return (int64_t)count;
}

static bool all_finite(td_tensor *x)
{
    int64_t first;
    return not_finite(x, &first) == 0;
}

/* Attributes are plain structs: a word that is Inf or NaN read as f64 is one. */
static bool finite_attributes(const td_call *call)
{
    for (size_t at = 0; at + sizeof(double) <= call->op->attr_size; at += sizeof(double)) {
        double value;
        memcpy(&value, (const char *)call->attr + at, sizeof value);
        if (!isfinite(value))
            return false;
    }
    return true;
}

/* ---- the sentence ------------------------------------------------------------------------------------------------------------------------ */

enum { TEXT = 512 };
typedef struct { char text[TEXT]; size_t used; } line;

TD_PRINTF(2, 3) static void say(line *l, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(l->text + l->used, TEXT - l->used, format, args);
    va_end(args);
    l->used += n > 0 ? (size_t)n : 0;
    l->used = l->used < TEXT ? l->used : TEXT - 1;
}

static double element(const td_tensor *x, int64_t index)
{
    int64_t at = x->offset;
    for (int d = x->shape.ndim - 1; d >= 0; d--) {
        at += index % x->shape.dim[d] * x->stride[d];
        index /= x->shape.dim[d];
    }
    td__settle(x->storage);
    return x->storage->ops->host_memory ? td__element_get(x->dtype, (char *)x->storage->data + (size_t)at * td_dtype_size(x->dtype)) : NAN;
}

static void say_value(line *l, double value)
{
    if (isnan(value))
        say(l, "NaN");
    else if (isinf(value))
        say(l, value > 0 ? "Inf" : "-Inf");
    else
        say(l, "%.9g", value);
}

/* "3 of 12 elements of <what>, shape (3,4), are not finite, the first, [1,2], is NaN" */
static void say_where(line *l, const char *what, const td_tensor *x, int64_t bad, int64_t first)
{
    char shape[128];
    say(l, "%lld of %lld elements of %s, shape %s, %s not finite", (long long)bad, (long long)td__shape_numel(x->shape), what,
        td__shape_text(x->shape, shape), bad == 1 ? "is" : "are");
    say(l, bad == 1 ? ": [" : ", the first: [");
    int64_t stride[TD_MAX_DIMS];
    td__shape_strides(x->shape, stride);
    for (int d = 0; d < x->shape.ndim; d++)
        say(l, "%s%lld", d ? "," : "", (long long)(first / stride[d] % x->shape.dim[d]));
    say(l, "] is ");
    say_value(l, element(x, first));
}

/* The same place in a tensor of the same shape. */
static void say_beside(line *l, const char *what, int i, const td_tensor *x, td_shape shape, int64_t index, bool *any)
{
    if (!x || !td__is_real(x->dtype) || !td__shape_equal(x->shape, shape))
        return;
    say(l, "%s%s %d is ", *any ? " and " : ", where ", what, i);
    say_value(l, element(x, index));
    *any = true;
}

/* ---- what the door and backward ask ----------------------------------------------------------------------------------------------------------- */

/* A batch without rows: its means are NaN, and weigh nothing. */
static bool empty(const td_call *call, td_tensor *const *in)
{
    const td_tensor *divisor = call->out[0]->divisor;
    double count = 1;
    if (divisor && td__is_real(divisor->dtype) && !td__number_of(divisor, &count))
        count = td_item(divisor);
    bool none = count == 0;
    for (int i = 0; i < call->n_in; i++)
        none |= in[i] && td__shape_numel(in[i]->shape) == 0;
    return none;
}

int td__anomaly_forward(td_call *call, td_tensor *const *in)
{
    for (int k = 0; k < call->n_out && !call->view; k++) {
        td_tensor *y = call->out[k];
        int64_t first, bad = not_finite(y, &first);
        if (!bad)
            continue;
        if (empty(call, in) || !finite_attributes(call))
            return 0;
        for (int i = 0; i < call->n_in; i++)
            if (!all_finite(in[i]))
                return 0;
        line l = { .used = 0 };
        char what[24];
        bool any = false;
        snprintf(what, sizeof what, call->n_out > 1 ? "result %d" : "its result", k);
        say_where(&l, what, y, bad, first);
        for (int i = 0; i < call->n_in; i++)
            say_beside(&l, "input", i, in[i], y->shape, first, &any);
        return td__fail(TD_ERR_NOT_FINITE, "td_%s, forward, made NaN or Inf from finite inputs: %s", call->op->name, l.text);
    }
    return 0;
}

/* Bit i: a gradient that is not finite afterwards is this gradient function's doing. */
uint32_t td__anomaly_before(td_call *node, const td__dest *dest)
{
    if (!finite_attributes(node))
        return 0;
    for (int k = 0; k < node->n_out; k++)
        if (!all_finite(node->grad[k]))
            return 0;
    uint32_t watched = 0;
    for (int i = 0; i < node->n_in; i++)
        if (dest[i].into && (!dest[i].add || all_finite(dest[i].into)))
            watched |= 1u << i;
    return watched;
}

int td__anomaly_backward(td_call *node, const td__dest *dest, uint32_t watched)
{
    for (int i = 0; i < node->n_in; i++) {
        td_tensor *g = dest[i].into;
        int64_t first, bad = watched >> i & 1 ? not_finite(g, &first) : 0;
        if (!bad)
            continue;
        line l = { .used = 0 };
        char what[48];
        bool any = false;
        snprintf(what, sizeof what, "the gradient of input %d", i);
        say_where(&l, what, g, bad, first);
        for (int k = 0; k < node->n_out; k++)
            say_beside(&l, "the incoming gradient", k, node->grad[k], g->shape, first, &any);
        for (int s = 0; s < node->n_saved; s++) {
            const td__saved *v = &node->saved[s];
            if (v->inputs || v->output >= 0)
                say_beside(&l, v->inputs ? "input" : "output", v->inputs ? __builtin_ctz(v->inputs) : v->output, v->tensor, g->shape, first, &any);
        }
        td_scope scope = td__scope_begin_labelled(node->label);
        int code = td__fail(TD_ERR_NOT_FINITE, "td_%s, backward, made NaN or Inf from finite gradients: %s; it was called", node->op->name, l.text);
        td_scope_end(&scope);
        return code;
    }
    return 0;
}
