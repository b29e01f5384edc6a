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
} td__plan;

void td__plan_begin(td__plan *p);
int  td__plan_make(td__plan *p, td__graph root);
void td__plan_drop_first(td__plan *p);         /* the first node is done: its incoming gradients and the plan's reference    */
void td__plan_end(td__plan *p);

#endif
