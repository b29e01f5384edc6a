/* autograd/ops_pool.c: pools of (N,C,H,W): td_max_pool2d and td_avg_pool2d over square windows, td_adaptive_max_pool2d and
 * td_adaptive_avg_pool2d to a given size of the output. They differ in shapes and in one kernel each; what max remembers, and so its gradient,
 * is the same.
 */
#include "ops_image.h"
#include "ops_list.h"

typedef struct { int window, stride, padding; int64_t out_h, out_w; bool nhwc; } pool_attr;   /* window 0: adaptive, to out_h by out_w */

static td_conv2d_shape pool_shape(const td_call *call)
{
    const pool_attr *a = td_call_attr(call);
    td_shape x = td_call_input_shape(call, 0);
    if (!a->window)
        return (td_conv2d_shape){ .n = x.dim[0], .c = x.dim[1], .h = x.dim[2], .w = x.dim[3], .o = x.dim[1], .oh = a->out_h, .ow = a->out_w,
                                  .nhwc = a->nhwc };
    return (td_conv2d_shape){
        .n = x.dim[0], .c = x.dim[1], .h = x.dim[2], .w = x.dim[3], .o = x.dim[1], .kh = a->window, .kw = a->window,
        .oh = td__image_out(x.dim[2], a->window, a->stride, a->padding), .ow = td__image_out(x.dim[3], a->window, a->stride, a->padding),
        .stride = a->stride, .padding = a->padding, .nhwc = a->nhwc,
    };
}

static int pool_infer(td_call *call)
{
    const pool_attr *a = td_call_attr(call);
    td_shape x = td_call_input_shape(call, 0);
    char xt[128];
    int code = td__image_dtype(call, 0, "x");
    if (code)
        return code;
    if (x.ndim != 4)
        return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, expected 4 dimensions (N,C,H,W)", td__shape_text(x, xt));
    if (a->window < 1)
        return td_call_error(call, TD_ERR_ARGUMENT, "window is %d, expected at least 1", a->window);
    if (a->stride < 1)
        return td_call_error(call, TD_ERR_ARGUMENT, "stride is %d, expected at least 1 (0 means the window's size)", a->stride);
    if (a->padding < 0 || a->padding > a->window / 2)
        return td_call_error(call, TD_ERR_ARGUMENT, "padding is %d, expected 0 to %d, half the window", a->padding, a->window / 2);
    if (x.dim[2] * x.dim[3] > INT32_MAX)
        return td_call_error(call, TD_ERR_SHAPE, "a plane of x %s has more than 2^31-1 elements", td__shape_text(x, xt));
    td_conv2d_shape s = pool_shape(call);
    if (s.oh < 0 || s.ow < 0)
        return td_call_error(call, TD_ERR_SHAPE, "the window of %d is larger than x %s with padding %d", a->window, td__shape_text(x, xt), a->padding);
    td_tensor *x_in = td_call_input(call, 0);
    return td__call_infer_like(call, 0, (td_shape){ 4, { s.n, s.c, s.oh, s.ow } }, x_in->dtype, x_in);
}

static int adaptive_infer(td_call *call)
{
    const pool_attr *a = td_call_attr(call);
    td_shape x = td_call_input_shape(call, 0);
    char xt[128];
    int code = td__image_dtype(call, 0, "x");
    if (code)
        return code;
    if (x.ndim != 4)
        return td_call_error(call, TD_ERR_SHAPE, "x has shape %s, expected 4 dimensions (N,C,H,W)", td__shape_text(x, xt));
    if (a->out_h < 1 || a->out_w < 1)
        return td_call_error(call, TD_ERR_ARGUMENT, "the output's size is %lld by %lld, expected at least 1 by 1", (long long)a->out_h,
                             (long long)a->out_w);
    if (x.dim[2] < 1 || x.dim[3] < 1)
        return td_call_error(call, TD_ERR_SHAPE, "the images of x %s are empty", td__shape_text(x, xt));
    if (x.dim[2] > INT32_MAX / x.dim[3] || a->out_h > INT32_MAX / a->out_w)
        return td_call_error(call, TD_ERR_SHAPE, "a plane of x %s or of the output, %lld by %lld, has more than 2^31-1 elements",
                             td__shape_text(x, xt), (long long)a->out_h, (long long)a->out_w);
    td_tensor *x_in = td_call_input(call, 0);
    return td__call_infer_like(call, 0, (td_shape){ 4, { x.dim[0], x.dim[1], a->out_h, a->out_w } }, x_in->dtype, x_in);
}

static int max_run(td_call *call)
{
    td_tensor *x = td_call_input(call, 0), *out = td_call_output(call, 0);
    const td_conv2d_shape s = pool_shape(call);
    int code = s.kh ? td__need("td_max_pool2d", x, max_pool2d) : td__need("td_adaptive_max_pool2d", x, adaptive_max_pool2d);
    if (code)
        return code;
    const td_kernels *k = td__kernels(x);
    td_tensor *where = td__tensor_new(out->shape, TD_I32, td_device_of(x));
    if (td_is_poisoned(where))
        return td__pending();
    (s.kh ? k->max_pool2d : k->adaptive_max_pool2d)(x->dtype, &s, td__ptr(out), td__ptr(where), td__ptr(x));
    td_call_save(call, where);
    return 0;
}

static int max_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *g = grad_out[0], *where = td_call_saved(call, 0);
    const td_conv2d_shape s = pool_shape(call);
    int code = td__need(s.kh ? "td_max_pool2d" : "td_adaptive_max_pool2d", g, max_pool2d_grad);
    if (code || !in[0].into)
        return code;
    td__kernels(g)->max_pool2d_grad(g->dtype, &s, td__ptr(in[0].into), td__ptr(g), td__ptr(where), in[0].add);
    return 0;
}

static int avg_run(td_call *call)
{
    td_tensor *x = td_call_input(call, 0);
    const td_conv2d_shape s = pool_shape(call);
    int code = s.kh ? td__need("td_avg_pool2d", x, avg_pool2d) : td__need("td_adaptive_avg_pool2d", x, adaptive_avg_pool2d);
    if (code)
        return code;
    const td_kernels *k = td__kernels(x);
    (s.kh ? k->avg_pool2d : k->adaptive_avg_pool2d)(x->dtype, &s, td__ptr(td_call_output(call, 0)), td__ptr(x));
    return 0;
}

static int avg_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *g = grad_out[0];
    const td_conv2d_shape s = pool_shape(call);
    int code = s.kh ? td__need("td_avg_pool2d", g, avg_pool2d_grad) : td__need("td_adaptive_avg_pool2d", g, adaptive_avg_pool2d_grad);
    if (code || !in[0].into)
        return code;
    const td_kernels *k = td__kernels(g);
    (s.kh ? k->avg_pool2d_grad : k->adaptive_avg_pool2d_grad)(g->dtype, &s, td__ptr(in[0].into), td__ptr(g), in[0].add);
    return 0;
}

const td_op td__op_max_pool2d = { .name = "max_pool2d", .infer = pool_infer, .run = max_run, .grad = max_grad, .attr_size = sizeof(pool_attr),
                                  .flags = TD__OP_FORMATS };
const td_op td__op_avg_pool2d = { .name = "avg_pool2d", .infer = pool_infer, .run = avg_run, .grad = avg_grad, .attr_size = sizeof(pool_attr),
                                  .flags = TD__OP_FORMATS };
const td_op td__op_adaptive_max_pool2d = { .name = "adaptive_max_pool2d", .infer = adaptive_infer, .run = max_run, .grad = max_grad,
                                           .attr_size = sizeof(pool_attr), .flags = TD__OP_FORMATS };
const td_op td__op_adaptive_avg_pool2d = { .name = "adaptive_avg_pool2d", .infer = adaptive_infer, .run = avg_run, .grad = avg_grad,
                                           .attr_size = sizeof(pool_attr), .flags = TD__OP_FORMATS };

static td_tensor *pool(const td_op *op, td_tensor *x, int window, const td_pool2d_opts *opts)
{
    pool_attr a = { .window = window, .stride = opts && opts->stride ? opts->stride : window, .padding = opts ? opts->padding : 0,
                    .nhwc = td__keeps_channels_last(x) };
    td_tensor *in[] = { td__image_pixels(x) };
    return td_apply(op, in, 1, &a);
}

td_tensor *td_max_pool2d(td_tensor *x, int window, const td_pool2d_opts *opts)
{
    TD_ENTER();
    return pool(&td__op_max_pool2d, x, window, opts);
}

td_tensor *td_avg_pool2d(td_tensor *x, int window, const td_pool2d_opts *opts)
{
    TD_ENTER();
    return pool(&td__op_avg_pool2d, x, window, opts);
}

td_tensor *td_adaptive_max_pool2d(td_tensor *x, int64_t out_h, int64_t out_w)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_pixels(x) };
    return td_apply(&td__op_adaptive_max_pool2d, in, 1, &(pool_attr){ .out_h = out_h, .out_w = out_w, .nhwc = td__keeps_channels_last(x) });
}

td_tensor *td_adaptive_avg_pool2d(td_tensor *x, int64_t out_h, int64_t out_w)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_pixels(x) };
    return td_apply(&td__op_adaptive_avg_pool2d, in, 1, &(pool_attr){ .out_h = out_h, .out_w = out_w, .nhwc = td__keeps_channels_last(x) });
}
