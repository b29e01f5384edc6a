/* autograd/mean.c: the weighted mean of a group: counting a micro-batch, changing the unit, finalising, consuming.
 *
 * unit*G is the weighted sum of gradients, weight the sum of weights (autograd_impl.h). Everything here keeps unit*G/weight, the mean, unless it
 * says otherwise.
 */
#include "tape.h"

int td__scale(td_tensor *x, double factor)
{
    if (factor == 1 || !td__shape_numel(x->shape))
        return 0;
    const bool half = td__is_half(x->dtype);               /* then x lies dense: a gradient                                   */
    int code = half ? td__need("td_backward", x, times) : td__need("td_backward", x, scale);
    if (code)
        return code;
    if (half) {
        td__kernels(x)->times(x->dtype, td__shape_numel(x->shape), td__ptr(x), (td_number){ .by = factor });
        return 0;
    }
    td_loop l = td__loop(x->shape, x, x, NULL, NULL);
    td__kernels(x)->scale(&l, x->dtype, td__ptr(x), td__ptr(x), factor, 0, false);
    return 0;
}

/* One kernel over a flat whose leaves all have gradients; leaf by leaf where some hold nothing. */
static int scale_flat(td__flat *flat, double factor)
{
    bool all = flat->leaves > 0;
    for (int i = 0; i < flat->leaves; i++)
        all &= flat->leaf[i]->has_grad;
    int code = 0;
    if (all) {
        td_tensor *whole = td__tensor_on(flat->grad, TD_SHAPE(flat->n), flat->dtype, 0);
        code = whole->poisoned ? TD_ERR_MEMORY : td__scale(whole, factor);
        td__tensor_unref(whole);
        return code;
    }
    for (int i = 0; i < flat->leaves && !code; i++)
        if (flat->leaf[i]->has_grad)
            code = td__scale(flat->leaf[i]->grad, factor);
    return code;
}

static int scale_group(td__group *g, double factor)
{
    if (factor == 1)
        return 0;
    if (g->implicit)
        return g->only->has_grad ? td__scale(g->only->grad, factor) : 0;
    int code = 0;
    for (int f = 0; f < g->flats && !code; f++)
        code = scale_flat(g->flat[f], factor);
    return code;
}

double td__group_scale(const td__group *g)
{
    return g->weight != 0 ? g->unit / g->weight : 0;
}

void td__group_weigh(td__group *g, double w)
{
    if (g->unit == 0)
        g->unit = w;
    g->weight += w;
}

void td__group_untrap(td__group *g)
{
    if (g->traps == td__traps)
        return;
    if (g->unit != 0)
        td__group_forget(g);
    g->traps = td__traps;
}

int td__group_rebase(td__group *g, double unit)
{
    int code = g->unit != 0 ? scale_group(g, g->unit / unit) : 0;
    g->unit = code ? g->unit : unit;
    return code;
}

int td__group_finalise(td__group *g)
{
    int code = 0;
    for (int f = 0; f < g->flats && g->ops && g->ops->wait; f++) {
        int c = g->ops->wait(g->flat[f]);
        code = code ? code : c;
    }
    if (code || g->weight == 0)
        return code;
    code = scale_group(g, td__group_scale(g));
    if (!code)
        g->unit = g->weight;
    return code;
}

static void forget_leaf(td__leaf *leaf, bool stepped)
{
    if (stepped && leaf->has_grad)
        leaf->value->storage->version++;       /* a graph that saved the old value must notice */
    leaf->has_grad = leaf->used = false;
    leaf->left_weight = 0;
}

static void forget(td__group *g, bool stepped)
{
    if (g->implicit)
        forget_leaf(g->only, stepped);
    for (int f = 0; f < g->flats; f++)
        for (int i = 0; i < g->flat[f]->leaves; i++)
            forget_leaf(g->flat[f]->leaf[i], stepped);
    g->unit = g->weight = 0;
    g->stop = NULL;
}

void td__group_forget(td__group *g)
{
    forget(g, false);
}

void td__group_consume(td__group *g)
{
    forget(g, true);
    td__group_give_back(g);
    if (g->ops && g->ops->step_end)
        g->ops->step_end(g);
}
