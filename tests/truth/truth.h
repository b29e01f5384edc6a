/* tests/truth/truth.h: the promise "N ranks times batch B give the weights of one process times batch N*B", as a table of cases.
 *
 * models.c makes the networks and the data, train.c runs a case on all ranks and again in one process, truth.c walks the table.
 */
#ifndef TRUTH_H
#define TRUTH_H
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>

enum { BATCH = 6, STEPS = 20, CLASSES = 5 };

typedef enum { MLP, CNN, TIED, GPT, BERT, LSTM, RESNET, RESNET_SYNC } truth_model;
typedef enum { PLAIN, UNEVEN, ACCUMULATE, BRANCH, PAIR } truth_case;
typedef enum { SGD, ADAMW } truth_optim;

typedef struct {
    truth_model model;
    truth_case  kase;
    truth_optim optim;
    td_dtype    dtype;
    bool        leave_out;       /* the last rank's gradients become zero: the comparison must fail                    */
} truth_row;

typedef struct truth_net truth_net;   /* a module with a branch that may be taken or not */
td_module *truth_net_new(truth_model model);
td_tensor *truth_loss(td_module *net, td_tensor *x, td_tensor *y, bool branch);
/* RESNET's batch norm sees a rank's own share: then N ranks give the weights of one process that takes the shares in turn, as
 * micro-batches of one step. The other models, RESNET_SYNC (td_ddp_sync_batch_norm) among them, give those of one process that takes
 * the whole batch at once, which is more. */
bool truth_by_shares(truth_model model);
td_dataset *truth_data(truth_model model, int64_t rows, td_dtype dtype);

/* Trains on all ranks; then rank 0 alone, from the same first weights. *worst: the largest per-parameter ||w_N - w_1|| / ||w_1||
 * (rank 0; 0 elsewhere). *identical: were all ranks' weights the same bits after every step? 0 or a negative code. */
int truth_run(const truth_row *row, double *worst, bool *identical);
#endif
