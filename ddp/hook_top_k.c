/* ddp/hook_top_k.c: only the largest elements of each bucket cross; what stays behind is added next time.
 *
 * Stich, Cordonnier, Jaggi: Sparsified SGD with Memory (NeurIPS 2018). A rank adds what it kept back to its share of the mean, takes the k largest by magnitude
 * out of it and keeps the rest. What crosses is one all-gather of k places and k values; every rank adds them in rank order, so all get the same bits.
 *
 * The k-th largest is found without sorting: a count of magnitudes by the upper half of their bits, then by the lower half within the bin that holds it. The bits
 * of a float without its sign order as the numbers do, with NaN above everything, so a NaN crosses at once and loss scalers see it. f64 is ranked by its value
 * rounded to f32.
 */
#include <math.h>
#include "ddp_impl.h"

enum { BINS = 1 << 16 };

typedef struct {
    int64_t    k;
    int        words;                  /* int32s a value takes: 1 for f32, 2 for f64                                        */
    td_tensor *left;                   /* (n): what has not crossed yet                                                     */
    td_tensor *mine, *all;             /* i32 (k*(1+words)) of this rank, and of all ranks: places, then values               */
    td_work   *work;
} part;

typedef struct {
    double   fraction;
    uint64_t layout;
    int      parts;
    part    *of;                       /* by bucket                                                                         */
    int64_t *count;                    /* BINS                                                                              */
} top_k;

static void drop_parts(top_k *t)
{
    for (int i = 0; i < t->parts; i++) {
        td_tensor *held[] = { t->of[i].left, t->of[i].mine, t->of[i].all };
        for (size_t h = 0; h < TD_COUNT(held); h++)
            if (held[h])
                td_release(held[h]);
    }
    td__free(t->of);
    t->of = NULL;
    t->parts = 0;
}

static part *part_of(top_k *t, const td_ddp_hook_bucket *b)
{
    if (t->layout != b->layout || t->parts != b->buckets) {
        drop_parts(t);
        t->of = td__calloc((size_t)b->buckets * sizeof *t->of);
        t->parts = t->of ? b->buckets : 0;
        t->layout = b->layout;
    }
    if (!t->of)
        return NULL;
    part *p = &t->of[b->index];
    if (!p->left) {
        const int64_t n = td_numel(b->gradient);
        p->words = td_dtype_of(b->gradient) == TD_F64 ? 2 : 1;
        p->k = (int64_t)ceil(t->fraction * (double)n);
        p->left = td_keep(td_zeros(TD_SHAPE(n), td_dtype_of(b->gradient)));
        p->mine = td_keep(td_zeros_shared(b->comm, TD_SHAPE(p->k * (1 + p->words)), TD_I32));
        p->all = td_keep(td_zeros_shared(b->comm, TD_SHAPE(p->k * (1 + p->words) * td_size(b->comm)), TD_I32));
    }
    return td__pending() ? NULL : p;
}

/* ---- the k largest ----------------------------------------------------------------------------------------------------------------------------------- */

static double value_at(const void *x, int words, int64_t i)
{
    return words == 2 ? ((const double *)x)[i] : (double)((const float *)x)[i];
}

static uint32_t magnitude(const void *x, int words, int64_t i)
{
    const float f = words == 2 ? (float)((const double *)x)[i] : ((const float *)x)[i];
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits & 0x7fffffffu;
}

/* The bin in which the `wanted`-th largest lies, counted from the top; *wanted becomes its number within the bin. */
static uint32_t bin_of(const int64_t *count, int64_t *wanted)
{
    uint32_t bin = BINS - 1;
    while (count[bin] < *wanted)
        *wanted -= count[bin--];
    return bin;
}

/* The magnitude of the k-th largest; *equal: how many of just that magnitude belong to the k. 1 <= k <= n. */
static uint32_t kth_largest(const void *x, int words, int64_t n, int64_t k, int64_t *count, int64_t *equal)
{
    memset(count, 0, BINS * sizeof *count);
    for (int64_t i = 0; i < n; i++)
        count[magnitude(x, words, i) >> 16]++;
    const uint32_t high = bin_of(count, &k);
    memset(count, 0, BINS * sizeof *count);
    for (int64_t i = 0; i < n; i++) {
        const uint32_t m = magnitude(x, words, i);
        if (m >> 16 == high)
            count[m & 0xffff]++;
    }
    const uint32_t low = bin_of(count, &k);
    *equal = k;
    return high << 16 | low;
}

/* ---- the hook ------------------------------------------------------------------------------------------------------------------------------------------ */

static int start(td_ddp_hook_bucket *b, void *user)
{
    top_k *t = user;
    part *p = part_of(t, b);
    if (!p)
        return -1;
    const int64_t n = td_numel(b->gradient);
    const td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 }, { 1 } } };
    void *left = td_data(p->left);
    td__kernels(p->left)->add(&l, td_dtype_of(p->left), left, left, td_data(b->gradient), false);
    int32_t *place = td_data(p->mine);
    char *values = (char *)(place + p->k);
    const size_t size = 4 * (size_t)p->words;
    int64_t equal, taken = 0;
    const uint32_t least = kth_largest(left, p->words, n, p->k, t->count, &equal);
    for (int64_t i = 0; i < n && taken < p->k; i++) {
        const uint32_t m = magnitude(left, p->words, i);
        if (m < least || (m == least && equal-- <= 0))
            continue;
        char *at = (char *)left + (size_t)i * size;
        place[taken] = (int32_t)i;
        memcpy(values + (size_t)taken * size, at, size);
        memset(at, 0, size);
        taken++;
    }
    b->bytes += p->k * 4 * (1 + p->words);
    p->work = td_all_gather_start(b->comm, p->all, p->mine);
    return td__pending();
}

static int finish(td_ddp_hook_bucket *b, void *user)
{
    part *p = &((top_k *)user)->of[b->index];
    int code = td_wait(p->work);
    p->work = NULL;
    if (code)
        return code;
    td_fill(b->gradient, 0);
    void *g = td_data(b->gradient);
    for (int r = 0; r < td_size(b->comm); r++) {
        const int32_t *place = (const int32_t *)td_data(p->all) + (int64_t)r * p->k * (1 + p->words);
        const void *values = place + p->k;
        for (int64_t i = 0; i < p->k; i++)
            if (p->words == 2)
                ((double *)g)[place[i]] += value_at(values, 2, i);
            else
                ((float *)g)[place[i]] += (float)value_at(values, 1, i);
    }
    return 0;
}

static void drop(void *user)
{
    top_k *t = user;
    drop_parts(t);
    td__free(t->count);
    td__free(t);
}

int td_ddp_top_k_hook(td_ddp *ddp, const td_top_k_opts *opts)
{
    TD_ENTER();
    static const td_ddp_hook hook = { .name = "top-k", .start = start, .finish = finish, .free = drop };
    double fraction = opts && opts->fraction != 0 ? opts->fraction : 0.01;
    if (td__pending())
        return td__pending();
    if (!(fraction > 0 && fraction <= 1))
        return td__fail(TD_ERR_ARGUMENT, "td_ddp_top_k_hook: fraction is %g, expected more than 0, up to 1", fraction);
    if (ddp && !td__ddp_is_poison(ddp) && ddp->device.kind != TD_CPU)
        return td__fail(TD_ERR_DEVICE, "td_ddp_top_k_hook: the parameters lie on a GPU, and elements are chosen in host memory; td_ddp_power_sgd_hook and "
                        "td_ddp_bf16_hook work there");
    for (int i = 0; ddp && !td__ddp_is_poison(ddp) && i < ddp->buckets; i++)
        if (ddp->bucket[i].flat->n > INT32_MAX)
            return td__fail(TD_ERR_SHAPE, "td_ddp_top_k_hook: a bucket has %lld elements, more than places of 32 bits can tell apart", (long long)ddp->bucket[i].flat->n);
    top_k *t = td__calloc(sizeof *t);
    int64_t *count = td__alloc(BINS * sizeof *count);
    int code = t && count ? 0 : td__pending();
    if (!code) {
        *t = (top_k){ .fraction = fraction, .count = count };
        code = td_ddp_set_hook(ddp, &hook, t);
    }
    if (code) {
        td__free(t);
        td__free(count);
    }
    return code;
}
