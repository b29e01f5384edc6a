/* ddp/verify.c: are the models of all ranks the same?
 *
 * Each rank describes its parameters and buffers, a line each: name, dtype, shape, frozen or not. Rank 0's text goes to all; each
 * finds its first differing line; the lowest such line over all ranks becomes one sentence, the same on every rank, with both
 * sides of it.
 */
#include "ddp_impl.h"

enum { LINE = 320 };   /* every line has this many bytes, so that line i is found without parsing */

static void describe_one(char *line, const char *kind, const td_tensor *x)
{
    char shape[128];
    const td__leaf *leaf = td__leaf_of(x);
    snprintf(line, LINE, "%s %.160s %s %s%s", kind, td_parameter_name(x), td_dtype_name(x->dtype), td__shape_text(x->shape, shape),
             leaf && !leaf->requires ? " frozen" : "");
}

static char *describe(td_ddp *ddp, int64_t *lines)
{
    td_tensors p = td_parameters(ddp->model), b = td_buffers(ddp->model);
    *lines = (int64_t)(p.n + b.n);
    char *text = td__calloc((p.n + b.n + 1) * LINE);
    for (size_t i = 0; text && i < p.n; i++)
        describe_one(text + i * LINE, "parameter", p.list[i]);
    for (size_t i = 0; text && i < b.n; i++)
        describe_one(text + (p.n + i) * LINE, "buffer", b.list[i]);
    return text;
}

int td__ddp_verify(td_ddp *ddp)
{
    int64_t mine, lines;
    char *text = describe(ddp, &mine);
    if (!text)
        return td__pending();
    lines = mine;
    int code = td__ddp_broadcast(ddp, (td_device){ TD_CPU, 0 }, &lines, TD_I64, 1, 0);
    char *first = code ? NULL : td__calloc((size_t)(lines + 1) * LINE);
    if (first && ddp->rank == 0)
        memcpy(first, text, (size_t)lines * LINE);
    if (!code)
        code = first ? td__ddp_broadcast(ddp, (td_device){ TD_CPU, 0 }, first, TD_U8, lines * LINE, 0) : td__pending();

    /* my first differing line; the shorter text ends in an empty line, which differs */
    int64_t differs = INT64_MAX, *all = code ? NULL : td__alloc((size_t)ddp->size * sizeof *all);
    int64_t common = mine < lines ? mine : lines;
    for (int64_t i = 0; all && i < common && differs == INT64_MAX; i++)
        if (strcmp(text + i * LINE, first + i * LINE))
            differs = i;
    if (differs == INT64_MAX && mine != lines)
        differs = common;
    if (!code && all) {
        td_coll coll = { .kind = TD_COLL_ALL_GATHER, .dtype = TD_I64, .in = &differs, .out = all, .count = 1, .pre = 1, .post = 1,
                         .site = td__site, .label = "comparison of models" };
        code = td__coll_run(ddp->comm, &coll);
    }
    int guilty = 0;
    for (int r = 0; !code && all && r < ddp->size; r++)
        if (all[r] < all[guilty])
            guilty = r;
    if (!code && all && all[guilty] != INT64_MAX) {
        char theirs[LINE] = "";
        if (ddp->rank == guilty && all[guilty] < mine)
            memcpy(theirs, text + all[guilty] * LINE, LINE);
        code = td__ddp_broadcast(ddp, (td_device){ TD_CPU, 0 }, theirs, TD_U8, LINE, guilty);
        const char *ours = first + all[guilty] * LINE;   /* line `lines` is empty */
        if (!code)
            code = td__fail(TD_ERR_MISMATCH, "td_ddp_new: the models differ: rank 0 has %s where rank %d has %s",
                            *ours ? ours : "nothing more", guilty, *theirs ? theirs : "nothing more");
    }
    td__free(all);
    td__free(first);
    td__free(text);
    return code;
}
