/* launcher/doctor.h: one row of `tandem doctor`: what was looked for, what was found, what to do where it is missing.
 */
#ifndef TD_DOCTOR_H
#define TD_DOCTOR_H
#include "launcher.h"

typedef struct {
    bool ok;
    char found[240];                           /* what is there                                                           */
    char hint[240];                            /* when it is not: what to do                                              */
    char more[2000];                           /* what it runs on, a line each, as td_plugin.describe says them             */
} td__finding;
void td__doctor_cores(td__finding *f);
void td__doctor_blas(td__finding *f);
void td__doctor_memory(td__finding *f);
void td__doctor_shared(td__finding *f);        /* memfd: what ranks of one machine share                                  */
void td__doctor_boxes(td__finding *f);
void td__doctor_mpirun(td__finding *f);
void td__doctor_mpi(td__finding *f);           /* the plug-in                                                             */
void td__doctor_cuda(td__finding *f);
void td__doctor_nccl(td__finding *f);
#endif
