/* optim/scaler.c: dynamic loss scaling: multiply the loss so that small f16 gradients survive, divide the gradients before the step, leave out
 * a step whose gradients overflowed, and let the scale find the largest value that seldom does.
 *
 * Looking comes after the reduction over ranks, and an Inf or NaN of one rank is in the sum of all: replicas decide alike without a message
 * of their own. Ranks that hold shards of a flat add what they found through the flat's `sum`.
 */
#include "optim_impl.h"
#include <float.h>
#include <math.h>
#include <pthread.h>

typedef enum { UNSCALED = 1, STEPPED } stage;
typedef struct { const td_optim *opt; stage stage; bool found; } seen;     /* an optimizer since the last update */

struct td_scaler {
    double scale, growth_factor, backoff_factor;
    int64_t growth_interval, growth;
    bool disabled;
    seen *seen; size_t n, room;
    td_scaler *next, *prev;
};

static td_scaler poison;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static td_scaler *live;

td_scaler *td__scalers(void)
{
    return live;
}

/* ---- life ------------------------------------------------------------------------------------------------------------------------------ */

static int check(const char *who, const td_scaler *s)
{
    if (!s)
        return td__fail(TD_ERR_ARGUMENT, "%s: the td_scaler is NULL", who);
    if (td__pending())
        return td__pending();
    return s == &poison ? TD_ERR_ARGUMENT : td__not_in_backward(who);
}

static int check_scale(const char *who, const char *name, double scale)
{
    return scale > 0 && scale <= (double)FLT_MAX ? 0
           : td__fail(TD_ERR_ARGUMENT, "%s: %s is %g, expected more than 0 and finite in f32", who, name, scale);
}

static int check_opts(const td_scaler *s)
{
    int rc = check_scale("td_scaler_new", "init_scale", s->scale);
    if (rc == 0 && (!(s->growth_factor > 1) || !isfinite(s->growth_factor)))
        rc = td__fail(TD_ERR_ARGUMENT, "td_scaler_new: growth_factor is %g, expected more than 1", s->growth_factor);
    if (rc == 0 && !(s->backoff_factor > 0 && s->backoff_factor < 1))
        rc = td__fail(TD_ERR_ARGUMENT, "td_scaler_new: backoff_factor is %g, expected more than 0 and less than 1", s->backoff_factor);
    if (rc == 0 && s->growth_interval < 1)
        rc = td__fail(TD_ERR_ARGUMENT, "td_scaler_new: growth_interval is %lld, expected 1 or more", (long long)s->growth_interval);
    return rc;
}

td_scaler *td_scaler_new(const td_scaler_opts *opts)
{
    TD_ENTER();
    static const td_scaler_opts standard;
    const td_scaler_opts *o = opts ? opts : &standard;
    td_scaler *s = td__calloc(sizeof *s);
    if (!s)
        return &poison;
    s->scale = td__option(o->init_scale, 65536);
    s->growth_factor = td__option(o->growth_factor, 2);
    s->backoff_factor = td__option(o->backoff_factor, 0.5);
    s->growth_interval = o->growth_interval ? o->growth_interval : 2000;
    s->disabled = o->disabled;
    if (check_opts(s) != 0) {
        td__free(s);
        return &poison;
    }
    pthread_mutex_lock(&lock);
    s->next = live;
    if (live)
        live->prev = s;
    live = s;
    pthread_mutex_unlock(&lock);
    return s;
}

void td_scaler_free(td_scaler *s)
{
    TD_ENTER();
    if (!s || s == &poison)
        return;
    pthread_mutex_lock(&lock);
    *(s->prev ? &s->prev->next : &live) = s->next;
    if (s->next)
        s->next->prev = s->prev;
    pthread_mutex_unlock(&lock);
    td__free(s->seen);
    td__free(s);
}

void td__scaler_free_all(void)
{
    while (live)
        td_scaler_free(live);
}

/* ---- looking at gradients ---------------------------------------------------------------------------------------------------------------- */

/* Adds to numbers[TD__PART] how many are not finite: where this rank has the mean of its part alone, in that. */
static int count_not_finite(td_optim *opt, const td__param *p)
{
    int64_t low = p->offset, high = low + td__shape_numel(p->value->shape);
    int rc = td__need("td_scaler_unscale", p->leaf->grad, not_finite);
    if (td__grad_is_part(p))
        td__own_range(p->flat, &low, &high);
    if (rc == 0 && high > low)
        td__kernels(p->value)->not_finite(p->value->dtype, high - low, td__own_grad(p, low), td__optim_number(opt, TD__PART), true, NULL);
    return rc;
}

static int divide(td_tensor *g, double scale)
{
    int64_t n = td__shape_numel(g->shape);
    int rc = n && scale != 1 ? td__need("td_scaler_unscale", g, times) : 0;
    if (rc != 0 || n == 0 || scale == 1)
        return rc;
    td__kernels(g)->times(g->dtype, n, td__ptr(g), td__number(1 / scale));
    g->storage->version++;
    return 0;
}

/* What ranks that share flats have found is added up once for each of their groups. */
static int look_and_divide(td_optim *opt, double scale, bool *found)
{
    int rc = td__optim_need_numbers("td_scaler_unscale", opt);
    if (rc == 0)
        rc = td__optim_number_set(opt, TD__PART, 0);
    *found = false;
    for (size_t i = 0; i < opt->n && rc == 0; i++) {
        const td__param *p = opt->walk[i];
        rc = td__param_steps(p) ? count_not_finite(opt, p) : 0;
        if (rc == 0 && td__param_steps(p))
            rc = divide(p->leaf->grad, scale);
        bool last = i + 1 == opt->n || opt->walk[i + 1]->group != p->group, shared = td__grad_is_part(p);
        if (rc == 0 && last && shared)
            rc = p->group->ops->sum(p->flat, td__optim_number(opt, TD__PART), 1);
        if (rc == 0 && (i + 1 == opt->n || (last && shared))) {
            *found |= td__optim_number_read(opt, TD__PART) != 0;       /* NaN: the device has failed, and nothing must be stepped */
            rc = td__optim_number_set(opt, TD__PART, 0);
        }
    }
    return rc;
}

static seen *seen_of(td_scaler *s, const td_optim *opt)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->seen[i].opt == opt)
            return &s->seen[i];
    return NULL;
}

static int unscale(const char *who, td_scaler *s, td_optim *opt, seen **out)
{
    bool found;
    if (s->n == s->room) {
        size_t room = s->room ? 2 * s->room : 4;
        seen *more = td__grow(s->seen, s->room * sizeof *more, room * sizeof *more);
        if (!more)
            return TD_ERR_MEMORY;
        s->seen = more;
        s->room = room;
    }
    int rc = td__optim_finalise(who, opt);
    if (rc == 0)
        rc = look_and_divide(opt, s->scale, &found);
    if (rc != 0)
        return rc;
    s->seen[s->n] = (seen){ opt, UNSCALED, found };
    *out = &s->seen[s->n++];
    return 0;
}

/* ---- the cycle ---------------------------------------------------------------------------------------------------------------------------- */

td_tensor *td_scaler_scale(td_scaler *s, td_tensor *loss)
{
    TD_ENTER();
    td__note_scaler("td_scaler_scale");
    if (check("td_scaler_scale", s) != 0 || td__tensor_check("td_scaler_scale", loss) != 0)
        return td__poison();
    if (!td__is_real(loss->dtype)) {
        td__fail(TD_ERR_DTYPE, "td_scaler_scale: the loss is %s, expected a float", td_dtype_name(loss->dtype));
        return td__poison();
    }
    if (s->disabled)
        return loss;
    return td_scale(td__is_half(loss->dtype) ? td_cast(loss, TD_F32) : loss, s->scale);
}

int td_scaler_unscale(td_scaler *s, td_optim *opt)
{
    TD_ENTER();
    td__note_scaler("td_scaler_unscale");
    int rc = check("td_scaler_unscale", s);
    if (rc == 0)
        rc = td__optim_check("td_scaler_unscale", opt);
    if (rc != 0 || s->disabled)
        return rc;
    seen *e = seen_of(s, opt);
    if (e)
        return td__fail(TD_ERR_STATE, "td_scaler_unscale: this optimizer has been %s since the last td_scaler_update", e->stage == STEPPED
                        ? "stepped" : "unscaled");
    return unscale("td_scaler_unscale", s, opt, &e);
}

int td_scaler_step(td_scaler *s, td_optim *opt)
{
    TD_ENTER();
    td__note_scaler("td_scaler_step");
    int rc = check("td_scaler_step", s);
    if (rc == 0)
        rc = td__optim_check("td_scaler_step", opt);
    if (rc != 0)
        return rc;
    if (s->disabled)
        return td_optim_step(opt);
    seen *e = seen_of(s, opt);
    if (e && e->stage == STEPPED)
        return td__fail(TD_ERR_STATE, "td_scaler_step: this optimizer has been stepped since the last td_scaler_update");
    if (!e)
        rc = unscale("td_scaler_step", s, opt, &e);
    if (rc == 0)
        rc = e->found ? td__optim_skip(opt) : td_optim_step(opt);
    if (rc == 0)
        e->stage = STEPPED;
    return rc;
}

int td_scaler_update(td_scaler *s)
{
    TD_ENTER();
    td__note_scaler("td_scaler_update");
    int rc = check("td_scaler_update", s);
    if (rc != 0 || s->disabled)
        return rc;
    if (s->n == 0)
        return td__fail(TD_ERR_STATE, "td_scaler_update: no optimizer has been unscaled or stepped since the last td_scaler_update");
    bool found = false;
    for (size_t i = 0; i < s->n; i++)
        found |= s->seen[i].found;
    s->n = 0;
    if (found) {
        s->scale *= s->backoff_factor;
        s->growth = 0;
    } else if (++s->growth >= s->growth_interval) {
        if (s->scale * s->growth_factor <= (double)FLT_MAX)
            s->scale *= s->growth_factor;
        s->growth = 0;
    }
    return 0;
}

double td_scaler_get(const td_scaler *s)
{
    TD_ENTER();
    td__note_scaler("td_scaler_get");
    return check("td_scaler_get", s) != 0 ? (double)NAN : s->disabled ? 1 : s->scale;
}

int64_t td_scaler_growth(const td_scaler *s)
{
    TD_ENTER();
    return check("td_scaler_growth", s) != 0 ? 0 : s->growth;
}

int td_scaler_set(td_scaler *s, double scale, int64_t growth)
{
    TD_ENTER();
    td__note_scaler("td_scaler_set");
    int rc = check("td_scaler_set", s);
    if (rc == 0)
        rc = check_scale("td_scaler_set", "scale", scale);
    if (rc == 0 && growth < 0)
        rc = td__fail(TD_ERR_ARGUMENT, "td_scaler_set: growth is %lld, expected 0 or more", (long long)growth);
    if (rc != 0 || s->disabled)
        return rc;
    s->scale = scale;
    s->growth = growth;
    s->n = 0;
    return 0;
}
