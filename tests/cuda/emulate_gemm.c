/* tests/cuda/emulate_gemm.c: the rows that are no kernels of tensor/cuda but cuBLASLt's products: plain loops, summed in the type that cuBLASLt is
 * asked to sum in. The rows that a device may lack answer false under TANDEM_EMULATE_FUSED=0, and for what cuBLASLt has no kernel for:
 * a matrix kept for GELU whose rows are no multiple of 8 elements.
 */
/* emulate_graph.cpp calls these at once, or when a graph runs */
#define td__cuda_gemm td__emulated_gemm
#define td__cuda_gemm_batched td__emulated_gemm_batched
#define td__cuda_gemm_bias td__emulated_gemm_bias
#define td__cuda_gemm_gelu_grad td__emulated_gemm_gelu_grad
#define td__cuda_gemm_sums td__emulated_gemm_sums
#include <convert.h>
#include <kernels.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <tensor_impl.h>

/* weak: a test may bring plugins/cuda/blas.c instead */
#define ROW(row) extern __typeof__(*((td_kernels *)0)->row) td__cuda_##row __attribute__((weak));
ROW(gemm)
ROW(gemm_batched)
ROW(gemm_bias)
ROW(gemm_gelu_grad)
ROW(gemm_sums)

static double get(td_dtype t, const void *p, int64_t i)
{
    switch (t) {
    case TD_F64: return ((const double *)p)[i];
    case TD_F16: return td__f16_to_f32(((const td_f16 *)p)[i]);
    case TD_BF16: return td__bf16_to_f32(((const td_bf16 *)p)[i]);
    default: return ((const float *)p)[i];
    }
}

static void put(td_dtype t, void *p, int64_t i, double v)
{
    switch (t) {
    case TD_F64: ((double *)p)[i] = v; break;
    case TD_F16: ((td_f16 *)p)[i] = td__f32_to_f16((float)v); break;
    case TD_BF16: ((td_bf16 *)p)[i] = td__f32_to_bf16((float)v); break;
    default: ((float *)p)[i] = (float)v; break;
    }
}

static double dot(td_dtype t, bool ta, bool tb, int64_t i, int64_t j, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb)
{
    double sum = 0;
    float sum_f = 0;
    for (int64_t l = 0; l < k; l++) {
        double product = get(t, a, ta ? l * lda + i : i * lda + l) * get(t, b, tb ? j * ldb + l : l * ldb + j);
        sum += product;
        sum_f += (float)product;
    }
    return t == TD_F64 ? sum : sum_f;
}

void td__cuda_gemm(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda, const void *b,
                   int64_t ldb, double beta, void *c, int64_t ldc)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            put(t, c, i * ldc + j, alpha * dot(t, ta, tb, i, j, k, a, lda, b, ldb) + (beta == 0 ? 0 : beta * get(t, c, i * ldc + j)));
}

void td__cuda_gemm_batched(td_dtype t, bool ta, bool tb, int64_t count, int64_t m, int64_t n, int64_t k, double alpha, const void *a, int64_t lda,
                           int64_t step_a, const void *b, int64_t ldb, int64_t step_b, double beta, void *c, int64_t ldc, int64_t step_c)
{
    const int64_t size = (int64_t)td_dtype_size(t);
    for (int64_t j = 0; j < count; j++)
        td__cuda_gemm(t, ta, tb, m, n, k, alpha, (const char *)a + j * step_a * size, lda, (const char *)b + j * step_b * size, ldb, beta,
                      (char *)c + j * step_c * size, ldc);
}

static bool fused(void)
{
    const char *text = getenv("TANDEM_EMULATE_FUSED");
    return !text || strcmp(text, "0") != 0;
}

/* gelu_tanh and its derivative */
static double gelu(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x)
{
    const double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), th = tanh(u);
    return 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

bool td__cuda_gemm_bias(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                        const void *bias, bool with_gelu, void *pre, void *c)
{
    if (!fused() || (pre && n % 8))
        return false;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double v = dot(t, ta, tb, i, j, k, a, lda, b, ldb) + (bias ? get(t, bias, j) : 0);
            if (pre)
                put(t, pre, i * n + j, v);
            put(t, c, i * n + j, with_gelu ? gelu(v) : v);
        }
    return true;
}

bool td__cuda_gemm_gelu_grad(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b,
                             int64_t ldb, const void *pre, void *c)
{
    if (!fused() || n % 8)
        return false;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
            put(t, c, i * n + j, dot(t, ta, tb, i, j, k, a, lda, b, ldb) * gelu_slope(get(t, pre, i * n + j)));
    return true;
}

bool td__cuda_gemm_sums(td_dtype t, bool ta, bool tb, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
                        double beta, void *c, void *sums, bool of_b)
{
    if (!fused())
        return false;
    td__cuda_gemm(t, ta, tb, m, n, k, 1, a, lda, b, ldb, beta, c, n);
    for (int64_t i = 0; i < (of_b ? n : m); i++) {
        double sum = 0;
        for (int64_t l = 0; l < k; l++)
            sum += of_b ? get(t, b, tb ? i * ldb + l : l * ldb + i) : get(t, a, ta ? l * lda + i : i * lda + l);
        put(t, sums, i, sum);
    }
    return true;
}
