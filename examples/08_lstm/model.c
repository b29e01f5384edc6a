/* 08_lstm/model.c: the model: three layers and what stands between them. */
#include "model.h"

typedef struct {
    td_module  base;
    td_module *embedding, *rnn, *head;
    double     dropout;
    bool       gru;
} lstm_lm;

static td_tensor *forward(td_module *m, td_tensor *ids)
{
    return lstm_lm_forward(m, ids, NULL, NULL);
}

static const td_module_type type = { .kind = "lstm_lm", .size = sizeof(lstm_lm), .forward = forward };

td_module *lstm_lm_new(const lstm_lm_opts *opts)
{
    lstm_lm_opts o = opts ? *opts : (lstm_lm_opts){ 0 };
    const int64_t vocabulary = o.vocabulary ? o.vocabulary : 256, width = o.width ? o.width : 64, hidden = o.hidden ? o.hidden : 256;
    const td_nn_rnn_opts rnn = { .layers = o.layers ? o.layers : 2, .dropout = o.dropout, .batch_first = true };
    lstm_lm *l = (lstm_lm *)td_module_new(&type);
    l->embedding = td_module_child(&l->base, "embedding", td_nn_embedding(vocabulary, width, NULL));
    l->rnn = td_module_child(&l->base, "rnn", o.gru ? td_nn_gru(width, hidden, &rnn) : td_nn_lstm(width, hidden, &rnn));
    l->head = td_module_child(&l->base, "head", td_nn_linear(hidden, vocabulary, NULL));
    l->dropout = o.dropout;
    l->gru = o.gru;
    return &l->base;
}

td_tensor *lstm_lm_forward(td_module *m, td_tensor *ids, td_tensor **h, td_tensor **c)
{
    TD_MODULE_SCOPE(m);
    lstm_lm *l = (lstm_lm *)m;
    td_tensor *x = td_forward(l->embedding, ids);              /* (N,T,width)  */
    x = l->gru ? td_gru_forward(l->rnn, x, h) : td_lstm_forward(l->rnn, x, h, c);
    if (h)
        td_escape(*h);
    if (c && !l->gru)
        td_escape(*c);
    if (l->dropout > 0)
        x = td_dropout(x, l->dropout, td_is_training(m));      /* (N,T,hidden) */
    return td_escape(td_forward(l->head, td_reshape(x, TD_SHAPE(-1, td_dim(x, 2)))));
}
