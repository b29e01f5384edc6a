/* tests/tensor/test_shape.c: sizes, strides, NumPy's broadcasting table, axes, loops and their coalescing. */
#include "tensor_test.h"

static void sizes(void **state)
{
    (void)state;
    char text[128];
    int64_t stride[TD_MAX_DIMS];
    assert_int_equal(td__shape_numel(TD_SCALAR), 1);
    assert_int_equal(td__shape_numel(TD_SHAPE(3, 0, 5)), 0);
    assert_int_equal(td__shape_numel(TD_SHAPE(2, 3, 5)), 30);
    td__shape_strides(TD_SHAPE(2, 3, 5), stride);
    assert_int_equal(stride[0], 15);
    assert_int_equal(stride[1], 5);
    assert_int_equal(stride[2], 1);
    assert_string_equal(td__shape_text(TD_SHAPE(64, 128), text), "(64,128)");
    assert_string_equal(td__shape_text(TD_SCALAR, text), "()");
    int64_t m = INT64_MAX;
    assert_true(strlen(td__shape_text(TD_SHAPE(m, m, m, m, m, m, m, m), text)) < 128);
    assert_true(td__shape_equal(TD_SHAPE(2, 3), TD_SHAPE(2, 3)));
    assert_false(td__shape_equal(TD_SHAPE(2, 3), TD_SHAPE(2, 3, 1)));
    assert_false(td__shape_equal(TD_SHAPE(2, 3), TD_SHAPE(3, 2)));
}

static void contiguous(void **state)
{
    (void)state;
    assert_true(td__strides_contiguous(TD_SHAPE(2, 3), (int64_t[]){ 3, 1 }));
    assert_false(td__strides_contiguous(TD_SHAPE(2, 3), (int64_t[]){ 1, 2 }));
    assert_true(td__strides_contiguous(TD_SHAPE(1, 3), (int64_t[]){ 77, 1 }));
    assert_true(td__strides_contiguous(TD_SHAPE(2, 0), (int64_t[]){ 9, 9 }));
    assert_false(td__strides_contiguous(TD_SHAPE(2), (int64_t[]){ 0 }));
    assert_true(td__strides_contiguous(TD_SCALAR, NULL));
}

static void broadcasting(void **state)
{
    (void)state;
    static const struct { td_shape a, b, want; int bad; } rows[] = {
        { { 2, { 3, 4 } }, { 2, { 3, 4 } }, { 2, { 3, 4 } }, 0 },
        { { 2, { 3, 4 } }, { 1, { 4 } }, { 2, { 3, 4 } }, 0 },
        { { 2, { 3, 1 } }, { 1, { 4 } }, { 2, { 3, 4 } }, 0 },
        { { 0, { 0 } }, { 3, { 2, 3, 4 } }, { 3, { 2, 3, 4 } }, 0 },
        { { 4, { 8, 1, 6, 1 } }, { 3, { 7, 1, 5 } }, { 4, { 8, 7, 6, 5 } }, 0 },
        { { 2, { 0, 4 } }, { 2, { 1, 4 } }, { 2, { 0, 4 } }, 0 },
        { { 1, { 1 } }, { 1, { 0 } }, { 1, { 0 } }, 0 },
        { { 2, { 64, 128 } }, { 2, { 64, 127 } }, { 0, { 0 } }, 2 },
        { { 2, { 3, 4 } }, { 1, { 3 } }, { 0, { 0 } }, 2 },
        { { 3, { 2, 3, 4 } }, { 3, { 3, 3, 4 } }, { 0, { 0 } }, 1 },
        { { 1, { 0 } }, { 1, { 2 } }, { 0, { 0 } }, 1 },
    };
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        td_shape ab, ba;
        assert_int_equal(td__shape_broadcast(rows[i].a, rows[i].b, &ab), rows[i].bad);
        assert_int_equal(td__shape_broadcast(rows[i].b, rows[i].a, &ba), rows[i].bad);
        if (!rows[i].bad)
            assert_true(td__shape_equal(ab, rows[i].want) && td__shape_equal(ba, rows[i].want));
    }
}

static void refusals(void **state)
{
    (void)state;
    td_empty((td_shape){ 9, { 0 } }, TD_F32);
    expect_error(TD_ERR_SHAPE, "td_empty: a shape has 0 to 8 dimensions, not 9");
    td_zeros(TD_SHAPE(3, -2), TD_F32);
    expect_error(TD_ERR_SHAPE, "td_zeros: shape (3,-2) has a negative size at dimension 1");
    td_ones(TD_SHAPE((int64_t)1 << 40, (int64_t)1 << 40), TD_F32);
    expect_error(TD_ERR_SHAPE, "more elements than can be addressed");
    td_ones(TD_SHAPE((int64_t)1 << 40, 0, (int64_t)1 << 40), TD_F32);
    expect_error(TD_ERR_SHAPE, "more elements than can be addressed");
    assert_int_equal(td__axis("f", -1, 3), 2);
    assert_int_equal(td__axis("f", 0, 3), 0);
    assert_true(td__axis("td_x", 3, 3) < 0);
    expect_error(TD_ERR_SHAPE, "td_x: dimension 3 is outside -3 to 2");
    assert_true(td__axis("td_x", 0, 0) < 0);
    expect_error(TD_ERR_SHAPE, "td_x: a tensor of shape () has no dimension 0");
}

/* A view by hand. */
static td_tensor *view(td_tensor *x, td_shape shape, const int64_t *stride, int64_t offset)
{
    return td__scoped_tensor(td__tensor_view(x, shape, stride, offset));
}

static void loops(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *a = td_zeros(TD_SHAPE(4, 5, 6), TD_F32), *row = td_zeros(TD_SHAPE(6), TD_F32), *one = td_zeros(TD_SCALAR, TD_F32);
    td_loop l = td__loop(a->shape, a, a, one, NULL);
    assert_int_equal(l.ndim, 1);                                   /* a scalar repeats evenly: all is one run */
    assert_int_equal(l.dim[0], 120);
    assert_int_equal(l.stride[0][0], 1);
    assert_int_equal(l.stride[2][0], 0);
    l = td__loop(a->shape, a, row, NULL, NULL);
    assert_int_equal(l.ndim, 2);
    assert_int_equal(l.dim[0], 20);
    assert_int_equal(l.dim[1], 6);
    assert_int_equal(l.stride[1][0], 0);
    assert_int_equal(l.stride[1][1], 1);
    td_tensor *permuted = view(a, TD_SHAPE(6, 4, 5), (int64_t[]){ 1, 30, 6 }, 0);
    l = td__loop(permuted->shape, permuted, permuted, NULL, NULL); /* sorted by the output's strides: one run again */
    assert_int_equal(l.ndim, 1);
    assert_int_equal(l.dim[0], 120);
    td_tensor *out = td_zeros(TD_SHAPE(6, 4, 5), TD_F32);
    l = td__loop(out->shape, out, permuted, NULL, NULL);
    assert_int_equal(l.ndim, 2);
    assert_int_equal(l.dim[0], 6);
    assert_int_equal(l.stride[1][0], 1);
    assert_int_equal(l.stride[1][1], 6);
    l = td__loop(TD_SCALAR, one, one, NULL, NULL);
    assert_int_equal(l.ndim, 0);
    td_tensor *none = td_zeros(TD_SHAPE(3, 0, 2), TD_F32);
    l = td__loop(none->shape, none, NULL, NULL, NULL);
    assert_int_equal(l.ndim, 1);
    assert_int_equal(l.dim[0], 0);
}

static void reduce_loops(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *a = td_zeros(TD_SHAPE(4, 5, 6), TD_F32);
    td_reduce_loop r = td__reduce_loop(a, 1u << 0 | 1u << 1);
    assert_int_equal(r.keep.ndim, 1);
    assert_int_equal(r.keep.dim[0], 6);
    assert_int_equal(r.keep.stride[0][0], 1);
    assert_int_equal(r.keep.stride[1][0], 1);
    assert_int_equal(r.red.ndim, 1);
    assert_int_equal(r.red.dim[0], 20);
    assert_int_equal(r.red.stride[1][0], 6);
    r = td__reduce_loop(a, 1u << 1);
    assert_int_equal(r.keep.ndim, 2);
    assert_int_equal(r.keep.stride[0][0], 6);
    assert_int_equal(r.keep.stride[1][0], 30);
    assert_int_equal(r.red.dim[0], 5);
    r = td__reduce_loop(a, 7);
    assert_int_equal(r.keep.ndim, 0);
    assert_int_equal(r.red.dim[0], 120);
    r = td__reduce_loop(a, 0);
    assert_int_equal(r.red.ndim, 0);
    assert_int_equal(r.keep.dim[0], 120);
    td_tensor *none = td_zeros(TD_SHAPE(3, 0), TD_F32);
    r = td__reduce_loop(none, 1u << 1);
    assert_int_equal(r.keep.dim[0], 3);
    assert_int_equal(r.red.dim[0], 0);
    r = td__reduce_loop(none, 1u << 0);
    assert_int_equal(r.keep.dim[0], 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = {
        TEST(sizes), TEST(contiguous), TEST(broadcasting), TEST(refusals), TEST(loops), TEST(reduce_loops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
