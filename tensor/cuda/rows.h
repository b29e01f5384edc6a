/* tensor/cuda/rows.h: the rows of td_kernels that CUDA fills, by file. A row that is not here is empty: an operation that needs it says so.
 */
#ifndef TD_CUDA_ROWS_H
#define TD_CUDA_ROWS_H
#define TD_CUDA_ROWS(X)                                                                                      \
    X(conv2d) X(conv2d_grad_x) X(conv2d_grad_w)                                      /* conv2d.cu     */     \
    X(gemm)                                                                          /* plugins/cuda/blas.c */ \
    X(copy) X(fill) X(arange)                                                        /* move.cu       */     \
    X(sum) X(amax) X(amin) X(argmax)                                                 /* reduce.cu     */     \
    X(add) X(sub) X(mul) X(div) X(div_grad_b) X(eq) X(scale)                         /* elementwise.cu */ \
    X(layer_norm) X(layer_norm_grad)                                                 /* layer_norm.cu  */     \
    X(group_norm) X(group_norm_grad)                                                 /* group_norm.cu  */     \
    X(batch_norm) X(batch_norm_grad) X(batch_norm_pair) X(batch_norm_affine)         /* batch_norm.cu  */     \
    X(index_check) X(index_select) X(index_select_grad) X(gather) X(gather_grad)     /* index.cu       */     \
    X(max_pool2d) X(max_pool2d_grad) X(avg_pool2d) X(avg_pool2d_grad)                /* pool2d.cu      */     \
    X(adaptive_max_pool2d) X(adaptive_avg_pool2d) X(adaptive_avg_pool2d_grad)                                 \
    X(sgd) X(adamw) X(sumsq)                                                         /* optimizer.cu   */     \
    X(adam) X(rmsprop) X(adagrad) X(lion) X(ema)                                     /* optimizer_adaptive.cu */ \
    X(lamb_moments) X(lamb) X(lars)                                                  /* optimizer_layer.cu */ \
    X(combine)                                                                       /* combine.cu     */
#endif
