/* tests/cuda/emulate_mma.h: what tensor/cuda/mma.h is on the host. Warp instructions are called by all lanes, as on the device.
 */
#ifndef TD_EMULATE_MMA_H
#define TD_EMULATE_MMA_H
#include "emulate.h"

/* For the next launch. */
void td__emulated_shared_up_to(size_t bytes);
void td__emulated_ldmatrix(uint32_t (&into)[4], const void *row, bool turned);
/* a, b: the elements of this lane's registers, in order */
void td__emulated_mma(float (&c)[4], const float (&a)[8], const float (&b)[4]);
/* Arrives when it is waited for, not before. */
void td__emulated_copy(void *shared, const void *from, size_t n, bool there);
void td__emulated_commit();
void td__emulated_wait(size_t later);

/* of emulate.cpp: this lane's `n` bytes (up to 64) for the others to see, until all have called td__emulated_seen */
void        td__emulated_show(const void *value, size_t n);
const void *td__emulated_of(int lane);
void        td__emulated_seen();
int         td__emulated_number();             /* of the thread in its block                                               */
bool        td__emulated_in_shared(const void *p, size_t n);
[[noreturn]] void td__emulated_wrong(const char *what);
/* of emulate_mma.cpp: at a block's end; ends the program if a thread has left copies behind */
void        td__emulated_no_copies(int threads);

extern "C" {
/* Since the last reset: reads of ldmatrix's matrices (8 rows of 16 bytes: one pass over the 32 banks), and passes more than one that they took. */
typedef struct { int64_t reads, conflicts; } td__bank_count;
td__bank_count td__emulated_banks(void);
void           td__emulated_banks_reset(void);
}
#endif
