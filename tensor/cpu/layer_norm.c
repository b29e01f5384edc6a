/* tensor/cpu/layer_norm.c: rows brought to mean 0 and variance 1 (layer norm), or to a mean square of 1 (RMS norm: no mean), and the gradients.
 *
 * x is (rows, n); w and b (n) scale and shift. A row's sums are in double (lanes.h, moments.h). Threads take
 * rows. The gradients of w and b are sums over rows: rows are cut into parts by their number alone, each part is summed in double row by row,
 * parts are added in order. Nothing depends on the number of threads.
 */
#include "cpu.h"
#include "moments.h"
#include "stream.h"

enum { PARTS = 64, PART_ROWS = 16, COLUMNS = 64, SIDE = 4 };     /* SIDE: rows taken together by column_sums */

static int64_t rows_of_part(int64_t rows)      /* at most PARTS parts, of at least PART_ROWS rows                            */
{
    int64_t size = (rows + PARTS - 1) / PARTS;
    return size > PART_ROWS ? size : PART_ROWS;
}

#define NORM(T, F)                                                                                           \
    static void F(norm)(int64_t rows, int64_t n, T *y, T *mean, T *rstd, const T *x, const T *w, const T *b, double eps)  \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (rows > 1 && rows * n >= TD_PARALLEL)")                \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            const T *restrict xr = x + r * n;                                                                \
            T *restrict yr = y + r * n;                                                                      \
            double mu = 0, square;                                                                           \
            td__ask(xr + n, (size_t)n * sizeof(T));                                                          \
            if (mean) {                                                                                      \
                F(td__moments)(n, xr, &mu, &square);                                                         \
                mean[r] = (T)mu;                                                                             \
            } else {                                                                                         \
                TD_LANES_SUM(square, n, (double)xr[i] * (double)xr[i]);                                      \
            }                                                                                                \
            const T m = (T)mu, k = (T)(1 / sqrt(square / (double)n + eps));                                  \
            rstd[r] = k;                                                                                     \
            if (w && b)                                                                                      \
                _Pragma("omp simd")                                                                          \
                for (int64_t i = 0; i < n; i++)                                                              \
                    yr[i] = (xr[i] - m) * k * w[i] + b[i];                                                   \
            else if (w)                                                                                      \
                _Pragma("omp simd")                                                                          \
                for (int64_t i = 0; i < n; i++)                                                              \
                    yr[i] = (xr[i] - m) * k * w[i];                                                          \
            else if (b)                                                                                      \
                _Pragma("omp simd")                                                                          \
                for (int64_t i = 0; i < n; i++)                                                              \
                    yr[i] = (xr[i] - m) * k + b[i];                                                          \
            else                                                                                             \
                _Pragma("omp simd")                                                                          \
                for (int64_t i = 0; i < n; i++)                                                              \
                    yr[i] = (xr[i] - m) * k;                                                                 \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* sums of g = gy*w (scaled) or gy, and of g*h with h the normalised row */                              \
    static inline __attribute__((always_inline)) void F(row_sums)(const bool scaled, int64_t n, const T *gy, const T *x, const T *w, T m, T k, double *g,  \
                                                                  double *gh)                                \
    {                                                                                                        \
        td__wide one[TD_WIDES] = { { 0 } }, two[TD_WIDES] = { { 0 } };                                       \
        double lane[2][TD_LANES];                                                                            \
        int64_t i = 0;                                                                                       \
        for (; i + TD_LANES <= n; i += TD_LANES)                                                             \
            TD_EACH_WIDE(p) {                                                                                \
                const int64_t at = i + p * TD_WIDE;                                                          \
                td__wide v = F(td__widen)(F(td__load)(gy + at));                                             \
                if (scaled)                                                                                  \
                    v *= F(td__widen)(F(td__load)(w + at));                                                  \
                one[p] += v;                                                                                 \
                two[p] += v * F(td__widen)((F(td__load)(x + at) - m) * k);                                   \
            }                                                                                                \
        memcpy(lane[0], one, sizeof one);                                                                    \
        memcpy(lane[1], two, sizeof two);                                                                    \
        for (int j = 0; i + j < n; j++) {                                                                    \
            const double v = (double)gy[i + j] * (scaled ? (double)w[i + j] : 1);                            \
            lane[0][j] += v;                                                                                 \
            lane[1][j] += v * (double)((x[i + j] - m) * k);                                                  \
        }                                                                                                    \
        *g = td__lanes_total(lane[0]);                                                                       \
        *gh = td__lanes_total(lane[1]);                                                                      \
    }                                                                                                        \
                                                                                                             \
    /* With h the normalised row and g = gy*w: gx = rstd * (g - mean(g) - h*mean(g*h)); RMS norm has no mean(g). */  \
    static void F(row_grad)(int64_t n, T *restrict gx, const T *restrict gy, const T *restrict x, const T *restrict w, T m, T k,  \
                            bool centre, bool add)                                                           \
    {                                                                                                        \
        double g, gh;                                                                                        \
        if (w)                                                                                               \
            F(row_sums)(true, n, gy, x, w, m, k, &g, &gh);                                                   \
        else                                                                                                 \
            F(row_sums)(false, n, gy, x, w, m, k, &g, &gh);                                                  \
        g = centre ? g : 0;                                                                                  \
        const T a = (T)(g / (double)n), c = (T)(gh / (double)n);                                             \
        if (w && add)                                                                                        \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                  \
                gx[i] += k * (gy[i] * w[i] - a - (x[i] - m) * k * c);                                        \
        else if (w)                                                                                          \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                  \
                gx[i] = k * (gy[i] * w[i] - a - (x[i] - m) * k * c);                                         \
        else if (add)                                                                                        \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                  \
                gx[i] += k * (gy[i] - a - (x[i] - m) * k * c);                                               \
        else                                                                                                 \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = 0; i < n; i++)                                                                  \
                gx[i] = k * (gy[i] - a - (x[i] - m) * k * c);                                                \
    }                                                                                                        \
                                                                                                             \
    /* sw += gy*h, sb += gy (either may be NULL), row by row, of a few rows at a time, so that the sums are read and written once for all of them */  \
    static inline __attribute__((always_inline)) void F(column_sums_of)(const int rows, int64_t n, double *restrict sw, double *restrict sb, const T *gy,  \
                                                                        const T *x, const T *m, const T *k)  \
    {                                                                                                        \
        if (sw)                                                                                              \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = 0; i < n; i++) {                                                                \
                double s = sw[i];                                                                            \
                _Pragma("GCC unroll 4")                                                                      \
                for (int r = 0; r < rows; r++)                                                               \
                    s += (double)gy[r * n + i] * (double)((x[r * n + i] - m[r]) * k[r]);                     \
                sw[i] = s;                                                                                   \
            }                                                                                                \
        if (sb)                                                                                              \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = 0; i < n; i++) {                                                                \
                double s = sb[i];                                                                            \
                _Pragma("GCC unroll 4")                                                                      \
                for (int r = 0; r < rows; r++)                                                               \
                    s += (double)gy[r * n + i];                                                              \
                sb[i] = s;                                                                                   \
            }                                                                                                \
    }                                                                                                        \
    static void F(column_sums)(int rows, int64_t n, double *sw, double *sb, const T *gy, const T *x, const T *mean, const T *rstd)  \
    {                                                                                                        \
        T m[SIDE] = { 0 };                                                                                   \
        if (mean)                                                                                            \
            memcpy(m, mean, (size_t)rows * sizeof *m);                                                       \
        if (rows == SIDE)                                                                                    \
            F(column_sums_of)(SIDE, n, sw, sb, gy, x, m, rstd);                                              \
        else                                                                                                 \
            for (int r = 0; r < rows; r++)                                                                   \
                F(column_sums_of)(1, n, sw, sb, gy + r * n, x ? x + r * n : NULL, m + r, rstd + r);          \
    }                                                                                                        \
                                                                                                             \
    /* into[j] (=|+=) the sum over the parts, in order; they lie `step` apart */                             \
    static void F(add_parts)(int64_t parts, int64_t step, int64_t n, T *into, const double *part, bool add)  \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (parts * n >= TD_PARALLEL)")                           \
        for (int64_t begin = 0; begin < n; begin += COLUMNS) {                                               \
            const int64_t m = n - begin < COLUMNS ? n - begin : COLUMNS;                                     \
            double sum[COLUMNS] = { 0 };                                                                     \
            for (int64_t p = 0; p < parts; p++)                                                              \
                for (int64_t j = 0; j < m; j++)                                                              \
                    sum[j] += part[p * step + begin + j];                                                    \
            for (int64_t j = 0; j < m; j++)                                                                  \
                into[begin + j] = (T)((add ? (double)into[begin + j] : 0) + sum[j]);                         \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /* work: 2*n doubles for each part, or NULL where neither gw nor gb is wanted */                         \
    static void F(norm_grad)(int64_t rows, int64_t n, T *gx, T *gw, T *gb, const T *gy, const T *x, const T *w, const T *mean, const T *rstd,  \
                             double *work, bool add_x, bool add_w, bool add_b)                               \
    {                                                                                                        \
        const int64_t size = rows_of_part(rows), parts = (rows + size - 1) / size;                           \
        _Pragma("omp parallel for schedule(static) if (parts > 1 && rows * n >= TD_PARALLEL)")               \
        for (int64_t p = 0; p < parts; p++) {                                                                \
            const int64_t end = (p + 1) * size < rows ? (p + 1) * size : rows;                               \
            double *restrict sw = gw ? work + 2 * p * n : NULL, *restrict sb = gb ? work + (2 * p + 1) * n : NULL;  \
            if (work)                                                                                        \
                memset(work + 2 * p * n, 0, 2 * (size_t)n * sizeof *work);                                   \
            for (int64_t r = p * size; r < end; r += SIDE) {                                                 \
                const int side = end - r < SIDE ? (int)(end - r) : SIDE;                                     \
                for (int64_t q = r; q < r + side && gx; q++) {                                               \
                    td__ask(gy + (q + 1) * n, (size_t)n * sizeof(T));                                        \
                    td__ask(x + (q + 1) * n, (size_t)n * sizeof(T));                                         \
                    F(row_grad)(n, gx + q * n, gy + q * n, x + q * n, w, mean ? mean[q] : 0, rstd[q], mean != NULL, add_x);  \
                }                                                                                            \
                F(column_sums)(side, n, sw, sb, gy + r * n, x ? x + r * n : NULL, mean ? mean + r : NULL, rstd + r);  \
            }                                                                                                \
        }                                                                                                    \
        if (gw)                                                                                              \
            F(add_parts)(parts, 2 * n, n, gw, work, add_w);                                                  \
        if (gb)                                                                                              \
            F(add_parts)(parts, 2 * n, n, gb, work + n, add_b);                                              \
    }
#define F32(name) name##_f32
#define F64(name) name##_f64
NORM(float, F32)
NORM(double, F64)

void K(layer_norm)(td_dtype t, td_dtype ty, int64_t rows, int64_t n, void *y, void *mean, void *rstd, const void *x, const void *w, const void *b,
                   double eps)
{
    (void)ty;                        /* t                                                                                           */
    if (n <= 0 && rows > 0) {        /* rows of nothing: nothing to write; saved numbers that mean nothing                          */
        size_t bytes = (t == TD_F32 ? sizeof(float) : sizeof(double)) * (size_t)rows;
        if (mean)
            memset(mean, 0, bytes);
        memset(rstd, 0, bytes);
    } else if (t == TD_F32) {
        norm_f32(rows, n, y, mean, rstd, x, w, b, eps);
    } else {
        norm_f64(rows, n, y, mean, rstd, x, w, b, eps);
    }
}

void K(layer_norm_grad)(td_dtype t, td_dtype ty, int64_t rows, int64_t n, void *gx, void *gw, void *gb, const void *gy, const void *x,
                        const void *w, const void *mean, const void *rstd, bool add_x, bool add_w, bool add_b)
{
    (void)ty;
    double *work = NULL;
    if (n <= 0)
        return;
    if (gw || gb) {
        const int64_t size = rows_of_part(rows), parts = (rows + size - 1) / size;
        work = td__alloc(sizeof *work * 2 * (size_t)n * (size_t)(parts > 0 ? parts : 1));
        if (!work)
            return;
    }
    if (t == TD_F32)
        norm_grad_f32(rows, n, gx, gw, gb, gy, x, w, mean, rstd, work, add_x, add_w, add_b);
    else
        norm_grad_f64(rows, n, gx, gw, gb, gy, x, w, mean, rstd, work, add_x, add_w, add_b);
    td__free(work);
}
