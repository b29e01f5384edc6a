/* autograd/flat.h: what flat.c makes for group.c. */
#ifndef TD_FLAT_H
#define TD_FLAT_H

#include "tape.h"

/* May these leaves become `flats` flats, flat f of cut[f] leaves? One dtype and device a flat, none twice; of no group yet, or all of `owner` (to
 * rebuild it). 0, or td__fail's code. */
int td__leaves_check(td__leaf *const *leaf, const int *cut, int flats, const td__group *owner);

/* Flats without gradients, values zero; memory NULL: ordinary memory. NULL: none of them, after td__fail. */
td__flat **td__flats_new(td__group *g, td__leaf *const *leaf, const int *cut, int flats, const td__flat_memory *memory, void *user);
void td__flats_free(td__flat **flat, int flats);

/* Memory for gradients, zero; wanted for those that leaves bring, or where ddp gives it. */
int td__flat_grads_new(td__flat *flat, const td__flat_memory *memory, void *user);
bool td__flat_wants_grads(const td__flat *flat, const td__flat_memory *memory);

int64_t td__flat_padded(int64_t n, td_dtype dtype);    /* elements that a leaf of n takes in a flat */

#endif
