/* autograd/plan.h: what a backward will do. Internal to autograd's core files. */
#ifndef TD_PLAN_H
#define TD_PLAN_H
#include "tape.h"

typedef struct {
    uint64_t    walk;              /* this backward's number: what it reached is marked with it                              */
    td_call    *first, *last;      /* nodes still to run, each referenced, consumers before producers                        */
    td__leaf   *leaf, *last_leaf;  /* leaves reached, each referenced; `expected` counts their contributions, 0 outside       */
    td__group **group;             /* their groups                                                                         */
    size_t      groups, group_room;
    td_call   **heap;              /* while planning                                                                       */
    size_t      heaped, room;
    uint64_t    since;             /* nodes up to this sequence number, shared casts and leaves are not taken in but shown to `border` … */
    int       (*border)(void *user, td__graph g);   /* … if there is one                                                      */
    void       *user;
} td__plan;

void td__plan_begin(td__plan *p);
int  td__plan_make(td__plan *p, td__graph root);
/* What lies between root and the border in front of all else; `part` is empty afterwards. */
void td__plan_prepend(td__plan *p, td__plan *part);
int  td__plan_leaf(td__plan *p, td__leaf *leaf, int expected);   /* of a plan made before (capture_tape.c): a leaf, with its group */
void td__plan_append(td__plan *p, td_call *node);
void td__plan_drop_first(td__plan *p);         /* the first node is done: its incoming gradients and the plan's reference    */
void td__plan_end(td__plan *p);

/* ---- node_grad.c ---- */
int  td__node_check(td_call *node);            /* an error where what it saved was changed in place since                       */
int  td__node_run(td_call *node, bool retain); /* unless retained, what it saved is freed                                    */
void td__leaf_done(td__leaf *leaf);            /* one contribution is there; with the last one the leaf is ready               */

/* ---- grad_place.c ---- */
/* Where the gradient of what g names, of this shape, lies in the gradient of what it was cut from: to be written at once, strided. It is g's
 * accumulator then. NULL: it was not cut, or this is not the way. Poison after td__fail. */
td_tensor *td__grad_place(td__graph g, td_shape shape);
int  td__grad_complete(td_call *node);         /* before anybody but a placed piece looks at or adds to its gradients: what no piece covers is 0 */

/* ---- checkpoint.c, recompute.c ---- */
/* The plan's first node is a checkpoint: its function runs again, and the nodes that this records take its place in the plan. */
int  td__checkpoint_expand(td__plan *p, bool retain);

#endif
