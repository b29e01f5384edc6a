/* tensor/cpu/attention_tile.h: products of matrices that lie in the cache, and turning a tile over, for one element type T; attention.c includes it
 * once for float and once for double.
 *
 * C (m,n) = or += A B. B's rows are n neighbours; A's element (i,l) is a[i*row + l*step], so A may be read transposed at no cost. BLAS would copy
 * both before each of these products, which are too small for that to pay. An element is one chain of multiply-adds over l, whichever
 * block it falls into, so its bits do not depend on m and n. Expects T, the integer I of its size, F(name) and attention.c's VEC, ROWS, multiply_add
 * and corner.
 */

typedef T F(vec) __attribute__((vector_size(VEC)));
typedef I F(ints) __attribute__((vector_size(VEC)));
enum { F(LANES) = VEC / sizeof(T) };

static inline __attribute__((always_inline)) F(vec) F(load)(const T *p)
{
    F(vec) v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline __attribute__((always_inline)) void F(store)(T *p, F(vec) v)
{
    memcpy(p, &v, sizeof v);
}

/* rows * (wide vectors) of C in registers, terms `from` to `to`; rows and wide are constants after inlining */
static inline __attribute__((always_inline)) void F(block)(const int rows, const int wide, int64_t from, int64_t to, const T *a, int64_t row,
                                                           int64_t step, const T *b, int64_t ldb, T *c, int64_t ldc, bool add)
{
    F(vec) sum[ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++)
            sum[i][j] = (F(vec)){ 0 };
    for (int64_t l = from; l < to; l++) {
        F(vec) bl[2];
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++)
            bl[j] = F(load)(b + l * ldb + j * F(LANES));
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
            for (int j = 0; j < wide; j++)
                sum[i][j] = F(multiply_add)(a[i * row + l * step], bl[j], sum[i][j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < wide; j++) {
            T *at = c + i * ldc + j * F(LANES);
            F(store)(at, add ? F(load)(at) + sum[i][j] : sum[i][j]);
        }
}

/* The terms that rows i … i + rows of C need, of k */
static inline __attribute__((always_inline)) int64_t F(first)(corner z, int64_t i)
{
    return z.kind == BEFORE && i > z.lead ? i - z.lead : 0;
}

static inline __attribute__((always_inline)) int64_t F(end)(corner z, int64_t i, int64_t rows, int64_t k)
{
    return z.kind == AFTER && i + rows + z.lead < k ? i + rows + z.lead : k;
}

/* All rows of `wide` vectors of columns. */
static inline __attribute__((always_inline)) void F(columns)(const int wide, corner z, int64_t m, int64_t k, const T *a, int64_t row, int64_t step,
                                                             const T *b, int64_t ldb, T *c, int64_t ldc, bool add)
{
    int64_t i = 0;
    for (; i + ROWS <= m; i += ROWS)
        F(block)(ROWS, wide, F(first)(z, i), F(end)(z, i, ROWS, k), a + i * row, row, step, b, ldb, c + i * ldc, ldc, add);
    for (; i + 2 <= m; i += 2)
        F(block)(2, wide, F(first)(z, i), F(end)(z, i, 2, k), a + i * row, row, step, b, ldb, c + i * ldc, ldc, add);
    for (; i < m; i++)
        F(block)(1, wide, F(first)(z, i), F(end)(z, i, 1, k), a + i * row, row, step, b, ldb, c + i * ldc, ldc, add);
}

/* The last n < F(LANES) columns: B's, filled up with zeros, and C's go through a copy. */
static void F(last_columns)(corner z, int64_t m, int64_t n, int64_t k, const T *a, int64_t row, int64_t step, const T *b, int64_t ldb, T *c, int64_t ldc,
                            bool add)
{
    T bs[ATT_K * F(LANES)], cs[F(LANES)];
    for (int64_t l = 0; l < k; l++)
        for (int64_t j = 0; j < F(LANES); j++)
            bs[l * F(LANES) + j] = j < n ? b[l * ldb + j] : 0;
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++)
            cs[j] = add ? c[i * ldc + j] : 0;
        for (int64_t j = n; j < F(LANES); j++)
            cs[j] = 0;
        F(block)(1, 1, F(first)(z, i), F(end)(z, i, 1, k), a + i * row, row, step, bs, F(LANES), cs, F(LANES), add);
        for (int64_t j = 0; j < n; j++)
            c[i * ldc + j] = cs[j];
    }
}

/* k is at most ATT_K where n is no multiple of a vector's lanes */
static void F(product)(corner z, int64_t m, int64_t n, int64_t k, const T *a, int64_t row, int64_t step, const T *b, int64_t ldb, T *c, int64_t ldc,
                       bool add)
{
    int64_t j = 0;
    for (; j + 2 * F(LANES) <= n; j += 2 * F(LANES))
        F(columns)(2, z, z.kind == UNREAD ? smaller(m, j + 2 * F(LANES) + z.lead) : m, k, a, row, step, b + j, ldb, c + j, ldc, add);
    for (; j + F(LANES) <= n; j += F(LANES))
        F(columns)(1, z, z.kind == UNREAD ? smaller(m, j + F(LANES) + z.lead) : m, k, a, row, step, b + j, ldb, c + j, ldc, add);
    if (j < n)
        F(last_columns)(z, m, n - j, k, a, row, step, b + j, ldb, c + j, ldc, add);
}

/* v[j][i] = v[i][j]: log2(LANES) times rows i and i + LANES/2 are zipped to rows 2i and 2i + 1. */
static inline __attribute__((always_inline)) void F(turn_square)(F(vec) *v)
{
    enum { half = F(LANES) / 2 };
    F(ints) low, high;
#pragma GCC unroll 16
    for (int i = 0; i < half; i++)
        low[2 * i] = i, low[2 * i + 1] = i + F(LANES), high[2 * i] = i + half, high[2 * i + 1] = i + half + F(LANES);
#pragma GCC unroll 4
    for (int width = 1; width < F(LANES); width *= 2) {
        F(vec) t[F(LANES)];
#pragma GCC unroll 16
        for (int i = 0; i < half; i++) {
            t[2 * i] = __builtin_shuffle(v[i], v[i + half], low);
            t[2 * i + 1] = __builtin_shuffle(v[i], v[i + half], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < F(LANES); i++)
            v[i] = t[i];
    }
}

/* to[i][r] = factor * from[r][i]: r < rows of `from`, which has d columns; the other queries of the tile are zero. */
static void F(turn)(int64_t rows, int64_t d, T factor, const T *from, int64_t ld, T *to)
{
    const int64_t squares = rows / F(LANES) * F(LANES), whole = d / F(LANES) * F(LANES);
    for (int64_t r = 0; r < squares; r += F(LANES))
        for (int64_t i = 0; i < whole; i += F(LANES)) {
            F(vec) v[F(LANES)];
#pragma GCC unroll 16
            for (int j = 0; j < F(LANES); j++)
                v[j] = factor * F(load)(from + (r + j) * ld + i);
            F(turn_square)(v);
#pragma GCC unroll 16
            for (int j = 0; j < F(LANES); j++)
                F(store)(to + (i + j) * ATT_Q + r, v[j]);
        }
    for (int64_t i = 0; i < d; i++) {
        for (int64_t r = i < whole ? squares : 0; r < rows; r++)
            to[i * ATT_Q + r] = factor * from[r * ld + i];
        for (int64_t r = rows; r < ATT_Q; r++)
            to[i * ATT_Q + r] = 0;
    }
}
