/* tensor/cuda/rows.h: the rows of td_kernels that CUDA fills, by file. A row that is not here is empty: an operation that needs it says so.
 */
#ifndef TD_CUDA_ROWS_H
#define TD_CUDA_ROWS_H
#define TD_CUDA_ROWS(X)                                                                                      \
    X(copy) X(fill) X(arange)                                                        /* move.cu       */     \
    X(add) X(sub) X(mul) X(div) X(div_grad_b) X(eq) X(scale)                         /* elementwise.cu */
#endif
