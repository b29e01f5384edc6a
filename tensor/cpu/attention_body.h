/* tensor/cpu/attention_body.h: attention for one element type T; attention.c includes it once for float and once for double.
 *
 * A tile's scores lie key by key: row c holds key s0 + c against the tile's ATT_Q queries, so that maxima, sums and exponentials of all queries go
 * side by side in vectors, and every product of forward and backward finds its operands as they lie, but for the tile's queries and its incoming
 * gradient, which are turned once. Queries beyond the last are computed (of zeros) and read by nobody. What may not be seen
 * has probability 0. Expects T and F(name); undefines both at the end.
 */
#include "attention_tile.h"

typedef struct {
    T *p, *g;                        /* a tile of ATT_K * ATT_Q each                                                             */
    T *q, *gout;                     /* the tile's queries, scaled, and incoming gradients: (d, ATT_Q)                            */
    uint8_t *none;                   /* of a tile: masked; NULL without a mask                                                   */
} F(room);

static size_t F(room_size)(const td_attention_shape *a, bool mask)
{
    return sizeof(T) * (size_t)(2 * ATT_K * ATT_Q + 2 * a->d * ATT_Q) + (mask ? ATT_K * ATT_Q : 0);
}

static F(room) F(room_at)(const td_attention_shape *a, bool mask, void *memory)
{
    F(room) r = { .p = memory };
    r.g = r.p + ATT_K * ATT_Q;
    r.q = r.g + ATT_K * ATT_Q;
    r.gout = r.q + a->d * ATT_Q;
    r.none = mask ? (uint8_t *)(r.gout + a->d * ATT_Q) : NULL;
    return r;
}

/* The first queries of a tile do not see this key: how many? */
static int64_t F(hidden)(const td_attention_shape *a, int64_t t0, int64_t s)
{
    return !a->causal || s <= t0 ? 0 : smaller(s - t0, ATT_Q);
}

/* p and none of keys s0 … s0 + cols where there is a mask, this head's */
static void F(masked)(const td_attention_shape *a, const F(room) *m, int64_t t0, int64_t rows, int64_t s0, int64_t cols, const void *mask)
{
    for (int64_t c = 0; c < cols; c++) {
        T *p = m->p + c * ATT_Q;
        uint8_t *none = m->none + c * ATT_Q;
        const int64_t from = t0 * a->mask[2] + (s0 + c) * a->mask[3];
        if (a->mask_bool)
            for (int64_t r = 0; r < rows; r++)
                p[r] = ((const uint8_t *)mask)[from + r * a->mask[2]] ? p[r] : (T)-INFINITY;
        else
            for (int64_t r = 0; r < rows; r++)
                p[r] += ((const T *)mask)[from + r * a->mask[2]];
        for (int64_t r = 0; r < ATT_Q; r++)
            none[r] = p[r] == (T)-INFINITY;
    }
}

/* m->p: the scores of queries t0 … t0 + rows, which m->q holds, against keys s0 … s0 + cols */
static void F(scores)(const td_attention_shape *a, const F(room) *m, int64_t t0, int64_t rows, int64_t s0, int64_t cols, const T *k,
                      const void *mask)
{
    F(product)(cols, ATT_Q, a->d, k + s0 * a->k[2], a->k[2], 1, m->q, ATT_Q, m->p, ATT_Q, false);
    if (mask)
        F(masked)(a, m, t0, rows, s0, cols, mask);
}

/* p = exp(p - top) of the tile, and 0 where a query does not see a key. Those go through the exponential as 0: -inf would be slow. */
static void F(exponentials)(const td_attention_shape *a, const F(room) *m, int64_t t0, int64_t s0, int64_t cols, const T *top)
{
    for (int64_t c = 0; c < cols; c++) {
        T *p = m->p + c * ATT_Q;
        const int64_t h = F(hidden)(a, t0, s0 + c);
        _Pragma("omp simd") for (int64_t r = 0; r < ATT_Q; r++) p[r] -= top[r];
        for (int64_t r = 0; r < h; r++)
            p[r] = 0;
        for (int64_t r = 0; m->none && r < ATT_Q; r++)
            p[r] = m->none[c * ATT_Q + r] ? 0 : p[r];
    }
    F(td__vexp)(cols * ATT_Q, m->p, m->p);
    for (int64_t c = 0; c < cols; c++) {
        T *p = m->p + c * ATT_Q;
        const int64_t h = F(hidden)(a, t0, s0 + c);
        for (int64_t r = 0; r < h; r++)
            p[r] = 0;
        for (int64_t r = 0; m->none && r < ATT_Q; r++)
            p[r] = m->none[c * ATT_Q + r] ? 0 : p[r];
    }
}

/* ---- forward ------------------------------------------------------------------------------------------------------------------- */

/* most: the largest score of each query so far, NaN left out: its exponential carries it on */
static void F(largest)(const td_attention_shape *a, const F(room) *m, int64_t t0, int64_t s0, int64_t cols, T *most)
{
    for (int64_t c = 0; c < cols; c++) {
        const T *p = m->p + c * ATT_Q;
        const int64_t h = F(hidden)(a, t0, s0 + c);
        if (h == 0)
            _Pragma("omp simd") for (int64_t r = 0; r < ATT_Q; r++) most[r] = p[r] > most[r] ? p[r] : most[r];
        else
            for (int64_t r = h; r < ATT_Q; r++)
                most[r] = p[r] > most[r] ? p[r] : most[r];
    }
}

/* sum += each query's probabilities, in T over 16 keys at a time */
static void F(add_up)(const F(room) *m, int64_t cols, double *sum)
{
    for (int64_t from = 0; from < cols; from += 16) {
        const int64_t end = smaller(from + 16, cols);
        T part[ATT_Q];
        memcpy(part, m->p + from * ATT_Q, sizeof part);
        for (int64_t c = from + 1; c < end; c++)
            _Pragma("omp simd") for (int64_t r = 0; r < ATT_Q; r++) part[r] += m->p[c * ATT_Q + r];
        for (int64_t r = 0; r < ATT_Q; r++)
            sum[r] += (double)part[r];
    }
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
        F(scores)(a, m, t0, rows, s0, cols, k, mask);
        memcpy(keep, most, sizeof keep);
        F(largest)(a, m, t0, s0, cols, most);
        for (int64_t r = 0; r < ATT_Q; r++) {
            top[r] = most[r] == (T)-INFINITY ? 0 : most[r];
            keep[r] = keep[r] == (T)-INFINITY ? 0 : keep[r] - most[r];
        }
        F(td__vexp)(ATT_Q, keep, keep);
        F(exponentials)(a, m, t0, s0, cols, top);
        for (int64_t r = 0; s0 > 0 && r < rows; r++) {
            sum[r] *= (double)keep[r];
            for (int64_t i = 0; keep[r] != 1 && i < d; i++)
                out[r * row + i] *= keep[r];
        }
        F(add_up)(m, cols, sum);
        F(product)(rows, d, cols, m->p, 1, ATT_Q, v + s0 * a->v[2], a->v[2], out, row, s0 > 0);
    }
    for (int64_t r = 0; r < rows; r++) {
        const T factor = (T)(1 / sum[r]);
        for (int64_t i = 0; i < d; i++)
            out[r * row + i] = sum[r] == 0 ? 0 : out[r * row + i] * factor;
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
    const size_t each = F(room_size)(a, mask);
    char *memory = units > 0 && a->d > 0 ? td__alloc(each * (size_t)threads) : NULL;
    if (!memory)
        return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const F(room) m = F(room_at)(a, mask, memory + (size_t)thread_index(threads) * each);
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
    bool blind = false;
    for (int64_t r = 0; r < rows; r++) {
        const T lse = h->lse[t0 + r];
        blind |= lse == (T)-INFINITY;
        top[r] = lse == (T)-INFINITY ? 0 : lse;
        delta[r] = h->delta[t0 + r];
    }
    F(scores)(a, m, t0, rows, s0, cols, h->k, h->mask);
    F(exponentials)(a, m, t0, s0, cols, top);
    for (int64_t r = 0; blind && r < rows; r++)
        for (int64_t c = 0; h->lse[t0 + r] == (T)-INFINITY && c < cols; c++)
            m->p[c * ATT_Q + r] = 0;
    if (h->gv)
        F(product)(cols, d, rows, m->p, ATT_Q, 1, h->gout + t0 * d, d, h->gv + s0 * d, d, true);
    if (!h->gq && !h->gk)
        return;
    F(product)(cols, ATT_Q, d, h->v + s0 * a->v[2], a->v[2], 1, m->gout, ATT_Q, m->g, ATT_Q, false);
    const T scale = (T)a->scale;
    for (int64_t c = 0; c < cols; c++) {
        const T *p = m->p + c * ATT_Q;
        T *g = m->g + c * ATT_Q;
        _Pragma("omp simd") for (int64_t r = 0; r < ATT_Q; r++) g[r] = p[r] * (g[r] - delta[r]) * scale;
    }
    if (h->gq)
        F(product)(rows, d, cols, m->g, 1, ATT_Q, h->k + s0 * a->k[2], a->k[2], h->gq + t0 * d, d, true);
    if (h->gk)
        F(product)(cols, d, rows, m->g, ATT_Q, 1, h->q + t0 * a->q[2], a->q[2], h->gk + s0 * d, d, true);
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
    const size_t each = F(room_size)(a, mask), own = parts > 1 ? (size_t)(heads * parts * per) : 0;
    char *memory = heads > 0 && d > 0 ? td__alloc(each * (size_t)threads + sizeof(T) * (own + (size_t)rows)) : NULL;
    if (!memory)
        return;
    T *part = (T *)(void *)(memory + each * (size_t)threads), *delta = part + own;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const F(room) m = F(room_at)(a, mask, memory + (size_t)thread_index(threads) * each);
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
#undef F
