/* comm/agree.c: when one rank cannot go on, none does, and all say why. */
#include <stdio.h>
#include "comm_impl.h"

enum { SENTENCE = 1536 };   /* as long as an error can be */

int td__comm_bytes(td_comm *comm, void *data, size_t n, int root, const char *label)
{
    td_coll coll = { .kind = TD_COLL_BROADCAST, .dtype = TD_U8, .root = root, .in = data, .out = data, .count = (int64_t)n, .pre = 1, .post = 1,
                     .site = td__site, .label = label };
    return td__coll_run(comm, &coll);
}

int td__comm_share_error(td_comm *comm, int guilty, int code, const char *label)
{
    char sentence[SENTENCE] = "";
    bool mine = td_rank(comm) == guilty;
    if (mine)
        snprintf(sentence, sizeof sentence, "%s", td_error_message());
    int failed = td__comm_bytes(comm, sentence, SENTENCE, guilty, label);
    if (failed)
        return failed;
    sentence[SENTENCE - 1] = 0;
    if (!mine)
        td__fail_verbatim(code, sentence);
    return code;
}

int td__comm_agree(td_comm *comm, int code, const char *label)
{
    int size = td_size(comm);
    int32_t mine = code, *all = td__alloc((size_t)size * sizeof *all);
    if (!all)
        return td__pending();
    td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = TD_I32, .in = &mine, .out = all, .count = 1, .pre = 1, .post = 1, .site = td__site,
                     .label = label };
    int result = td__coll_run(comm, &coll);
    for (int r = 0; result == 0 && r < size; r++)
        if (all[r])
            result = td__comm_share_error(comm, r, all[r], label);
    td__free(all);
    return result;
}
