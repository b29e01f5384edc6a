/* autograd/hooks.c: functions of the user that see a gradient on its way.
 *
 * Hooks of an operation's result hang on its node and run when that gradient is complete; hooks of a leaf hang on the leaf and run when its
 * last contribution of a backward has arrived. They run in the order in which they were added, with gradients off.
 */
#include "tape.h"

void td_hook(td_tensor *x, void (*fn)(td_tensor *grad, void *user), void *user)
{
    TD_ENTER();
    if (x && x->poisoned)
        return;
    if (!x || !fn) {
        td__fail(TD_ERR_ARGUMENT, "td_hook: the %s is NULL", x ? "function" : "tensor");
        return;
    }
    if (!x->graph) {
        char shape[128];
        td__fail(TD_ERR_STATE, "td_hook: the tensor of shape %s needs no gradient, so its hook would never run",
                 td__shape_text(x->shape, shape));
        return;
    }
    td__graph g = td__graph_of(x);
    if (td__hook_known(g))                     /* the first run of a checkpointed function has added it                   */
        return;
    td__hook *hook = td__alloc(sizeof *hook);
    if (!hook)
        return;
    *hook = (td__hook){ .fn = fn, .user = user, .output = td__graph_is_leaf(g) ? 0 : td__graph_output(g) };
    td__hook **at = td__graph_is_leaf(g) ? &td__graph_leaf(g)->hooks : &td__graph_node(g)->hooks;
    while (*at)
        at = &(*at)->next;
    *at = hook;
}

void td__hooks_run(td__hook *hooks, int output, td_tensor *grad)
{
    for (td__hook *next; hooks; hooks = next) {
        next = hooks->next;
        if (hooks->output == output)
            hooks->fn(grad, hooks->user);
    }
}

void td__hooks_free(td__hook *hooks)
{
    while (hooks) {
        td__hook *next = hooks->next;
        td__free(hooks);
        hooks = next;
    }
}
