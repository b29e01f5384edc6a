/* plugins/cuda/blas.c: the rows of matrix products through cuBLASLt, which has no C++ in its interface, picks a kernel per shape, and adds a
 * bias, computes GELU or sums columns where the result is in registers anyhow.
 *
 * Its GELU is the tanh form, and nobody says how exact a tanh: it is asked of f16, bf16, and of f32 where tf32 is allowed. A matrix that is
 * kept for GELU's gradient has rows of a multiple of 8 elements and begins at one of 16 bytes. f64 has no epilogues. Whatever else cuBLASLt
 * has no kernel for is answered by false, and remembered.
 */
#include "blas.h"

static int32_t alignment(const void *p)
{
    const uintptr_t at = (uintptr_t)p;
    int32_t a = 256;
    while (at % (uintptr_t)a)
        a /= 2;
    return a;
}

/* A matrix of one row has any leading dimension: operations give the row's length or less. */
static blas_shape shape_of(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, uint32_t epilogue,
                           const blas_args *args)
{
    const int64_t row_a = ta ? m : k, row_b = tb ? k : n;
    return (blas_shape){ .m = m, .n = n, .k = k, .lda = lda > row_a ? lda : row_a, .ldb = ldb > row_b ? ldb : row_b, .ldc = ldc > n ? ldc : n,
                         .count = 1, .t = (int32_t)t, .ta = ta, .tb = tb, .tf32 = t == TD_F32 && td_tf32_allowed(), .epilogue = (int32_t)epilogue,
                         .reads_c = args->beta != 0, .align_a = alignment(args->a), .align_b = alignment(args->b),
                         .align_c = alignment(args->c), .align_extra = alignment(args->extra), .align_aux = alignment(args->aux) };
}

/* C = beta*C: a product over nothing. */
static void only_beta(td_dtype t, int64_t count, int64_t m, int64_t n, double beta, void *c, int64_t ldc, int64_t step)
{
    const td_loop l = { .ndim = 3, .dim = { count, m, n }, .stride = { { step, ldc, 1 }, { step, ldc, 1 } } };
    if (beta == 0)
        td__cuda_kernels.fill(&l, t, c, 0.0);
    else if (beta != 1)
        td__cuda_kernels.scale(&l, t, c, c, beta, 0.0, false);
}

void td__cuda_gemm(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                   int64_t ldb, double beta, void *c, int64_t ldc)
{
    if (m <= 0 || n <= 0)
        return;
    if (k <= 0) {
        only_beta(t, 1, m, n, beta, c, ldc, 0);
        return;
    }
    const blas_args args = { .alpha = alpha, .beta = beta, .a = a, .b = b, .c = c };
    const blas_shape x = shape_of(t, ta, tb, m, n, k, lda, ldb, ldc, CUBLASLT_EPILOGUE_DEFAULT, &args);
    blas_run("gemm", &x, &args, false);
}

/* the alignment that every matrix of a batch has */
static int32_t batch_alignment(int32_t first, int64_t step, td_dtype t)
{
    const int32_t all = alignment((const void *)(uintptr_t)(step * (int64_t)td_dtype_size(t)));
    return step && all < first ? all : first;
}

void td__cuda_gemm_batched(td_dtype t, bool ta, bool tb, int64_t count, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda,
                           int64_t step_a, const void *b, int64_t ldb, int64_t step_b, double beta, void *c, int64_t ldc, int64_t step_c)
{
    const int64_t most = INT32_MAX, size = (int64_t)td_dtype_size(t);
    if (m <= 0 || n <= 0)
        return;
    if (k <= 0 && count > 0)
        only_beta(t, count, m, n, beta, c, ldc, step_c);
    for (int64_t i = 0; i < count && k > 0; i += most) {
        const blas_args args = { .alpha = alpha, .beta = beta, .a = (const char *)a + i * step_a * size, .b = (const char *)b + i * step_b * size,
                                 .c = (char *)c + i * step_c * size };
        blas_shape x = shape_of(t, ta, tb, m, n, k, lda, ldb, ldc, CUBLASLT_EPILOGUE_DEFAULT, &args);
        x.count = count - i < most ? count - i : most;
        if (x.count > 1) {
            x.step_a = step_a, x.step_b = step_b, x.step_c = step_c;
            x.align_a = batch_alignment(x.align_a, step_a, t);
            x.align_b = batch_alignment(x.align_b, step_b, t);
            x.align_c = batch_alignment(x.align_c, step_c, t);
        }
        blas_run("gemm_batched", &x, &args, false);
    }
}

static bool may_gelu(td_dtype t)
{
    return td__is_half(t) || (t == TD_F32 && td_tf32_allowed());
}

/* Can gelu's input be kept there? */
static bool keepable(const void *aux, int64_t n)
{
    return n % 8 == 0 && alignment(aux) >= 16;
}

bool td__cuda_gemm_bias(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                        const void *bias, bool gelu, void *pre, void *c)
{
    if (t == TD_F64 || k <= 0 || (gelu && !may_gelu(t)) || (pre && !gelu) || (pre && !keepable(pre, n)))
        return false;
    if (m <= 0 || n <= 0)
        return true;
    const uint32_t epilogue = !gelu ? (bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT)
                              : pre ? (bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX)
                                    : (bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU);
    const blas_args args = { .alpha = 1, .a = a, .b = b, .c = c, .extra = (void *)bias, .aux = pre };
    const blas_shape x = shape_of(t, ta, tb, m, n, k, lda, ldb, n, epilogue, &args);
    return blas_run("gemm_bias", &x, &args, true);
}

bool td__cuda_gemm_gelu_grad(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                             int64_t ldb, const void *pre, void *c)
{
    if (!may_gelu(t) || k <= 0 || !keepable(pre, n))
        return false;
    if (m <= 0 || n <= 0)
        return true;
    const blas_args args = { .alpha = 1, .a = a, .b = b, .c = c, .aux = (void *)pre };
    const blas_shape x = shape_of(t, ta, tb, m, n, k, lda, ldb, n, CUBLASLT_EPILOGUE_DGELU, &args);
    return blas_run("gemm_gelu_grad", &x, &args, true);
}

/* cuBLASLt's first matrix is our B. */
bool td__cuda_gemm_sums(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                        double beta, void *c, void *sums, bool of_b)
{
    if (t == TD_F64 || k <= 0 || m <= 0 || n <= 0)
        return false;
    const blas_args args = { .alpha = 1, .beta = beta, .a = a, .b = b, .c = c, .extra = sums };
    const blas_shape x = shape_of(t, ta, tb, m, n, k, lda, ldb, n, of_b ? CUBLASLT_EPILOGUE_BGRADA : CUBLASLT_EPILOGUE_BGRADB, &args);
    return blas_run("gemm_sums", &x, &args, true);
}
