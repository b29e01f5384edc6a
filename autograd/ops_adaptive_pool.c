/* autograd/ops_adaptive_pool.c: td_adaptive_avg_pool2d and td_adaptive_max_pool2d: pools of (N,C,H,W) whose output has a given size.
 */
#include "ops_image.h"
#include "ops_list.h"

typedef struct { int64_t out_h, out_w; } adaptive_attr;

static td_conv2d_shape adaptive_shape(const td_call *call)
{
    const adaptive_attr *a = td_call_attr(call);
    td_shape x = td_call_input_shape(call, 0);
    return (td_conv2d_shape){ .n = x.dim[0], .c = x.dim[1], .h = x.dim[2], .w = x.dim[3], .o = x.dim[1], .oh = a->out_h, .ow = a->out_w };
}

static int adaptive_infer(td_call *call)
{
    const adaptive_attr *a = td_call_attr(call);
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
    return td_call_infer(call, 0, (td_shape){ 4, { x.dim[0], x.dim[1], a->out_h, a->out_w } }, td_dtype_of(td_call_input(call, 0)));
}

static int max_run(td_call *call)
{
    td_tensor *x = td_call_input(call, 0), *out = td_call_output(call, 0);
    int code = td__need("td_adaptive_max_pool2d", x, adaptive_max_pool2d);
    if (code)
        return code;
    const td_conv2d_shape s = adaptive_shape(call);
    td_tensor *where = td__tensor_new(out->shape, TD_I32, td_device_of(x));
    if (td_is_poisoned(where))
        return td__pending();
    td__kernels(x)->adaptive_max_pool2d(x->dtype, &s, td__ptr(out), td__ptr(where), td__ptr(x));
    td_call_save(call, where);
    return 0;
}

static int max_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *g = grad_out[0], *where = td_call_saved(call, 0);
    int code = td__need("td_adaptive_max_pool2d", g, max_pool2d_grad);
    if (code || !in[0].into)
        return code;
    const td_conv2d_shape s = adaptive_shape(call);
    td__kernels(g)->max_pool2d_grad(g->dtype, &s, td__ptr(in[0].into), td__ptr(g), td__ptr(where), in[0].add);
    return 0;
}

static int avg_run(td_call *call)
{
    td_tensor *x = td_call_input(call, 0);
    int code = td__need("td_adaptive_avg_pool2d", x, adaptive_avg_pool2d);
    if (code)
        return code;
    const td_conv2d_shape s = adaptive_shape(call);
    td__kernels(x)->adaptive_avg_pool2d(x->dtype, &s, td__ptr(td_call_output(call, 0)), td__ptr(x));
    return 0;
}

static int avg_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *g = grad_out[0];
    int code = td__need("td_adaptive_avg_pool2d", g, adaptive_avg_pool2d_grad);
    if (code || !in[0].into)
        return code;
    const td_conv2d_shape s = adaptive_shape(call);
    td__kernels(g)->adaptive_avg_pool2d_grad(g->dtype, &s, td__ptr(in[0].into), td__ptr(g), in[0].add);
    return 0;
}

const td_op td__op_adaptive_max_pool2d = { .name = "adaptive_max_pool2d", .infer = adaptive_infer, .run = max_run, .grad = max_grad,
                                           .attr_size = sizeof(adaptive_attr) };
const td_op td__op_adaptive_avg_pool2d = { .name = "adaptive_avg_pool2d", .infer = adaptive_infer, .run = avg_run, .grad = avg_grad,
                                           .attr_size = sizeof(adaptive_attr) };

td_tensor *td_adaptive_max_pool2d(td_tensor *x, int64_t out_h, int64_t out_w)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_arg(x) };
    return td_apply(&td__op_adaptive_max_pool2d, in, 1, &(adaptive_attr){ out_h, out_w });
}

td_tensor *td_adaptive_avg_pool2d(td_tensor *x, int64_t out_h, int64_t out_w)
{
    TD_ENTER();
    td_tensor *in[] = { td__image_arg(x) };
    return td_apply(&td__op_adaptive_avg_pool2d, in, 1, &(adaptive_attr){ out_h, out_w });
}
