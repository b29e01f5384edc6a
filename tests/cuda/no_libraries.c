/* tests/cuda/no_libraries.c: for tests of the plug-in's host side that have no kernels, products, convolutions or collectives. */
#include "../../plugins/cuda/nccl_impl.h"
#include <stdio.h>

const td_kernels td__cuda_kernels = { .name = "cuda" };
const td_device_comm nccl_comm_ops = { .name = "nccl" };
bool (*td__cuda_conv_library)(const char *row, int mode, td_dtype t, const td_conv2d_shape *s, void *out, const void *a, const void *b, bool add);

size_t cublas_version(void)
{
    return 130002;
}

bool cudnn_convolve(const char *row, int mode, td_dtype t, const td_conv2d_shape *s, void *out, const void *a, const void *b, bool add)
{
    (void)row, (void)mode, (void)t, (void)s, (void)out, (void)a, (void)b, (void)add;
    return false;
}

bool cudnn_describe(char *into, size_t size)
{
    snprintf(into, size, "9.19.0");
    return true;
}

bool nccl_describe(char *into, size_t size)
{
    snprintf(into, size, "2.28.9");
    return true;
}
