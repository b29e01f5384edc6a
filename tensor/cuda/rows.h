/* tensor/cuda/rows.h: the rows of td_kernels that CUDA fills, by file. A row that is not here is empty: an operation that needs it says so.
 */
#ifndef TD_CUDA_ROWS_H
#define TD_CUDA_ROWS_H
#define TD_CUDA_ROWS(X)                                                                                      \
    X(attention) X(attention_grad)                                                   /* attention.cu  */     \
    X(conv2d) X(conv2d_grad_x) X(conv2d_grad_w)                                      /* conv2d.cu     */     \
    X(gemm) X(gemm_batched) X(gemm_bias) X(gemm_gelu_grad) X(gemm_sums)              /* plugins/cuda/blas.c */ \
    X(copy) X(fill) X(arange)                                                        /* move.cu       */     \
    X(softmax) X(softmax_grad) X(log_softmax) X(log_softmax_grad)                    /* softmax.cu    */     \
    X(cross_entropy) X(cross_entropy_grad) X(mse) X(mse_grad)                        /* loss.cu       */     \
    X(nll) X(nll_grad) X(bce) X(bce_grad)                                            /* nll.cu        */     \
    X(sum) X(amax) X(amin) X(argmax)                                                 /* reduce.cu     */     \
    X(relu) X(gelu) X(gelu_tanh) X(sigmoid) X(tanh) X(silu) X(exp) X(ln) X(sqrt)     /* activation.cu */     \
    X(relu_grad) X(gelu_grad) X(gelu_tanh_grad) X(sigmoid_grad) X(tanh_grad) X(silu_grad) X(exp_grad) X(ln_grad) X(sqrt_grad) \
    X(abs) X(abs_grad) X(pow) X(pow_grad) X(clamp) X(clamp_grad) X(maximum) X(minimum) X(extreme_grad) X(where) X(where_grad) \
    X(swiglu) X(swiglu_grad) X(rotary)                                                                       \
    X(lstm_cell) X(lstm_cell_grad) X(gru_cell) X(gru_cell_grad)                      /* rnn.cu        */     \
    X(rand) X(randint) X(dropout) X(not_finite)                                                              \
    X(add) X(add_half) X(sub) X(mul) X(div) X(div_grad_b) X(eq) X(scale)             /* elementwise.cu */ \
    X(layer_norm) X(layer_norm_grad)                                                 /* layer_norm.cu  */     \
    X(group_norm) X(group_norm_grad)                                                 /* group_norm.cu  */     \
    X(batch_norm) X(batch_norm_grad) X(batch_norm_pair) X(batch_norm_affine)         /* batch_norm.cu  */     \
    X(batch_norm_relu) X(batch_norm_relu_grad)                                                               \
    X(index_check) X(index_select) X(index_select_grad) X(gather) X(gather_grad)     /* index.cu       */     \
    X(max_pool2d) X(max_pool2d_grad) X(avg_pool2d) X(avg_pool2d_grad)                /* pool2d.cu      */     \
    X(adaptive_max_pool2d) X(adaptive_avg_pool2d) X(adaptive_avg_pool2d_grad)                                 \
    X(sgd) X(adamw) X(sumsq)                                                         /* optimizer.cu   */     \
    X(adam) X(rmsprop) X(adagrad) X(lion) X(ema)                                     /* optimizer_adaptive.cu */ \
    X(lamb_moments) X(lamb) X(lars)                                                  /* optimizer_layer.cu */ \
    X(times) X(clip_factor) X(mark_not_finite) X(scale_update)                       /* optimizer_numbers.cu */ \
    X(sync_norm) X(sync_norm_own) X(sync_norm_grad)                                  /* batch_norm_sync.cu */ \
    X(combine)                                                                       /* combine.cu     */
#endif
