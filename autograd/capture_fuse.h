/* autograd/capture_fuse.h: a chain of element-wise operations as capture_fuse.c finds it and capture_blocks.c runs it. Internal to these.
 */
#ifndef TD_CAPTURE_FUSE_H
#define TD_CAPTURE_FUSE_H
#include "capture.h"
#include "ops_list.h"

enum {
    TD__CHAIN_INPUTS = 3,
    TD__CHAIN_BLOCK = 4096,                            /* elements: what a chain of f32 touches at a time stays in the first-level cache */
    TD__CHAIN_ROW = 16384,                             /* the longest row that is repeated: a block is at least one                   */
    TD__CHAIN_PARALLEL = 32768,                        /* as the kernels' loops: fewer elements are not worth waking threads          */
};

/* Which element of an operand belongs to element i of the chain: number i, number i % row, or its only one. */
typedef enum { TD__EACH, TD__ROW, TD__ONE } td__reach;
typedef struct {
    td_tensor *x;                                      /* lent by the member's record; NULL: scratch                               */
    int        slot;                                   /* of the scratch                                                        */
    td_dtype   dtype;
    td__reach  reach;
} td__operand;
typedef struct {
    td__record  *record;                               /* an operation's own entry                                             */
    td__forward *f;
    td_shape     shape;                                /* of its output                                                        */
    td__operand  in[TD__CHAIN_INPUTS], out;
    bool         wide;                                 /* computes in f32 on 16 bits: widened before, rounded behind              */
    bool         drop;                                 /* dropout                                                              */
    td__drawn    drawn;                                /* its numbers in this replay                                            */
} td__member;

typedef struct td__lane td__lane;
typedef struct {
    td__record *first;                                 /* the entries of the members, in order: the chain's own                  */
    td__member *member; int n;
    int64_t     numel, row;                            /* elements; row: of what is repeated, 0: nothing is                       */
    int         slots;                                 /* blocks of scratch                                                    */
    td__lane  **lane; int lanes;                       /* what one thread works on                                              */
} td__chain;

int  td__chain_threads(const td__chain *c);             /* how many work on it now                                              */
int  td__chain_lanes(td__chain *c, int threads);        /* as many as threads; 0, or TD_ERR_MEMORY                                */
void td__chain_lanes_free(td__chain *c);
int  td__chain_run(td__chain *c);                       /* 0, or negative after td__fail                                          */
#endif
