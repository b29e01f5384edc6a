/* tensor/cpu/blocks.h: functions of one element as spans (span.h): arithmetic alone, or through a vector routine over whole blocks.
 *
 * The macros make static functions of the type td__span; `arg` is the kernel's own. Whichever path a value takes, its bits are the same.
 */
#ifndef TD_BLOCKS_H
#define TD_BLOCKS_H
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
        } else if (so == 1 && sa == 1) {                                                                     \
            _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { const T x = a[i], y = EXPR; out[i] = out[i] + y; } \
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

/* The same through blocks: BLOCK computes y[0..m) from x[0..m) (and g[0..m)); it may use t, a block of room. Operands that lie contiguously are read
 * and written where they lie; y never is x or g, so that BLOCK may write y before it has read all of them. */
#define BLOCK_UNARY(name, T, BLOCK)                                                                          \
    static void span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        T room_x[LANES_BLOCK], room_y[LANES_BLOCK];                                                          \
        const bool direct = so == 1 && !add && o != pa;                                                      \
        for (int64_t begin = 0; begin < n; begin += LANES_BLOCK) {                                           \
            const int64_t m = n - begin < LANES_BLOCK ? n - begin : LANES_BLOCK;                             \
            const T *restrict x = gather_##T(m, room_x, (const T *)pa + begin * sa, sa);                     \
            T *restrict y = direct ? (T *)o + begin : room_y;                                                \
            BLOCK                                                                                            \
            if (!direct)                                                                                     \
                scatter_##T(m, (T *)o + begin * so, so, y, add);                                             \
        }                                                                                                    \
    }
#define BLOCK_BINARY(name, T, BLOCK)                                                                         \
    static void span_##name(int64_t n, void *o, int64_t so, const void *pa, int64_t sa, const void *pb, int64_t sb, bool add, const void *arg) \
    {                                                                                                        \
        T room_g[LANES_BLOCK], room_x[LANES_BLOCK], room_y[LANES_BLOCK], room_t[LANES_BLOCK], *restrict t = room_t; \
        const bool direct = so == 1 && !add && o != pa && o != pb;                                           \
        for (int64_t begin = 0; begin < n; begin += LANES_BLOCK) {                                           \
            const int64_t m = n - begin < LANES_BLOCK ? n - begin : LANES_BLOCK;                             \
            const T *restrict g = gather_##T(m, room_g, (const T *)pa + begin * sa, sa);                     \
            const T *restrict x = gather_##T(m, room_x, (const T *)pb + begin * sb, sb);                     \
            T *restrict y = direct ? (T *)o + begin : room_y;                                                \
            BLOCK                                                                                            \
            if (!direct)                                                                                     \
                scatter_##T(m, (T *)o + begin * so, so, y, add);                                             \
        }                                                                                                    \
    }
#define EACH for (int64_t i = 0; i < m; i++)

#define GATHER_SCATTER(T)                                                                                    \
    __attribute__((unused)) static inline const T *gather_##T(int64_t n, T *room, const T *from, int64_t stride) \
    {                                                                                                        \
        if (stride == 1)                                                                                     \
            return from;                                                                                     \
        for (int64_t i = 0; i < n; i++)                                                                      \
            room[i] = from[i * stride];                                                                      \
        return room;                                                                                         \
    }                                                                                                        \
    __attribute__((unused)) static void scatter_##T(int64_t n, T *into, int64_t stride, const T *from, bool add)                     \
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

#endif
