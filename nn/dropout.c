/* nn/dropout.c: dropout as a module: active while training. */
#include "nn_impl.h"
#include <stdio.h>

typedef struct { td_module base; double p; } dropout;

static td_tensor *forward(td_module *m, td_tensor *x)
{
    return td_dropout(x, ((const dropout *)m)->p, td_is_training(m));
}

static void describe(const td_module *m, char *into, size_t size)
{
    snprintf(into, size, "p=%g", ((const dropout *)m)->p);
}

static const td_module_type type = { .kind = "dropout", .size = sizeof(dropout), .forward = forward, .describe = describe };

td_module *td_nn_dropout(double p)
{
    TD_ENTER();
    if (!(p >= 0 && p < 1)) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_dropout: p is %g, expected 0 or more and less than 1", p);
        return td__module_poison();
    }
    dropout *d = (dropout *)td_module_new(&type);
    d->p = p;
    return td__layer_done(&d->base);
}
