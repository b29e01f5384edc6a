/* tests/parity/models.c: the models and their batches. Every batch is a function of its number.
 */
#include "parity.h"
#include <stdio.h>

static const char *numbered(const char *what, int batch)
{
    static char text[64];
    snprintf(text, sizeof text, "%s/%d", what, batch);
    return text;
}

static td_tensor *class_loss(td_tensor *logits, int batch)
{
    td_shape s = td_shape_of(logits);
    return td_cross_entropy(logits, parity_ids(TD_SHAPE(s.dim[0]), numbered("y", batch), s.dim[1]), NULL);
}

/* ---- mlp ---- */
static td_module *mlp(void)
{
    return td_nn_sequential(td_nn_linear(20, 33, NULL), td_nn_gelu(), td_nn_linear(33, 17, NULL), td_nn_tanh(), td_nn_linear(17, 5, NULL));
}

static td_tensor *mlp_logits(td_module *net, int batch, td_dtype dtype)
{
    return td_forward(net, parity_uniform(TD_SHAPE(32, 20), numbered("x", batch), 2, dtype));
}

/* ---- cnn ---- */
static td_module *cnn(void)
{
    return td_nn_sequential(td_nn_conv2d(1, 6, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),
                            td_nn_conv2d(6, 8, 3, &(td_nn_conv2d_opts){ .stride = 2, .no_bias = true }), td_nn_batch_norm(8, NULL),
                            td_nn_gelu(), td_nn_avg_pool2d(2, NULL), td_nn_flatten(), td_nn_linear(72, 10, NULL));
}

static td_tensor *cnn_logits(td_module *net, int batch, td_dtype dtype)
{
    return td_forward(net, parity_uniform(TD_SHAPE(16, 1, 28, 28), numbered("x", batch), 2, dtype));
}

const parity_model parity_models[] = {
    { "mlp", mlp, mlp_logits, class_loss, .depth = 3, .sum = 33 },
    { "cnn", cnn, cnn_logits, class_loss, .depth = 5, .sum = 576 },   /* the longest sum is batch norm's: 16 x 6 x 6 */
    { 0 },
};
