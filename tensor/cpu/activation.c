/* tensor/cpu/activation.c: relu, gelu, sigmoid, tanh and their gradients.
 *
 * Functions that need exp, tanh or erf work in blocks on the stack: gather, call the vector routine over the whole block, scatter.
 * A value gives the same bits wherever it stands (vecmath.h). NaN in, NaN out.
 */
#include "span.h"
#include "vecmath.h"

enum { LANES_BLOCK = 256 };

/* y = f(x), element by element, where f is arithmetic only */
#define SIMPLE_UNARY(name, T, EXPR)                                                                          \
    static void span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        T *out = o;                                                                                          \
        const T *a = pa;                                                                                     \
        if (so == 1 && sa == 1 && !add) {                                                                    \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { const T x = a[i]; out[i] = EXPR; }         \
        } else {                                                                                             \
            for (int64_t i = 0; i < n; i++) {                                                                \
                const T x = a[i * sa], y = EXPR;                                                             \
                out[i * so] = add ? out[i * so] + y : y;                                                     \
            }                                                                                                \
        }                                                                                                    \
    }
/* out = f(g, v): v is x or y of the forward */
#define SIMPLE_BINARY(name, T, EXPR)                                                                         \
    static void span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        T *out = o;                                                                                          \
        const T *a = pa, *b = pb;                                                                            \
        if (so == 1 && sa == 1 && sb == 1 && add) {                                                          \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { const T g = a[i], v = b[i]; out[i] = out[i] + EXPR; } \
        } else if (so == 1 && sa == 1 && sb == 1) {                                                          \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { const T g = a[i], v = b[i]; out[i] = EXPR; } \
        } else {                                                                                             \
            for (int64_t i = 0; i < n; i++) {                                                                \
                const T g = a[i * sa], v = b[i * sb], y = EXPR;                                              \
                out[i * so] = add ? out[i * so] + y : y;                                                     \
            }                                                                                                \
        }                                                                                                    \
    }

/* The same through blocks: BLOCK computes y[0..m) from x[0..m) (and g[0..m)); it may use t and u, two blocks of room. */
#define BLOCK_UNARY(name, T, BLOCK)                                                                          \
    static void span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        for (int64_t begin = 0; begin < n; begin += LANES_BLOCK) {                                           \
            const int64_t m = n - begin < LANES_BLOCK ? n - begin : LANES_BLOCK;                             \
            T x[LANES_BLOCK], y[LANES_BLOCK];                                                                \
            gather_##T(m, x, (const T *)pa + begin * sa, sa);                                                \
            BLOCK                                                                                            \
            scatter_##T(m, (T *)o + begin * so, so, y, add);                                                 \
        }                                                                                                    \
    }
#define BLOCK_BINARY(name, T, BLOCK)                                                                         \
    static void span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        for (int64_t begin = 0; begin < n; begin += LANES_BLOCK) {                                           \
            const int64_t m = n - begin < LANES_BLOCK ? n - begin : LANES_BLOCK;                             \
            T g[LANES_BLOCK], x[LANES_BLOCK], t[LANES_BLOCK], y[LANES_BLOCK];                                \
            gather_##T(m, g, (const T *)pa + begin * sa, sa);                                                \
            gather_##T(m, x, (const T *)pb + begin * sb, sb);                                                \
            BLOCK                                                                                            \
            scatter_##T(m, (T *)o + begin * so, so, y, add);                                                 \
        }                                                                                                    \
    }
#define EACH for (int64_t i = 0; i < m; i++)

#define GATHER_SCATTER(T)                                                                                    \
    static void gather_##T(int64_t n, T *into, const T *from, int64_t stride)                                \
    {                                                                                                        \
        if (stride == 1)                                                                                     \
            memcpy(into, from, (size_t)n * sizeof(T));                                                       \
        else                                                                                                 \
            for (int64_t i = 0; i < n; i++)                                                                  \
                into[i] = from[i * stride];                                                                  \
    }                                                                                                        \
    static void scatter_##T(int64_t n, T *into, int64_t stride, const T *from, bool add)                     \
    {                                                                                                        \
        if (stride == 1 && !add)                                                                             \
            memcpy(into, from, (size_t)n * sizeof(T));                                                       \
        else if (add)                                                                                        \
            for (int64_t i = 0; i < n; i++)                                                                  \
                into[i * stride] += from[i];                                                                 \
        else                                                                                                 \
            for (int64_t i = 0; i < n; i++)                                                                  \
                into[i * stride] = from[i];                                                                  \
    }
GATHER_SCATTER(float)
GATHER_SCATTER(double)

/* relu: x < 0 keeps NaN; the gradient at 0 is 0 */
SIMPLE_UNARY(relu_f32, float, (x < 0 ? 0 : x))
SIMPLE_UNARY(relu_f64, double, (x < 0 ? 0 : x))
SIMPLE_BINARY(relu_grad_f32, float, (v > 0 ? g : 0))
SIMPLE_BINARY(relu_grad_f64, double, (v > 0 ? g : 0))

/* sigmoid: exp(-x) may become infinite: 1/inf is the right 0 */
#define SIGMOID(T, s) { EACH y[i] = -x[i]; td__vexp_##s(m, y, y); EACH y[i] = (T)1 / ((T)1 + y[i]); }
BLOCK_UNARY(sigmoid_f32, float, SIGMOID(float, f32))
BLOCK_UNARY(sigmoid_f64, double, SIGMOID(double, f64))
SIMPLE_BINARY(sigmoid_grad_f32, float, (g * v * (1 - v)))
SIMPLE_BINARY(sigmoid_grad_f64, double, (g * v * (1 - v)))

BLOCK_UNARY(tanh_f32, float, { td__vtanh_f32(m, y, x); })
BLOCK_UNARY(tanh_f64, double, { td__vtanh_f64(m, y, x); })
SIMPLE_BINARY(tanh_grad_f32, float, (g * (1 - v * v)))
SIMPLE_BINARY(tanh_grad_f64, double, (g * (1 - v * v)))

/* gelu: x*P(x) with P(x) = (1 + erf(x/sqrt 2))/2; its derivative is P(x) + x*exp(-x*x/2)/sqrt(2 pi) */
#define GELU(T, s) { EACH y[i] = x[i] * (T)M_SQRT1_2; td__verf_##s(m, y, y); EACH y[i] = (T)0.5 * x[i] * ((T)1 + y[i]); }
#define GELU_GRAD(T, s)                                                                                      \
    {                                                                                                        \
        EACH y[i] = x[i] * (T)M_SQRT1_2;                                                                     \
        td__verf_##s(m, y, y);                                                                               \
        EACH t[i] = (T)-0.5 * x[i] * x[i];                                                                   \
        td__vexp_##s(m, t, t);                                                                               \
        EACH y[i] = g[i] * ((T)0.5 * ((T)1 + y[i]) + x[i] * t[i] * (T)0.39894228040143267794);               \
    }
BLOCK_UNARY(gelu_f32, float, GELU(float, f32))
BLOCK_UNARY(gelu_f64, double, GELU(double, f64))
BLOCK_BINARY(gelu_grad_f32, float, GELU_GRAD(float, f32))
BLOCK_BINARY(gelu_grad_f64, double, GELU_GRAD(double, f64))

#define ACTIVATION(name)                                                                                     \
    void K(name)(const td_loop *l, td_dtype t, void *out, const void *x, bool add)                           \
    {                                                                                                        \
        if (t == TD_F32)                                                                                     \
            td__spans(l, span_##name##_f32, out, 4, x, NULL, 4, add, NULL);                                  \
        else                                                                                                 \
            td__spans(l, span_##name##_f64, out, 8, x, NULL, 8, add, NULL);                                  \
    }                                                                                                        \
    void K(name##_grad)(const td_loop *l, td_dtype t, void *out, const void *g, const void *v, bool add)     \
    {                                                                                                        \
        if (t == TD_F32)                                                                                     \
            td__spans(l, span_##name##_grad_f32, out, 4, g, v, 4, add, NULL);                                \
        else                                                                                                 \
            td__spans(l, span_##name##_grad_f64, out, 8, g, v, 8, add, NULL);                                \
    }
ACTIVATION(relu)
ACTIVATION(gelu)
ACTIVATION(sigmoid)
ACTIVATION(tanh)
