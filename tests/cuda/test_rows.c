/* tests/cuda/test_rows.c result|gradient|beside [or-skip|images]: the table of operations (tests/autograd/ops_table.h) on CUDA: every result and gradient that
 * the CPU's kernels are held to, from the kernels of tensor/cuda. gradient: finite differences, minutes on the emulated device; beside: the CPU's own
 * gradients instead. A kernel that is missing is a failure. The device is tests/cuda's emulated one
 * or, in tests/gpu, a real one; or-skip: without a device this ends with 77. images: only those operations; with the channels last, if
 * TEST_CHANNELS_LAST is in the environment.
 */
#include "../autograd/ops_table.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    const bool beside = argc > 1 && strcmp(argv[1], "beside") == 0;
    const bool gradient = beside || (argc > 1 && strcmp(argv[1], "gradient") == 0);
    const bool images = argc > 2 && strcmp(argv[2], "images") == 0;
    int checked = 0, bad = 0;
    setenv("TANDEM_DEVICE", "cuda", 1);
    td_errors(TD_ERRORS_RETURN);
    if (td_device_default().kind != TD_CUDA) {
        printf("no CUDA device: %s\n", td_error_message());
        return argc > 2 && strcmp(argv[2], "or-skip") == 0 ? 77 : 1;
    }
    for (const ops_row *const *table = ops_tables(); *table; table++)
        for (const ops_row *row = *table; row->op && (!images || *table == ops_rows_images); row++) {
            if (gradient && row->grad)
                checked++, bad += beside ? ops_check_gradient_beside_cpu(row) : ops_check_gradient(row);
            for (int t = TD_F32; t <= TD_BOOL && !gradient; t++)
                if (row->dtypes >> t & 1)
                    checked++, bad += ops_check_result(row, (td_dtype)t);
        }
    td__scope_close_root();
    if (td_memory().live_tensors || td_memory().live_bytes) {
        printf("%lld tensors, %lld bytes are left\n", (long long)td_memory().live_tensors, (long long)td_memory().live_bytes);
        bad++;
    }
    printf("%s: %d checked, %d bad\n", gradient ? "gradients" : "results", checked, bad);
    return bad || checked < (images ? (gradient ? 60 : 75) : gradient ? 500 : 1500);
}
