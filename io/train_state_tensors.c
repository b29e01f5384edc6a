/* io/train_state_tensors.c: of a training state: weights and buffers, moving averages, the user's own tensors. */
#include <string.h>
#include "train_state.h"

static int put_ema(td__ts *t)
{
    td__ema_parts e;
    char place[32];
    int rc = 0;
    td__ema_look(t->state->ema, &e);
    for (size_t i = 0; i < e.n && rc == 0; i++)
        rc = td__ts_put(t, e.average[i], "ema/%s", td__ts_name(t, e.weight[i], i, place));
    return rc ? rc : td__ts_set(t, t->text, "ema", json_pack("{s:f, s:b}", "decay", e.decay, "swapped", e.swapped));
}

int td__ts_put_tensors(td__ts *t)
{
    const td_train_state *s = t->state;
    int rc = 0;
    for (size_t i = 0; i < t->slots.n && rc == 0; i++)
        if (td__io_slots_first(&t->slots, i) == i)
            rc = td__ts_put(t, t->slots.list[i].tensor, "model/%s", t->slots.list[i].name);
    if (rc == 0 && s->ema)
        rc = put_ema(t);
    for (size_t i = 0; i < s->n_extra && rc == 0; i++)
        rc = td__ts_put(t, s->extra[i].tensor, "extra/%s", s->extra[i].name);
    return rc;
}

static int take_ema(td__ts *t)
{
    td__ema_parts e;
    char place[32];
    double decay;
    bool swapped;
    td__ema_look(t->state->ema, &e);
    const json_t *text = td__ts_object(t, t->text, "ema");
    int rc = text ? td__ts_number(t, text, "the moving average", "decay", &decay) : td__pending();
    if (rc == 0 && decay != e.decay)
        rc = td__ts_bad(t, TD_ERR_ARGUMENT, "the moving average's decay is %g in the file, but %g in this program", decay, e.decay);
    if (rc == 0)
        rc = td__ts_flag(t, text, "the moving average", "swapped", &swapped);
    for (size_t i = 0; i < e.n && rc == 0; i++)
        rc = td__ts_take(t, e.average[i], e.average[i]->dtype, e.average[i]->shape, "ema/%s", td__ts_name(t, e.weight[i], i, place));
    if (rc == 0 && t->apply)
        td__ema_set_swapped(t->state->ema, swapped);
    return rc;
}

int td__ts_take_tensors(td__ts *t)
{
    const td_train_state *s = t->state;
    int rc = 0;
    for (size_t i = 0; i < t->slots.n && rc == 0; i++) {
        td_tensor *x = t->slots.list[i].tensor;
        if (td__io_slots_first(&t->slots, i) == i)
            rc = td__ts_take(t, x, x->dtype, x->shape, "model/%s", t->slots.list[i].name);
    }
    if (rc == 0 && s->ema)
        rc = take_ema(t);
    for (size_t i = 0; i < s->n_extra && rc == 0; i++) {
        td_tensor *x = s->extra[i].tensor;
        rc = td__ts_take(t, x, x->dtype, x->shape, "extra/%s", s->extra[i].name);
    }
    return rc;
}
