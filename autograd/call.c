/* autograd/call.c: what an operation's functions may ask of their call: inputs, attributes, outputs, what to save, where gradients go.
 *
 * In infer and run the inputs are the caller's tensors. In grad only what was saved exists; shapes of inputs stay known.
 */
#include "tape.h"
#include <stdio.h>
#include <string.h>

size_t td_call_inputs(const td_call *call)
{
    return (size_t)call->n_in;
}

const char *td__call_name(const td_call *call)
{
    return call->op->name;
}

bool td__call_mixed(const td_call *call)
{
    return call->mixed;
}

const void *td_call_attr(const td_call *call)
{
    return call->attr;
}

td_shape td_call_input_shape(const td_call *call, int i)
{
    if (i < 0 || i >= call->n_in)
        return TD_SCALAR;
    if (call->in)
        return call->in[i] ? call->in[i]->shape : TD_SCALAR;
    return call->edge[i].shape;
}

bool td_call_needs_grad(const td_call *call, int input)
{
    if (!call->recording || input < 0 || input >= call->n_in)
        return false;
    return call->dest ? call->dest[input].into != NULL : call->edge[input].graph != 0;
}

int td_call_error(td_call *call, int code, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td__fail(code, "td_%s: %s", call->op->name, text);
}

td_tensor *td_call_input(const td_call *call, int i)
{
    if (i < 0 || i >= call->n_in)
        return NULL;
    if (call->in)
        return call->in[i];
    for (int s = 0; s < call->n_saved; s++)
        if (call->saved[s].inputs >> i & 1)
            return call->saved[s].tensor;
    return NULL;
}

td_tensor *td_call_output(const td_call *call, int i)
{
    if (i < 0 || i >= call->n_out)
        return NULL;
    if (call->in)
        return call->out[i];
    for (int s = 0; s < call->n_saved; s++)
        if (call->saved[s].output == i)
            return call->saved[s].tensor;
    return NULL;
}

/* ---- infer ---------------------------------------------------------------------------------------------------------------------- */

static int output_check(td_call *call, int output, td_shape shape)
{
    char name[80];
    if (output < 0 || output >= call->n_out || call->out[output])
        return td_call_error(call, TD_ERR_INTERNAL, "output %d of %d does not exist or is made twice", output, call->n_out);
    int64_t n = 1;
    bool plain = shape.ndim >= 0 && shape.ndim <= TD_MAX_DIMS;
    for (int i = 0; plain && i < shape.ndim; i++)
        plain = shape.dim[i] >= 0 && shape.dim[i] <= INT32_MAX && (n *= shape.dim[i]) <= INT64_MAX / INT32_MAX / 16;
    if (plain)
        return 0;
    snprintf(name, sizeof name, "td_%s", call->op->name);
    return td__shape_check(name, shape);
}

static int output_set(td_call *call, int output, td_tensor *x)
{
    if (x->poisoned)
        return td__pending() ? td__pending() : TD_ERR_MEMORY;
    call->out[output] = x;
    return 0;
}

int td_call_infer(td_call *call, int output, td_shape shape, td_dtype dtype)
{
    int code = output_check(call, output, shape);
    return code ? code : output_set(call, output, td__tensor_new(shape, dtype, call->device));
}

int td__call_infer_like(td_call *call, int output, td_shape shape, td_dtype dtype, const td_tensor *like)
{
    int code = output_check(call, output, shape);
    return code ? code : output_set(call, output, td__tensor_new_as(shape, dtype, call->device, shape.ndim == 4 && td__keeps_channels_last(like)));
}

int td_call_view(td_call *call, td_shape shape, const int64_t *stride, int64_t offset)
{
    if (!(call->op->flags & TD_OP_VIEW) || call->n_in < 1 || !call->in[0])
        return td_call_error(call, TD_ERR_INTERNAL, "makes a view without TD_OP_VIEW or without input 0");
    int code = output_check(call, 0, shape);
    if (code)
        return code;
    call->view = true;
    return output_set(call, 0, td__tensor_view(call->in[0], shape, stride, call->in[0]->offset + offset));
}

/* ---- run ------------------------------------------------------------------------------------------------------------------------ */

static void saved_push(td_call *call, td__saved s)
{
    if (call->n_saved == call->room_saved) {
        int room = 2 * call->room_saved;
        bool here = call->saved == call->saved_here;
        td__saved *more = here ? td__alloc((size_t)room * sizeof *more)
                               : td__grow(call->saved, (size_t)call->n_saved * sizeof *more, (size_t)room * sizeof *more);
        if (!more) {
            call->error = TD_ERR_MEMORY;
            td__tensor_unref(s.tensor);
            return;
        }
        if (here)
            memcpy(more, call->saved_here, sizeof call->saved_here);
        call->saved = more;
        call->room_saved = room;
    }
    call->saved[call->n_saved++] = s;
}

/* A handle to the same elements without graph: a node that held its own output would keep itself alive. */
static td_tensor *plain_handle(td_tensor *x)
{
    return td__tensor_view(x, x->shape, x->stride, x->offset);
}

void td_call_save(td_call *call, td_tensor *x)
{
    if (!x || x->poisoned || !call->in)
        return;
    td__saved s = { .tensor = x, .version = x->storage->version, .output = -1 };
    for (int i = 0; i < call->n_in; i++)
        s.inputs |= (uint32_t)(call->in[i] == x) << i;
    for (int i = 0; i < call->n_out && !s.inputs && s.output < 0; i++)
        if (call->out[i] == x)
            s.output = (int8_t)i;
    bool made = !s.inputs && s.output < 0;
    if (!made && !call->recording)
        return;
    if (s.output >= 0) {
        s.tensor = plain_handle(x);
        if (s.tensor->poisoned) {
            call->error = TD_ERR_MEMORY;
            return;
        }
    } else if (s.inputs || x->scoped.stack) {
        td__tensor_ref(x);
    }
    saved_push(call, s);
}

void td_call_stamp(td_call *call, td_tensor *divisor)
{
    if (!divisor || divisor->poisoned || !call->in || !call->out[0] || call->out[0]->divisor)
        return;
    td__tensor_ref(divisor);
    call->out[0]->divisor = divisor;
}

/* ---- grad ----------------------------------------------------------------------------------------------------------------------- */

td_tensor *td_call_saved(const td_call *call, int i)
{
    return i >= 0 && i < call->n_saved ? call->saved[i].tensor : NULL;
}

/* g's elements in the shape of the input; a handle of its own. */
static td_tensor *reshaped(td_call *call, int input, td_tensor *g)
{
    if (td__shape_equal(g->shape, call->edge[input].shape))
        return td__tensor_view(g, g->shape, g->stride, g->offset);
    return td__tensor_on(g->storage, call->edge[input].shape, g->dtype, g->offset);
}

/* Channels last in another shape: an image without its first dimension. Written out before it is passed. */
static int pass_written_out(td_call *call, int input, td_tensor *g)
{
    td_tensor *dense = td__tensor_new(g->shape, g->dtype, g->storage->device);
    int code = dense->poisoned ? TD_ERR_MEMORY : td__copy(dense, g, false);
    code = code ? code : td_call_pass(call, input, dense);
    td__tensor_unref(dense);
    return code;
}

int td_call_pass(td_call *call, int input, td_tensor *g)
{
    if (!call->dest || input < 0 || input >= call->n_in || !g)
        return td_call_error(call, TD_ERR_INTERNAL, "td_call_pass outside grad, without tensor or for input %d", input);
    td__dest *d = &call->dest[input];
    td__edge *e = &call->edge[input];
    if (!d->into)
        return 0;
    td_tensor *own = call->seen ? td__half_own(call, input, g) : NULL;
    g = own ? own : g;
    td_dtype to = d->temp ? d->temp->dtype : e->dtype;
    bool rounds = call->mixed && g->dtype == TD_F32 && td__is_half(to);        /* into a 16-bit input beside an f32 one        */
    if ((g->dtype != to && !rounds) || td__shape_numel(g->shape) != td__shape_numel(e->shape) ||
        !(td__strides_contiguous(g->shape, g->stride) || td__channels_last(g)))
        return td_call_error(call, TD_ERR_INTERNAL, "passes a gradient to input %d that has another dtype or number of elements", input);
    if (!td__strides_contiguous(g->shape, g->stride) && !td__shape_equal(g->shape, e->shape))
        return pass_written_out(call, input, g);
    td_tensor *view = reshaped(call, input, g);
    if (view->poisoned)
        return TD_ERR_MEMORY;
    /* An accumulator that nothing was written to yet may be replaced by g, if nobody else can write to g's memory later: its storage is
     * held by g and the new handle alone; or by other inputs that were passed the incoming gradient (who adds to it makes it their own). */
    bool mine = !td__graph_is_leaf(e->graph) && !d->add && !d->temp && !rounds, incoming = false;
    for (int k = 0; k < call->n_out; k++)
        incoming |= g == call->grad[k];
    for (int k = 0; k < call->n_in && !d->later; k++)      /* td_add(x, x): the other input is still to be added to it            */
        mine &= k == input || call->dest[k].into != d->into;
    if (mine && g->refs == 1 && (incoming || g->storage->refs == 2) && !g->storage->base) {
        td_call *from = td__graph_node(e->graph);
        if (!d->later)
            td__tensor_unref(d->into);
        d->into = from->grad[td__graph_output(e->graph)] = view;
        d->later = false;
        return 0;
    }
    if (d->later) {
        td_tensor *made = td__tensor_new_as(e->shape, e->dtype, call->device, td__channels_last(view));
        if (made->poisoned) {
            td__tensor_unref(view);
            return TD_ERR_MEMORY;
        }
        d->into = td__graph_node(e->graph)->grad[td__graph_output(e->graph)] = made;
        d->later = false;
    }
    int code = td__copy(d->temp ? d->temp : d->into, view, !d->temp && d->add);
    td__tensor_unref(view);
    return code;
}
