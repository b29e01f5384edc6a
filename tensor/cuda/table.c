/* tensor/cuda/table.c: the table of CUDA's kernels. */
#include "../kernels.h"
#include "rows.h"

#define PROTOTYPE(row) extern __typeof__(*((td_kernels *)0)->row) td__cuda_##row;
#define ENTRY(row) .row = td__cuda_##row,
TD_CUDA_ROWS(PROTOTYPE)

extern const td_kernels td__cuda_kernels;
const td_kernels td__cuda_kernels = { .name = "cuda", TD_CUDA_ROWS(ENTRY) };
