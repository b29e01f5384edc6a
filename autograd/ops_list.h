/* autograd/ops_list.h: the one list of the library's operations. Each is a constant record td__op_<name> in the ops_*.c file of its
 * family. A new operation adds a line here; registry.c makes the public registry from it, and tests walk that.
 */
#ifndef TD_OPS_LIST_H
#define TD_OPS_LIST_H
#include <autograd_impl.h>

/* arithmetic, reductions, views, products, activations, softmax, losses */
#define TD_OP_LIST_A(X)                                                                                      \
    X(add) X(sub) X(mul) X(div) X(neg) X(scale) X(shift) X(eq) X(cast)               /* ops_arith.c, ops_cast.c       */ \
    X(sum) X(mean) X(amax) X(amin) X(argmax)                                         /* ops_reduce.c                  */ \
    X(reshape) X(permute) X(expand) X(narrow) X(contiguous) X(detach) X(to_memory_format) /* ops_view.c, ops_format.c   */ \
    X(matmul) X(linear) X(affine) X(linear_gelu) X(mlp)                              /* ops_matmul.c, ops_linear.c    */ \
    X(relu) X(gelu) X(sigmoid) X(tanh) X(softmax)                                    /* ops_activation.c, ops_softmax.c */ \
    X(gelu_tanh) X(silu) X(exp) X(ln) X(sqrt) X(log_softmax) X(abs) X(pow) X(clamp) /* the same, ops_pointwise.c */ \
    X(maximum) X(minimum) X(where) X(var) X(nll) X(bce_with_logits)                  /* ops_choose.c, ops_var.c, ops_nll.c */ \
    X(cross_entropy) X(mse)                                                          /* ops_loss.c                    */

/* images, normalisation, random */
#define TD_OP_LIST_B(X)                                                                                      \
    X(attention) X(rotary) X(swiglu)                                                 /* ops_attention.c, ops_rotary.c, ops_swiglu.c */ \
    X(layer_norm) X(rms_norm) X(group_norm)                                          /* ops_layer_norm.c              */ \
    X(lstm_cell) X(gru_cell)                                                         /* ops_rnn.c                     */ \
    X(embedding) X(index_select) X(gather) X(concat) X(pad)                          /* ops_embedding.c, ops_index.c, ops_join.c, ops_pad.c */ \
    X(conv_transpose2d) X(adaptive_max_pool2d) X(adaptive_avg_pool2d)                /* ops_conv_transpose.c, ops_pool.c */         \
    X(conv2d) X(max_pool2d) X(avg_pool2d) X(batch_norm) X(batch_norm_relu) X(dropout) /* ops_conv.c, ops_pool.c, ops_norm.c, ops_dropout.c */

#define TD_OP_LIST(X) TD_OP_LIST_A(X) TD_OP_LIST_B(X)

/* those that a device which computes in 16 bits computes in them (half.c) */
#define TD_OP_LIST_HALF(X)                                                                                   \
    X(add) X(sub) X(mul) X(div) X(neg) X(scale) X(shift) X(eq) X(cast) X(sum) X(mean) X(amax) X(amin) X(argmax) \
    X(reshape) X(permute) X(expand) X(narrow) X(contiguous) X(detach) X(matmul) X(linear) X(affine) X(linear_gelu) X(mlp) \
    X(relu) X(gelu) X(sigmoid) X(tanh) X(softmax) X(gelu_tanh) X(silu) X(exp) X(ln) X(sqrt) X(log_softmax) X(abs) X(pow) X(clamp) \
    X(maximum) X(minimum) X(where) X(cross_entropy) X(attention) X(rotary) X(swiglu)                         \
    X(layer_norm) X(rms_norm) X(group_norm) X(lstm_cell) X(gru_cell)                                         \
    X(embedding) X(index_select) X(gather) X(concat) X(pad) X(dropout) X(to_memory_format)                   \
    X(conv2d) X(conv_transpose2d) X(max_pool2d) X(avg_pool2d) X(adaptive_max_pool2d) X(adaptive_avg_pool2d) X(batch_norm) X(batch_norm_relu)

/* One output, whose element i is made of the inputs' elements i (a broadcast one's, where it stands for i) and of attributes: run may be called for
 * a part of the elements (capture_fuse.c). dropout counts its elements, and is asked for a part by td__dropout_part. */
#define TD_OP_LIST_ELEMENTS(X)                                                                               \
    X(add) X(sub) X(mul) X(div) X(neg) X(scale) X(shift) X(eq) X(cast) X(relu) X(gelu) X(gelu_tanh) X(sigmoid) X(tanh) X(silu) \
    X(exp) X(ln) X(sqrt) X(abs) X(pow) X(clamp) X(maximum) X(minimum) X(where) X(swiglu) X(dropout)

#define TD_OP_DECLARE(name) extern const td_op td__op_##name;
TD_OP_LIST(TD_OP_DECLARE)
#undef TD_OP_DECLARE

#endif
