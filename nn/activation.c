/* nn/activation.c: element-wise functions as modules, and flatten: layers without a state of their own. */
#include "nn_impl.h"

static td_tensor *relu(td_module *m, td_tensor *x)
{
    return td_relu(x);
}

static td_tensor *gelu(td_module *m, td_tensor *x)
{
    return td_gelu(x);
}

static td_tensor *silu(td_module *m, td_tensor *x)
{
    return td_silu(x);
}

static td_tensor *sigmoid(td_module *m, td_tensor *x)
{
    return td_sigmoid(x);
}

static td_tensor *hyperbolic(td_module *m, td_tensor *x)
{
    return td_tanh(x);
}

static td_tensor *flatten(td_module *m, td_tensor *x)
{
    return td_flatten(x, 1);
}

static const td_module_type relu_type = { .kind = "relu", .size = sizeof(td_module), .forward = relu };
static const td_module_type gelu_type = { .kind = "gelu", .size = sizeof(td_module), .forward = gelu };
static const td_module_type silu_type = { .kind = "silu", .size = sizeof(td_module), .forward = silu };
static const td_module_type sigmoid_type = { .kind = "sigmoid", .size = sizeof(td_module), .forward = sigmoid };
static const td_module_type tanh_type = { .kind = "tanh", .size = sizeof(td_module), .forward = hyperbolic };
static const td_module_type flatten_type = { .kind = "flatten", .size = sizeof(td_module), .forward = flatten };

td_module *td_nn_relu(void)
{
    TD_ENTER();
    return td_module_new(&relu_type);
}

td_module *td_nn_gelu(void)
{
    TD_ENTER();
    return td_module_new(&gelu_type);
}

td_module *td_nn_silu(void)
{
    TD_ENTER();
    return td_module_new(&silu_type);
}

td_module *td_nn_sigmoid(void)
{
    TD_ENTER();
    return td_module_new(&sigmoid_type);
}

td_module *td_nn_tanh(void)
{
    TD_ENTER();
    return td_module_new(&tanh_type);
}

td_module *td_nn_flatten(void)
{
    TD_ENTER();
    return td_module_new(&flatten_type);
}
