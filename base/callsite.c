/* base/callsite.c: where in the user's source a call stands.
 *
 * A public function only notes its return address (TD_ENTER: a compare and a store). Turning it into "train.c:41" is the
 * business of the rare moment when an error or a report is printed: libdw reads the debug information of the running
 * process then. Without debug information the nearest symbol, else the module and the offset in it, is named.
 */
#include "base.h"
#include <dlfcn.h>
#include <elfutils/libdwfl.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

__thread const void *td__site;
uintptr_t td__text_low, td__text_size;

static __thread const char *here_file;
static __thread int here_line;

void td_here(const char *file, int line)
{
    here_file = file;
    here_line = line;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* ---- where the library itself lies -------------------------------------------------------------------------------------- */

/* Only in libtandem.so is "inside the library" a range of its own: linked statically, our code and the user's share one
 * text segment, and every call site counts. */
static int find_library(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size, (void)unused;
    uintptr_t self = (uintptr_t)&find_library;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t low = (uintptr_t)info->dlpi_addr + p->p_vaddr;
        if (p->p_type != PT_LOAD || !(p->p_flags & PF_X) || self - low >= p->p_memsz)
            continue;
        if (info->dlpi_name && strncmp(base_name(info->dlpi_name), "libtandem", strlen("libtandem")) == 0) {
            td__text_low = low;
            td__text_size = p->p_memsz;
        }
        return 1;
    }
    return 0;
}

__attribute__((constructor)) static void find_library_once(void)
{
    dl_iterate_phdr(find_library, NULL);
}

/* ---- address to text ------------------------------------------------------------------------------------------------------- */

/* Debug information is taken from the loaded files alone: looking for separate files could ask a server on the network
 * (debuginfod), and an error message must never wait for one. */
static int no_separate_debuginfo(Dwfl_Module *module, void **user, const char *name, Dwarf_Addr base, const char *file,
                                 const char *link, GElf_Word crc, char **found)
{
    (void)module, (void)user, (void)name, (void)base, (void)file, (void)link, (void)crc, (void)found;
    return -1;
}

static const Dwfl_Callbacks callbacks = { .find_elf = dwfl_linux_proc_find_elf, .find_debuginfo = no_separate_debuginfo };
static pthread_mutex_t dwfl_lock = PTHREAD_MUTEX_INITIALIZER;
static Dwfl *dwfl;                             /* kept: reading the list of modules is the slow part */
static pid_t dwfl_process;                         /* a forked child has maps of its own */

static bool report_modules(void)
{
    dwfl_report_begin(dwfl);
    int failed = dwfl_linux_proc_report(dwfl, getpid());
    return dwfl_report_end(dwfl, NULL, NULL) == 0 && failed == 0;
}

static Dwfl_Module *module_at(Dwarf_Addr address)
{
    if (dwfl && dwfl_process != getpid()) {
        dwfl_end(dwfl);
        dwfl = NULL;
    }
    if (!dwfl) {
        dwfl = dwfl_begin(&callbacks);
        if (!dwfl)
            return NULL;
        dwfl_process = getpid();
        if (!report_modules()) {
            dwfl_end(dwfl);
            dwfl = NULL;
            return NULL;
        }
    }
    Dwfl_Module *module = dwfl_addrmodule(dwfl, address);
    if (!module && report_modules())           /* opened since the list was read */
        module = dwfl_addrmodule(dwfl, address);
    return module;
}

static bool text_from_debuginfo(Dwarf_Addr address, char *into, size_t size)
{
    Dwfl_Module *module = module_at(address);
    if (!module)
        return false;
    int number = 0;
    Dwfl_Line *line = dwfl_module_getsrc(module, address);
    const char *file = line ? dwfl_lineinfo(line, NULL, &number, NULL, NULL, NULL) : NULL;
    if (file && number > 0) {
        snprintf(into, size, "%s:%d", base_name(file), number);
        return true;
    }
    GElf_Off offset = 0;
    GElf_Sym symbol;
    const char *name = dwfl_module_addrinfo(module, address, &offset, &symbol, NULL, NULL, NULL);
    if (!name)
        return false;
    snprintf(into, size, "%s+0x%llx", name, (unsigned long long)offset + 1);
    return true;
}

static void text_from_loader(uintptr_t address, char *into, size_t size)
{
    Dl_info info;
    if (!dladdr((void *)address, &info) || !info.dli_fname)
        snprintf(into, size, "0x%llx", (unsigned long long)address + 1);
    else if (info.dli_sname)
        snprintf(into, size, "%s+0x%llx", info.dli_sname, (unsigned long long)(address + 1 - (uintptr_t)info.dli_saddr));
    else
        snprintf(into, size, "%s+0x%llx", base_name(info.dli_fname),
                 (unsigned long long)(address + 1 - (uintptr_t)info.dli_fbase));
}

const char *td__site_text(const void *site, char *into, size_t size)
{
    if (size == 0)
        return "";
    into[0] = '\0';
    if (here_file && site == td__site) {
        snprintf(into, size, "%s:%d", here_file, here_line);
        return into;
    }
    if (!site)
        return into;
    uintptr_t call = (uintptr_t)site - 1;      /* the return address may already belong to the next line */
    pthread_mutex_lock(&dwfl_lock);
    bool found = text_from_debuginfo(call, into, size);
    pthread_mutex_unlock(&dwfl_lock);
    if (!found)
        text_from_loader(call, into, size);
    return into;
}
