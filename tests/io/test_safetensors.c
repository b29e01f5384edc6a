/* tests/io/test_safetensors.c: safetensors files, read and written: bytes written by hand from the format's description, round trips of every
 * dtype bit for bit, what lies where in our own files, and the life of a mapping. */
#include "io_test.h"
#include <sys/stat.h>
#include <unistd.h>

/* By hand: two tensors and a text; 0x3f800000 is 1.0f, 0xc0200000 -2.5f, 0x3fc0 1.5 in bf16. */
static void by_hand(void **state)
{
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\",\"who\":\"caf\\u00e9\"},"
                                 "\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                                 "\"b\" : { \"shape\" : [ 1 , 1 ] , \"data_offsets\":[8,10], \"dtype\":\"BF16\" } }  ";
    static const unsigned char data[] = { 0x00, 0x00, 0x80, 0x3f, 0x00, 0x00, 0x20, 0xc0, 0xc0, 0x3f };
    put_st("hand", header, data, sizeof data);
    td_safetensors *f = td_safetensors_open(path_of("hand"));
    assert_string_equal(td_error_message(), "");
    assert_int_equal(td_safetensors_count(f), 2);
    assert_string_equal(td_safetensors_name(f, 0), "a.weight");
    assert_string_equal(td_safetensors_name(f, 1), "b");
    assert_true(td_safetensors_has(f, "b"));
    assert_false(td_safetensors_has(f, "__metadata__"));
    assert_int_equal(td_safetensors_metadata_count(f), 2);
    assert_string_equal(td_safetensors_metadata_key(f, 1), "who");
    assert_string_equal(td_safetensors_metadata(f, "who"), "caf\xc3\xa9");
    assert_string_equal(td_safetensors_metadata(f, "format"), "pt");
    assert_null(td_safetensors_metadata(f, "none"));
    td_tensor *a = td_safetensors_get(f, "a.weight"), *b = td_safetensors_get(f, "b");
    assert_true(td__shape_equal(td_shape_of(a), TD_SHAPE(2)) && td__shape_equal(td_shape_of(b), TD_SHAPE(1, 1)));
    assert_true(td_dtype_of(a) == TD_F32 && td_dtype_of(b) == TD_BF16);
    assert_true(td_at(a, TD_SHAPE(0)) == 1.0 && td_at(a, TD_SHAPE(1)) == -2.5 && td_item(b) == 1.5);
    td_safetensors_free(f);
    assert_true(td_at(a, TD_SHAPE(1)) == -2.5);    /* the mapping lives with its tensors */
}

/* Every dtype in odd shapes, contents any bits at all; strides, emptiness and many dimensions among them. */
static void round_trip(void **state)
{
    static const td_dtype dtypes[] = { TD_U8, TD_F64, TD_BOOL, TD_F32, TD_F16, TD_I64, TD_BF16, TD_I32 };
    const td_shape shapes[] = { TD_SCALAR, TD_SHAPE(0), TD_SHAPE(3, 0, 2), TD_SHAPE(1), TD_SHAPE(7), TD_SHAPE(3, 5),
                                TD_SHAPE(1, 2, 1, 3, 1, 2, 1, 2) };
    enum { D = TD_COUNT(dtypes), S = TD_COUNT(shapes), N = D * S };
    td_named list[N];
    char name[N][32];
    unsigned char *bytes[N], *back = malloc(4096);
    uint32_t random = 1;
    for (int i = 0; i < N; i++) {
        td_dtype dtype = dtypes[i % D];
        td_shape shape = shapes[i / D];
        size_t n = (size_t)td__shape_numel(shape) * td_dtype_size(dtype);
        bytes[i] = malloc(n + 1);
        for (size_t k = 0; k < n; k++) {
            random = random * 1664525u + 1013904223u;
            bytes[i][k] = (unsigned char)(dtype == TD_BOOL ? random >> 31 : random >> 24);
        }
        snprintf(name[i], sizeof name[i], "t\"%d\\\xc3\xa4\n", i);
        list[i] = (td_named){ name[i], td_from(bytes[i], shape, dtype) };
    }
    assert_int_equal(td_safetensors_save(path_of("all"), list, N, &(td_text_pair){ "k\t", "v\xe2\x82\xac" }, 1), 0);
    td_safetensors *f = td_safetensors_open(path_of("all"));
    assert_int_equal(td_safetensors_count(f), N);
    assert_string_equal(td_safetensors_metadata(f, "k\t"), "v\xe2\x82\xac");
    for (int i = 0; i < N; i++) {
        assert_string_equal(td_safetensors_name(f, (size_t)i), name[i]);
        td_tensor *x = td_safetensors_get(f, name[i]);
        assert_int_equal(td_dtype_of(x), dtypes[i % D]);
        assert_true(td__shape_equal(td_shape_of(x), shapes[i / D]));
        size_t n = (size_t)td_numel(x) * td_dtype_size(td_dtype_of(x));
        assert_int_equal(td_copy_out(x, back, n), 0);
        assert_memory_equal(back, bytes[i], n);
        if (n > 0)                             /* our own files are aligned: nothing was copied */
            assert_true(x->storage->release != NULL);
        free(bytes[i]);
    }
    free(back);
}

/* The file is exactly these bytes: header padded to a multiple of 8, larger elements first, C order of a transposed view. */
static void written_bytes(void **state)
{
    td_tensor *u = td_from((const uint8_t[]){ 1, 2, 3 }, TD_SHAPE(3), TD_U8);
    td_tensor *m = td_transpose(td_from((const int32_t[]){ 10, 20, 30, 40 }, TD_SHAPE(2, 2), TD_I32), 0, 1);
    assert_int_equal(td_safetensors_save(path_of("w"), (td_named[]){ { "u", u }, { "m", m } }, 2, NULL, 0), 0);
    static const char header[] = "{\"u\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[16,19]},"
                                 "\"m\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}";
    static const unsigned char data[] = { 10, 0, 0, 0, 30, 0, 0, 0, 20, 0, 0, 0, 40, 0, 0, 0, 1, 2, 3 };
    unsigned char got[512];
    size_t n = get("w", got, sizeof got), length = (sizeof header - 1 + 7) / 8 * 8;
    assert_int_equal(n, 8 + length + sizeof data);
    assert_int_equal(got[0] | got[1] << 8, length);
    assert_memory_equal(got + 8, header, sizeof header - 1);
    for (size_t i = sizeof header - 1; i < length; i++)
        assert_int_equal(got[8 + i], ' ');
    assert_memory_equal(got + 8 + length, data, sizeof data);
    /* nothing at all is a file too */
    assert_int_equal(td_safetensors_save(path_of("none"), NULL, 0, NULL, 0), 0);
    assert_int_equal(get("none", got, sizeof got), 16);
    assert_memory_equal(got, "\x08\0\0\0\0\0\0\0{}      ", 16);
    assert_int_equal(td_safetensors_count(td_safetensors_open(path_of("none"))), 0);
}

/* Changing a tensor changes memory, not the file, and nobody else's view of it after a new open. */
static void copy_on_write(void **state)
{
    td_tensor *x = td_full(TD_SHAPE(1000), TD_F32, 3);
    assert_int_equal(td_safetensors_save(path_of("c"), &(td_named){ "x", x }, 1, NULL, 0), 0);
    td_tensor *a = td_safetensors_get(td_safetensors_open(path_of("c")), "x");
    assert_int_equal(td_fill(a, 5), 0);
    assert_true(td_at(a, TD_SHAPE(7)) == 5);
    td_tensor *b = td_safetensors_get(td_safetensors_open(path_of("c")), "x");
    assert_true(td_at(b, TD_SHAPE(7)) == 3);
    /* the writer replaces by rename: what is mapped stays what it was */
    assert_int_equal(td_safetensors_save(path_of("c"), &(td_named){ "x", a }, 1, NULL, 0), 0);
    assert_true(td_at(b, TD_SHAPE(999)) == 3);
}

/* Another program's file may put an f32 at an odd offset: it is copied. */
static void unaligned(void **state)
{
    put_st("u", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]}}",
           "\x07\x00\x00\x80\x3f", 5);
    td_safetensors *f = td_safetensors_open(path_of("u"));
    assert_true(td_item(td_safetensors_get(f, "a")) == 7);
    assert_true(td_item(td_safetensors_get(f, "b")) == 1);
}

static void misuse(void **state)
{
    td_tensor *x = td_ones(TD_SHAPE(2), TD_F32);
    td_safetensors_save(path_of("x"), (td_named[]){ { "a", x }, { "a", x } }, 2, NULL, 0);
    expect_error(TD_ERR_ARGUMENT, "td_safetensors_save: the name \"a\" is there twice");
    td_safetensors_save(path_of("x"), &(td_named){ "__metadata__", x }, 1, NULL, 0);
    expect_error(TD_ERR_ARGUMENT, "td_safetensors_save: the name of tensor 0 is \"__metadata__\", which the format keeps for itself");
    td_safetensors_save(path_of("x"), &(td_named){ "\xff", x }, 1, NULL, 0);
    expect_error(TD_ERR_ARGUMENT, "td_safetensors_save: the name of tensor 0 is not valid UTF-8");
    td_safetensors_save(path_of("x"), &(td_named){ "x", NULL }, 1, NULL, 0);
    expect_error(TD_ERR_ARGUMENT, "td_safetensors_save: the tensor is NULL");
    td_safetensors_save(path_of("x"), &(td_named){ "x", x }, 1, (td_text_pair[]){ { "k", "1" }, { "k", "2" } }, 2);
    expect_error(TD_ERR_ARGUMENT, "td_safetensors_save: the metadata key \"k\" is there twice");
    td_safetensors_save(NULL, &(td_named){ "x", x }, 1, NULL, 0);
    expect_error(TD_ERR_ARGUMENT, "td_safetensors_save: the path is NULL, expected a file");
    assert_int_equal(access(path_of("x"), F_OK), -1);

    assert_int_equal(td_safetensors_save(path_of("x"), &(td_named){ "x", x }, 1, NULL, 0), 0);
    td_safetensors *f = td_safetensors_open(path_of("x"));
    char sentence[256];
    snprintf(sentence, sizeof sentence, "td_safetensors_get: %s has no tensor \"y\" among its 1", path_of("x"));
    assert_true(td_is_poisoned(td_safetensors_get(f, "y")));
    expect_error(TD_ERR_ARGUMENT, sentence);
    assert_null(td_safetensors_name(f, 1));
    snprintf(sentence, sizeof sentence, "td_safetensors_name: %s has 1 tensors, there is no number 1", path_of("x"));
    expect_error(TD_ERR_ARGUMENT, sentence);
    td_safetensors_get(f, NULL);
    expect_error(TD_ERR_ARGUMENT, "td_safetensors_get: the name is NULL");
    td_safetensors_count(NULL);
    expect_error(TD_ERR_ARGUMENT, "td_safetensors_count: the file is NULL");
    f = td_safetensors_open(path_of("absent"));
    expect_file_error(TD_ERR_IO, "td_safetensors_open", "absent", ": cannot be opened: No such file or directory");
    assert_int_equal(td_safetensors_count(f), 0);
    expect_error(TD_ERR_STATE, "td_safetensors_count: the file is the poisoned result of an earlier error");
    td_safetensors_free(f);
    td_safetensors_open(io_folder);
    snprintf(sentence, sizeof sentence, "td_safetensors_open: %s: is a folder, expected a file", io_folder);
    expect_error(TD_ERR_IO, sentence);
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(by_hand), TEST(round_trip), TEST(written_bytes), TEST(copy_on_write), TEST(unaligned),
                                        TEST(misuse) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
