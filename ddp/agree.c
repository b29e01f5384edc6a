/* ddp/agree.c: when one rank cannot go on, none does, and all say why.
 */
#include "ddp_impl.h"

enum { SENTENCE = 1536 };   /* as long as an error can be */

/* All ranks know that rank `guilty` has an error; its sentence becomes everybody's. */
int td__ddp_share_error(td_ddp *ddp, int guilty, int code)
{
    char sentence[SENTENCE] = "";
    if (ddp->rank == guilty)
        snprintf(sentence, sizeof sentence, "%s", td_error_message());
    int failed = td__ddp_broadcast(ddp, sentence, TD_U8, SENTENCE, guilty);
    if (failed)
        return failed;
    sentence[SENTENCE - 1] = 0;
    if (ddp->rank != guilty)
        td__fail_verbatim(code, sentence);
    return code;
}

/* Collective: 0 when every rank passes 0; else the lowest failing rank's code and sentence on all. */
int td__ddp_agree(td_ddp *ddp, int code)
{
    int32_t mine = code, *all = td__alloc((size_t)ddp->size * sizeof *all);
    if (!all)
        return td__pending();
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = TD_I32, .in = &mine, .out = all, .count = 1, .pre = 1, .post = 1,
                     .site = td__site, .label = "td_ddp_new" };
    int result = td__coll_run(ddp->comm, &coll);
    for (int r = 0; result == 0 && r < ddp->size; r++)
        if (all[r])
            result = td__ddp_share_error(ddp, r, all[r]);
    td__free(all);
    return result;
}
