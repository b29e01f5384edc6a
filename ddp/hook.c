/* ddp/hook.c: a bucket's way over the ranks by a hook (tandem/ddp_hook.h): what it is given, when it is called, what its failures mean.
 *
 * cross.c calls in here instead of starting its all-reduce. The gradient is made the share of the mean first, so that a hook knows nothing of weights and
 * accumulation; after finish the bucket holds the mean, as after an all-reduce.
 */
#include "ddp_impl.h"

/* ---- what a hook sees of a bucket --------------------------------------------------------------------------------------------------------------- */

static int describe(td_ddp *ddp, td__bucket *bucket)
{
    const td__flat *flat = bucket->flat;
    const size_t n = (size_t)flat->leaves;
    if (!bucket->parameter) {
        bucket->parameter = td__alloc(n * sizeof *bucket->parameter);
        bucket->place = td__alloc(n * sizeof *bucket->place);
        if (!bucket->parameter || !bucket->place)
            return td__pending();
        for (size_t i = 0; i < n; i++) {
            bucket->parameter[i] = flat->leaf[i]->value;
            bucket->place[i] = flat->leaf[i]->offset;
        }
    }
    bucket->seen = (td_ddp_hook_bucket){ .comm = ddp->comm, .index = flat->index, .buckets = ddp->buckets, .layout = ddp->group->layout,
                                         .parameters = flat->leaves, .parameter = bucket->parameter, .place = bucket->place };
    return 0;
}

void td__hook_forget(td__bucket *bucket)
{
    td__free(bucket->parameter);
    td__free(bucket->place);
    bucket->parameter = NULL;
    bucket->place = NULL;
}

typedef int hook_call(td_ddp_hook_bucket *bucket, void *user);

/* A hook that fails without a sentence gets one. */
static int judge(const td_ddp *ddp, const char *what, int result)
{
    int code = td__pending();
    if (!code && result < 0)
        code = td__fail(TD_ERR_STATE, "td_ddp_set_hook: %s of the hook %s returned %d", what, ddp->hook.name ? ddp->hook.name : "(no name)", result);
    return code;
}

static int call(td_ddp *ddp, td__bucket *bucket, const char *what, hook_call *function)
{
    const td__flat *flat = bucket->flat;
    TD_NO_GRAD();
    TD_SCOPE();
    bucket->seen.gradient = td__scoped_tensor(td__tensor_on(flat->grad, TD_SHAPE(td__bucket_filled(flat)), flat->dtype, 0));
    bucket->seen.bytes = 0;
    int code = judge(ddp, what, td__pending() ? 0 : function(&bucket->seen, ddp->hook_user));
    bucket->figures.bytes += bucket->seen.bytes;
    ddp->stats.bytes += bucket->seen.bytes;
    bucket->seen.gradient = NULL;
    return code;
}

/* ---- the walk -------------------------------------------------------------------------------------------------------------------------------------- */

int td__hook_start(td_ddp *ddp, td__bucket *bucket)
{
    const td__flat *flat = bucket->flat;
    const td_tensor *like = flat->leaf[0]->value;
    const double share = ddp->total > 0 ? ddp->group->unit / ddp->total : 0;
    const td_loop all = { .ndim = 1, .dim = { flat->n }, .stride = { { 1 }, { 1 }, { 1 } } };
    if (td__recording_now)
        td__record_refuse("td_ddp_set_hook has given the gradients a hook, whose calls a captured step cannot repeat");
    int code = describe(ddp, bucket);
    code = code ? code : td__need("td_backward", like, times);
    code = code ? code : td__need("td_backward", like, fill);
    if (code)
        return code;
    if (share == 0)                                /* never 0*NaN */
        td__kernels(like)->fill(&all, flat->dtype, flat->grad->data, 0);
    else if (share != 1)
        td__kernels(like)->times(flat->dtype, flat->n, flat->grad->data, td__number(share));
    bucket->hooked = true;
    return call(ddp, bucket, "start", ddp->hook.start);
}

int td__hook_end(td_ddp *ddp)
{
    if (!ddp->hook.end)
        return 0;
    TD_NO_GRAD();
    TD_SCOPE();
    return judge(ddp, "end", ddp->hook.end(ddp->hook_user));
}

int td__hook_finish(td_ddp *ddp, td__bucket *bucket)
{
    double before = td__now();
    bucket->hooked = false;
    if (td__pending())
        return td__pending();
    int code = call(ddp, bucket, "finish", ddp->hook.finish);
    ddp->stats.exposed_ms += (td__now() - before) * 1e3;
    if (code && ddp->size > 1)                     /* the others wait for collectives of a later step that will not come */
        td_abort(ddp->comm, td_error_message());
    return code;
}

/* ---- setting --------------------------------------------------------------------------------------------------------------------------------------- */

void td__hook_drop(td_ddp *ddp)
{
    if (ddp->hook.free)
        ddp->hook.free(ddp->hook_user);
    ddp->hook = (td_ddp_hook){ 0 };
    ddp->hook_user = NULL;
}

static int check(const char *who, const td_ddp *ddp)
{
    if (td__pending())
        return td__pending();
    if (!ddp)
        return td__fail(TD_ERR_ARGUMENT, "%s: the td_ddp is NULL", who);
    if (td__ddp_is_poison(ddp))
        return TD_ERR_ARGUMENT;
    if (ddp->syncing || ddp->reduced || ddp->local)
        return td__fail(TD_ERR_STATE, "%s: gradients wait for a step; set a hook between td_optim_step and the next td_backward", who);
    return td__recording_now ? td__fail(TD_ERR_STATE, "%s: inside a step that td_capture records", who) : 0;
}

int td_ddp_set_hook(td_ddp *ddp, const td_ddp_hook *hook, void *user)
{
    TD_ENTER();
    int code = check("td_ddp_set_hook", ddp);
    if (!code && hook && (!hook->start || !hook->finish))
        code = td__fail(TD_ERR_ARGUMENT, "td_ddp_set_hook: the hook has no %s", hook->start ? "finish" : "start");
    if (code)
        return code;
    td__hook_drop(ddp);
    ddp->gradient_dtype = TD_F32;
    if (hook)
        ddp->hook = *hook, ddp->hook_user = user;
    return 0;
}

int td_ddp_bf16_hook(td_ddp *ddp)
{
    TD_ENTER();
    int code = check("td_ddp_bf16_hook", ddp);
    if (code)
        return code;
    td__hook_drop(ddp);
    ddp->gradient_dtype = TD_BF16;
    return 0;
}
