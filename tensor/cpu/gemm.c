/* tensor/cpu/gemm.c: matrix products through OpenBLAS.
 *
 * The OpenMP build is linked; where the host process has brought another build of the same library (its symbols come first), that one
 * would start threads of its own beside OpenMP's, so it is told to use one. Empty products are ours: BLAS need not define them.
 * BLAS counts in int: longer dimensions are cut here; leading dimensions that long are refused by the operations.
 */
#include <cblas.h>
#include <limits.h>
#include <stdlib.h>
#include "cpu.h"

static void check_build(void)
{
    static _Atomic int checked;
    if (atomic_load_explicit(&checked, memory_order_acquire))
        return;
    if (openblas_get_parallel() != 2)                          /* 2: OpenMP                                         */
        openblas_set_num_threads(1);
    atomic_store_explicit(&checked, 1, memory_order_release);
}

#define BETA(T, name)                                                                                        \
    static void beta_##name(int64_t m, int64_t n, double beta, T *c, int64_t ldc)                            \
    {                                                                                                        \
        for (int64_t i = 0; i < m; i++)                                                                      \
            for (int64_t j = 0; j < n; j++)                                                                  \
                c[i * ldc + j] = beta == 0 ? 0 : (T)beta * c[i * ldc + j];                                   \
    }
BETA(float, f32)
BETA(double, f64)

void K(gemm)(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
             int64_t ldb, double beta, void *c, int64_t ldc)
{
    const int64_t limit = INT_MAX / 2;
    if (m <= 0 || n <= 0)
        return;
    if (k <= 0) {
        if (t == TD_F32)
            beta_f32(m, n, beta, c, ldc);
        else
            beta_f64(m, n, beta, c, ldc);
        return;
    }
    check_build();
    const size_t size = t == TD_F32 ? 4 : 8;
    const CBLAS_TRANSPOSE opa = ta ? CblasTrans : CblasNoTrans, opb = tb ? CblasTrans : CblasNoTrans;
    for (int64_t i = 0; i < m; i += limit)
        for (int64_t j = 0; j < n; j += limit)
            for (int64_t l = 0; l < k; l += limit) {
                const int mm = (int)(m - i < limit ? m - i : limit), nn = (int)(n - j < limit ? n - j : limit),
                          kk = (int)(k - l < limit ? k - l : limit);
                const char *pa = (const char *)a + (size_t)(ta ? l * lda + i : i * lda + l) * size;
                const char *pb = (const char *)b + (size_t)(tb ? j * ldb + l : l * ldb + j) * size;
                char *pc = (char *)c + (size_t)(i * ldc + j) * size;
                const double keep = l == 0 ? beta : 1;
                if (t == TD_F32)
                    cblas_sgemm(CblasRowMajor, opa, opb, mm, nn, kk, (float)alpha, (const float *)(const void *)pa, (int)lda,
                                (const float *)(const void *)pb, (int)ldb, (float)keep, (float *)(void *)pc, (int)ldc);
                else
                    cblas_dgemm(CblasRowMajor, opa, opb, mm, nn, kk, alpha, (const double *)(const void *)pa, (int)lda,
                                (const double *)(const void *)pb, (int)ldb, keep, (double *)(void *)pc, (int)ldc);
            }
}

/* Small products side by side: each is one that BLAS would leave to a single thread anyhow (it cuts larger ones itself), so the bits are
 * those of one product after the other. */
void K(gemm_batched)(td_dtype t, bool ta, bool tb, int64_t count, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda,
                     int64_t step_a, const void *b, int64_t ldb, int64_t step_b, double beta, void *c, int64_t ldc, int64_t step_c)
{
    const int64_t size = t == TD_F32 ? 4 : 8, small = 64 * 64 * 64;
    const bool one_thread = m > 0 && n > 0 && k > 0 && m <= small && n <= small && k <= small && m * n <= small && m * n * k <= small;
    check_build();
#pragma omp parallel for schedule(static) if (one_thread && count > 1 && count * m * n * k >= 8 * TD_PARALLEL)
    for (int64_t j = 0; j < count; j++)
        K(gemm)(t, ta, tb, m, n, k, alpha, (const char *)a + j * step_a * size, lda, (const char *)b + j * step_b * size, ldb, beta,
                (char *)c + j * step_c * size, ldc);
}
