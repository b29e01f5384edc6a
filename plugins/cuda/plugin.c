/* plugins/cuda/plugin.c: what the library gets from this plug-in: the operations of the device "cuda", or the sentence why there is none.
 */
#include "nccl_impl.h"

const td_device_ops cuda_ops = {
    .name = "cuda",
    .kind = TD_CUDA,
    .computes_half = true,         /* in the operations that autograd/half.c lists */
    .channels_last = true,
    .count = cuda_count,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .copy = cuda_copy,
    .synchronize = cuda_synchronize,
    .stream_new = cuda_stream_new,
    .stream_free = cuda_stream_free,
    .event_new = cuda_event_new,
    .event_record = cuda_event_record,
    .event_wait = cuda_event_wait,
    .event_free = cuda_event_free,
    .event_new_timed = cuda_event_new_timed,
    .event_ms = cuda_event_ms,
    .times_begin = cuda_times_begin,
    .times_end = cuda_times_end,
    .event_done = cuda_event_done,
    .event_synchronize = cuda_event_synchronize,
    .memory = cuda_memory,
    .memory_reset_peak = cuda_memory_reset_peak,
    .memory_trim = cuda_memory_trim,
    .label = cuda_label,
    .record = cuda_record,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .copy_async = cuda_copy_async,
    .trapped = cuda_trapped,
    .trap_clear = cuda_trap_clear,
    .trap_word = td__cuda_trap_word,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_launch = cuda_graph_launch,
    .graph_free = cuda_graph_free,
    .kernels = &td__cuda_kernels,
    .comm = &nccl_comm_ops,
};

TD_API const td_plugin *td_plugin_v1(const td_host *host);

const td_plugin *td_plugin_v1(const td_host *host)
{
    static td_plugin plugin = { .abi = TD_PLUGIN_ABI, .name = "cuda", .describe = cuda_describe };
    if (!host || host->abi != TD_PLUGIN_ABI)
        return NULL;
    cuda_host = host;
    td__cuda_conv_library = cudnn_convolve;
    plugin.why = cuda_refusal();
    plugin.device = plugin.why ? NULL : &cuda_ops;
    return &plugin;
}
