/* autograd/ops_conv.c: td_conv2d and its gradients. x (N,C,H,W), w (O,C/groups,KH,KW), b (O) or NULL.
 */
#include "ops_image.h"
#include "ops_list.h"

typedef struct { td_conv2d_opts o; bool nhwc; } conv_attr;

static td_conv2d_shape conv_shape(const td_call *call)
{
    const conv_attr *a = td_call_attr(call);
    const td_conv2d_opts *o = &a->o;
    td_shape x = td_call_input_shape(call, 0), w = td_call_input_shape(call, 1);
    return (td_conv2d_shape){
        .n = x.dim[0], .c = x.dim[1], .h = x.dim[2], .w = x.dim[3], .o = w.dim[0], .kh = w.dim[2], .kw = w.dim[3],
        .oh = td__image_out(x.dim[2], td__image_reach(w.dim[2], o->dilation), o->stride, o->padding),
        .ow = td__image_out(x.dim[3], td__image_reach(w.dim[3], o->dilation), o->stride, o->padding),
        .stride = o->stride, .padding = o->padding, .dilation = o->dilation, .groups = o->groups, .nhwc = a->nhwc,
    };
}

static int conv_infer(td_call *call)
{
    const td_conv2d_opts *o = &((const conv_attr *)td_call_attr(call))->o;
    td_tensor *b = td_call_input(call, 2);
    td_shape x = td_call_input_shape(call, 0), w = td_call_input_shape(call, 1);
    char xt[128], wt[128];
    int code = td__image_conv(call, "(O,C/groups,KH,KW)", o->stride, o->padding, o->dilation, o->groups);
    if (code)
        return code;
    if (w.dim[0] % o->groups != 0)
        return td_call_error(call, TD_ERR_SHAPE, "w %s has %lld output channels (dimension 0), not a multiple of groups %d",
                             td__shape_text(w, wt), (long long)w.dim[0], o->groups);
    if (x.dim[1] / o->groups != w.dim[1] && o->groups == 1)
        return td_call_error(call, TD_ERR_SHAPE, "x %s has %lld channels (dimension 1) and w %s expects %lld", td__shape_text(x, xt),
                             (long long)x.dim[1], td__shape_text(w, wt), (long long)w.dim[1]);
    if (x.dim[1] / o->groups != w.dim[1])
        return td_call_error(call, TD_ERR_SHAPE, "x %s has %lld channels in each of %d groups and w %s expects %lld (dimension 1)",
                             td__shape_text(x, xt), (long long)(x.dim[1] / o->groups), o->groups, td__shape_text(w, wt),
                             (long long)w.dim[1]);
    if (b) {
        td_shape s = td_call_input_shape(call, 2);
        char bt[128];
        if (s.ndim != 1 || s.dim[0] != w.dim[0])
            return td_call_error(call, TD_ERR_SHAPE, "b has shape %s, expected (%lld), the output channels of w %s", td__shape_text(s, bt),
                                 (long long)w.dim[0], td__shape_text(w, wt));
    }
    td_conv2d_shape s = conv_shape(call);
    if (s.oh < 0 || s.ow < 0)
        return td_call_error(call, TD_ERR_SHAPE, "the window of w %s with dilation %d is larger than x %s with padding %d",
                             td__shape_text(w, wt), o->dilation, td__shape_text(x, xt), o->padding);
    td_tensor *x_in = td_call_input(call, 0);
    return td__call_infer_like(call, 0, (td_shape){ 4, { s.n, s.o, s.oh, s.ow } }, x_in->dtype, x_in);
}

static int conv_run(td_call *call)
{
    td_tensor *x = td_call_input(call, 0), *w = td_call_input(call, 1), *b = td_call_input(call, 2), *out = td_call_output(call, 0);
    int code = td__need("td_conv2d", x, conv2d);
    if (code)
        return code;
    const td_conv2d_shape s = conv_shape(call);
    const int before = td__pending();
    td__kernels(x)->conv2d(x->dtype, &s, td__ptr(out), td__ptr(x), td__ptr(w), td__image_ptr(b), false);
    if (td_call_needs_grad(call, 1))
        td_call_save(call, x);
    if (td_call_needs_grad(call, 0))
        td_call_save(call, w);
    return td__image_done(before);
}

static int conv_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *g = grad_out[0], *x = td_call_input(call, 0), *w = td_call_input(call, 1);
    const td_conv2d_shape s = conv_shape(call);
    const int before = td__pending();
    if (!w)                          /* x convolved with itself: one saved tensor                                             */
        w = x;
    int code = td__need("td_conv2d", g, conv2d_grad_x);
    if (code == 0)
        code = td__need("td_conv2d", g, conv2d_grad_w);
    if (code)
        return code;
    if (in[0].into)
        td__kernels(g)->conv2d_grad_x(g->dtype, &s, td__ptr(in[0].into), td__ptr(g), td__ptr(w), NULL, in[0].add);
    td_tensor *gb = in[2].into;
    if (in[1].into || gb)
        td__kernels(g)->conv2d_grad_w(g->dtype, &s, td__image_ptr(in[1].into), td__image_ptr(gb), td__ptr(g), td__image_ptr(x), in[1].add,
                                      gb && in[2].add);
    return td__image_done(before);
}

const td_op td__op_conv2d = { .name = "conv2d", .infer = conv_infer, .run = conv_run, .grad = conv_grad, .attr_size = sizeof(conv_attr),
                              .optional = 1u << 2, .flags = TD_OP_LOW | TD__OP_FORMATS };

td_tensor *td_conv2d(td_tensor *x, td_tensor *w, td_tensor *b, const td_conv2d_opts *opts)
{
    TD_ENTER();
    conv_attr a = { opts ? *opts : (td_conv2d_opts){ 0 }, td__keeps_channels_last(x) };
    a.o.stride = a.o.stride ? a.o.stride : 1;
    a.o.dilation = a.o.dilation ? a.o.dilation : 1;
    a.o.groups = a.o.groups ? a.o.groups : 1;
    td_tensor *in[] = { td__image_pixels(x), td__image_weights(w, a.nhwc), td__image_arg(b) };
    return td_apply(&td__op_conv2d, in, 3, &a);
}
