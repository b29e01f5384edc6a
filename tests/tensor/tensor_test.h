/* tests/tensor/tensor_test.h: what the tests of tensor/ share: set-up, instruction sets, a slow reference for conversions.
 *
 * The reference knows nothing of bit tricks: a 16-bit float is found among all of its kind's values, sorted, by exact distance in
 * long double (64 bits of mantissa: holds every dtype's values exactly).
 */
#ifndef TENSOR_TEST_H
#define TENSOR_TEST_H
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <tensor_impl.h>

static const td_dtype all_dtypes[] = { TD_F32, TD_F64, TD_F16, TD_BF16, TD_I64, TD_I32, TD_U8, TD_BOOL };
static const td_dtype arith_dtypes[] = { TD_F32, TD_F64, TD_I64, TD_I32 };

/* Every instruction set this processor has. */
static inline size_t test_isas(const td_kernels *into[3])
{
    static const char *const names[] = { "baseline", "avx2", "avx512" };
    size_t n = 0;
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        const td_kernels *k = td__cpu_kernels_named(names[i]);
        if (k)
            into[n++] = k;
    }
    return n;
}

/* xorshift64*: the tests' own numbers, not the library's. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    *state = x;
    return x * 0x2545F4914F6CDD1Du;
}

static inline int test_setup(void **state)
{
    (void)state;
    td_errors(TD_ERRORS_RETURN);
    td_error_clear();
    return 0;
}

/* Nothing may live after a test, and no error may be left that the test did not look at. */
static inline int test_teardown(void **state)
{
    (void)state;
    td__scope_close_root();
    if (td_error_pending())
        print_error("an error is left: %s\n", td_error_message());
    td_memory_stats m = td_memory();
    if (m.live_tensors || m.live_bytes)
        print_error("%lld tensors and %lld bytes still live\n", (long long)m.live_tensors, (long long)m.live_bytes);
    return td_error_pending() || m.live_tensors || m.live_bytes ? -1 : 0;
}

static inline void expect_error(int code, const char *part)
{
    assert_int_equal(td_error_pending(), code);
    if (!strstr(td_error_message(), part))
        fail_msg("\"%s\" is not in \"%s\"", part, td_error_message());
    td_error_clear();
}

/* ---- 16-bit floats by the book -------------------------------------------------------------------------------------------------- */
/* The value of the pattern: 1 sign, `exponent` bits, `fraction` bits. */
static inline long double ref_decode(uint16_t bits, int exponent_bits, int fraction_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int e = bits >> fraction_bits & ((1 << exponent_bits) - 1), f = bits & ((1 << fraction_bits) - 1);
    long double v;
    if (e == (1 << exponent_bits) - 1)
        v = f ? (long double)NAN : (long double)INFINITY;
    else if (e == 0)
        v = ldexpl((long double)f, 1 - bias - fraction_bits);
    else
        v = ldexpl((long double)(f + (1 << fraction_bits)), e - bias - fraction_bits);
    return bits & 0x8000 ? -v : v;
}

static inline uint16_t ref_encode(long double x, int exponent_bits, int fraction_bits)
{
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    uint16_t infinite = (uint16_t)(((1 << exponent_bits) - 1) << fraction_bits);
    long double a = fabsl(x);
    if (isnan(x))
        return (uint16_t)(sign | infinite | 1 << (fraction_bits - 1));
    if (isinf(x))
        return sign | infinite;
    uint16_t low = 0, high = infinite;             /* value(low) <= a; value(high) > a, infinity standing for the next power of two */
    while (high - low > 1) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if (ref_decode(middle, exponent_bits, fraction_bits) <= a)
            low = middle;
        else
            high = middle;
    }
    long double top = ldexpl(1, 1 << (exponent_bits - 1));
    long double below = a - ref_decode(low, exponent_bits, fraction_bits);
    long double above = (high == infinite ? top : ref_decode(high, exponent_bits, fraction_bits)) - a;
    bool up = below > above || (below == above && (low & 1));
    return sign | (up ? high : low);
}

static inline long double ref_get(td_dtype t, const void *p)
{
    switch (t) {
    case TD_F32: { float v; memcpy(&v, p, 4); return v; }
    case TD_F64: { double v; memcpy(&v, p, 8); return v; }
    case TD_F16: { uint16_t v; memcpy(&v, p, 2); return ref_decode(v, 5, 10); }
    case TD_BF16: { uint16_t v; memcpy(&v, p, 2); return ref_decode(v, 8, 7); }
    case TD_I64: { int64_t v; memcpy(&v, p, 8); return v; }
    case TD_I32: { int32_t v; memcpy(&v, p, 4); return v; }
    case TD_U8: { uint8_t v; memcpy(&v, p, 1); return v; }
    case TD_BOOL: { uint8_t v; memcpy(&v, p, 1); return v; }
    }
    return NAN;
}

static inline bool ref_is_float(td_dtype t) { return t == TD_F32 || t == TD_F64 || t == TD_F16 || t == TD_BF16; }

static inline int64_t ref_clamp(long double x, long double low, long double high, int64_t at_low, int64_t at_high)
{
    return isnan(x) ? 0 : x <= low ? at_low : x >= high ? at_high : (int64_t)truncl(x);
}

static inline void ref_put(td_dtype t, void *p, td_dtype from, long double x)
{
    bool cut = ref_is_float(from);
    switch (t) {
    case TD_F32: { float v = (float)x; memcpy(p, &v, 4); break; }
    case TD_F64: { double v = (double)x; memcpy(p, &v, 8); break; }
    case TD_F16: { uint16_t v = ref_encode(x, 5, 10); memcpy(p, &v, 2); break; }
    case TD_BF16: { uint16_t v = ref_encode(x, 8, 7); memcpy(p, &v, 2); break; }
    case TD_I64: { int64_t v = cut ? ref_clamp(x, -0x1p63L, 0x1p63L, INT64_MIN, INT64_MAX) : (int64_t)x; memcpy(p, &v, 8); break; }
    case TD_I32: { int32_t v = (int32_t)(cut ? ref_clamp(x, -0x1p31L, 0x1p31L - 1, INT32_MIN, INT32_MAX) : (int64_t)x); memcpy(p, &v, 4); break; }
    case TD_U8: { uint8_t v = (uint8_t)(cut ? ref_clamp(x, 0, 255, 0, 255) : (int64_t)x); memcpy(p, &v, 1); break; }
    case TD_BOOL: { uint8_t v = x != 0; memcpy(p, &v, 1); break; }
    }
}

/* Same bits; any two NaN count as equal. */
static inline bool ref_same(td_dtype t, const void *a, const void *b)
{
    if (memcmp(a, b, td_dtype_size(t)) == 0)
        return true;
    return ref_is_float(t) && isnan(ref_get(t, a)) && isnan(ref_get(t, b));
}

/* Values of dtype t that are worth trying: any bits, and near the edges of every other dtype. */
static inline void test_values(td_dtype t, int64_t n, void *into, uint64_t *state)
{
    static const double edges[] = { 0, -0.0, 0.5, 1, -1, 1.5, 2.5, 127.5, 128, 254.99, 255, 255.5, 256, 65503, 65504, 65519, 65519.999, 65520, 65536,
        0x1p-14, 0x1p-24, 0x1p-25, 0x1.8p-25, 0x1.000002p-25, 0x1p-126, 0x1p-133, 0x1p-134, 0x1p-149, 0x1.fep127, 0x1.ffp127, 0x1.fefffep127, 2147483646.5,
        2147483647, 2147483648., -2147483648., -2147483649., 0x1p53, 0x1p62, 0x1p63, -0x1p63, 0x1p64, 1e300, 1e-300, INFINITY, -INFINITY, NAN };
    char *p = into;
    size_t size = td_dtype_size(t);
    for (int64_t i = 0; i < n; i++, p += size) {
        uint64_t r = test_random(state);
        if (r % 3 == 0) {
            double e = edges[(r >> 8) % TD_COUNT(edges)];
            e = r >> 40 & 1 ? -e : e;
            e *= r >> 41 & 1 ? 1 : 1 + ((double)(r >> 44 & 15) - 8) * 0x1p-20;
            ref_put(t, p, TD_F64, e);
        } else if (r % 3 == 1 && ref_is_float(t)) {
            ref_put(t, p, TD_F64, ((double)(r >> 11) * 0x1p-53 - 0.5) * ldexp(1, (int)(r >> 3 & 31) - 10));
        } else {
            uint64_t any = test_random(state);
            any >>= r >> 16 & 63;
            memcpy(p, &any, size);
            if (t == TD_BOOL)
                *p = *p & 1;
        }
    }
}
#endif
