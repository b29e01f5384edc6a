/* 08_lstm/model.h: a recurrent language model: embedding, LSTM or GRU, linear head. Parameters: embedding.weight, rnn.weight_ih_l0 … (as
 * torch.nn.LSTM and GRU name theirs), head.weight, head.bias.
 */
#ifndef LSTM_MODEL_H
#define LSTM_MODEL_H
#include <tandem.h>

typedef struct {
    int64_t vocabulary;     /* default 256: bytes                                                                            */
    int64_t width;          /* of the embedding; default 64                                                                  */
    int64_t hidden;         /* default 256                                                                                   */
    int     layers;         /* default 2                                                                                     */
    bool    gru;            /* default false: an LSTM                                                                        */
    double  dropout;        /* default 0; in [0,1): between the layers and before the head, while training                   */
} lstm_lm_opts;

/* opts NULL: the defaults. Initialised as PyTorch's modules are. */
td_module *lstm_lm_new(const lstm_lm_opts *opts);

/* ids i64 (N,T) -> logits (N*T,vocabulary), row n*T + t: what follows token t of sequence n. h, c: the state as td_lstm_forward takes and
 * leaves it, (layers,N,hidden); a GRU leaves c alone. td_forward does the same from a state of zeros. */
td_tensor *lstm_lm_forward(td_module *m, td_tensor *ids, td_tensor **h, td_tensor **c);

#endif
