/* tensor/cpu/attention_body.h: attention for one element type T; attention.c includes it once for float and once for double.
 *
 * A tile's scores lie in rows of ATT_K elements. Places that are masked hold -inf until the exponential makes them 0; what a causal
 * row does not see is not touched before that. Expects T and F(name); undefines both at the end.
 */

/* C = alpha * op(A) op(B) + beta * C */
static void F(product)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, double alpha, const T *a, int64_t lda, const T *b, int64_t ldb,
                       double beta, T *c, int64_t ldc)
{
    K(gemm)(sizeof(T) == sizeof(float) ? TD_F32 : TD_F64, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

/* The largest of `first` and p[0..n), NaN left out: its exponential carries it on. */
static T F(largest)(const T *p, int64_t n, T first)
{
    T lane[ATT_LANES];
    int64_t i = 0;
    for (int j = 0; j < ATT_LANES; j++)
        lane[j] = first;
    for (; i + ATT_LANES <= n; i += ATT_LANES) {
        _Pragma("omp simd") for (int j = 0; j < ATT_LANES; j++) lane[j] = p[i + j] > lane[j] ? p[i + j] : lane[j];
    }
    for (; i < n; i++)
        lane[0] = p[i] > lane[0] ? p[i] : lane[0];
    for (int j = 1; j < ATT_LANES; j++)
        lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    return lane[0];
}

static double F(total)(const T *p, int64_t n)
{
    T lane[ATT_LANES] = { 0 };
    double sum = 0;
    int64_t i = 0;
    for (; i + ATT_LANES <= n; i += ATT_LANES) {
        _Pragma("omp simd") for (int j = 0; j < ATT_LANES; j++) lane[j] += p[i + j];
    }
    for (int j = 0; i < n; i++, j++)
        lane[j] += p[i];
    for (int j = 0; j < ATT_LANES; j++)
        sum += (double)lane[j];
    return sum;
}

/* p[0..n) = exp(p - top), and 0 where p is -inf; p[n..cols) = 0 */
static void F(exponentials)(T *p, int64_t n, int64_t cols, T top)
{
    T e[ATT_K];
    for (int64_t i = 0; i < n; i++)
        e[i] = p[i] == (T)-INFINITY ? 0 : p[i] - top;
    F(td__vexp)(n, e, e);
    for (int64_t i = 0; i < n; i++)
        p[i] = p[i] == (T)-INFINITY ? 0 : e[i];
    for (int64_t i = n; i < cols; i++)
        p[i] = 0;
}

/* mask: of this query, at this tile's first key */
static void F(masked)(const td_attention_shape *a, T *p, int64_t n, const void *mask)
{
    const int64_t step = a->mask[3];
    if (a->mask_bool) {
        const uint8_t *m = mask;
        for (int64_t i = 0; i < n; i++)
            p[i] = m[i * step] ? p[i] : (T)-INFINITY;
    } else {
        const T *m = mask;
        for (int64_t i = 0; i < n; i++)
            p[i] += m[i * step];
    }
}

/* p: the scores of queries t0 … t0 + rows against keys s0 … s0 + cols; q, k, mask are this head's */
static void F(scores)(const td_attention_shape *a, T *p, int64_t t0, int64_t rows, int64_t s0, int64_t cols, const T *q, const T *k,
                      const void *mask)
{
    const size_t size = a->mask_bool ? 1 : sizeof(T);
    F(product)(false, true, rows, cols, a->d, a->scale, q + t0 * a->q[2], a->q[2], k + s0 * a->k[2], a->k[2], 0, p, ATT_K);
    for (int64_t r = 0; mask && r < rows; r++)
        F(masked)(a, p + r * ATT_K, seen(a, t0 + r, s0, cols),
                  (const char *)mask + (size_t)((t0 + r) * a->mask[2] + s0 * a->mask[3]) * size);
}

/* ---- forward ------------------------------------------------------------------------------------------------------------------- */

/* out and lse at query t0, out's rows a->out[2] apart; the rest is this head's; p: room for a tile */
static void F(query_tile)(const td_attention_shape *a, T *p, int64_t t0, int64_t rows, T *out, T *lse, const T *q, const T *k, const T *v,
                          const void *mask)
{
    const int64_t d = a->d, row = a->out[2], end = a->causal ? smaller(a->s, t0 + rows) : a->s;
    T most[ATT_Q], keep[ATT_Q];
    double sum[ATT_Q] = { 0 };
    for (int64_t r = 0; r < rows; r++)
        most[r] = (T)-INFINITY;
    for (int64_t s0 = 0; s0 < end; s0 += ATT_K) {
        const int64_t cols = smaller(ATT_K, end - s0);
        F(scores)(a, p, t0, rows, s0, cols, q, k, mask);
        for (int64_t r = 0; r < rows; r++) {
            const T top = F(largest)(p + r * ATT_K, seen(a, t0 + r, s0, cols), most[r]);
            keep[r] = most[r] == (T)-INFINITY ? 0 : most[r] - top;
            most[r] = top;
        }
        F(td__vexp)(rows, keep, keep);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t n = seen(a, t0 + r, s0, cols);
            F(exponentials)(p + r * ATT_K, n, cols, most[r]);
            sum[r] = sum[r] * (double)keep[r] + F(total)(p + r * ATT_K, n);
            for (int64_t i = 0; s0 > 0 && keep[r] != 1 && i < d; i++)
                out[r * row + i] *= keep[r];
        }
        F(product)(false, false, rows, d, cols, 1, p, ATT_K, v + s0 * a->v[2], a->v[2], s0 > 0, out, row);
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
    T *room = units > 0 && a->d > 0 ? td__alloc(sizeof(T) * ATT_Q * ATT_K * (size_t)threads) : NULL;
    if (!room)
        return;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        T *p = room + thread_index(threads) * ATT_Q * ATT_K;
#pragma omp for schedule(dynamic, 1)
        for (int64_t u = 0; u < units; u++) {
            const int64_t i = u / tiles, t0 = (tiles - 1 - u % tiles) * ATT_Q;                        /* causal: the longest first */
            F(query_tile)(a, p, t0, smaller(ATT_Q, a->t - t0), out + F(head)(a, a->out, i) + t0 * a->out[2], lse + i * a->t + t0, q + F(head)(a, a->q, i), k + F(head)(a, a->k, i),
                          v + F(head)(a, a->v, i), F(mask_head)(a, mask, i));
        }
    }
    td__free(room);
}

/* ---- backward ------------------------------------------------------------------------------------------------------------------ */

typedef struct {
    T *gq, *gk, *gv;                 /* this head's; NULL: not wanted                                                           */
    const T *gout, *lse, *delta, *q, *k, *v;
    const void *mask;
} F(head_grad);

/* Adds what keys s0 … s0 + most give to the gradients; p and g: room for a tile each. */
static void F(key_tile)(const td_attention_shape *a, const F(head_grad) *h, T *p, T *g, int64_t s0, int64_t most)
{
    const int64_t d = a->d;
    for (int64_t t0 = a->causal ? s0 : 0; t0 < a->t; t0 += ATT_Q) {
        const int64_t rows = smaller(ATT_Q, a->t - t0), cols = a->causal ? smaller(most, t0 + rows - s0) : most;
        F(scores)(a, p, t0, rows, s0, cols, h->q, h->k, h->mask);
        for (int64_t r = 0; r < rows; r++) {
            const T lse = h->lse[t0 + r];
            F(exponentials)(p + r * ATT_K, lse == (T)-INFINITY ? 0 : seen(a, t0 + r, s0, cols), cols, lse);
        }
        if (h->gv)
            F(product)(true, false, cols, d, rows, 1, p, ATT_K, h->gout + t0 * d, d, 1, h->gv + s0 * d, d);
        if (!h->gq && !h->gk)
            continue;
        F(product)(false, true, rows, cols, d, 1, h->gout + t0 * d, d, h->v + s0 * a->v[2], a->v[2], 0, g, ATT_K);
        for (int64_t r = 0; r < rows; r++) {
            const T delta = h->delta[t0 + r], *pr = p + r * ATT_K;
            T *gr = g + r * ATT_K;
            for (int64_t i = 0; i < cols; i++)
                gr[i] = pr[i] * (gr[i] - delta);
        }
        if (h->gq)
            F(product)(false, false, rows, d, cols, a->scale, g, ATT_K, h->k + s0 * a->k[2], a->k[2], 1, h->gq + t0 * d, d);
        if (h->gk)
            F(product)(true, false, cols, d, rows, a->scale, g, ATT_K, h->q + t0 * a->q[2], a->q[2], 1, h->gk + s0 * d, d);
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
    /* one piece of memory: delta, the parts' gradients of q, the threads' tiles */
    const size_t tiles = (size_t)2 * ATT_Q * ATT_K * (size_t)threads, own = parts > 1 ? (size_t)(heads * parts * per) : 0;
    T *room = heads > 0 && d > 0 ? td__alloc(sizeof(T) * (tiles + own + (size_t)rows)) : NULL;
    if (!room)
        return;
    T *part = room + tiles, *delta = part + own;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        T *p = room + (int64_t)thread_index(threads) * 2 * ATT_Q * ATT_K;
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
            for (int64_t s0 = u % parts * ATT_K; s0 < a->s; s0 += parts * ATT_K) {
                const int64_t cols = smaller(ATT_K, a->s - s0);
                if (gk && !add_k)
                    memset(h.gk + s0 * d, 0, sizeof(T) * (size_t)(cols * d));
                if (gv && !add_v)
                    memset(h.gv + s0 * d, 0, sizeof(T) * (size_t)(cols * d));
                F(key_tile)(a, &h, p, p + ATT_Q * ATT_K, s0, cols);
            }
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
    td__free(room);
}
#undef T
#undef F
