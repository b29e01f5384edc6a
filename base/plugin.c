/* base/plugin.c: opening a plug-in, and the services that it is handed.
 *
 * RTLD_NOW|RTLD_LOCAL: a plug-in whose own libraries are missing is refused at once, with the loader's reason, and its
 * symbols disturb nobody. An opened plug-in stays open for the life of the process: MPI and CUDA do not survive being
 * unloaded.
 */
#include "plugin_abi.h"
#include "base.h"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static double timeout(void)
{
    return td__env_number(TD_ENV_TIMEOUT, 300, 0.001, 1e9);
}

static const char *env(int id)
{
    return td__env((td__env_id)id);
}

static const void *site(void)
{
    return td__site;
}

static int memory_now(void)
{
    return (int)td__memory_now;
}

const td_host td__host = {
    .abi = TD_PLUGIN_ABI,
    .fail = td__fail,
    .fail_background = td__fail_background,
    .pending = td__pending,
    .alloc = td__alloc,
    .free = td__free,
    .now = td__now,
    .say = td__say,
    .timeout = timeout,
    .env = env,
    .site = site,
    .site_text = td__site_text,
    .memory_now = memory_now,
};

/* The folder of the object that holds this code: libtandem.so, or a program that links the rooms statically. */
static bool own_folder(char *into, size_t size)
{
    Dl_info info;
    if (!dladdr(&td__host, &info) || !info.dli_fname)
        return false;
    const char *slash = strrchr(info.dli_fname, '/');
    if (!slash)
        return false;
    int n = snprintf(into, size, "%.*s", (int)(slash - info.dli_fname), info.dli_fname);
    return n >= 0 && (size_t)n < size;
}

static void *open_at(const char *folder, const char *name, char *why, size_t why_size)
{
    char path[1024];
    int n = folder ? snprintf(path, sizeof path, "%s/libtandem-%s.so", folder, name)
                   : snprintf(path, sizeof path, "libtandem-%s.so", name);
    if (n < 0 || (size_t)n >= sizeof path) {
        snprintf(why, why_size, "the folder's name is too long: %.60s...", folder ? folder : "");
        return NULL;
    }
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *reason = dlerror();
        snprintf(why, why_size, "%s", reason ? reason : path);
    }
    return handle;
}

/* In folders of the user's choice nothing else is tried: a typing error must not be answered by another plug-in. The first folder that
 * has the file decides, as with PATH. */
static void *find_in(const char *folders, const char *name, char *why, size_t why_size)
{
    char folder[900], file[1024];
    for (const char *at = folders; *at;) {
        const size_t n = strcspn(at, ":");
        if (n > 0 && n < sizeof folder) {
            snprintf(folder, sizeof folder, "%.*s", (int)n, at);
            snprintf(file, sizeof file, "%s/libtandem-%.60s.so", folder, name);
            if (access(file, F_OK) == 0)
                return open_at(folder, name, why, why_size);
        }
        at += n + (at[n] == ':');
    }
    snprintf(why, why_size, "libtandem-%.60s.so is not in TANDEM_PLUGIN_DIR (%.200s)", name, folders);
    return NULL;
}

/* A file that lies beside the library and cannot be loaded is not passed over: its reason is the one to tell. */
static void *find(const char *name, char *why, size_t why_size)
{
    const char *chosen = td__env(TD_ENV_PLUGIN_DIR);
    if (chosen)
        return find_in(chosen, name, why, why_size);
    char folder[900], file[1024];
    bool known = own_folder(folder, sizeof folder);
    if (known) {
        snprintf(file, sizeof file, "%s/libtandem-%.60s.so", folder, name);
        if (access(file, F_OK) == 0)
            return open_at(folder, name, why, why_size);
    }
    void *handle = open_at(NULL, name, why, why_size);
    if (!handle)
        snprintf(why, why_size, "libtandem-%s.so is neither in %s nor on the loader's path", name, known ? folder : "its folder");
    return handle;
}

const td_plugin *td__plugin_open(const char *name, char *why, size_t why_size)
{
    if (why_size)
        why[0] = '\0';
    if (!name || !*name || strchr(name, '/')) {
        snprintf(why, why_size, "\"%s\" is not the name of a plug-in", name ? name : "");
        return NULL;
    }
    void *handle = find(name, why, why_size);
    if (!handle)
        return NULL;
    const td_plugin *(*start)(const td_host *) = NULL;
    void *symbol = dlsym(handle, "td_plugin_v1");
    memcpy(&start, &symbol, sizeof start);     /* C has no conversion from object to function pointer */
    const td_plugin *plugin = start ? start(&td__host) : NULL;
    if (!start)
        snprintf(why, why_size, "libtandem-%s.so is no plug-in of Tandem: it lacks td_plugin_v1", name);
    else if (!plugin)
        snprintf(why, why_size, "libtandem-%s.so refused to start with this version of Tandem (%s)", name, TD_VERSION);
    else if (plugin->abi != TD_PLUGIN_ABI)
        snprintf(why, why_size, "libtandem-%s.so speaks version %d of the plug-in tables and this library version %d: build both "
                 "from the same source", name, plugin->abi, TD_PLUGIN_ABI);
    else
        return plugin;
    if (!start)
        dlclose(handle);                       /* nothing of it has run */
    return NULL;
}
