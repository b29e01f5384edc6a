/* plugins/cuda/describe.c: what `tandem doctor` says of this plug-in: the driver and the runtime, the libraries, and each GPU with its memory.
 *
 * A library that is opened only when it is needed has its row here all the same: whether it can be is what the reader wants to know.
 */
#include "nccl_impl.h"
#include <stdio.h>

static bool cublas(char *into, size_t size)
{
    size_t v = cublas_version();
    snprintf(into, size, "%zu.%zu.%zu", v / 10000, v % 10000 / 100, v % 100);
    return true;
}

static const cuda_component components[] = {
    { "cuBLASLt", cublas },
    { "NCCL", nccl_describe },
    { "cuDNN", cudnn_describe },
};

/* Asking for its free memory opens the GPU: some tenths of a second, and an error where another process has it for itself. */
static bool gpu(int index, char *into, size_t size)
{
    struct cudaDeviceProp p;
    size_t unused = 0, all = 0;
    cudaError_t e = cudaGetDeviceProperties(&p, index);
    if (e == cudaSuccess && !cuda_new_enough(&p)) {
        snprintf(into, size, "%.80s has compute capability %d.%d and this build's kernels need %d.%d", p.name, p.major, p.minor, CUDA_OLDEST / 10,
                 CUDA_OLDEST % 10);
        return false;
    }
    if (e == cudaSuccess)
        e = cudaSetDevice(index);
    if (e == cudaSuccess)
        e = cudaMemGetInfo(&unused, &all);
    if (e != cudaSuccess) {
        cudaGetLastError();
        snprintf(into, size, "cannot be opened: %s (%s)", cudaGetErrorString(e), cudaGetErrorName(e));
        return false;
    }
    const double GIB = 1 << 30;
    snprintf(into, size, "%.80s, compute capability %d.%d, %.1f GiB of memory, %.1f free", p.name, p.major, p.minor, (double)all / GIB,
             (double)unused / GIB);
    return true;
}

const char *cuda_describe(char *into, size_t size)
{
    int driver = 0, runtime = 0;
    char has[16], built[16], text[400];
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cuda_version_text(driver, has);
    cuda_version_text(runtime, built);
    size_t n = (size_t)snprintf(into, size, "driver for CUDA %s, runtime %s", has, built);
    const int gpus = cuda_count();
    for (int i = 0; i < gpus && n < size; i++) {
        bool there = gpu(i, text, sizeof text);
        n += (size_t)snprintf(into + n, size - n, "\n%ccuda:%d\t%s", there ? '+' : '-', i, text);
    }
    for (size_t i = 0; i < TD_COUNT(components) && n < size; i++) {
        bool there = components[i].describe(text, sizeof text);
        n += (size_t)snprintf(into + n, size - n, "\n%c%s\t%s", there ? '+' : '-', components[i].name, text);
    }
    return into;
}
