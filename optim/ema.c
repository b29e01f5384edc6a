/* optim/ema.c: a moving average of weights: one buffer beside each tensor.
 *
 * Averages lie on their own, not as the parameters lie: parameters move between flats (ddp), averages need not follow. Swapping exchanges
 * contents, never handles, so that modules, flats and optimizers notice nothing; versions are bumped, so that a graph that saved the old
 * contents does.
 */
#include "optim_impl.h"
#include <math.h>
#include <pthread.h>

struct td_ema {
    size_t n;
    td_tensor **weight, **average;             /* one reference each */
    double decay;
    bool swapped;
    td_ema *next, *prev;
};

static td_ema poison;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static td_ema *live;

td_ema *td__emas(void)
{
    return live;
}

static td_loop whole(const td_tensor *x)
{
    return (td_loop){ .ndim = 1, .dim = { td__shape_numel(x->shape) }, .stride = { { 1 }, { 1 } } };
}

static int check_weights(td_tensors list)
{
    if (list.n == 0 || !list.list)
        return td__pending() ? td__pending() : td__fail(TD_ERR_ARGUMENT, "td_ema_new: the list of weights is empty");
    char shape[128];
    for (size_t i = 0; i < list.n; i++) {
        const td_tensor *x = list.list[i];
        int rc = td__tensor_check("td_ema_new", x);
        if (rc != 0)
            return rc;
        if (!td__is_float(x->dtype) || !td__strides_contiguous(x->shape, x->stride))
            return td__fail(td__is_float(x->dtype) ? TD_ERR_ARGUMENT : TD_ERR_DTYPE, "td_ema_new: weight %zu of %zu is %s %s%s, expected contiguous "
                            "f32 or f64", i, list.n, td__shape_text(x->shape, shape), td_dtype_name(x->dtype),
                            td__strides_contiguous(x->shape, x->stride) ? "" : " and not contiguous");
        for (size_t j = 0; j < i; j++)
            if (td__shape_numel(x->shape) > 0 && td__ptr(list.list[j]) == td__ptr(x))
                return td__fail(TD_ERR_ARGUMENT, "td_ema_new: weight %zu of %zu, %s, is listed twice", i, list.n, td__shape_text(x->shape, shape));
    }
    return 0;
}

static int check(const char *who, const td_ema *e)
{
    if (!e)
        return td__fail(TD_ERR_ARGUMENT, "%s: the td_ema is NULL", who);
    if (td__pending())
        return td__pending();
    return e == &poison ? TD_ERR_ARGUMENT : td__not_in_backward(who);
}

td_ema *td_ema_new(td_tensors weights, double decay)
{
    TD_ENTER();
    if (!(decay >= 0 && decay <= 1)) {
        td__fail(TD_ERR_ARGUMENT, "td_ema_new: decay is %g, expected 0 to 1", decay);
        return &poison;
    }
    if (check_weights(weights) != 0)
        return &poison;
    td_ema *e = td__calloc(sizeof *e);
    if (!e)
        return &poison;
    e->decay = decay;
    e->weight = td__calloc(weights.n * sizeof *e->weight);
    e->average = td__calloc(weights.n * sizeof *e->average);
    pthread_mutex_lock(&lock);
    e->next = live;
    if (live)
        live->prev = e;
    live = e;
    pthread_mutex_unlock(&lock);
    int rc = e->weight && e->average ? 0 : TD_ERR_MEMORY;
    for (size_t i = 0; i < weights.n && rc == 0; i++) {
        td_tensor *w = weights.list[i], *a = td__tensor_new(w->shape, w->dtype, w->storage->device);
        rc = a->poisoned ? TD_ERR_MEMORY : td__copy(a, w, false);
        if (rc != 0) {
            td__tensor_unref(a);
            break;
        }
        td__storage_label(a->storage, TD_MEMORY_OPTIMIZER);
        td__tensor_ref(w);
        e->weight[e->n] = w;
        e->average[e->n++] = a;
    }
    if (rc == 0)
        return e;
    td_ema_free(e);
    return &poison;
}

static int update(td_ema *e)
{
    int rc = check("td_ema_update", e);
    if (rc == 0 && e->swapped)
        rc = td__fail(TD_ERR_STATE, "td_ema_update: averages and weights are swapped; call td_ema_swap first");
    for (size_t i = 0; i < (rc == 0 ? e->n : 0); i++) {
        rc = td__need("td_ema_update", e->weight[i], ema);
        if (rc != 0)
            break;
        td__kernels(e->weight[i])->ema(e->weight[i]->dtype, td__shape_numel(e->weight[i]->shape), td__ptr(e->average[i]), td__ptr(e->weight[i]), e->decay);
    }
    return rc;
}

bool td__ema_lives(const td_ema *ema)
{
    pthread_mutex_lock(&lock);
    const td_ema *e = live;
    while (e && e != ema)
        e = e->next;
    pthread_mutex_unlock(&lock);
    return e != NULL;
}

int td_ema_update(td_ema *e)
{
    TD_ENTER();
    td__note_ema(e);
    int rc = update(e);
    td__record_end();
    return rc;
}

static int swap(td_ema *e)
{
    int rc = 0;
    size_t most = 0;
    for (size_t i = 0; i < e->n; i++) {        /* all that can fail comes first: half a swap would be nobody's weights */
        const td_tensor *w = e->weight[i];
        size_t bytes = (size_t)td__shape_numel(w->shape) * td_dtype_size(w->dtype);
        most = bytes > most ? bytes : most;
        rc = td__need("td_ema_swap", w, copy);
        if (rc != 0)
            return rc;
    }
    td_storage *spare = td__storage_new_as(e->weight[0]->storage->device, most, TD_MEMORY_OPTIMIZER);
    if (!spare)
        return TD_ERR_MEMORY;
    for (size_t i = 0; i < e->n; i++) {
        td_tensor *w = e->weight[i], *a = e->average[i];
        const td_kernels *k = td__kernels(w);
        td_loop l = whole(w);
        if (l.dim[0] == 0)
            continue;
        k->copy(&l, w->dtype, spare->data, w->dtype, td__ptr(w), false);
        k->copy(&l, w->dtype, td__ptr(w), w->dtype, td__ptr(a), false);
        k->copy(&l, w->dtype, td__ptr(a), w->dtype, spare->data, false);
        w->storage->version++;
    }
    td__storage_unref(spare);
    e->swapped = !e->swapped;
    return 0;
}

int td_ema_swap(td_ema *e)
{
    TD_ENTER();
    int rc = check("td_ema_swap", e);
    return rc ? rc : swap(e);
}

/* After an error too: who has swapped for a moment puts the weights back. */
void td__ema_swap_back(td_ema *e)
{
    if (e && e->swapped)
        swap(e);
}

bool td__ema_look(const td_ema *e, td__ema_parts *out)
{
    *out = (td__ema_parts){ e->n, e->weight, e->average, e->decay, e->swapped };
    return e != &poison;
}

void td__ema_set_swapped(td_ema *e, bool swapped)
{
    e->swapped = swapped;
}

/* A step now would change the averages, and the swap that follows would bring back weights without it. */
int td__ema_check_step(const td_optim *opt)
{
    char shape[128];
    const td_tensor *found = NULL;
    pthread_mutex_lock(&lock);
    for (const td_ema *e = live; e && !found; e = e->next)
        for (size_t i = 0; e->swapped && i < e->n && !found; i++)
            for (size_t k = 0; k < opt->n && !found; k++)
                found = opt->param[k].value == e->weight[i] ? e->weight[i] : NULL;
    pthread_mutex_unlock(&lock);
    if (!found)
        return 0;
    const char *name = td__leaf_name(found);
    return td__fail(TD_ERR_STATE, "td_optim_step: parameter %s%s%s of shape %s holds its moving average (td_ema_swap); swap back before training "
                    "goes on", *name ? "\"" : "", *name ? name : "(no name)", *name ? "\"" : "", td__shape_text(found->shape, shape));
}

void td_ema_free(td_ema *e)
{
    TD_ENTER();
    if (!e || e == &poison)
        return;
    pthread_mutex_lock(&lock);
    *(e->prev ? &e->prev->next : &live) = e->next;
    if (e->next)
        e->next->prev = e->prev;
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < e->n; i++) {
        td__tensor_unref(e->weight[i]);
        td__tensor_unref(e->average[i]);
    }
    td__free(e->weight);
    td__free(e->average);
    td__free(e);
}

void td__ema_free_all(void)
{
    while (live)
        td_ema_free(live);
}
