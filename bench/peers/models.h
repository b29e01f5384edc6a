/* bench/peers/models.h: the models of the comparison with PyTorch, their optimizers and their made-up data; models.py has the same.
 *
 *     mlp       784-1024-1024-10, 64 rows, SGD with momentum
 *     cnn       conv 32 and conv 64 of 3x3 without padding, pool, dropout, linear 128, dropout, linear 10; 64 pictures 28x28x1, SGD
 *     resnet    ResNet-18 with a 3x3 stem and no pooling in it; 32 pictures 28x28x1, SGD
 *     gpt       6 layers, 384 wide, 256 kinds of tokens, 4 rows of 256, AdamW
 *     gpt2      124M parameters, 1 row of 256 tokens, AdamW
 */
#ifndef PEERS_MODELS_H
#define PEERS_MODELS_H
#include <tandem.h>

typedef struct {
    const char *name;
    int64_t batch;                                     /* rows of a rank                                                      */
    int64_t tokens, vocab;                             /* of a row; 0: pictures                                              */
    td_module *(*build)(void);
    td_tensor *(*loss)(td_module *net, td_tensor *x, td_tensor *y);
    bool flat;                                         /* a picture is a vector                                              */
    bool adamw;                                        /* else SGD, rate 0.02, momentum 0.9                                  */
} peers_model;

const peers_model *peers_model_find(const char *name); /* NULL: there is no such model                                        */
td_optim *peers_optim(const peers_model *m, td_module *net);
/* Rows first, first+1, …; the caller's scope has them. Each number is a function of its row and place alone. */
void peers_batch(const peers_model *m, int64_t first, td_tensor **x, td_tensor **y);
#endif
