/* autograd/samples.c: which samples the rows of a batch are, which random call of the forward this is, and the step: the counters from which
 * random operations draw, so that a mask depends on neither ranks, batch size nor threads.
 *
 * "This forward" begins at td_samples, at the end of each backward, and when the step changes (td_optim_step, td_step_set). The index of
 * random calls starts from 0 there, on every rank alike.
 */
#include "tape.h"
#include <pthread.h>

static _Atomic int64_t step;
static _Atomic uint64_t step_changes;

static __thread struct {
    td_tensor *ids;                            /* a reference, or NULL: the default numbers                               */
    int64_t    calls;                          /* random calls of this forward                                            */
    uint64_t   seen;                           /* step_changes when `calls` was last valid                                */
    bool       own;                            /* step and seed below count, not the process's                            */
    int64_t    step;
    uint64_t   seed;
} mine;
static pthread_key_t thread_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void forget_ids(void *unused)
{
    (void)unused;
    td_tensor *ids = mine.ids;
    mine.ids = NULL;
    td__tensor_unref(ids);
}

static void make_key(void)
{
    pthread_key_create(&thread_end, forget_ids);
}

static void watch_thread(void)
{
    pthread_once(&once, make_key);
    pthread_setspecific(thread_end, &mine);
}

static void samples_set(td_tensor *ids)
{
    if (ids)
        watch_thread();
    td__tensor_ref(ids);
    forget_ids(NULL);
    mine.ids = ids;
    td__random_restart();
}

static int samples_again(void *state)
{
    samples_set(*(td_tensor **)state);
    return 0;
}

static void samples_drop(void *state)
{
    td__tensor_unref(*(td_tensor **)state);
}

void td_samples(td_tensor *ids)
{
    TD_ENTER();
    static const td__record_kind kind = { "td_samples", sizeof(td_tensor *), samples_again, samples_again, samples_drop, NULL };
    char shape[128];
    if (ids && ids->poisoned)
        return;
    if (ids && (ids->dtype != TD_I64 || ids->shape.ndim != 1 || !td_is_contiguous(ids))) {
        td__fail(TD_ERR_ARGUMENT, "td_samples: expected contiguous i64 of shape (rows), got %s of shape %s", td_dtype_name(ids->dtype),
                 td__shape_text(ids->shape, shape));
        return;
    }
    td_tensor **noted = td__record_begin(&kind);
    if (noted) {
        *noted = ids;
        td__tensor_ref(ids);
    }
    samples_set(ids);
    td__record_end();
}

void td__samples_now(int64_t rows, const td_tensor **ids, int64_t *first)
{
    *ids = mine.ids;
    *first = mine.ids ? 0 : td__world_now()->rank * rows;
}

void td__random_restart(void)
{
    mine.calls = 0;
}

uint64_t td__random_seed(void)
{
    return mine.own ? mine.seed : td_seed_get();
}

static void follow_step(void)
{
    uint64_t changes = atomic_load_explicit(&step_changes, memory_order_relaxed);
    if (mine.seen == changes || mine.own)
        return;
    mine.seen = changes;
    mine.calls = 0;
}

int64_t td__random_call_index(void)
{
    follow_step();
    return mine.calls++;
}

static int64_t step_now(void)
{
    return mine.own ? mine.step : atomic_load(&step);
}

td__random td__random_now(void)
{
    follow_step();
    return (td__random){ mine.ids, mine.calls, step_now(), td__random_seed(), mine.own };
}

td__random td__random_put(td__random state)
{
    td__random before = td__random_now();
    if (state.ids)
        watch_thread();
    mine.ids = state.ids;
    mine.calls = state.calls;
    mine.step = state.step;
    mine.seed = state.seed;
    mine.own = state.own;
    return before;
}

int64_t td__random_calls(void)
{
    return mine.seen == atomic_load_explicit(&step_changes, memory_order_relaxed) ? mine.calls : 0;
}

void td__random_calls_set(int64_t calls)
{
    mine.seen = atomic_load_explicit(&step_changes, memory_order_relaxed);
    mine.calls = calls;
}

int64_t td_step_get(void)
{
    TD_ENTER();
    td__record_read("td_step_get");
    return step_now();
}

void td_step_set(int64_t value)
{
    TD_ENTER();
    if (td__recorded_here())
        td__record_refuse("td_step_set is called by the step, and the number is read anew by every replay; call it before td_replay");
    atomic_store(&step, value);
    atomic_fetch_add(&step_changes, 1);
}
