/* tandem/optim.h: optimizers. A step consumes the gradients and advances the step counter of random operations (so two optimizers that
 * step in turn advance it twice). Optimizers whose parameters share one ddp each step once between backwards, in any order.
 * Add groups before td_backward or after td_optim_step. Bias corrections count each parameter's own steps, as PyTorch's.
 * Each works in one pass over each flat (contiguous run of parameters), in the parameters' dtype; LAMB and LARS, which need norms of single
 * parameters, in two passes over each parameter. f16 and bf16 parameters are stepped in f32: moments are f32, and an f32 copy of the parameter (its
 * master) is stepped and rounded into it, so that steps below its last bit add up. Who writes to the parameter renews the master.
 * In formulas t counts a parameter's steps from 1.
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
    double lr;            /* default 1e-3; TD_ZERO for 0                                                            */
    double momentum;      /* default 0                                                                             */
    double dampening;     /* default 0                                                                             */
    double weight_decay;  /* default 0, added to the gradient                                                      */
    bool  nesterov;       /* default false; needs momentum > 0 and no dampening                                    */
    uint64_t reserved[8];
} td_sgd_opts;
TD_API td_optim *td_sgd_new(td_tensors parameters, const td_sgd_opts *opts);
TD_API int       td_sgd_add_group(td_optim *opt, td_tensors parameters, const td_sgd_opts *opts);

typedef struct {
    double lr;            /* default 1e-3; TD_ZERO for 0                                                            */
    double beta1, beta2;  /* default 0.9, 0.999; TD_ZERO for 0                                                     */
    double eps;           /* default 1e-8                                                                          */
    double weight_decay;  /* default 0.01, decoupled (Loshchilov and Hutter 2019); TD_ZERO for 0                   */
    uint64_t reserved[8];
} td_adamw_opts;
TD_API td_optim *td_adamw_new(td_tensors parameters, const td_adamw_opts *opts);
TD_API int       td_adamw_add_group(td_optim *opt, td_tensors parameters, const td_adamw_opts *opts);

/* Adam with L2 decay (Kingma and Ba 2015), as PyTorch's Adam without amsgrad: d = g + weight_decay*p; m = beta1*m + (1-beta1)*d;
 * v = beta2*v + (1-beta2)*d*d; p -= lr * m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps). For decoupled decay: td_adamw_new. */
typedef struct {
    double lr;            /* default 1e-3; TD_ZERO for 0                                                            */
    double beta1, beta2;  /* default 0.9, 0.999; TD_ZERO for 0                                                     */
    double eps;           /* default 1e-8                                                                          */
    double weight_decay;  /* default 0, added to the gradient                                                      */
    uint64_t reserved[8];
} td_adam_opts;
TD_API td_optim *td_adam_new(td_tensors parameters, const td_adam_opts *opts);
TD_API int       td_adam_add_group(td_optim *opt, td_tensors parameters, const td_adam_opts *opts);

/* RMSprop (Hinton 2012; centered: Graves 2013), as PyTorch's: d = g + weight_decay*p; s = alpha*s + (1-alpha)*d*d; centered:
 * a = alpha*a + (1-alpha)*d and s - a*a (not below 0) in place of s; u = d / (sqrt(s) + eps); with momentum b = momentum*b + u and b in
 * place of u; p -= lr*u. */
typedef struct {
    double lr;            /* default 1e-2; TD_ZERO for 0                                                            */
    double alpha;         /* default 0.99, smoothing; TD_ZERO for 0                                                */
    double eps;           /* default 1e-8                                                                          */
    double momentum;      /* default 0                                                                             */
    double weight_decay;  /* default 0, added to the gradient                                                      */
    bool  centered;       /* default false                                                                         */
    uint64_t reserved[8];
} td_rmsprop_opts;
TD_API td_optim *td_rmsprop_new(td_tensors parameters, const td_rmsprop_opts *opts);
TD_API int       td_rmsprop_add_group(td_optim *opt, td_tensors parameters, const td_rmsprop_opts *opts);

/* Adagrad (Duchi et al. 2011), as PyTorch's: d = g + weight_decay*p; s += d*d; p -= lr/(1 + (t-1)*lr_decay) * d / (sqrt(s) + eps). */
typedef struct {
    double lr;            /* default 1e-2; TD_ZERO for 0                                                            */
    double lr_decay;      /* default 0, per step of the parameter                                                  */
    double eps;           /* default 1e-10                                                                         */
    double weight_decay;  /* default 0, added to the gradient                                                      */
    double initial;       /* default 0: what s begins with                                                         */
    uint64_t reserved[8];
} td_adagrad_opts;
TD_API td_optim *td_adagrad_new(td_tensors parameters, const td_adagrad_opts *opts);
TD_API int       td_adagrad_add_group(td_optim *opt, td_tensors parameters, const td_adagrad_opts *opts);

/* Lion (Chen et al. 2023, algorithm 2): p -= lr * (sign(beta1*m + (1-beta1)*g) + weight_decay*p); m = beta2*m + (1-beta2)*g. */
typedef struct {
    double lr;            /* default 1e-4; TD_ZERO for 0                                                            */
    double beta1, beta2;  /* default 0.9, 0.99; TD_ZERO for 0                                                      */
    double weight_decay;  /* default 0, decoupled                                                                  */
    uint64_t reserved[8];
} td_lion_opts;
TD_API td_optim *td_lion_new(td_tensors parameters, const td_lion_opts *opts);
TD_API int       td_lion_add_group(td_optim *opt, td_tensors parameters, const td_lion_opts *opts);

/* LAMB (You et al. 2020, algorithm 2, phi(z) = z): Adam's m and v with bias corrections; u = m/(1-beta1^t) / (sqrt(v/(1-beta2^t)) + eps)
 * + weight_decay*p; p -= lr * |p|/|u| * u with each parameter's own 2-norms (the quotient is 1 where either is 0). Norms are f64 sums
 * in blocks of fixed size. */
typedef struct {
    double lr;            /* default 1e-3; TD_ZERO for 0                                                            */
    double beta1, beta2;  /* default 0.9, 0.999; TD_ZERO for 0                                                     */
    double eps;           /* default 1e-6                                                                          */
    double weight_decay;  /* default 0.01, part of u; TD_ZERO for 0                                                */
    bool  no_trust;       /* default false; true: the quotient of norms is 1, as is usual for biases and norms' weights */
    uint64_t reserved[8];
} td_lamb_opts;
TD_API td_optim *td_lamb_new(td_tensors parameters, const td_lamb_opts *opts);
TD_API int       td_lamb_add_group(td_optim *opt, td_tensors parameters, const td_lamb_opts *opts);

/* LARS (You et al. 2017, algorithm 1): rate = lr * trust * |p| / (|g| + weight_decay*|p|) with each parameter's own 2-norms (rate = lr
 * where |p| or |g| is 0); v = momentum*v + rate * (g + weight_decay*p); p -= v. Norms as LAMB's. */
typedef struct {
    double lr;            /* default 0.1; TD_ZERO for 0                                                             */
    double momentum;      /* default 0.9; TD_ZERO for 0                                                            */
    double weight_decay;  /* default 5e-4; TD_ZERO for 0                                                           */
    double trust;         /* default 1e-3                                                                          */
    bool  no_trust;       /* default false; true: rate = lr, as is usual for biases and norms' weights             */
    uint64_t reserved[8];
} td_lars_opts;
TD_API td_optim *td_lars_new(td_tensors parameters, const td_lars_opts *opts);
TD_API int       td_lars_add_group(td_optim *opt, td_tensors parameters, const td_lars_opts *opts);

TD_API void    td_optim_free(td_optim *opt);                              /* NULL is fine                              */
TD_API int     td_optim_step(td_optim *opt);                              /* parameters without a gradient are left alone */
TD_API void    td_optim_set_lr(td_optim *opt, int group, double lr);      /* group -1: all                             */
TD_API double  td_optim_get_lr(const td_optim *opt, int group);
TD_API int64_t td_optim_steps(const td_optim *opt);                       /* steps taken                               */
/* Bytes of moments and masters on this rank; made by a parameter's first step. Under td_ddp_opts.shard_optimizer, and over shared memory, this rank's share. */
TD_API int64_t td_optim_bytes(const td_optim *opt);
/* Scales the gradients of opt's parameters so that their global 2-norm is at most max_norm (> 0). Returns the norm before, over
 * all ranks (f64 sums in blocks of fixed size). A norm that is not finite changes nothing. */
TD_API double  td_clip_grad_norm(td_optim *opt, double max_norm);
/* The same without waiting for a GPU: the norm is a f64 scalar on the parameters' device, and the next td_optim_step multiplies the gradients by
 * min(1, max_norm / norm) as it reads them. They themselves stay as they are (td_grad shows them not clipped). After the
 * last backward: one that comes later is an error of the step. Poisoned on an error. */
TD_API td_tensor *td_clip_grad_norm_async(td_optim *opt, double max_norm);

/* ---- dynamic loss scaling, for gradients that f16 would round to zero (PyTorch's GradScaler) ---------------------------------- */
/*     td_backward(td_scaler_scale(s, loss));      each micro-batch, as often as you like
 *     td_scaler_unscale(s, opt);                   only if something reads the gradients before the step: td_clip_grad_norm
 *     td_scaler_step(s, opt);                      for each optimizer; a step whose gradients are not all finite is left out
 *     td_scaler_update(s);                         once, after the last one
 * With ddp every rank finds the same: gradients are reduced first. bf16 has f32's range and needs no scaler. */
typedef struct td_scaler td_scaler;
typedef struct {
    double  init_scale;      /* default 65536                                                                      */
    double  growth_factor;   /* default 2; more than 1                                                             */
    double  backoff_factor;  /* default 0.5; more than 0, less than 1                                               */
    int64_t growth_interval; /* default 2000: updates without Inf or NaN, one after another, before the scale grows  */
    bool    disabled;        /* default false; true: the scale is 1, steps are ordinary ones, nothing is looked at   */
    uint64_t reserved[8];
} td_scaler_opts;
TD_API td_scaler *td_scaler_new(const td_scaler_opts *opts);               /* on an error the poisoned one              */
/* loss times the scale; a 16-bit loss becomes f32 first. Its stamp stays. */
TD_API td_tensor *td_scaler_scale(td_scaler *s, td_tensor *loss);
/* Divides the gradients of opt's parameters by the scale and notes whether one is Inf or NaN. Once per optimizer and update, after the last
 * backward. 0 (also when one is not finite), or a negative code. */
TD_API int        td_scaler_unscale(td_scaler *s, td_optim *opt);
/* Unscales unless that is done, then steps; or, with a gradient that is not finite, only consumes the gradients (weights, moments and
 * td_optim_steps stay; random operations go on to new numbers as after a step). 0 in both cases, or a negative code. */
TD_API int        td_scaler_step(td_scaler *s, td_optim *opt);
/* Multiplies the scale by backoff_factor if an optimizer found Inf or NaN since the last update, else by growth_factor after growth_interval
 * such updates (never beyond f32's range). An error before any unscale or step. */
TD_API int        td_scaler_update(td_scaler *s);
TD_API double     td_scaler_get(const td_scaler *s);                       /* the scale; 1 when disabled, NaN after an error */
TD_API int64_t    td_scaler_growth(const td_scaler *s);                    /* updates without Inf or NaN since it changed   */
TD_API int        td_scaler_set(td_scaler *s, double scale, int64_t growth);   /* both, from a training state              */
TD_API void       td_scaler_free(td_scaler *s);                            /* NULL is fine                              */

/* ---- schedules: pure functions of the step (from 0), times the peak rate ---------------------------------------------- */
/* linear from 0 to 1 over warmup steps (step+1)/warmup, then 1 */
TD_API double td_schedule_warmup(int64_t step, int64_t warmup);
/* warm-up as above, then half a cosine from 1 down to `floor` at `total` and after (Loshchilov and Hutter 2017) */
TD_API double td_schedule_cosine(int64_t step, int64_t warmup, int64_t total, double floor);
/* gamma^(step/every), rounded down: PyTorch's StepLR. every is 1 or more */
TD_API double td_schedule_step(int64_t step, int64_t every, double gamma);
/* gamma^(how many of the n milestones, in any order, are at or below step): PyTorch's MultiStepLR */
TD_API double td_schedule_multi_step(int64_t step, const int64_t *milestones, int n, double gamma);
/* gamma^step: PyTorch's ExponentialLR */
TD_API double td_schedule_exponential(int64_t step, double gamma);
/* straight from `start` at step 0 to `end` at `total` (1 or more) and after: PyTorch's LinearLR */
TD_API double td_schedule_linear(int64_t step, double start, double end, int64_t total);
/* One cycle (Smith and Topin 2019), PyTorch's OneCycleLR with its cosines and two phases: from 1/div at step 0 up to 1 at warm*total - 1,
 * then down to 1/(div*final_div) at total - 1 and after. warm is 0 to 1 (PyTorch: 0.3); div and final_div are above 0 (25 and 1e4). */
TD_API double td_schedule_one_cycle(int64_t step, int64_t total, double warm, double div, double final_div);
/* A wrong argument of these five is an error and NaN; a negative step counts as 0. */

/* ---- moving average of weights (Polyak and Juditsky 1992; the exponential form) --------------------------------------------- */
typedef struct td_ema td_ema;
/* Averages that begin as copies of the tensors: contiguous, f32 or f64, parameters or buffers, each listed once. The tensors stay
 * referenced. decay is 0 to 1 (usual: 0.999). With ddp, make it after td_ddp_new: replicas' averages then are equal without communication.
 * On an error the poisoned td_ema, which later calls pass on. */
TD_API td_ema *td_ema_new(td_tensors weights, double decay);
TD_API int     td_ema_update(td_ema *ema);    /* after td_optim_step: average += (1-decay) * (weight - average); refused while swapped  */
/* Exchanges averages and live weights: evaluate or save, then swap again before training goes on (td_optim_step refuses until then). */
TD_API int     td_ema_swap(td_ema *ema);
TD_API void    td_ema_free(td_ema *ema);      /* NULL is fine; what the tensors hold stays, also while swapped                      */

#ifdef __cplusplus
}
#endif
#endif
