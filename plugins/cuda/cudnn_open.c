/* plugins/cuda/cudnn_open.c: is there a cuDNN? libcudnn.so.9 is found as the plug-in finds its other libraries (beside the toolkit that it was
 * built with, LD_LIBRARY_PATH, the system's path), and opened when it is first asked for: it and its parts take hundreds of MiB.
 */
#include "cuda_impl.h"
#include "cudnn_api.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static dnn_api api;
static bool there;
static char text[320];

static void *symbol(void *library, const char *name)
{
    void *f = dlsym(library, name);
    if (!f && !text[0])
        snprintf(text, sizeof text, "no cuDNN: libcudnn.so.9 lacks %s", name);
    return f;
}

static void open_library(void)
{
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(text, sizeof text, "no cuDNN: %.280s", dlerror());
        return;
    }
#define TAKE(field, name) do { void *f = symbol(library, name); memcpy(&api.field, &f, sizeof f); } while (0)
    TAKE(version, "cudnnGetVersion");
    TAKE(text, "cudnnGetErrorString");
    TAKE(create, "cudnnCreate");
    TAKE(destroy, "cudnnDestroy");
    TAKE(set_stream, "cudnnSetStream");
    TAKE(make, "cudnnBackendCreateDescriptor");
    TAKE(drop, "cudnnBackendDestroyDescriptor");
    TAKE(finish, "cudnnBackendFinalize");
    TAKE(set, "cudnnBackendSetAttribute");
    TAKE(get, "cudnnBackendGetAttribute");
    TAKE(run, "cudnnBackendExecute");
#undef TAKE
    if (text[0])
        return;
    const size_t v = api.version();
    there = v >= 90000;
    snprintf(text, sizeof text, there ? "cuDNN %zu.%zu.%zu" : "no cuDNN: version %zu.%zu.%zu was found, and 9.0 is the oldest that will do",
             v / 10000, v % 10000 / 100, v % 100);
}

const dnn_api *cudnn_library(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_library);
    return there ? &api : NULL;
}

const char *cudnn_text(void)
{
    cudnn_library();
    return text;
}

bool cudnn_off(void)
{
    const char *wish = cuda_host->env(TD_ENV_CUDNN);
    return wish && (strcmp(wish, "off") == 0 || strcmp(wish, "0") == 0);
}

bool cudnn_describe(char *into, size_t size)
{
    if (cudnn_off())
        snprintf(into, size, "closed, as TANDEM_CUDNN says: convolutions use this library's own kernels");
    else
        snprintf(into, size, "%s", cudnn_library() ? cudnn_text() + strlen("cuDNN ") : cudnn_text());
    return !cudnn_off() && cudnn_library();
}
