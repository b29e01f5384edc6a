/* launcher/site.c: a place in a file of code as "train.c:41", after the process that ran it has gone.
 *
 * The black box holds the module's file and the return address within it; libdw reads the file's debug information.
 */
#include "launcher.h"
#include <elfutils/libdwfl.h>
#include <stdio.h>
#include <string.h>

static int no_separate_debuginfo(Dwfl_Module *module, void **user, const char *name, Dwarf_Addr base, const char *file,
                                 const char *link, GElf_Word crc, char **found)
{
    (void)module, (void)user, (void)name, (void)base, (void)file, (void)link, (void)crc, (void)found;
    return -1;                                 /* looking elsewhere could ask a server on the network */
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool line_of(Dwfl_Module *module, uint64_t offset, char *into, size_t size)
{
    Dwarf_Addr low = 0;
    int number = 0;
    dwfl_module_info(module, NULL, &low, NULL, NULL, NULL, NULL, NULL);
    Dwarf_Addr address = low + offset - 1;     /* the return address may already belong to the next line */
    Dwfl_Line *line = dwfl_module_getsrc(module, address);
    const char *file = line ? dwfl_lineinfo(line, NULL, &number, NULL, NULL, NULL) : NULL;
    if (file && number > 0) {
        snprintf(into, size, "%s:%d", last_part(file), number);
        return true;
    }
    GElf_Off within = 0;
    GElf_Sym symbol;
    const char *name = dwfl_module_addrinfo(module, address, &within, &symbol, NULL, NULL, NULL);
    if (!name)
        return false;
    snprintf(into, size, "%s+0x%llx", name, (unsigned long long)within + 1);
    return true;
}

const char *td__site_in_file(const char *path, uint64_t offset, char *into, size_t size)
{
    static const Dwfl_Callbacks callbacks = { .find_elf = dwfl_build_id_find_elf, .find_debuginfo = no_separate_debuginfo,
                                              .section_address = dwfl_offline_section_address };
    if (size)
        into[0] = '\0';
    if (!size || !path[0] || offset == 0)
        return into;
    bool found = false;
    Dwfl *dwfl = dwfl_begin(&callbacks);
    if (dwfl) {
        Dwfl_Module *module = dwfl_report_offline(dwfl, last_part(path), path, -1);
        dwfl_report_end(dwfl, NULL, NULL);
        found = module && line_of(module, offset, into, size);
        dwfl_end(dwfl);
    }
    if (!found)
        snprintf(into, size, "%s+0x%llx", last_part(path), (unsigned long long)offset);
    return into;
}
