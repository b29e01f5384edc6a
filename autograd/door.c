/* autograd/door.c: the one door through which every operation goes.
 *
 * Check the inputs, let the record infer (and so allocate) its outputs, run it, record it where gradients will be asked for, and hand the
 * outputs to the innermost scope. Poison passes through without a further error. A pending error does not stop a forward: only
 * what would act on its results refuses.
 */
#include "capture.h"
#include <string.h>

/* The stamp of an output: that of its stamped inputs. Two stamps of one value are one (two losses over the same batch). */
static int divisor_of(td_call *call, td_tensor **divisor)
{
    *divisor = NULL;
    for (int i = 0; i < call->n_in; i++) {
        td_tensor *d = call->in[i] ? call->in[i]->divisor : NULL;
        if (!d || d == *divisor)
            continue;
        if (!*divisor) {
            *divisor = d;
            continue;
        }
        double a, b;                               /* only ignored targets make numbers that the device alone knows             */
        if (!td__number_of(*divisor, &a))
            a = td_item(*divisor);
        if (!td__number_of(d, &b))
            b = td_item(d);
        if (a != b)
            return td_call_error(call, TD_ERR_STATE, "losses with the divisors %.17g and %.17g meet, and their sum has no single weight; take "
                                 "the stamps off (td_sum(loss, NULL, 0, false)) and say the weight with td_backward_weighted", a, b);
    }
    return 0;
}

static int check_made(td_call *call)
{
    for (int i = 0; i < call->n_out; i++)
        if (!call->out[i])
            return td_call_error(call, TD_ERR_INTERNAL, "infer left output %d undefined", i);
    return 0;
}

/* A replay's infer: the outputs are there. Where the operation works on f32 copies it writes to some, which are rounded to the output. */
static int same_outputs(td_call *call, const td__half *half)
{
    for (int i = 0; i < call->n_out; i++) {
        td_tensor *x = call->again[i];
        if (i == 0) {
            td__tensor_unref(x->divisor);      /* stamped anew                                                           */
            x->divisor = NULL;
        }
        if (half->in && td__is_half(x->dtype))
            x = td__tensor_new_as(x->shape, TD_F32, call->device, td__channels_last(x));
        else
            td__tensor_ref(x);
        call->out[i] = x;
        if (x->poisoned)
            return td__pending() ? td__pending() : TD_ERR_MEMORY;
    }
    return 0;
}

/* infer and run. Operations called inside record nothing; handles that they leave behind die here. */
static int perform(td_call *call)
{
    const td_op *op = call->op;
    bool was = td__tape_now.grad_off;
    td_dtype autocast = td__tape_now.autocast;
    td__half half;
    const td_memory_category memory = td__memory_now;
    td__tape_now.grad_off = true;
    td__tape_now.autocast = TD_F32;
    td__memory_now = memory ? memory : TD_MEMORY_ACTIVATIONS;
    int code = td__half_begin(call, &half);
    code = code ? code : call->again ? same_outputs(call, &half) : op->infer(call);
    if (!code && !(code = check_made(call)) && op->run && !call->view) {
        td_scope scope = td_scope_begin();
        code = op->run(call);
        td_scope_end(&scope);
        code = code ? code : call->error;
    }
    code = td__half_end(call, &half, code);
    td__tape_now.grad_off = was;
    td__tape_now.autocast = autocast;
    td__memory_now = memory;
    if (code && !td__pending())
        td_call_error(call, code < 0 ? code : TD_ERR_INTERNAL, "failed with code %d and no sentence", code);
    if (!code && op->flags & TD_OP_KEEPS_DIVISOR && !call->out[0]->divisor) {
        td_tensor *divisor;
        code = divisor_of(call, &divisor);
        if (divisor && !code)
            td_call_stamp(call, divisor);
    }
    return code;
}

static int check_inputs(td_call *shown, td_tensor *const *in, size_t n, bool *poisoned, bool *needs)
{
    const td_op *op = shown->op;
    const td_tensor *first = NULL;
    *poisoned = *needs = false;
    if (n > TD_OP_MAX_INPUTS)
        return td_call_error(shown, TD_ERR_ARGUMENT, "%zu inputs, at most %d are possible", n, TD_OP_MAX_INPUTS);
    if (op->n_outputs < 0 || op->n_outputs > TD_OP_MAX_OUTPUTS)
        return td_call_error(shown, TD_ERR_ARGUMENT, "the record says %d outputs, at most %d are possible", op->n_outputs, TD_OP_MAX_OUTPUTS);
    for (size_t i = 0; i < n; i++)
        *poisoned |= in[i] && in[i]->poisoned;
    if (*poisoned)
        return 0;
    for (size_t i = 0; i < n; i++) {
        const td_tensor *x = in[i];
        if (!x) {
            if (op->optional >> i & 1)
                continue;
            return td_call_error(shown, TD_ERR_ARGUMENT, "input %zu is NULL", i);
        }
        if (!first)
            first = x;
        else if (!td__device_equal(x->storage->device, first->storage->device)) {
            char a[24], b[24];
            return td_call_error(shown, TD_ERR_DEVICE, "inputs are on %s and %s; td_to moves one to the other",
                                 td__device_text(first->storage->device, a), td__device_text(x->storage->device, b));
        }
        *needs |= td_needs_grad(x);
    }
    shown->device = first ? first->storage->device : td_device_default();
    return 0;
}

static void apply(const td_op *op, td_tensor *const *in, size_t n, const void *attr, td_tensor **outputs)
{
    int n_out = op->n_outputs ? op->n_outputs : 1;
    for (int i = 0; i < n_out && i < TD_OP_MAX_OUTPUTS; i++)
        outputs[i] = td__poison();
    td_call here;
    here.op = op;
    here.in = NULL;
    bool poisoned, needs;
    td_tensor *cast[TD_OP_MAX_INPUTS];
    if (check_inputs(&here, in, n, &poisoned, &needs) || poisoned)
        return;
    bool mixed = false;
    if (td__tape_now.autocast != TD_F32 && td__autocast_inputs(op, &in, n, cast, &mixed))
        return;

    td_call *call = &here;
    bool record = needs && op->grad && !td__tape_now.grad_off;
    if (record) {
        call = td__node_new(op, in, n, attr);
        if (!call)
            return;
        call->device = here.device;
    } else {
        here.attr = attr;
        here.n_saved = 0;
        here.room_saved = SAVED_HERE;
        here.saved = here.saved_here;
        here.recording = here.view = here.freed = here.half = here.shared = here.captured = here.light = here.over = false;
        here.again = NULL;
        here.error = 0;
        here.dest = NULL;
        memset(here.out, 0, sizeof here.out);
    }
    static td_tensor *const none[1];
    call->mixed = mixed;
    call->in = in ? in : none;                 /* not NULL: infer and run are under way */
    call->n_in = (int)n;
    call->n_out = n_out;
    if (td__tape_now.rerun)
        td__checkpoint_note(op);
    const bool recorded = td__recording_now;
    td__forward *forward = recorded ? td__forward_begin(call->in, n) : NULL;
    int code = perform(call);
    if (td__anomaly && !code && td__anomaly_wanted())
        code = td__anomaly_forward(call, call->in);
    for (int i = 0; i < n_out; i++) {
        td_tensor *x = call->out[i];
        call->out[i] = NULL;
        if (code) {
            td__tensor_unref(x);
            continue;
        }
        if (record && td__keeps_channels_last(x))
            call->out_last |= (uint8_t)(1u << i);
        if (record && x->dtype != TD_I64 && x->dtype != TD_I32 && x->dtype != TD_U8 && x->dtype != TD_BOOL) {
            td__node_ref(call);
            x->graph = (void *)((td__graph)call | (td__graph)i);
        }
        outputs[i] = td__scoped_tensor(x);
    }
    if (recorded)
        td__forward_end(forward, call, call->in, code ? NULL : outputs);
    call->in = NULL;
    if (!record || call->light)
        td__saved_drop(call);
    if (record)
        td__node_unref(call);
}

int td__call_again(td_call *call, td_tensor *const *in, td_tensor *const *out)
{
    td__saved_drop(call);
    call->freed = false;
    if (call->view && !(call->op->flags & TD_OP_KEEPS_DIVISOR))
        return 0;                              /* nothing moves                                                            */
    call->error = 0;
    call->in = in;
    call->again = out;
    int code = perform(call);
    for (int i = 0; i < call->n_out; i++) {
        td__tensor_unref(call->out[i]);
        call->out[i] = NULL;
    }
    call->in = NULL;
    call->again = NULL;
    if (!call->recording || code)
        td__saved_drop(call);
    return code;
}

td_tensor *td_apply(const td_op *op, td_tensor *const *inputs, size_t n, const void *attr)
{
    TD_ENTER();
    td_tensor *outputs[TD_OP_MAX_OUTPUTS] = { td__poison() };
    apply(op, inputs, n, attr, outputs);
    return outputs[0];
}

void td_apply_n(const td_op *op, td_tensor *const *inputs, size_t n, const void *attr, td_tensor **outputs)
{
    TD_ENTER();
    apply(op, inputs, n, attr, outputs);
}
