/* tensor/inplace.c: td_assign and td_fill: writing into existing elements, without gradients.
 *
 * Every write bumps the storage's version, by which backward notices that a saved value is no longer what it was. A value that
 * shares memory with its destination goes through a temporary.
 */
#include "tensor_impl.h"

/* Bytes [low, high) that x's elements lie in. Strides are never negative. */
static void extent(const td_tensor *x, const char **low, const char **high)
{
    int64_t last = 0;
    for (int i = 0; i < x->shape.ndim; i++)
        last += (x->shape.dim[i] - 1) * x->stride[i];
    *low = td__ptr(x);
    *high = *low + (size_t)(last + 1) * td_dtype_size(x->dtype);
}

bool td__overlaps(const td_tensor *a, const td_tensor *b)
{
    if (!td__device_equal(a->storage->device, b->storage->device) || !td__shape_numel(a->shape) || !td__shape_numel(b->shape))
        return false;
    const char *a_low, *a_high, *b_low, *b_high;
    extent(a, &a_low, &a_high);
    extent(b, &b_low, &b_high);
    return a_low < b_high && b_low < a_high;
}

/* May the user write into x? Not where one element stands for several. */
static int check_into(const char *who, td_tensor *x)
{
    char text[128];
    int code = td__tensor_check(who, x);
    if (!code && td__tensor_inplace_check)
        code = td__tensor_inplace_check(x);
    for (int i = 0; !code && i < x->shape.ndim; i++)
        if (x->stride[i] == 0 && x->shape.dim[i] > 1)
            code = td__fail(TD_ERR_SHAPE, "%s: the view of shape %s repeats its elements along dimension %d and cannot be written", who,
                            td__shape_text(x->shape, text), i);
    return code;
}

int td__fill(td_tensor *into, double value)
{
    int code = td__need("td_fill", into, fill);
    if (code)
        return code;
    td_loop l = td__loop(into->shape, into, NULL, NULL, NULL);
    td__kernels(into)->fill(&l, into->dtype, td__ptr(into), value);
    into->storage->version++;
    return 0;
}

int td__fill_known(td_tensor *into, double value)
{
    union { double word; char bytes[8]; } element = { 0 };
    int code = td__fill(into, value);
    td__element_put(into->dtype, element.bytes, value);
    into->number = td__element_get(into->dtype, element.bytes);        /* what td_item would read                           */
    into->number_version = into->storage->version;
    into->number_known = !code;
    return code;
}

bool td__number_of(const td_tensor *x, double *value)
{
    if (!x->number_known || x->number_version != x->storage->version)
        return false;
    *value = x->number;
    return true;
}

typedef struct { td_tensor *into, *value; double number; } write_state;

static int fill_again(void *state)
{
    write_state *w = state;
    return td__fill(w->into, w->number);
}

static int assign(td_tensor *into, td_tensor *value);

static int assign_again(void *state)
{
    write_state *w = state;
    return assign(w->into, w->value);
}

static void write_drop(void *state)
{
    write_state *w = state;
    td__tensor_unref(w->into);
    td__tensor_unref(w->value);
}

static void write_visit(void *state, td__visitor *v)
{
    v->storage(v, ((write_state *)state)->into->storage, "a tensor that the step writes in place");
}

static void write_uses(void *state, td__uses *u)
{
    write_state *w = state;
    if (w->value)
        u->tensor(u, w->value, TD__READS);
    u->tensor(u, w->into, TD__WRITES);
}

static void note(const td__record_kind *kind, td_tensor *into, td_tensor *value, double number)
{
    write_state *w = td__record_begin(kind);
    if (w) {
        *w = (write_state){ into, value, number };
        td__tensor_ref(into);
        td__tensor_ref(value);
    }
    td__record_end();
}

int td_fill(td_tensor *into, double value)
{
    TD_ENTER();
    static const td__record_kind kind = { "td_fill", sizeof(write_state), fill_again, NULL, write_drop, write_visit, write_uses };
    int code = check_into("td_fill", into);
    code = code ? code : td__fill(into, value);
    if (!code && td__recording_now)
        note(&kind, into, NULL, value);
    return code;
}

/* A view of x, broadcast to `shape` (which x's shape broadcasts to). */
static td_tensor *broadcast_view(td_tensor *x, td_shape shape)
{
    int64_t stride[TD_MAX_DIMS] = { 0 };
    int lead = shape.ndim - x->shape.ndim;
    for (int i = 0; i < x->shape.ndim; i++)
        stride[lead + i] = x->shape.dim[i] == 1 ? 0 : x->stride[i];
    return td__tensor_view(x, shape, stride, x->offset);
}

static bool same_elements(const td_tensor *a, const td_tensor *b)
{
    if (td__ptr(a) != td__ptr(b) || a->dtype != b->dtype || !td__shape_equal(a->shape, b->shape))
        return false;
    for (int i = 0; i < a->shape.ndim; i++)
        if (a->shape.dim[i] > 1 && a->stride[i] != b->stride[i])
            return false;
    return true;
}

static int assign_apart(td_tensor *into, td_tensor *value)
{
    td_tensor *view = broadcast_view(value, into->shape);
    if (view->poisoned)
        return td_error_pending();
    int code = td__copy(into, view, false);
    td__tensor_unref(view);
    return code;
}

static int assign(td_tensor *into, td_tensor *value)
{
    char a[128], b[128];
    td_shape shape;
    int code = check_into("td_assign", into);
    if (!code)
        code = td__tensor_check("td_assign", value);
    if (code)
        return code;
    if (td__shape_broadcast(into->shape, value->shape, &shape) || !td__shape_equal(shape, into->shape))
        return td__fail(TD_ERR_SHAPE, "td_assign: a value of shape %s does not broadcast into shape %s", td__shape_text(value->shape, a),
                        td__shape_text(into->shape, b));
    if (!same_elements(into, value)) {
        if (td__overlaps(into, value)) {
            td_tensor *apart = td__tensor_new(value->shape, value->dtype, value->storage->device);
            if (apart->poisoned)
                return td_error_pending();
            code = td__copy(apart, value, false);
            if (!code)
                code = assign_apart(into, apart);
            td__tensor_unref(apart);
        } else {
            code = assign_apart(into, value);
        }
    }
    into->storage->version++;
    return code;
}

int td_assign(td_tensor *into, td_tensor *value)
{
    TD_ENTER();
    static const td__record_kind kind = { "td_assign", sizeof(write_state), assign_again, NULL, write_drop, write_visit, write_uses };
    int code = assign(into, value);
    if (!code && td__recording_now)
        note(&kind, into, value, 0);
    return code;
}
