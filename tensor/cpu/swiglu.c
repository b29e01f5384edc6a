/* tensor/cpu/swiglu.c: silu(gate) * up and both gradients, each in one pass (Shazeer 2020). silu(x) = x * sigmoid(x).
 *
 * In blocks on the stack, so that the exponential is the vector routine over whole blocks (vecmath.h): a value gives the same bits
 * wherever it stands. NaN in, NaN out.
 */
#include "span.h"
#include "vecmath.h"

enum { GLU_BLOCK = 256 };

/* The two gradients lie side by side with the incoming one: contiguous and of one shape. `base` is the operand that the span walks; the
 * others are found by the distance from it. */
typedef struct { char *base, *ggate, *gup; const char *g; bool add_gate, add_up; } swiglu_arg;

/* each of a block: to = or += value */
#define PUT(to, add_to, value)                                                                               \
    do {                                                                                                     \
        if (add_to) {                                                                                        \
            _Pragma("omp simd") for (int64_t i = 0; i < m; i++) to = to + (value);                           \
        } else {                                                                                             \
            _Pragma("omp simd") for (int64_t i = 0; i < m; i++) to = (value);                                \
        }                                                                                                    \
    } while (0)

#define SWIGLU(T, name)                                                                                      \
    /* sigmoids of x[i*stride] */                                                                            \
    static void sigmoids_##name(int64_t n, T *restrict s, const T *restrict x, int64_t stride)               \
    {                                                                                                        \
        for (int64_t i = 0; i < n; i++)                                                                      \
            s[i] = -x[i * stride];                                                                           \
        td__vexp_##name(n, s, s);                                                                            \
        for (int64_t i = 0; i < n; i++)                                                                      \
            s[i] = (T)1 / ((T)1 + s[i]);                                                                     \
    }                                                                                                        \
    static void span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        T *out = o, s[GLU_BLOCK];                                                                            \
        const T *gate = pa, *up = pb;                                                                        \
        for (int64_t begin = 0; begin < n; begin += GLU_BLOCK) {                                             \
            const int64_t m = n - begin < GLU_BLOCK ? n - begin : GLU_BLOCK;                                 \
            sigmoids_##name(m, s, gate + begin * sa, sa);                                                    \
            if (so == 1 && sa == 1 && sb == 1) {                                                             \
                _Pragma("omp simd") for (int64_t i = 0; i < m; i++) out[begin + i] = gate[begin + i] * s[i] * up[begin + i]; \
                continue;                                                                                    \
            }                                                                                                \
            for (int64_t i = 0; i < m; i++)                                                                  \
                out[(begin + i) * so] = gate[(begin + i) * sa] * s[i] * up[(begin + i) * sb];                \
        }                                                                                                    \
    }                                                                                                        \
    /* d/dgate = up * s * (1 + gate * (1 - s)), d/dup = gate * s */                                          \
    static void grad_span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, \
                                 const void *arg)                                                            \
    {                                                                                                        \
        const swiglu_arg *a = arg;                                                                           \
        const ptrdiff_t at = (char *)o - a->base;                                                            \
        const T *gate = pa, *up = pb, *g = (const T *)(const void *)(a->g + at);                             \
        T *ggate = a->ggate ? (T *)(void *)(a->ggate + at) : NULL, *gup = a->gup ? (T *)(void *)(a->gup + at) : NULL, s[GLU_BLOCK]; \
        for (int64_t begin = 0; begin < n; begin += GLU_BLOCK) {                                             \
            const int64_t m = n - begin < GLU_BLOCK ? n - begin : GLU_BLOCK;                                 \
            sigmoids_##name(m, s, gate + begin * sa, sa);                                                    \
            if (so == 1 && sa == 1 && sb == 1) {                                                             \
                const T *x = gate + begin, *u = up + begin, *go = g + begin;                                 \
                if (ggate)                                                                                   \
                    PUT(ggate[begin + i], a->add_gate, go[i] * u[i] * s[i] * ((T)1 + x[i] * ((T)1 - s[i]))); \
                if (gup)                                                                                     \
                    PUT(gup[begin + i], a->add_up, go[i] * x[i] * s[i]);                                     \
                continue;                                                                                    \
            }                                                                                                \
            for (int64_t i = 0; i < m; i++) {                                                                \
                const int64_t j = begin + i;                                                                 \
                const T x = gate[j * sa], go = g[j * so];                                                    \
                if (ggate) {                                                                                 \
                    const T y = go * up[j * sb] * s[i] * ((T)1 + x * ((T)1 - s[i]));                         \
                    ggate[j * so] = a->add_gate ? ggate[j * so] + y : y;                                     \
                }                                                                                            \
                if (gup) {                                                                                   \
                    const T y = go * x * s[i];                                                               \
                    gup[j * so] = a->add_up ? gup[j * so] + y : y;                                           \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
    }
SWIGLU(float, f32)
SWIGLU(double, f64)

void K(swiglu)(const td_loop *l, td_dtype t, void *out, const void *gate, const void *up)
{
    const size_t size = t == TD_F32 ? sizeof(float) : sizeof(double);
    td__spans(l, t == TD_F32 ? span_f32 : span_f64, out, size, gate, up, size, false, NULL);
}

void K(swiglu_grad)(const td_loop *l, td_dtype t, void *ggate, void *gup, const void *g, const void *gate, const void *up, bool add_gate,
                    bool add_up)
{
    const size_t size = t == TD_F32 ? sizeof(float) : sizeof(double);
    const swiglu_arg arg = { .base = ggate ? ggate : gup, .ggate = ggate, .gup = gup, .g = g, .add_gate = add_gate, .add_up = add_up };
    /* "add": then the span is called where the result lies, which tells it where it is; what is added says arg */
    td__spans(l, t == TD_F32 ? grad_span_f32 : grad_span_f64, arg.base, size, gate, up, size, true, &arg);
}
