/* tensor/cpu/attention_body.h: attention for one element type T; attention.c includes it once for float and once for double.
 *
 * A tile's scores lie key by key: row c holds key s0 + c against the tile's ATT_Q queries, so that maxima, sums and exponentials of all queries go
 * side by side in vectors, and every product of forward and backward finds its operands as they lie, but for the tile's queries and its incoming
 * gradient, which are turned once. Queries beyond the last are computed (of zeros) and read by nobody. What may not be seen
 * has the score -inf and probability 0. Expects T, the integer I of its size and F(name); undefines them at the end.
 */
#include "attention_tile.h"

typedef struct {
    T *p, *g;                        /* a tile of ATT_K * ATT_Q each                                                             */
    T *q, *gout;                     /* the tile's queries, scaled, and incoming gradients: (d, ATT_Q)                            */
} F(room);

static size_t F(room_size)(const td_attention_shape *a)
{
    return sizeof(T) * (size_t)(2 * ATT_K * ATT_Q + 2 * a->d * ATT_Q);
}

static F(room) F(room_at)(const td_attention_shape *a, void *memory)
{
    F(room) r = { .p = memory };
    r.g = r.p + ATT_K * ATT_Q;
    r.q = r.g + ATT_K * ATT_Q;
    r.gout = r.q + a->d * ATT_Q;
    return r;
}

/* The mask of keys s0 … s0 + cols, this head's: what may not be seen becomes -inf. */
static void F(masked)(const td_attention_shape *a, T *scores, int64_t t0, int64_t rows, int64_t s0, int64_t cols, const void *mask)
{
    for (int64_t c = 0; c < cols; c++) {
        T *p = scores + c * ATT_Q;
        const int64_t from = t0 * a->mask[2] + (s0 + c) * a->mask[3];
        if (a->mask_bool)
            for (int64_t r = 0; r < rows; r++)
                p[r] = ((const uint8_t *)mask)[from + r * a->mask[2]] ? p[r] : (T)-INFINITY;
        else
            for (int64_t r = 0; r < rows; r++)
                p[r] += ((const T *)mask)[from + r * a->mask[2]];
    }
}

static inline F(vec) F(chosen)(F(ints) which, F(vec) yes, F(vec) no)
{
    return (F(vec))(((F(ints))yes & which) | ((F(ints))no & ~which));
}

/* Scores that the first queries of a tile on the diagonal do not see become -inf: of key c + lead, c queries. */
static void F(hide)(const F(room) *m, int64_t cols, int64_t lead)
{
    F(vec) lane;
    for (int i = 0; i < F(LANES); i++)
        lane[i] = (T)i;
    const F(vec) none = (F(vec)){ 0 } - (T)INFINITY;
    for (int64_t c = lead + 1; c < cols; c++)
        for (int64_t r = 0; r < c - lead && r < ATT_Q; r += F(LANES)) {
            T *p = m->p + c * ATT_Q + r;
            F(store)(p, F(chosen)(lane < (T)(c - lead - r), none, F(load)(p)));
        }
}

/* m->p: the scores of queries t0 … t0 + rows, which m->q holds, against keys s0 … s0 + cols; -inf: not seen. Returns whether there may be such. */
static bool F(scores)(const td_attention_shape *a, const F(room) *m, int64_t t0, int64_t rows, int64_t s0, int64_t cols, const T *k,
                      const void *mask)
{
    const corner z = corner_of(a, UNREAD, t0, s0);
    F(product)(z, cols, ATT_Q, a->d, k + s0 * a->k[2], a->k[2], 1, m->q, ATT_Q, m->p, ATT_Q, false);
    if (mask)
        F(masked)(a, m->p, t0, rows, s0, cols, mask);
    if (a->causal)
        F(hide)(m, cols, z.lead);
    return mask || (a->causal && cols > z.lead + 1);
}

/* p = exp(p - top) of the tile; what is -inf becomes 0, but goes through the exponential as 0, which is faster there. */
static inline __attribute__((always_inline)) void F(exponentials_of)(const bool some_hidden, T *p, int64_t cols, int64_t lead, const T *top)
{
    const F(vec) zero = { 0 }, none = zero - (T)INFINITY;
    for (int64_t c = 0; c < cols; c++, p += ATT_Q) {
        int64_t r = 0;
        for (; some_hidden && r + F(GROUP) <= c - lead; r += F(GROUP))
            for (int i = 0; i < F(GROUP); i += F(LANES))
                F(store)(p + r + i, zero);
        for (; r < ATT_Q; r += F(GROUP)) {
            T x[F(GROUP)];
            F(ints) hidden[F(GROUP) / F(LANES)];
            for (int i = 0; i < F(GROUP); i += F(LANES)) {
                const F(vec) v = F(load)(p + r + i) - F(load)(top + r + i);
                hidden[i / F(LANES)] = v == none;
                F(store)(x + i, some_hidden ? F(chosen)(v == none, zero, v) : v);
            }
            F(exp_group)(x);
            for (int i = 0; i < F(GROUP); i += F(LANES))
                F(store)(p + r + i, some_hidden ? F(chosen)(hidden[i / F(LANES)], zero, F(load)(x + i)) : F(load)(x + i));
        }
    }
}

static void F(exponentials)(const td_attention_shape *a, const F(room) *m, int64_t t0, int64_t s0, int64_t cols, bool some_hidden, const T *top)
{
    if (some_hidden)
        F(exponentials_of)(true, m->p, cols, corner_of(a, UNREAD, t0, s0).lead, top);
    else
        F(exponentials_of)(false, m->p, cols, 0, top);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------------- */

/* most: the largest score of each query so far, NaN left out: its exponential carries it on */
static void F(largest)(const F(room) *m, int64_t cols, T *most)
{
    for (int64_t r = 0; r < ATT_Q; r += F(LANES)) {
        F(vec) v = F(load)(most + r);
        for (int64_t c = 0; c < cols; c++) {
            const F(vec) p = F(load)(m->p + c * ATT_Q + r);
            v = F(chosen)(p > v, p, v);
        }
        F(store)(most + r, v);
    }
}

/* sum += each query's probabilities, in T over 16 keys at a time */
static void F(add_up)(const F(room) *m, int64_t cols, double *sum)
{
    for (int64_t r = 0; r < ATT_Q; r += F(LANES))
        for (int64_t from = 0; from < cols; from += 16) {
            const int64_t end = smaller(from + 16, cols);
            F(vec) part = F(load)(m->p + from * ATT_Q + r);
            for (int64_t c = from + 1; c < end; c++)
                part += F(load)(m->p + c * ATT_Q + r);
            for (int i = 0; i < F(LANES); i++)
                sum[r + i] += (double)part[i];
        }
}

static void F(times)(int64_t d, T *row, T factor)
{
    _Pragma("omp simd") for (int64_t i = 0; i < d; i++) row[i] *= factor;
}

/* out and lse at query t0, out's rows a->out[2] apart; the rest is this head's */
static void F(query_tile)(const td_attention_shape *a, const F(room) *m, int64_t t0, int64_t rows, T *out, T *lse, const T *q, const T *k,
                          const T *v, const void *mask)
{
    const int64_t d = a->d, row = a->out[2], end = a->causal ? smaller(a->s, t0 + rows) : a->s;
    T most[ATT_Q], keep[ATT_Q], top[ATT_Q];
    double sum[ATT_Q] = { 0 };
    for (int64_t r = 0; r < ATT_Q; r++)
        most[r] = (T)-INFINITY;
    F(turn)(rows, d, (T)a->scale, q + t0 * a->q[2], a->q[2], m->q);
    for (int64_t s0 = 0; s0 < end; s0 += ATT_K) {
        const int64_t cols = smaller(ATT_K, end - s0);
        const bool some_hidden = F(scores)(a, m, t0, rows, s0, cols, k, mask);
        memcpy(keep, most, sizeof keep);
        F(largest)(m, cols, most);
        for (int64_t r = 0; r < ATT_Q; r++) {
            top[r] = most[r] == (T)-INFINITY ? 0 : most[r];
            keep[r] = keep[r] == (T)-INFINITY ? 0 : keep[r] - most[r];
        }
        F(td__vexp)(ATT_Q, keep, keep);
        F(exponentials)(a, m, t0, s0, cols, some_hidden, top);
        for (int64_t r = 0; s0 > 0 && r < rows; r++) {
            sum[r] *= (double)keep[r];
            if (keep[r] != 1)
                F(times)(d, out + r * row, keep[r]);
        }
        F(add_up)(m, cols, sum);
        F(product)(corner_of(a, AFTER, t0, s0), rows, d, cols, m->p, 1, ATT_Q, v + s0 * a->v[2], a->v[2], out, row, s0 > 0);
    }
    for (int64_t r = 0; r < rows; r++) {
        if (sum[r] == 0)
            memset(out + r * row, 0, sizeof(T) * (size_t)d);
        else
            F(times)(d, out + r * row, (T)(1 / sum[r]));
        lse[r] = sum[r] == 0 ? (T)-INFINITY : (T)((double)most[r] + log(sum[r]));
    }
}

/* The first element of head i of a tensor with these strides (n, h, …). */
static int64_t F(head)(const td_attention_shape *a, const int64_t *stride, int64_t i)
{
    return i / a->h * stride[0] + i % a->h * stride[1];
}

static const void *F(mask_head)(const td_attention_shape *a, const void *mask, int64_t i)
{
    return mask ? (const char *)mask + (size_t)F(head)(a, a->mask, i) * (a->mask_bool ? 1 : sizeof(T)) : NULL;
}

static void F(attention)(const td_attention_shape *a, T *out, T *lse, const T *q, const T *k, const T *v, const void *mask)
{
    const int64_t tiles = (a->t + ATT_Q - 1) / ATT_Q, units = a->n * a->h * tiles;
    const int threads = threads_now();
    const size_t each = F(room_size)(a);
    char *memory = units > 0 && a->d > 0 ? td__alloc(each * (size_t)threads) : NULL;
    if (!memory)
        return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const F(room) m = F(room_at)(a, memory + (size_t)thread_index(threads) * each);
#pragma omp for schedule(dynamic, 1)
        for (int64_t u = 0; u < units; u++) {
            const int64_t i = u / tiles, t0 = (tiles - 1 - u % tiles) * ATT_Q;                        /* causal: the longest first */
            F(query_tile)(a, &m, t0, smaller(ATT_Q, a->t - t0), out + F(head)(a, a->out, i) + t0 * a->out[2], lse + i * a->t + t0, q + F(head)(a, a->q, i), k + F(head)(a, a->k, i),
                          v + F(head)(a, a->v, i), F(mask_head)(a, mask, i));
        }
    }
    td__free(memory);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------------ */

typedef struct {
    T *gq, *gk, *gv;                 /* this head's; NULL: not wanted                                                           */
    const T *gout, *lse, *delta, *q, *k, *v;
    const void *mask;
} F(head_grad);

/* What queries t0 … t0 + rows and keys s0 … s0 + cols give to the gradients; m holds the queries and their incoming gradients. */
static void F(tile_grad)(const td_attention_shape *a, const F(head_grad) *h, const F(room) *m, int64_t t0, int64_t rows, int64_t s0, int64_t cols)
{
    const int64_t d = a->d;
    T top[ATT_Q] = { 0 }, delta[ATT_Q] = { 0 };
    for (int64_t r = 0; r < rows; r++) {
        const T lse = h->lse[t0 + r];
        top[r] = lse == (T)-INFINITY ? 0 : lse;      /* sees no key: all its scores are -inf                                   */
        delta[r] = h->delta[t0 + r];
    }
    F(exponentials)(a, m, t0, s0, cols, F(scores)(a, m, t0, rows, s0, cols, h->k, h->mask), top);
    const corner before = corner_of(a, BEFORE, t0, s0), unread = corner_of(a, UNREAD, t0, s0);
    if (h->gv)
        F(product)(before, cols, d, rows, m->p, ATT_Q, 1, h->gout + t0 * d, d, h->gv + s0 * d, d, true);
    if (!h->gq && !h->gk)
        return;
    F(product)(unread, cols, ATT_Q, d, h->v + s0 * a->v[2], a->v[2], 1, m->gout, ATT_Q, m->g, ATT_Q, false);
    const T scale = (T)a->scale;
    for (int64_t c = 0; c < cols; c++) {
        const T *p = m->p + c * ATT_Q;
        T *g = m->g + c * ATT_Q;
        int64_t r = 0;
        for (; r + F(LANES) <= c - unread.lead; r += F(LANES))     /* hidden, and perhaps not computed                          */
            F(store)(g + r, (F(vec)){ 0 });
        for (; r < ATT_Q; r += F(LANES))
            F(store)(g + r, F(load)(p + r) * (F(load)(g + r) - F(load)(delta + r)) * scale);
    }
    if (h->gq)
        F(product)(corner_of(a, AFTER, t0, s0), rows, d, cols, m->g, 1, ATT_Q, h->k + s0 * a->k[2], a->k[2], h->gq + t0 * d, d, true);
    if (h->gk)
        F(product)(before, cols, d, rows, m->g, ATT_Q, 1, h->q + t0 * a->q[2], a->q[2], h->gk + s0 * d, d, true);
}

/* Every parts-th tile of keys, from tile `part` on, against all queries. */
static void F(part_grad)(const td_attention_shape *a, const F(head_grad) *h, const F(room) *m, int64_t part, int64_t parts, bool add_k, bool add_v)
{
    const int64_t d = a->d;
    for (int64_t s0 = part * ATT_K; s0 < a->s; s0 += parts * ATT_K) {
        const size_t bytes = sizeof(T) * (size_t)(smaller(ATT_K, a->s - s0) * d);
        if (h->gk && !add_k)
            memset(h->gk + s0 * d, 0, bytes);
        if (h->gv && !add_v)
            memset(h->gv + s0 * d, 0, bytes);
    }
    for (int64_t t0 = 0; t0 < a->t; t0 += ATT_Q) {
        const int64_t rows = smaller(ATT_Q, a->t - t0), end = a->causal ? smaller(a->s, t0 + rows) : a->s;
        F(turn)(rows, d, (T)a->scale, h->q + t0 * a->q[2], a->q[2], m->q);
        if (h->gq || h->gk)
            F(turn)(rows, d, 1, h->gout + t0 * d, d, m->gout);
        for (int64_t s0 = part * ATT_K; s0 < end; s0 += parts * ATT_K)
            F(tile_grad)(a, h, m, t0, rows, s0, smaller(ATT_K, end - s0));
    }
}

/* delta: gout . out of a row */
static T F(row_dot)(const T *x, const T *y, int64_t n)
{
    double lane[8] = { 0 }, sum = 0;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _Pragma("omp simd") for (int j = 0; j < 8; j++) lane[j] += (double)x[i + j] * (double)y[i + j];
    }
    for (int j = 0; i < n; i++, j++)
        lane[j] += (double)x[i] * (double)y[i];
    for (int j = 0; j < 8; j++)
        sum += lane[j];
    return (T)sum;
}

static void F(attention_grad)(const td_attention_shape *a, T *gq, T *gk, T *gv, const T *gout, const T *out, const T *lse, const T *q,
                              const T *k, const T *v, const void *mask, bool add_q, bool add_k, bool add_v)
{
    const int64_t heads = a->n * a->h, d = a->d, per = a->t * d, rows = heads * a->t, parts = gq ? parts_of(a) : 1;
    const int threads = threads_now();
    /* one piece of memory: the threads' rooms, the parts' gradients of q, delta */
    const size_t each = F(room_size)(a), own = parts > 1 ? (size_t)(heads * parts * per) : 0;
    char *memory = heads > 0 && d > 0 ? td__alloc(each * (size_t)threads + sizeof(T) * (own + (size_t)rows)) : NULL;
    if (!memory)
        return;
    T *part = (T *)(void *)(memory + each * (size_t)threads), *delta = part + own;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const F(room) m = F(room_at)(a, memory + (size_t)thread_index(threads) * each);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++)
            delta[i] = F(row_dot)(gout + i * d, out + F(head)(a, a->out, i / a->t) + i % a->t * a->out[2], d);
#pragma omp for schedule(dynamic, 1)
        for (int64_t u = 0; u < heads * parts; u++) {
            const int64_t i = u / parts;
            F(head_grad) h = {
                .gq = !gq ? NULL : parts > 1 ? part + u * per : gq + i * per, .gk = gk ? gk + i * a->s * d : NULL,
                .gv = gv ? gv + i * a->s * d : NULL, .gout = gout + i * per, .lse = lse + i * a->t, .delta = delta + i * a->t,
                .q = q + F(head)(a, a->q, i), .k = k + F(head)(a, a->k, i), .v = v + F(head)(a, a->v, i), .mask = F(mask_head)(a, mask, i),
            };
            if (gq && (parts > 1 || !add_q))
                memset(h.gq, 0, sizeof(T) * (size_t)per);
            F(part_grad)(a, &h, &m, u % parts, parts, add_k, add_v);
        }
        if (parts > 1) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < heads * per; i++) {
                const T *from = part + i / per * parts * per + i % per;
                T sum = add_q ? gq[i] : 0;
                for (int64_t c = 0; c < parts; c++)
                    sum += from[c * per];
                gq[i] = sum;
            }
        }
    }
    td__free(memory);
}
#undef T
#undef I
#undef F
