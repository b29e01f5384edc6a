/* tests/ddp/rules.h: a model whose parameters are used by all ranks, by one, by none, or are frozen, and an optimizer of each rule with two groups of
 * options. For programs that compare ways of stepping on several ranks.
 */
#ifndef TD_TEST_RULES_H
#define TD_TEST_RULES_H
#include "../expect.h"

enum { WIDTH = 13, ROWS = 5 };
typedef enum { SGD, ADAM, ADAMW, RMSPROP, ADAGRAD, LION, LAMB, LARS } rule;
typedef struct { td_module base; td_module *first, *second, *rare, *never, *frozen; } net;

/* Rank 0 alone uses `rare`; nobody uses `never`. */
static td_tensor *forward(net *m, td_tensor *x)
{
    td_tensor *y = td_forward(m->frozen, td_forward(m->first, x));
    y = td_cast(td_forward(m->second, td_cast(y, td_dtype_of(td_parameters(m->second).list[0]))), TD_F32);
    return rank == 0 ? td_add(y, td_forward(m->rare, x)) : y;
}

/* second: the dtype of some layers; buckets have two dtypes then, unless it is f32 */
static net *net_new(td_dtype second)
{
    static const td_module_type type = { .kind = "net", .size = sizeof(net) };
    net *m = (net *)td_module_new(&type);
    m->first = td_module_child(&m->base, "first", td_nn_sequential(td_nn_linear(WIDTH, 37, NULL), td_nn_gelu(), td_nn_linear(37, WIDTH, NULL),
                                                                   td_nn_layer_norm(TD_SHAPE(WIDTH), NULL)));
    m->frozen = td_module_child(&m->base, "frozen", td_nn_linear(WIDTH, WIDTH, NULL));
    m->second = td_module_child(&m->base, "second", td_nn_sequential(td_nn_linear(WIDTH, 90, NULL), td_nn_silu(), td_nn_linear(90, WIDTH, NULL)));
    m->rare = td_module_child(&m->base, "rare", td_nn_linear(WIDTH, WIDTH, NULL));
    m->never = td_module_child(&m->base, "never", td_nn_linear(3, 1, NULL));
    if (second != TD_F32)
        td_module_to(m->second, second);
    td_requires_grad(td_parameters(m->frozen), false);
    return m;
}

/* Two groups: the second has its own options. */
static td_optim *optimizer(rule r, td_tensors a, td_tensors b)
{
    td_optim *o = NULL;
    switch (r) {
    case SGD:
        o = td_sgd_new(a, &(td_sgd_opts){ .lr = 0.05, .momentum = 0.9, .weight_decay = 0.01 });
        td_sgd_add_group(o, b, &(td_sgd_opts){ .lr = 0.02, .momentum = 0.5, .nesterov = true });
        break;
    case ADAM:
        o = td_adam_new(a, &(td_adam_opts){ .lr = 0.01 });
        td_adam_add_group(o, b, &(td_adam_opts){ .lr = 0.02, .weight_decay = 0.1 });
        break;
    case ADAMW:
        o = td_adamw_new(a, &(td_adamw_opts){ .lr = 0.01 });
        td_adamw_add_group(o, b, &(td_adamw_opts){ .lr = 0.02, .weight_decay = TD_ZERO });
        break;
    case RMSPROP:
        o = td_rmsprop_new(a, &(td_rmsprop_opts){ .lr = 0.01, .momentum = 0.9, .centered = true });
        td_rmsprop_add_group(o, b, &(td_rmsprop_opts){ .lr = 0.02 });
        break;
    case ADAGRAD:
        o = td_adagrad_new(a, &(td_adagrad_opts){ .lr = 0.05, .initial = 0.1 });
        td_adagrad_add_group(o, b, &(td_adagrad_opts){ .lr = 0.02, .lr_decay = 0.1 });
        break;
    case LION:
        o = td_lion_new(a, &(td_lion_opts){ .lr = 0.003 });
        td_lion_add_group(o, b, &(td_lion_opts){ .lr = 0.001, .weight_decay = 0.1 });
        break;
    case LAMB:
        o = td_lamb_new(a, &(td_lamb_opts){ .lr = 0.02 });
        td_lamb_add_group(o, b, &(td_lamb_opts){ .lr = 0.02, .no_trust = true });
        break;
    case LARS:
        o = td_lars_new(a, &(td_lars_opts){ .lr = 1, .trust = 0.02 });
        td_lars_add_group(o, b, &(td_lars_opts){ .lr = 0.02, .no_trust = true });
        break;
    }
    return o;
}

#endif
