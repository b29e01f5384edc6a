/* autograd/ops_dropout.c: td_dropout. The mask is never stored: the kernel makes it again from numbers (tensor/cpu/dropout.c says how).
 *
 * What grad needs is the sample numbers and (seed, step, call, first sample) of the forward. They are copied: the loader's batch, the step
 * and the call counter move on. They are read in run, not in the public function, so that a replay draws with that step's numbers.
 */
#include "ops_image.h"
#include "ops_list.h"
#include "capture.h"
#include <string.h>

enum { SEED, STEP, CALL, FIRST, AT, NUMBERS };

static int64_t dropout_rows(const td_call *call)
{
    td_shape s = td_call_input_shape(call, 0);
    return s.ndim > 0 ? s.dim[0] : 1;
}

/* How many samples `rows` rows belong to; negative after the sentence. */
static int64_t samples_of(td_call *call, td_shape x, int64_t rows, const td_tensor *ids)
{
    int64_t samples = ids ? ids->shape.dim[0] : rows;
    char xt[128];
    if (samples == 0 ? rows != 0 : rows % samples != 0)
        return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, and its first dimension is not a multiple of the %lld current samples (td_samples)",
                             td__shape_text(x, xt), (long long)samples);
    return samples;
}

static int dropout_infer(td_call *call)
{
    const double p = *(const double *)td_call_attr(call);
    const td_tensor *ids;
    int64_t first, rows = dropout_rows(call), samples;
    int code = td__is_half(td_call_input(call, 0)->dtype) ? 0 : td__image_dtype(call, 0, "x");
    if (code)
        return code;
    if (!(p >= 0 && p < 1))
        return td_call_error(call, TD_ERR_ARGUMENT, "p is %g, expected 0 <= p < 1", p);
    td__samples_now(rows, &ids, &first);
    samples = samples_of(call, td_call_input_shape(call, 0), rows, ids);
    return samples < 0 ? (int)samples : td_call_infer(call, 0, td_call_input_shape(call, 0), td_dtype_of(td_call_input(call, 0)));
}

/* `samples` samples of `size` elements each: out (=|+=) mask * x / (1-p) */
static void dropout(const td_call *call, td_tensor *out, td_tensor *x, int64_t samples, int64_t size, const int64_t *number, const int64_t *ids,
                    int64_t position, bool add)
{
    if (samples > 0)
        td__kernels(x)->dropout(x->dtype, samples, size, 1, td__ptr(out), td__ptr(x), ids,
                                (td_draw){ (uint64_t)number[SEED], number[STEP], number[CALL], number[FIRST], (const int64_t *)(uintptr_t)number[AT], position },
                                *(const double *)td_call_attr(call), add);
}

/* What this call draws from, and where a graph of the device will find it (0: there is none). */
static void draw(int64_t rows, int64_t *number, const td_tensor **ids)
{
    number[SEED] = (int64_t)td__random_seed();
    number[STEP] = td_step_get();
    number[CALL] = td__random_call_index();
    td__samples_now(rows, ids, &number[FIRST]);
    number[AT] = (int64_t)(uintptr_t)td__graph_slot(number, AT * sizeof *number);
}

int td__dropout_host(int64_t rows)
{
    int64_t number[NUMBERS];
    const td_tensor *ids;
    draw(rows, number, &ids);
    if (ids && number[AT])
        td__graph_tensor((td_tensor *)(uintptr_t)ids);
    return td__pending();
}

/* The call's own copy of the current samples, one reference. Poison after td__fail. */
static td_tensor *own_ids(td_device device, const td_tensor *ids, const int64_t *number)
{
    td_tensor *from = (td_tensor *)(uintptr_t)ids;
    if (number[AT]) {
        td_tensor *copy = td__graph_tensor(from);
        td__tensor_ref(copy);
        return copy;
    }
    td_tensor *copy = td__tensor_new(ids->shape, TD_I64, device);
    if (copy->poisoned || !td__copy(copy, from, false))
        return copy;
    td__tensor_unref(copy);
    return td__poison();
}

int td__dropout_draw(td_call *call, td_shape x, td__drawn *d)
{
    const td_tensor *ids;
    const int64_t rows = x.ndim > 0 ? x.dim[0] : 1;
    *d = (td__drawn){ call, NULL, NULL, 0, 0 };
    td_tensor *numbers = td__tensor_new((td_shape){ 1, { NUMBERS } }, TD_I64, (td_device){ TD_CPU, 0 }), *copy = NULL;
    if (numbers->poisoned)
        return TD_ERR_MEMORY;
    const void *site = td__site;                       /* an error names the call of this operation, not of what draws            */
    draw(rows, td__ptr(numbers), &ids);
    td__site = site;
    d->samples = samples_of(call, x, rows, ids);
    copy = d->samples >= 0 && ids ? own_ids(call->device, ids, td__ptr(numbers)) : NULL;
    if (d->samples < 0 || (copy && copy->poisoned)) {
        td__tensor_unref(numbers);
        return td__pending();
    }
    d->number = td__ptr(numbers);
    d->ids = copy ? td__ptr(copy) : NULL;
    d->size = d->samples ? td__shape_numel(x) / d->samples : 0;
    td_call_save(call, numbers);
    td_call_save(call, copy);
    return call->error;
}

void td__dropout_part(const td__drawn *d, td_tensor *out, td_tensor *x, int64_t low, int64_t n)
{
    const int64_t sample = low / d->size, position = low % d->size;
    int64_t number[NUMBERS];
    memcpy(number, d->number, sizeof number);
    number[FIRST] += sample;
    dropout(d->call, out, x, n < d->size ? 1 : n / d->size, n < d->size ? n : d->size, number, d->ids ? d->ids + sample : NULL, position, false);
}

static int dropout_run(td_call *call)
{
    td_tensor *x = td_call_input(call, 0);
    td__drawn d;
    int code = td__need("td_dropout", x, dropout);
    code = code ? code : td__dropout_draw(call, x->shape, &d);
    if (!code)
        dropout(call, td_call_output(call, 0), x, d.samples, d.size, d.number, d.ids, 0, false);
    return code;
}

static int dropout_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *numbers = td_call_saved(call, 0), *ids = td_call_saved(call, 1);
    int code = td__need("td_dropout", grad_out[0], dropout);
    if (code || !in[0].into)
        return code;
    const int64_t rows = dropout_rows(call), samples = ids ? ids->shape.dim[0] : rows;
    dropout(call, in[0].into, grad_out[0], samples, samples ? td__shape_numel(grad_out[0]->shape) / samples : 0, td__ptr(numbers), ids ? td__ptr(ids) : NULL, 0,
            in[0].add);
    return 0;
}

const td_op td__op_dropout = { .name = "dropout", .infer = dropout_infer, .run = dropout_run, .grad = dropout_grad, .attr_size = sizeof(double),
                               .flags = TD_OP_RANDOM };

td_tensor *td_dropout(td_tensor *x, double p, bool train)
{
    TD_ENTER();
    if (!train && x && p >= 0 && p < 1)   /* a wrong p is an error in both modes                                               */
        return x;
    td_tensor *in[] = { td__image_arg(x) };
    return td_apply(&td__op_dropout, in, 1, &p);
}
