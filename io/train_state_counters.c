/* io/train_state_counters.c: of a training state: where the loader is, the loss scale, the counters of random numbers, the order of ddp's
 * buckets, the step.
 */
#include <float.h>
#include <loader_impl.h>
#include "train_state.h"

static const char loader_text[] = "the loader", random_text[] = "the random numbers", scaler_text[] = "the loss scaler", ddp_text[] = "the td_ddp";

/* ---- loader and random numbers ------------------------------------------------------------------------------------------------- */

static json_t *describe_loader(const td_loader *l)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:b, s:I}", "epoch", (json_int_t)td_loader_epoch(l), "position", (json_int_t)td_loader_position(l),
                     "rows", (json_int_t)l->data->rows, "global_batch", (json_int_t)(l->batch * l->parts), "batches", (json_int_t)l->batches,
                     "shuffle", l->shuffle, "seed", (json_int_t)l->seed);
}

int td__ts_put_counters(td__ts *t)
{
    const td_train_state *s = t->state;
    int rc = s->loader ? td__ts_set(t, t->text, "loader", describe_loader(s->loader)) : 0;
    if (rc == 0 && s->scaler)
        rc = td__ts_set(t, t->text, "scaler",
                        json_pack("{s:f, s:I}", "scale", td_scaler_get(s->scaler), "growth", (json_int_t)td_scaler_growth(s->scaler)));
    if (rc == 0)
        rc = td__ts_set(t, t->text, "random",
                        json_pack("{s:I, s:I, s:I}", "seed", (json_int_t)td_seed_get(), "step", (json_int_t)td_step_get(), "calls",
                                  (json_int_t)td__random_calls()));
    return rc ? rc : td__ts_set(t, t->text, "step", json_integer(s->step));
}

static int take_loader(td__ts *t)
{
    td_loader *l = t->state->loader;
    const json_t *text = td__ts_object(t, t->text, "loader");
    int64_t epoch = 0, position = 0;
    bool shuffle = false;
    int rc = text ? td__ts_same(t, text, loader_text, "rows", l->data->rows) : td__pending();
    if (rc == 0)
        rc = td__ts_same(t, text, loader_text, "global_batch", l->batch * l->parts);
    if (rc == 0)
        rc = td__ts_same(t, text, loader_text, "batches", l->batches);
    if (rc == 0)
        rc = td__ts_same(t, text, loader_text, "seed", (int64_t)l->seed);
    if (rc == 0)
        rc = td__ts_flag(t, text, loader_text, "shuffle", &shuffle);
    if (rc == 0 && shuffle != l->shuffle)
        rc = td__ts_bad(t, TD_ERR_ARGUMENT, "the loader %s in the file, but %s in this program", shuffle ? "shuffles" : "does not shuffle",
                        l->shuffle ? "does" : "does not");
    if (rc == 0)
        rc = td__ts_integer(t, text, loader_text, "epoch", 0, &epoch);
    if (rc == 0)
        rc = td__ts_integer(t, text, loader_text, "position", 0, &position);
    if (rc == 0 && (position > l->batches || epoch == INT64_MAX))
        rc = td__ts_bad(t, TD_ERR_FORMAT, "the loader's position is batch %lld of epoch %lld, but an epoch has %lld", (long long)position,
                        (long long)epoch, (long long)l->batches);
    return rc == 0 && t->apply ? td_loader_seek(l, epoch, position) : rc;
}

static int take_scaler(td__ts *t)
{
    const json_t *text = td__ts_object(t, t->text, "scaler");
    double scale = 0;
    int64_t growth = 0;
    int rc = text ? td__ts_number(t, text, scaler_text, "scale", &scale) : td__pending();
    if (rc == 0 && !(scale > 0 && scale <= (double)FLT_MAX))
        rc = td__ts_bad(t, TD_ERR_FORMAT, "the loss scale is %g, expected more than 0 and finite in f32", scale);
    if (rc == 0)
        rc = td__ts_integer(t, text, scaler_text, "growth", 0, &growth);
    return rc == 0 && t->apply ? td_scaler_set(t->state->scaler, scale, growth) : rc;
}

int td__ts_take_counters(td__ts *t)
{
    int64_t seed = 0, step = 0, calls = 0, own = 0;
    int rc = t->state->loader ? take_loader(t) : 0;
    if (rc == 0 && t->state->scaler)
        rc = take_scaler(t);
    const json_t *random = rc == 0 ? td__ts_object(t, t->text, "random") : NULL;
    if (rc == 0)
        rc = random ? td__ts_integer(t, random, random_text, "seed", INT64_MIN, &seed) : td__pending();
    if (rc == 0)
        rc = td__ts_integer(t, random, random_text, "step", INT64_MIN, &step);
    if (rc == 0)
        rc = td__ts_integer(t, random, random_text, "calls", 0, &calls);
    if (rc == 0)
        rc = td__ts_integer(t, t->text, "the state", "step", INT64_MIN, &own);
    if (rc == 0 && t->apply) {
        td_seed((uint64_t)seed);
        td_step_set(step);
        td__random_calls_set(calls);
        ((td_train_state *)t->state)->step = own;      /* load's state is not const                                           */
    }
    return rc;
}

/* ---- ddp: of each parameter its bucket and its place in the order of all ------------------------------------------------------- */

int td__ts_put_ddp(td__ts *t)
{
    const td_ddp *ddp = t->state->ddp;
    if (!ddp)
        return 0;
    char place[32];
    int32_t *order = td__alloc((size_t)ddp->leaves * sizeof *order), *cut = td__alloc((size_t)ddp->buckets * sizeof *cut);
    int rc = order && cut ? 0 : TD_ERR_MEMORY, at = 0;
    if (rc == 0)
        td__ddp_order(ddp, order, cut);
    for (int b = 0; rc == 0 && b < ddp->buckets; b++)
        for (int i = 0; rc == 0 && i < cut[b]; i++, at++) {
            const td_tensor *x = ddp->leaf[order[at]]->value;
            int64_t numbers[] = { b, at };
            rc = td__ts_put_numbers(t, numbers, 2, "ddp/%s/bucket_and_place", td__ts_name(t, x, (size_t)order[at], place));
        }
    if (rc == 0)
        rc = td__ts_set(t, t->text, "ddp", json_pack("{s:i, s:i, s:b}", "parameters", ddp->leaves, "buckets", ddp->buckets, "rebuilt", ddp->rebuilt));
    td__free(order);
    td__free(cut);
    return rc;
}

typedef struct { int32_t *order, *bucket, *cut; } layout;

/* order[place] = index of the leaf, bucket[place]: each place once, buckets in rising order, none empty, one dtype in each. */
static int check_layout(const td__ts *t, const layout *y, int buckets)
{
    const td_ddp *ddp = t->state->ddp;
    for (int i = 0; i < ddp->leaves; i++) {
        int before = i > 0 ? y->bucket[i - 1] : -1, here = y->bucket[i];
        if (y->order[i] < 0 || here < 0 || here >= buckets || here < before || here > before + 1 || (i == ddp->leaves - 1 && here != buckets - 1))
            return td__ts_bad(t, TD_ERR_FORMAT, "the buckets of the td_ddp do not hold each parameter once, in order");
        if (here == before && ddp->leaf[y->order[i]]->value->dtype != ddp->leaf[y->order[i - 1]]->value->dtype)
            return td__ts_bad(t, TD_ERR_FORMAT, "bucket %d of the td_ddp holds parameters of two dtypes", here);
        y->cut[here]++;
    }
    return 0;
}

static int read_layout(td__ts *t, const layout *y, int buckets)
{
    const td_ddp *ddp = t->state->ddp;
    char place[32];
    int rc = 0;
    for (int i = 0; i < ddp->leaves; i++)
        y->order[i] = -1;
    for (int i = 0; rc == 0 && i < ddp->leaves; i++) {
        int64_t numbers[2];
        rc = td__ts_take_numbers(t, numbers, 2, "ddp/%s/bucket_and_place", td__ts_name(t, ddp->leaf[i]->value, (size_t)i, place));
        if (rc == 0 && numbers[1] >= 0 && numbers[1] < ddp->leaves && numbers[0] >= 0 && numbers[0] < buckets) {
            y->order[numbers[1]] = i;
            y->bucket[numbers[1]] = (int32_t)numbers[0];
        }
    }
    return rc ? rc : check_layout(t, y, buckets);
}

int td__ts_take_ddp(td__ts *t)
{
    td_ddp *ddp = t->state->ddp;
    if (!ddp)
        return 0;
    int64_t buckets = 0;
    bool rebuilt = false;
    const json_t *text = td__ts_object(t, t->text, "ddp");
    int rc = text ? td__ts_same(t, text, ddp_text, "parameters", ddp->leaves) : td__pending();
    if (rc == 0)
        rc = td__ts_integer(t, text, ddp_text, "buckets", 1, &buckets);
    if (rc == 0)
        rc = td__ts_flag(t, text, ddp_text, "rebuilt", &rebuilt);
    if (rc == 0 && buckets > ddp->leaves)
        rc = td__ts_bad(t, TD_ERR_FORMAT, "the td_ddp has %lld buckets for %d parameters", (long long)buckets, ddp->leaves);
    if (rc != 0)
        return rc;
    size_t n = (size_t)ddp->leaves;
    layout y = { td__alloc(n * sizeof(int32_t)), td__calloc(n * sizeof(int32_t)), td__calloc(n * sizeof(int32_t)) };
    rc = y.order && y.bucket && y.cut ? read_layout(t, &y, (int)buckets) : TD_ERR_MEMORY;
    if (rc == 0 && t->apply)
        rc = td__ddp_set_order(ddp, y.order, y.cut, (int)buckets, rebuilt);
    td__free(y.order);
    td__free(y.bucket);
    td__free(y.cut);
    return rc;
}
