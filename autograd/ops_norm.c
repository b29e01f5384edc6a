/* autograd/ops_norm.c: td_batch_norm and td_batch_norm_relu. x (N,C,…) is normalised per channel over everything else.
 *
 * The running statistics are inputs without a gradient that a training call changes in place; their versions are bumped. Mean and
 * 1/std are saved, so that grad does not depend on what becomes of the running ones. No rows: nothing is learnt, all gradients are zero.
 *
 * What is per channel is f32 beside 16-bit images, also where the caller's weights or statistics have 16 bits: then copies are computed with.
 */
#include "ops_image.h"
#include "ops_shared.h"

/* inputs: 0 x, 1 w, 2 b, 3 running mean, 4 running variance, 5 z (of batch_norm_relu alone) */
typedef struct { bool train, nhwc; double momentum, eps; } norm_attr;
enum { X, W, B, MEAN, VAR, Z };

static bool fused(const td_call *call)
{
    return td_call_inputs(call) > Z;
}

/* Of an image with the channels last every pixel is a row. */
static void norm_sizes(const td_call *call, int64_t *n, int64_t *c, int64_t *inner)
{
    const norm_attr *a = td_call_attr(call);
    td_shape s = td_call_input_shape(call, X);
    *n = s.dim[0], *c = s.dim[1], *inner = 1;
    for (int i = 2; i < s.ndim; i++)
        *(a->nhwc ? n : inner) *= s.dim[i];
}

static int norm_infer(td_call *call)
{
    static const char *const name[] = { "x", "w", "b", "the running mean", "the running variance" };
    const norm_attr *a = td_call_attr(call);
    td_tensor *image = td_call_input(call, X), *z = fused(call) ? td_call_input(call, Z) : NULL;
    td_shape x = image->shape;
    char xt[128], st[128];
    int64_t n, c, inner;
    int code = td__image_dtype(call, X, "x");
    if (code)
        return code;
    if (x.ndim < 2)
        return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, expected at least 2 dimensions (N,C,…)", td__shape_text(x, xt));
    norm_sizes(call, &n, &c, &inner);
    for (int i = W; i <= VAR; i++) {
        td_tensor *t = td_call_input(call, i);
        if (!t)
            continue;
        if (!(td__is_half(image->dtype) && t->dtype == TD_F32) && (code = td__image_dtype(call, i, name[i])))
            return code;
        if (t->shape.ndim != 1 || t->shape.dim[0] != c)
            return td_call_error(call, TD_ERR_SHAPE, "%s has shape %s, expected (%lld), the channels of x %s (dimension 1)", name[i],
                                 td__shape_text(t->shape, st), (long long)c, td__shape_text(x, xt));
        if (i >= MEAN && !td_is_contiguous(t))
            return td_call_error(call, TD_ERR_ARGUMENT, "%s is not contiguous: it is changed in place", name[i]);
        if (i >= MEAN && td_call_needs_grad(call, i))
            return td_call_error(call, TD_ERR_ARGUMENT, "%s asks for a gradient, and has none", name[i]);
    }
    if (!td_call_input(call, MEAN) != !td_call_input(call, VAR))
        return td_call_error(call, TD_ERR_ARGUMENT, "a running mean and a running variance belong together: give both or neither");
    if (!a->train && !td_call_input(call, MEAN))
        return td_call_error(call, TD_ERR_ARGUMENT, "without batch statistics (train is false) the running mean and variance are needed");
    if (!(a->momentum >= 0 && a->momentum <= 1))
        return td_call_error(call, TD_ERR_ARGUMENT, "momentum is %g, expected 0 to 1", a->momentum);
    if (!(a->eps >= 0))
        return td_call_error(call, TD_ERR_ARGUMENT, "eps is %g, expected at least 0", a->eps);
    if (a->train && n * inner == 1)
        return td_call_error(call, TD_ERR_SHAPE, "x %s has one value per channel: training needs more than one for a variance", td__shape_text(x, xt));
    if (z && (code = td__image_dtype(call, Z, "z")))
        return code;
    if (z && !td__shape_equal(z->shape, x))
        return td_call_error(call, TD_ERR_SHAPE, "z has shape %s, expected %s as x", td__shape_text(z->shape, st), td__shape_text(x, xt));
    return td__call_infer_like(call, 0, x, image->dtype, image);
}

/* t as the kernels take it: of 16 bits an f32 copy, which the scope of the call owns. */
static td_tensor *wide(td_tensor *t)
{
    return t && td__is_half(t->dtype) ? td_cast(t, TD_F32) : t;
}

static int run_kernel(td_call *call, td_tensor *const *in, td_tensor *mean, td_tensor *rstd)
{
    const norm_attr *a = td_call_attr(call);
    td_tensor *x = in[X], *out = td_call_output(call, 0);
    const td_kernels *k = td__kernels(x);
    int64_t n, c, inner;
    norm_sizes(call, &n, &c, &inner);
    int code = fused(call) ? td__need("td_batch_norm_relu", x, batch_norm_relu) : td__need("td_batch_norm", x, batch_norm);
    if (code)
        return code;
    if (fused(call))
        k->batch_norm_relu(x->dtype, n, c, inner, td__ptr(out), td__ptr(mean), td__ptr(rstd), td__ptr(x), td__image_ptr(in[Z]), td__image_ptr(in[W]),
                           td__image_ptr(in[B]), td__image_ptr(in[MEAN]), td__image_ptr(in[VAR]), a->train, a->momentum, a->eps);
    else
        k->batch_norm(x->dtype, n, c, inner, td__ptr(out), td__ptr(mean), td__ptr(rstd), td__ptr(x), td__image_ptr(in[W]), td__image_ptr(in[B]),
                      td__image_ptr(in[MEAN]), td__image_ptr(in[VAR]), a->train, a->momentum, a->eps);
    return 0;
}

/* What grad reads. Where relu was zero is found again from x, unless something was added to it. */
static void save(td_call *call, td_tensor *mean, td_tensor *rstd)
{
    const norm_attr *a = td_call_attr(call);
    td_tensor *z = fused(call) ? td_call_input(call, Z) : NULL;
    const bool from_x = fused(call) && !z;
    td_call_save(call, mean);
    td_call_save(call, rstd);
    if (from_x || td_call_needs_grad(call, W) || (a->train && td_call_needs_grad(call, X)))
        td_call_save(call, td_call_input(call, X));
    if (td_call_input(call, W) && (from_x || td_call_needs_grad(call, X)))
        td_call_save(call, td_call_input(call, W));
    if (td_call_input(call, B) && from_x)
        td_call_save(call, td_call_input(call, B));
    if (z)
        td_call_save(call, td_call_output(call, 0));
}

static int norm_run(td_call *call)
{
    const norm_attr *a = td_call_attr(call);
    td_tensor *in[Z + 1] = { NULL }, *x = td_call_input(call, X);
    const bool learns = a->train && !td_recomputing();     /* a checkpoint's second run has been counted in the first         */
    int64_t n, c, inner;
    norm_sizes(call, &n, &c, &inner);
    for (int i = 0; i < (int)td_call_inputs(call); i++) {
        in[i] = i < MEAN || i > VAR || learns || !a->train ? td_call_input(call, i) : NULL;
        if (i >= W && i <= VAR && (in[i] = wide(in[i])) && in[i]->poisoned)
            return td__pending();
    }
    td_tensor *mean = td__op_stat(x, (td_shape){ 1, { c } }), *rstd = td__op_stat(x, (td_shape){ 1, { c } });
    int code = td_is_poisoned(mean) || td_is_poisoned(rstd) ? TD_ERR_MEMORY : run_kernel(call, in, mean, rstd);
    if (code) {
        td__tensor_unref(mean);
        td__tensor_unref(rstd);
        return code;
    }
    for (int i = MEAN; i <= VAR && learns && in[MEAN] && n * inner > 0; i++) {
        td_tensor *own = td_call_input(call, i);
        code = own == in[i] ? code : td__copy(own, in[i], false);
        own->storage->version++;
    }
    save(call, mean, rstd);
    return code;
}

/* The gradients of w and b in f32 where the kernel cannot write them in 16 bits: a tensor of the scope, rounded or added afterwards. */
static td_grad_slot wide_slot(td_grad_slot s)
{
    if (!s.into || !td__is_half(s.into->dtype))
        return s;
    return (td_grad_slot){ td__scoped_tensor(td__tensor_new(s.into->shape, TD_F32, td_device_of(s.into))), false };
}

static int norm_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    const norm_attr *a = td_call_attr(call);
    td_tensor *g = grad_out[0], *x = td_call_input(call, X), *w = wide(td_call_input(call, W)), *b = wide(td_call_input(call, B));
    td_tensor *mean = td_call_saved(call, 0), *rstd = td_call_saved(call, 1);
    td_grad_slot gw = wide_slot(in[W]), gb = wide_slot(in[B]);
    const td_kernels *k = td__kernels(g);
    int64_t n, c, inner;
    norm_sizes(call, &n, &c, &inner);
    int code = fused(call) ? td__need("td_batch_norm_relu", g, batch_norm_relu_grad) : td__need("td_batch_norm", g, batch_norm_grad);
    if (code || (w && w->poisoned) || (b && b->poisoned) || (gw.into && gw.into->poisoned) || (gb.into && gb.into->poisoned))
        return code ? code : td__pending();
    if (fused(call))
        k->batch_norm_relu_grad(g->dtype, n, c, inner, td__image_ptr(in[X].into), td__image_ptr(in[Z].into), td__image_ptr(gw.into),
                                td__image_ptr(gb.into), td__ptr(g), td__image_ptr(td_call_output(call, 0)), td__image_ptr(x), td__image_ptr(w),
                                td__image_ptr(b), td__ptr(mean), td__ptr(rstd), a->train, in[X].add, in[Z].add, gw.add, gb.add);
    else
        k->batch_norm_grad(g->dtype, n, c, inner, td__image_ptr(in[X].into), td__image_ptr(gw.into), td__image_ptr(gb.into), td__ptr(g),
                           td__image_ptr(x), td__image_ptr(w), td__ptr(mean), td__ptr(rstd), a->train, in[X].add, gw.add, gb.add);
    if (gw.into != in[W].into)
        code = td__copy(in[W].into, gw.into, in[W].add);
    if (gb.into != in[B].into && !code)
        code = td__copy(in[B].into, gb.into, in[B].add);
    return code;
}

const td_op td__op_batch_norm = { .name = "batch_norm", .infer = norm_infer, .run = norm_run, .grad = norm_grad, .attr_size = sizeof(norm_attr),
                                  .optional = 1u << W | 1u << B | 1u << MEAN | 1u << VAR, .flags = TD_OP_MIXED | TD__OP_FORMATS };
const td_op td__op_batch_norm_relu = { .name = "batch_norm_relu", .infer = norm_infer, .run = norm_run, .grad = norm_grad,
                                       .attr_size = sizeof(norm_attr), .flags = TD_OP_MIXED | TD__OP_FORMATS | TD__OP_OVERWRITES,
                                       .optional = 1u << W | 1u << B | 1u << MEAN | 1u << VAR | 1u << Z };

static norm_attr attributes(const td_batch_norm_opts *o, const td_tensor *x)
{
    static const td_batch_norm_opts standard;
    o = o ? o : &standard;
    norm_attr a = { o->train, td__keeps_channels_last(x), (double)o->momentum, (double)o->eps };
    if (o->momentum == 0)
        a.momentum = 0.1;
    else if (o->momentum == TD_ZERO)
        a.momentum = 0;
    if (o->eps == 0)
        a.eps = 1e-5;
    return a;
}

td_tensor *td_batch_norm(td_tensor *x, td_tensor *w, td_tensor *b, td_tensor *running_mean, td_tensor *running_var, const td_batch_norm_opts *opts)
{
    TD_ENTER();
    norm_attr a = attributes(opts, x);
    td_tensor *in[] = { td__image_pixels(x), td__image_arg(w), td__image_arg(b), running_mean, running_var };
    return td_apply(&td__op_batch_norm, in, 5, &a);
}

td_tensor *td_batch_norm_relu(td_tensor *x, td_tensor *z, td_tensor *w, td_tensor *b, td_tensor *running_mean, td_tensor *running_var,
                              const td_batch_norm_opts *opts)
{
    TD_ENTER();
    norm_attr a = attributes(opts, x);
    if (x && z && !x->poisoned && !z->poisoned && z->dtype != x->dtype && td__autocast_now() != TD_F32)
        z = td_cast(z, x->dtype);
    z = !z ? NULL : a.nhwc ? td_to_memory_format(z, TD_CHANNELS_LAST) : td_contiguous(z);
    td_tensor *in[] = { td__image_pixels(x), td__image_arg(w), td__image_arg(b), running_mean, running_var, z };
    return td_apply(&td__op_batch_norm_relu, in, 6, &a);
}
