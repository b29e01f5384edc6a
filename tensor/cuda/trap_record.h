/* tensor/cuda/trap_record.h: where kernels leave word of an index that is outside its table. For C and C++.
 *
 * One record lies in the device's memory, which kernels write and ask; a copy of it in host memory that the device can reach, which the host looks at
 * without waiting. Nothing is written while indices are right. The first launch that meets a bad index keeps the record, and of its
 * indices the first: so what is told does not depend on the order of threads.
 */
#ifndef TD_CUDA_TRAP_RECORD_H
#define TD_CUDA_TRAP_RECORD_H
#include <stdint.h>

typedef struct td_trap_record {
    int32_t set;                           /* 1: kernels that step weights write nothing                              */
    int32_t lock;                          /* held by the thread that writes; free between launches                   */
    int64_t launch, check, position, value;
    struct td_trap_record *seen;           /* the copy; `set` is its last to be written                               */
} td_trap_record;

#ifdef __cplusplus
extern "C" {
#endif
/* The device's record, and a number for the next launch. NULL after td__fail. */
td_trap_record *td__cuda_trap(int64_t *launch);
/* For kernels that step weights: its word `set`, in the device's memory. NULL: no check was ever made. */
const int32_t *td__cuda_trap_word(void);
#ifdef __cplusplus
}
#endif
#endif
