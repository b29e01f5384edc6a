/* tandem/optim.h: optimizers. A step consumes the gradients and advances the step counter of random operations (so two optimizers that
 * step in turn advance it twice). Optimizers whose parameters share one ddp each step once between backwards, in any order.
 * Add groups before td_backward or after td_optim_step. Bias corrections count each parameter's own steps, as PyTorch's.
 * Each works in one pass over each flat (contiguous run of parameters), in the parameters' dtype (f32 or f64).
 */
#ifndef TANDEM_OPTIM_H
#define TANDEM_OPTIM_H
#include <tandem/autograd.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct td_optim td_optim;

/* v = momentum*v + (1-dampening)*g (first: v = g); p -= lr*v, or lr*(g + momentum*v) with nesterov; g includes
 * weight_decay*p. PyTorch's SGD (Sutskever et al. 2013 for the Nesterov form). */
typedef struct {
    float lr;             /* default 1e-3; TD_ZERO for 0                                                            */
    float momentum;       /* default 0                                                                             */
    float dampening;      /* default 0                                                                             */
    float weight_decay;   /* default 0, added to the gradient                                                      */
    bool  nesterov;       /* default false; needs momentum > 0 and no dampening                                    */
    uint64_t reserved[8];
} td_sgd_opts;
TD_API td_optim *td_sgd_new(td_tensors parameters, const td_sgd_opts *opts);
TD_API int       td_sgd_add_group(td_optim *opt, td_tensors parameters, const td_sgd_opts *opts);

typedef struct {
    float lr;             /* default 1e-3; TD_ZERO for 0                                                            */
    float beta1, beta2;   /* default 0.9, 0.999; TD_ZERO for 0                                                     */
    float eps;            /* default 1e-8                                                                          */
    float weight_decay;   /* default 0.01, decoupled (Loshchilov and Hutter 2019); TD_ZERO for 0                   */
    uint64_t reserved[8];
} td_adamw_opts;
TD_API td_optim *td_adamw_new(td_tensors parameters, const td_adamw_opts *opts);
TD_API int       td_adamw_add_group(td_optim *opt, td_tensors parameters, const td_adamw_opts *opts);

TD_API void    td_optim_free(td_optim *opt);                              /* NULL is fine                              */
TD_API int     td_optim_step(td_optim *opt);                              /* parameters without a gradient are left alone */
TD_API void    td_optim_set_lr(td_optim *opt, int group, double lr);      /* group -1: all                             */
TD_API double  td_optim_get_lr(const td_optim *opt, int group);
TD_API int64_t td_optim_steps(const td_optim *opt);                       /* steps taken                               */
/* Scales the gradients of opt's parameters so that their global 2-norm is at most max_norm (> 0). Returns the norm before, over
 * all ranks (f64 sums in blocks of fixed size). A norm that is not finite changes nothing. */
TD_API double  td_clip_grad_norm(td_optim *opt, double max_norm);

/* ---- schedules: pure functions of the step (from 0), times the peak rate ---------------------------------------------- */
/* linear from 0 to 1 over warmup steps (step+1)/warmup, then 1 */
TD_API double td_schedule_warmup(int64_t step, int64_t warmup);
/* warm-up as above, then half a cosine from 1 down to `floor` at `total` and after (Loshchilov and Hutter 2017) */
TD_API double td_schedule_cosine(int64_t step, int64_t warmup, int64_t total, double floor);

#ifdef __cplusplus
}
#endif
#endif
