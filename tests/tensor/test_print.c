/* tests/tensor/test_print.c: tensors as text, against strings written by hand. */
#include "tensor_test.h"

static void expect(const td_tensor *x, const char *want)
{
    char text[8192];
    size_t n = td_format(x, text, sizeof text);
    assert_int_equal(n, strlen(text));
    assert_string_equal(text, want);
}

static void one_line(void **state)
{
    (void)state;
    TD_SCOPE();
    expect(td_from((float[]){ 1, 2, 3, 4, 5, 6 }, TD_SHAPE(2, 3), TD_F32), "tensor (2,3) f32 [[1, 2, 3], [4, 5, 6]]");
    expect(td_full(TD_SCALAR, TD_F64, 3.5), "tensor () f64 3.5");
    expect(td_zeros(TD_SHAPE(0, 3), TD_I32), "tensor (0,3) i32 []");
    expect(td_from((float[]){ 0.5f, -1.25f, NAN, INFINITY, -INFINITY }, TD_SHAPE(5), TD_F32), "tensor (5) f32 [0.50, -1.25, nan, inf, -inf]");
    expect(td_from((double[]){ 1.0 / 3, 2 }, TD_SHAPE(2), TD_F64), "tensor (2) f64 [0.3333, 2.0000]");
    expect(td_from((double[]){ 1e-9, 1 }, TD_SHAPE(2), TD_F64), "tensor (2) f64 [1.0000e-09, 1.0000e+00]");
    expect(td_from((float[]){ 3e10f, 1 }, TD_SHAPE(2), TD_F32), "tensor (2) f32 [3.0000e+10, 1.0000e+00]");
    expect(td_from((int64_t[]){ INT64_MAX, INT64_MIN }, TD_SHAPE(2), TD_I64), "tensor (2) i64 [9223372036854775807, -9223372036854775808]");
    expect(td_from((uint8_t[]){ 0, 255 }, TD_SHAPE(2, 1), TD_U8), "tensor (2,1) u8 [[0], [255]]");
    expect(td_from((uint8_t[]){ 0, 1 }, TD_SHAPE(2), TD_BOOL), "tensor (2) bool [false, true]");
    expect(td_full(TD_SHAPE(2), TD_BF16, 0.1), "tensor (2) bf16 [0.1001, 0.1001]");
    expect(td_full(TD_SHAPE(2), TD_F16, 65504), "tensor (2) f16 [65504, 65504]");
    expect(td_full(TD_SHAPE(2), TD_F32, NAN), "tensor (2) f32 [nan, nan]");
    expect(NULL, "tensor (NULL)");
    expect(td_empty(TD_SHAPE(-1), TD_F32), "tensor (poisoned by an earlier error)");
    td_error_clear();
}

static void several_lines(void **state)
{
    (void)state;
    TD_SCOPE();
    expect(td_from((float[]){ 0.5f, -100, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21 }, TD_SHAPE(3, 7), TD_F32),
           "tensor (3,7) f32\n"
           "[[   0.5, -100.0,    3.0,    4.0,    5.0,    6.0,    7.0],\n"
           " [   8.0,    9.0,   10.0,   11.0,   12.0,   13.0,   14.0],\n"
           " [  15.0,   16.0,   17.0,   18.0,   19.0,   20.0,   21.0]]");
}

static void abbreviated(void **state)
{
    (void)state;
    TD_SCOPE();
    expect(td_arange(1001, TD_I64), "tensor (1001) i64 [0, 1, 2, ..., 998, 999, 1000]");
    td_tensor *x = td_zeros(TD_SHAPE(100, 50), TD_I32);
    assert_int_equal(td_assign(x, td_arange(50, TD_I32)), 0);
    expect(x, "tensor (100,50) i32\n"
              "[[ 0,  1,  2, ..., 47, 48, 49],\n"
              " [ 0,  1,  2, ..., 47, 48, 49],\n"
              " [ 0,  1,  2, ..., 47, 48, 49],\n"
              " ...\n"
              " [ 0,  1,  2, ..., 47, 48, 49],\n"
              " [ 0,  1,  2, ..., 47, 48, 49],\n"
              " [ 0,  1,  2, ..., 47, 48, 49]]");
    td_tensor *long_line = td_arange(60, TD_F32);
    expect(long_line, "tensor (60) f32\n"
                      "[ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,\n"
                      " 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49,\n"
                      " 50, 51, 52, 53, 54, 55, 56, 57, 58, 59]");
}

static void small_buffers(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_arange(3, TD_F32);
    char text[10];
    memset(text, 'x', sizeof text);
    assert_int_equal(td_format(x, text, 9), strlen("tensor (3) f32 [0, 1, 2]"));
    assert_string_equal(text, "tensor (");
    assert_int_equal(text[9], 'x');
    assert_int_equal(td_format(x, NULL, 0), strlen("tensor (3) f32 [0, 1, 2]"));
    td_print(x);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = { TEST(one_line), TEST(several_lines), TEST(abbreviated), TEST(small_buffers) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
