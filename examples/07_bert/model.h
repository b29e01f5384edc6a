/* examples/07_bert/model.h: BERT (Devlin et al. 2019), with the tensor names, order of operations and defaults of Hugging Face's BertModel.
 *
 *     bert *b = bert_new(&(bert_opts){ .layers = 4, .hidden = 128, .heads = 4, .classes = 7 });
 *     td_tensor *pooled, *hidden = bert_forward(b, ids, NULL, mask, &pooled);     (N,T,hidden) and (N,hidden)
 *     td_tensor *loss = td_cross_entropy(bert_classify(b, pooled), labels, NULL);
 *
 * model.c has the network and uses nothing but the library; folder.c reads and writes Hugging Face's folders.
 */
#ifndef BERT_MODEL_H
#define BERT_MODEL_H
#include <tandem.h>

typedef enum { BERT_GELU, BERT_GELU_TANH, BERT_RELU } bert_activation;   /* "gelu" (exact), "gelu_new", "relu"     */

typedef struct {
    int64_t vocab;               /* default 30522                                                                  */
    int64_t hidden;              /* width; default 768                                                             */
    int64_t layers;              /* default 12                                                                     */
    int64_t heads;               /* default 12; divides hidden                                                     */
    int64_t intermediate;        /* width inside the feed-forward part; default 4*hidden                           */
    int64_t positions;           /* the longest text, in tokens; default 512                                       */
    int64_t types;               /* kinds of segments; default 2                                                   */
    int64_t pad;                 /* the padding token, whose embedding is zero and learns nothing; default 0; -1: none */
    double  dropout;             /* of embeddings, of both parts of a layer, before the classifier; default 0      */
    double  eps;                 /* of the layer norms; default 1e-12                                              */
    double  init;                /* standard deviation of the first weights; default 0.02                          */
    bert_activation activation;  /* default BERT_GELU                                                              */
    int64_t classes;             /* width of the classifier; default 0: none                                       */
    bool    masked_lm;           /* with the head that names hidden tokens (tied to the word embeddings); default false */
    bool    no_pooler;           /* default false                                                                  */
} bert_opts;

typedef struct bert_layer {
    td_module base;
    td_module *query, *key, *value, *attended, *attended_norm, *widen, *narrow, *norm;
} bert_layer;

typedef struct bert {
    td_module base;                                          /* &b->base is the module: parameters, td_ddp_new, td_save */
    bert_opts opts;                                          /* with the defaults filled in                        */
    td_module *words, *places, *types, *norm;                /* embeddings                                         */
    bert_layer **layer;                                      /* opts.layers of them                                */
    td_module *pooler, *classifier;                          /* NULL: not there                                    */
    td_module *lm_dense, *lm_norm;
    td_tensor *lm_bias;
} bert;

/* Yours to td_module_free(&b->base) (td_finish does it too). Weights from N(0, init), biases 0, norms 1 and 0. Bad options are
 * one sentence of the library, and then the result is its poisoned module: ask td_error_pending before reading its fields. */
bert *bert_new(const bert_opts *opts);

/* ids i64 or i32 (N,T); types the same, or NULL: all 0; mask bool (N,T), true: a real token, or NULL: all are. Returns the last hidden
 * states (N,T,hidden); *pooled, unless NULL, is tanh of the pooler's view of the first token (N,hidden). N may be 0. */
td_tensor *bert_forward(bert *b, td_tensor *ids, td_tensor *types, td_tensor *mask, td_tensor **pooled);
td_tensor *bert_classify(bert *b, td_tensor *pooled);        /* (N,hidden) -> (N,classes), dropout first            */
/* hidden (N,T,hidden), at i64 (M): numbers n*T + t of tokens -> (M,vocab): what could stand there */
td_tensor *bert_name_tokens(bert *b, td_tensor *hidden, td_tensor *at);
/* Only what stands behind the encoder (pooler, classifier, head) learns from now on. Before td_ddp_new and the optimizer. */
void bert_freeze(bert *b);

/* ---- folder.c: false after a sentence in why ------------------------------------------------------------------------------ */
/* config.json: width, depth and so on; classes, masked_lm and no_pooler stay as they are. What this encoder cannot compute (relative
 * positions, a decoder, another activation) is refused. Dropout of the attention's weights is not offered and read as 0. */
bool bert_config_read(const char *path, bert_opts *opts, char *why, size_t size);
bool bert_config_write(const char *path, const bert *b, char *why, size_t size);
/* model.safetensors, names with or without "bert." in front, norms' "gamma" and "beta" of old files too. The encoder must be there
 * whole; a pooler, classifier or head that the file lacks stays as it is and is named in why (empty otherwise). */
bool bert_load(bert *b, const char *path, char *why, size_t size);
#endif
