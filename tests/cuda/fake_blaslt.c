/* tests/cuda/fake_blaslt.c: as much of cuBLASLt as plugins/cuda calls, on host memory, in double precision, columns first as the real one.
 *
 * It refuses what the documentation (cublasLt.h) forbids: descriptions that were never initialised or were moved, sizes and leading
 * dimensions that do not fit, types that do not match, a product whose description or alignment is not the one that its algorithm was advised
 * for, too little workspace, results that overlap an operand or each other, an epilogue without its pointer, a leading dimension of the
 * auxiliary matrix that is no multiple of 8. `fake_blas.why` says which. Time is a counter that each product moves on.
 */
#include "fake_blaslt.h"
#include <convert.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

fake_blaslt fake_blas = { .algorithms = 1, .ms = { 1, 1, 1, 1, 1, 1, 1, 1 }, .broken = -1, .version = 130002 };
enum { MAGIC = 0x626c6173, WORKSPACE_NEED = 4096 };

typedef struct {                                       /* in place of cublasLtMatmulDescOpaque_t                                  */
    const void *self;
    uint32_t magic, compute, scale;
    int32_t opa, opb;
    uint32_t epilogue;
    void *bias, *aux;
    int64_t aux_ld;
} desc;
typedef struct { const void *self; uint32_t type; int32_t count; uint64_t rows, cols; int64_t ld, step; uint64_t magic; } mat;
typedef struct { uint64_t magic, workspace; uint32_t reduction, align[4]; } wish;
typedef struct { uint64_t magic, problem, workspace; uint32_t number, align[4]; } algo;
_Static_assert(sizeof(desc) <= sizeof(cublasLtMatmulDescOpaque_t) && sizeof(mat) <= sizeof(cublasLtMatrixLayoutOpaque_t), "fits");
_Static_assert(sizeof(wish) <= sizeof(cublasLtMatmulPreferenceOpaque_t) && sizeof(algo) <= sizeof(cublasLtMatmulAlgo_t), "fits");

static cublasStatus_t refuse(const char *why)
{
    fake_blas.why = why;
    return CUBLAS_STATUS_INVALID_VALUE;
}
#define WANT(condition, why) if (!(condition)) return refuse(why)

/* ---- handles, descriptions ----------------------------------------------------------------------------------------------------------------- */
static char library;
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { *h = (cublasLtHandle_t)(void *)&library; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { (void)h; return CUBLAS_STATUS_SUCCESS; }
size_t cublasLtGetVersion(void) { return fake_blas.version; }
const char *cublasLtGetStatusString(cublasStatus_t s) { return s == CUBLAS_STATUS_INVALID_VALUE && fake_blas.why ? fake_blas.why : "some status"; }
const char *cublasLtGetStatusName(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE" : s == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_SOME";
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t d, size_t size, cublasComputeType_t compute, cudaDataType_t scale)
{
    if (size < sizeof(cublasLtMatmulDescOpaque_t))
        return CUBLAS_STATUS_ALLOC_FAILED;
    memset(d, 0, size);
    *(desc *)d = (desc){ d, MAGIC, compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, NULL, NULL, 0 };
    return CUBLAS_STATUS_SUCCESS;
}

#define PUT(field) { WANT(size == sizeof(field), "an attribute's size"); memcpy(&(field), from, size); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t at, cublasLtMatmulDescAttributes_t what, const void *from, size_t size)
{
    desc *d = (desc *)at;
    WANT(d->magic == MAGIC && d->self == at && from, "a description that was not initialised there");
    switch ((int)what) {
    case CUBLASLT_MATMUL_DESC_TRANSA: PUT(d->opa)
    case CUBLASLT_MATMUL_DESC_TRANSB: PUT(d->opb)
    case CUBLASLT_MATMUL_DESC_EPILOGUE: PUT(d->epilogue)
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: PUT(d->bias)
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: PUT(d->aux)
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: PUT(d->aux_ld)
    default: return refuse("an attribute that the fake does not know");
    }
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t m, size_t size, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld)
{
    if (size < sizeof(cublasLtMatrixLayoutOpaque_t))
        return CUBLAS_STATUS_ALLOC_FAILED;
    memset(m, 0, size);
    *(mat *)m = (mat){ m, type, 1, rows, cols, ld, 0, MAGIC };
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t at, cublasLtMatrixLayoutAttribute_t what, const void *from, size_t size)
{
    mat *m = (mat *)at;
    WANT(m->magic == MAGIC && m->self == at && from, "a layout that was not initialised there");
    switch ((int)what) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: PUT(m->count)
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: PUT(m->step)
    default: return refuse("an attribute that the fake does not know");
    }
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t p, size_t size)
{
    memset(p, 0, size);
    *(wish *)p = (wish){ MAGIC, 0, CUBLASLT_REDUCTION_SCHEME_MASK, { 256, 256, 256, 256 } };
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t at, cublasLtMatmulPreferenceAttributes_t what, const void *from, size_t size)
{
    wish *p = (wish *)at;
    WANT(p->magic == MAGIC && from, "a preference that was not initialised");
    switch ((int)what) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: PUT(p->workspace)
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: PUT(p->reduction)
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: PUT(p->align[0])
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: PUT(p->align[1])
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: PUT(p->align[2])
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: PUT(p->align[3])
    default: return refuse("a preference that the fake does not know");
    }
}

/* ---- what is asked ------------------------------------------------------------------------------------------------------------------------- */
static size_t size_of(uint32_t type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }
static bool has_bias(uint32_t e) { return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS; }
static bool has_aux(uint32_t e) { return e & 128; }
static bool keeps_aux(uint32_t e) { return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS; }
static bool is_gelu(uint32_t e) { return (e & 32) != 0; }

/* Descriptions that fit together; *problem: what an algorithm is advised for. */
static cublasStatus_t check(const void *how, const void *pa, const void *pb, const void *pc, const void *pd, uint64_t *problem)
{
    const desc *o = how;
    const mat *a = pa, *b = pb, *c = pc, *d = pd;
    const mat *all[] = { a, b, c, d };
    WANT(o->magic == MAGIC && o->self == how, "a description that was not initialised there");
    for (int i = 0; i < 4; i++) {
        WANT(all[i]->magic == MAGIC && all[i]->self == (const void *)all[i], "a layout that was not initialised there");
        WANT(all[i]->rows > 0 && all[i]->cols > 0, "an empty matrix");
        WANT(all[i]->ld >= (int64_t)all[i]->rows, "a leading dimension less than the rows");
        WANT(all[i]->type == d->type, "matrices of several types");
        WANT(all[i]->count == d->count && d->count >= 1, "batches of several lengths");
    }
    WANT(o->scale == (d->type == CUDA_R_64F ? CUDA_R_64F : CUDA_R_32F), "the scale's type");
    WANT(d->type == CUDA_R_64F   ? o->compute == CUBLAS_COMPUTE_64F
         : d->type == CUDA_R_32F ? o->compute == CUBLAS_COMPUTE_32F || o->compute == CUBLAS_COMPUTE_32F_FAST_TF32
                                 : o->compute == CUBLAS_COMPUTE_32F, "a compute type that does not go with the matrices'");
    const uint64_t m = o->opa == CUBLAS_OP_N ? a->rows : a->cols, k = o->opa == CUBLAS_OP_N ? a->cols : a->rows;
    WANT((o->opb == CUBLAS_OP_N ? b->rows : b->cols) == k, "inner sizes that differ");
    WANT(d->rows == m && d->cols == (o->opb == CUBLAS_OP_N ? b->cols : b->rows) && c->rows == d->rows && c->cols == d->cols, "a result of another size");
    WANT(d->count == 1 || llabs(d->step) >= (int64_t)(d->cols - 1) * d->ld + (int64_t)d->rows, "results of a batch that overlap");
    if (has_aux(o->epilogue))
        WANT(o->aux_ld >= (int64_t)d->rows && o->aux_ld % 8 == 0, "the auxiliary matrix's leading dimension");
    if (o->epilogue != CUBLASLT_EPILOGUE_DEFAULT && (d->type == CUDA_R_64F || fake_blas.no_epilogues))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    uint64_t h = 14695981039346656037u;
    const uint64_t said[] = { o->compute, (uint64_t)o->opa, (uint64_t)o->opb, o->epilogue, (uint64_t)o->aux_ld, d->type, m, d->cols, k, (uint64_t)a->ld,
                              (uint64_t)b->ld, (uint64_t)c->ld, (uint64_t)d->ld, (uint64_t)d->count, (uint64_t)a->step, (uint64_t)b->step,
                              (uint64_t)c->step, (uint64_t)d->step };
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        h = (h ^ said[i]) * 1099511628211u;
    *problem = h;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t p, int most,
                                              cublasLtMatmulHeuristicResult_t found[], int *count)
{
    const wish *w = (const wish *)p;
    uint64_t problem = 0;
    WANT((void *)h == (void *)&library && most > 0 && w->magic == MAGIC, "no handle, no preference, or none asked for");
    cublasStatus_t s = check(o, a, b, c, d, &problem);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    if (((const mat *)d)->type == CUDA_R_16F || ((const mat *)d)->type == CUDA_R_16BF)
        WANT(w->reduction == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, "16-bit partial sums are allowed");
    fake_blas.advices++;
    *count = fake_blas.algorithms < most ? fake_blas.algorithms : most;
    for (int i = 0; i < *count; i++) {
        algo x = { MAGIC, problem, w->workspace < WORKSPACE_NEED ? w->workspace : WORKSPACE_NEED, (uint32_t)i, { 0 } };
        memcpy(x.align, w->align, sizeof x.align);
        memset(&found[i], 0, sizeof found[i]);
        memcpy(&found[i].algo, &x, sizeof x);
        found[i].workspaceSize = x.workspace;
        found[i].state = CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t h, cublasLtMatmulDesc_t o, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *algorithm,
                                       cublasLtMatmulHeuristicResult_t *result)
{
    algo x;
    uint64_t problem = 0;
    (void)h;
    memcpy(&x, algorithm, sizeof x);
    cublasStatus_t s = check(o, a, b, c, d, &problem);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    WANT(x.magic == MAGIC && x.problem == problem, "an algorithm of another product");
    result->workspaceSize = x.workspace;
    result->state = CUBLAS_STATUS_SUCCESS;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- the product --------------------------------------------------------------------------------------------------------------------------- */
static double get(uint32_t type, const void *p, int64_t i)
{
    switch (type) {
    case CUDA_R_64F: return ((const double *)p)[i];
    case CUDA_R_16F: return td__f16_to_f32(((const td_f16 *)p)[i]);
    case CUDA_R_16BF: return td__bf16_to_f32(((const td_bf16 *)p)[i]);
    default: return ((const float *)p)[i];
    }
}

static void put(uint32_t type, void *p, int64_t i, double v)
{
    switch (type) {
    case CUDA_R_64F: ((double *)p)[i] = v; break;
    case CUDA_R_16F: ((td_f16 *)p)[i] = td__f32_to_f16((float)v); break;
    case CUDA_R_16BF: ((td_bf16 *)p)[i] = td__f32_to_bf16((float)v); break;
    default: ((float *)p)[i] = (float)v; break;
    }
}

/* tf32: 10 bits of mantissa */
static double rounded(const desc *o, double v)
{
    if (o->compute != CUBLAS_COMPUTE_32F_FAST_TF32)
        return v;
    int e;
    const double f = frexp(v, &e);
    return ldexp(nearbyint(ldexp(f, 11)), e - 11);
}

static double gelu(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x)
{
    const double u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x), th = tanh(u);
    return 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

static bool aligned(const void *p, uint64_t by) { return p && (uintptr_t)p % by == 0; }

static bool apart(const void *p, const mat *x, const void *q, const mat *y)
{
    const size_t size = size_of(x->type);
    const int64_t nx = (x->count - 1) * x->step + (int64_t)(x->cols - 1) * x->ld + (int64_t)x->rows;
    const int64_t ny = (y->count - 1) * y->step + (int64_t)(y->cols - 1) * y->ld + (int64_t)y->rows;
    return (const char *)p + (size_t)nx * size <= (const char *)q || (const char *)q + (size_t)ny * size <= (const char *)p;
}

static double clock_ms;

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t how, const void *alpha, const void *A, cublasLtMatrixLayout_t Adesc, const void *B,
                              cublasLtMatrixLayout_t Bdesc, const void *beta, const void *C, cublasLtMatrixLayout_t Cdesc, void *D,
                              cublasLtMatrixLayout_t Ddesc, const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t bytes, cudaStream_t stream)
{
    const desc *o = (const desc *)how;
    const mat *a = (const mat *)Adesc, *b = (const mat *)Bdesc, *c = (const mat *)Cdesc, *d = (const mat *)Ddesc;
    uint64_t problem = 0;
    algo x;
    (void)stream;
    WANT((void *)h == (void *)&library && alpha && beta && algorithm, "a NULL that is not allowed");
    cublasStatus_t s = check(how, Adesc, Bdesc, Cdesc, Ddesc, &problem);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    memcpy(&x, algorithm, sizeof x);
    WANT(x.magic == MAGIC && x.problem == problem, "an algorithm of another product");
    WANT(aligned(A, x.align[0]) && aligned(B, x.align[1]) && aligned(C, x.align[2]) && aligned(D, x.align[3]), "less alignment than was promised");
    for (int i = 0; d->count > 1 && i < 3; i++) {
        const mat *v = i == 0 ? a : i == 1 ? b : d;
        WANT((uint64_t)llabs(v->step) * size_of(v->type) % x.align[i] == 0, "less alignment in a batch than was promised");
    }
    WANT(bytes >= x.workspace && aligned(workspace, 256), "too little workspace, or one that is not aligned");
    WANT(apart(D, d, A, a) && apart(D, d, B, b), "a result in an operand");
    WANT(C == (const void *)D || apart(D, d, C, c), "a result that is partly in C");
    const uint32_t e = o->epilogue;
    if (has_bias(e) || e == CUBLASLT_EPILOGUE_BGRADA || e == CUBLASLT_EPILOGUE_BGRADB)
        WANT(aligned(o->bias, size_of(d->type)), "no bias, or one that is not aligned");
    if (has_aux(e))
        WANT(aligned(o->aux, 16), "no auxiliary matrix, or one that is not aligned");
    if ((int)x.number == fake_blas.broken)
        return CUBLAS_STATUS_EXECUTION_FAILED;
    const double al = o->scale == CUDA_R_64F ? *(const double *)alpha : (double)*(const float *)alpha;
    const double be = o->scale == CUDA_R_64F ? *(const double *)beta : (double)*(const float *)beta;
    const int64_t m = (int64_t)d->rows, n = (int64_t)d->cols, k = (int64_t)(o->opa == CUBLAS_OP_N ? a->cols : a->rows);
    memset(workspace, 0x5a, x.workspace);
    for (int64_t i = 0; i < d->count; i++)
        for (int64_t col = 0; col < n; col++)
            for (int64_t row = 0; row < m; row++) {
                double sum = 0;
                for (int64_t l = 0; l < k; l++)
                    sum += rounded(o, get(a->type, A, i * a->step + (o->opa == CUBLAS_OP_N ? l * a->ld + row : row * a->ld + l))) *
                           rounded(o, get(b->type, B, i * b->step + (o->opb == CUBLAS_OP_N ? col * b->ld + l : l * b->ld + col)));
                double v = al * sum + (be == 0 ? 0 : be * get(c->type, C, i * c->step + col * c->ld + row));
                if (has_bias(e))
                    v += get(d->type, o->bias, row);
                if (keeps_aux(e))
                    put(d->type, o->aux, col * o->aux_ld + row, v);
                if (is_gelu(e))
                    v = gelu(v);
                if (e == CUBLASLT_EPILOGUE_DGELU)
                    v *= gelu_slope(get(d->type, o->aux, col * o->aux_ld + row));
                put(d->type, D, i * d->step + col * d->ld + row, v);
            }
    for (int64_t i = 0; (e == CUBLASLT_EPILOGUE_BGRADA || e == CUBLASLT_EPILOGUE_BGRADB) && i < (e == CUBLASLT_EPILOGUE_BGRADA ? m : n); i++) {
        double sum = 0;
        for (int64_t l = 0; l < k; l++)
            sum += e == CUBLASLT_EPILOGUE_BGRADA ? get(a->type, A, o->opa == CUBLAS_OP_N ? l * a->ld + i : i * a->ld + l)
                                                 : get(b->type, B, o->opb == CUBLAS_OP_N ? i * b->ld + l : l * b->ld + i);
        put(d->type, o->bias, i, sum);
    }
    fake_blas.products++;
    fake_blas.last = (int)x.number;
    clock_ms += fake_blas.ms[x.number];
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- as much of the runtime as measuring calls ------------------------------------------------------------------------------------------------ */
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status)
{
    (void)s;
    *status = fake_blas.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = calloc(1, sizeof(double)); return *e ? cudaSuccess : cudaErrorMemoryAllocation; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { (void)s; *(double *)(void *)e = clock_ms; return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    (void)e;
    fake_blas.waits++;
    return fake_blas.capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t before, cudaEvent_t after)
{
    *ms = (float)(*(double *)(void *)after - *(double *)(void *)before);
    return cudaSuccess;
}
