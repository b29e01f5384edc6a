/* tensor/convert.h: conversions between dtypes, one value at a time, shared by every kernel and by the code that reads single elements.
 *
 * Rules: to a narrower float, round to nearest even once (subnormals, infinities and NaN included; NaN becomes quiet and keeps its
 * leading payload bits). Float to integer truncates towards zero, saturates out of range, NaN gives 0. Integer to a narrower integer wraps
 * (two's complement), as in C and NumPy. To bool: != 0. Plain integer and f32/f64 arithmetic only, without branches, so that loops
 * over these vectorise and every instruction set gives the same bits.
 */
#ifndef TD_CONVERT_H
#define TD_CONVERT_H
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* The same lines convert on the host and in CUDA kernels. */
#ifdef __CUDACC__
#define TD_CONVERT __host__ __device__
#else
#define TD_CONVERT
#endif

typedef struct { uint16_t bits; } td_f16;      /* structs, so that no arithmetic happens on the bits by accident */
typedef struct { uint16_t bits; } td_bf16;

TD_CONVERT static inline uint32_t td__bits32(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
TD_CONVERT static inline uint64_t td__bits64(double x) { uint64_t u; memcpy(&u, &x, 8); return u; }
TD_CONVERT static inline float td__float32(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
TD_CONVERT static inline double td__float64(uint64_t u) { double x; memcpy(&x, &u, 8); return x; }
/* yes where `condition`, else no; by masks, because compilers turn chains of ?: with float arithmetic in them back into branches. */
TD_CONVERT static inline uint32_t td__pick32(bool condition, uint32_t yes, uint32_t no) { return no ^ ((yes ^ no) & (0u - (uint32_t)condition)); }
TD_CONVERT static inline uint64_t td__pick64(bool condition, uint64_t yes, uint64_t no) { return no ^ ((yes ^ no) & (0u - (uint64_t)condition)); }

/* Below the smallest normal the unit in the last place is fixed: adding the power of two that has the same unit lets the
 * FPU round, and the sum's low bits are the answer. Above it, adding half a unit (less one when even) to the bits rounds. */
TD_CONVERT static inline td_f16 td__f32_to_f16(float x)
{
    uint32_t u = td__bits32(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    uint32_t small = td__bits32(td__float32(a) + 0.5f) - 0x3f000000u;            /* unit 2^-24 */
    uint32_t normal = (a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13;
    uint32_t nan = 0x7e00u | (a >> 13 & 0x3ffu);
    uint32_t r = td__pick32(a < 0x38800000u, small, normal);
    r = td__pick32(a >= 0x477ff000u, 0x7c00u, r);                                /* 65520 and above round to infinity */
    r = td__pick32(a > 0x7f800000u, nan, r);
    return (td_f16){ (uint16_t)(sign | r) };
}

TD_CONVERT static inline td_f16 td__f64_to_f16(double x)
{
    uint64_t u = td__bits64(x), sign = u >> 48 & 0x8000u, a = u & 0x7fffffffffffffffu;
    uint64_t small = td__bits64(td__float64(a) + 0x1p28) - 0x41b0000000000000u;  /* unit 2^-24 */
    uint64_t normal = (a + 0x1ffffffffffu + (a >> 42 & 1u) - 0x3f00000000000000u) >> 42;
    uint64_t nan = 0x7e00u | (a >> 42 & 0x3ffu);
    uint64_t r = td__pick64(a < 0x3f10000000000000u, small, normal);
    r = td__pick64(a >= 0x40effe0000000000u, 0x7c00u, r);
    r = td__pick64(a > 0x7ff0000000000000u, nan, r);
    return (td_f16){ (uint16_t)(sign | r) };
}

TD_CONVERT static inline float td__f16_to_f32(td_f16 h)
{
    uint32_t sign = (uint32_t)(h.bits & 0x8000u) << 16, m = h.bits & 0x7fffu;
    uint32_t normal = (m << 13) + 0x38000000u;
    uint32_t small = td__bits32((float)(int32_t)m * 0x1p-24f);
    uint32_t special = (m << 13) + 0x70000000u;
    uint32_t r = td__pick32(m < 0x400u, small, normal);
    r = td__pick32(m >= 0x7c00u, special, r);
    r |= td__pick32(m > 0x7c00u, 0x00400000u, 0);
    return td__float32(sign | r);
}

TD_CONVERT static inline td_bf16 td__f32_to_bf16(float x)
{
    uint32_t u = td__bits32(x);
    uint32_t r = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
    r = (u & 0x7fffffffu) > 0x7f800000u ? (u >> 16 | 0x40u) : r;
    return (td_bf16){ (uint16_t)r };
}

TD_CONVERT static inline td_bf16 td__f64_to_bf16(double x)
{
    uint64_t u = td__bits64(x), sign = u >> 48 & 0x8000u, a = u & 0x7fffffffffffffffu;
    uint64_t small = td__bits64(td__float64(a) + 0x1p-81) - 0x3ae0000000000000u; /* unit 2^-133 */
    uint64_t normal = (a + 0xfffffffffffu + (a >> 45 & 1u) - 0x3800000000000000u) >> 45;
    uint64_t nan = 0x7fc0u | (a >> 45 & 0x7fu);
    uint64_t r = td__pick64(a < 0x3810000000000000u, small, normal);
    r = td__pick64(a >= 0x47eff00000000000u, 0x7f80u, r);                        /* (2 - 2^-8) * 2^127 */
    r = td__pick64(a > 0x7ff0000000000000u, nan, r);
    return (td_bf16){ (uint16_t)(sign | r) };
}

TD_CONVERT static inline float td__bf16_to_f32(td_bf16 b) { return td__float32((uint32_t)b.bits << 16); }

/* An integer on its way to a 16-bit float through f64: exact up to 2^53, above it rounded to odd, so that the second rounding is
 * the only one that counts. */
TD_CONVERT static inline double td__i64_to_odd_f64(int64_t x)
{
    uint64_t m = x < 0 ? 0u - (uint64_t)x : (uint64_t)x;
    uint64_t odd = (m & ~(uint64_t)0x7ff) | ((m & 0x7ffu) != 0 ? 0x800u : 0u);
    double d = (double)(m >= (uint64_t)1 << 53 ? odd : m);
    return x < 0 ? -d : d;
}

TD_CONVERT static inline int64_t td__f64_to_i64(double x)
{
    double inside = x >= -0x1p63 && x < 0x1p63 ? x : 0.0;
    int64_t r = (int64_t)inside;
    r = x >= 0x1p63 ? INT64_MAX : r;
    return x < -0x1p63 ? INT64_MIN : r;
}
TD_CONVERT static inline int32_t td__f64_to_i32(double x)
{
    double low = x > -0x1p31 ? x : -0x1p31, clamped = low < 2147483647.0 ? low : 2147483647.0;
    return x != x ? 0 : (int32_t)clamped;
}
TD_CONVERT static inline uint8_t td__f64_to_u8(double x)
{
    double low = x > 0.0 ? x : 0.0, clamped = low < 255.0 ? low : 255.0;   /* NaN > 0 is false: 0 */
    return (uint8_t)(int32_t)clamped;
}
TD_CONVERT static inline int32_t td__f32_to_i32(float x)
{
    float inside = x >= -0x1p31f && x < 0x1p31f ? x : 0.0f;
    int32_t r = (int32_t)inside;
    r = x >= 0x1p31f ? INT32_MAX : r;
    return x < -0x1p31f ? INT32_MIN : r;
}
TD_CONVERT static inline uint8_t td__f32_to_u8(float x)
{
    float low = x > 0.0f ? x : 0.0f, clamped = low < 255.0f ? low : 255.0f;
    return (uint8_t)(int32_t)clamped;
}

/* X(dtype, C type, name in code, name in text) for every dtype. bool is a byte that holds 0 or 1 ("bool" itself is a macro of C11 and
 * cannot be pasted into names). */
#define TD_DTYPE_LIST(X)                                                                                     \
    X(TD_F32, float, f32, "f32") X(TD_F64, double, f64, "f64")                                               \
    X(TD_F16, td_f16, f16, "f16") X(TD_BF16, td_bf16, bf16, "bf16")                                          \
    X(TD_I64, int64_t, i64, "i64") X(TD_I32, int32_t, i32, "i32")                                            \
    X(TD_U8, uint8_t, u8, "u8") X(TD_BOOL, uint8_t, b8, "bool")

/* td__get_X: the value as the C type that holds it exactly. */
#define td__get_f32(x) (x)
#define td__get_f64(x) (x)
#define td__get_f16(x) td__f16_to_f32(x)
#define td__get_bf16(x) td__bf16_to_f32(x)
#define td__get_i64(x) (x)
#define td__get_i32(x) (x)
#define td__get_u8(x) ((int32_t)(x))
#define td__get_b8(x) ((int32_t)(x))

/* td__put_X: from float, double, int64_t or int32_t (what td__get gives). */
#define td__put_f32(v) ((float)(v))
#define td__put_f64(v) ((double)(v))
#define td__put_f16(v) _Generic((v), float: td__f32_to_f16, double: td__f64_to_f16, int64_t: td__i64_to_f16, int32_t: td__f64_to_f16)(v)
#define td__put_bf16(v) _Generic((v), float: td__f32_to_bf16, double: td__f64_to_bf16, int64_t: td__i64_to_bf16, int32_t: td__f64_to_bf16)(v)
#define td__put_i64(v) _Generic((v), float: td__f64_to_i64, double: td__f64_to_i64, int64_t: td__i64_to_i64, int32_t: td__i64_to_i64)(v)
#define td__put_i32(v) _Generic((v), float: td__f32_to_i32, double: td__f64_to_i32, int64_t: td__i64_to_i32, int32_t: td__i32_to_i32)(v)
#define td__put_u8(v) _Generic((v), float: td__f32_to_u8, double: td__f64_to_u8, int64_t: td__i64_to_u8, int32_t: td__i32_to_u8)(v)
#define td__put_b8(v) ((uint8_t)((v) != 0))

TD_CONVERT static inline td_f16 td__i64_to_f16(int64_t x) { return td__f64_to_f16(td__i64_to_odd_f64(x)); }
TD_CONVERT static inline td_bf16 td__i64_to_bf16(int64_t x) { return td__f64_to_bf16(td__i64_to_odd_f64(x)); }
TD_CONVERT static inline int64_t td__i64_to_i64(int64_t x) { return x; }
TD_CONVERT static inline int32_t td__i64_to_i32(int64_t x) { return (int32_t)(uint32_t)(uint64_t)x; }
TD_CONVERT static inline int32_t td__i32_to_i32(int32_t x) { return x; }
TD_CONVERT static inline uint8_t td__i64_to_u8(int64_t x) { return (uint8_t)(uint64_t)x; }
TD_CONVERT static inline uint8_t td__i32_to_u8(int32_t x) { return (uint8_t)(uint32_t)x; }

#endif
