/* tensor/cuda/trap.h: what a kernel does with an index outside its table. Internal to tensor/cuda.
 */
#ifndef TD_CUDA_TRAP_H
#define TD_CUDA_TRAP_H
#include "cuda.h"
#include "trap_record.h"

/* One check of one launch. */
typedef struct { td_trap_record *record; int64_t launch, check; } td_trap;

/* *bad: the number of the check when a row is called; from then on "none was found". */
static inline td_trap td_trap_of(int64_t *bad)
{
    td_trap t = { NULL, 0, *bad };
    t.record = td__cuda_trap(&t.launch);
    *bad = -1;
    return t;
}

__device__ __forceinline__ bool td_trap_takes(const volatile td_trap_record *r, const td_trap &t, int64_t position)
{
    return !r->set || (r->launch == t.launch && position < r->position);
}

/* Called by threads that met a bad index: rarely, so that a lock is good enough. */
__device__ __noinline__ static void td_trap_meet(const td_trap &t, int64_t position, int64_t value)
{
    volatile td_trap_record *r = t.record;
    if (!r || !td_trap_takes(r, t, position))
        return;
    for (bool done = false; !done;) {
        if (atomicCAS((int *)&t.record->lock, 0, 1) != 0)
            continue;
        __threadfence();
        if (td_trap_takes(r, t, position)) {
            volatile td_trap_record *s = r->seen;
            r->launch = s->launch = t.launch;
            r->check = s->check = t.check;
            r->position = s->position = position;
            r->value = s->value = value;
            __threadfence_system();
            r->set = s->set = 1;
        }
        __threadfence();
        atomicExch((int *)&t.record->lock, 0);
        done = true;
    }
}
#endif
