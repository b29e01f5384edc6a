/* tests/cuda/test_products.c: the operations of matrix products on the emulated device, results and gradients: with products as plain loops
 * (emulate_gemm.c), fused and, under TANDEM_EMULATE_FUSED=0, not; and linked against plugins/cuda/blas*.c over the fake cuBLASLt.
 */
#include "../autograd/ops_table.h"
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    int checked = 0, bad = 0;
    setenv("TANDEM_DEVICE", "cuda", 1);
    td_errors(TD_ERRORS_RETURN);
    if (td_device_default().kind != TD_CUDA) {
        printf("no device: %s\n", td_error_message());
        return 1;
    }
    /* the workspace of all products stays: what the first one leaves is what may be left at the end */
    checked++, bad += ops_check_result(ops_rows_matmul, TD_F32);
    td__scope_close_root();
    const int64_t workspace = td_memory().live_bytes;
    if (td_memory().live_tensors || workspace > (33 << 20)) {
        printf("the first product leaves %lld tensors, %lld bytes\n", (long long)td_memory().live_tensors, (long long)workspace);
        bad++;
    }
    for (const ops_row *row = ops_rows_matmul; row->op; row++) {
        for (int t = TD_F32; t <= TD_F64; t++)
            checked++, bad += ops_check_result(row, (td_dtype)t);
        if (row->grad)
            checked++, bad += ops_check_gradient(row);
    }
    td__scope_close_root();
    if (td_memory().live_tensors || td_memory().live_bytes != workspace) {
        printf("%lld tensors, %lld bytes are left\n", (long long)td_memory().live_tensors, (long long)td_memory().live_bytes);
        bad++;
    }
    printf("%d checked, %d bad\n", checked, bad);
    return bad || checked < 150;
}
