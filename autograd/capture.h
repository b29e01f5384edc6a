/* autograd/capture.h: captured steps from inside. Internal to autograd.
 *
 *   ../tensor/record.c   the list, and how it is written
 *   capture.c            recording and replaying it; inputs; the life of graphs
 *   capture_tape.c       its two largest kinds of entries: an operation's forward, a backward
 *   capture_uses.c       which memory its entries touch, and when
 *   capture_empty.c      the step's memory while it is recorded
 *   capture_plan.c       the memory of replays, and capture_pack.c its places
 *   capture_fuse.c       chains of element-wise entries as one entry each, run by capture_blocks.c
 *   capture_graph.c      the list as one graph of a GPU
 *   capture_verify.c     a replay beside the step itself
 */
#ifndef TD_CAPTURE_H
#define TD_CAPTURE_H
#include "plan.h"
#include <pool_plan.h>
#include <tandem/capture.h>

typedef struct td__device_graph td__device_graph;
typedef struct td__placing td__placing;

struct td_graph {
    td__record *first;
    td_tensor *(*step)(td_tensors inputs, void *user);
    void       *user;
    td_tensor **in; size_t n_in;                       /* the step's inputs: a reference each                                  */
    td_tensor  *result;                                /* a reference, or NULL                                                 */
    td__device_graph *device;                          /* what a replay launches; NULL: it runs the list                         */
    td__placing *layout;                                /* then: its memory                                                     */
    int64_t     eager;                                 /* bytes that the step takes when it is called                            */
    int64_t     replays, verify;
    int64_t     fused;                                 /* operations that run in chains (capture_fuse.c)                        */
    const void *site;                                  /* of td_capture                                                        */
    td_graph   *next, *prev;                           /* the live ones                                                        */
};
/* In order, in the memory of `layout` (NULL: as it lies); 0, or a code after td__fail. */
int td__records_run(const td__record *first, td__placing *layout);
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
typedef struct { const void *key; size_t value; } td__address_slot;
typedef struct { td__address_slot *slot; size_t room, n; } td__address_map;    /* room is a power of two, at most half full        */
typedef struct {
    td_storage *storage;                               /* lent                                                                 */
    uint32_t first, last;                              /* moments of the first and the last use; first UINT32_MAX: none touches it   */
    int32_t  handles;                                  /* whose references entries have all shown                               */
    bool     own;                                      /* no reference but the list's leads to it                                */
    bool     movable;                                  /* then: a block of the CPU's pool, with nothing else in it                */
    bool     filled;                                   /* the first use writes all of it: nothing is brought along from one replay to the next */
    td_call *over;                                     /* while recorded: the node whose gradient was written over it                */
} td__use;
typedef struct { td_tensor *x; int32_t shown; bool made; size_t use; } td__handle_shown;   /* made: an entry fills it                */
typedef struct {
    td__uses uses;                                     /* first member                                                         */
    td__use *use; size_t n, room;
    td__handle_shown *handle; size_t handles, handle_room;
    td__address_map storages, shown, nodes;            /* storage -> use, tensor -> handle, node -> its last moment                */
    uint32_t now;                                      /* moments so far                                                       */
    int code;                                          /* 0, or TD_ERR_MEMORY after td__fail                                     */
} td__list_uses;
int  td__list_uses_find(const td__record *first, td__list_uses *u);    /* of a whole list: u->code. To be freed either way          */
void td__list_uses_free(td__list_uses *u);
/* The same while a list grows, without what nodes read later: */
void td__list_uses_begin(td__list_uses *u);
void td__list_uses_add(td__list_uses *u, const td__record *r);
void td__list_uses_own(td__list_uses *u);              /* who holds what now                                                   */
/* The use of x's memory if the list has all references to it but one, which is to x; else NULL. It would be movable, and filled, without that one. */
td__use *td__list_uses_but(const td__list_uses *u, const td_tensor *x);
uint32_t td__record_moments(const td__record *r);      /* how many moments the entry takes: 1, a backward one more for each node     */

/* ---- capture_empty.c: the step's memory while it is recorded ---- */
typedef struct {
    td__recording *recording;
    td__record    *last;                               /* looked at so far                                                     */
    td__list_uses  uses;
    td__pool_log   log;
    size_t         skipped;                            /* calls of td__empty that did nothing                                   */
} td__emptying;
extern __thread td__emptying *td__emptying_now;
void    td__empty_begin(td__emptying *e, td__recording *r);
int64_t td__empty_end(td__emptying *e);                /* the bytes that the step took and gave back, at most                    */
void    td__empty(td_call *walked);                    /* between entries, and between nodes of a backward: after this one         */
/* May the gradient of the node's input 0 be written over it? In the recorded step: when nobody but the list and this node knows its memory. In
 * replays: as there. */
bool    td__capture_overwrites(td_call *node);

/* ---- capture_pack.c ---- */
typedef struct { size_t bytes; uint32_t from, to; size_t at; } td__packed;   /* lives from event `from` until before `to`; at: out */
int td__pack(td__packed *list, size_t n, size_t *bytes);       /* the bytes of all; 0, or negative after td__fail                 */

/* ---- capture_plan.c: the memory of replays on the CPU ---- */
int  td__placing_make(td_graph *g);                     /* of the list as it is now; sets g->layout                               */
int  td__placing_replay(td_graph *g);
int  td__placing_moment(td__placing *l, uint32_t moment);
void td__placing_free(td__placing *l);                   /* after the list                                                       */
td_graph_figures td__placing_figures(const td_graph *g);
td__pool_plan *td__placing_plan(const td_graph *g);     /* where all lies now, for tests; NULL: nowhere                             */

/* ---- capture_fuse.c ---- */
int td__capture_fuse(td_graph *g);                     /* chains of element-wise entries become one entry each; 0, or a code after td__fail */

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
    td_tensor *out[TD_OP_MAX_OUTPUTS];                 /* NULL: memory that a fused chain does without                           */
    int        n_saved;                                /* what run saved, in this order: an input's number, or ~ an output's; …   */
    bool       made;                                   /* … but some of it was neither, or there was no room                   */
    int8_t     saved[SAVED_HERE];
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
/* A call of dropout in parts: the numbers that it draws from, which the call saves, are those of all of them. */
typedef struct { const td_call *call; const int64_t *number, *ids; int64_t samples, size; } td__drawn;
int  td__dropout_draw(td_call *call, td_shape x, td__drawn *drawn);        /* 0, or negative after td__fail                     */
void td__dropout_part(const td__drawn *drawn, td_tensor *out, td_tensor *x, int64_t low, int64_t n);   /* whole samples, or 64*i … within one */
int td__plan_keep(const td__plan *p, td__plan_kept *kept);
int td__plan_again(td__plan *p, const td__plan_kept *kept);
int td__backward_again(td__backward_state *b);         /* backward.c                                                           */
/* door.c: what a recorded call did, once more, into the same outputs */
int td__call_again(td_call *call, td_tensor *const *in, td_tensor *const *out);
#endif
