/* tests/cuda/doctor_plugin.c: a "CUDA plug-in" that has much to say to `tandem doctor` and computes nothing.
 */
#include <plugin_abi.h>
#include <stdio.h>
#include <tensor_impl.h>

static int none(void)
{
    return 0;
}

static const char *describe(char *into, size_t size)
{
    snprintf(into, size, "driver for CUDA 99.1, runtime 98.2\n+cuda:0\tSome GPU, 1.5 GiB of memory, 1.4 free\n-cuda:1\tcannot be opened: busy\n"
                         "+cuBLASLt\t1.2.3\n-cuDNN\tno libcudnn.so.9: convolutions run on kernels of our own\n-NCCL\tno libnccl.so.2: a world of one");
    return into;
}

TD_API const td_plugin *td_plugin_v1(const td_host *host);

const td_plugin *td_plugin_v1(const td_host *host)
{
    static const td_device_ops ops = { .name = "cuda", .kind = TD_CUDA, .count = none };
    static const td_plugin plugin = { .abi = TD_PLUGIN_ABI, .name = "cuda", .device = &ops, .describe = describe };
    return host ? &plugin : NULL;
}
