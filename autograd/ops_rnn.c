/* autograd/ops_rnn.c: td_lstm_cell, td_gru_cell: all that follows the products of one time step, in one pass; so are the gradients.
 *
 * The activated gates are kept once (a GRU's with the hidden side of its candidate beside them); the states are saved as the tensors that they are
 * anyway, and tanh(c') is computed again. Where no gradient will be asked for nothing is kept.
 */
#include "ops_shared.h"

/* Inputs a and b must be (N, k*H) and (N, H); messages name them. 0, or the sentence. */
static int check_pair(td_call *c, int a, const char *a_name, int64_t k, int b, const char *b_name)
{
    const td_shape s = td_call_input_shape(c, a), t = td_call_input_shape(c, b);
    char st[128], tt[128];
    if (t.ndim != 2)
        return td_call_error(c, TD_ERR_SHAPE, "%s has shape %s, expected (N,H)", b_name, td__shape_text(t, tt));
    if (s.ndim != 2 || s.dim[0] != t.dim[0] || s.dim[1] != k * t.dim[1])
        return td_call_error(c, TD_ERR_SHAPE, "%s has shape %s, expected (%lld,%lld): N rows of %lld gates for %s %s", a_name, td__shape_text(s, st),
                             (long long)t.dim[0], (long long)(k * t.dim[1]), (long long)k, b_name, td__shape_text(t, tt));
    return 0;
}

static int check_dtypes(td_call *c, const char *first)
{
    int code = td__op_float(c, 0, first);
    for (int i = 1; i < (int)td_call_inputs(c) && !code; i++)
        code = td__op_same_dtype(c, 0, i);
    return code;
}

static bool any_grad(const td_call *c)
{
    bool any = false;
    for (int i = 0; i < (int)td_call_inputs(c); i++)
        any |= td_call_needs_grad(c, i);
    return any;
}

/* *act: (N, 4H) for the gradients, or NULL where none will be asked for. */
static int gates_to_keep(const td_call *c, const td_tensor *state, td_tensor **act)
{
    *act = any_grad(c) ? td__op_temp(state, TD_SHAPE(state->shape.dim[0], 4 * state->shape.dim[1])) : NULL;
    return *act && (*act)->poisoned ? td__pending() : 0;
}

static void *pointer(const td_tensor *x)
{
    return x ? td__ptr(x) : NULL;
}

/* ---- LSTM: gates, c -> h', c' ------------------------------------------------------------------------------------------------------- */

static int lstm_infer(td_call *c)
{
    int code = check_dtypes(c, "gates");
    if (!code)
        code = check_pair(c, 0, "gates", 4, 1, "c");
    for (int i = 0; i < 2 && !code; i++)
        code = td_call_infer(c, i, td_call_input_shape(c, 1), td_dtype_of(td_call_input(c, 1)));
    return code;
}

static int lstm_run(td_call *c)
{
    td_tensor *gates = td_call_input(c, 0), *old = td_call_input(c, 1), *act = NULL;
    int code = td__need("td_lstm_cell", gates, lstm_cell);
    if (!code)
        code = gates_to_keep(c, old, &act);
    if (code)
        return code;
    const td_shape s = old->shape;
    td_tensor *h = td_call_output(c, 0), *next = td_call_output(c, 1);
    td__kernels(h)->lstm_cell(h->dtype, s.dim[0], s.dim[1], td__ptr(h), td__ptr(next), pointer(act), td__ptr(gates), td__ptr(old));
    if (act) {
        td_call_save(c, act);
        td_call_save(c, old);
        td_call_save(c, next);
    }
    return 0;
}

static int lstm_grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *act = td_call_saved(c, 0), *old = td_call_saved(c, 1), *next = td_call_saved(c, 2);
    int code = td__need("td_lstm_cell", act, lstm_cell_grad);
    if (code)
        return code;
    td__kernels(act)->lstm_cell_grad(act->dtype, old->shape.dim[0], old->shape.dim[1], pointer(slot[0].into), pointer(slot[1].into), pointer(g[0]),
                                     pointer(g[1]), td__ptr(act), td__ptr(old), td__ptr(next), slot[0].add, slot[1].add);
    return 0;
}

const td_op td__op_lstm_cell = { .name = "lstm_cell", .infer = lstm_infer, .run = lstm_run, .grad = lstm_grad, .n_outputs = 2, .flags = TD_OP_LOW };

void td_lstm_cell(td_tensor *gates, td_tensor *c, td_tensor **h_out, td_tensor **c_out)
{
    TD_ENTER();
    td_tensor *out[TD_OP_MAX_OUTPUTS];
    td_tensor *in[] = { gates ? td_contiguous(gates) : NULL, c ? td_contiguous(c) : NULL };
    td_apply_n(&td__op_lstm_cell, in, 2, NULL, out);
    if (h_out)
        *h_out = out[0];
    if (c_out)
        *c_out = out[1];
}

/* ---- GRU: gi, gh, h -> h' ------------------------------------------------------------------------------------------------------------- */

static int gru_infer(td_call *c)
{
    int code = check_dtypes(c, "gi");
    if (!code)
        code = check_pair(c, 0, "gi", 3, 2, "h");
    if (!code)
        code = check_pair(c, 1, "gh", 3, 2, "h");
    return code ? code : td_call_infer(c, 0, td_call_input_shape(c, 2), td_dtype_of(td_call_input(c, 2)));
}

static int gru_run(td_call *c)
{
    td_tensor *gi = td_call_input(c, 0), *gh = td_call_input(c, 1), *h = td_call_input(c, 2), *out = td_call_output(c, 0), *act = NULL;
    int code = td__need("td_gru_cell", gi, gru_cell);
    if (!code)
        code = gates_to_keep(c, h, &act);
    if (code)
        return code;
    td__kernels(out)->gru_cell(out->dtype, h->shape.dim[0], h->shape.dim[1], td__ptr(out), pointer(act), td__ptr(gi), td__ptr(gh), td__ptr(h));
    if (act) {
        td_call_save(c, act);
        td_call_save(c, h);
    }
    return 0;
}

static int gru_grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    td_tensor *act = td_call_saved(c, 0), *h = td_call_saved(c, 1);
    int code = td__need("td_gru_cell", act, gru_cell_grad);
    if (code)
        return code;
    td__kernels(act)->gru_cell_grad(act->dtype, h->shape.dim[0], h->shape.dim[1], pointer(slot[0].into), pointer(slot[1].into),
                                    pointer(slot[2].into), td__ptr(g[0]), td__ptr(act), td__ptr(h), slot[0].add, slot[1].add, slot[2].add);
    return 0;
}

const td_op td__op_gru_cell = { .name = "gru_cell", .infer = gru_infer, .run = gru_run, .grad = gru_grad, .flags = TD_OP_LOW };

td_tensor *td_gru_cell(td_tensor *gi, td_tensor *gh, td_tensor *h)
{
    TD_ENTER();
    td_tensor *in[] = { gi ? td_contiguous(gi) : NULL, gh ? td_contiguous(gh) : NULL, h ? td_contiguous(h) : NULL };
    return td_apply(&td__op_gru_cell, in, 3, NULL);
}
