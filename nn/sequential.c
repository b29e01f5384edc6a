/* nn/sequential.c: layers one after another. The children in the tree are the layers: nothing else is kept, and what else a user adds to
 * the module (a buffer, a tied parameter) is passed over. */
#include "nn_impl.h"
#include <stdio.h>

static td_tensor *forward(td_module *m, td_tensor *x)
{
    const td__tree *t = td__tree_of(m);
    td_tensor *h = x;
    for (int i = 0; i < t->n; i++) {
        if (!t->entry[i]->child)
            continue;
        td_tensor *y = td_forward(t->entry[i]->child, h);
        /* Unless a graph saved it, nobody needs h any more: give it back now rather than at the end of the scope. */
        if (y != h && h != x && td__scope_holds(&h->scoped)) {
            td__scope_remove(&h->scoped);
            td__tensor_unref(h);
        }
        h = y;
    }
    return h;
}

static const td_module_type type = { .kind = "sequential", .size = sizeof(td_module), .forward = forward };

td_module *td_nn_sequential_n(td_module *const *layers, size_t n)
{
    TD_ENTER();
    if (n > 0 && !layers) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_sequential_n: the list of %zu layers is NULL", n);
        return td__module_poison();
    }
    td_module *m = td_module_new(&type);
    for (size_t i = 0; i < n; i++) {
        char name[24];
        snprintf(name, sizeof name, "%zu", i);
        if (td_module_child(m, name, layers[i]) == td__module_poison())
            return td__module_poison();        /* the user may hold any of the layers: what is made already lives until td_finish */
    }
    return m;
}
