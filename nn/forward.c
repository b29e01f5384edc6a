/* nn/forward.c: the inner scope of a forward.
 *
 * What a module's forward makes lives in a scope of its own, labelled with the module's path for messages; only the result leaves
 * it. So activations that no gradient needs are gone when the module returns. A result that was not made inside (the input itself,
 * a state that the module keeps) stays where it belongs.
 */
#include "nn_impl.h"

static int check_forward(const char *who, td_module *m, const td_tensor *x)
{
    int code = td__module_check(who, m);
    return code || x ? code : td__fail(TD_ERR_ARGUMENT, "%s: the input of %s is NULL", who, td__module_label(m));
}

static td_tensor *forward_of(td_tensor *const *inputs, size_t n, void *m)
{
    return td_forward(m, inputs[0]);
}

td_tensor *td_forward_checkpointed(td_module *m, td_tensor *x)
{
    TD_ENTER();
    if (check_forward("td_forward_checkpointed", m, x) != 0)
        return td__poison();
    return td_checkpoint(forward_of, m, 0, &x, 1);
}

td_tensor *td_forward(td_module *m, td_tensor *x)
{
    TD_ENTER();
    if (check_forward("td_forward", m, x) != 0)
        return td__poison();
    if (x->poisoned)
        return x;
    if (!m->type->forward) {
        td__fail(TD_ERR_UNSUPPORTED, "td_forward: %s has no forward of one input; call its own function", td__module_label(m));
        return td__poison();
    }
    td_scope scope = td__scope_begin_labelled(td__module_label(m));
    td_tensor *y = m->type->forward(m, x);
    if (!y) {
        td__fail(TD_ERR_ARGUMENT, "td_forward: the forward function returned NULL");
        y = td__poison();
    }
    if (td__scope_holds(&y->scoped))
        td__scope_escape(&y->scoped);
    td_scope_end(&scope);
    return y;
}

td_scope td_module_scope_begin(td_module *m)
{
    TD_ENTER();
    return td__scope_begin_labelled(td__module_check("td_module_scope_begin", m) == 0 ? td__module_label(m) : NULL);
}
