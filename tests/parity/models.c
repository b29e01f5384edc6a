/* tests/parity/models.c: the models and their batches. Every batch is a function of its number.
 */
#include "parity.h"
#include <stdio.h>
#include "../../examples/05_gpt/model.h"
#include "../../examples/06_resnet/model.h"
#include "../../examples/07_bert/model.h"
#include "../../examples/08_lstm/model.h"

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

/* ---- resnet18: torchvision's, eight channels wide ---- */
static td_module *resnet18(void)
{
    return resnet_new(&(resnet_opts){ .depth = 18, .width = 8 });
}

static td_tensor *resnet18_logits(td_module *net, int batch, td_dtype dtype)
{
    return td_forward(net, parity_uniform(TD_SHAPE(8, 3, 64, 64), numbered("x", batch), 2, dtype));
}

/* ---- lstm, gru: two layers; every token names the next ---- */
enum { VOCAB = 97, TOKENS = 24 };

static td_module *lstm(void)
{
    return lstm_lm_new(&(lstm_lm_opts){ .vocabulary = VOCAB, .width = 16, .hidden = 32 });
}

static td_module *gru(void)
{
    return lstm_lm_new(&(lstm_lm_opts){ .vocabulary = VOCAB, .width = 16, .hidden = 32, .gru = true });
}

static td_tensor *rnn_logits(td_module *net, int batch, td_dtype dtype)
{
    (void)dtype;
    td_tensor *h = NULL, *c = NULL;
    return lstm_lm_forward(net, parity_ids(TD_SHAPE(3, TOKENS), numbered("ids", batch), VOCAB), &h, &c);
}

/* ---- gpt2: every token names the next ---- */

static td_module *gpt2(void)
{
    return &gpt_new(&(gpt_opts){ .layers = 2, .width = 64, .heads = 4, .context = 32, .vocab = VOCAB })->base;
}

static td_tensor *gpt2_logits(td_module *net, int batch, td_dtype dtype)
{
    (void)dtype;
    td_tensor *y = gpt_logits((gpt *)net, parity_ids(TD_SHAPE(3, TOKENS), numbered("ids", batch), VOCAB));
    return td_reshape(y, TD_SHAPE(3 * TOKENS, VOCAB));
}

/* ---- bert: a classifier; texts of different lengths and two kinds of segments ---- */
static td_module *bert_classifier(void)
{
    return &bert_new(&(bert_opts){ .layers = 2, .hidden = 64, .heads = 4, .positions = 32, .vocab = VOCAB, .classes = 3 })->base;
}

static td_tensor *bert_logits(td_module *net, int batch, td_dtype dtype)
{
    (void)dtype;
    bool real[4][TOKENS];
    for (int n = 0; n < 4; n++)
        for (int t = 0; t < TOKENS; t++)
            real[n][t] = t < TOKENS - 5 * n;
    td_tensor *pooled, *ids = parity_ids(TD_SHAPE(4, TOKENS), numbered("ids", batch), VOCAB);
    bert_forward((bert *)net, ids, parity_ids(TD_SHAPE(4, TOKENS), numbered("types", batch), 2),
                 td_from(real, TD_SHAPE(4, TOKENS), TD_BOOL), &pooled);
    return bert_classify((bert *)net, pooled);
}

const parity_model parity_models[] = {
    { "mlp", mlp, mlp_logits, class_loss, .depth = 3, .sum = 33 },
    { "cnn", cnn, cnn_logits, class_loss, .depth = 5, .sum = 576 },              /* the longest sum is batch norm's: 16 x 6 x 6 */
    { "resnet18", resnet18, resnet18_logits, class_loss, .depth = 40, .sum = 8192,   /* 20 convolutions with norms; 8 x 32 x 32 */
      .sgd = 0x1p-6, .adamw = 0x1p-3, .lars = 0x1p-4, .kinks = 0.01 },
    { "lstm", lstm, rnn_logits, class_loss, .depth = 2 * TOKENS + 1, .sum = 72 },   /* two cells a token; biases add over 3 x 24 */
    { "gru", gru, rnn_logits, class_loss, .depth = 2 * TOKENS + 1, .sum = 72 },
    { "gpt2", gpt2, gpt2_logits, class_loss, .depth = 20, .sum = 256 },          /* per block 2 norms, 4 products, attention's 2 */
    { "bert", bert_classifier, bert_logits, class_loss, .depth = 22, .sum = 256 },
    { 0 },
};
