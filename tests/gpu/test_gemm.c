/* tests/gpu/test_gemm.c: the rows of matrix products (cuBLASLt) on a real GPU: the cases of tests/cuda/gemm_cases.h.
 */
#include "gpu.h"
#include "../cuda/gemm_cases.h"

int main(void)
{
    need_gpu();
    ops = td__device_ops((td_device){ TD_CUDA, 0 });
    const struct CMUnitTest tests[] = { GEMM_CASES };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
