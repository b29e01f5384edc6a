/* plugins/cuda/blas.h: matrix products from inside. A product is a blas_shape (what cuBLASLt's choice of a kernel depends on), blas_args (what
 * differs from call to call) and a plan, made when a shape is first met.
 *
 * Row-major terms everywhere but in blas_plan.c: cuBLASLt counts columns first and so sees C' = B' A'.
 */
#ifndef TD_CUDA_BLAS_H
#define TD_CUDA_BLAS_H
#include "cuda_impl.h"
#include <cublasLt.h>

/* Compared as bytes: no padding. */
typedef struct {
    int64_t m, n, k, lda, ldb, ldc, count, step_a, step_b, step_c;
    int32_t t, ta, tb, tf32;
    int32_t epilogue;                                  /* a cublasLtEpilogue_t                                                    */
    int32_t reads_c;                                   /* beta is not 0                                                            */
    int32_t align_a, align_b, align_c, align_extra, align_aux, reserved;
} blas_shape;
_Static_assert(sizeof(blas_shape) == 10 * sizeof(int64_t) + 12 * sizeof(int32_t), "padding would be compared");

typedef struct {
    double alpha, beta;
    const void *a, *b;
    void *c;
    void *extra;                                       /* the bias; where sums go                                                 */
    void *aux;                                         /* gelu's input: kept, or read by its gradient                             */
} blas_args;

typedef struct blas_plan {
    blas_shape key;
    struct blas_plan *next;
    bool lacks;                                        /* cuBLASLt has no kernel for it                                            */
    cublasLtMatmulDescOpaque_t how;
    cublasLtMatrixLayoutOpaque_t a, b, c;              /* of cuBLASLt's first, second and result: initialised in place, never moved */
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
} blas_plan;

extern cublasLtHandle_t blas_handle;
extern const size_t blas_workspace_size;

/* blas_plan.c: does it, or says it cannot. False: cuBLASLt has no kernel for it and `may_lack`; nothing was done. */
bool blas_run(const char *row, const blas_shape *x, const blas_args *args, bool may_lack);
/* Under its lock: starts plan p by the algorithm given; the result goes to `into` (args->c, or elsewhere). */
cublasStatus_t blas_start(blas_plan *p, const blas_args *args, void *into, const cublasLtMatmulAlgo_t *algorithm, size_t workspace);

/* blas_choose.c, under the same lock: TANDEM_GEMM, TANDEM_GEMM_FILE; 0 or a code after fail */
int blas_choose_open(void);
/* p's algorithm, from the file, by measuring, or the first that cuBLASLt advises. *s: why not. 0, or a code after fail. */
int blas_choose(blas_plan *p, const blas_args *args, cublasStatus_t *s);

/* blas.c: the rows */
extern __typeof__(*((td_kernels *)0)->gemm_batched) td__cuda_gemm_batched;
extern __typeof__(*((td_kernels *)0)->gemm_bias) td__cuda_gemm_bias;
extern __typeof__(*((td_kernels *)0)->gemm_gelu_grad) td__cuda_gemm_gelu_grad;
extern __typeof__(*((td_kernels *)0)->gemm_sums) td__cuda_gemm_sums;
#endif
