/* tensor/cpu/batch_norm_rows.h: what batch normalisation does with one row, the elements of a channel in one image, for an element type T; batch_norm.h
 * includes it for float and for double. Expects T and F(name).
 *
 * Sums are in double, in 16 lanes per channel that go on from image to image, so the order depends on the shape alone (lanes.h, moments.h).
 */

/* How the gradient of what relu left is found: all of it (no relu), where y is positive, or where a*x + d is. */
#ifndef TD_KEEP
#define TD_KEEP
enum { KEEP_ALL, KEEP_BY_Y, KEEP_BY_X };
#endif

static inline __attribute__((always_inline)) T F(kept)(const int keep, T gy, T y, T x, T a, T d)
{
    return keep == KEEP_ALL || (keep == KEEP_BY_Y ? y : a * x + d) > 0 ? gy : 0;
}

/* lane[0..16) += g, lane[16..32) += g * (x - mean), g what is kept of gy */
static inline __attribute__((always_inline)) void F(row_products_of)(const int keep, int64_t n, const T *restrict gy, const T *restrict y, const T *restrict x, T a,
                                                                     T d, double mean, double *lane)
{
    td__wide one[TD_WIDES], two[TD_WIDES];
    memcpy(one, lane, sizeof one);
    memcpy(two, lane + TD_LANES, sizeof two);
    int64_t i = 0;
    for (; i + TD_LANES <= n; i += TD_LANES)
        TD_EACH_WIDE(p) {
            const int64_t at = i + p * TD_WIDE;
            const F(td__narrow) v = F(td__load)(x + at);
            F(td__narrow) left = F(td__load)(gy + at);
            if (keep == KEEP_BY_Y)
                left = (F(td__narrow))((__typeof__(v > 0))left & (F(td__load)(y + at) > 0));
            else if (keep == KEEP_BY_X)
                left = (F(td__narrow))((__typeof__(v > 0))left & (a * v + d > 0));
            const td__wide g = F(td__widen)(left);
            one[p] += g;
            two[p] += g * (F(td__widen)(v) - mean);
        }
    memcpy(lane, one, sizeof one);
    memcpy(lane + TD_LANES, two, sizeof two);
    for (int j = 0; i + j < n; j++) {
        const double g = (double)F(kept)(keep, gy[i + j], keep == KEEP_BY_Y ? y[i + j] : 0, x[i + j], a, d);
        lane[j] += g;
        lane[TD_LANES + j] += g * ((double)x[i + j] - mean);
    }
}

static inline void F(row_products)(int keep, int64_t n, const T *gy, const T *y, const T *x, T a, T d, double mean, double *lane)
{
    if (keep == KEEP_ALL)
        F(row_products_of)(KEEP_ALL, n, gy, y, x, a, d, mean, lane);
    else if (keep == KEEP_BY_Y)
        F(row_products_of)(KEEP_BY_Y, n, gy, y, x, a, d, mean, lane);
    else
        F(row_products_of)(KEEP_BY_X, n, gy, y, x, a, d, mean, lane);
}

/* mean[j] and square[j], the sum of (x - mean)^2, of the m channels from c0 on, inner > 1 */
static inline void F(channel_squares)(int64_t n, int64_t c, int64_t inner, int64_t c0, int m, const T *x, double *mean, double *square)
{
    double lane[TOGETHER_MOST][2 * TD_LANES];
    const T *const from = x + c0 * inner;
    for (int j = 0; j < m; j++)
        mean[j] = F(td__near)(inner, from + j * inner);
    for (int pass = sizeof(T) == sizeof(float); pass < 2; pass++) {
        memset(lane, 0, sizeof lane[0] * (size_t)m);
        for (int64_t i = 0; i < n; i++)
            for (int j = 0; j < m; j++) {
                const T *row = from + (i * c + j) * inner, *next = j + 1 < m ? row + inner : from + (i + 1) * c * inner;
                for (int64_t k = 0; k < inner; k += TD_BLOCK) {
                    const int64_t count = inner - k < TD_BLOCK ? inner - k : TD_BLOCK;
                    td__ask(k + TD_BLOCK < inner ? row + k + TD_BLOCK : next, (size_t)count * sizeof(T));
                    F(td__moments_add)(count, row + k, mean[j], lane[j]);
                }
            }
        for (int j = 0; j < m; j++)
            F(td__moments_end)(n * inner, mean[j], lane[j], &mean[j], &square[j]);
    }
}

/* sum[j] of what is kept of gy, product[j] of that times x - mean, of the m channels from c0 on, inner > 1; a, d, mean: theirs */
static inline void F(channel_products)(int keep, int64_t n, int64_t c, int64_t inner, int64_t c0, int m, const T *gy, const T *y, const T *x, const T *a, const T *d,
                                const double *mean, double *sum, double *product)
{
    double lane[TOGETHER_MOST][2 * TD_LANES];
    memset(lane, 0, sizeof lane[0] * (size_t)m);
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            const int64_t row = (i * c + c0 + j) * inner, next = j + 1 < m ? row + inner : ((i + 1) * c + c0) * inner;
            for (int64_t k = 0; k < inner; k += TD_BLOCK) {
                const int64_t at = row + k, count = inner - k < TD_BLOCK ? inner - k : TD_BLOCK;
                const int64_t then = k + TD_BLOCK < inner ? at + TD_BLOCK : next;
                td__ask(x + then, (size_t)count * sizeof(T));
                td__ask(gy + then, (size_t)count * sizeof(T));
                if (y)
                    td__ask(y + then, (size_t)count * sizeof(T));
                F(row_products)(keep, count, gy + at, y ? y + at : NULL, x + at, a ? a[j] : 0, d ? d[j] : 0, mean[j], lane[j]);
            }
        }
    for (int j = 0; j < m; j++) {
        sum[j] = td__lanes_total(lane[j]);
        product[j] = td__lanes_total(lane[j] + TD_LANES);
    }
}

/* A piece of a result is computed in its place, or in `room` where it is to pass the caches. */
static inline T *F(place)(T *to, T *room, bool streamed)
{
    return streamed ? room : to;
}

static inline void F(placed)(T *to, const T *room, int64_t n, bool streamed)
{
    if (streamed)
        td__stream(to, room, (size_t)n * sizeof(T));
}
