/* autograd/ops_conv_transpose.c: td_conv_transpose2d and its gradients. x (N,C,H,W), w (C,O/groups,KH,KW), b (O) or NULL.
 *
 * It is td_conv2d read backwards: td_conv2d with this w takes (N,O,OH,OW) to (N,C,H,W). So the forward is that one's gradient of x, the
 * gradient of x its forward, and the gradient of w its gradient of w with x and gout exchanged. The shape below is that one's.
 */
#include "ops_image.h"
#include "ops_list.h"

typedef struct { td_conv_transpose2d_opts o; bool nhwc; } transpose_attr;

static td_conv2d_shape transpose_shape(const td_call *call)
{
    const transpose_attr *a = td_call_attr(call);
    const td_conv_transpose2d_opts *o = &a->o;
    td_shape x = td_call_input_shape(call, 0), w = td_call_input_shape(call, 1);
    const int64_t more = o->output_padding - 2 * (int64_t)o->padding;
    return (td_conv2d_shape){
        .n = x.dim[0], .c = w.dim[1] * o->groups, .o = x.dim[1], .oh = x.dim[2], .ow = x.dim[3], .kh = w.dim[2], .kw = w.dim[3],
        .h = (x.dim[2] - 1) * o->stride + td__image_reach(w.dim[2], o->dilation) + more,
        .w = (x.dim[3] - 1) * o->stride + td__image_reach(w.dim[3], o->dilation) + more,
        .stride = o->stride, .padding = o->padding, .dilation = o->dilation, .groups = o->groups, .nhwc = a->nhwc,
    };
}

static int transpose_infer(td_call *call)
{
    const td_conv_transpose2d_opts *o = &((const transpose_attr *)td_call_attr(call))->o;
    td_tensor *b = td_call_input(call, 2);
    td_shape x = td_call_input_shape(call, 0), w = td_call_input_shape(call, 1);
    char xt[128], wt[128];
    int code = td__image_conv(call, "(C,O/groups,KH,KW)", o->stride, o->padding, o->dilation, o->groups);
    if (code)
        return code;
    const int most = o->stride > o->dilation ? o->stride : o->dilation;
    if (o->output_padding < 0 || o->output_padding >= most)
        return td_call_error(call, TD_ERR_ARGUMENT, "output_padding is %d, expected 0 or more and less than %d, the larger of stride and dilation",
                             o->output_padding, most);
    if (x.dim[1] != w.dim[0])
        return td_call_error(call, TD_ERR_SHAPE, "x %s has %lld channels (dimension 1) and w %s expects %lld (dimension 0)",
                             td__shape_text(x, xt), (long long)x.dim[1], td__shape_text(w, wt), (long long)w.dim[0]);
    td_conv2d_shape s = transpose_shape(call);
    if (b) {
        td_shape bs = td_call_input_shape(call, 2);
        char bt[128];
        if (bs.ndim != 1 || bs.dim[0] != s.c)
            return td_call_error(call, TD_ERR_SHAPE, "b has shape %s, expected (%lld), the output channels of w %s in %d groups",
                                 td__shape_text(bs, bt), (long long)s.c, td__shape_text(w, wt), o->groups);
    }
    if (s.oh < 1 || s.ow < 1)
        return td_call_error(call, TD_ERR_SHAPE, "the images of x %s are empty", td__shape_text(x, xt));
    if (s.h < 1 || s.w < 1)
        return td_call_error(call, TD_ERR_SHAPE, "x %s with w %s and padding %d gives images of %lld by %lld, expected at least 1 by 1",
                             td__shape_text(x, xt), td__shape_text(w, wt), o->padding, (long long)s.h, (long long)s.w);
    td_tensor *x_in = td_call_input(call, 0);
    return td__call_infer_like(call, 0, (td_shape){ 4, { s.n, s.c, s.h, s.w } }, x_in->dtype, x_in);
}

static int transpose_run(td_call *call)
{
    td_tensor *x = td_call_input(call, 0), *w = td_call_input(call, 1), *b = td_call_input(call, 2), *out = td_call_output(call, 0);
    int code = td__need("td_conv_transpose2d", x, conv2d_grad_x);
    if (code)
        return code;
    const td_conv2d_shape s = transpose_shape(call);
    const int before = td__pending();
    td__kernels(x)->conv2d_grad_x(x->dtype, &s, td__ptr(out), td__ptr(x), td__ptr(w), td__image_ptr(b), false);
    if (td_call_needs_grad(call, 1))
        td_call_save(call, x);
    if (td_call_needs_grad(call, 0))
        td_call_save(call, w);
    return td__image_done(before);
}

static int transpose_grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *g = grad_out[0], *x = td_call_input(call, 0), *w = td_call_input(call, 1), *gw = in[1].into, *gb = in[2].into;
    const td_conv2d_shape s = transpose_shape(call);
    const int before = td__pending();
    if (!w)                          /* x with itself: one saved tensor                                                        */
        w = x;
    int code = td__need("td_conv_transpose2d", g, conv2d);
    if (code == 0)
        code = td__need("td_conv_transpose2d", g, conv2d_grad_w);
    if (code)
        return code;
    if (in[0].into)
        td__kernels(g)->conv2d(g->dtype, &s, td__ptr(in[0].into), td__ptr(g), td__ptr(w), NULL, in[0].add);
    if (gw)
        td__kernels(g)->conv2d_grad_w(g->dtype, &s, td__ptr(gw), NULL, td__ptr(x), td__ptr(g), in[1].add, false);
    if (gb) {                        /* the sums of gout's planes                                                              */
        const td_conv2d_shape planes = { .n = s.n, .c = s.c, .o = s.c, .oh = s.h, .ow = s.w, .dilation = 1, .groups = 1, .nhwc = s.nhwc };
        td__kernels(g)->conv2d_grad_w(g->dtype, &planes, NULL, td__ptr(gb), td__ptr(g), NULL, false, in[2].add);
    }
    return td__image_done(before);
}

const td_op td__op_conv_transpose2d = { .name = "conv_transpose2d", .infer = transpose_infer, .run = transpose_run, .grad = transpose_grad,
                                        .attr_size = sizeof(transpose_attr), .flags = TD_OP_LOW | TD__OP_FORMATS, .optional = 1u << 2 };

td_tensor *td_conv_transpose2d(td_tensor *x, td_tensor *w, td_tensor *b, const td_conv_transpose2d_opts *opts)
{
    TD_ENTER();
    transpose_attr a = { opts ? *opts : (td_conv_transpose2d_opts){ 0 }, td__keeps_channels_last(x) };
    a.o.stride = a.o.stride ? a.o.stride : 1;
    a.o.dilation = a.o.dilation ? a.o.dilation : 1;
    a.o.groups = a.o.groups ? a.o.groups : 1;
    td_tensor *in[] = { td__image_pixels(x), td__image_weights(w, a.nhwc), td__image_arg(b) };
    return td_apply(&td__op_conv_transpose2d, in, 3, &a);
}
