/* tensor/cpu/attention.c: softmax(scale * q k^T + mask) v and its gradients without the matrix of scores (FlashAttention-2, Dao 2023).
 *
 * Scores exist one tile at a time: ATT_K keys by ATT_Q queries, in a thread's own piece of memory. Forward: a unit of work is a tile
 * of queries; it walks the keys in order, keeping each query's maximum and sum so far and rescaling what it has of the output when the
 * maximum grows. Backward: a unit is a head, or where heads are few one of a fixed number of parts of its key tiles; from the saved
 * log-sum-exp it computes a tile's probabilities again and adds to all three gradients, queries in order. Parts have gradients of q
 * of their own, which are added up in order at the end. So nothing depends on the number of threads: which thread takes a unit does
 * not matter, and within a unit everything runs on that thread alone.
 *
 * Causal is aligned at the top left: query t sees keys 0 … t. Keys that a tile's queries cannot see are not computed. A row that sees
 * no key at all is zero, its log-sum-exp -inf, and it gives no gradient. NaN is never taken for "sees nothing".
 */
#include "vecmath.h"
#include <omp.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum {
    ATT_Q = 64, ATT_K = 128,         /* a tile: 32 KiB of f32. ATT_K is a multiple of ATT_Q                                       */
    ATT_UNITS = 8,                   /* with fewer heads than this, a head's key tiles are cut into parts                         */
};

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int threads_now(void)
{
    return omp_in_parallel() ? 1 : omp_get_max_threads();
}

static int thread_index(int threads)
{
    return threads > 1 ? omp_get_thread_num() : 0;
}

/* How many parts a head's keys are cut into: a matter of shapes only. */
static int64_t parts_of(const td_attention_shape *a)
{
    const int64_t heads = a->n * a->h, tiles = (a->s + ATT_K - 1) / ATT_K;
    const int64_t parts = heads >= ATT_UNITS || heads == 0 ? 1 : smaller((ATT_UNITS + heads - 1) / heads, tiles);
    return parts > 0 ? parts : 1;
}

/* What a product of a tile on the diagonal leaves out: key s is seen by queries t >= s alone, in the tile by those of t >= s - lead. */
typedef struct {
    enum {
        UNREAD,                      /* C's rows are keys, its columns queries: elements whose query does not see the key are not made */
        AFTER,                       /* C's rows are queries, terms are keys: those after the query's last are zero            */
        BEFORE,                      /* C's rows are keys, terms are queries: those before the key's first are zero             */
    } kind;
    int64_t lead;                    /* of the tile's first query over its first key; where nothing is hidden, large            */
} corner;

static corner corner_of(const td_attention_shape *a, int kind, int64_t t0, int64_t s0)
{
    return (corner){ kind, a->causal ? t0 - s0 : INT32_MAX };
}

/* a*b + c, fused where the instruction set can; a vector's bytes; how many rows of two vectors (attention_tile.h) the registers hold. */
#define MULTIPLY_ADD(name, T, V, EXPR) static inline __attribute__((always_inline)) V multiply_add_##name(T a, V b, V c) { return EXPR; }
#if defined(__AVX512F__)
enum { VEC = 64, ROWS = 8 };
MULTIPLY_ADD(f32, float, __m512, _mm512_fmadd_ps(_mm512_set1_ps(a), b, c))
MULTIPLY_ADD(f64, double, __m512d, _mm512_fmadd_pd(_mm512_set1_pd(a), b, c))
#elif defined(__AVX2__)
enum { VEC = 32, ROWS = 4 };
MULTIPLY_ADD(f32, float, __m256, _mm256_fmadd_ps(_mm256_set1_ps(a), b, c))
MULTIPLY_ADD(f64, double, __m256d, _mm256_fmadd_pd(_mm256_set1_pd(a), b, c))
#else
enum { VEC = 16, ROWS = 4 };
typedef float four_f32 __attribute__((vector_size(VEC)));
typedef double two_f64 __attribute__((vector_size(VEC)));
MULTIPLY_ADD(f32, float, four_f32, a * b + c)
MULTIPLY_ADD(f64, double, two_f64, a * b + c)
#endif

/* exp in place of as many elements as one call of the vector routine makes, at least */
enum { GROUP_f32 = TD_GROUP_F32, GROUP_f64 = TD_GROUP_F64 };
static inline void exp_group_f32(float *x) { td__exp_f32_group(x, x); }
static inline void exp_group_f64(double *x) { td__exp_f64_group(x, x); }

#define T float
#define I int32_t
#define F(name) name##_f32
#include "attention_body.h"
#define T double
#define I int64_t
#define F(name) name##_f64
#include "attention_body.h"

void K(attention)(td_dtype t, const td_attention_shape *a, void *out, void *lse, const void *q, const void *k, const void *v,
                  const void *mask)
{
    if (t == TD_F32)
        attention_f32(a, out, lse, q, k, v, mask);
    else
        attention_f64(a, out, lse, q, k, v, mask);
}

void K(attention_grad)(td_dtype t, const td_attention_shape *a, void *gq, void *gk, void *gv, const void *gout, const void *out,
                       const void *lse, const void *q, const void *k, const void *v, const void *mask, bool add_q, bool add_k, bool add_v)
{
    if (t == TD_F32)
        attention_grad_f32(a, gq, gk, gv, gout, out, lse, q, k, v, mask, add_q, add_k, add_v);
    else
        attention_grad_f64(a, gq, gk, gv, gout, out, lse, q, k, v, mask, add_q, add_k, add_v);
}
