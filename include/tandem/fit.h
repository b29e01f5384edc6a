/* tandem/fit.h: the training loop in one call, for those who do not want to write it: trains, validates, shows a progress bar, keeps the best
 * weights, stops early, and goes on where a killed job was. Every rank of the world calls it. What it does is what the loop of tandem.h does;
 * nothing of it is needed to train.
 *
 *     td_fit(net, &(td_fit_opts){ .optim = opt, .train = train, .validation = test, .epochs = 10,
 *                                 .metrics = (td_metric[]){ TD_ACCURACY }, .n_metrics = 1, .state = "run.state", .best = "best.safetensors" });
 */
#ifndef TANDEM_FIT_H
#define TANDEM_FIT_H
#include <tandem/io.h>
#ifdef __cplusplus
extern "C" {
#endif

#define TD_FIT_MAX_METRICS 8
typedef td_tensor *td_fit_forward_fn(td_module *model, const td_batch *batch, void *user);
typedef td_tensor *td_fit_output_fn(td_tensor *output, const td_batch *batch, void *user);   /* a scalar, float               */

/* The mean of fn over a batch's rows (not called for batches of 0 rows); means over an epoch weigh by rows, over all ranks. */
typedef struct { const char *name; td_fit_output_fn *fn; bool lower_is_better; } td_metric;
/* logits (N,C), y i64 (N): the share of rows whose largest logit is y's */
TD_API td_tensor *td_metric_accuracy(td_tensor *output, const td_batch *batch, void *user);
#define TD_ACCURACY TD_LITERAL(td_metric){ "accuracy", td_metric_accuracy, false }

typedef struct {
    int64_t epoch, step;           /* epochs and steps that are complete                                               */
    double  loss, val_loss;        /* NaN where there is none                                                         */
    double  metric[TD_FIT_MAX_METRICS], val_metric[TD_FIT_MAX_METRICS];
    double  seconds;               /* of this epoch, validation included                                               */
    bool    best;                  /* of all so far, by `monitor`                                                      */
    uint64_t reserved[4];
} td_fit_epoch;

typedef struct {
    td_optim  *optim;              /* no default: over the model's parameters                                           */
    td_loader *train;              /* no default                                                                      */
    td_loader *validation;         /* default NULL: none                                                              */
    int64_t    epochs;             /* default 1; in all, those before a resumed state included                         */
    td_fit_forward_fn *forward;    /* default: td_forward(model, batch->x)                                             */
    td_fit_output_fn  *loss;       /* default: td_cross_entropy(output, batch->y, NULL). Its mean over an epoch weighs by its stamp, else rows */
    const td_metric *metrics;      /* default none; means over training batches (in training mode) and the validation's   */
    int        n_metrics;          /* default 0; at most TD_FIT_MAX_METRICS                                            */
    void      *user;               /* default NULL; passed to all functions here                                       */
    double   (*schedule)(int64_t step, int64_t total, void *user);   /* default: none; a factor of each group's learning rate (td_schedule_*) */
    double     clip_norm;          /* default 0: none; td_clip_grad_norm before each step                               */
    int        accumulate;         /* default 1: batches per step (the last step of an epoch may have fewer)            */
    td_dtype   autocast;           /* default TD_F32: none; TD_BF16 or TD_F16 for the forward passes                    */
    td_scaler *scaler;             /* default NULL; with TD_F16 one is made for this call                               */
    td_ema    *ema;                /* default NULL; updated after each step; validation and `best` use the averages     */
    td_ddp    *ddp;                /* default NULL: with several ranks and a model that has none yet, one is made for this call */
    const char *state;             /* a file: default none. The training state, written after each epoch; where the file exists already,
                                      training goes on from it                                                         */
    int64_t    save_every;         /* default 0: only after epochs; else also after every so many steps                 */
    const char *best;              /* a file: default none. The weights (td_save) of the best epoch by `monitor`         */
    const char *monitor;           /* default "val_loss", without validation "loss"; or a metric's name, "val_" in front for the validation's */
    int        patience;           /* default 0: never; stops after so many epochs in a row that were not better          */
    double     min_delta;          /* default 0; better by more than this                                             */
    bool       quiet;              /* default false: rank 0 prints a bar and a line for each epoch                      */
    bool       on_request;         /* default false; true: SIGTERM and SIGUSR1 save `state` after the step under way and stop; then
                                      td_finish returns TD_EXIT_AGAIN (td_job_state, job.h). Not during a validation, but after it */
    bool     (*on_epoch)(const td_fit_epoch *epoch, void *user);   /* default none; after each epoch, on every rank; false stops (say the
                                      same on every rank)                                                              */
    uint64_t   reserved[8];
} td_fit_opts;

typedef struct {
    int          code;             /* 0, or a negative code: what was pending, or happened on the way                  */
    bool         stopped;          /* by patience, on_epoch or on request                                             */
    bool         requested;        /* on request: the state is saved, more is to be done                               */
    td_fit_epoch last;             /* all 0 when no epoch was run                                                     */
    int64_t      best_epoch;       /* from 1; 0: none                                                                 */
    double       best_value;       /* of `monitor`                                                                   */
    uint64_t     reserved[4];
} td_fit_result;
TD_API td_fit_result td_fit(td_module *model, const td_fit_opts *opts);

#ifdef __cplusplus
}
#endif
#endif
