/* plugins/cuda/nccl_library.c: NCCL's library, opened when a communicator larger than one first meets memory of a GPU (TANDEM_NCCL names
 * another one).
 */
#include "nccl_impl.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static nccl_library library;
static bool usable;
static char reason[400];

static bool find(void *handle, const char *name, void *into)
{
    void *symbol = dlsym(handle, name);
    memcpy(into, &symbol, sizeof symbol);              /* C has no conversion from object to function pointer                      */
    if (!symbol && !reason[0])
        snprintf(reason, sizeof reason, "it lacks %s", name);
    return symbol != NULL;
}

static void version_text(int v, char into[24])
{
    snprintf(into, 24, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
}

static void open_once(void)
{
    const char *wanted = cuda_host->env(TD_ENV_NCCL), *name = wanted ? wanted : "libnccl.so.2";
    char why[200], version[24];
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(why, sizeof why, "%.190s", dlerror());
        snprintf(reason, sizeof reason, "NCCL cannot be opened (%s): install NCCL 2.19 or newer (libnccl2), or name its library by TANDEM_NCCL", why);
        return;
    }
    bool all = find(handle, "ncclGetVersion", &library.get_version);
    if (all && library.get_version(&library.version) == NCCL_OK && library.version < NCCL_OLDEST) {
        version_text(library.version, version);
        snprintf(reason, sizeof reason, "%s is NCCL %s, and 2.19 is the oldest that will do: install a newer libnccl2, or name its library by TANDEM_NCCL",
                 name, version);
        return;
    }
#define NCCL_FIND(member, symbol, arguments) all &= find(handle, symbol, &library.member);
    NCCL_FUNCTIONS(NCCL_FIND)
#undef NCCL_FIND
    all &= find(handle, "ncclGetErrorString", &library.error_string);
    all &= find(handle, "ncclGetLastError", &library.last_error);
    if (!all) {
        snprintf(why, sizeof why, "%.190s", reason);
        snprintf(reason, sizeof reason, "%s is no NCCL that will do: %s", name, why);
    }
    usable = all;
}

const nccl_library *nccl_open_library(char *error, size_t size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_once);
    if (!usable)
        snprintf(error, size, "%s", reason);
    return usable ? &library : NULL;
}

bool nccl_describe(char *into, size_t size)
{
    char version[24];
    const nccl_library *lib = nccl_open_library(into, size);
    if (lib) {
        version_text(lib->version, version);
        snprintf(into, size, "%s", version);
    }
    return lib != NULL;
}
