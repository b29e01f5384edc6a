/* job/fit_impl.h: td_fit from inside: fit.c (the loop), fit_totals.c (sums of an epoch), fit_state.c (resume, best, early stop). Internal.
 */
#ifndef TD_FIT_IMPL_H
#define TD_FIT_IMPL_H
#include <tandem/fit.h>
#include <tandem/job.h>

typedef struct { td_tensor *sums; int n; } td__fit_totals;   /* (n) f64: loss*weight, weight, rows, metric*rows …; this rank's  */
int  td__fit_totals_begin(td__fit_totals *t, int n_metrics);
void td__fit_totals_end(td__fit_totals *t);
int  td__fit_totals_add(td__fit_totals *t, td_tensor *loss, td_tensor *output, const td_batch *batch, const td_fit_opts *o);
int  td__fit_totals_read(td__fit_totals *t, double *loss, double *metrics);

/* What is known of the run so far; `memory` is its image in the training state: four numbers, then the sums. */
enum { TD__FIT_SUMS = 4, TD__FIT_MEMORY = TD__FIT_SUMS + 3 + TD_FIT_MAX_METRICS };
typedef struct {
    td_module *model;
    const td_fit_opts *o;
    td_optim *optim;
    td_ddp *ddp;
    td_scaler *scaler;
    bool own_ddp, own_scaler;
    td_job_state *asked;           /* NULL: without opts.on_request                                                     */
    bool requested;                /* … it said that the end has been asked for, and the state is saved                 */
    int64_t epochs, epoch, step, steps_per_epoch;   /* epochs: of all; epoch, step: complete                                 */
    int64_t best_epoch, not_better;
    double best_value;
    int monitor;                   /* -2 val_loss, -1 loss, i metric, 100 + i metric of the validation                  */
    double *base_lr; int groups;
    td__fit_totals totals;         /* of the epoch under way                                                            */
    td_tensor *memory;
} td__fit;
int  td__fit_monitor_find(td__fit *f);                       /* 0, or td__fail                                        */
int  td__fit_state_open(td__fit *f);                         /* goes on from the file where it exists                 */
int  td__fit_state_save(td__fit *f);
int  td__fit_judge(td__fit *f, td_fit_epoch *e);             /* best? keeps the best weights                          */
#endif
