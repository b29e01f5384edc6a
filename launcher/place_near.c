/* launcher/place_near.c: what is near: the processors at a GPU, the network device at a GPU or at a rank's cores.
 *
 * Near is what hwloc's tree says: two devices under one PCIe switch are nearer than two under one host bridge, these nearer than two at
 * one NUMA node. Of several equally near network devices the one that fewest ranks have taken is chosen, so that ranks spread.
 */
#include "place_impl.h"
#include <stdlib.h>
#include <string.h>

hwloc_const_bitmap_t td__near_processors(hwloc_topology_t topology, hwloc_obj_t device)
{
    hwloc_obj_t at = device ? hwloc_get_non_io_ancestor_obj(topology, device) : NULL;
    return at ? at->cpuset : NULL;
}

/* ---- network devices ----------------------------------------------------------------------------------------------------------------- */

/* InfiniBand and RoCE ports that are down; hwloc writes a port's state as a number, 4: active. */
static bool is_down(hwloc_obj_t device)
{
    bool told = false;
    for (unsigned i = 0; i < device->infos_count; i++) {
        const char *name = device->infos[i].name;
        size_t n = strlen(name);
        if (strncmp(name, "Port", 4) == 0 && n > 9 && strcmp(name + n - 5, "State") == 0) {
            told = true;
            if (atoi(device->infos[i].value) == 4)
                return false;
        }
    }
    return told;
}

static int devices_of(hwloc_topology_t topology, hwloc_obj_osdev_type_t type, hwloc_obj_t *into)
{
    int n = 0;
    for (hwloc_obj_t d = NULL; n < TD_NICS_MAX && (d = hwloc_get_next_osdev(topology, d));)
        if (d->attr->osdev.type == type && d->parent->type == HWLOC_OBJ_PCI_DEVICE && !is_down(d))
            into[n++] = d;
    return n;
}

void td__nics_find(hwloc_topology_t topology, td__nics *out)
{
    *out = (td__nics){ 0 };
    out->n = devices_of(topology, HWLOC_OBJ_OSDEV_OPENFABRICS, out->device);
    if (out->n == 0)
        out->n = devices_of(topology, HWLOC_OBJ_OSDEV_NETWORK, out->device);
}

static bool below(hwloc_obj_t object, hwloc_obj_t above)
{
    while (object && object != above)
        object = object->parent;
    return object != NULL;
}

/* Steps up from the GPU until the device is below. */
static int64_t far_from_gpu(hwloc_obj_t gpu, hwloc_obj_t device)
{
    int64_t steps = 0;
    for (hwloc_obj_t above = gpu->parent; above && !below(device, above); above = above->parent)
        steps++;
    return steps;
}

/* Processors of the rank that are not at the device; then how exactly the device's place is known. */
static int64_t far_from_cores(hwloc_topology_t topology, hwloc_const_bitmap_t set, hwloc_obj_t device, hwloc_bitmap_t scratch)
{
    hwloc_const_bitmap_t there = td__near_processors(topology, device);
    if (!there)
        return INT64_MAX;
    hwloc_bitmap_andnot(scratch, set, there);
    return (int64_t)hwloc_bitmap_weight(scratch) << 32 | (int64_t)hwloc_bitmap_weight(there);
}

const char *td__nics_take(hwloc_topology_t topology, td__nics *nics, hwloc_obj_t gpu, hwloc_const_bitmap_t set)
{
    hwloc_bitmap_t scratch = hwloc_bitmap_alloc();
    int best = -1;
    int64_t least = 0;
    for (int i = 0; scratch && i < nics->n; i++) {
        int64_t far = gpu ? far_from_gpu(gpu, nics->device[i]) : far_from_cores(topology, set, nics->device[i], scratch);
        if (best < 0 || far < least || (far == least && nics->taken[i] < nics->taken[best])) {
            best = i;
            least = far;
        }
    }
    hwloc_bitmap_free(scratch);
    if (best < 0)
        return "";
    nics->taken[best]++;
    return nics->device[best]->name ? nics->device[best]->name : "";
}
