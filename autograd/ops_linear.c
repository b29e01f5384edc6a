/* autograd/ops_linear.c: linear, affine (the weight lies the other way), linear_gelu and mlp.
 *
 * A device may add the bias, compute GELU or sum a gradient's columns within the product (the rows gemm_bias, gemm_gelu_grad, gemm_sums of
 * its table); where it does not, or answers that it cannot, other rows do the same one after the other. Weights' and biases' gradients go
 * straight to their destinations; the sums of a product only where nothing is added to, since the sum would be rounded twice.
 *
 * linear_gelu and mlp are records only where the device fuses them: elsewhere their functions call td_affine, td_linear and td_gelu_tanh, and
 * give the bits of those.
 */
#include "matrices.h"
#include <limits.h>
#include <stdio.h>

typedef struct { bool in_out; } layer_attr;                     /* weights are (I,O), else (O,I)                           */

static int64_t rows_of(td_shape s)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < s.ndim; i++)
        rows *= s.dim[i];
    return rows;
}

static int64_t last_of(td_shape s)
{
    return s.dim[s.ndim - 1];
}

/* ---- infer --------------------------------------------------------------------------------------------------------------------- */

/* What a layer takes, for an error: "input (5,7)" */
static const char *taken(td_call *c, int wi, char text[160])
{
    char shape[128];
    if (wi > 1)
        return "what lies between";
    snprintf(text, 160, "input %s", td__shape_text(td_call_input(c, 0)->shape, shape));
    return text;
}

/* Do inputs wi and wi + 1, weight and bias, fit `features`? *features becomes the layer's. */
static int check_layer(td_call *c, int wi, bool in_out, int64_t *features)
{
    td_tensor *w = td_call_input(c, wi), *b = td_call_input(c, wi + 1);
    char what[160], tw[128], tb[128];
    int code = td__op_same_dtype(c, 0, wi);
    if (!code && b)
        code = td__op_same_dtype(c, 0, wi + 1);
    if (code)
        return code;
    if (w->shape.ndim != 2)
        return td_call_error(c, TD_ERR_SHAPE, "%s and weight %s do not fit: expected (…,I) and %s", taken(c, wi, what), td__shape_text(w->shape, tw),
                             in_out ? "(I,O)" : "(O,I)");
    const int64_t takes = w->shape.dim[in_out ? 0 : 1], gives = w->shape.dim[in_out ? 1 : 0];
    if (*features != takes)
        return td_call_error(c, TD_ERR_SHAPE, "%s has %lld features, weight %s takes %lld", taken(c, wi, what), (long long)*features,
                             td__shape_text(w->shape, tw), (long long)takes);
    if (b && (b->shape.ndim != 1 || b->shape.dim[0] != gives))
        return td_call_error(c, TD_ERR_SHAPE, "bias %s does not fit weight %s: expected (%lld)", td__shape_text(b->shape, tb),
                             td__shape_text(w->shape, tw), (long long)gives);
    if (takes > INT_MAX || gives > INT_MAX)
        return td_call_error(c, TD_ERR_UNSUPPORTED, "weight %s: BLAS takes sizes up to %d", td__shape_text(w->shape, tw), INT_MAX);
    *features = gives;
    return 0;
}

static int infer(td_call *c)
{
    const layer_attr *a = td_call_attr(c);
    td_tensor *x = td_call_input(c, 0), *w = td_call_input(c, 1);
    char tx[128], tw[128];
    int code = td__op_float(c, 0, "the input");
    if (code)
        return code;
    if (x->shape.ndim == 0)
        return td_call_error(c, TD_ERR_SHAPE, "input %s and weight %s do not fit: expected (…,I) and %s", td__shape_text(x->shape, tx),
                             td__shape_text(w->shape, tw), a->in_out ? "(I,O)" : "(O,I)");
    td_shape out = x->shape;
    for (int i = 1; i < (int)td_call_inputs(c) && !code; i += 2)
        code = check_layer(c, i, a->in_out, &out.dim[out.ndim - 1]);
    return code ? code : td_call_infer(c, 0, out, x->dtype);
}

/* ---- one layer forward ------------------------------------------------------------------------------------------------------------ */

/* y = x w + b; with pre (y's number of elements): pre = that, y = gelu_tanh of it. */
static int forward(const char *who, const td__mat *x, td_tensor *w, td_tensor *b, bool in_out, bool gelu, td_tensor *pre, td_tensor *y)
{
    const td_kernels *k = td__kernels(y);
    td__mat mw = { 0 }, my;
    int code = td__mat_open(&mw, w, false);
    const td__mat right = in_out ? mw : td__mat_flipped(&mw);
    const bool dense = !b || b->shape.dim[0] <= 1 || b->stride[0] == 1;
    bool done = false;
    if (!code && k->gemm_bias && dense && (b || gelu))
        done = k->gemm_bias(y->dtype, x->trans, right.trans, x->rows, right.cols, x->cols, td__ptr(x->x), x->ld, td__ptr(mw.x), right.ld,
                            b ? td__ptr(b) : NULL, gelu, pre ? td__ptr(pre) : NULL, td__ptr(y));
    td_tensor *sum = y, *kept = NULL;                           /* where the product goes                                 */
    if (!code && !done && gelu) {
        sum = pre ? pre : (kept = td__op_temp(y, y->shape));
        code = sum->poisoned ? td__pending() : td__need(who, y, gelu_tanh);
    }
    if (!code && !done && b && !(code = td__need(who, y, copy))) {
        td_loop l = td__loop(y->shape, y, b, NULL, NULL);       /* every row begins as the bias, then the product is added  */
        k->copy(&l, y->dtype, td__ptr(sum), b->dtype, td__ptr(b), false);
    }
    if (!code && !done) {
        td__mat_open_out(&my, sum, x->rows, right.cols, 0, NULL);
        code = td__mat_multiply(x, &right, &my, 0, NULL, b != NULL);
    }
    if (!code && !done && gelu) {
        td_loop l = td__loop(y->shape, y, sum, NULL, NULL);
        k->gelu_tanh(&l, y->dtype, td__ptr(y), td__ptr(sum), false);
    }
    td__tensor_unref(kept);
    td__tensor_unref(mw.x);
    return code;
}

static int run_linear(td_call *c)
{
    const layer_attr *a = td_call_attr(c);
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *w = td_call_input(c, 1);
    const char *who = a->in_out ? "td_affine" : "td_linear";
    td__mat mx = { 0 };
    int code = td__need(who, out, gemm);
    if (!code && !(code = td__mat_open_rows(&mx, x)))
        code = forward(who, &mx, w, td_call_input(c, 2), a->in_out, false, NULL, out);
    td__tensor_unref(mx.x);
    if (code)
        return code;
    if (td_call_needs_grad(c, 1))
        td_call_save(c, x);
    if (td_call_needs_grad(c, 0))
        td_call_save(c, w);
    return 0;
}

/* ---- one layer backward ----------------------------------------------------------------------------------------------------------- */

/* into = or += g w, g dense; pre: times gelu_tanh's derivative there (then nothing is added to). */
static int grad_input(const char *who, td_tensor *g, td_tensor *w, bool in_out, td_tensor *into, bool add, td_tensor *pre)
{
    const td_kernels *k = td__kernels(into);
    td__mat mw = { 0 }, mg, mi;
    int code = td__mat_open(&mw, w, false);
    if (!code) {
        const td__mat right = in_out ? td__mat_flipped(&mw) : mw;
        td__mat_open_out(&mg, g, rows_of(g->shape), last_of(g->shape), 0, NULL);
        td__mat_open_out(&mi, into, mg.rows, right.cols, 0, NULL);
        if (!pre || !k->gemm_gelu_grad ||
            !k->gemm_gelu_grad(g->dtype, mg.trans, right.trans, mg.rows, right.cols, mg.cols, td__ptr(g), mg.ld, td__ptr(mw.x), right.ld,
                               td__ptr(pre), td__ptr(into))) {
            code = td__mat_multiply(&mg, &right, &mi, 0, NULL, add);
            if (!code && pre && !(code = td__need(who, into, gelu_tanh_grad))) {
                td_loop l = td__loop(into->shape, into, into, pre, NULL);
                k->gelu_tanh_grad(&l, into->dtype, td__ptr(into), td__ptr(into), td__ptr(pre), false);
            }
        }
    }
    td__tensor_unref(mw.x);
    return code;
}

/* The gradients of a layer's weight and bias from g (dense) and its input. */
static int grad_weight(td_tensor *g, td_tensor *x, bool in_out, const td_grad_slot *weight, const td_grad_slot *bias)
{
    const td_kernels *k = td__kernels(g);
    const bool wants_bias = bias && bias->into;
    bool summed = false;
    int code = 0;
    if (weight->into) {
        td__mat mx = { 0 }, mg, mi;
        if (!(code = td__mat_open_rows(&mx, x))) {
            td__mat_open_out(&mg, g, mx.rows, last_of(g->shape), 0, NULL);
            const td__mat left = in_out ? td__mat_flipped(&mx) : td__mat_flipped(&mg), right = in_out ? mg : mx;
            td__mat_open_out(&mi, weight->into, left.rows, right.cols, 0, NULL);
            if (wants_bias && !bias->add && k->gemm_sums)
                summed = k->gemm_sums(g->dtype, left.trans, right.trans, left.rows, right.cols, left.cols, td__ptr(left.x), left.ld, td__ptr(right.x),
                                      right.ld, weight->add ? 1.0 : 0.0, td__ptr(weight->into), td__ptr(bias->into), in_out);
            if (!summed)
                code = td__mat_multiply(&left, &right, &mi, 0, NULL, weight->add);
        }
        td__tensor_unref(mx.x);
    }
    if (!code && wants_bias && !summed)                         /* column sums                                            */
        code = td__sum_to(g, 1.0, bias->into, bias->add);
    return code;
}

static int grad_linear(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const layer_attr *a = td_call_attr(c);
    int code = slot[0].into ? grad_input("td_linear", g[0], td__op_operand(c, 1), a->in_out, slot[0].into, slot[0].add, NULL) : 0;
    return code ? code : grad_weight(g[0], slot[1].into ? td__op_operand(c, 0) : NULL, a->in_out, &slot[1], &slot[2]);
}

const td_op td__op_linear = { .name = "linear", .infer = infer, .run = run_linear, .grad = grad_linear, .attr_size = sizeof(layer_attr),
                              .optional = 1u << 2, .flags = TD_OP_LOW };
const td_op td__op_affine = { .name = "affine", .infer = infer, .run = run_linear, .grad = grad_linear, .attr_size = sizeof(layer_attr),
                              .optional = 1u << 2, .flags = TD_OP_LOW };

td_tensor *td_linear(td_tensor *x, td_tensor *w, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_linear, (td_tensor *[]){ x, w, b }, 3, &(layer_attr){ false });
}

td_tensor *td_affine(td_tensor *x, td_tensor *w, td_tensor *b)
{
    TD_ENTER();
    return td_apply(&td__op_affine, (td_tensor *[]){ x, w, b }, 3, &(layer_attr){ true });
}

/* ---- linear_gelu, mlp --------------------------------------------------------------------------------------------------------------- */

/* Does x's device do it within the products? In 16 bits only where it computes in them: through f32 copies what is kept would be f32. */
static bool fuses(const td_tensor *x)
{
    if (!x || x->poisoned || !td__kernels(x)->gemm_bias)
        return false;
    return x->storage->ops->computes_half || (!td__is_half(x->dtype) && td__autocast_now() == TD_F32);
}

/* Saved first: gelu's input, and for mlp its result. */
static int run_linear_gelu(td_call *c)
{
    const layer_attr *a = td_call_attr(c);
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *w = td_call_input(c, 1), *pre = NULL;
    const bool grads = td_call_needs_grad(c, 0) || td_call_needs_grad(c, 1) || td_call_needs_grad(c, 2);
    td__mat mx = { 0 };
    int code = td__need("td_linear_gelu", out, gemm);
    if (!code && grads)
        code = (pre = td__op_temp(out, out->shape))->poisoned ? td__pending() : 0;
    if (!code && !(code = td__mat_open_rows(&mx, x)))
        code = forward("td_linear_gelu", &mx, w, td_call_input(c, 2), a->in_out, true, pre, out);
    td__tensor_unref(mx.x);
    if (code || !grads) {
        td__tensor_unref(pre);
        return code;
    }
    td_call_save(c, pre);
    if (td_call_needs_grad(c, 1))
        td_call_save(c, x);
    if (td_call_needs_grad(c, 0))
        td_call_save(c, w);
    return 0;
}

static int grad_linear_gelu(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const layer_attr *a = td_call_attr(c);
    td_tensor *pre = td_call_saved(c, 0), *d = td__op_temp(g[0], g[0]->shape);
    int code = d->poisoned ? td__pending() : td__need("td_linear_gelu", d, gelu_tanh_grad);
    if (!code) {
        td_loop l = td__loop(d->shape, d, g[0], pre, NULL);
        td__kernels(d)->gelu_tanh_grad(&l, d->dtype, td__ptr(d), td__ptr(g[0]), td__ptr(pre), false);
    }
    if (!code && slot[0].into)
        code = grad_input("td_linear_gelu", d, td__op_operand(c, 1), a->in_out, slot[0].into, slot[0].add, NULL);
    if (!code)
        code = grad_weight(d, slot[1].into ? td__op_operand(c, 0) : NULL, a->in_out, &slot[1], &slot[2]);
    td__tensor_unref(d);
    return code;
}

const td_op td__op_linear_gelu = { .name = "linear_gelu", .infer = infer, .run = run_linear_gelu, .grad = grad_linear_gelu,
                                   .attr_size = sizeof(layer_attr), .optional = 1u << 2, .flags = TD_OP_LOW };

/* y = layer 2 of gelu_tanh of layer 1: GELU's derivative is taken in the product that makes its gradient. */
static int run_mlp(td_call *c)
{
    const layer_attr *a = td_call_attr(c);
    td_tensor *out = td_call_output(c, 0), *x = td_call_input(c, 0), *w1 = td_call_input(c, 1), *w2 = td_call_input(c, 3);
    bool grads = false;
    for (int i = 0; i < 5; i++)
        grads = grads || td_call_needs_grad(c, i);
    td_shape wide = x->shape;
    wide.dim[wide.ndim - 1] = w1->shape.dim[a->in_out ? 1 : 0];
    td_tensor *h = td__op_temp(out, wide), *pre = grads ? td__op_temp(out, wide) : NULL;
    td__mat mx = { 0 }, mh = { 0 };
    int code = h->poisoned || (pre && pre->poisoned) ? td__pending() : td__need("td_mlp", out, gemm);
    if (!code && !(code = td__mat_open_rows(&mx, x)))
        code = forward("td_mlp", &mx, w1, td_call_input(c, 2), a->in_out, true, pre, h);
    if (!code && !(code = td__mat_open_rows(&mh, h)))
        code = forward("td_mlp", &mh, w2, td_call_input(c, 4), a->in_out, false, NULL, out);
    td__tensor_unref(mx.x);
    td__tensor_unref(mh.x);
    if (code || !grads) {
        td__tensor_unref(pre);
        td__tensor_unref(h);
        return code;
    }
    td_call_save(c, pre);
    td_call_save(c, h);
    td_call_save(c, w2);
    if (td_call_needs_grad(c, 1))
        td_call_save(c, x);
    if (td_call_needs_grad(c, 0))
        td_call_save(c, w1);
    return 0;
}

static int grad_mlp(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    const layer_attr *a = td_call_attr(c);
    td_tensor *pre = td_call_saved(c, 0), *h = td_call_saved(c, 1), *d = NULL;
    int code = grad_weight(g[0], h, a->in_out, &slot[3], &slot[4]);
    if (!code && (slot[0].into || slot[1].into || slot[2].into)) {
        d = td__op_temp(pre, pre->shape);
        code = d->poisoned ? td__pending() : grad_input("td_mlp", g[0], td_call_input(c, 3), a->in_out, d, false, pre);
        if (!code && slot[0].into)
            code = grad_input("td_mlp", d, td_call_input(c, 1), a->in_out, slot[0].into, slot[0].add, NULL);
        if (!code)
            code = grad_weight(d, slot[1].into ? td_call_input(c, 0) : NULL, a->in_out, &slot[1], &slot[2]);
    }
    td__tensor_unref(d);
    return code;
}

const td_op td__op_mlp = { .name = "mlp", .infer = infer, .run = run_mlp, .grad = grad_mlp, .attr_size = sizeof(layer_attr),
                           .optional = 1u << 2 | 1u << 4, .flags = TD_OP_LOW };

static td_tensor *layer(td_tensor *x, td_tensor *w, td_tensor *b, bool in_out)
{
    return in_out ? td_affine(x, w, b) : td_linear(x, w, b);
}

td_tensor *td_linear_gelu(td_tensor *x, td_tensor *w, td_tensor *b, const td_linear_gelu_opts *opts)
{
    TD_ENTER();
    const bool in_out = opts && opts->in_out, exact = opts && opts->exact;
    if (!exact && fuses(x))
        return td_apply(&td__op_linear_gelu, (td_tensor *[]){ x, w, b }, 3, &(layer_attr){ in_out });
    td_tensor *pre = layer(x, w, b, in_out);
    return exact ? td_gelu(pre) : td_gelu_tanh(pre);
}

td_tensor *td_mlp(td_tensor *x, td_tensor *w1, td_tensor *b1, td_tensor *w2, td_tensor *b2, const td_linear_gelu_opts *opts)
{
    TD_ENTER();
    const bool in_out = opts && opts->in_out, exact = opts && opts->exact;
    if (!exact && fuses(x))
        return td_apply(&td__op_mlp, (td_tensor *[]){ x, w1, b1, w2, b2 }, 5, &(layer_attr){ in_out });
    return layer(td_linear_gelu(x, w1, b1, opts), w2, b2, in_out);
}
