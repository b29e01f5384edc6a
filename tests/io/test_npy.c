/* tests/io/test_npy.c: npy files against the bytes that NumPy writes (its format description, numpy.lib.format), round trips, and broken ones.
 */
#include "io_test.h"

/* Magic, version, length, `dict` padded with spaces to a multiple of 64 and a newline, data. */
static void put_npy(const char *name, int version, const char *dict, const void *data, size_t n)
{
    unsigned char bytes[1024];
    size_t at = version == 1 ? 10 : 12, end = at + strlen(dict);
    memcpy(bytes, "\x93NUMPY", 6);
    bytes[6] = (unsigned char)version, bytes[7] = 0;
    memcpy(bytes + at, dict, strlen(dict));
    while (end % 64 != 63)
        bytes[end++] = ' ';
    bytes[end++] = '\n';
    size_t length = end - at;
    bytes[8] = (unsigned char)length, bytes[9] = (unsigned char)(length >> 8);
    if (version > 1)
        bytes[10] = bytes[11] = 0;
    if (n)
        memcpy(bytes + end, data, n);
    put(name, bytes, end + n);
}

/* np.save of np.array([[1, 2, 3], [4, 5, 6]], dtype='<f4'): 128 bytes of header, of which the length 118 is 'v', then the data. */
static const char numpy_file[] = "\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
                                 "                                                          \n"
                                 "\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40\0\0\xa0\x40\0\0\xc0\x40";

static void numpys_bytes(void **state)
{
    assert_int_equal(sizeof numpy_file - 1, 128 + 24);
    put("n.npy", numpy_file, sizeof numpy_file - 1);
    td_tensor *x = td_npy_load(path_of("n.npy"));
    assert_string_equal(td_error_message(), "");
    assert_true(td_dtype_of(x) == TD_F32 && td__shape_equal(td_shape_of(x), TD_SHAPE(2, 3)));
    for (int i = 0; i < 6; i++)
        assert_true(((float *)td_data(x))[i] == (float)(i + 1));
    assert_int_equal(td_npy_save(path_of("o.npy"), x), 0);
    char got[256];
    assert_int_equal(get("o.npy", got, sizeof got), sizeof numpy_file - 1);
    assert_memory_equal(got, numpy_file, sizeof numpy_file - 1);
}

/* Versions, orders of bytes and of dimensions, what old Pythons wrote: all of them the array [[1, 2, 3], [4, 5, 6]]. */
static void kinds(void **state)
{
    static const char *const dicts[] = {
        "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }", "{'descr': '<i4', 'fortran_order': True, 'shape': (2, 3), }",
        "{'descr': '>i4', 'fortran_order': False, 'shape': (2, 3), }", "{\"shape\":(2L,3L),\"fortran_order\":True,\"descr\":\">i4\"}",
        "{'descr': '=i4', 'fortran_order': False, 'shape': (2, 3,)}",
    };
    for (int version = 1; version <= 3; version++)
        for (size_t i = 0; i < TD_COUNT(dicts); i++) {
            unsigned char data[24] = { 0 };
            bool big = strchr(dicts[i], '>'), fortran = strstr(dicts[i], "True");
            for (int k = 0; k < 6; k++)
                data[4 * k + (big ? 3 : 0)] = (unsigned char)(fortran ? 1 + k / 2 + 3 * (k % 2) : 1 + k);
            put_npy("k.npy", version, dicts[i], data, sizeof data);
            td_tensor *x = td_npy_load(path_of("k.npy"));
            assert_string_equal(td_error_message(), "");
            assert_true(td_dtype_of(x) == TD_I32 && td__shape_equal(td_shape_of(x), TD_SHAPE(2, 3)));
            for (int k = 0; k < 6; k++)
                assert_int_equal(((int32_t *)td_data(x))[k], k + 1);
        }
    /* data that is not aligned, in Fortran order */
    static const char odd[] = "\x93NUMPY\x01\x00\x3a\x00{'descr':'<i4','fortran_order':True,'shape':(2,2),}       \n\1\0\0\0\3\0\0\0\2\0\0\0\4\0\0\0";
    char bytes[sizeof odd];
    memcpy(bytes, odd, sizeof odd);
    bytes[8] = (char)(sizeof odd - 1 - 16 - 10);
    put("odd.npy", bytes, sizeof odd - 1);
    td_tensor *x = td_npy_load(path_of("odd.npy"));
    assert_string_equal(td_error_message(), "");
    for (int k = 0; k < 4; k++)
        assert_int_equal(((int32_t *)td_data(x))[k], k + 1);
}

static void round_trip(void **state)
{
    static const td_dtype dtypes[] = { TD_U8, TD_F64, TD_BOOL, TD_F32, TD_F16, TD_I64, TD_I32 };
    const td_shape shapes[] = { TD_SCALAR, TD_SHAPE(0), TD_SHAPE(3, 0, 2), TD_SHAPE(7), TD_SHAPE(3, 5), TD_SHAPE(1, 2, 1, 3, 1, 2, 1, 2) };
    unsigned char bytes[256], back[256];
    uint32_t random = 1;
    for (size_t d = 0; d < TD_COUNT(dtypes); d++)
        for (size_t s = 0; s < TD_COUNT(shapes); s++) {
            size_t n = (size_t)td__shape_numel(shapes[s]) * td_dtype_size(dtypes[d]);
            for (size_t k = 0; k < n; k++) {
                random = random * 1664525u + 1013904223u;
                bytes[k] = (unsigned char)(dtypes[d] == TD_BOOL ? random >> 31 : random >> 24);
            }
            assert_int_equal(td_npy_save(path_of("r.npy"), td_from(bytes, shapes[s], dtypes[d])), 0);
            td_tensor *x = td_npy_load(path_of("r.npy"));
            assert_int_equal(td_dtype_of(x), dtypes[d]);
            assert_true(td__shape_equal(td_shape_of(x), shapes[s]));
            assert_int_equal(td_copy_out(x, back, n), 0);
            assert_memory_equal(back, bytes, n);
        }
    /* a transposed view is Fortran order; another view is packed */
    td_tensor *a = td_reshape(td_arange(24, TD_F32), TD_SHAPE(2, 3, 4));
    td_tensor *views[] = { td_permute(a, (const int[]){ 2, 1, 0 }, 3), td_permute(a, (const int[]){ 1, 0, 2 }, 3) };
    for (int v = 0; v < 2; v++) {
        char head[128];
        assert_int_equal(td_npy_save(path_of("v.npy"), views[v]), 0);
        get("v.npy", head, sizeof head);
        head[127] = '\0';
        assert_true(!!strstr(head + 10, "'fortran_order': True") == (v == 0));
        td_tensor *x = td_npy_load(path_of("v.npy"));
        td_shape shape = td_shape_of(views[v]);
        assert_true(td__shape_equal(td_shape_of(x), shape));
        for (int64_t i = 0; i < shape.dim[0]; i++)
            for (int64_t j = 0; j < shape.dim[1]; j++)
                for (int64_t k = 0; k < shape.dim[2]; k++)
                    assert_true(td_at(x, TD_SHAPE(i, j, k)) == td_at(views[v], TD_SHAPE(i, j, k)));
    }
    td_npy_save(path_of("b.npy"), td_ones(TD_SHAPE(1), TD_BF16));
    expect_error(TD_ERR_DTYPE, "td_npy_save: NumPy has no bf16; td_safetensors_save writes it");
}

#define REST ", 'fortran_order': False, 'shape': (1,), }"

static void hostile(void **state)
{
    static const struct { const char *dict; size_t data; const char *sentence; } broken[] = {
        { "", 0, ": at byte 64: expected '{', got the header's end" },
        { "{", 0, ": at byte 64: expected a key, a text in quotes" },
        { "{'descr: 1}", 0, ": at byte 11: expected a key, a text of up to 31 plain characters" },
        { "{'descr' '<f4'}", 0, ": at byte 19: expected ':', got '''" },
        { "{'color': '<f4'" REST, 4, ": at byte 11: the key 'color' is none of descr, fortran_order and shape" },
        { "{'descr': '<f4', 'descr': '<f4'" REST, 4, ": at byte 27: the key 'descr' is there twice" },
        { "{'descr': '<f4', 'shape': (1,), }", 4, ": at byte 43: the header ends without the key 'fortran_order'" },
        { "{'descr': '<f4'" REST " x", 4, ": at byte 68: expected only spaces after the header's dict" },
        { "{'descr': '|O'" REST, 4, ": at byte 20: dtype '|O', expected one of f4 f8 f2 i8 i4 u1 b1; pickled objects are never read" },
        { "{'descr': '<c8'" REST, 8, ": at byte 20: dtype '<c8', expected one of f4 f8 f2 i8 i4 u1 b1" },
        { "{'descr': [('a', '<f4')]" REST, 4, ": at byte 20: a structured dtype, expected one such as '<f4'" },
        { "{'descr': 4" REST, 4, ": at byte 20: expected the dtype, a text in quotes" },
        { "{'descr': '<f4\\n'" REST, 4, ": at byte 20: expected the dtype, a text of up to 31 plain characters" },
        { "{'descr': '<f4', 'fortran_order': 1, 'shape': (1,), }", 4, ": at byte 44: expected fortran_order, True or False" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': [1], }", 4, ": at byte 60: expected '(', got '['" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", 4,
          ": at byte 61: expected a dimension, a whole number from 0 up" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1 1), }", 4, ": at byte 63: expected ',', got '1'" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1), }", 4,
          ": at byte 77: the shape has more than 8 dimensions" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296,4294967296), }", 4,
          ": at byte 60: shape (4294967296,4294967296) has more elements than can be addressed" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }", 4,
          ": at byte 60: dimension 0 of the shape is larger than any array's" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 7,
          ": at byte 135: shape (2) of f32 takes 8 bytes after the header, but the file has 7" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 9,
          ": at byte 136: shape (2) of f32 takes 8 bytes after the header, but the file has 9" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000,1000000), }", 0,
          ": at byte 128: shape (1000000,1000000) of f32 takes 4000000000000 bytes after the header, but the file has 0" },
        { "{'descr': '|b1', 'fortran_order': False, 'shape': (2,), }", 2, ": at byte 129: the array is of booleans, expected 0 or 1, got 9" },
    };
    unsigned char data[16] = { 1, 9 };
    for (size_t i = 0; i < TD_COUNT(broken); i++) {
        put_npy("x.npy", 1, broken[i].dict, data, broken[i].data);
        assert_true(td_is_poisoned(td_npy_load(path_of("x.npy"))));
        expect_file_error(TD_ERR_FORMAT, "td_npy_load", "x.npy", broken[i].sentence);
    }
    static const struct { const char *bytes; size_t n; const char *sentence; } files[] = {
        { "", 0, ": at byte 0: expected the bytes 93 'NUMPY', a version and the header's length, which are 10 at least; the file is shorter" },
        { "\x93NUMPX\1\0\0\0", 10, ": at byte 0: expected the bytes 93 'NUMPY', a version and the header's length, which are 10 at least" },
        { "\x93NUMPY\4\0\0\0", 10, ": at byte 6: version 4.0, expected 1.0, 2.0 or 3.0" },
        { "\x93NUMPY\2\0\0\0\0", 11, ": at byte 8: the file ends inside the header's length" },
        { "\x93NUMPY\1\0\1\0", 10, ": at byte 8: the header's length is 1, but the file has only 0 bytes after it" },
        { "\x93NUMPY\3\0\xff\xff\xff\xff", 12, ": at byte 8: the header's length is 4294967295, at most 1048576 is expected" },
    };
    for (size_t i = 0; i < TD_COUNT(files); i++) {
        put("x.npy", files[i].bytes, files[i].n);
        td_npy_load(path_of("x.npy"));
        expect_file_error(TD_ERR_FORMAT, "td_npy_load", "x.npy", files[i].sentence);
    }
}

/* A good file cut at every length, and with every bit changed in turn: an error or an array, never a crash. */
static void damaged(void **state)
{
    td_here(__FILE__, __LINE__);               /* thousands of errors: none looks for its line */
    char bytes[sizeof numpy_file];
    memcpy(bytes, numpy_file, sizeof numpy_file);
    size_t n = sizeof numpy_file - 1;
    for (size_t cut = 0; cut < n; cut++) {
        put("d.npy", bytes, cut);
        assert_true(td_is_poisoned(td_npy_load(path_of("d.npy"))));
        assert_int_equal(td_error_pending(), TD_ERR_FORMAT);
        td_error_clear();
    }
    for (size_t bit = 0; bit < 8 * n; bit++) {
        TD_SCOPE();
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        put("d.npy", bytes, n);
        bytes[bit / 8] ^= (char)(1 << bit % 8);
        td_npy_load(path_of("d.npy"));
        assert_true(td_error_pending() == 0 || td_error_pending() == TD_ERR_FORMAT);
        td_error_clear();
    }
    td_here(NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(numpys_bytes), TEST(kinds), TEST(round_trip), TEST(hostile), TEST(damaged) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
