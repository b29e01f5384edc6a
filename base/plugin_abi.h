/* base/plugin_abi.h: the two tables that the library and a plug-in exchange. A plug-in exports
 *     const td_plugin *td_plugin_v1(const td_host *host)
 * and is opened RTLD_NOW|RTLD_LOCAL only when needed. It links libtandem.so for public functions at most.
 */
#ifndef TD_PLUGIN_ABI_H
#define TD_PLUGIN_ABI_H
#include <stdarg.h>
#include <tandem/plugin.h>

#define TD_PLUGIN_ABI 3
struct td_host {                               /* services of the library                                                  */
    int    abi;
    int    (*fail)(int code, const char *format, ...);
    int    (*fail_background)(int code, const char *format, ...);
    int    (*pending)(void);
    void  *(*alloc)(size_t bytes);
    void   (*free)(void *block);
    double (*now)(void);
    void   (*say)(const char *format, ...);
    double (*timeout)(void);                   /* TANDEM_TIMEOUT                                                          */
    const char *(*env)(int id);                /* td__env of a td__env_id                                                  */
    const void *(*site)(void);                 /* the thread's call site, to be kept; site_text makes it "train.c:41"       */
    const char *(*site_text)(const void *site, char *into, size_t size);
    int    (*memory_now)(void);                /* the td_memory_category of what the thread allocates                      */
};
struct td_comm_backend;                        /* comm/comm_impl.h  */
struct td_device_ops;                          /* tensor/tensor_impl.h */
struct td_plugin {                             /* what the plug-in brings                                                  */
    int abi;
    const char *name;                          /* "mpi", "cuda"                                                           */
    const struct td_comm_backend *comm;        /* NULL: none                                                              */
    const struct td_device_ops *device;        /* NULL: none                                                              */
    /* For tandem doctor: a line on the plug-in itself; then, if it likes, a line for each thing that it runs on: "+name\ttext", or
     * "-name\treason" where that is missing. Returns `into`. */
    const char *(*describe)(char *into, size_t size);
    const char *why;                           /* NULL, or one sentence: why it brings neither here                         */
};
extern const td_host td__host;                 /* base/plugin.c                                                           */
/* Opens libtandem-NAME.so (the first of PLUGIN_DIR's folders that has it, else beside libtandem.so, else the loader's path). NULL with the reason in `why`. */
const td_plugin *td__plugin_open(const char *name, char *why, size_t why_size);
#endif
