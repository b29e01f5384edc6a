/* tests/tensor/test_dtype.c: names, sizes, and the conversions of convert.h against the slow reference, exhaustively where 16 bits allow. */
#include "tensor_test.h"
#include <convert.h>

static void names_and_sizes(void **state)
{
    (void)state;
    static const struct { td_dtype t; const char *name; size_t size; } want[] = {
        { TD_F32, "f32", 4 }, { TD_F64, "f64", 8 }, { TD_F16, "f16", 2 }, { TD_BF16, "bf16", 2 },
        { TD_I64, "i64", 8 }, { TD_I32, "i32", 4 }, { TD_U8, "u8", 1 }, { TD_BOOL, "bool", 1 },
    };
    for (size_t i = 0; i < TD_COUNT(want); i++) {
        assert_string_equal(td_dtype_name(want[i].t), want[i].name);
        assert_int_equal(td_dtype_size(want[i].t), want[i].size);
    }
    assert_int_equal(td_dtype_size((td_dtype)99), 0);
    assert_string_equal(td_dtype_name((td_dtype)-1), "?");
    assert_true(td_is_poisoned(td_empty(TD_SHAPE(2), (td_dtype)99)));
    expect_error(TD_ERR_DTYPE, "td_empty: 99 is not a dtype");
}

/* NaN patterns come back quiet: with the top bit of the fraction. */
static uint16_t quiet(uint16_t bits, uint16_t infinite, uint16_t top)
{
    return (bits & 0x7fff) > infinite ? bits | top : bits;
}

static void every_pattern_of_16_bits(void **state)
{
    (void)state;
    for (uint32_t u = 0; u < 65536; u++) {
        uint16_t bits = (uint16_t)u;
        float h = td__f16_to_f32((td_f16){ bits }), b = td__bf16_to_f32((td_bf16){ bits });
        long double rh = ref_decode(bits, 5, 10), rb = ref_decode(bits, 8, 7);
        assert_true(isnan(rh) ? isnan(h) : (long double)h == rh && !signbit(h) == !signbit(rh));
        assert_true(isnan(rb) ? isnan(b) : (long double)b == rb && !signbit(b) == !signbit(rb));
        assert_int_equal(td__f32_to_f16(h).bits, quiet(bits, 0x7c00, 0x200));
        assert_int_equal(td__f64_to_f16(h).bits, quiet(bits, 0x7c00, 0x200));
        assert_int_equal(td__f32_to_bf16(b).bits, quiet(bits, 0x7f80, 0x40));
        assert_int_equal(td__f64_to_bf16(b).bits, quiet(bits, 0x7f80, 0x40));
    }
}

static void check_f32(float x)
{
    uint16_t h = td__f32_to_f16(x).bits, b = td__f32_to_bf16(x).bits, rh = ref_encode(x, 5, 10), rb = ref_encode(x, 8, 7);
    if (!ref_same(TD_F16, &h, &rh) || !ref_same(TD_BF16, &b, &rb))
        fail_msg("%a (f32): f16 %04x, expected %04x; bf16 %04x, expected %04x", (double)x, h, rh, b, rb);
}

static void check_f64(double x)
{
    uint16_t h = td__f64_to_f16(x).bits, b = td__f64_to_bf16(x).bits, rh = ref_encode(x, 5, 10), rb = ref_encode(x, 8, 7);
    if (!ref_same(TD_F16, &h, &rh) || !ref_same(TD_BF16, &b, &rb))
        fail_msg("%a (f64): f16 %04x, expected %04x; bf16 %04x, expected %04x", x, h, rh, b, rb);
}

/* The middle between neighbours, and one unit to either side of it. */
static void halfway(void **state)
{
    (void)state;
    for (uint32_t u = 0; u < 0x7f80; u += 1) {
        for (int kind = 0; kind < 2; kind++) {
            if (kind == 0 && u >= 0x7c00)
                continue;
            int e = kind ? 8 : 5, f = kind ? 7 : 10;
            long double low = ref_decode((uint16_t)u, e, f), high = ref_decode((uint16_t)(u + 1), e, f);
            if (isinf(high))
                high = ldexpl(1, 1 << (e - 1));
            double middle = (double)((low + high) / 2);
            check_f64(middle);
            check_f64(nextafter(middle, INFINITY));
            check_f64(-nextafter(middle, 0));
            check_f32((float)middle);
            check_f32(nextafterf((float)middle, INFINITY));
            check_f32(-nextafterf((float)middle, 0));
        }
    }
}

static void random_patterns(void **state)
{
    (void)state;
    uint64_t r = 1;
    for (int i = 0; i < 100000; i++) {
        uint64_t u = test_random(&r);
        check_f32(td__float32((uint32_t)(u >> 32)));
        check_f64(td__float64(u));
        check_f64(td__float64((u & 0x800fffffffffffffu) | (uint64_t)(1023 - 30 + (int)(u >> 52 & 63)) << 52));   /* f16's range */
    }
}

/* One double that lies just above a tie of f16 but rounds to the tie in f32: two roundings would go to even. */
static void no_double_rounding(void **state)
{
    (void)state;
    double x = 1.0 + 0x1p-11 + 0x1p-40;
    assert_int_equal(td__f64_to_f16(x).bits, 0x3c01);
    assert_int_equal(td__f32_to_f16((float)x).bits, 0x3c00);
    x = 1.0 + 0x1p-8 + 0x1p-40;
    assert_int_equal(td__f64_to_bf16(x).bits, 0x3f81);
    assert_int_equal(td__f32_to_bf16((float)x).bits, 0x3f80);
    int64_t i = ((int64_t)1 << 62) + ((int64_t)1 << 54) + 1;      /* just above a tie of bf16, beyond f64's 53 bits */
    assert_int_equal(td__i64_to_bf16(i).bits, ref_encode(i, 8, 7));
    assert_int_not_equal(td__i64_to_bf16(i).bits, td__i64_to_bf16(i - 1).bits);
}

static void to_integers(void **state)
{
    (void)state;
    static const struct { double x; int64_t i64; int32_t i32; uint8_t u8; } want[] = {
        { 1.9, 1, 1, 1 }, { -1.9, -1, -1, 0 }, { 255.9, 255, 255, 255 }, { 256, 256, 256, 255 }, { NAN, 0, 0, 0 },
        { INFINITY, INT64_MAX, INT32_MAX, 255 }, { -INFINITY, INT64_MIN, INT32_MIN, 0 }, { 0x1p63, INT64_MAX, INT32_MAX, 255 },
        { -0x1p63, INT64_MIN, INT32_MIN, 0 }, { 0x1p31, 0x80000000ll, INT32_MAX, 255 }, { -0x1p31, -0x80000000ll, INT32_MIN, 0 },
        { 2147483647.5, 2147483647, 2147483647, 255 }, { -2147483648.5, -2147483648ll, INT32_MIN, 0 },
    };
    for (size_t i = 0; i < TD_COUNT(want); i++) {
        assert_true(td__f64_to_i64(want[i].x) == want[i].i64);
        assert_int_equal(td__f64_to_i32(want[i].x), want[i].i32);
        assert_int_equal(td__f64_to_u8(want[i].x), want[i].u8);
    }
    assert_int_equal(td__f32_to_i32(0x1p31f), INT32_MAX);
    assert_int_equal(td__f32_to_i32(NAN), 0);
    assert_int_equal(td__f32_to_i32(-0x1p31f), INT32_MIN);
    assert_int_equal(td__f32_to_u8(-3), 0);
    assert_int_equal(td__f32_to_u8(NAN), 0);
    assert_int_equal(td__put_u8((int32_t)257), 1);
    assert_int_equal(td__put_i32((int64_t)0x100000005ll), 5);
    assert_int_equal(td__put_b8(NAN), 1);
    assert_int_equal(td__put_b8(-0.0), 0);
}

static void single_elements(void **state)
{
    (void)state;
    uint64_t r = 7;
    for (size_t t = 0; t < TD_COUNT(all_dtypes); t++)
        for (int i = 0; i < 500; i++) {
            uint64_t bits[1] = { 0 }, again[1] = { 0 }, want[1] = { 0 };
            test_values(all_dtypes[t], 1, bits, &r);
            double v = td__element_get(all_dtypes[t], bits);
            assert_true(isnan(v) ? isnan(ref_get(all_dtypes[t], bits)) : v == (double)ref_get(all_dtypes[t], bits));
            td__element_put(all_dtypes[t], again, v);
            ref_put(all_dtypes[t], want, TD_F64, v);
            assert_true(ref_same(all_dtypes[t], again, want));
        }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = {
        TEST(names_and_sizes), TEST(every_pattern_of_16_bits), TEST(halfway), TEST(random_patterns),
        TEST(no_double_rounding), TEST(to_integers), TEST(single_elements),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
