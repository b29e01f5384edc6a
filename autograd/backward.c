/* autograd/backward.c: from the loss to the leaves, once, without recursion.
 *
 *   plan      which nodes, leaves and groups this backward reaches (plan.c)
 *   begin     every attached group is told, reached or not, error or not: that is where ranks exchange their headers
 *   weigh     the groups reached get one common unit; the walk starts from weight/unit
 *   run       node after node (node_grad.c)
 *   end       every attached group is told that the kernels have run
 *
 * If a gradient function fails, the gradients of all groups reached are forgotten (they would be halves), and the error stays pending.
 */
#include "capture.h"
#include "ops_list.h"

double td__backward_unit(void)
{
    return td__tape_now.unit;
}

/* ---- the walk ----------------------------------------------------------------------------------------------------------------------- */

/* One unit for all groups reached: one that an attached group has already, else any that there is, else this weight. */
static double common_unit(const td__plan *p, double weight)
{
    double unit = 0;
    for (size_t i = 0; i < p->groups; i++) {
        const td__group *g = p->group[i];
        if (g->unit != 0 && g->ops)
            return g->unit;
        if (unit == 0)
            unit = g->unit;
    }
    return unit != 0 ? unit : weight;
}

static int weigh(td__plan *p, double weight, double *start)
{
    double unit = common_unit(p, weight);
    td__tape_now.unit = unit;
    *start = weight / unit;
    for (size_t i = 0; i < p->groups; i++) {
        td__group *g = p->group[i];
        int code = g->unit != unit ? td__group_rebase(g, unit) : 0;
        if (code)
            return code;
        td__group_weigh(g, weight);
    }
    return 0;
}

/* The loss itself may be a leaf. Takes over the reference to seed. */
static int place_seed(td__graph root, td_tensor *seed)
{
    if (!td__graph_is_leaf(root)) {
        td__graph_node(root)->grad[td__graph_output(root)] = seed;
        return 0;
    }
    td__leaf *leaf = td__graph_leaf(root);
    int code = 0;
    if (leaf->requires) {
        code = td__leaf_need_grad(leaf);
        code = code ? code : td__copy(leaf->grad, seed, leaf->has_grad);
        leaf->has_grad |= !code;
        if (!code)
            td__leaf_done(leaf);
    }
    td__tensor_unref(seed);
    return code ? code : td__pending();
}

static int run(td__plan *p, td__graph root, td_tensor *seed, bool retain)
{
    int code = place_seed(root, seed);
    while (!code && p->first) {
        if (p->first->op == &td__op_checkpoint) {
            code = td__node_check(p->first);
            code = code ? code : td__checkpoint_expand(p, retain);
            continue;
        }
        td__pool_next_moment();
        td_call *node = p->first;
        code = td__node_run(node, retain);
        td__plan_drop_first(p);
        if (td__emptying_now)
            td__empty(node);
    }
    return code;
}

/* No gradient arrives and none is wanted, but the other ranks wait for this one's part. */
static int take_part(td_call *node)
{
    td_grad_slot none[TD_OP_MAX_INPUTS] = { 0 };
    td_scope scope = td__scope_begin_labelled(node->label);
    int code = node->op->grad(node, node->grad, none);
    td_scope_end(&scope);
    return code;
}

/* Weight 0: nothing is computed, so that no NaN of an empty batch gets through; but all that a backward leaves behind is there. */
static int run_empty(td__plan *p, bool retain)
{
    int code = 0;
    for (td__leaf *leaf = p->leaf; leaf && !code; leaf = leaf->next) {
        code = td__leaf_zero(leaf);
        if (!code && leaf->expected > 0) {
            leaf->expected = 1;
            td__leaf_done(leaf);
            code = td__pending();
        }
        leaf->used |= !code;
    }
    while (!code && p->first) {
        td_call *node = p->first;
        if (node->op == &td__op_checkpoint && td__checkpoint_collective(node)) {
            code = td__checkpoint_expand(p, retain);
            continue;
        }
        if (node->op->flags & TD__OP_COLLECTIVE)
            code = take_part(node);
        if ((!retain || node->once) && !node->shared) {
            node->freed = true;
            if (node->captured)
                td__saved_drop(node);
            else
                td__node_let_go(node);
        }
        td__plan_drop_first(p);
    }
    return code;
}

/* A weight is seldom a 16-bit number: where the first gradient function works in f32, the seed is f32, too. */
static td_tensor *full_like(const td_tensor *x, double value)
{
    td__graph root = td__graph_of(x);
    bool wide = td__is_half(x->dtype) && !td__graph_is_leaf(root) &&
                (td__half_grad(td__graph_node(root)) || td__graph_node(root)->op == &td__op_cross_entropy);
    td_tensor *seed = td__tensor_new(x->shape, wide ? TD_F32 : x->dtype, x->storage->device);
    if (!seed->poisoned && td__fill(seed, value)) {
        td__tensor_unref(seed);
        seed = td__poison();
    }
    return seed;
}

static int walk(td__plan *p, td_tensor *loss, double weight, bool retain)
{
    if (!loss->graph)
        return 0;
    if (weight == 0)
        return run_empty(p, retain);
    double start;
    int code = weigh(p, weight, &start);
    if (code)
        return code;
    td_tensor *seed = full_like(loss, start);
    return seed->poisoned ? TD_ERR_MEMORY : run(p, td__graph_of(loss), seed, retain);
}

/* Begin of all, walk, end of those that began. An error of one group or of this rank reaches the others' begin as `error`. */
static int walk_with_groups(td__plan *p, td_tensor *loss, double weight, bool retain, int error)
{
    td__group *first = td__groups_attached();
    int code = error;
    for (td__group *g = first; g; g = g->next) {
        int c = g->ops->begin ? g->ops->begin(g, g->walk == p->walk, code, code ? 0 : weight) : 0;
        g->begun = !c;
        code = code ? code : c;
    }
    bool started = !code;
    if (started)
        code = walk(p, loss, weight, retain);
    for (td__group *g = first; g; g = g->next) {
        int c = g->begun && g->ops->end ? g->ops->end(g) : 0;
        g->begun = false;
        code = code ? code : c;
    }
    for (size_t i = 0; i < p->groups && code && started; i++)
        td__group_forget(p->group[i]);
    return code;
}

/* ---- entrances ------------------------------------------------------------------------------------------------------------------------ */

static int check_loss(const char *who, td_tensor *loss)
{
    char shape[128];
    int code = td__tensor_check(who, loss);
    if (code)
        return code;
    if (td__shape_numel(loss->shape) != 1)
        return td__fail(TD_ERR_SHAPE, "%s: the loss must have one element, got shape %s; td_mean or td_sum reduces it", who,
                        td__shape_text(loss->shape, shape));
    if (!td__is_real(loss->dtype))
        return td__fail(TD_ERR_DTYPE, "%s: the loss must be f32, f64, f16 or bf16, got %s", who, td_dtype_name(loss->dtype));
    /* With attached groups a rank whose loss reaches nothing takes part all the same, and contributes zero. */
    if (!td_needs_grad(loss) && !td__groups_attached())
        return td__fail(TD_ERR_STATE, "%s: the loss depends on nothing that needs a gradient (made under TD_NO_GRAD, from td_detach or td_grad, "
                        "or no leaf was marked by td_requires_grad; gradients are first-order)", who);
    return 0;
}

static int find_weight(const char *who, const td_tensor *loss, const td_tensor *given, double *weight)
{
    const td_tensor *w = given ? given : loss->divisor;
    *weight = 1;
    if (!w)
        return 0;
    char shape[128];
    int code = td__tensor_check(who, w);
    if (!code && td__shape_numel(w->shape) != 1)
        code = td__fail(TD_ERR_SHAPE, "%s: the weight must have one element, got shape %s", who, td__shape_text(w->shape, shape));
    if (code)
        return code;
    if (!td__number_of(w, weight))             /* targets were ignored: the one thing that a backward waits for                */
        *weight = td_item(w);
    if (!(*weight >= 0) || *weight > 1e300)
        return td__fail(TD_ERR_ARGUMENT, "%s: the weight must be finite and not negative, got %g", who, *weight);
    return 0;
}

/* `again`: a replay; `note`: a recording that keeps the plan. */
static int backward_as(const char *who, td_tensor *loss, const td_tensor *given, bool retain, const td__plan_kept *again, td__plan_kept *note)
{
    td__tape *tape = &td__tape_now;
    if (tape->light)
        return td__fail(TD_ERR_STATE, "%s: called inside a function of td_checkpoint, whose first run keeps nothing for gradients", who);
    if (tape->walking)
        return td__fail(TD_ERR_STATE, "%s: called while another backward runs on this thread (from a hook or a gradient function); gradients "
                        "are first-order", who);
    double weight = 0;
    td__plan plan;
    td__plan_begin(&plan);
    td__trap_look(false);
    int error = td__pending();
    error = error ? error : check_loss(who, loss);
    error = error ? error : find_weight(who, loss, given, &weight);
    error = error ? error : again ? td__plan_again(&plan, again) : td__plan_make(&plan, td__graph_of(loss));
    error = error || !note ? error : td__plan_keep(&plan, note);
    for (size_t i = 0; i < plan.groups && !error; i++)
        td__group_untrap(plan.group[i]);
    /* Found now it is refused beforehand, on all ranks; what hooks change later is found on the way. Weight 0 reads nothing. */
    for (td_call *node = plan.first; node && !error && weight != 0; node = node->next)
        error = td__node_check(node);
    bool was_off = tape->grad_off;
    td_dtype autocast = tape->autocast;
    const td_memory_category memory = td__memory_now;
    td__memory_now = TD_MEMORY_ACTIVATIONS;
    tape->grad_off = true;
    tape->walking = true;
    tape->autocast = TD_F32;                   /* gradients are computed in the dtypes of the forward                        */
    int code = walk_with_groups(&plan, loss, weight, retain, error);
    tape->walking = false;
    tape->grad_off = was_off;
    tape->autocast = autocast;
    td__memory_now = memory;
    td__plan_end(&plan);
    td__random_restart();
    return code;
}

static int backward(const char *who, td_tensor *loss, const td_tensor *given, bool retain)
{
    td__backward_state *b = td__record_begin(&td__backward_kind);
    if (b && !td_is_poisoned(loss)) {
        *b = (td__backward_state){ .who = who, .loss = loss, .weight = (td_tensor *)(uintptr_t)given, .retain = retain };
        td__tensor_ref(b->loss);
        td__tensor_ref(b->weight);
    }
    int code = backward_as(who, loss, given, retain, NULL, b ? &b->plan : NULL);
    td__record_end();
    return code;
}

int td__backward_again(td__backward_state *b)
{
    return backward_as(b->who, b->loss, b->weight, b->retain, &b->plan, NULL);
}

int td_backward(td_tensor *loss)
{
    TD_ENTER();
    return backward("td_backward", loss, NULL, false);
}

int td_backward_weighted(td_tensor *loss, td_tensor *weight)
{
    TD_ENTER();
    if (!weight && !td__pending())
        td__fail(TD_ERR_ARGUMENT, "td_backward_weighted: the weight is NULL");
    return backward("td_backward_weighted", loss, weight, false);
}

int td_backward_with(td_tensor *loss, const td_backward_opts *opts)
{
    TD_ENTER();
    return backward("td_backward_with", loss, opts ? opts->weight : NULL, opts && opts->retain_graph);
}

/* td_gradcheck looks at one function, not at a step of training: no rank is told, no weight counts. */
int td__backward_seeded(td_tensor *root, td_tensor *seed)
{
    td__tape *tape = &td__tape_now;
    if (tape->light)
        return td__fail(TD_ERR_STATE, "td_gradcheck: called inside a function of td_checkpoint");
    if (tape->walking)
        return td__fail(TD_ERR_STATE, "td_gradcheck: called while td_backward runs");
    td__plan plan;
    td__plan_begin(&plan);
    int code = td__pending();
    code = code ? code : td__plan_make(&plan, td__graph_of(root));
    for (size_t i = 0; i < plan.groups && !code; i++) {
        if (plan.group[i]->ops)
            code = td__fail(TD_ERR_STATE, "td_gradcheck: an input is a parameter of a model that td_ddp_new attached; check it before");
        else if (plan.group[i]->unit == 0)
            td__group_weigh(plan.group[i], 1);
    }
    bool was_off = tape->grad_off;
    td_dtype autocast = tape->autocast;
    tape->grad_off = tape->walking = true;
    tape->unit = 1;
    tape->autocast = TD_F32;
    if (!code && root->graph) {
        td__tensor_ref(seed);
        code = run(&plan, td__graph_of(root), seed, false);
    }
    tape->walking = false;
    tape->grad_off = was_off;
    tape->autocast = autocast;
    td__plan_end(&plan);
    return code;
}
