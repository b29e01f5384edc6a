/* tests/cuda/test_blas_real.c: NVIDIA's own cuBLASLt takes what blas_plan.c tells it of a product, and tells it back. No GPU is needed for that;
 * only advice and products need one. The file under test is included, because what describes a product is nobody else's business.
 */
#include "../../plugins/cuda/blas_plan.c"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

const td_host *cuda_host = &td__host;
const td_kernels td__cuda_kernels = { .name = "cuda" };
int   cuda_index(void) { return 0; }
cudaStream_t td__cuda_stream(void) { return NULL; }
void  td__cuda_launched(const char *row) { (void)row; }
int   td__cuda_processors(void) { return 132; }
void *td__cuda_scratch(size_t bytes) { (void)bytes; return NULL; }
void  td__cuda_scratch_free(void *block) { (void)block; }
int   blas_choose_open(void) { return 0; }
int   blas_choose(blas_plan *p, const blas_args *args, cublasStatus_t *s) { (void)p, (void)args, (void)s; return 0; }

#define OK(call) assert_int_equal(call, CUBLAS_STATUS_SUCCESS)
#define SAID(get, object, attribute, type, expected)                                                         \
    do {                                                                                                     \
        type got;                                                                                            \
        size_t written = 0;                                                                                  \
        OK(get(object, attribute, &got, sizeof got, &written));                                              \
        assert_true(written == sizeof got && got == (expected));                                             \
    } while (0)

static void described(void **state)
{
    static const uint32_t epilogues[] = { CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS,
                                          CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_DGELU,
                                          CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB };
    static const td_dtype types[] = { TD_F64, TD_F32, TD_F16, TD_BF16 };
    static const cudaDataType_t data[] = { CUDA_R_64F, CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF };
    static blas_plan p;
    static char place[64];
    (void)state;
    for (size_t e = 0; e < TD_COUNT(epilogues); e++)
        for (size_t t = 0; t < TD_COUNT(types); t++)
            for (int form = 0; form < 8; form++) {
                const bool ta = form & 1, tb = form & 2, keeps = epilogues[e] & 128;
                const int count = form & 4 ? 5 : 1;
                const blas_args args = { .alpha = 1, .a = place, .b = place, .c = place, .extra = place + 16, .aux = keeps ? place + 32 : NULL };
                memset(&p, 0, sizeof p);
                p.key = (blas_shape){ .m = 64, .n = 32, .k = 16, .lda = ta ? 64 : 16, .ldb = tb ? 16 : 32, .ldc = 32, .count = count, .step_a = 1024,
                                      .step_b = 512, .step_c = 2048, .t = (int32_t)types[t], .ta = ta, .tb = tb, .epilogue = (int32_t)epilogues[e] };
                OK(describe(&p, &args));
                SAID(cublasLtMatmulDescGetAttribute, &p.how, CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t, epilogues[e]);
                SAID(cublasLtMatmulDescGetAttribute, &p.how, CUBLASLT_MATMUL_DESC_TRANSA, int32_t, (int32_t)(tb ? CUBLAS_OP_T : CUBLAS_OP_N));
                SAID(cublasLtMatmulDescGetAttribute, &p.how, CUBLASLT_MATMUL_DESC_TRANSB, int32_t, (int32_t)(ta ? CUBLAS_OP_T : CUBLAS_OP_N));
                SAID(cublasLtMatmulDescGetAttribute, &p.how, CUBLASLT_MATMUL_DESC_BIAS_POINTER, void *, (void *)(place + 16));
                if (keeps) {
                    SAID(cublasLtMatmulDescGetAttribute, &p.how, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, void *, (void *)(place + 32));
                    SAID(cublasLtMatmulDescGetAttribute, &p.how, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t, 32);
                }
                cublasLtMatrixLayoutOpaque_t *const layouts[] = { &p.a, &p.b, &p.c };
                const uint64_t rows[] = { tb ? 16 : 32, ta ? 64 : 16, 32 }, cols[] = { tb ? 32 : 16, ta ? 16 : 64, 64 };
                const int64_t ld[] = { p.key.ldb, p.key.lda, 32 }, step[] = { 512, 1024, 2048 };
                for (int i = 0; i < 3; i++) {
                    SAID(cublasLtMatrixLayoutGetAttribute, layouts[i], CUBLASLT_MATRIX_LAYOUT_TYPE, uint32_t, data[t]);
                    SAID(cublasLtMatrixLayoutGetAttribute, layouts[i], CUBLASLT_MATRIX_LAYOUT_ROWS, uint64_t, rows[i]);
                    SAID(cublasLtMatrixLayoutGetAttribute, layouts[i], CUBLASLT_MATRIX_LAYOUT_COLS, uint64_t, cols[i]);
                    SAID(cublasLtMatrixLayoutGetAttribute, layouts[i], CUBLASLT_MATRIX_LAYOUT_LD, int64_t, ld[i]);
                    SAID(cublasLtMatrixLayoutGetAttribute, layouts[i], CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t, count);
                    SAID(cublasLtMatrixLayoutGetAttribute, layouts[i], CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, int64_t, count > 1 ? step[i] : 0);
                }
            }
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = { cmocka_unit_test(described) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
