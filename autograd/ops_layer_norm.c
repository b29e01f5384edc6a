/* autograd/ops_layer_norm.c: td_layer_norm, td_rms_norm, td_group_norm: each sample is normalised by itself.
 *
 * Layer norm and RMS norm see rows (the last dimensions are one); a group norm's rows are groups of channels. 1/std of every row, and the mean
 * where there is one, are saved with x; nothing else of x's size is. Without elements all gradients are zero.
 *
 * Where the device computes in 16 bits x may have them, or the result alone (`low`), or x beside an f32 result (inside TD_AUTOCAST). The kernels take
 * w and b in f32 then: 16-bit ones, which no module has, are copied.
 */
#include "ops_image.h"
#include "ops_shared.h"

/* dims: how many of the last dimensions are one row */
typedef struct { int dims; double eps; td_dtype low; bool to_low; } rows_attr;   /* to_low: the result in `low`                    */
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
    int code = 0;
    td_dtype first = td_dtype_of(td_call_input(call, 0));
    bool meet = td__call_mixed(call) && t && t->dtype != TD_F64 && first != TD_F64;   /* and are copied to f32               */
    if (t && !meet && t->dtype != first)
        code = td_call_error(call, TD_ERR_DTYPE, "%s is %s, expected %s as x", name[i], td_dtype_name(t->dtype), td_dtype_name(first));
    if (code || !t || td__shape_equal(t->shape, want))
        return code;
    return td_call_error(call, TD_ERR_SHAPE, "%s has shape %s, expected %s, %s of x %s", name[i], td__shape_text(t->shape, tt),
                         td__shape_text(want, st), what, td__shape_text(td_call_input_shape(call, 0), xt));
}

/* Two numbers for each row; both poison-free or an error. Without a mean that one stays NULL. */
static int row_numbers(td_tensor *x, int64_t rows, bool centre, td_tensor **mean, td_tensor **rstd)
{
    *mean = centre ? td__op_stat(x, (td_shape){ 1, { rows } }) : NULL;
    *rstd = td__op_stat(x, (td_shape){ 1, { rows } });
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

static td_dtype result_dtype(const td_call *call)
{
    return td__call_mixed(call) ? TD_F32 : td_call_input(call, 0)->dtype;
}

/* w or b as the kernels take it, NULL for NULL; the caller unrefs. Poison after td__fail. */
static td_tensor *affine(td_tensor *t)
{
    if (!t || !td__is_half(t->dtype)) {
        if (t)
            td__tensor_ref(t);
        return t;
    }
    td_tensor *wide = td__tensor_new(t->shape, TD_F32, td_device_of(t));
    if (!wide->poisoned && td__copy(wide, t, false)) {
        td__tensor_unref(wide);
        return td__poison();
    }
    return wide;
}

/* Where the gradient of w or b goes: the slot, or an f32 table that affine_grad_done rounds into it. */
static td_tensor *affine_grad(const td_grad_slot *slot)
{
    td_tensor *into = slot->into;
    if (!into || !td__is_half(into->dtype))
        return into;
    return td__tensor_new(into->shape, TD_F32, td_device_of(into));
}

static int affine_grad_done(const td_grad_slot *slot, td_tensor *made, int code)
{
    if (made == slot->into)
        return code;
    code = code ? code : td__copy(slot->into, made, slot->add);
    td__tensor_unref(made);
    return code;
}

static bool poisoned(const td_tensor *t)
{
    return t && t->poisoned;
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
    int code = td__op_float(call, 0, "x");
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
    return td_call_infer(call, 0, x, a->to_low ? a->low : result_dtype(call));
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
    td_tensor *out = td_call_output(call, 0), *w = affine(td_call_input(call, 1)), *b = affine(td_call_input(call, 2));
    if (poisoned(w) || poisoned(b))
        code = td__pending();
    else
        td__kernels(x)->layer_norm(x->dtype, out->dtype, rows, n, td__ptr(out), td__image_ptr(mean), td__ptr(rstd), td__ptr(x), td__image_ptr(w),
                                   td__image_ptr(b), a->eps);
    td__tensor_unref(w);
    td__tensor_unref(b);
    if (code) {
        td__tensor_unref(mean);
        td__tensor_unref(rstd);
        return code;
    }
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
    td_tensor *x = td_call_input(call, 0), *w = affine(td_call_input(call, 1)), *gw = affine_grad(&in[1]), *gb = affine_grad(&bias);
    if (poisoned(w) || poisoned(gw) || poisoned(gb)) {
        code = td__pending();
    } else {
        const td_dtype t = x ? x->dtype : g->dtype;                    /* without x only gb is wanted                             */
        td__kernels(g)->layer_norm_grad(t, g->dtype, rows, n, td__image_ptr(in[0].into), td__image_ptr(gw), td__image_ptr(gb), td__ptr(g),
                                        td__image_ptr(x), td__image_ptr(w), td__image_ptr(mean), td__ptr(td_call_saved(call, 0)), in[0].add,
                                        gw == in[1].into && in[1].add, gb == bias.into && bias.add);
        code = td__image_done(before);
    }
    td__tensor_unref(w);
    code = affine_grad_done(&in[1], gw, code);
    return affine_grad_done(&bias, gb, code);
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
                                  .optional = 1u << 1 | 1u << 2, .flags = TD_OP_HIGH | TD__OP_WIDE };

static int rms_run(td_call *call)
{
    return run_rows(call, "td_rms_norm", false);
}

static int rms_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    return grad_rows(call, "td_rms_norm", grad_out[0], in, false);
}

const td_op td__op_rms_norm = { .name = "rms_norm", .infer = rows_infer, .run = rms_run, .grad = rms_grad, .attr_size = sizeof(rows_attr),
                                .optional = 1u << 1, .flags = TD_OP_HIGH | TD__OP_WIDE };

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
    int code = td__op_float(call, 0, "x");
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
    td_tensor *w = affine(td_call_input(call, 1)), *b = affine(td_call_input(call, 2));
    if (poisoned(w) || poisoned(b))
        code = td__pending();
    else
        td__kernels(x)->group_norm(x->dtype, n, c, inner, a->groups, td__ptr(td_call_output(call, 0)), td__ptr(mean), td__ptr(rstd), td__ptr(x),
                                   td__image_ptr(w), td__image_ptr(b), a->eps);
    td__tensor_unref(w);
    td__tensor_unref(b);
    if (code) {
        td__tensor_unref(mean);
        td__tensor_unref(rstd);
        return code;
    }
    save(call, mean, rstd);
    return 0;
}

static int group_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    const group_attr *a = td_call_attr(call);
    td_tensor *g = grad_out[0], *x = td_call_input(call, 0);
    int64_t n, c, inner;
    group_sizes(call, &n, &c, &inner);
    int code = td__need("td_group_norm", g, group_norm_grad), before = td__pending();
    if (code)
        return code;
    td_tensor *w = affine(td_call_input(call, 1)), *gw = affine_grad(&in[1]), *gb = affine_grad(&in[2]);
    if (poisoned(w) || poisoned(gw) || poisoned(gb)) {
        code = td__pending();
    } else {
        td__kernels(g)->group_norm_grad(g->dtype, n, c, inner, a->groups, td__image_ptr(in[0].into), td__image_ptr(gw), td__image_ptr(gb), td__ptr(g),
                                        td__image_ptr(x), td__image_ptr(w), td__ptr(td_call_saved(call, 1)), td__ptr(td_call_saved(call, 0)), in[0].add,
                                        gw == in[1].into && in[1].add, gb == in[2].into && in[2].add);
        code = td__image_done(before);
    }
    td__tensor_unref(w);
    code = affine_grad_done(&in[1], gw, code);
    return affine_grad_done(&in[2], gb, code);
}

const td_op td__op_group_norm = { .name = "group_norm", .infer = group_infer, .run = group_run, .grad = group_grad, .attr_size = sizeof(group_attr),
                                  .optional = 1u << 1 | 1u << 2, .flags = TD_OP_HIGH };

/* ---- public ------------------------------------------------------------------------------------------------------------------------ */

td_tensor *td_layer_norm(td_tensor *x, td_tensor *w, td_tensor *b, int n_dims, double eps)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w), td__image_arg(b) };
    return td_apply(&td__op_layer_norm, in, 3, &(rows_attr){ .dims = n_dims, .eps = eps });
}

/* In one pass where the device computes in 16 bits; else, and for a dtype that x has already, by a cast. */
static bool at_once(const td_tensor *x, td_dtype dtype)
{
    return x && !x->poisoned && x->dtype == TD_F32 && td__is_half(dtype) && x->storage->ops->computes_half;
}

td_tensor *td_layer_norm_to(td_tensor *x, td_tensor *w, td_tensor *b, int n_dims, double eps, td_dtype dtype)
{
    TD_ENTER();
    if (!at_once(x, dtype))
        return td_cast(td_layer_norm(x, w, b, n_dims, eps), dtype);
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w), td__image_arg(b) };
    return td_apply(&td__op_layer_norm, in, 3, &(rows_attr){ n_dims, eps, dtype, true });
}

td_tensor *td_rms_norm_to(td_tensor *x, td_tensor *w, double eps, td_dtype dtype)
{
    TD_ENTER();
    if (!at_once(x, dtype))
        return td_cast(td_rms_norm(x, w, eps), dtype);
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w) };
    return td_apply(&td__op_rms_norm, in, 2, &(rows_attr){ 1, eps, dtype, true });
}

td_tensor *td_rms_norm(td_tensor *x, td_tensor *w, double eps)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w) };
    return td_apply(&td__op_rms_norm, in, 2, &(rows_attr){ .dims = 1, .eps = eps });
}

td_tensor *td_group_norm(td_tensor *x, int64_t groups, td_tensor *w, td_tensor *b, double eps)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_arg(x), td__image_arg(w), td__image_arg(b) };
    return td_apply(&td__op_group_norm, in, 3, &(group_attr){ groups, eps });
}
