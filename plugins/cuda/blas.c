/* plugins/cuda/blas.c: the row `gemm` through cuBLASLt, which has no C++ in its interface and picks a kernel per shape.
 *
 * cuBLASLt counts columns first: a row-major (r,c) matrix is its (c,r), so C = A B is asked for as C' = B' A'. What it advises for a shape
 * (by its own model, not by measuring) is kept, with the descriptions of the matrices, in a table by shape, leading dimensions and alignment.
 *
 * f64 is computed in double, f32 in float (TANDEM_TF32=1: products of numbers rounded to 10 bits, on tensor cores), f16 and bf16 as
 * products of them summed in float; partial sums that a kernel keeps are float too. All products share one workspace: they are on one stream.
 */
#include "cuda_impl.h"
#include <cublasLt.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 1024, PLANS_MOST = 8192 };
static const size_t WORKSPACE = 32u << 20;             /* what NVIDIA advises for compute capability 9.0                             */

typedef struct {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t t, ta, tb, align_a, align_b, align_c;
} shape;
typedef struct plan {
    shape key;
    struct plan *next;
    cublasLtMatmulDescOpaque_t how;
    cublasLtMatrixLayoutOpaque_t a, b, c;              /* of cuBLASLt's first, second and result                                  */
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
} plan;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cublasLtHandle_t handle;
static void *workspace;
static bool tf32;
static plan *plans[BUCKETS];
static int plan_count;

size_t cublas_version(void)
{
    return cublasLtGetVersion();
}

static int blas_failed(cublasStatus_t s, const char *what, const shape *x)
{
    return cuda_host->fail(s == CUBLAS_STATUS_ALLOC_FAILED ? TD_ERR_MEMORY : TD_ERR_DEVICE,
                           "%s: cuBLASLt: %s (%s), for a product of (%lld,%lld) and (%lld,%lld) in %s on cuda:%d", what, cublasLtGetStatusString(s),
                           cublasLtGetStatusName(s), (long long)x->m, (long long)x->k, (long long)x->k, (long long)x->n,
                           td_dtype_name((td_dtype)x->t), cuda_index());
}

static cudaDataType_t data_type(int32_t t)
{
    return t == TD_F64 ? CUDA_R_64F : t == TD_F16 ? CUDA_R_16F : t == TD_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static int32_t alignment(const void *p)
{
    const uintptr_t at = (uintptr_t)p;
    int32_t a = 256;
    while (at % (uintptr_t)a)
        a /= 2;
    return a;
}

/* Under the lock: once per process. */
static int open_library(const shape *x)
{
    const char *wish = cuda_host->env(TD_ENV_TF32);
    cublasStatus_t s = cublasLtCreate(&handle);
    if (s != CUBLAS_STATUS_SUCCESS) {
        handle = NULL;
        return blas_failed(s, "matrix products cannot be started", x);
    }
    workspace = cuda_alloc(cuda_index(), WORKSPACE);
    if (!workspace) {
        cublasLtDestroy(handle);
        handle = NULL;
        return TD_ERR_MEMORY;
    }
    tf32 = wish && strcmp(wish, "0") != 0;
    return 0;
}

#define SET(call) if (s == CUBLAS_STATUS_SUCCESS) s = (call)

static int advice(plan *p)
{
    const shape *x = &p->key;
    const cudaDataType_t data = data_type(x->t);
    const cublasOperation_t opa = x->tb ? CUBLAS_OP_T : CUBLAS_OP_N, opb = x->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasComputeType_t compute = x->t == TD_F64 ? CUBLAS_COMPUTE_64F : x->t == TD_F32 && tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    /* 16-bit partial sums would be rounded twice and more: float ones, in the workspace */
    const uint32_t sums = td__is_half((td_dtype)x->t) ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_MASK;
    const uint32_t align_b = (uint32_t)x->align_b, align_a = (uint32_t)x->align_a, align_c = (uint32_t)x->align_c;
    cublasLtMatmulPreferenceOpaque_t wish;
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    cublasStatus_t s = cublasLtMatmulDescInit(&p->how, compute, x->t == TD_F64 ? CUDA_R_64F : CUDA_R_32F);
    SET(cublasLtMatmulDescSetAttribute(&p->how, CUBLASLT_MATMUL_DESC_TRANSA, &opa, sizeof opa));
    SET(cublasLtMatmulDescSetAttribute(&p->how, CUBLASLT_MATMUL_DESC_TRANSB, &opb, sizeof opb));
    SET(cublasLtMatrixLayoutInit(&p->a, data, (uint64_t)(x->tb ? x->k : x->n), (uint64_t)(x->tb ? x->n : x->k), x->ldb));
    SET(cublasLtMatrixLayoutInit(&p->b, data, (uint64_t)(x->ta ? x->m : x->k), (uint64_t)(x->ta ? x->k : x->m), x->lda));
    SET(cublasLtMatrixLayoutInit(&p->c, data, (uint64_t)x->n, (uint64_t)x->m, x->ldc));
    SET(cublasLtMatmulPreferenceInit(&wish));
    SET(cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE));
    SET(cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums));
    SET(cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_b, sizeof align_b));
    SET(cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_a, sizeof align_a));
    SET(cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_c, sizeof align_c));
    SET(cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_c, sizeof align_c));
    SET(cublasLtMatmulAlgoGetHeuristic(handle, &p->how, &p->a, &p->b, &p->c, &p->c, &wish, 1, &found, &count));
    SET(count > 0 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED);
    if (s != CUBLAS_STATUS_SUCCESS)
        return blas_failed(s, "no kernel", x);
    p->algorithm = found.algo;
    p->workspace = found.workspaceSize;
    return 0;
}

static void forget_plans(void)
{
    for (int i = 0; i < BUCKETS; i++)
        while (plans[i]) {
            plan *next = plans[i]->next;
            free(plans[i]);
            plans[i] = next;
        }
    plan_count = 0;
}

/* The plan of x, made when it is new: a copy, since another thread may forget it. */
static int plan_for(const shape *x, plan *into)
{
    uint64_t h = 0;
    const int64_t words[] = { x->m, x->n, x->k, x->lda, x->ldb, x->ldc, x->t * 4 + x->ta * 2 + x->tb, x->align_a, x->align_b, x->align_c };
    for (size_t i = 0; i < TD_COUNT(words); i++)
        h = (h ^ (uint64_t)words[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    plan **bucket = &plans[h % BUCKETS], *p;
    int code = 0;
    pthread_mutex_lock(&lock);
    for (p = *bucket; p && memcmp(&p->key, x, sizeof *x) != 0;)
        p = p->next;
    if (!p) {
        code = handle ? 0 : open_library(x);
        if (!code && plan_count >= PLANS_MOST)         /* shapes that never come again must not pile up                          */
            forget_plans();
        p = code ? NULL : calloc(1, sizeof *p);
        if (!code && !p)
            code = cuda_host->fail(TD_ERR_MEMORY, "%zu bytes for the plan of a matrix product cannot be had", sizeof *p);
        if (!code) {
            p->key = *x;
            code = advice(p);
        }
        if (code) {
            free(p);
        } else {
            p->next = *bucket;
            *bucket = p;
            plan_count++;
        }
    }
    if (!code)
        *into = *p;
    pthread_mutex_unlock(&lock);
    return code;
}

/* C = beta*C: a product over nothing. */
static void only_beta(td_dtype t, int64_t m, int64_t n, double beta, void *c, int64_t ldc)
{
    const td_loop l = { .ndim = 2, .dim = { m, n }, .stride = { { ldc, 1 }, { ldc, 1 } } };
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
        only_beta(t, m, n, beta, c, ldc);
        return;
    }
    /* A matrix of one row has any leading dimension: operations give the row's length or less. */
    const int64_t row_a = ta ? m : k, row_b = tb ? k : n;
    const shape x = { .m = m, .n = n, .k = k, .lda = lda > row_a ? lda : row_a, .ldb = ldb > row_b ? ldb : row_b, .ldc = ldc > n ? ldc : n,
                      .t = (int32_t)t, .ta = ta, .tb = tb, .align_a = alignment(a), .align_b = alignment(b), .align_c = alignment(c) };
    plan p;
    cudaStream_t stream = td__cuda_stream();
    if (plan_for(&x, &p))
        return;
    const float alpha_f = (float)alpha, beta_f = (float)beta;
    const void *by = t == TD_F64 ? (const void *)&alpha : &alpha_f, *keep = t == TD_F64 ? (const void *)&beta : &beta_f;
    atomic_store_explicit(&cuda_last_row, "gemm", memory_order_relaxed);
    cublasStatus_t s = cublasLtMatmul(handle, &p.how, by, b, &p.a, a, &p.b, keep, c, &p.c, c, &p.c, &p.algorithm, workspace, p.workspace, stream);
    if (s != CUBLAS_STATUS_SUCCESS)
        blas_failed(s, "a matrix product cannot be started", &x);
}
