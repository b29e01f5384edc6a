/* tests/truth/models.c: small networks with dropout and a branch, and data that is a function of the row alone.
 */
#include "truth.h"
#include "../../examples/05_gpt/model.h"
#include "../../examples/06_resnet/model.h"
#include "../../examples/07_bert/model.h"

struct truth_net {
    td_module base;
    truth_model model;
    td_module *body, *branch, *head;
    td_module *gru;              /* LSTM: reads the states that body, an LSTM, goes through                            */
    td_tensor *tied;             /* TIED: the same tensor as body's weight, used transposed                           */
};

enum { WIDTH = 13, SIDE = 9, CONTEXT = 12, HIDDEN = 7 };

static const td_module_type net_type = { .kind = "truth", .size = sizeof(truth_net) };

td_module *truth_net_new(truth_model model)
{
    truth_net *n = (truth_net *)td_module_new(&net_type);
    n->model = model;
    int64_t features = WIDTH;
    if (model == CNN) {
        n->body = td_nn_sequential(td_nn_conv2d(1, 4, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(),
                                   td_nn_max_pool2d(2, NULL), td_nn_conv2d(4, 6, 3, NULL), td_nn_gelu(), td_nn_dropout(0.2),
                                   td_nn_avg_pool2d(2, NULL), td_nn_flatten());
        features = 6;
    } else if (model == RESNET || model == RESNET_SYNC) {
        n->body = resnet_new(&(resnet_opts){ .depth = 18, .width = 8, .channels = 1, .classes = WIDTH, .small_images = true });
    } else if (model == GPT) {   /* its words' logits are the features */
        gpt_opts opts = { .layers = 2, .heads = 4, .width = 64, .context = CONTEXT, .vocab = WIDTH, .dropout = 0.1 };
        n->body = &gpt_new(&opts)->base;
    } else if (model == BERT) {
        bert_opts opts = { .layers = 2, .heads = 4, .hidden = 64, .positions = CONTEXT, .vocab = WIDTH, .dropout = 0.1, .init = 0.2 };
        bert *b = bert_new(&opts);
        for (int i = 0; i < 2; i++)   /* without influence, so no measure of their own: they move by rounding alone, and must not begin as 0 */
            td_nn_init_normal(td_parameter_get(b->layer[i]->key, "bias"), 0, 0.2);
        n->body = &b->base;
        features = 64;
    } else if (model == MLP) {
        n->body = td_nn_sequential(td_nn_linear(WIDTH, 17, NULL), td_nn_gelu(), td_nn_dropout(0.3), td_nn_linear(17, WIDTH, NULL),
                                   td_nn_tanh());
    } else if (model == LSTM) {
        n->body = td_nn_lstm(1, HIDDEN, &(td_nn_rnn_opts){ .layers = 2, .dropout = 0.2, .batch_first = true });
        n->gru = td_module_child(&n->base, "gru", td_nn_gru(HIDDEN, HIDDEN, &(td_nn_rnn_opts){ .batch_first = true }));
        features = HIDDEN;
    } else {
        n->body = td_nn_linear(WIDTH, 11, NULL);
    }
    td_module_child(&n->base, "body", n->body);
    if (model == TIED)
        n->tied = td_module_parameter(&n->base, "decoder", td_parameter_get(n->body, "weight"));
    n->branch = td_module_child(&n->base, "branch", td_nn_linear(features, features, NULL));
    n->head = td_module_child(&n->base, "head", td_nn_linear(features, CLASSES, NULL));
    return &n->base;
}

bool truth_by_shares(truth_model model)
{
    return model == RESNET;
}

/* BERT's view of a text in which word 0 is padding. */
static td_tensor *pooled_of(td_module *body, td_tensor *ids)
{
    td_tensor *zeros = td_zeros(td_shape_of(ids), TD_I64), *padding = td_cast(td_eq(ids, zeros), TD_I64), *pooled;
    bert_forward((bert *)body, ids, NULL, td_eq(padding, zeros), &pooled);
    return pooled;
}

static td_tensor *logits_of(td_module *net, td_tensor *x, bool branch)
{
    TD_MODULE_SCOPE(net);
    truth_net *n = (truth_net *)net;
    td_tensor *h = n->model == LSTM ? td_reshape(x, TD_SHAPE(td_dim(x, 0), WIDTH, 1)) : x;   /* a row's numbers, one at a time */
    h = n->model == GPT    ? td_reshape(gpt_logits((gpt *)n->body, h), TD_SHAPE(-1, WIDTH))
        : n->model == BERT ? pooled_of(n->body, h)
                           : td_forward(n->body, h);
    if (n->model == LSTM)
        h = td_reshape(td_narrow(td_forward(n->gru, h), 1, WIDTH - 1, 1), TD_SHAPE(td_dim(x, 0), HIDDEN));
    if (n->model == TIED)
        h = td_matmul(td_sigmoid(h), n->tied);
    if (branch)
        h = td_add(h, td_dropout(td_forward(n->branch, h), 0.25, true));
    return td_escape(td_forward(n->head, h));
}

td_tensor *truth_loss(td_module *net, td_tensor *x, td_tensor *y, bool branch)
{
    return td_cross_entropy(logits_of(net, x, branch), td_reshape(y, TD_SHAPE(-1)), NULL);
}

/* ---- data ------------------------------------------------------------------------------------------------------------ */
typedef struct { int64_t n; td_dtype dtype; } source;

static uint64_t mix(uint64_t x)   /* a finaliser; any fixed hash would do */
{
    x ^= x >> 31, x *= 0x7fb5d329728ea185u, x ^= x >> 27, x *= 0x81dadef4bc2dd44du;
    return x ^ x >> 33;
}

static int read_row(void *user, int64_t row, void *const *into)
{
    const source *s = user;
    double sum[CLASSES] = { 0 };
    for (int64_t i = 0; i < s->n; i++) {
        double v = (double)(mix((uint64_t)(row * 1000 + i + 1)) >> 11) / 4503599627370496.0 - 1;
        if (s->dtype == TD_F32)
            v = ((float *)into[0])[i] = (float)v;
        else
            ((double *)into[0])[i] = v;
        sum[i % CLASSES] += v;
    }
    int best = 0;
    for (int c = 1; c < CLASSES; c++)
        best = sum[c] > sum[best] ? c : best;
    *(int64_t *)into[1] = best;
    return 0;
}

/* Words at random; what is asked for depends on a word and the one before it. */
static int read_words(void *user, int64_t row, void *const *into)
{
    int64_t *x = into[0], *y = into[1];
    (void)user;
    for (int64_t i = 0; i < CONTEXT; i++) {
        x[i] = (int64_t)(mix((uint64_t)(row * 1000 + i + 1)) % WIDTH);
        y[i] = (x[i] + (i > 0 ? x[i - 1] : 0)) % CLASSES;
    }
    return 0;
}

/* The class of a text is that of its last word but one. */
static int read_text(void *user, int64_t row, void *const *into)
{
    int64_t y[CONTEXT];
    read_words(user, row, (void *[]){ into[0], y });
    *(int64_t *)into[1] = y[CONTEXT - 2];
    return 0;
}

td_dataset *truth_data(truth_model model, int64_t rows, td_dtype dtype)
{
    if (model == GPT) {
        td_field words[2] = { { TD_SHAPE(CONTEXT), TD_I64 }, { TD_SHAPE(CONTEXT), TD_I64 } };
        return td_dataset_new(&(td_dataset_source){ .rows = rows, .field = words, .n_fields = 2, .read = read_words }, NULL);
    }
    if (model == BERT) {
        td_field text[2] = { { TD_SHAPE(CONTEXT), TD_I64 }, { TD_SCALAR, TD_I64 } };
        return td_dataset_new(&(td_dataset_source){ .rows = rows, .field = text, .n_fields = 2, .read = read_text }, NULL);
    }
    bool picture = model == CNN || model == RESNET || model == RESNET_SYNC;
    source *s = malloc(sizeof *s);
    *s = (source){ .n = picture ? SIDE * SIDE : WIDTH, .dtype = dtype };
    td_field field[2] = { { picture ? TD_SHAPE(1, SIDE, SIDE) : TD_SHAPE(WIDTH), dtype }, { TD_SCALAR, TD_I64 } };
    return td_dataset_new(&(td_dataset_source){ .rows = rows, .field = field, .n_fields = 2, .read = read_row, .close = free }, s);
}
