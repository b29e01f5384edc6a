/* tests/gpu/gpu.h: tests that need the real device end with 77 where it is not. */
#ifndef TD_TEST_GPU_H
#define TD_TEST_GPU_H
#include <stdio.h>
#include <stdlib.h>
#include <tensor_impl.h>

static inline void need_gpu(void)
{
    setenv("TANDEM_DEVICE", "cuda", 1);
    td_errors(TD_ERRORS_RETURN);
    if (td_device_default().kind == TD_CUDA)
        return;
    printf("%s\n", td_error_message());
    exit(77);
}
#endif
