/* launcher/cores.c: which cores there are: those that the launcher itself may use (its affinity, its cgroup's cpuset), and how much of
 * their time a cgroup grants. Dividing them is place.c's.
 */
#include "launcher.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Parts of hwloc that ask drivers: opening CUDA or OpenCL takes seconds on a large machine, and leaves a context behind. PCI tells enough. */
static void without_drivers(hwloc_topology_t topology)
{
    static const char *const parts[] = { "cuda", "nvml", "opencl", "gl", "rsmi", "levelzero" };
    for (size_t i = 0; i < TD_COUNT(parts); i++)
        hwloc_topology_set_components(topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, parts[i]);   /* refused: it is not there */
}

int td__cores_load(hwloc_topology_t *topology, bool devices)
{
    if (hwloc_topology_init(topology) != 0)
        return -1;
    hwloc_topology_set_all_types_filter(*topology, HWLOC_TYPE_FILTER_KEEP_NONE);   /* caches and devices cost time to find */
    hwloc_topology_set_type_filter(*topology, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(*topology, HWLOC_OBJ_PACKAGE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (devices) {
        without_drivers(*topology);
        hwloc_topology_set_io_types_filter(*topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
        hwloc_topology_set_type_filter(*topology, HWLOC_OBJ_GROUP, HWLOC_TYPE_FILTER_KEEP_STRUCTURE);   /* where devices hang on half a package */
    }
    if (hwloc_topology_load(*topology) == 0)
        return 0;
    hwloc_topology_destroy(*topology);
    return -1;
}

hwloc_bitmap_t td__cores_allowed(hwloc_topology_t topology)
{
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    if (!set)
        return NULL;
    if (!hwloc_topology_is_thissystem(topology) || hwloc_get_cpubind(topology, set, HWLOC_CPUBIND_PROCESS) != 0)
        hwloc_bitmap_copy(set, hwloc_topology_get_allowed_cpuset(topology));
    hwloc_bitmap_and(set, set, hwloc_topology_get_allowed_cpuset(topology));
    return set;
}

/* Machines without core objects (some virtual ones): a processor counts as a core. */
hwloc_obj_type_t td__cores_type(hwloc_topology_t topology)
{
    return hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
}

int td__cores_count(hwloc_topology_t topology, hwloc_const_bitmap_t allowed)
{
    int cores = 0;
    for (hwloc_obj_t core = NULL; (core = hwloc_get_next_obj_by_type(topology, td__cores_type(topology), core));)
        cores += hwloc_bitmap_intersects(core->cpuset, allowed);
    return cores;
}

/* ---- the cgroup's quota of processor time ------------------------------------------------------------------------------------- */

static double quota_in(const char *folder, double least)
{
    char path[4200], text[64] = "";
    double quota = -1, period = -1;
    snprintf(path, sizeof path, "%s/cpu.max", folder);             /* "max 100000" or "150000 100000" */
    FILE *f = fopen(path, "re");
    if (f) {
        if (fscanf(f, "%63s %lf", text, &period) == 2 && strcmp(text, "max") != 0)
            quota = atof(text);
        fclose(f);
    } else {
        const char *const name[] = { "cpu.cfs_quota_us", "cpu.cfs_period_us" };
        double *const into[] = { &quota, &period };
        for (int i = 0; i < 2; i++) {
            snprintf(path, sizeof path, "%s/%s", folder, name[i]);
            if ((f = fopen(path, "re"))) {
                if (fscanf(f, "%lf", into[i]) != 1)
                    *into[i] = -1;
                fclose(f);
            }
        }
    }
    if (quota <= 0 || period <= 0)
        return least;
    return least == 0 || quota / period < least ? quota / period : least;
}

/* The tightest limit from our group up to the root of what is mounted, for either generation of cgroups. */
double td__cores_quota(void)
{
    double least = 0;
    char line[4096], folder[4096];
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = '\0';
        bool unified = controllers[1] == '\0', cpu = false;
        char *rest = controllers + 1;
        for (char *one; (one = strsep(&rest, ","));)
            cpu |= strcmp(one, "cpu") == 0;
        if (!unified && !cpu)
            continue;
        for (;;) {
            snprintf(folder, sizeof folder, "/sys/fs/cgroup%s%.3900s", unified ? "" : "/cpu", path);
            least = quota_in(folder, least);
            char *slash = strrchr(path, '/');
            if (!slash || slash[1] == '\0')
                break;
            slash[slash == path] = '\0';       /* up one folder; "/" itself stays */
        }
    }
    if (f)
        fclose(f);
    return least;
}
