/* tensor/cpu/parts.h: how losses cut their sums: at most 256 parts whose borders depend on the size alone, added in order, so that the bits
 * do not depend on the number of threads.
 */
#ifndef TD_PARTS_H
#define TD_PARTS_H
#include <stdint.h>

enum { PARTS = 256 };

static inline int64_t part_size(int64_t n, int64_t unit)      /* so that at most PARTS of them cover n, in multiples of unit       */
{
    int64_t size = (n + PARTS - 1) / PARTS;
    size = (size + unit - 1) / unit * unit;
    return size > 0 ? size : unit;
}

#endif
