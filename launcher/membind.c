/* launcher/membind.c: where a rank's memory shall lie, as a policy of the kernel that exec keeps.
 *
 * Preferred, not bound: a rank that needs more than its nodes hold gets it elsewhere instead of being killed. One node: MPOL_PREFERRED; several:
 * MPOL_PREFERRED_MANY, which kernels before 5.15 refuse; there the default (the node of the processor that touches a page first) is as near.
 * The system call is made directly: between fork and exec nothing may take a lock, and libnuma would be one more library for one call.
 */
#include "launcher.h"
#include <linux/mempolicy.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MPOL_PREFERRED_MANY
#define MPOL_PREFERRED_MANY 5
#endif

bool td__membind_free(void)
{
    int mode = MPOL_DEFAULT;
    return syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0) != 0 || mode == MPOL_DEFAULT;
}

void td__membind_make(hwloc_const_bitmap_t nodes, td__membind *out)
{
    *out = (td__membind){ 0 };
    for (int i = nodes ? hwloc_bitmap_first(nodes) : -1; i >= 0 && i < TD_MEMORY_NODES_MAX; i = hwloc_bitmap_next(nodes, i)) {
        out->mask[(size_t)i / (8 * sizeof *out->mask)] |= 1ul << ((size_t)i % (8 * sizeof *out->mask));
        out->nodes++;
    }
}

void td__membind_apply(const td__membind *m)
{
    if (m->nodes > 0)                          /* a refusal costs speed, not the job; the kernel wants one bit more than it reads */
        syscall(SYS_set_mempolicy, m->nodes == 1 ? MPOL_PREFERRED : MPOL_PREFERRED_MANY, m->mask, TD_MEMORY_NODES_MAX + 1);
}
