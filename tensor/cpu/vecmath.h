/* tensor/cpu/vecmath.h: exp, log, log1p, pow, tanh and erf over arrays. The one file that names a vector mathematics library.
 *
 * x86-64: glibc's libmvec (2.35 and later have them all); elsewhere scalar libm. libmvec's routines differ in the last bit between
 * widths and from scalar libm, so everything, tails included, goes through one routine of one width per instruction set: a tail is
 * padded to a whole group (8 elements, 16 of f32 with AVX-512) on the stack. A value therefore gives the same bits at every position and length.
 * Lanes do not influence each other: those that need special care are computed alone by libmvec.
 */
#ifndef TD_VECMATH_H
#define TD_VECMATH_H
#include "cpu.h"

#if defined(__x86_64__) && defined(__GLIBC__)
#if __GLIBC_PREREQ(2, 35)
#define TD_LIBMVEC 1
#endif
#endif

#if defined(TD_LIBMVEC) && defined(__AVX512F__)
enum { TD_GROUP_F32 = 16, TD_GROUP_F64 = 8 };
#else
enum { TD_GROUP_F32 = 8, TD_GROUP_F64 = 8 };                   /* elements that one call of td__NAME_group makes            */
#endif

#ifdef TD_LIBMVEC
#ifdef __AVX512F__
enum { TD_LANES_F32 = 16, TD_LANES_F64 = 8 };
#define TD_VEC_NAME(name, n) _ZGVeN##n##v_##name
#define TD_VEC_NAME2(name, n) _ZGVeN##n##vv_##name             /* of two arguments                                         */
#define TD_VEC_F32(name) TD_VEC_NAME(name, 16)
#define TD_VEC_F64(name) TD_VEC_NAME(name, 8)
#elif defined(__AVX2__)
enum { TD_LANES_F32 = 8, TD_LANES_F64 = 4 };
#define TD_VEC_NAME(name, n) _ZGVdN##n##v_##name
#define TD_VEC_NAME2(name, n) _ZGVdN##n##vv_##name
#define TD_VEC_F32(name) TD_VEC_NAME(name, 8)
#define TD_VEC_F64(name) TD_VEC_NAME(name, 4)
#else
enum { TD_LANES_F32 = 4, TD_LANES_F64 = 2 };
#define TD_VEC_NAME(name, n) _ZGVbN##n##v_##name
#define TD_VEC_NAME2(name, n) _ZGVbN##n##vv_##name
#define TD_VEC_F32(name) TD_VEC_NAME(name, 4)
#define TD_VEC_F64(name) TD_VEC_NAME(name, 2)
#endif
typedef float td__vf32 __attribute__((vector_size(TD_LANES_F32 * sizeof(float))));
typedef double td__vf64 __attribute__((vector_size(TD_LANES_F64 * sizeof(double))));

/* y[0..GROUP) = name(x[0..GROUP)) */
#define TD_VEC_GROUP(name, scalar, T, V, ROUTINE, LANES, GROUP)                                              \
    extern V ROUTINE(scalar)(V);                                                                             \
    static inline void td__##name##_group(T *y, const T *x)                                                  \
    {                                                                                                        \
        for (int i = 0; i < GROUP; i += LANES) {                                                                 \
            V v;                                                                                             \
            memcpy(&v, x + i, sizeof v);                                                                     \
            v = ROUTINE(scalar)(v);                                                                          \
            memcpy(y + i, &v, sizeof v);                                                                     \
        }                                                                                                    \
    }
/* y[0..GROUP) = pow(x[0..GROUP), e) */
#define TD_POW_GROUP(name, scalar, T, V, ROUTINE, LANES, GROUP)                                              \
    extern V ROUTINE(V, V);                                                                                  \
    static inline void td__##name##_group(T *y, const T *x, T e)                                             \
    {                                                                                                        \
        V power;                                                                                             \
        for (int i = 0; i < LANES; i++)                                                                      \
            power[i] = e;                                                                                    \
        for (int i = 0; i < GROUP; i += LANES) {                                                                 \
            V v;                                                                                             \
            memcpy(&v, x + i, sizeof v);                                                                     \
            v = ROUTINE(v, power);                                                                           \
            memcpy(y + i, &v, sizeof v);                                                                     \
        }                                                                                                    \
    }
#ifdef __AVX512F__
TD_POW_GROUP(pow_f32, powf, float, td__vf32, TD_VEC_NAME2(powf, 16), TD_LANES_F32, TD_GROUP_F32)
TD_POW_GROUP(pow_f64, pow, double, td__vf64, TD_VEC_NAME2(pow, 8), TD_LANES_F64, TD_GROUP_F64)
#elif defined(__AVX2__)
TD_POW_GROUP(pow_f32, powf, float, td__vf32, TD_VEC_NAME2(powf, 8), TD_LANES_F32, TD_GROUP_F32)
TD_POW_GROUP(pow_f64, pow, double, td__vf64, TD_VEC_NAME2(pow, 4), TD_LANES_F64, TD_GROUP_F64)
#else
TD_POW_GROUP(pow_f32, powf, float, td__vf32, TD_VEC_NAME2(powf, 4), TD_LANES_F32, TD_GROUP_F32)
TD_POW_GROUP(pow_f64, pow, double, td__vf64, TD_VEC_NAME2(pow, 2), TD_LANES_F64, TD_GROUP_F64)
#endif
#define TD_VEC_GROUP_F32(name, scalar) TD_VEC_GROUP(name, scalar, float, td__vf32, TD_VEC_F32, TD_LANES_F32, TD_GROUP_F32)
#define TD_VEC_GROUP_F64(name, scalar) TD_VEC_GROUP(name, scalar, double, td__vf64, TD_VEC_F64, TD_LANES_F64, TD_GROUP_F64)
#else
#define TD_VEC_GROUP(name, scalar, T)                                                                        \
    static inline void td__##name##_group(T *y, const T *x)                                                  \
    {                                                                                                        \
        for (int i = 0; i < 8; i++)                                                                          \
            y[i] = scalar(x[i]);                                                                             \
    }
#define TD_POW_GROUP(name, scalar, T)                                                                        \
    static inline void td__##name##_group(T *y, const T *x, T e)                                             \
    {                                                                                                        \
        for (int i = 0; i < 8; i++)                                                                          \
            y[i] = scalar(x[i], e);                                                                          \
    }
TD_POW_GROUP(pow_f32, powf, float)
TD_POW_GROUP(pow_f64, pow, double)
#define TD_VEC_GROUP_F32(name, scalar) TD_VEC_GROUP(name, scalar, float)
#define TD_VEC_GROUP_F64(name, scalar) TD_VEC_GROUP(name, scalar, double)
#endif

/* td__vexp_f32(n, y, x): y[i] = exp(x[i]); y may be x. */
#define TD_VEC_ARRAY(name, T, GROUP)                                                                         \
    __attribute__((unused)) static void td__v##name(int64_t n, T *y, const T *x)                             \
    {                                                                                                        \
        int64_t whole = n & ~(int64_t)(GROUP - 1);                                                           \
        for (int64_t i = 0; i < whole; i += GROUP)                                                           \
            td__##name##_group(y + i, x + i);                                                                \
        if (whole < n) {                                                                                     \
            T pad[GROUP];                                                                                    \
            for (int i = 0; i < GROUP; i++)                                                                  \
                pad[i] = 1;                                       /* no special case of any of them   */     \
            size_t rest = (size_t)(n - whole) * sizeof(T);                                                   \
            memcpy(pad, x + whole, rest);                                                                    \
            td__##name##_group(pad, pad);                                                                    \
            memcpy(y + whole, pad, rest);                                                                    \
        }                                                                                                    \
    }

TD_VEC_GROUP_F32(exp_f32, expf)
TD_VEC_GROUP_F64(exp_f64, exp)
TD_VEC_GROUP_F32(tanh_f32, tanhf)
TD_VEC_GROUP_F64(tanh_f64, tanh)
TD_VEC_GROUP_F32(erf_f32, erff)
TD_VEC_GROUP_F64(erf_f64, erf)
TD_VEC_ARRAY(exp_f32, float, TD_GROUP_F32)
TD_VEC_ARRAY(exp_f64, double, TD_GROUP_F64)
TD_VEC_ARRAY(tanh_f32, float, TD_GROUP_F32)
TD_VEC_ARRAY(tanh_f64, double, TD_GROUP_F64)
TD_VEC_ARRAY(erf_f32, float, TD_GROUP_F32)
TD_VEC_ARRAY(erf_f64, double, TD_GROUP_F64)
TD_VEC_GROUP_F32(log_f32, logf)
TD_VEC_GROUP_F64(log_f64, log)
TD_VEC_GROUP_F32(log1p_f32, log1pf)
TD_VEC_GROUP_F64(log1p_f64, log1p)
TD_VEC_ARRAY(log_f32, float, TD_GROUP_F32)
TD_VEC_ARRAY(log_f64, double, TD_GROUP_F64)
TD_VEC_ARRAY(log1p_f32, float, TD_GROUP_F32)
TD_VEC_ARRAY(log1p_f64, double, TD_GROUP_F64)

/* td__vpow_f32(n, y, x, e): y[i] = x[i]^e; y may be x. */
#define TD_POW_ARRAY(name, T, GROUP)                                                                         \
    __attribute__((unused)) static void td__v##name(int64_t n, T *y, const T *x, T e)                        \
    {                                                                                                        \
        int64_t whole = n & ~(int64_t)(GROUP - 1);                                                           \
        for (int64_t i = 0; i < whole; i += GROUP)                                                           \
            td__##name##_group(y + i, x + i, e);                                                             \
        if (whole < n) {                                                                                     \
            T pad[GROUP];                                                                                    \
            for (int i = 0; i < GROUP; i++)                                                                  \
                pad[i] = 1;                                                                                  \
            size_t rest = (size_t)(n - whole) * sizeof(T);                                                   \
            memcpy(pad, x + whole, rest);                                                                    \
            td__##name##_group(pad, pad, e);                                                                 \
            memcpy(y + whole, pad, rest);                                                                    \
        }                                                                                                    \
    }
TD_POW_ARRAY(pow_f32, float, TD_GROUP_F32)
TD_POW_ARRAY(pow_f64, double, TD_GROUP_F64)

#endif
