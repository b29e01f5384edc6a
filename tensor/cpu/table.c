/* tensor/cpu/table.c: one constant table of kernels per instruction set. */
#include "cpu.h"

#define TD_STRING2(x) #x
#define TD_STRING(x) TD_STRING2(x)
#define TD_TABLE2(isa) td__cpu_kernels_##isa
#define TD_TABLE1(isa) TD_TABLE2(isa)
#define TD_ROW_ENTRY(row) .row = K(row),

const td_kernels TD_TABLE1(TD_ISA) = {
    .name = "cpu " TD_STRING(TD_ISA),
    TD_CPU_ROWS(TD_ROW_ENTRY)
};
