/* plugins/cuda/blas_plan.c: plans of matrix products: how cuBLASLt is told what a product is, kept by shape, and how one is started.
 *
 * f64 is computed in double, f32 in float (td_allow_tf32: products of numbers rounded to 10 bits, on tensor cores), f16 and bf16 as
 * products of them summed in float; partial sums that a kernel keeps are float too. All products share one workspace: they are on one stream.
 * One lock covers a plan from its making to the launch: a plan may be forgotten by another thread, and it holds the call's pointers.
 */
#include "blas.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 1024, PLANS_MOST = 8192 };
const size_t blas_workspace_size = 32u << 20;          /* what NVIDIA advises for compute capability 9.0                             */
cublasLtHandle_t blas_handle;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *workspace;
static blas_plan *plans[BUCKETS];
static int plan_count;

size_t cublas_version(void)
{
    return cublasLtGetVersion();
}

static int blas_failed(cublasStatus_t s, const char *what, const blas_shape *x)
{
    return cuda_host->fail(s == CUBLAS_STATUS_ALLOC_FAILED ? TD_ERR_MEMORY : TD_ERR_DEVICE,
                           "%s: cuBLASLt: %s (%s), for a product of (%lld,%lld) and (%lld,%lld) in %s on cuda:%d", what, cublasLtGetStatusString(s),
                           cublasLtGetStatusName(s), (long long)x->m, (long long)x->k, (long long)x->k, (long long)x->n,
                           td_dtype_name((td_dtype)x->t), cuda_index());
}

/* Under the lock: once per process. */
static int open_library(cublasStatus_t *s)
{
    int code = blas_choose_open();
    if (code)
        return code;
    *s = cublasLtCreate(&blas_handle);
    if (*s != CUBLAS_STATUS_SUCCESS) {
        blas_handle = NULL;
        return TD_ERR_DEVICE;
    }
    workspace = td__cuda_scratch(blas_workspace_size);   /* kept */
    if (!workspace) {
        cublasLtDestroy(blas_handle);
        blas_handle = NULL;
        return TD_ERR_MEMORY;
    }
    return 0;
}

#define SET(call) if (s == CUBLAS_STATUS_SUCCESS) s = (call)

static cublasStatus_t layout(cublasLtMatrixLayoutOpaque_t *m, const blas_shape *x, int64_t rows, int64_t cols, int64_t ld, int64_t step)
{
    const cudaDataType_t data = x->t == TD_F64 ? CUDA_R_64F : x->t == TD_F16 ? CUDA_R_16F : x->t == TD_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const int32_t count = (int32_t)x->count;
    cublasStatus_t s = cublasLtMatrixLayoutInit(m, data, (uint64_t)rows, (uint64_t)cols, ld);
    if (count > 1) {
        SET(cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count));
        SET(cublasLtMatrixLayoutSetAttribute(m, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step));
    }
    return s;
}

/* The call's own pointers: before advice is asked for, too, which looks at their alignment. */
static cublasStatus_t point(blas_plan *p, const blas_args *args)
{
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    if (args->extra)
        SET(cublasLtMatmulDescSetAttribute(&p->how, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &args->extra, sizeof args->extra));
    if (args->aux)
        SET(cublasLtMatmulDescSetAttribute(&p->how, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &args->aux, sizeof args->aux));
    return s;
}

static cublasStatus_t describe(blas_plan *p, const blas_args *args)
{
    const blas_shape *x = &p->key;
    const cublasOperation_t first = x->tb ? CUBLAS_OP_T : CUBLAS_OP_N, second = x->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasComputeType_t compute = x->t == TD_F64 ? CUBLAS_COMPUTE_64F : x->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const uint32_t epilogue = (uint32_t)x->epilogue;
    const int64_t aux_ld = x->n;
    cublasStatus_t s = cublasLtMatmulDescInit(&p->how, compute, x->t == TD_F64 ? CUDA_R_64F : CUDA_R_32F);
    SET(cublasLtMatmulDescSetAttribute(&p->how, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    SET(cublasLtMatmulDescSetAttribute(&p->how, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    SET(cublasLtMatmulDescSetAttribute(&p->how, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (args->aux)
        SET(cublasLtMatmulDescSetAttribute(&p->how, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &aux_ld, sizeof aux_ld));
    SET(point(p, args));
    SET(layout(&p->a, x, x->tb ? x->k : x->n, x->tb ? x->n : x->k, x->ldb, x->step_b));
    SET(layout(&p->b, x, x->ta ? x->m : x->k, x->ta ? x->k : x->m, x->lda, x->step_a));
    SET(layout(&p->c, x, x->n, x->m, x->ldc, x->step_c));
    return s;
}

static void forget_plans(void)
{
    for (int i = 0; i < BUCKETS; i++)
        while (plans[i]) {
            blas_plan *next = plans[i]->next;
            free(plans[i]);
            plans[i] = next;
        }
    plan_count = 0;
}

/* The plan of x, made when it is new. NULL: *code after fail, or *s says why. */
static blas_plan *plan_for(const blas_shape *x, const blas_args *args, bool may_lack, int *code, cublasStatus_t *s)
{
    uint64_t h = 0;
    const unsigned char *bytes = (const unsigned char *)x;
    for (size_t i = 0; i < sizeof *x; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        h = (h ^ word) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    }
    blas_plan **bucket = &plans[h % BUCKETS], *p;
    for (p = *bucket; p && memcmp(&p->key, x, sizeof *x) != 0;)
        p = p->next;
    if (p)
        return p;
    if (!blas_handle && (*code = open_library(s)))
        return NULL;
    if (plan_count >= PLANS_MOST)                      /* shapes that never come again must not pile up                          */
        forget_plans();
    p = calloc(1, sizeof *p);
    if (!p) {
        *code = cuda_host->fail(TD_ERR_MEMORY, "%zu bytes for the plan of a matrix product cannot be had", sizeof *p);
        return NULL;
    }
    p->key = *x;
    *s = describe(p, args);
    if (*s == CUBLAS_STATUS_SUCCESS)
        *code = blas_choose(p, args, s);
    p->lacks = may_lack && (*s == CUBLAS_STATUS_NOT_SUPPORTED || *s == CUBLAS_STATUS_INVALID_VALUE);
    if (*code || (*s != CUBLAS_STATUS_SUCCESS && !p->lacks)) {
        free(p);
        return NULL;
    }
    *s = CUBLAS_STATUS_SUCCESS;
    p->next = *bucket;
    *bucket = p;
    plan_count++;
    return p;
}

cublasStatus_t blas_start(blas_plan *p, const blas_args *args, void *into, const cublasLtMatmulAlgo_t *algorithm, size_t bytes)
{
    const float alpha = (float)args->alpha, beta = (float)args->beta;
    const bool wide = p->key.t == TD_F64;
    return cublasLtMatmul(blas_handle, &p->how, wide ? (const void *)&args->alpha : &alpha, args->b, &p->a, args->a, &p->b,
                          wide ? (const void *)&args->beta : &beta, args->c, &p->c, into, &p->c, algorithm, workspace, bytes, td__cuda_stream());
}

bool blas_run(const char *row, const blas_shape *x, const blas_args *args, bool may_lack)
{
    const char *what = "no kernel";
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    int code = 0;
    pthread_mutex_lock(&lock);
    blas_plan *p = plan_for(x, args, may_lack, &code, &s);
    const bool lacks = p && p->lacks;
    if (p && !lacks) {
        what = "a matrix product cannot be started";
        SET(point(p, args));
        SET(blas_start(p, args, args->c, &p->algorithm, p->workspace));
    }
    pthread_mutex_unlock(&lock);
    if (s != CUBLAS_STATUS_SUCCESS)
        blas_failed(s, blas_handle ? what : "matrix products cannot be started", x);
    else if (p && !lacks)
        td__cuda_launched(row);
    return !lacks;
}
