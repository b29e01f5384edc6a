/* tensor/device.c: the table of devices, the default device, and moving tensors between devices.
 *
 * The CPU is always there: its memory is base's pool, its streams and events do nothing because its work is done when
 * a call returns. CUDA's operations come with the plug-in, opened when first wanted. The default device is found on first
 * use from TANDEM_DEVICE and the world record: a GPU by local rank where the plug-in loads, else the CPU.
 */
#include "tensor_impl.h"
#include <plugin_abi.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the CPU ------------------------------------------------------------------------------------------------------ */
static int cpu_count(void)
{
    return 1;
}

static void *cpu_alloc(int index, size_t bytes)
{
    (void)index;
    return td__alloc_as(bytes, td__memory_now);
}

static void cpu_label(int index, void *block, td_memory_category category)
{
    (void)index;
    td__pool_label(block, category);
}

static void cpu_free(int index, void *block)
{
    (void)index;
    td__free(block);
}

static int cpu_copy(int index, void *to, bool to_host, const void *from, bool from_host, size_t bytes)
{
    (void)index, (void)to_host, (void)from_host;
    if (bytes)
        memmove(to, from, bytes);
    return 0;
}

static int cpu_synchronize(int index)
{
    (void)index;
    return 0;
}

/* A stream or event of the CPU needs an address that is not NULL, and nothing behind it. */
static char cpu_nothing;

static void *cpu_stream_new(int index, bool high_priority)
{
    (void)index, (void)high_priority;
    return &cpu_nothing;
}

static void *cpu_event_new(int index)
{
    (void)index;
    return &cpu_nothing;
}

static void cpu_drop(int index, void *stream_or_event)
{
    (void)index, (void)stream_or_event;
}

static int cpu_event(int index, void *event, void *stream)
{
    (void)index, (void)event, (void)stream;
    return 0;
}

static int cpu_event_done(int index, void *event)
{
    (void)index, (void)event;
    return 1;
}

static const td_device_ops cpu_ops = {
    .name = "cpu", .kind = TD_CPU, .host_memory = true, .count = cpu_count,
    .alloc = cpu_alloc, .free = cpu_free, .copy = cpu_copy, .synchronize = cpu_synchronize,
    .stream_new = cpu_stream_new, .stream_free = cpu_drop,
    .event_new = cpu_event_new, .event_record = cpu_event, .event_wait = cpu_event, .event_free = cpu_drop, .event_done = cpu_event_done,
    .label = cpu_label,
    .kernels = NULL,                           /* chosen at run time: td__cpu_kernels */
};

/* ---- the table ------------------------------------------------------------------------------------------------------ */
static _Atomic(const td_device_ops *) registered[TD_CUDA + 1];

int td__device_register(const td_device_ops *ops)
{
    if (!ops || ops->kind <= TD_CPU || ops->kind > TD_CUDA)
        return td__fail(TD_ERR_INTERNAL, "a plug-in brings operations of a kind of device that does not exist or is built in");
    atomic_store(&registered[ops->kind], ops);
    return 0;
}

const td_device_ops *td__device_registered(td_device_kind kind)
{
    return kind > TD_CPU && kind <= TD_CUDA ? atomic_load(&registered[kind]) : NULL;
}

/* The plug-in brings libraries of hundreds of megabytes: it is not even opened where no driver is. The driver's library stays open. */
static bool driver_there(void)
{
    return dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) != NULL;
}

/* CUDA's operations, or NULL with the reason; asks the plug-in once per process. */
static const td_device_ops *cuda_ops(char *why, size_t why_size)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static bool asked;
    static char reason[256];
    const td_device_ops *ops = atomic_load(&registered[TD_CUDA]);
    if (ops)
        return ops;
    pthread_mutex_lock(&lock);
    if (!asked) {
        asked = true;
        const bool driver = driver_there();
        const td_plugin *plugin = driver ? td__plugin_open("cuda", reason, sizeof reason) : NULL;
        if (plugin && plugin->device)
            atomic_store(&registered[TD_CUDA], plugin->device);
        else if (plugin)
            snprintf(reason, sizeof reason, "%s", plugin->why ? plugin->why : "its plug-in brings no device");
        else if (!driver)
            snprintf(reason, sizeof reason, "this machine has no NVIDIA driver (libcuda.so.1)");
    }
    snprintf(why, why_size, "%s", reason);
    pthread_mutex_unlock(&lock);
    return atomic_load(&registered[TD_CUDA]);
}

const char *td__device_text(td_device device, char into[static 24])
{
    if (device.kind == TD_CPU)
        return strcpy(into, "cpu");
    if (device.kind == TD_CUDA)
        snprintf(into, 24, "cuda:%d", device.index);
    else
        snprintf(into, 24, device.kind == TD_DEFAULT ? "the default device" : "device kind %d", (int)device.kind);
    return into;
}

bool td__device_equal(td_device a, td_device b)
{
    return a.kind == b.kind && a.index == b.index;
}

/* The operations of `device`, or NULL with one sentence in `error`. */
static const td_device_ops *find_ops(td_device device, char *error, size_t size)
{
    char name[24], why[256] = "";
    const td_device_ops *ops = NULL;
    if (device.kind == TD_CPU)
        ops = &cpu_ops;
    else if (device.kind == TD_CUDA)
        ops = cuda_ops(why, sizeof why);
    if (!ops) {
        if (device.kind == TD_CUDA)
            snprintf(error, size, "%s cannot be used: %s", td__device_text(device, name), why);
        else
            snprintf(error, size, "there is no %s", td__device_text(device, name));
        return NULL;
    }
    int count = ops->count();
    if (device.index < 0 || device.index >= count) {
        snprintf(error, size, "there is no device %s:%d: this machine offers %d", ops->name, device.index, count);
        return NULL;
    }
    return ops;
}

const td_device_ops *td__device_ops(td_device device)
{
    if (device.kind == TD_DEFAULT)
        device = td_device_default();
    if (device.kind == TD_CPU && device.index == 0)
        return &cpu_ops;
    char error[384];
    const td_device_ops *ops = find_ops(device, error, sizeof error);
    if (!ops)
        td__fail(TD_ERR_DEVICE, "%s", error);
    return ops;
}

const struct td_kernels *td__kernels(const td_tensor *x)
{
    const td_device_ops *ops = x->storage->ops;
    return ops->kernels ? ops->kernels : td__cpu_kernels();
}

/* ---- the default device ------------------------------------------------------------------------------------------------- */
int td__device_find(const char *text, int local_rank, int local_size, td_device *out, char *error, size_t size)
{
    char why[384];
    int rank = local_rank > 0 ? local_rank : 0;
    *out = (td_device){ TD_CPU, 0 };
    if (!text || !*text || strcmp(text, "auto") == 0) {
        const td_device_ops *ops = cuda_ops(why, sizeof why);
        if (!ops || ops->count() == 0)
            return 0;
        if (local_size > ops->count() || rank >= ops->count()) {
            snprintf(error, size, "%d ranks on this host share %d GPUs: start fewer, or set TANDEM_DEVICE to cpu, cuda or cuda:N",
                     local_size > rank ? local_size : rank + 1, ops->count());
            return TD_ERR_DEVICE;
        }
        *out = (td_device){ TD_CUDA, rank };
        return 0;
    }
    if (strcmp(text, "cpu") == 0)
        return 0;
    td_device device = { TD_CUDA, rank };
    if (strncmp(text, "cuda:", 5) == 0) {
        char *end;
        long index = strtol(text + 5, &end, 10);
        if (text[5] < '0' || text[5] > '9' || *end || index > 9999) {
            snprintf(error, size, "TANDEM_DEVICE is \"%s\": expected cpu, cuda or cuda:N with a number N", text);
            return TD_ERR_ARGUMENT;
        }
        device.index = (int)index;
    } else if (strcmp(text, "cuda") != 0) {
        snprintf(error, size, "TANDEM_DEVICE is \"%s\": expected cpu, cuda or cuda:N", text);
        return TD_ERR_ARGUMENT;
    }
    if (!find_ops(device, why, sizeof why)) {
        snprintf(error, size, "TANDEM_DEVICE is \"%s\", but %s", text, why);
        return TD_ERR_DEVICE;
    }
    *out = device;
    return 0;
}

/* kind << 32 | index; 0: not found yet */
static _Atomic uint64_t default_device;

int td__device_set_default(td_device device)
{
    char error[512];
    if (device.kind == TD_DEFAULT) {           /* find it anew: TANDEM_DEVICE and the world as they are now */
        const td__world *w = td__world_now();
        int code = td__device_find(td__env(TD_ENV_DEVICE), w->local_rank, w->local_size, &device, error, sizeof error);
        if (code)
            return td__fail(code, "%s", error);
    } else if (!find_ops(device, error, sizeof error)) {
        return td__fail(TD_ERR_DEVICE, "%s", error);
    }
    atomic_store(&default_device, (uint64_t)device.kind << 32 | (uint32_t)device.index);
    return 0;
}

/* After a failure to find the wished device the error is pending, and the CPU stands in so that handles stay whole. */
td_device td_device_default(void)
{
    uint64_t d = atomic_load_explicit(&default_device, memory_order_relaxed);
    if (!d) {
        TD_ENTER();
        if (td__device_set_default((td_device){ TD_DEFAULT, 0 }))
            return (td_device){ TD_CPU, 0 };
        d = atomic_load(&default_device);
    }
    return (td_device){ (td_device_kind)(d >> 32), (int)(uint32_t)d };
}

int td_synchronize(td_device device)
{
    TD_ENTER();
    const td_device_ops *ops = td__device_ops(device);
    if (!ops)
        return td__pending();
    int code = ops->synchronize(device.kind == TD_DEFAULT ? td_device_default().index : device.index);
    return code ? code : td__trap_look(true);
}

/* ---- kernel times -------------------------------------------------------------------------------------------------- */
static const td_device_ops *timed(const char *who, td_device *device)
{
    const td_device_ops *ops = td__device_ops(*device);
    char text[24];
    if (device->kind == TD_DEFAULT)
        *device = td_device_default();
    if (ops && ops->times_begin)
        return ops;
    if (ops)
        td__fail(TD_ERR_UNSUPPORTED, "%s: kernels of %s are not timed, only those of a GPU", who, td__device_text(*device, text));
    return NULL;
}

int td_kernel_times_begin(td_device device)
{
    TD_ENTER();
    const td_device_ops *ops = timed("td_kernel_times_begin", &device);
    return ops ? ops->times_begin(device.index) : td__pending();
}

int td_kernel_times_end(td_device device, td_kernel_time *into, int room)
{
    TD_ENTER();
    const td_device_ops *ops = timed("td_kernel_times_end", &device);
    return ops ? ops->times_end(device.index, into, room) : td__pending();
}

td_tensor *td_to(td_tensor *x, td_device device)
{
    TD_ENTER();
    if (td__tensor_check("td_to", x))
        return td__poison();
    if (device.kind == TD_DEFAULT)
        device = td_device_default();
    if (td__device_equal(x->storage->device, device))
        return x;
    td_tensor *y = td__tensor_new(x->shape, x->dtype, device);
    if (y->poisoned)
        return y;
    if (td__copy(y, x, false)) {
        td__tensor_unref(y);
        return td__poison();
    }
    if (td__recording_now)
        td__record_copy(y, x);
    return td__scoped_tensor(y);
}
