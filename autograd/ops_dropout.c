/* autograd/ops_dropout.c: td_dropout. The mask is never stored: the kernel makes it again from numbers (tensor/cpu/dropout.c says how).
 *
 * What grad needs is the sample numbers and (seed, step, call, first sample) of the forward. They are copied: the loader's batch, the step
 * and the call counter move on. They are read in run, not in the public function, so that a replay draws with that step's numbers.
 */
#include "ops_image.h"
#include "ops_list.h"
#include "capture.h"

enum { SEED, STEP, CALL, FIRST, AT, NUMBERS };

static int64_t dropout_rows(const td_call *call)
{
    td_shape s = td_call_input_shape(call, 0);
    return s.ndim > 0 ? s.dim[0] : 1;
}

static int dropout_infer(td_call *call)
{
    const double p = *(const double *)td_call_attr(call);
    const td_tensor *ids;
    int64_t first, rows = dropout_rows(call);
    int code = td__is_half(td_call_input(call, 0)->dtype) ? 0 : td__image_dtype(call, 0, "x");
    if (code)
        return code;
    if (!(p >= 0 && p < 1))
        return td_call_error(call, TD_ERR_ARGUMENT, "p is %g, expected 0 <= p < 1", p);
    td__samples_now(rows, &ids, &first);
    if (ids) {
        int64_t samples = ids->shape.dim[0];
        char xt[128];
        if (samples == 0 ? rows != 0 : rows % samples != 0)
            return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, and its first dimension is not a multiple of the %lld current samples (td_samples)",
                                 td__shape_text(td_call_input_shape(call, 0), xt), (long long)samples);
    }
    return td_call_infer(call, 0, td_call_input_shape(call, 0), td_dtype_of(td_call_input(call, 0)));
}

/* out (=|+=) mask * x / (1-p) */
static void dropout(const td_call *call, td_tensor *out, td_tensor *x, const int64_t *number, const td_tensor *ids, bool add)
{
    int64_t rows = dropout_rows(call), samples = ids ? ids->shape.dim[0] : rows;
    if (rows == 0)
        return;
    td__kernels(x)->dropout(x->dtype, rows, td__shape_numel(x->shape) / rows, rows / samples, td__ptr(out), td__ptr(x), ids ? td__ptr(ids) : NULL,
                            (td_draw){ (uint64_t)number[SEED], number[STEP], number[CALL], number[FIRST], (const int64_t *)(uintptr_t)number[AT] }, *(const double *)td_call_attr(call), add);
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

static int dropout_run(td_call *call)
{
    td_tensor *x = td_call_input(call, 0), *copy = NULL;
    const td_tensor *ids;
    int code = td__need("td_dropout", x, dropout);
    if (code)
        return code;
    td_tensor *numbers = td__tensor_new((td_shape){ 1, { NUMBERS } }, TD_I64, (td_device){ TD_CPU, 0 });
    if (td_is_poisoned(numbers))
        return td__pending();
    int64_t *number = td__ptr(numbers);
    draw(dropout_rows(call), number, &ids);
    if (ids && number[AT]) {
        copy = td__graph_tensor((td_tensor *)(uintptr_t)ids);
        td__tensor_ref(copy);
        if (copy->poisoned) {
            td__tensor_unref(numbers);
            return td__pending();
        }
    } else if (ids) {
        copy = td__tensor_new(ids->shape, TD_I64, td_device_of(x));
        if (td_is_poisoned(copy) || (code = td__copy(copy, (td_tensor *)(uintptr_t)ids, false))) {
            td__tensor_unref(copy);
            td__tensor_unref(numbers);
            return code ? code : td__pending();
        }
    }
    dropout(call, td_call_output(call, 0), x, number, copy, false);
    td_call_save(call, numbers);
    if (copy)
        td_call_save(call, copy);
    return 0;
}

static int dropout_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *numbers = td_call_saved(call, 0), *ids = td_call_saved(call, 1);
    int code = td__need("td_dropout", grad_out[0], dropout);
    if (code || !in[0].into)
        return code;
    dropout(call, in[0].into, grad_out[0], td__ptr(numbers), ids, in[0].add);
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
