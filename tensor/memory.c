/* tensor/memory.c: what a device's memory is used for, in numbers and as a table. The CPU is base's pool; a GPU answers for itself.
 */
#include "tensor_impl.h"
#include <stdio.h>

/* Of a device that is not the CPU; NULL for the CPU, or after td__fail. */
static const td_device_ops *apart(td_device *device)
{
    const td_device_ops *ops = td__device_ops(*device);
    if (device->kind == TD_DEFAULT)
        *device = td_device_default();
    return ops && ops->kind != TD_CPU ? ops : NULL;
}

td_memory_stats td_memory_of(td_device device)
{
    TD_ENTER();
    const td_device_ops *ops = apart(&device);
    td_memory_stats process = td_memory(), own = { .live_tensors = process.live_tensors };
    if (device.kind == TD_CPU)
        return process;
    if (ops && ops->memory)
        ops->memory(device.index, &own);
    return own;
}

void td_memory_reset_peak_of(td_device device)
{
    TD_ENTER();
    const td_device_ops *ops = apart(&device);
    if (device.kind == TD_CPU)
        td_memory_reset_peak();
    else if (ops && ops->memory_reset_peak)
        ops->memory_reset_peak(device.index);
}

void td_memory_trim_of(td_device device)
{
    TD_ENTER();
    const td_device_ops *ops = apart(&device);
    if (device.kind == TD_CPU)
        td_memory_trim();
    else if (ops && ops->memory_trim)
        ops->memory_trim(device.index);
}

static const char *amount(int64_t bytes, char into[24])
{
    static const char *const unit[] = { "B  ", "KiB", "MiB", "GiB", "TiB" };
    double x = (double)bytes;
    int u = 0;
    for (; x >= 1024 && u < 4; u++)
        x /= 1024;
    snprintf(into, 24, u ? "%.2f %s" : "%.0f %s", x, unit[u]);
    return into;
}

size_t td_memory_summary(td_device device, char *into, size_t size)
{
    TD_ENTER();
    char text[1600], name[24], now[24], most[24];
    td_memory_stats m = td_memory_of(device);
    if (device.kind == TD_DEFAULT)
        device = td_device_default();
    size_t n = (size_t)snprintf(text, sizeof text, "%-14s %12s %12s\n", td__device_text(device, name), "now", "peak");
    for (int c = 0; c < TD_MEMORY_CATEGORIES; c++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%-14s %12s %12s\n", td_memory_category_name((td_memory_category)c),
                              amount(m.part[c].live_bytes, now), amount(m.part[c].peak_bytes, most));
    n += (size_t)snprintf(text + n, sizeof text - n, "%-14s %12s %12s\n", "all", amount(m.live_bytes, now), amount(m.peak_bytes, most));
    n += (size_t)snprintf(text + n, sizeof text - n, "%-14s %12s\n", "cached", amount(m.cached_bytes, now));
    if (into && size)
        snprintf(into, size, "%s", text);
    return n;
}

void td_memory_print(td_device device)
{
    TD_ENTER();
    char text[1600];
    td_memory_summary(device, text, sizeof text);
    fputs(text, stdout);
    fflush(stdout);
}
