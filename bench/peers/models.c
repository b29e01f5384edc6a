/* bench/peers/models.c: see models.h. */
#include "models.h"
#include "../../examples/05_gpt/model.h"
#include "../../examples/06_resnet/model.h"
#include <stdlib.h>
#include <string.h>

enum { SIDE = 28, PIXELS = SIDE * SIDE, CLASSES = 10 };

static td_module *mlp(void)
{
    return td_nn_sequential(td_nn_linear(PIXELS, 1024, NULL), td_nn_relu(), td_nn_linear(1024, 1024, NULL), td_nn_relu(),
                            td_nn_linear(1024, CLASSES, NULL));
}

static td_module *cnn(void)
{
    return td_nn_sequential(td_nn_conv2d(1, 32, 3, NULL), td_nn_relu(), td_nn_conv2d(32, 64, 3, NULL), td_nn_relu(), td_nn_max_pool2d(2, NULL),
                            td_nn_dropout(0.25), td_nn_flatten(), td_nn_linear(64 * 12 * 12, 128, NULL), td_nn_relu(), td_nn_dropout(0.5),
                            td_nn_linear(128, CLASSES, NULL));
}

static td_module *resnet18(void)
{
    return resnet_new(&(resnet_opts){ .depth = 18, .channels = 1, .classes = CLASSES, .small_images = true });
}

static td_module *byte_gpt(void)
{
    return &gpt_new(&(gpt_opts){ .layers = 6, .width = 384, .heads = 6, .context = 256, .vocab = 256 })->base;
}

static td_module *gpt2(void)
{
    gpt_opts shape = { 0 };
    gpt_preset("124M", &shape);
    return &gpt_new(&shape)->base;
}

static td_tensor *classes(td_module *net, td_tensor *x, td_tensor *y)
{
    return td_cross_entropy(td_forward(net, x), y, NULL);
}

static td_tensor *tokens(td_module *net, td_tensor *x, td_tensor *y)
{
    return gpt_loss((gpt *)net, x, y);
}

static const peers_model table[] = {
    { "mlp", 64, 0, 0, mlp, classes, .flat = true },
    { "cnn", 64, 0, 0, cnn, classes, .flat = false },
    { "resnet", 32, 0, 0, resnet18, classes, .flat = false },
    { "gpt", 4, 256, 256, byte_gpt, tokens, .adamw = true },
    { "gpt2", 1, 256, 50257, gpt2, tokens, .adamw = true },
    { 0 },
};

const peers_model *peers_model_find(const char *name)
{
    for (const peers_model *m = table; m->name; m++)
        if (!strcmp(m->name, name))
            return m;
    return NULL;
}

td_optim *peers_optim(const peers_model *m, td_module *net)
{
    if (m->adamw)
        return td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = 3e-4, .weight_decay = 0.01 });
    return td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 0.02, .momentum = 0.9 });
}

static int64_t token(const peers_model *m, int64_t row, int64_t t)
{
    return (int64_t)(((uint32_t)(row * 1000003 + t * 7919) * 2654435761u >> 8) % (uint32_t)m->vocab);
}

void peers_batch(const peers_model *m, int64_t first, td_tensor **x, td_tensor **y)
{
    if (m->vocab) {
        *x = td_empty(TD_SHAPE(m->batch, m->tokens), TD_I64);
        *y = td_empty(TD_SHAPE(m->batch, m->tokens), TD_I64);
        int64_t *in = td_data(*x), *out = td_data(*y);
        for (int64_t i = 0; i < m->batch * m->tokens; i++) {
            in[i] = token(m, first + i / m->tokens, i % m->tokens);
            out[i] = token(m, first + i / m->tokens, i % m->tokens + 1);
        }
        return;
    }
    *x = td_empty(m->flat ? TD_SHAPE(m->batch, PIXELS) : TD_SHAPE(m->batch, 1, SIDE, SIDE), TD_F32);
    *y = td_empty(TD_SHAPE(m->batch), TD_I64);
    float *pixel = td_data(*x);
    int64_t *label = td_data(*y);
    for (int64_t i = 0; i < m->batch; i++) {
        for (int64_t k = 0; k < PIXELS; k++)
            pixel[i * PIXELS + k] = (float)(((first + i) * 31 + k * 17) % 251) / 251;
        label[i] = (first + i) % CLASSES;
    }
}
