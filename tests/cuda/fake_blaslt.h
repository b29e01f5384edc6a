/* tests/cuda/fake_blaslt.h: what the fake cuBLASLt answers, and what it saw; tests set and read it.
 */
#ifndef TD_FAKE_BLASLT_H
#define TD_FAKE_BLASLT_H
#include <cublasLt.h>
#include <stdbool.h>

typedef struct {
    int algorithms;                                    /* how many are advised at most                                           */
    double ms[8];                                      /* what a product by each takes                                           */
    int broken;                                        /* this one cannot be started; -1: all can                                */
    bool capturing, no_epilogues;
    size_t version;
    /* seen */
    int advices, products, last, waits;
    const char *why;                                   /* what was refused last                                                  */
} fake_blaslt;
extern fake_blaslt fake_blas;
#endif
