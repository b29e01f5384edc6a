/* plugins/cuda/device.c: is there a GPU that this build can use, and which one is the process's?
 *
 * Every way in which there is none is one sentence. The driver is asked once. cudaGetDeviceCount on a machine without a usable driver does
 * not say "no device" but one of many errors: any error means none.
 */
#include "cuda_impl.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

const td_host *cuda_host;
int cuda_processors;
static int devices;
static char refused[256];
static _Atomic int chosen = -1;
static __thread int current = -1;

void cuda_version_text(int version, char into[16])
{
    snprintf(into, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

bool cuda_new_enough(const struct cudaDeviceProp *p)
{
    return p->major * 10 + p->minor >= CUDA_OLDEST;
}

static void ask(void)
{
    int driver = 0, runtime = 0;
    char has[16], needs[16];
    cudaError_t e = cudaGetDeviceCount(&devices);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    cuda_version_text(driver, has);
    cuda_version_text(runtime, needs);
    if (e != cudaSuccess)
        devices = 0;
    cudaGetLastError();                                /* or a later check would find this error                               */
    if (e == cudaErrorInsufficientDriver && driver > 0)
        snprintf(refused, sizeof refused, "the NVIDIA driver is made for CUDA %s and this build needs %s: a newer driver is needed", has, needs);
    else if (e == cudaErrorInsufficientDriver)
        snprintf(refused, sizeof refused, "this machine has no NVIDIA driver, or one that is too old for CUDA %s", needs);
    else if (e == cudaErrorStubLibrary)
        snprintf(refused, sizeof refused, "the libcuda.so.1 that was found is the toolkit's stub and no driver: check LD_LIBRARY_PATH");
    else if (e == cudaErrorNoDevice || (e == cudaSuccess && devices == 0))
        snprintf(refused, sizeof refused, "the NVIDIA driver shows no GPU to this process (does CUDA_VISIBLE_DEVICES hide it?)");
    else if (e != cudaSuccess)
        snprintf(refused, sizeof refused, "the GPUs cannot be counted: %s (%s)", cudaGetErrorString(e), cudaGetErrorName(e));
    bool usable = false;
    for (int i = 0; i < devices && !usable; i++) {
        struct cudaDeviceProp p;
        e = cudaGetDeviceProperties(&p, i);
        usable = e != cudaSuccess || cuda_new_enough(&p);   /* a GPU that cannot be asked is told about when it is used               */
        if (!usable)
            snprintf(refused, sizeof refused, "the GPU %.80s has compute capability %d.%d and this build's kernels need %d.%d", p.name, p.major,
                     p.minor, CUDA_OLDEST / 10, CUDA_OLDEST % 10);
    }
    if (usable)
        refused[0] = '\0';
}

const char *cuda_refusal(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, ask);
    return refused[0] ? refused : NULL;
}

int cuda_count(void)
{
    return cuda_refusal() ? 0 : devices;
}

int cuda_index(void)
{
    return atomic_load(&chosen);
}

int cuda_failed(cudaError_t e, const char *what)
{
    const char *row = atomic_load(&cuda_last_row), *name = cudaGetErrorName(e);
    const bool kernel = e == cudaErrorIllegalAddress || e == cudaErrorLaunchFailure || e == cudaErrorMisalignedAddress ||
                        e == cudaErrorIllegalInstruction || e == cudaErrorAssert || e == cudaErrorLaunchTimeout;
    if (kernel && row)
        return cuda_host->fail(TD_ERR_DEVICE, "%s: a kernel that was started before has failed: %s (%s); the last one started was \"%s\" (with "
                               "CUDA_LAUNCH_BLOCKING=1 it is named exactly)", what, cudaGetErrorString(e), name, row);
    return cuda_host->fail(e == cudaErrorMemoryAllocation ? TD_ERR_MEMORY : TD_ERR_DEVICE, "%s: %s (%s)", what, cudaGetErrorString(e), name);
}

/* Under the lock: the GPU's context, its stream. */
static int open_device(int index)
{
    struct cudaDeviceProp p;
    char what[40];
    snprintf(what, sizeof what, "cuda:%d cannot be opened", index);
    cudaError_t e = cudaSetDevice(index);
    if (e == cudaSuccess)
        e = cudaGetDeviceProperties(&p, index);
    if (e != cudaSuccess)
        return cuda_failed(e, what);
    if (!cuda_new_enough(&p))
        return cuda_host->fail(TD_ERR_DEVICE, "cuda:%d (%s) has compute capability %d.%d and this build's kernels need %d.%d", index, p.name,
                               p.major, p.minor, CUDA_OLDEST / 10, CUDA_OLDEST % 10);
    cuda_processors = p.multiProcessorCount;
    return cuda_stream_open();
}

int cuda_use(int index)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    if (index == current)
        return 0;
    pthread_mutex_lock(&lock);
    int now = atomic_load(&chosen), code = 0;
    if (now < 0) {
        code = open_device(index);
        if (!code)
            atomic_store(&chosen, index);
    } else if (now != index) {
        code = cuda_host->fail(TD_ERR_DEVICE, "cuda:%d cannot be used beside cuda:%d: a process computes on one GPU (start one rank per GPU)", index,
                               now);
    }
    pthread_mutex_unlock(&lock);
    if (!code) {
        cudaError_t e = cudaSetDevice(index);          /* CUDA's own current device is each thread's                              */
        if (e != cudaSuccess)
            code = cuda_failed(e, "the GPU cannot be made this thread's");
        else
            current = index;
    }
    return code;
}
