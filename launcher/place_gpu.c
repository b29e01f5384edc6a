/* launcher/place_gpu.c: the GPUs of this host, numbered as CUDA will number them in a rank.
 *
 * CUDA itself is not asked: opening it takes seconds and makes a context on every GPU. What hwloc knows of PCI is enough: NVIDIA's display
 * and 3D controllers, or, where the topology holds hwloc's own CUDA devices, those. Their order is that of the bus, which is CUDA's under
 * CUDA_DEVICE_ORDER=PCI_BUS_ID and, wherever all GPUs are of one kind, under its default. A GPU whose device node we may not open (Slurm's
 * device cgroup) has no number; CUDA_VISIBLE_DEVICES numbers the rest anew.
 */
#include "launcher.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NVIDIA = 0x10de, DISPLAY_CLASS = 0x03 };

/* The PCI device that one of hwloc's operating system devices is a part of; NULL: none. */
static hwloc_obj_t pci_of(hwloc_obj_t device)
{
    while (device && device->type != HWLOC_OBJ_PCI_DEVICE)
        device = device->type == HWLOC_OBJ_OS_DEVICE ? device->parent : NULL;
    return device;
}

static bool is_cuda(hwloc_obj_t os_device)
{
    return os_device->attr->osdev.type == HWLOC_OBJ_OSDEV_COPROC && os_device->subtype && strcmp(os_device->subtype, "CUDA") == 0;
}

static bool has_cuda_child(hwloc_obj_t pci)
{
    for (hwloc_obj_t child = pci->io_first_child; child; child = child->next_sibling)
        if (child->type == HWLOC_OBJ_OS_DEVICE && is_cuda(child))
            return true;
    return false;
}

static int by_bus(const void *a, const void *b)
{
    const struct hwloc_pcidev_attr_s *x = &(*(const hwloc_obj_t *)a)->attr->pcidev, *y = &(*(const hwloc_obj_t *)b)->attr->pcidev;
    int64_t at = (int64_t)x->domain << 24 | x->bus << 16 | x->dev << 8 | x->func, bt = (int64_t)y->domain << 24 | y->bus << 16 | y->dev << 8 | y->func;
    return (at > bt) - (at < bt);
}

static int all_gpus(hwloc_topology_t topology, hwloc_obj_t *into)
{
    bool asked = false;                        /* somebody's topology with CUDA's own devices in it */
    for (hwloc_obj_t d = NULL; (d = hwloc_get_next_osdev(topology, d));)
        asked |= is_cuda(d) && pci_of(d);
    int n = 0;
    for (hwloc_obj_t d = NULL; n < TD_GPUS_MAX && (d = hwloc_get_next_pcidev(topology, d));)
        if (asked ? has_cuda_child(d) : d->attr->pcidev.vendor_id == NVIDIA && d->attr->pcidev.class_id >> 8 == DISPLAY_CLASS)
            into[n++] = d;
    qsort(into, (size_t)n, sizeof *into, by_bus);
    return n;
}

/* ---- what the driver tells -------------------------------------------------------------------------------------------------------- */

typedef struct { char uuid[64]; int minor; } told;      /* minor -1: not told */

static told ask_driver(const char *root, hwloc_obj_t pci)
{
    const struct hwloc_pcidev_attr_s *at = &pci->attr->pcidev;
    told t = { .minor = -1 };
    char path[4200], line[256];
    snprintf(path, sizeof path, "%.4000s/proc/driver/nvidia/gpus/%04x:%02x:%02x.%x/information", root, at->domain, at->bus, at->dev, at->func);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "GPU UUID: %63s", t.uuid) != 1)
            sscanf(line, "Device Minor: %d", &t.minor);
    if (f)
        fclose(f);
    return t;
}

static bool may_open(const char *root, const told *t)
{
    char path[4200];
    snprintf(path, sizeof path, "%.4000s/dev/nvidia%d", root, t->minor);
    return t->minor < 0 || access(path, R_OK | W_OK) == 0;      /* access asks the cgroup, too, and wakes no GPU */
}

/* ---- CUDA_VISIBLE_DEVICES ----------------------------------------------------------------------------------------------------------- */

/* One of its words: the index of a GPU, -2 for a part of one (MIG) that lies we know not where, -1 where CUDA stops reading. */
static int meant(const char *word, size_t length, const told *t, int n)
{
    char *end;
    if (length >= 4 && strncmp(word, "MIG-", 4) == 0)
        return -2;
    for (int i = 0; length >= 4 && strncmp(word, "GPU-", 4) == 0 && i < n; i++)
        if (strncmp(t[i].uuid, word, length) == 0)
            return i;
    long index = strtol(word, &end, 10);
    return *word >= '0' && *word <= '9' && end == word + length && index < n ? (int)index : -1;
}

static void keep_visible(const char *visible, const told *t, td__gpus *g)
{
    hwloc_obj_t all[TD_GPUS_MAX];
    int n = g->n;
    memcpy(all, g->pci, sizeof all);
    g->n = 0;
    for (const char *word = visible; g->n < TD_GPUS_MAX;) {
        word += strspn(word, " ");
        size_t length = strcspn(word, ", ");
        int i = meant(word, length, t, n);
        if (i == -1)
            break;
        g->pci[g->n++] = i >= 0 ? all[i] : NULL;
        word += length + strspn(word + length, " ");
        if (*word++ != ',')
            break;
    }
}

void td__gpus_find(hwloc_topology_t topology, const char *device, const char *visible, const char *root, td__gpus *out)
{
    told t[TD_GPUS_MAX];
    *out = (td__gpus){ .every = -1 };
    if (device && strcmp(device, "cpu") == 0)
        return;
    if (device && strncmp(device, "cuda:", 5) == 0)
        out->every = atoi(device + 5);
    int all = all_gpus(topology, out->pci);
    for (int i = 0; i < all; i++) {
        t[out->n] = root ? ask_driver(root, out->pci[i]) : (told){ .minor = -1 };
        if (!root || may_open(root, &t[out->n]))
            out->pci[out->n++] = out->pci[i];
    }
    if (visible)
        keep_visible(visible, t, out);
}
