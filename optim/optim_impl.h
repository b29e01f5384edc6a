/* optim/optim_impl.h: optimizers from inside. Internal.
 *
 *   optim.c     life: parameters, groups of options, learning rates; the list of live ones
 *   place.c     where parameters lie now: the order of the walk, and moments that lie as the parameters do
 *   step.c      the step over the flats
 *   whole.c     parts of moments, of which each rank has its own, become whole
 *   sgd.c adamw.c adam.c rmsprop.c adagrad.c lion.c lamb.c lars.c   one rule each: options and one kernel call (lamb, lars: two)
 *   options.c   what option fields may hold       clip.c   scaler.c   schedule.c   ema.c
 *   numbers.c   single numbers of a step that live on the device
 */
#ifndef TD_OPTIM_IMPL_H
#define TD_OPTIM_IMPL_H
#include <autograd_impl.h>
#include <tandem/optim.h>

/* What lies beside a parameter: its moments and, where it has 16 bits, the f32 copy that is stepped in its place. All of it is f32 there. */
enum { TD__MAX_MOMENTS = 3, TD__MASTER = TD__MAX_MOMENTS, TD__STATES };

/* The options of all rules, defaults filled in. A rule reads its own. */
typedef struct {
    double lr, weight_decay;
    double momentum, dampening; bool nesterov;                 /* sgd                                                       */
    double beta1, beta2, eps;                                  /* adam, adamw, lamb; lion without eps; eps of others        */
    double alpha; bool centered;                               /* rmsprop                                                   */
    double lr_decay, initial;                                  /* adagrad                                                   */
    double trust; bool no_trust;                               /* lars; both                                                */
} td__options;

/* n elements beside one another; step counts from 1 and is the same for all of them. */
typedef struct {
    td_dtype dtype; int64_t n; td_step s; void *moment[TD__MAX_MOMENTS]; int64_t step;
    td_number bias1, bias2;                                    /* 1 - beta^step                                             */
    double *squares;                                           /* room for two f64 of the device                            */
    td__flat *flat;                                            /* where they lie; NULL: alone                               */
} td__run;

typedef struct {
    const char *name;                                          /* "sgd"                                                     */
    bool each;                                                 /* a run is one parameter (whose norms the rule needs)       */
    int  (*moments)(const td__options *o);                     /* how many tensors of state a parameter has                  */
    int  (*run)(const td_tensor *like, const td__run *r, const td__options *o);   /* 0, or negative after td__fail           */
} td__rule;

/* Parameters beside one another in one flat; their moments lie in the same way, from the first one on. Made when first stepped. Of a flat that
 * ranks share: what lies in this rank's own part. */
typedef struct {
    int64_t low, high;                                         /* elements of the flat                                      */
    td_storage *moment[TD__STATES];                            /* [TD__MASTER]: of 16-bit parameters; NULL where low is high   */
} td__span;

typedef struct {
    td_tensor *value;                                          /* one reference                                             */
    td__leaf  *leaf;
    int        options;
    int64_t    steps;                                          /* that this parameter has taken                             */
    td__group *group; td__flat *flat; int64_t offset;          /* where it was when the walk was laid out                    */
    uint64_t   layout;                                         /* and its group's layout                                    */
    int        rank;                                           /* of its group in the walk                                  */
    int        span;
} td__param;

struct td_optim {
    const td__rule *rule;                                      /* NULL: the poisoned one                                    */
    td__options *options; int n_options;
    td__param  *param; size_t n;
    td__param **walk;                                          /* by group, flat, offset                                    */
    bool        laid_out;
    td__span   *span; int spans;
    td__group  *own;                                           /* made here; may have gone since: see td__optim_own           */
    int64_t     steps;
    td_storage *numbers;                                       /* TD__NUMBERS f64 on the parameters' device; NULL: not needed yet */
    bool        factored;                                      /* the next step multiplies gradients by numbers[TD__FACTOR]  */
    uint64_t    factored_walks;                                /* of the gradients that this factor is for: td__optim_walks  */
    td_optim   *next, *prev;
};

/* What a step needs and the host need not know: what clipping multiplies by, a sum of squares, one part of it, two norms of a rule. */
enum { TD__FACTOR, TD__SQUARES, TD__PART, TD__RULE, TD__NUMBERS = TD__RULE + 2 };
static inline double *td__optim_number(const td_optim *opt, int which)
{
    return (double *)opt->numbers->data + which;
}

extern td_optim td__optim_poison;
int       td__optim_check(const char *who, const td_optim *opt);    /* 0, or negative: NULL (td__fail) or poisoned             */
td_optim *td__optim_new(const char *who, const td__rule *rule, td_tensors parameters, const td__options *o);
int       td__optim_add(const char *who, td_optim *opt, const td__rule *rule, td_tensors parameters, const td__options *o);
td_optim *td__optims(void);                                    /* the live ones, by next; tests look whether some are left   */
int       td__optim_check_lives(const td_optim *opt, const char *what);   /* 0, or negative: that of a captured `what` has been freed (record.c) */
void      td__optim_free_all(void);                            /* td_finish                                                 */
/* What the user wrote into an option field: zero means `standard`, TD_ZERO means 0. */
double    td__option(double given, double standard);
/* options.c: 0, or td__fail. lr and weight_decay (0 or more), a fraction (0 or more, less than 1), a number above 0. */
int       td__check_rates(const char *who, const td__options *o);
int       td__check_fraction(const char *who, const char *name, double value);
int       td__check_positive(const char *who, const char *name, double value);
int       td__check_adam(const char *who, const td__options *o);    /* rates, both betas, eps                               */
/* step.c: adds a run's sums of squares over the ranks that share its flat. 0, or negative after td__fail. */
int       td__run_sum(const td__run *r, int n);                 /* r->squares                                               */
/* numbers.c: opt->numbers is there, and all parameters are on one device. 0, or td__fail. */
int       td__optim_need_numbers(const char *who, td_optim *opt);
int       td__optim_number_set(td_optim *opt, int which, double value);
double    td__optim_number_read(const td_optim *opt, int which);    /* waits for a device whose memory is not the host's; NaN after td__fail */
uint64_t  td__optim_walks(const td_optim *opt);                /* another number after another backward                      */
int       td__optim_squares(const char *who, td_optim *opt);    /* numbers[TD__SQUARES] = the sum over all gradients of this step */
/* step.c: consumes the gradients as a step does, and steps nothing. */
int       td__optim_skip(td_optim *opt);
int       td__optim_finalise(const char *who, td_optim *opt);  /* clip.c: gradients are reduced, and are the mean           */
void      td__scaler_free_all(void);                           /* td__optim_free_all calls it                               */
td_scaler *td__scalers(void);                                  /* the live ones; tests look whether some are left           */
void      td__ema_free_all(void);                              /* td__optim_free_all calls it                               */
/* ema.c, for training states: what it holds; false for the poisoned one */
typedef struct { size_t n; td_tensor *const *weight, *const *average; double decay; bool swapped; } td__ema_parts;
bool      td__ema_look(const td_ema *ema, td__ema_parts *out);
void      td__ema_set_swapped(td_ema *ema, bool swapped);
int       td__ema_check_step(const td_optim *opt);             /* 0, or td__fail: a parameter holds its average now            */
void      td__ema_swap_back(td_ema *ema);                    /* the weights in their place, also while an error is pending; NULL is fine */
td_ema   *td__emas(void);                                      /* the live ones; tests look whether some are left           */

bool      td__ema_lives(const td_ema *ema);

/* record.c: for td_capture; td__note_step, _clip and _ema are followed by td__record_end                                                          */
void      td__note_step(td_optim *opt);
void      td__note_clip(td_optim *opt, double max_norm);
void      td__note_ema(td_ema *ema);
void      td__note_run(td_optim *opt, size_t i, size_t count);   /* of walk: a kernel call of a step                             */
void      td__step_host(td_optim *opt, size_t i, size_t count);  /* step.c                                                       */
void      td__note_rate(const char *who);
void      td__note_scaler(const char *who);

/* place.c */
int       td__optim_regroup(td_optim *opt);                    /* parameters that are in no group get one                    */
void      td__optim_ungroup(td_optim *opt);                    /* frees what regroup made                                   */
int       td__optim_lay_out(td_optim *opt);                    /* walk and spans follow the leaves, moments move along         */
int       td__optim_need_moments(td_optim *opt, const td__param *p, int n);    /* n of them, and a master where p has 16 bits */
static inline td_dtype td__state_dtype(td_dtype parameter)     /* of moments and master                                     */
{
    return td__is_half(parameter) ? TD_F32 : parameter;
}
/* whole.c: before a group is freed whose ranks kept a part of the state each (td__group_ops.gather): room for all of it; then, collective, its filling. */
typedef struct { td_optim *opt; td__span *span; td_storage *all; } td__whole;
bool      td__optim_has_parts(const td_optim *opt, const td__group *g);
int       td__optim_whole_room(td_optim *opt, const td__group *g, td__whole *whole);
int       td__optim_whole_fill(td__whole *whole, td__group *g);
int       td__optim_whole_drop(td__whole *whole);              /* in the place of filling; 0                                */
void      td__optim_free_spans(td_optim *opt);
void      td__optim_forget(td_optim *opt);                     /* moments and counts of steps: who calls it brings new ones     */
static inline bool td__leaf_steps(const td__leaf *leaf)        /* has it a gradient for this step?                          */
{
    return leaf->requires && leaf->used && leaf->has_grad && leaf->grad;
}
static inline bool td__param_steps(const td__param *p)
{
    return td__leaf_steps(p->leaf);
}
/* What of [*low, *high) of a flat this rank steps: of a flat that ranks share its own part. Where that is nothing they are equal. */
static inline void td__own_range(const td__flat *flat, int64_t *low, int64_t *high)
{
    if (flat && *low < flat->own_low)
        *low = flat->own_low;
    if (flat && *high > flat->own_high)
        *high = flat->own_high;
    if (*high < *low)
        *high = *low;
}
/* The same of one parameter, whose flat may be none. Returns how many elements. */
static inline int64_t td__own(const td__param *p, int64_t *low, int64_t *high)
{
    *low = p->offset;
    *high = p->offset + td__shape_numel(p->value->shape);
    td__own_range(p->flat, low, high);
    return *high - *low;
}
/* The gradient's own part; td__own says how many elements. */
static inline void *td__own_grad(const td__param *p, int64_t low)
{
    return (char *)td__ptr(p->leaf->grad) + (size_t)(low - p->offset) * td_dtype_size(p->value->dtype);
}
static inline bool td__is_shared(const td__param *p)           /* do ranks share its flat's steps, and what is kept beside it?     */
{
    return p->flat && p->group->ops && p->group->ops->sum;
}
static inline bool td__grad_is_part(const td__param *p)        /* has this rank the mean of its own part alone?                 */
{
    return p->flat && p->group->ops && p->group->ops->whole;
}
bool      td__beside(const td__param *a, const td__param *b);  /* does b follow a, with nothing but padding between?          */

#endif
