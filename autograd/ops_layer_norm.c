/* autograd/ops_layer_norm.c: td_layer_norm, td_rms_norm, td_group_norm: each sample is normalised by itself.
 *
 * Layer norm and RMS norm see rows (the last dimensions are one); a group norm's rows are groups of channels. 1/std of every row, and the mean
 * where there is one, are saved with x; nothing else of x's size is. Without elements all gradients are zero.
 */
#include "ops_image.h"
#include "ops_list.h"

/* dims: how many of the last dimensions are one row */
typedef struct { int dims; double eps; } rows_attr;
typedef struct { int64_t groups; double eps; } group_attr;

static int check_eps(td_call *call, double eps)
{
    return eps >= 0 ? 0 : td_call_error(call, TD_ERR_ARGUMENT, "eps is %g, expected at least 0", eps);
}

/* Input i, w or b: x's dtype, and this shape, which is x's `what`. */
static int check_affine(td_call *call, int i, td_shape want, const char *what)
{
    static const char *const name[] = { "x", "w", "b" };
    td_tensor *t = td_call_input(call, i);
    char xt[128], tt[128], st[128];
    int code = t ? td__image_dtype(call, i, name[i]) : 0;
    if (code || !t || td__shape_equal(t->shape, want))
        return code;
    return td_call_error(call, TD_ERR_SHAPE, "%s has shape %s, expected %s, %s of x %s", name[i], td__shape_text(t->shape, tt),
                         td__shape_text(want, st), what, td__shape_text(td_call_input_shape(call, 0), xt));
}

/* Two numbers for each row; both poison-free or an error. Without a mean that one stays NULL. */
static int row_numbers(td_tensor *x, int64_t rows, bool centre, td_tensor **mean, td_tensor **rstd)
{
    *mean = centre ? td__tensor_new((td_shape){ 1, { rows } }, x->dtype, td_device_of(x)) : NULL;
    *rstd = td__tensor_new((td_shape){ 1, { rows } }, x->dtype, td_device_of(x));
    if (!(*mean && (*mean)->poisoned) && !(*rstd)->poisoned)
        return 0;
    td__tensor_unref(*mean);
    td__tensor_unref(*rstd);
    return td__pending();
}

/* rstd, then the mean; x and w where a gradient reads them */
static void save(td_call *call, td_tensor *mean, td_tensor *rstd)
{
    td_call_save(call, rstd);
    td_call_save(call, mean);
    if (td_call_needs_grad(call, 0) || td_call_needs_grad(call, 1))
        td_call_save(call, td_call_input(call, 0));
    if (td_call_needs_grad(call, 0) && td_call_input(call, 1) != td_call_input(call, 0))
        td_call_save(call, td_call_input(call, 1));
}

/* ---- rows: layer norm, RMS norm ------------------------------------------------------------------------------------------------ */

static void row_sizes(const td_call *call, int64_t *rows, int64_t *n)
{
    const rows_attr *a = td_call_attr(call);
    td_shape s = td_call_input_shape(call, 0);
    *rows = *n = 1;
    for (int i = 0; i < s.ndim; i++)
        *(i < s.ndim - a->dims ? rows : n) *= s.dim[i];
}

static int rows_infer(td_call *call)
{
    const rows_attr *a = td_call_attr(call);
    td_shape x = td_call_input_shape(call, 0), last = { a->dims, { 0 } };
    char xt[128];
    int code = td__image_dtype(call, 0, "x");
    if (!code)
        code = check_eps(call, a->eps);
    if (code)
        return code;
    if (a->dims < 1 || a->dims > x.ndim)
        return td_call_error(call, TD_ERR_SHAPE, "the last %d dimensions are to be normalised, x has shape %s: expected 1 to %d of them", a->dims,
                             td__shape_text(x, xt), x.ndim);
    for (int i = 0; i < a->dims; i++)
        last.dim[i] = x.dim[x.ndim - a->dims + i];
    for (int i = 1; i < (int)td_call_inputs(call); i++)
        if ((code = check_affine(call, i, last, a->dims > 1 ? "the last dimensions" : "the last dimension")))
            return code;
    return td_call_infer(call, 0, x, td_dtype_of(td_call_input(call, 0)));
}

static int run_rows(td_call *call, const char *who, bool centre)
{
    const rows_attr *a = td_call_attr(call);
    td_tensor *x = td_call_input(call, 0), *mean, *rstd;
    int64_t rows, n;
    row_sizes(call, &rows, &n);
    int code = td__need(who, x, layer_norm);
    if (!code)
        code = row_numbers(x, rows, centre, &mean, &rstd);
    if (code)
        return code;
    td__kernels(x)->layer_norm(x->dtype, x->dtype, rows, n, td__ptr(td_call_output(call, 0)), td__image_ptr(mean), td__ptr(rstd), td__ptr(x),
                               td__image_ptr(td_call_input(call, 1)), td__image_ptr(td_call_input(call, 2)), a->eps);
    save(call, mean, rstd);
    return 0;
}

static int grad_rows(td_call *call, const char *who, td_tensor *g, td_grad_slot *in, bool centre)
{
    td_tensor *mean = centre ? td_call_saved(call, 1) : NULL;
    td_grad_slot bias = td_call_inputs(call) > 2 ? in[2] : (td_grad_slot){ 0 };
    int64_t rows, n;
    row_sizes(call, &rows, &n);
    int code = td__need(who, g, layer_norm_grad), before = td__pending();
    if (code)
        return code;
    td_tensor *x = td_call_input(call, 0), *w = td_call_input(call, 1);
    td__kernels(g)->layer_norm_grad(g->dtype, g->dtype, rows, n, td__image_ptr(in[0].into), td__image_ptr(in[1].into), td__image_ptr(bias.into), td__ptr(g),
                                    td__image_ptr(x), td__image_ptr(w), td__image_ptr(mean), td__ptr(td_call_saved(call, 0)), in[0].add, in[1].add,
                                    bias.add);
    return td__image_done(before);
}

static int layer_run(td_call *call)
{
    return run_rows(call, "td_layer_norm", true);
}

static int layer_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    return grad_rows(call, "td_layer_norm", grad_out[0], in, true);
}

const td_op td__op_layer_norm = { .name = "layer_norm", .infer = rows_infer, .run = layer_run, .grad = layer_grad, .attr_size = sizeof(rows_attr),
                                  .optional = 1u << 1 | 1u << 2, .flags = TD_OP_HIGH };

static int rms_run(td_call *call)
{
    return run_rows(call, "td_rms_norm", false);
}

static int rms_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    return grad_rows(call, "td_rms_norm", grad_out[0], in, false);
}

const td_op td__op_rms_norm = { .name = "rms_norm", .infer = rows_infer, .run = rms_run, .grad = rms_grad, .attr_size = sizeof(rows_attr),
                                .optional = 1u << 1, .flags = TD_OP_HIGH };

/* ---- groups of channels ------------------------------------------------------------------------------------------------------------ */

static void group_sizes(const td_call *call, int64_t *n, int64_t *c, int64_t *inner)
{
    td_shape s = td_call_input_shape(call, 0);
    *n = s.dim[0], *c = s.dim[1], *inner = 1;
    for (int i = 2; i < s.ndim; i++)
        *inner *= s.dim[i];
}

static int group_infer(td_call *call)
{
    const group_attr *a = td_call_attr(call);
    td_shape x = td_call_input_shape(call, 0);
    char xt[128];
    int code = td__image_dtype(call, 0, "x");
    if (!code)
        code = check_eps(call, a->eps);
    if (code)
        return code;
    if (x.ndim < 2)
        return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, expected at least 2 dimensions (N,C,…)", td__shape_text(x, xt));
    if (a->groups < 1 || x.dim[1] % a->groups != 0)
        return td_call_error(call, TD_ERR_ARGUMENT, "%lld groups do not divide the %lld channels of x %s", (long long)a->groups,
                             (long long)x.dim[1], td__shape_text(x, xt));
    for (int i = 1; i < 3; i++)
        if ((code = check_affine(call, i, TD_SHAPE(x.dim[1]), "the channels")))
            return code;
    return td_call_infer(call, 0, x, td_dtype_of(td_call_input(call, 0)));
}

static int group_run(td_call *call)
{
    const group_attr *a = td_call_attr(call);
    td_tensor *x = td_call_input(call, 0), *mean, *rstd;
    int64_t n, c, inner;
    group_sizes(call, &n, &c, &inner);
    int code = td__need("td_group_norm", x, group_norm);
    if (!code)
        code = row_numbers(x, n * a->groups, true, &mean, &rstd);
    if (code)
        return code;
    td__kernels(x)->group_norm(x->dtype, n, c, inner, a->groups, td__ptr(td_call_output(call, 0)), td__ptr(mean), td__ptr(rstd), td__ptr(x),
                               td__image_ptr(td_call_input(call, 1)), td__image_ptr(td_call_input(call, 2)), a->eps);
    save(call, mean, rstd);
    return 0;
}

static int group_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    const group_attr *a = td_call_attr(call);
    td_tensor *g = grad_out[0], *x = td_call_input(call, 0), *w = td_call_input(call, 1);
    int64_t n, c, inner;
    group_sizes(call, &n, &c, &inner);
    int code = td__need("td_group_norm", g, group_norm_grad), before = td__pending();
    if (code)
        return code;
    td__kernels(g)->group_norm_grad(g->dtype, n, c, inner, a->groups, td__image_ptr(in[0].into), td__image_ptr(in[1].into),
                                    td__image_ptr(in[2].into), td__ptr(g), td__image_ptr(x), td__image_ptr(w), td__ptr(td_call_saved(call, 1)),
                                    td__ptr(td_call_saved(call, 0)), in[0].add, in[1].add, in[2].add);
    return td__image_done(before);
}

const td_op td__op_group_norm = { .name = "group_norm", .infer = group_infer, .run = group_run, .grad = group_grad, .attr_size = sizeof(group_attr),
                                  .optional = 1u << 1 | 1u << 2, .flags = TD_OP_HIGH };

/* ---- public ------------------------------------------------------------------------------------------------------------------------ */

td_tensor *td_layer_norm(td_tensor *x, td_tensor *w, td_tensor *b, int n_dims, double eps)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w), td__image_arg(b) };
    return td_apply(&td__op_layer_norm, in, 3, &(rows_attr){ n_dims, eps });
}

td_tensor *td_rms_norm(td_tensor *x, td_tensor *w, double eps)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w) };
    return td_apply(&td__op_rms_norm, in, 2, &(rows_attr){ 1, eps });
}

td_tensor *td_group_norm(td_tensor *x, int64_t groups, td_tensor *w, td_tensor *b, double eps)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w), td__image_arg(b) };
    return td_apply(&td__op_group_norm, in, 3, &(group_attr){ groups, eps });
}
