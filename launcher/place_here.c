/* launcher/place_here.c: placement on this machine: what is asked of hwloc, the environment and the kernel, and how it is told.
 */
#include "launcher.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Devices cost some ten milliseconds to find: only where NVIDIA's driver is, or a described machine (HWLOC_XMLFILE) is to be tried. */
static bool worth_looking(void)
{
    return access("/proc/driver/nvidia", F_OK) == 0 || td__getenv("HWLOC_XMLFILE");
}

static void find_gpus(hwloc_topology_t topology, td__gpus *gpus)
{
    const char *root = hwloc_topology_is_thissystem(topology) ? "" : NULL;
    td__gpus_find(topology, td__env(TD_ENV_DEVICE), td__getenv("CUDA_VISIBLE_DEVICES"), root, gpus);
}

/* The quota is this machine's, and says nothing of a described one. */
static double quota_of(hwloc_topology_t topology)
{
    return hwloc_topology_is_thissystem(topology) ? td__cores_quota() : 0;
}

void td__place_here(int ranks, bool network, td__division *out)
{
    *out = (td__division){ .threads = 1, .ranks = ranks };
    hwloc_topology_t topology;
    if (td__cores_load(&topology, network || worth_looking()) != 0)
        return;
    td__gpus gpus;
    find_gpus(topology, &gpus);
    hwloc_bitmap_t allowed = td__cores_allowed(topology);
    if (allowed) {
        td__place(topology, allowed, quota_of(topology), ranks, &gpus, out);
        if (!hwloc_topology_is_thissystem(topology))
            td__division_unbind(out);
        else if (!td__membind_free())
            td__division_unbind_memory(out);
    }
    hwloc_bitmap_free(allowed);
    hwloc_topology_destroy(topology);
}

const char *td__place_text(const td__division *d, int rank, char *into, size_t size)
{
    const td__seat *seat = d->seat ? &d->seat[rank] : NULL;
    char list[256] = "";
    int n;
    if (d->set) {
        hwloc_bitmap_list_snprintf(list, sizeof list, d->set[rank]);
        int cores = seat ? seat->cores : 0;
        n = snprintf(into, size, "processor%s %s (%d core%s)", hwloc_bitmap_weight(d->set[rank]) == 1 ? "" : "s", list, cores, cores == 1 ? "" : "s");
    } else {
        n = snprintf(into, size, "not bound");
    }
    if (d->nodes && !hwloc_bitmap_iszero(d->nodes[rank]) && n >= 0 && (size_t)n < size) {
        hwloc_bitmap_list_snprintf(list, sizeof list, d->nodes[rank]);
        n += snprintf(into + n, size - (size_t)n, ", node%s %s", hwloc_bitmap_weight(d->nodes[rank]) == 1 ? "" : "s", list);
    }
    if (seat && seat->gpu >= 0 && n >= 0 && (size_t)n < size)
        n += snprintf(into + n, size - (size_t)n, ", GPU %d%s%s", seat->gpu, seat->gpu_bus[0] ? " at " : "", seat->gpu_bus);
    if (seat && seat->nic[0] && n >= 0 && (size_t)n < size)
        snprintf(into + n, size - (size_t)n, ", %s", seat->nic);
    return into;
}

int td__place_ranks(const char *word, char *error, size_t size)
{
    bool gpu = strcmp(word, "gpu") == 0, cpu = strcmp(word, "cpu") == 0;
    hwloc_topology_t topology;
    if (!gpu && !cpu && strcmp(word, "auto") != 0) {
        snprintf(error, size, "\"%s\" is no number of ranks: expected a number, auto, gpu or cpu", word);
        return 0;
    }
    if (td__cores_load(&topology, !cpu && worth_looking()) != 0) {
        snprintf(error, size, "hwloc cannot read this machine's topology, so \"%s\" has no meaning: say a number of ranks", word);
        return 0;
    }
    td__gpus gpus = { 0 };
    int n = 0;
    if (!cpu) {
        find_gpus(topology, &gpus);
        n = gpus.n;
    }
    if (gpu && n == 0)
        snprintf(error, size, "no GPU can be used here%s: say a number of ranks, auto or cpu",
                 td__env(TD_ENV_DEVICE) ? " (TANDEM_DEVICE is set)" : td__getenv("CUDA_VISIBLE_DEVICES") ? " (CUDA_VISIBLE_DEVICES is set)" : "");
    if (!gpu && n == 0) {
        hwloc_bitmap_t allowed = td__cores_allowed(topology);
        double quota = quota_of(topology);
        n = allowed ? td__cores_count(topology, allowed) : 1;
        if (quota > 0 && quota < n)
            n = (int)quota;
        n = n > 0 ? n : 1;
        hwloc_bitmap_free(allowed);
    }
    hwloc_topology_destroy(topology);
    return n;
}
