/* base/nodelist.h: Slurm's compressed lists of host names: "n[0-1,7],m3", "rack[01-03]b[1-2]".
 *
 * Order is kept, numbers keep their zeroes: "n[08-10]" is n08, n09, n10; of several brackets the last runs fastest.
 */
#ifndef TD_NODELIST_H
#define TD_NODELIST_H
#include "base.h"

enum { TD_NODELIST_MAX = 65536, TD_NODE_NAME = 256 };
typedef struct {
    char **name;
    size_t n;
} td__nodes;
/* 0 and *out (td__nodelist_free), or a negative code with one sentence in `error`, *out empty. No td__fail, but for memory. */
int  td__nodelist(const char *text, td__nodes *out, char *error, size_t error_size);
void td__nodelist_free(td__nodes *nodes);
#endif
