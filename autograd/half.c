/* autograd/half.c: f16 and bf16 where the device computes in f32: f32 copies of what an operation reads, one rounding of what it makes.
 * A device that computes in 16 bits does so in the operations that are listed below; the others, a user's too, go through f32 there as well.
 *
 * The door calls begin before infer and end after run; backward does the same around the gradient function. Between them the operation sees
 * f32 alone and knows nothing of this. What the graph keeps are the 16-bit tensors themselves, so that saved activations take half the memory
 * and their versions are checked as everybody else's. Copies live as long as the call.
 */
#include "ops_list.h"
#include "tape.h"

/* ---- infer and run ------------------------------------------------------------------------------------------------------------------ */

/* The values in f32, contiguous but for dimensions along which x repeats itself: they are not written out. Poison after td__fail. */
static td_tensor *widened(td_tensor *x)
{
    td_shape once = x->shape;
    bool repeats = false;
    for (int i = 0; i < once.ndim; i++)
        if (x->stride[i] == 0 && once.dim[i] > 1) {
            once.dim[i] = 1;
            repeats = true;
        }
    td_tensor *wide = td__tensor_new(once, TD_F32, x->storage->device);
    td_tensor *from = repeats ? td__tensor_view(x, once, x->stride, x->offset) : x;
    int code = wide->poisoned || from->poisoned ? TD_ERR_MEMORY : td__copy(wide, from, false);
    td_tensor *whole = wide;
    if (repeats) {
        td__tensor_unref(from);
        int64_t stride[TD_MAX_DIMS];
        for (int i = 0; i < once.ndim; i++)
            stride[i] = x->stride[i] == 0 ? 0 : wide->stride[i];
        whole = code ? td__poison() : td__tensor_view(wide, x->shape, stride, wide->offset);
        td__tensor_unref(wide);
    }
    if (!code)
        return whole;
    td__tensor_unref(whole);
    return td__poison();
}

/* Operations whose kernels read and write 16 bits, with sums, statistics and what is kept for gradients in f32. Not here: var, which would
 * subtract a rounded mean; losses but cross-entropy, whose gradient begins with a weight that 16 bits would round. */
static bool natively(const td_op *op)
{
#define OP(name) &td__op_##name,
    static const td_op *const list[] = { TD_OP_LIST_HALF(OP) };
#undef OP
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i] == op)
            return true;
    return false;
}

static int check_dtypes(td_call *call, td_dtype half)
{
    for (int i = 0; i < call->n_in; i++) {
        td_dtype t = call->in[i] ? call->in[i]->dtype : half;
        if (td__is_real(t) && t != half && !(call->op->flags & TD_OP_MIXED && t == TD_F32))
            return td_call_error(call, TD_ERR_DTYPE, "dtypes %s and %s differ (td_cast converts; inside TD_AUTOCAST f32, f16 and bf16 may meet)",
                                 td_dtype_name(half), td_dtype_name(t));
    }
    return 0;
}

/* x*x widens its one tensor once. */
static td_tensor *widened_input(td_tensor *const *in, const td__half *h, int i)
{
    td_tensor *x = in[i];
    for (int k = 0; k < i; k++)
        if (in[k] == x) {
            x = h->wide[k];
            break;
        }
    if (!x || !td__is_half(x->dtype)) {
        if (x)
            td__tensor_ref(x);
        return x;
    }
    return widened(x);
}

int td__half_begin(td_call *call, td__half *h)
{
    const td_tensor *half = NULL;
    h->in = NULL;
    for (int i = 0; i < call->n_in && !half; i++)
        if (call->in[i] && td__is_half(call->in[i]->dtype))
            half = call->in[i];
    if (!half)
        return 0;
    if (half->storage->ops->computes_half && natively(call->op))
        return call->mixed || call->op->flags & (TD_OP_ANY_DTYPE | TD_OP_VIEW) ? 0 : check_dtypes(call, half->dtype);
    call->half = true;
    if (call->op->flags & (TD_OP_ANY_DTYPE | TD_OP_VIEW))
        return 0;
    int code = check_dtypes(call, half->dtype);
    if (code)
        return code;
    td_tensor *const *in = call->in;
    for (int i = 0; i < call->n_in; i++) {
        h->wide[i] = widened_input(in, h, i);
        if (h->wide[i] && h->wide[i]->poisoned)
            code = TD_ERR_MEMORY;
    }
    h->in = in;
    call->in = h->wide;
    return code;
}

/* Output i in 16 bits, in place of the f32 one: its stamp and what was saved of it move along. */
static int narrow_output(td_call *call, int i, td_dtype dtype)
{
    td_tensor *wide = call->out[i], *x = call->again ? call->again[i] : td__tensor_new(wide->shape, dtype, call->device);
    if (call->again)
        td__tensor_ref(x);
    int code = x->poisoned ? TD_ERR_MEMORY : td__copy(x, wide, false);
    for (int s = 0; s < call->n_saved && !code; s++) {
        if (call->saved[s].output != i)
            continue;
        td_tensor *plain = td__tensor_view(x, x->shape, x->stride, x->offset);   /* without graph, as td_call_save makes it */
        if (plain->poisoned) {
            code = TD_ERR_MEMORY;
            break;
        }
        td__tensor_unref(call->saved[s].tensor);
        call->saved[s].tensor = plain;
        call->saved[s].version = x->storage->version;
    }
    if (code) {
        td__tensor_unref(x);
        return code;
    }
    x->divisor = wide->divisor;
    wide->divisor = NULL;
    td__tensor_unref(wide);
    call->out[i] = x;
    return 0;
}

/* Saved inputs are the caller's own tensors. What run changed in place (running statistics: it says so by the version) is rounded back. */
static int narrow_inputs(td_call *call, const td__half *h)
{
    int code = 0;
    for (int i = 0; i < call->n_in && !code; i++) {
        td_tensor *own = h->in[i], *wide = h->wide[i];
        if (own == wide || wide->storage->version == 0)
            continue;
        code = td__copy(own, wide, false);
        own->storage->version++;
    }
    for (int s = 0; s < call->n_saved; s++) {
        td__saved *saved = &call->saved[s];
        td_tensor *own = saved->inputs ? h->in[__builtin_ctz(saved->inputs)] : NULL;
        if (!own || own == saved->tensor)
            continue;
        td__tensor_ref(own);
        td__tensor_unref(saved->tensor);
        saved->tensor = own;
        saved->version = own->storage->version;
    }
    return code;
}

int td__half_end(td_call *call, td__half *h, int code)
{
    if (!h->in)
        return code;
    td_dtype half = TD_F32;
    for (int i = 0; i < call->n_in && half == TD_F32 && !(i > 0 && call->op->flags & TD_OP_MIXED); i++)
        if (h->in[i] && td__is_half(h->in[i]->dtype))
            half = h->in[i]->dtype;
    for (int i = 0; i < call->n_out && !code && half != TD_F32; i++)
        if (call->out[i]->dtype == TD_F32)
            code = narrow_output(call, i, half);
    if (!code)
        code = narrow_inputs(call, h);
    for (int i = 0; i < call->n_in; i++)
        td__tensor_unref(h->wide[i]);
    call->in = h->in;
    return code;
}

/* ---- the gradient ------------------------------------------------------------------------------------------------------------------- */

int td__half_grad_begin(td_call *node, td_tensor **seen)
{
    int code = 0;
    for (int i = 0; i < node->n_out; i++) {
        td_tensor *g = node->grad[i];
        if (g && td__is_half(g->dtype))
            g = widened(g);
        else if (g)
            td__tensor_ref(g);
        seen[i] = g;
        if (g && g->poisoned)
            code = TD_ERR_MEMORY;
    }
    for (int s = 0; s < node->n_saved && !code; s++) {
        td__saved *saved = &node->saved[s];
        if ((!saved->inputs && saved->output < 0) || !td__is_half(saved->tensor->dtype))
            continue;
        td_tensor *wide = widened(saved->tensor);
        if (wide->poisoned)
            return TD_ERR_MEMORY;
        saved->narrow = saved->tensor;
        saved->tensor = wide;
    }
    return code;
}

void td__half_grad_end(td_call *node, td_tensor **seen)
{
    for (int s = 0; s < node->n_saved; s++) {
        td__saved *saved = &node->saved[s];
        if (!saved->narrow)
            continue;
        td__tensor_unref(saved->tensor);
        saved->tensor = saved->narrow;
        saved->narrow = NULL;
    }
    for (int i = 0; i < node->n_out; i++)
        td__tensor_unref(seen[i]);
}

/* A gradient that is passed on as it came needs no rounding and no copy. Not where another input goes to the same place: the two would be
 * written in another order than backward.c thinks. */
td_tensor *td__half_own(td_call *call, int input, td_tensor *g)
{
    td__dest *d = &call->dest[input];
    for (int i = 0; i < call->n_in; i++)
        if (i != input && call->dest[i].into == d->into)
            return NULL;
    for (int i = 0; i < call->n_out; i++)
        if (call->seen && call->seen[i] == g && call->grad[i] != g && call->grad[i]->dtype == call->edge[input].dtype) {
            td__tensor_unref(d->temp);
            d->temp = NULL;
            return call->grad[i];
        }
    return NULL;
}
