/* autograd/capture.h: captured steps from inside. Internal to autograd.
 *
 *   ../tensor/record.c   the list, and how it is written
 *   capture.c            recording and replaying it; inputs; the life of graphs
 *   capture_tape.c       its two largest kinds of entries: an operation's forward, a backward
 *   capture_uses.c       which memory its entries touch, and when
 *   capture_graph.c      the list as one graph of a GPU
 *   capture_verify.c     a replay beside the step itself
 */
#ifndef TD_CAPTURE_H
#define TD_CAPTURE_H
#include "plan.h"
#include <tandem/capture.h>

typedef struct td__device_graph td__device_graph;

struct td_graph {
    td__record *first;
    td_tensor *(*step)(td_tensors inputs, void *user);
    void       *user;
    td_tensor **in; size_t n_in;                       /* the step's inputs: a reference each                                  */
    td_tensor  *result;                                /* a reference, or NULL                                                 */
    td__device_graph *device;                          /* what a replay launches; NULL: it runs the list                         */
    int64_t     replays, verify;
    const void *site;                                  /* of td_capture                                                        */
    td_graph   *next, *prev;                           /* the live ones                                                        */
};
int td__records_run(const td__record *first);          /* in order; 0, or a code after td__fail                                 */
td_tensor *td__capture_step(td_graph *g);              /* the step itself, with the graph's inputs; gives a reference             */
int td__capture_verified(td_graph *g);                 /* a replay, compared with the step (capture_verify.c)                    */

int td__graph_once(td_graph *g);                       /* a replay, whose inputs are in place                                    */

/* ---- capture_graph.c ---- */
int  td__device_graph_make(td_graph *g);               /* sets g->device where the device has graphs                            */
int  td__device_graph_replay(td_graph *g);
void td__device_graph_free(td__device_graph *d);
/* From the host's part of a record (comm/record.c): to be called when the graph has been launched, in this order. 0 or negative after td__fail. */
int  td__graph_after_launch(int (*run)(void *of), void *of);

/* ---- capture_uses.c: the memory that a list touches ---- */
typedef struct {
    td_storage *storage;                               /* lent                                                                 */
    uint32_t first, last;                              /* moments of the first and the last use; first UINT32_MAX: none touches it   */
    int32_t  handles;                                  /* whose references entries have all shown                               */
    bool     own;                                      /* no reference but the list's                                          */
    bool     filled;                                   /* the first use writes all of it: nothing is brought along from one replay to the next */
} td__use;
typedef struct { td__use *use; size_t n; uint32_t moments; } td__list_uses;
int  td__list_uses_find(const td__record *first, td__list_uses *found);    /* 0, or TD_ERR_MEMORY after td__fail                  */
void td__list_uses_free(td__list_uses *found);
uint32_t td__record_moments(const td__record *r);      /* how many moments the entry takes: 1, a backward one more for each node     */

/* ---- capture_tape.c: the door and backward ---- */
typedef struct {
    td_call   *call;                                   /* the node, one reference, or &own; NULL: it failed                        */
    td_call    own;
    void      *attr;                                   /* own's                                                                */
    int        n_in, n_out;
    td_tensor **in;                                    /* one reference each, or NULL                                          */
    uint32_t  *version;                                /* of their storages before the call, …                                   */
    uint32_t   changed;                                /* … and which of them it changed: running statistics                      */
    uint32_t   saved_in;                               /* bit i: what the node saved lies in the storage of input i, …              */
    uint8_t    saved_out;                              /* … of output i                                                        */
    td_tensor *out[TD_OP_MAX_OUTPUTS];
} td__forward;
extern const td__record_kind td__forward_kind;
td__forward *td__forward_begin(td_tensor *const *in, size_t n);    /* NULL: not recorded. To be ended by …                      */
void td__forward_end(td__forward *f, const td_call *call, td_tensor *const *in, td_tensor *const *out);   /* out NULL: it failed    */
typedef struct {
    td_call  **node;  size_t nodes;                    /* in the order of the walk, one reference each                          */
    td_tensor **leaf; int *expected; size_t leaves;    /* in the order in which they were reached, one reference each              */
} td__plan_kept;
typedef struct {
    const char *who;
    td_tensor *loss, *weight;                          /* a reference each; weight may be NULL                                  */
    bool retain;
    td__plan_kept plan;
} td__backward_state;
extern const td__record_kind td__backward_kind;
/* 0: all of the list can become a graph of this device; 1: the device has none; or a code after td__fail: some of it cannot. */
int td__records_device(const td__record *first, td_device *device);
int td__dropout_host(int64_t rows);                    /* ops_dropout.c: the numbers of a call that a graph makes                */
int td__plan_keep(const td__plan *p, td__plan_kept *kept);
int td__plan_again(td__plan *p, const td__plan_kept *kept);
int td__backward_again(td__backward_state *b);         /* backward.c                                                           */
/* door.c: what a recorded call did, once more, into the same outputs */
int td__call_again(td_call *call, td_tensor *const *in, td_tensor *const *out);
#endif
