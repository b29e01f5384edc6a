/* launcher/doctor_parts.c: how `tandem doctor` looks for each thing. Libraries are opened and asked, not searched for by name
 * alone: what cannot be loaded is missing, and the loader's reason is the best hint.
 */
#include "doctor.h"
#include <dlfcn.h>
#include <errno.h>
#include <plugin_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

TD_PRINTF(2, 3) static void found(td__finding *f, const char *format, ...)
{
    size_t n = strlen(f->found);
    va_list args;
    va_start(args, format);
    vsnprintf(f->found + n, sizeof f->found - n, format, args);
    va_end(args);
}

TD_PRINTF(2, 3) static void hint(td__finding *f, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(f->hint, sizeof f->hint, format, args);
    va_end(args);
}

/* A function of an opened library. C has no conversion from object to function pointer. */
static bool symbol(void *library, const char *name, void *function_pointer)
{
    void *address = dlsym(library, name);
    memcpy(function_pointer, &address, sizeof address);
    return address != NULL;
}

/* ---- cores and memory ---------------------------------------------------------------------------------------------------------- */

void td__doctor_cores(td__finding *f)
{
    hwloc_topology_t topology;
    if (td__cores_load(&topology, false) != 0) {
        hint(f, "hwloc cannot read this machine's topology");
        return;
    }
    hwloc_bitmap_t allowed = td__cores_allowed(topology);
    int packages = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PACKAGE);
    int all = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE), mine = allowed ? td__cores_count(topology, allowed) : 0;
    double quota = td__cores_quota();
    f->ok = mine > 0;
    found(f, "%d package%s, %d core%s, %d for this process", packages, packages == 1 ? "" : "s", all, all == 1 ? "" : "s", mine);
    if (quota > 0)
        found(f, ", time of %.3g cores", quota);
    hwloc_bitmap_free(allowed);
    hwloc_topology_destroy(topology);
}

static void limit(td__finding *f, const char *name, int which, bool *low, double needed)
{
    struct rlimit r;
    if (getrlimit(which, &r) != 0)
        return;
    if (r.rlim_cur == RLIM_INFINITY)
        found(f, ", %s unlimited", name);
    else
        found(f, ", %s %.3g GiB", name, (double)r.rlim_cur / (1 << 30));
    *low |= r.rlim_cur != RLIM_INFINITY && (double)r.rlim_cur < needed;
}

/* Of the memory controller's group, either generation; 0: no limit, or none that can be seen from here. */
static double cgroup_memory(void)
{
    static const char *const files[] = { "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes" };
    double bytes = 0;
    for (size_t i = 0; i < TD_COUNT(files) && bytes == 0; i++) {
        FILE *f = fopen(files[i], "re");
        if (f && fscanf(f, "%lf", &bytes) != 1)
            bytes = 0;
        if (f)
            fclose(f);
    }
    return bytes < 1e15 ? bytes : 0;           /* the first generation writes "no limit" as a huge number */
}

void td__doctor_memory(td__finding *f)
{
    const double GIB = 1 << 30, least = 0.5 * GIB;
    struct sysinfo machine;
    bool low = false, ignored = false;
    if (sysinfo(&machine) != 0) {
        hint(f, "the kernel does not tell: %s", strerror(errno));
        return;
    }
    double bytes = (double)machine.totalram * machine.mem_unit, group = cgroup_memory();
    found(f, "%.3g GiB", bytes / GIB);
    if (group > 0 && group < bytes)
        found(f, ", cgroup %.3g GiB", group / GIB);
    limit(f, "address space", RLIMIT_AS, &low, 2 * GIB);
    limit(f, "locked", RLIMIT_MEMLOCK, &ignored, 0);
    low |= bytes < least || (group > 0 && group < least);
    f->ok = !low;
    if (low)
        hint(f, "too little to train: raise `ulimit -v` or the container's limit");
}

void td__doctor_shared(td__finding *f)
{
    enum { PROBE = 1 << 20 };
    int fd = memfd_create("tandem-doctor", MFD_CLOEXEC);
    void *page = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, PROBE) == 0)
        page = mmap(NULL, PROBE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    f->ok = page != MAP_FAILED;
    if (f->ok)
        found(f, "memfd (the size of /dev/shm does not matter)");
    else
        hint(f, "memfd_create or mmap is refused (%s): ranks of one machine cannot share memory", strerror(errno));
    if (page != MAP_FAILED)
        munmap(page, PROBE);
    if (fd >= 0)
        close(fd);
}

void td__doctor_boxes(td__finding *f)
{
    char folder[300], path[360];
    if (!td__runtime_dir(folder, sizeof folder)) {
        int reason = errno;
        hint(f, "%s cannot be used (%s): set TANDEM_RUNTIME_DIR to a folder of yours", folder, strerror(reason));
        return;
    }
    snprintf(path, sizeof path, "%s/doctor-XXXXXX", folder);
    int fd = mkstemp(path);
    f->ok = fd >= 0;
    found(f, "%s", folder);
    if (!f->ok) {
        hint(f, "not writable (%s): set TANDEM_RUNTIME_DIR to a folder of yours", strerror(errno));
        return;
    }
    close(fd);
    unlink(path);
}

/* ---- libraries ------------------------------------------------------------------------------------------------------------------ */

void td__doctor_blas(td__finding *f)
{
    static const char *const places[] = { TD_BLAS_FOLDER "/libopenblas.so.0", "libopenblas.so.0" };
    void *library = NULL;
    const char *place = "";
    for (size_t i = 0; i < TD_COUNT(places) && !library; i++)
        library = dlopen(place = places[i], RTLD_NOW | RTLD_LOCAL);   /* and never closed: libgomp would leave memory behind */
    if (!library) {
        hint(f, "install libopenblas0-openmp");
        return;
    }
    char *(*config)(void);
    int (*parallel)(void);
    int kind = symbol(library, "openblas_get_parallel", &parallel) ? parallel() : -1;
    char version[48] = "OpenBLAS";             /* "OpenBLAS 0.3.21 NO_LAPACKE …" */
    if (symbol(library, "openblas_get_config", &config)) {
        const char *text = config();
        const char *end = strchr(text, ' ');
        end = end ? strchr(end + 1, ' ') : NULL;
        snprintf(version, sizeof version, "%.*s", end ? (int)(end - text) : (int)strlen(text), text);
    }
    f->ok = true;
    found(f, "%s, %s, %s", version, kind == 2 ? "OpenMP build" : kind == 1 ? "pthread build" : "single-threaded build", place);
    if (kind == 1)
        hint(f, "its threads fight with OpenMP's, so one thread is used: install libopenblas0-openmp");
}

static void first_line_of(const char *command, char *into, size_t size)
{
    into[0] = '\0';
    FILE *pipe = popen(command, "re");
    if (pipe && !fgets(into, (int)size, pipe))
        into[0] = '\0';
    if (pipe && pclose(pipe) != 0)
        into[0] = '\0';
    into[strcspn(into, "\n")] = '\0';
}

void td__doctor_mpirun(td__finding *f)
{
    char line[160];
    first_line_of("mpirun.openmpi --version 2>/dev/null", line, sizeof line);
    const char *name = "mpirun.openmpi";
    if (!line[0]) {
        first_line_of("mpirun --version 2>/dev/null", line, sizeof line);
        name = "mpirun";
    }
    f->ok = strstr(line, "Open MPI") || strstr(line, "OpenRTE");
    if (f->ok)
        found(f, "%s, %s", name, line);
    else if (line[0])
        hint(f, "%s is \"%.80s\" and not Open MPI: install openmpi-bin (only needed across machines)", name, line);
    else
        hint(f, "install openmpi-bin (only needed across machines)");
}

/* Beside this program in an installation's library folder, or in the build tree. What the user said goes first. */
static const td_plugin *open_plugin(const char *name, char *why, size_t why_size)
{
    if (td__env(TD_ENV_PLUGIN_DIR))
        return td__plugin_open(name, why, why_size);
    char self[512], folder[700], file[800];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = '\0';
    static const struct {
        const char *from_here;                 /* NULL: the folder that was chosen at configuration */
        bool named;
    } places[] = { { "/../plugins/", true }, { "/../lib", false }, { NULL, false } };
    for (size_t i = 0; i < TD_COUNT(places); i++) {
        if (places[i].from_here)
            snprintf(folder, sizeof folder, "%s%s%s", self, places[i].from_here, places[i].named ? name : "");
        else
            snprintf(folder, sizeof folder, "%s", TD_LIB_FOLDER);
        snprintf(file, sizeof file, "%s/libtandem-%s.so", folder, name);
        if (access(file, R_OK) == 0) {
            setenv("TANDEM_PLUGIN_DIR", folder, 1);
            break;
        }
    }
    const td_plugin *plugin = td__plugin_open(name, why, why_size);
    unsetenv("TANDEM_PLUGIN_DIR");             /* the next one lies elsewhere                                              */
    return plugin;
}

void td__doctor_mpi(td__finding *f)
{
    char why[200], text[160] = "";
    const td_plugin *plugin = open_plugin("mpi", why, sizeof why);
    f->ok = plugin != NULL;
    if (plugin && plugin->describe)
        plugin->describe(text, sizeof text);
    if (plugin)
        found(f, "%s", *text ? text : "loads");
    else
        hint(f, "%s (only needed across machines)", why);
}

static bool nccl_told;                         /* the plug-in said which one it would use                                   */

void td__doctor_cuda(td__finding *f)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver) {
        hint(f, "no NVIDIA driver (libcuda.so.1): training is on the CPU");
        return;
    }
    char why[300] = "", text[2200] = "";
    const td_plugin *plugin = open_plugin("cuda", why, sizeof why);
    f->ok = plugin && plugin->device;
    if (f->ok) {
        if (plugin->describe)
            plugin->describe(text, sizeof text);
        size_t own = strcspn(text, "\n");
        found(f, "%.*s", (int)own, own ? text : "loads");
        snprintf(f->more, sizeof f->more, "%s", text + own + (text[own] == '\n'));
        nccl_told = strstr(f->more, "NCCL\t") != NULL;
    }
    else
        hint(f, "%s: training is on the CPU", !plugin ? why : plugin->why ? plugin->why : "its plug-in brings no device");
}

void td__doctor_nccl(td__finding *f)
{
    void *library = nccl_told ? NULL : dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    int (*version)(int *) = NULL;
    int v = 0;
    if (nccl_told)
        return;
    if (!library) {
        hint(f, "no libnccl.so.2 (only needed for several GPUs)");
        return;
    }
    f->ok = symbol(library, "ncclGetVersion", &version) && version(&v) == 0;
    found(f, "%d.%d.%d", v / 10000, v % 10000 / 100, v % 100);
    dlclose(library);
}
