/* tests/io/test_hostile.c: safetensors files broken in every way we know, each with its sentence; none may take memory for what it claims. */
#include "io_test.h"

#define ENTRY(name, dtype, shape, b, e) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #b "," #e "]}"

/* header, bytes of data, the sentence behind "td_safetensors_open: FILE" */
static const struct { const char *header; size_t data; const char *sentence; } broken[] = {
    { "", 8, ": at byte 8: expected the header's '{', got the header's end" },
    { " {}", 0, ": at byte 8: expected the header's '{', got byte 0x20" },
    { "[]", 0, ": at byte 8: expected the header's '{', got '['" },
    { "{", 0, ": at byte 9: expected a text in quotes, got the header's end" },
    { "{} x", 0, ": at byte 11: expected only spaces after the header's object, got 'x'" },
    { "{\"a", 0, ": at byte 9: a text has no closing quote before the header's end" },
    { "{\"a\"}", 0, ": at byte 12: expected ':', got '}'" },
    { "{\"a\":}", 0, ": at byte 13: expected a value, got '}'" },
    { "{\"a\":{\"dtype\":\"F32\"", 0, ": at byte 27: expected a value, got the header's end" },
    { "{a:1}", 0, ": at byte 9: expected a text in quotes, got 'a'" },
    { "{\"a\":17}", 0, ": at byte 13: the description of a tensor has 2 bytes, 46 to 4096 are expected" },
    { "{" ENTRY("a", "U8", "[1]", 0, 1) ",}", 1, ": at byte 61: expected a text in quotes, got '}'" },
    { "{" ENTRY("a", "U8", "[1]", 0, 1) " " ENTRY("b", "U8", "[0]", 1, 1) "}", 1, ": at byte 61: expected ',', got '\"'" },
    { "{" ENTRY("a", "F32", "[2]", 0, 8) "}", 7, ": at byte 13: tensor \"a\": data_offsets [0,8] do not lie within the 7 bytes of data" },
    { "{" ENTRY("a", "F32", "[2]", 0, 8) "}", 9, ": at byte 70: the file has 9 bytes of data, but its tensors end after 8" },
    { "{}", 1, ": at byte 10: the file has 1 bytes of data, but its tensors end after 0" },
    { "{" ENTRY("a", "F32", "[2]", 8, 0) "}", 8, ": at byte 13: tensor \"a\": data_offsets [8,0] do not lie within the 8 bytes of data" },
    { "{" ENTRY("a", "F32", "[2]", -8, 0) "}", 8,
      ": at byte 13: tensor \"a\": expected data_offsets of two whole numbers from 0 up, its begin and end" },
    { "{" ENTRY("a", "F32", "[2]", 0.0, 8) "}", 8,
      ": at byte 13: tensor \"a\": expected data_offsets of two whole numbers from 0 up, its begin and end" },
    { "{" ENTRY("a", "F32", "[3]", 0, 8) "}", 8, ": at byte 13: tensor \"a\": data_offsets [0,8] are 8 bytes, but shape (3) of F32 takes 12" },
    { "{" ENTRY("a", "U8", "[4]", 0, 4) "," ENTRY("b", "U8", "[4]", 3, 7) "}", 7,
      ": at byte 65: tensor \"b\" begins at 3 of the data, where \"a\" goes on to 4: they overlap" },
    { "{" ENTRY("a", "U8", "[4]", 0, 4) "," ENTRY("b", "U8", "[4]", 5, 9) "}", 9,
      ": at byte 65: tensor \"b\" begins at 5 of the data, but what is before it ends at 4: a hole" },
    { "{" ENTRY("a", "U8", "[4]", 2, 6) "}", 6,
      ": at byte 13: tensor \"a\" begins at 2 of the data, but what is before it ends at 0: a hole" },
    { "{" ENTRY("a", "U8", "[1]", 0, 1) "," ENTRY("a", "U8", "[1]", 1, 2) "}", 2,
      ": at byte 65: the name \"a\" is there twice, first at byte 13" },
    { "{" ENTRY("a", "U8", "[1]", 0, 1) "," ENTRY("\\u0061", "U8", "[1]", 1, 2) "}", 2,
      ": at byte 70: the name \"a\" is there twice, first at byte 13" },
    { "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1,
      ": at byte 13: the description of a tensor is not valid JSON" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1],\"extra\":0}}", 1,
      ": at byte 13: tensor \"a\": expected an object of dtype, shape and data_offsets, and nothing else" },
    { "{\"a\":[0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5]}", 1,
      ": at byte 13: tensor \"a\": expected an object of dtype, shape and data_offsets, and nothing else" },
    { "{" ENTRY("a", "U7", "[1]", 0, 1) "}", 1, ": at byte 13: tensor \"a\": dtype \"U7\" is not known, expected one such as \"F32\"" },
    { "{" ENTRY("a", "U8", "[-1]", 0, 1) "}", 1, ": at byte 13: tensor \"a\": dimension 0 of its shape is no whole number from 0 up" },
    { "{" ENTRY("a", "U8", "[1e0]", 0, 1) "}", 1, ": at byte 13: tensor \"a\": dimension 0 of its shape is no whole number from 0 up" },
    { "{" ENTRY("a", "U8", "\"[1]\"", 0, 1) "}", 1, ": at byte 13: tensor \"a\": shape is no list, expected a list of up to 8 sizes" },
    { "{" ENTRY("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1,
      ": at byte 13: tensor \"a\": shape is longer, expected a list of up to 8 sizes" },
    { "{" ENTRY("a", "U8", "[4294967296,4294967296]", 0, 0) "}", 0,
      ": at byte 13: tensor \"a\": shape (4294967296,4294967296) has more elements than can be addressed" },
    { "{" ENTRY("a", "U8", "[0,9223372036854775807]", 0, 0) "}", 0,
      ": at byte 13: tensor \"a\": shape (0,9223372036854775807) has more elements than can be addressed" },
    { "{" ENTRY("a", "U8", "[99999999999999999999]", 0, 0) "}", 0, ": at byte 13: the description of a tensor is not valid JSON" },
    { "{" ENTRY("a", "U8", "[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]", 0, 1) "}", 1,
      ": at byte 50: brackets are nested more than 16 deep" },
    { "{\"a\xff\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1, ": at byte 9: a tensor's name is not valid JSON" },
    { "{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1, ": at byte 9: a tensor's name is not valid JSON" },
    { "{\"__metadata__\":[]}", 0, ": at byte 24: expected '{', got '['" },
    { "{\"__metadata__\":{\"a\":1}}", 0, ": at byte 29: a value of the metadata is no text, as it must be" },
    { "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, ": at byte 8: the metadata has the key \"a\" twice" },
    { "{\"__metadata__\":{},\"__metadata__\":{}}", 0, ": at byte 27: \"__metadata__\" is there twice" },
};

static void headers(void **state)
{
    static const unsigned char data[16];
    for (size_t i = 0; i < TD_COUNT(broken); i++) {
        put_st("x", broken[i].header, data, broken[i].data);
        td_safetensors_free(td_safetensors_open(path_of("x")));
        expect_file_error(TD_ERR_FORMAT, "td_safetensors_open", "x", broken[i].sentence);
    }
}

static void lengths(void **state)
{
    static const struct { const char *bytes; size_t n; const char *sentence; } files[] = {
        { "", 0, ": at byte 0: expected 8 bytes with the header's length, but the file has 0" },
        { "\2\0\0\0\0\0\0", 7, ": at byte 0: expected 8 bytes with the header's length, but the file has 7" },
        { "\0\0\0\0\0\0\0\0", 8, ": at byte 8: expected the header's '{', got the header's end" },
        { "\3\0\0\0\0\0\0\0{}", 10, ": at byte 0: the header's length is 3, but the file has only 2 bytes after it" },
        { "\1\xe1\xf5\5\0\0\0\0{}", 10, ": at byte 0: the header's length is 100000001, at most 100000000 is allowed" },
        { "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, ": at byte 0: the header's length is 18446744073709551615, at most 100000000 is allowed" },
    };
    for (size_t i = 0; i < TD_COUNT(files); i++) {
        put("x", files[i].bytes, files[i].n);
        td_safetensors_free(td_safetensors_open(path_of("x")));
        expect_file_error(TD_ERR_FORMAT, "td_safetensors_open", "x", files[i].sentence);
    }
}

/* A good file cut at every length is refused at every length. */
static void truncated(void **state)
{
    td_here(__FILE__, __LINE__);               /* thousands of errors: none looks for its line */
    td_tensor *x = td_arange(5, TD_F64), *y = td_ones(TD_SHAPE(3), TD_U8);
    assert_int_equal(td_safetensors_save(path_of("good"), (td_named[]){ { "x", x }, { "y", y } }, 2, &(td_text_pair){ "k", "v" }, 1), 0);
    unsigned char bytes[512];
    size_t n = get("good", bytes, sizeof bytes);
    for (size_t cut = 0; cut < n; cut++) {
        put("cut", bytes, cut);
        td_safetensors_free(td_safetensors_open(path_of("cut")));
        assert_int_equal(td_error_pending(), TD_ERR_FORMAT);
        td_error_clear();
    }
    td_here(NULL, 0);
}

/* Each byte of a good file changed in turn: an error or a file that can be read, never a crash (run under AddressSanitizer too). */
static void flipped(void **state)
{
    td_here(__FILE__, __LINE__);               /* thousands of errors: none looks for its line */
    td_tensor *x = td_arange(5, TD_F64), *y = td_ones(TD_SHAPE(3), TD_BOOL);
    assert_int_equal(td_safetensors_save(path_of("good"), (td_named[]){ { "x", x }, { "y", y } }, 2, &(td_text_pair){ "k", "v" }, 1), 0);
    unsigned char bytes[512];
    size_t n = get("good", bytes, sizeof bytes);
    for (size_t at = 0; at < n; at++)
        for (int bit = 0; bit < 8; bit++) {
            TD_SCOPE();
            bytes[at] ^= (unsigned char)(1 << bit);
            put("flipped", bytes, n);
            bytes[at] ^= (unsigned char)(1 << bit);
            td_safetensors *f = td_safetensors_open(path_of("flipped"));
            size_t tensors = td_error_pending() ? 0 : td_safetensors_count(f);
            for (size_t i = 0; i < tensors; i++)
                td_safetensors_get(f, td_safetensors_name(f, i));
            int code = td_error_pending();
            assert_true(code == 0 || code == TD_ERR_FORMAT || code == TD_ERR_DTYPE);
            td_error_clear();
            td_safetensors_free(f);
        }
    td_here(NULL, 0);
}

/* Two megabytes of members that are no tensors, and of brackets: the pool is asked for nothing of that size. */
static void no_memory_for_claims(void **state)
{
    enum { N = 2 << 20 };
    char *text = malloc(N + 1);
    text[0] = '{';
    for (int i = 1; i + 5 < N; i += 5)
        memcpy(text + i, "\"\":0,", 5);
    text[N] = '\0';
    for (int i = 1 + (N - 1) / 5 * 5 - 5; i < N; i++)
        text[i] = ' ';
    td_memory_trim();
    td_memory_reset_peak();
    put_st("x", text, NULL, 0);
    td_safetensors_free(td_safetensors_open(path_of("x")));
    expect_file_error(TD_ERR_FORMAT, "td_safetensors_open", "x", ": at byte 12: the description of a tensor has 1 bytes, 46 to 4096 are expected");
    memset(text + 1, '[', N - 1);
    memcpy(text, "{\"a\":", 5);
    put_st("x", text, NULL, 0);
    td_safetensors_free(td_safetensors_open(path_of("x")));
    expect_file_error(TD_ERR_FORMAT, "td_safetensors_open", "x", ": at byte 29: brackets are nested more than 16 deep");
    assert_true(td_memory().peak_bytes < 65536);
    free(text);
}

/* A file of many small tensors: what is kept of it is not larger than its header. */
static void index_is_small(void **state)
{
    enum { N = 5000 };
    td_named *list = malloc(N * sizeof *list);
    char (*name)[16] = malloc(N * sizeof *name);
    td_tensor *x = td_zeros(TD_SHAPE(0), TD_U8);
    for (int i = 0; i < N; i++) {
        snprintf(name[i], sizeof name[i], "%d", i);
        list[i] = (td_named){ name[i], x };
    }
    assert_int_equal(td_safetensors_save(path_of("many"), list, N, NULL, 0), 0);
    FILE *f = fopen(path_of("many"), "rb");
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    fclose(f);
    int64_t before = td_memory().live_bytes;
    td_memory_reset_peak();
    td_safetensors *file = td_safetensors_open(path_of("many"));
    assert_int_equal(td_safetensors_count(file), N);
    assert_string_equal(td_safetensors_name(file, 4321), "4321");
    assert_true(td_safetensors_has(file, "0") && td_safetensors_has(file, "4999") && !td_safetensors_has(file, "5000"));
    if (td_memory().peak_bytes - before > size + size / 8 + 4096)
        fail_msg("%lld bytes for a file of %ld", (long long)(td_memory().peak_bytes - before), size);
    td_safetensors_free(file);
    free(name);
    free(list);
}

static void dtypes(void **state)
{
    put_st("x", "{" ENTRY("a", "I16", "[1]", 0, 2) "," ENTRY("b", "BOOL", "[2]", 2, 4) "}", "\1\0\1\2", 4);
    td_safetensors *f = td_safetensors_open(path_of("x"));
    assert_int_equal(td_safetensors_count(f), 2);
    td_safetensors_get(f, "a");
    expect_file_error(TD_ERR_DTYPE, "td_safetensors_get", "x", ": tensor \"a\" is I16, which no dtype of Tandem is");
    td_safetensors_get(f, "b");
    expect_file_error(TD_ERR_FORMAT, "td_safetensors_get", "x", ": at byte 119: tensor \"b\" is of booleans, expected 0 or 1, got 2");
}

int main(void)
{
    const struct CMUnitTest tests[] = { TEST(headers), TEST(lengths), TEST(truncated), TEST(flipped), TEST(no_memory_for_claims),
                                        TEST(index_is_small), TEST(dtypes) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
